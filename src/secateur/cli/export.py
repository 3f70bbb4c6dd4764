"""The verbs that hand a checkpoint on: `export` for another program, `push` to the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.options import AsJson, GgufFile, Quiet, Revision, examples, print_json
from secateur.core.form import GGUF_TYPES
from secateur.errors import SecateurError


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A stock checkpoint that prune, apply or heal wrote, or any MODEL."
        ),
    ],
    gguf: Annotated[bool, typer.Option("--gguf", help="As a GGUF file, for llama.cpp.")] = False,
    kind: Annotated[
        str, typer.Option("--type", metavar="NAME", help=f"How numbers are stored: {', '.join(GGUF_TYPES)}.")
    ] = "f16",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FILE", help="The file to write; left out: MODEL-TYPE.gguf here."
        ),
    ] = None,
    revision: Revision = None,
    gguf_file: GgufFile = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a checkpoint as one file for another program.

    The file is read again and must compute what the checkpoint does, as far as its type can, before it appears.
    """
    from secateur.cli.progress import bars

    if not gguf:
        raise SecateurError("in which format? Give --gguf, for llama.cpp.")
    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        from secateur import api

        made = api.export(model, out, type=kind, revision=revision, gguf_file=gguf_file, overwrite=overwrite)
        progress("load", 1, 1)
    if as_json:
        print_json(made)
        return
    stored = ", ".join(f"{count} {how}" for how, count in sorted(made["tensors"].items()))
    print(f"written     {made['file']}  ({made['bytes'] / 1e6:.1f} MB; tensors: {stored})")
    if made["instead"]:
        print(f"            {len(made['instead'])} in f16 for want of whole blocks of 32 numbers")
    print(
        f"read again  the same tokens; logits differ by {made['difference']:.1e} (relative; at most "
        f"{made['tolerance']:.0e} for {made['type']})"
    )


def push(
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="A checkpoint that prune, apply, finetune or heal wrote.")
    ],
    repo: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="Where on the hub; made if it is not there.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a checkpoint with its card, plan, verdict and report to the Hugging Face hub."""
    from secateur import api

    pushed = api.push(folder, repo, private=private, dry_run=dry_run)
    if as_json:
        print_json(pushed)
    else:
        print_pushed(pushed)


def print_pushed(pushed: Mapping[str, Any]) -> None:
    """Print the files of an upload and where they are."""
    from secateur.cli.tables import print_rows

    print_rows(("file", "bytes"), [(file["name"], file["bytes"]) for file in pushed["files"]])
    total = sum(file["bytes"] for file in pushed["files"])
    done = f"pushed      {pushed['url']}" if pushed["url"] else f"would go to {pushed['repo']}"
    print(f"{done}  ({total / 1e6:.1f} MB)")


VERBS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (
        export,
        {
            "name": "export",
            "epilog": examples(
                "secateur export out --gguf",
                "secateur export out --gguf --type q8_0 -o model-q8_0.gguf",
            ),
        },
    ),
    (
        push,
        {
            "epilog": examples(
                "secateur push out me/my-llama-cut --dry-run", "secateur push out me/my-llama-cut --private"
            )
        },
    ),
)
