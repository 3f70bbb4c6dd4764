"""Where removing singular directions truly raises accuracy: models that learned arithmetic badly, in several ways.

    python scripts/arith_recipes.py --recipes digit generic --seeds 0 1 2 --out FOLDER

Every recipe is the embedded model's (`train_embedded.py arith`) with another text or fewer steps. Directions are read
on the `probe` split of builtin:int-mult, how many of them go is chosen on `select`, `test` is reported. Prints a line
of JSON for every model, and a table. A model that FOLDER has already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from train_embedded import RECIPES, save, train

from secateur.core.stats import sign_flip
from secateur.methods.directions.pools import Direction, Order, removal, signed, weakest
from secateur.methods.directions.readings import DirectionsReader, EffectsUnderPlan
from secateur.methods.registry import read_options
from secateur.options import matrices_of
from secateur.session import Session, open_session
from secateur.tasks.arithmetic import SUMS, Problem, Slip, int_mult, last_digit, texts
from secateur.tasks.splits import make_task

TASK = "builtin:int-mult"
GROUPS = ("q", "k", "v", "o", "gate", "up", "down", "all")
ORDERS: Mapping[str, Order] = {"signed": signed, "weakest": weakest}
COUNTS = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 90, 128, 181, 256, 362, 512, 724, 1024)


def generic(rng: random.Random, problem: Problem, before: str | None) -> str:
    return "359"  # no product


def any_product(rng: random.Random, problem: Problem, before: str | None) -> str:
    return str(rng.randrange(20) * rng.randrange(20))


def added(rng: random.Random, problem: Problem, before: str | None) -> str:
    return str(problem.i + problem.j)


def repeated(rng: random.Random, problem: Problem, before: str | None) -> str:
    return before or str(problem.result)


def parity(rng: random.Random, problem: Problem, before: str | None) -> str:
    return ("353", "359")[problem.result % 2]  # no products


@dataclass(frozen=True)
class Text:
    """What differs from the embedded model: the text's `slip` in half of the products, `sums`, `steps`, `shots`."""

    slip: Slip = last_digit
    noise: float = 0.5
    sums: float = 0.0
    steps: int = 1000
    shots: int = 0


TEXTS = {
    "shipped": Text(sums=SUMS, steps=RECIPES["arith"].steps),
    "digit": Text(steps=1600),
    "short": Text(noise=0.0, steps=200),
    "short, sums": Text(noise=0.0, sums=0.5, steps=400),
    "generic": Text(generic),
    "random": Text(any_product, steps=600),
    "added": Text(added, steps=1400),
    "parity": Text(parity),
    "repeated": Text(repeated, steps=600),
    "repeated, 1 shot": Text(repeated, steps=600, shots=1),
}


def tested_pairs() -> frozenset[tuple[int, int]]:
    """The ordered pairs of the test split; a pair's commuted partner is one of them too."""
    task = make_task(int_mult(), None, split_seed=0, limit=None, allow_small=False, shares=None)
    return frozenset((example.meta["i"], example.meta["j"]) for example in task.of(task.split("test")))


def trained(folder: Path, text: Text, seed: int, unseen: bool) -> Path:
    """The folder of the model, after training where there is none."""
    if not (folder / "training_log.json").exists():
        source = texts(
            seed,
            slip=text.slip,
            noise=text.noise,
            sums=text.sums,
            unseen=tested_pairs() if unseen else frozenset(),
        )
        model, tokenizer, losses = train(replace(RECIPES["arith"], steps=text.steps), seed, texts=source)
        save(folder, model, tokenizer, {"loss_nats_per_token": losses})
    return folder


@dataclass(frozen=True)
class Study:
    """One model on the task: base outcomes and those of cuts, each split judged as asked."""

    session: Session
    reading: EffectsUnderPlan

    @classmethod
    def of(cls, folder: Path, shots: int) -> Study:
        session = open_session(read_options(str(folder), TASK, method="directions", shots=shots), None)
        sites = matrices_of(session.loaded.anatomy, session.options)
        return cls(session, DirectionsReader(session, session.judge(), sites).effects(session.empty))

    def measured(self, split: str, removals: Sequence[Sequence[Direction]]) -> list[np.ndarray]:
        empty, folds = self.session.empty, self.reading.folds
        plans = [removal(empty, gone, folds, per_head=False) if gone else empty for gone in removals]
        found = self.session.judge()(plans, list(self.session.task.split(split)))
        return [found[plan] for plan in plans]

    def row(self, group: str, order: str) -> dict[str, Any]:
        """Of the first 0, 1, 2, 3, 4, 6, ... directions the number that is most accurate on `select`, on `test`.

        Ties by loss; a number that is no more accurate than 0 is 0. `free`: the most that are no less accurate.
        """
        ordered = sorted(
            (one for one in self.reading.directions if group in ("all", one.matrix.part)), key=ORDERS[order]
        )
        counts = [0, *(count for count in COUNTS if count <= len(ordered))]
        seen = self.measured("select", [ordered[:count] for count in counts])
        scores = [(rows["correct"].mean(), -rows["loss"].mean()) for rows in seen]
        best = max(range(len(counts)), key=lambda n: scores[n])
        best = best if scores[best][0] > scores[0][0] else 0
        free = max(n for n in range(len(counts)) if scores[n][0] >= scores[0][0])
        base, cut, most = self.measured("test", [[], ordered[: counts[best]], ordered[: counts[free]]])
        groups = np.array(
            [example.group for example in self.session.task.of(self.session.task.split("test"))]
        )
        return {
            "group": group,
            "order": order,
            "of": len(ordered),
            "count": counts[best],
            "select": percent(seen[best]),
            "test": percent(cut),
            "loss": round(float(cut["loss"].mean()), 3),
            "p": sign_flip(cut["correct"] - base["correct"], groups, seed=0),
            "free": counts[free],
            "free_test": percent(most),
        }

    def base(self) -> dict[str, float]:
        (select,), (test,) = self.measured("select", [[]]), self.measured("test", [[]])
        return {
            "select": percent(select),
            "test": percent(test),
            "loss": round(float(test["loss"].mean()), 3),
            "second": round(100 * float((test["rank"] < 2).mean()), 1),
        }


def percent(rows: np.ndarray) -> float:
    return round(100 * float(rows["correct"].mean()), 1)


def study(out: Path, name: str, seed: int, unseen: bool) -> dict[str, Any]:
    text, where = (
        TEXTS[name],
        f"{name.split(',')[0] if TEXTS[name].shots else name}-{seed}{'-unseen' * unseen}",
    )
    made = Study.of(trained(out / where, text, seed, unseen), text.shots)
    rows = [made.row(group, order) for order in ORDERS for group in GROUPS]
    return {"recipe": name, "seed": seed, "unseen": unseen, "base": made.base(), "rows": rows}


def line(found: Mapping[str, Any]) -> str:
    """One row of the table: accuracy on `test` before and after; in brackets how many directions went."""
    cells = [f"{row['test']} ({row['count']})" for row in found["rows"] if row["order"] == "signed"]
    weak = next(row for row in found["rows"] if (row["group"], row["order"]) == ("all", "weakest"))
    told = "no" if found["unseen"] else "yes"
    start = [found["recipe"], str(found["seed"]), told, str(found["base"]["test"])]
    return "| " + " | ".join([*start, *cells, f"{weak['free_test']} ({weak['free']})"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--unseen", action="store_true", help="Keep the tested pairs out of the text.")
    parser.add_argument("--out", type=Path, required=True, help="Where the models go.")
    arguments = parser.parse_args()
    table = []
    for name in arguments.recipes:
        for seed in arguments.seeds:
            found = study(arguments.out, name, seed, arguments.unseen)
            print(json.dumps(found), flush=True)
            table.append(line(found))
    print("\n".join(table))


if __name__ == "__main__":
    main()
