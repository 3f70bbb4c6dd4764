"""The verbs that write a checkpoint without a search, or hand it on: `apply`; `export` for another program; `push`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.options import (
    AsJson,
    Check,
    Commands,
    Device,
    Dtype,
    Edits,
    Factorize,
    GgufFile,
    Model,
    Overwrite,
    PlanFile,
    Portable,
    Quiet,
    Revision,
    ShardSize,
    Svd,
    Trust,
    Zeroed,
    already_told,
    examples,
    given_plan,
    print_json,
)
from secateur.core.form import GGUF_TYPES
from secateur.core.loading import evidence_text, sign
from secateur.errors import SecateurError

if TYPE_CHECKING:
    from secateur.result import Result


def apply(
    model: Model,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="OUT", help="The checkpoint folder to write.")
    ] = None,
    plan: PlanFile = None,
    edit: Edits = None,
    portable: Portable = False,
    zeroed: Zeroed = False,
    factorize: Factorize = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what would be cut, what is left, and where it would load."),
    ] = False,
    shard_size: ShardSize = "5GB",
    svd: Svd = "auto",
    check: Check = "auto",
    revision: Revision = None,
    gguf_file: GgufFile = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Carry out a plan or edits given by hand; no search, no verdict.

    MODEL may be larger than memory: it is read and written tensor by tensor. Killed at any moment, the same command
    goes on with the next file.
    """
    chosen = given_plan(plan, edit)
    if chosen is None:
        raise SecateurError(
            "nothing to apply: give --plan plan.json, or --edit such as b10.down=20 or b3.attn.h2=drop."
        )
    if out is None and not dry_run:
        raise SecateurError("where to? Give -o OUT, or --dry-run to write nothing.")
    from secateur import api
    from secateur.cli.progress import bars

    if out is None or dry_run:
        with bars(quiet=quiet or as_json):
            told = api.preview(
                model, chosen, portable=portable, zeroed=zeroed, factorize=factorize, shard_size=shard_size, svd=svd,
                check=check, revision=revision, gguf_file=gguf_file, dtype=dtype, device=device,
                trust_remote_code=trust_remote_code,
            )  # fmt: skip
        print_json(told) if as_json else print_preview(told)
        return
    with bars(quiet=quiet or as_json) as progress:
        made = api.apply(
            model, chosen, out, portable=portable, zeroed=zeroed, factorize=factorize, shard_size=shard_size, svd=svd,
            check=check, revision=revision, gguf_file=gguf_file, dtype=dtype, device=device,
            trust_remote_code=trust_remote_code, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    print_json(told_of_applied(made)) if as_json else print_applied(made)


def told_of_applied(made: Result) -> dict[str, object]:
    """Return the result of `apply` as JSON."""
    return {"out": str(made.out), "already": made.already, "plan": made.plan.to_json()}


def print_applied(made: Result) -> None:
    """Print what `apply` cut, and where it is."""
    if made.already:
        print(already_told(made.out))
    print(f"cut         {made.plan}\ncheckpoint  {made.out}")
    print(f"Nothing was verified: secateur eval {made.out} --task TASK")


def print_preview(told: Mapping[str, Any]) -> None:
    """Print what `apply --dry-run` found."""
    from secateur.core.records.verdict import LoadsRecord

    before, after = told["parameters"]["before"], told["parameters"]["after"]
    loads = LoadsRecord.model_validate(told["loads"])
    print(f"cut         {told['cut']}\nin all      {told['cut_summary']}")
    print(f"parameters  {before:,} → {after:,} ({after / before:.1%} kept)\nform        {loads.form}")
    if loads.why:
        print(f"            because {loads.why}")
    for place in loads.where:
        evidence = evidence_text(place)
        print(f"  {sign(place)} {place.place}: {place.how}" + (f"\n    {evidence}" if evidence else ""))
    if told["portable"]:
        print(f"The nearest plan of a stock checkpoint (--portable): {told['portable']}")


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
    print_json(made) if as_json else print_exported(made)


def print_exported(made: Mapping[str, Any]) -> None:
    """Print which file was written, and how near it is; of one that was there, that it was."""
    if made.get("already"):
        print(already_told(Path(made["file"])))
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


VERBS: Commands = (
    (
        apply,
        {
            "epilog": examples(
                "secateur apply gpt2 --edit b10.down=20 -o gpt2-cut",
                "secateur apply ./llama-70b --plan plan.json --shard-size 10GB -o cut",
                "secateur apply builtin:facts --plan out/plan.json -o facts-cut",
            )
        },
    ),
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
