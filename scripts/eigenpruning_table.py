"""Eigenpruning's table for the models one has: test accuracy before and after singular directions were removed.

A block for every model and for every one that is fine-tuned first, a row for every task. Beside ours stand the figures
of Vergara-Browne et al. 2024 (arXiv 2404.03147) where model and task are theirs. Their splits are not ours: INT-SUM and
INT-MULT have commuted partners of test problems in their training split.

    python scripts/eigenpruning_table.py --model builtin:arith --task builtin:int-mult -o table
    python scripts/eigenpruning_table.py --model phi-2=microsoft/phi-2 --model gpt2=gpt2 --finetune gpt2 -o table
    python scripts/eigenpruning_table.py --model gpt2=./gpt2 --task cb=cb_train.jsonl,cb_validation.jsonl \\
        --allow-small --protocol paper --matrices k --per-head -o table

Every cell is a checkpoint of its own in OUT/MODEL/TASK; what is there already is not computed again, and a cell that
was killed goes on where it was. Exit code 1 where a cell could not be filled: the table says why.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import secateur
from secateur.cli.progress import bars
from secateur.cli.tables import table, with_interval
from secateur.core.progress import Progress
from secateur.errors import SecateurError

TASKS = ("builtin:int-sum", "builtin:int-mult", "cb", "copa", "rte")
PUBLISHED = {  # percent before and after, in the order of TASKS; True: fine-tuned
    ("phi-2", False): ((1.45, 46.10), (13.75, 97.50), (42.86, 51.79), (78, 84), (42.96, 44.04)),
    ("gpt2", False): ((3.00, 3.20), (13.75, 15.00), (10.71, 12.50), (55, 55), (0.36, 1.44)),
    ("gpt2", True): ((4, 4), (0, 0), (41.07, 50.00), (55, 55), (47.29, 52.71)),
}
SCORES = ("before tuning", "original", "pruned", "difference")
COLUMNS = ("model", "task", *SCORES, "p", "directions", "verdict", "published")


@dataclass(frozen=True)
class Cell:
    """A model on a task. What is of verdict.json has its form; `untuned` is the score before fine-tuning. `why` is what
    kept the cell from being filled, empty where nothing did."""

    model: str
    tuned: bool
    task: str
    published: tuple[float, float] | None
    why: str = ""
    out: str | None = None
    already: bool = False
    untuned: dict[str, Any] | None = None
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    difference: dict[str, Any] | None = None
    p_value: float | None = None
    directions: int | None = None
    verdict: str | None = None


def cells(given: argparse.Namespace, progress: Progress) -> Iterator[Cell]:
    """Block by block. Models come before they are fine-tuned, so that their scores are known then."""
    models, tasks = dict(map(named, given.model)), dict(map(named, given.task or TASKS))
    originals: dict[tuple[str, str], dict[str, Any] | None] = {}
    blocks = [(name, False) for name in models] + [(name, True) for name in given.finetune]
    for number, (model, tuned) in enumerate(blocks):
        for task, spec in tasks.items():
            done = f"{number * len(tasks) + list(tasks).index(task) + 1}/{len(blocks) * len(tasks)}"
            print(f"{done} {title(model, tuned)}: {task}", file=sys.stderr)
            place = given.out.resolve() / title(model, tuned).replace(" ", "-") / task
            head = (model, tuned, task, published(models[model], tuned, task))
            try:
                found = filled(given, models[model], tuned, spec, place, progress)
            except SecateurError as error:
                yield Cell(*head, why=str(error))
                continue
            if not tuned:
                originals[model, task] = found["before"]
            yield Cell(*head, untuned=originals.get((model, task)) if tuned else None, **found)


def filled(
    given: argparse.Namespace, model: str, tuned: bool, task: str, place: Path, progress: Progress
) -> dict[str, Any]:
    """The measured part of a cell. Raises `SecateurError` where the task does not fit, for instance."""
    train, _, test = task.partition(",")
    how = {name: vars(given)[name] for name in ("limit", "seed", "allow_small", "skip_long", "device")}
    how |= {"test_task": test or None, "overwrite": given.overwrite, "progress": progress}
    pruning = {name: vars(given)[name] for name in ("protocol", "per_head", "second_order", "whitened")}
    pruning |= {"method": "directions", "objective": "accuracy", "matrices": tuple(given.matrices.split(","))}
    pruning["keep_unproven"] = True  # the table is about what the method does, whether or not it helps
    fingerprint = None
    if tuned:
        tuning = {name: vars(given)[name] for name in ("epochs", "lr", "batch_size")}
        made = secateur.finetune(model, train, place / "tuned", split=given.learn, **tuning, **how)
        model, fingerprint = str(made.out), made.record["fingerprint"]
    found = secateur.prune(model, train, place / "pruned", **pruning, **how)
    if fingerprint not in (None, found.plan.model):  # pruned before the model was fine-tuned in another way
        found = secateur.prune(model, train, place / "pruned", **pruning, **how | {"overwrite": True})
    told = {name: found.verdict[name] for name in ("before", "after", "difference", "p_value", "verdict")}
    removed = sum(len(edit.directions) for edit in found.plan.removed)
    return told | {"directions": removed, "out": str(found.out), "already": found.already}


def named(text: str) -> tuple[str, str]:
    """`NAME=SPEC`, or a SPEC that has the end of its first path for a name."""
    name, _, spec = text.rpartition("=")
    first = spec.partition(",")[0].rpartition(":")[2]
    return name or Path(first).name.removesuffix(".jsonl"), spec


def title(model: str, tuned: bool) -> str:
    return f"{model} fine-tuned" if tuned else model


def published(spec: str, tuned: bool, task: str) -> tuple[float, float] | None:
    names = [named(one)[0] for one in TASKS]
    rows = PUBLISHED.get((Path(spec).name, tuned), ())
    return dict(zip(names, rows, strict=False)).get(task)


def row(cell: Cell) -> list[Any]:
    scores = (cell.untuned, cell.before, cell.after, cell.difference)
    told = [None if score is None else with_interval(score, "share") for score in scores]
    told[3] = told[3] and told[3].replace("%", "points")
    theirs = cell.published and "{:.2f} → {:.2f} %".format(*cell.published)
    word = cell.why or cell.verdict
    return [
        title(cell.model, cell.tuned),
        cell.task,
        *told,
        "" if cell.p_value is None else f"{cell.p_value:.2g}",
        cell.directions,
        word,
        theirs,
    ]


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="[NAME=]MODEL", help="A block; may be repeated.")
    add("--finetune", action="append", default=[], metavar="NAME", help="Also this one, fine-tuned first.")
    add("--task", action="append", metavar="[NAME=]TASK[,TEST]", help=f"A row. [default: {' '.join(TASKS)}]")
    add("-o", "--out", type=Path, required=True, help="The folder of all cells.")
    add("--protocol", choices=("search", "removal", "threshold", "paper"), help="[default: search]")
    add("--matrices", default="all", help="Such as k or k,v. [default: all]")
    add("--per-head", action="store_true", help="Every head's directions of q, k, v and o are its own.")
    add("--second-order", action="store_true")
    add("--whitened", action="store_true")
    add("--epochs", type=int, default=3, help="Of fine-tuning.")
    add("--lr", type=float, default=5e-5)
    add("--batch-size", type=int, default=8)
    add("--learn", default="probe", help="What is learned: probe, or probe,select. [default: probe]")
    add("--limit", type=int, help="At most so many examples of each task.")
    add("--seed", type=int, default=0)
    add("--allow-small", action="store_true", help="Also tasks with few examples; CB has 56 to test on.")
    add("--skip-long", action="store_true", help="Leave out examples that do not fit the model's context.")
    add("--device", default="auto")
    add("--overwrite", action="store_true", help="Compute every cell anew.")
    add("--json", action="store_true", help="The cells as JSON instead of a table.")
    given = parser.parse_args(words)
    for what, specs in (("--model", given.model), ("--task", given.task or TASKS)):
        if len(dict(map(named, specs))) < len(specs):
            parser.error(f"two of {what} have one name; give another, as NAME=...")
    unknown = set(given.finetune) - set(dict(map(named, given.model)))
    if unknown:
        parser.error(f"--finetune {' '.join(sorted(unknown))}: give that name to a --model.")
    return given


def main(words: Sequence[str] | None = None) -> int:
    given = arguments(words)
    logging.getLogger("secateur").setLevel(logging.ERROR)  # small splits show in the intervals
    with bars(quiet=given.json) as progress:
        found = list(cells(given, progress))
    if given.json:
        print(json.dumps([asdict(cell) for cell in found], indent=2))
    else:
        shown = table(COLUMNS, map(row, found), whole=SCORES)
        Console(width=None if sys.stdout.isatty() else 200).print(shown)
    return int(any(cell.why for cell in found))


if __name__ == "__main__":
    sys.exit(main())
