"""The options of all verbs, each said once, and the words they are written in. Imports nothing heavy."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, TypedDict

import typer
from typer.core import TyperCommand

from secateur.core.finite import finite
from secateur.core.ranges import whole_numbers
from secateur.core.reading import as_written
from secateur.errors import OutputError, SecateurError

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a .gguf file, a hub name, or builtin:facts, builtin:recall, builtin:components, builtin:arith.",
    ),
]
TaskSpec = Annotated[
    str,
    typer.Option(
        "--task",
        metavar="TASK",
        help="FILE (.csv, .tsv, .jsonl, .json), text:FILE, hf:OWNER/NAME[:SPLIT], builtin:NAME, a preset (see "
        "`secateur tasks`), PRESET:FILE, study:NAME or lm_eval:NAME.",
    ),
]
PruneTasks = Annotated[
    list[str],
    typer.Option(
        "--task",
        metavar="TASK",
        help="FILE (.csv, .tsv, .jsonl, .json), text:FILE, hf:OWNER/NAME[:SPLIT], builtin:NAME, a preset (see "
        "`secateur tasks`), PRESET:FILE, study:NAME or lm_eval:NAME; repeated: one plan that is good for all of them.",
    ),
]
Each = Annotated[
    bool,
    typer.Option("--each", help="Of several --task: a plan for each, in OUT/NAME, instead of one for all."),
]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="The checkpoint folder to write.")]
Readout = Annotated[
    Path | None,
    typer.Option("-o", "--out", metavar="OUT", help="Write probe.json and probe.html to this folder."),
]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a hub model.")]
GgufFile = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Which .gguf file of MODEL, where that is a folder with several or a hub name."
    ),
]
TaskSpecs = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="TASK", help="As for prune; may be repeated. Induction alone needs none."),
]
Seed = Annotated[
    int, typer.Option(metavar="N", help="Seed of the search's order and of resampling; never of the splits.")
]
ShotsList = Annotated[
    str,
    typer.Option(
        "--shots", metavar="N,...", help="Solved examples before every prompt; 0,1,5 reads with each number."
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto (as stored), float32, bfloat16, float16 or float64; also what is written.",
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code a checkpoint brings along.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress bars.")]
LedgerPath = Annotated[
    Path | None,
    typer.Option(
        "--ledger",
        metavar="FILE",
        help="Share this ledger (the database of all judged plans) instead of OUT.run/ledger.sqlite.",
    ),
]
Opened = Annotated[
    Path | None,
    typer.Option("--ledger", metavar="FILE", help="Where an opening of test is written down."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the checkpoint of another command at OUT.")
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", metavar="FILE", help="plan.json, or a checkpoint folder that holds one."),
]
Edits = Annotated[
    list[str] | None,
    typer.Option(
        "--edit",
        metavar="SITE=WHAT",
        help="An edit such as b2.gate=5 (keep rank 5) or b0.attn.h1=drop; may be repeated.",
    ),
]


Revisions = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...", help="linearity: one profile for each of these revisions of a hub model."
    ),
]
Also = Annotated[
    list[str] | None,
    typer.Option(
        "--also",
        metavar="MODEL",
        help="linearity: another model or checkpoint beside MODEL; may be repeated.",
    ),
]
Parts = Annotated[
    bool, typer.Option("--parts", help="linearity: attentions and feed-forward networks too, in every model.")
]
Finer = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES", help="linearity: heads, matrices, or heads,matrices, with the parts they are of."
    ),
]
Portable = Annotated[
    bool,
    typer.Option(
        "--portable",
        help="Only what a stock class can hold: the same number of heads and neurons everywhere.",
    ),
]
Zeroed = Annotated[
    bool,
    typer.Option("--zeroed", help="Write zeros in the original's shapes: loads everywhere, saves nothing."),
]
Factorize = Annotated[
    bool,
    typer.Option("--factorize", help="Store matrices of low rank as two factors, where that is smaller."),
]

ShardSize = Annotated[str, typer.Option(metavar="SIZE", help="Write files of at most this size: 5GB, 500MB.")]
Svd = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="How matrices are decomposed: exact, randomized, or auto (randomized for small ranks of large matrices).",
    ),
]
Check = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What is compared at the end: logits, digests (needs no memory), or auto (logits where the model is small "
        "against free memory).",
    ),
]


class CommandWords(TypedDict, total=False):
    """The words that typer is told of a verb beside its function."""

    name: str
    cls: type[TyperCommand]
    epilog: str


Commands = tuple[tuple[Callable[..., None], CommandWords], ...]


def examples(*commands: str) -> str:
    """The end of a help page: one command a line, never wrapped into each other."""
    return "\b\n" + "\n".join(
        ["Examples:" if len(commands) > 1 else "Example:", *(f"  {c}" for c in commands)]
    )


def print_json(value: object) -> None:
    """The only thing that --json puts on stdout."""
    print(json.dumps(finite(value), indent=2, allow_nan=False))


def print_made(show: Callable[[], None], *already: Path) -> None:
    """Prints what a command made. What was there `already` is records that anybody may have changed since: all of it is
    printed, or nothing. Raises `OutputError` where one is damaged."""
    if already:
        places = ", ".join(map(str, already))
        with as_written(places, OutputError, "--overwrite makes it again."), redirect_stdout(io.StringIO()):
            show()
    show()


def already_told(out: Path) -> str:
    """The line above a result that was there before."""
    return f"{out} already holds the result of this command; --overwrite runs it again."


def given_plan(plan: Path | None, edits: list[str] | None) -> Path | list[str] | None:
    """--plan or --edit, whichever was given."""
    if plan is not None and edits:
        raise SecateurError("give --plan or --edit, not both.")
    return plan if plan is not None else (edits or None)


def numbers_of(text: str, option: str = "--shots", such: str = "0,1,5") -> list[int]:
    """`--shots 0,1,5`, or another option with numbers such as those."""
    numbers = whole_numbers(word.strip() for word in text.split(","))
    if numbers is None:
        raise SecateurError(f"{option} {text!r}: write a number, or several such as {such}.")
    return numbers
