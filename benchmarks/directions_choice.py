"""Choices of `--method directions` compared: how many directions go and which, by which score, before or after
fine-tuning, beside LASER and together with it.

    python benchmarks/directions_choice.py OUT                          everything, some twenty minutes on one core
    python benchmarks/directions_choice.py OUT --cases arith --parts protocols free --json

Every plan is chosen on `probe` and `select` and measured on `test`. Differences are paired, intervals 95 %. p is not
corrected for the many plans that open the same test here: one line by itself says less than its p. Checkpoints and
what was judged are kept in OUT, where a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.methods.registry import method_named, read_options

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.console import Console
from scipy.stats import spearmanr

import secateur
from secateur.cli.tables import table, with_interval
from secateur.core.comparison import compare
from secateur.core.ledger import Ledger
from secateur.core.plan import Plan
from secateur.methods.directions.pools import removal
from secateur.methods.directions.readings import DirectionsReader
from secateur.options import matrices_of
from secateur.session import Session, open_session

STORIES = Path(__file__).parents[2] / "shared" / "data"
Way = Mapping[str, Any]  # options of `prune`


@dataclass(frozen=True)
class Case:
    """A model on a task. `free`: what "no loss" means, in the metric's unit."""

    model: str
    task: str
    how: Way = field(default_factory=dict)
    tuning: Way = field(default_factory=lambda: {"epochs": 2, "lr": 1e-3})
    free: float = 0.01


CASES = {
    "arith": Case("builtin:arith", "builtin:int-mult"),
    "facts": Case("builtin:facts", "builtin:facts"),
    "recall": Case("builtin:recall", "builtin:recall"),
    "stories": Case(
        str(STORIES / "models" / "stories260K"),
        f"text:{STORIES / 'text_tinystories_train.jsonl'}",
        {"limit": 350, "seqlen": 64, "allow_small": True},
        free=0.02,
    ),
}
PAPER = {"protocol": "paper"}
PROTOCOLS: Mapping[str, Way] = {
    "search": {},
    "threshold": {"protocol": "threshold"},
    "paper, 10 % of each matrix": PAPER,
    "paper, 10 % of all": PAPER | {"overall": True},
    "threshold, weakest": {"protocol": "threshold", "weakest": True},
    "paper, 10 % of each matrix, weakest": PAPER | {"weakest": True},
    "paper, 10 % of all, weakest": PAPER | {"overall": True, "weakest": True},
}
SEARCHES: Mapping[str, Way] = {
    "search": {},
    "--no-dynamic": {"dynamic": False},
    "--ranks-once": {"rescore": False},
    "--no-dynamic --ranks-once": {"dynamic": False, "rescore": False},
}
SCORES: Mapping[str, Way] = {
    "first order": {},
    "--second-order": {"second_order": True},
    "--whitened": {"whitened": True},
    "--per-head": {"per_head": True},
}
FREE: Mapping[str, Way] = {
    "signed, steps of 5 %": {"step": 0.05, "weakest": False},
    "signed, steps of 5 %, second order": {"step": 0.05, "weakest": False, "second_order": True},
    "signed, steps of 0.5 %": {"step": 0.005, "weakest": False},
    "weakest, steps of 5 %": {"step": 0.05, "weakest": True},
    "weakest, steps of 0.5 %": {"step": 0.005, "weakest": True},
    "weakest, steps of 5 %, second order": {"step": 0.05, "weakest": True, "second_order": True},
}
TUNED = ((), ("tune",), ("directions",), ("directions", "tune"), ("tune", "directions"))
COMPOSED = ((), ("laser",), ("directions",), ("laser", "directions"), ("directions", "laser"))
SAMPLED = 300  # single directions that are truly removed


@dataclass(frozen=True)
class Bench:
    """One case, with the ledger in which nothing is judged twice."""

    name: str
    case: Case
    out: Path
    ledger: Ledger
    seed: int

    def session(self, model: str | None = None, **way: Any) -> Session:
        how = {"method": "directions", "seed": self.seed} | dict(self.case.how) | way
        return open_session(read_options(model or self.case.model, self.case.task, **how), self.ledger)

    # ------------------------------------------------------------------------------------------------ plans in memory

    def searched(self, name: str, way: Way) -> dict[str, Any]:
        """A plan found as `way` says, on `test`."""
        session = self.session(**way)
        found = method_named("directions").search(session)
        seen = on_test(session, [session.empty, found.plan])
        return {
            "way": name,
            "directions": sum(len(edit.directions) for edit in found.plan.removed),
            "of": found.analysis.directions.total,
            "tried": found.tried,
        } | compared(session, *seen)

    def trusted(self, way: Way) -> dict[str, Any]:
        """Predicted changes of the loss on `probe` against those by truly removing single directions there."""
        session = self.session(**way)
        judge, probe = session.judge(), list(session.task.split("probe"))
        reading = DirectionsReader(
            session, judge, matrices_of(session.loaded.anatomy, session.options)
        ).effects(session.empty)
        every = reading.directions
        drawn = random.Random(self.seed).sample(every, min(SAMPLED, len(every)))
        plans = [
            removal(session.empty, [one], reading.folds, per_head=session.options.config.per_head)
            for one in drawn
        ]
        seen = judge([session.empty, *plans], probe)
        whole = seen[session.empty]["loss"].mean()
        true = np.array([seen[plan]["loss"].mean() - whole for plan in plans])
        predicted = np.array([one.change for one in drawn])
        largest = np.argsort(-np.abs(true))[: max(1, len(true) // 10)]
        agree = np.sign(true[largest]) == np.sign(predicted[largest])
        trust = {"sampled": len(drawn), "spearman": float(spearmanr(predicted, true).statistic)}
        return trust | {"signs": int(agree.sum()), "of_largest": len(largest)}

    # ------------------------------------------------------------------------------------------- checkpoints, in chains

    def chained(self, chains: Sequence[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
        """What each chain of steps leaves, on `test`, against the original and against the chain before."""
        seen: dict[tuple[str, ...], np.ndarray] = {}
        session = self.session()
        for chain in chains:
            changed = self.session(self._made(chain))
            (seen[chain],) = on_test(changed, [changed.empty])
            against = {
                " → ".join(other): compared(session, seen[other], seen[chain]) for other in seen if other
            }
            yield {"way": " → ".join(chain) or "original", "against": against} | compared(
                session, seen[()], seen[chain]
            )

    def _made(self, chain: tuple[str, ...]) -> str:
        """The model behind the last step of `chain`; what is on the disk already stays."""
        model = self.case.model
        for number, step in enumerate(chain, 1):
            folder = self.out / self.name / f"seed-{self.seed}" / "-".join(chain[:number])
            given = {"seed": self.seed, **self.case.how}
            if step == "tune":
                secateur.finetune(model, self.case.task, folder, **given, **self.case.tuning)
            else:
                secateur.prune(model, self.case.task, folder, method=step, **given)
            model = str(folder)
        return model


def on_test(session: Session, plans: Sequence[Plan]) -> list[np.ndarray]:
    seen = session.judge()(plans, list(session.task.split("test")))
    return [seen[plan] for plan in plans]


def compared(session: Session, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Paired, by the task's own metric."""
    groups = session.task.groups(list(session.task.split("test")))
    return compare(session.objective.metric, before, after, groups, seed=session.options.seed).to_json()


PARTS: Mapping[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "protocols": lambda bench: [bench.searched(*way) for way in PROTOCOLS.items()],
    "searches": lambda bench: [bench.searched(*way) for way in SEARCHES.items()],
    "scores": lambda bench: [bench.searched(*way) | bench.trusted(way[1]) for way in SCORES.items()],
    "free": lambda bench: [
        bench.searched(name, {**way, "max_loss": bench.case.free}) for name, way in FREE.items()
    ],
    "tuned": lambda bench: list(bench.chained(TUNED)),
    "composed": lambda bench: list(bench.chained(COMPOSED)),
}


# ------------------------------------------------------------------------------------------------------------- tables


def line(row: Mapping[str, Any]) -> dict[str, Any]:
    """Column by column."""
    unit = row["after"]["unit"]
    told = {"way": row["way"], "test": with_interval(row["after"], unit), "change": change(row, unit)}
    told["p"] = f"{row['p_value']:.2g}"
    if "against" in row:
        others = (
            f"{name}: {change(one, unit)}" for name, one in row["against"].items() if name != row["way"]
        )
        return told | {"against the others": "; ".join(others)}
    told |= {"directions": f"{row['directions']} of {row['of']}", "plans": row["tried"]}
    if "spearman" in row:
        told |= {"Spearman": row["spearman"], "signs": f"{row['signs']} of {row['of_largest']}"}
    return told


def change(row: Mapping[str, Any], unit: str) -> str:
    return with_interval(row["difference"], unit).replace("%", "points")


def shown(name: str, part: str, rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    before = rows[0]["before"]
    console.print(f"\n{name}: {part}, before {with_interval(before, before['unit'])}", markup=False)
    lines = [line(row) for row in rows]
    console.print(
        table(list(lines[0]), [list(one.values()) for one in lines], whole=("way", "test", "change"))
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    logging.getLogger("secateur").setLevel(logging.ERROR)
    given.out.mkdir(parents=True, exist_ok=True)
    console, found = Console(width=180), {}
    with Ledger.open(given.out / "ledger.sqlite") as ledger:
        for name in given.cases:
            bench = Bench(name, CASES[name], given.out, ledger, given.seed)
            for part in given.parts:
                rows = found.setdefault(name, {})[part] = PARTS[part](bench)
                if not given.json:
                    shown(name, part, rows, console)
    if given.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
