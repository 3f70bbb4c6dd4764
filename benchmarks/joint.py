"""What one search for several tasks costs against one for each: `python benchmarks/joint.py [--limit N] [--repeats N]`.

Both in turn, each round in a new folder; (plan, example) pairs that the search asked for and seconds of every stage.
The model is the embedded one that knows facts and copies, so both tasks have something to lose.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import secateur

MODEL, TASKS = "builtin:components", ("builtin:facts", "builtin:recall")
OPTIONS = {"matrices": ("mlp",)}


def summed(verdicts: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Evaluations and seconds of a stage, over all runs."""
    total: Counter[str] = Counter()
    for verdict in verdicts:
        total.update({"evaluations": verdict["evaluations"]} | verdict["seconds"])
    return dict(total)


def measured(out: Path, limit: int) -> dict[str, dict[str, float]]:
    started = perf_counter()
    joint = [secateur.prune(MODEL, TASKS, out / "joint", limit=limit, **OPTIONS).verdict]
    between = perf_counter()
    each = [
        result.verdict for result in secateur.prune_each(MODEL, TASKS, out / "each", limit=limit, **OPTIONS)
    ]
    return {
        "one plan for all": summed(joint) | {"all": between - started},
        "one plan each": summed(each) | {"all": perf_counter() - between},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    for _ in range(given.repeats):
        with TemporaryDirectory() as place:
            for name, total in measured(Path(place), given.limit).items():
                seconds = ", ".join(
                    f"{stage} {value:.1f} s" for stage, value in total.items() if stage != "evaluations"
                )
                print(f"{name:18} {total['evaluations']:>8,} evaluations   {seconds}")


if __name__ == "__main__":
    main()
