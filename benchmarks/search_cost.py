"""What screening and racing save against judging every plan on every example, and what they lose.

Every plan is judged once on a pool of examples by the real evaluator; races then run on that table, over random
subsets of the pool in random order, with the library's own `race`. Saved: (plan, example) evaluations, the screen's
gradients counted as three each. Lost: regret, the objective of the exhaustive winner on the same examples minus the
race's, in the objective's unit and in nats. Where candidates nearly tie, the exhaustive winner owes part of its lead
to luck, so regret is also measured on the rest of the pool, which neither search saw.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.core.plan import Plan
from secateur.core.score import METRICS, Metric
from secateur.hf.load import load_model
from secateur.methods.laser.readings import LaserReader
from secateur.methods.laser.search import HALVING, RACED, candidates, screened
from secateur.methods.registry import read_options
from secateur.search.race import Objective, race
from secateur.session import Session
from secateur.tasks.encode import encode
from secateur.tasks.load import load_task

SHARED = Path(__file__).parents[2] / "shared" / "data"
GRADIENT_COST = 3  # a forward and a backward pass to activations, against one forward pass
RESAMPLINGS = 100
SHARES = (0.3, 0.6, 0.1)
MAX_REGRET = 0.001  # nats


@dataclass(frozen=True)
class Case:
    """What is searched. `target` is how many times fewer evaluations are asked for."""

    name: str
    model: str
    task: str
    objective: str
    target: float
    limit: int | None = None
    seqlen: int = 64


STORIES = str(SHARED / "models" / "stories260K")
CASES = (
    Case("facts, loss (candidates separate)", "builtin:facts", "builtin:facts", "loss", 8.0),
    Case("facts, accuracy (candidates separate)", "builtin:facts", "builtin:facts", "accuracy", 8.0),
    Case(
        "stories, text loss (close, but a clear winner)",
        STORIES,
        f"text:{SHARED / 'text_tinystories_train.jsonl'}",
        "text_loss",
        3.0,
        440,
    ),
    Case(
        "CounterFact on stories, accuracy (near ties)",
        STORIES,
        str(SHARED / "counterfact.jsonl"),
        "accuracy",
        3.0,
        500,
    ),
    Case(
        "CounterFact on stories, loss",
        STORIES,
        str(SHARED / "counterfact.jsonl"),
        "loss",
        3.0,
        500,
    ),
)


class Recorded:
    """A judge that looks up what was judged before, and counts what it was asked."""

    def __init__(self, table: Mapping[Plan, np.ndarray], pool: Sequence[int]) -> None:
        self._table, self._row = table, {example: row for row, example in enumerate(pool)}
        self.asked: dict[Plan, int] = {}

    def __call__(self, plans: Sequence[Plan], examples: Sequence[int], stage: str) -> dict[Plan, np.ndarray]:
        rows = [self._row[example] for example in examples]
        self.asked |= {plan: max(len(rows), self.asked.get(plan, 0)) for plan in plans}
        return {plan: self._table[plan][rows] for plan in plans}


def run(*, resamplings: int = RESAMPLINGS) -> list[dict[str, Any]]:
    """One JSON object per case; cases whose data is not there are left out, and say so."""
    torch.set_num_threads(1)
    found, tables = [], {}
    for case in CASES:
        if case.model == STORIES and not Path(STORIES).exists():
            found.append({"case": case.name, "left_out": "needs ../shared/data"})
            continue
        key = (case.model, case.task)
        if key not in tables:
            tables[key] = _exhaustive(_session(case))
        found.append(_measured(case, *tables[key], resamplings))
    return found


def _session(case: Case) -> Session:
    options = read_options(case.model, case.task, objective=case.objective, seqlen=case.seqlen)
    loaded = load_model(case.model, device="cpu")
    task = load_task(
        case.task,
        tokenizer=loaded.tokenizer,
        seqlen=case.seqlen,
        limit=case.limit,
        shares=SHARES,
        allow_small=True,
    )
    context = loaded.anatomy.context
    encoded = {i: encode(e, loaded.tokenizer, context=context) for i, e in enumerate(task.examples)}
    return Session(options, loaded, task, encoded, None)


def _exhaustive(session: Session) -> tuple[Session, dict[Plan, np.ndarray]]:
    edits = candidates(session.loaded.anatomy, session.options)
    plans = [session.empty, *(session.empty + edit for edit in edits)]
    return session, session.judge()(plans, session.task.split("select"))


def _measured(
    case: Case, session: Session, table: dict[Plan, np.ndarray], resamplings: int
) -> dict[str, Any]:
    goal, pool = Objective(METRICS[case.objective]), session.task.split("select")
    kept, probed = _screened(session, goal, case)
    everyone = list(table)
    rng = random.Random(0)
    draws = [rng.sample(pool, 2 * len(pool) // 3) for _ in range(resamplings)]
    rows = {
        "race": [_one(table, pool, everyone, draw, goal, 0) for draw in draws],
        "screen and race": [_one(table, pool, kept, draw, goal, GRADIENT_COST * probed) for draw in draws],
    }
    ways = {name: _summed(results) for name, results in rows.items()}
    return {
        "case": case.name,
        "objective": case.objective,
        "plans": len(everyone),
        "examples": len(draws[0]),
        "probed": probed,
        "resamplings": resamplings,
        "target": case.target,
        "max_regret_nats": MAX_REGRET,
        **ways,
    }


def _screened(session: Session, goal: Objective, case: Case) -> tuple[list[Plan], int]:
    """The plans that the library's own screen keeps, and on how many examples it took gradients."""
    session = replace(session, options=replace(session.options, objective=case.objective))
    edits = candidates(session.loaded.anatomy, session.options)
    chosen = screened(LaserReader(session, session.judge()).screen(edits), edits, RACED)
    kept = [session.empty, *(session.empty + edit for edit in chosen)]
    return kept, len(session.probed)


def _one(
    table: Mapping[Plan, np.ndarray],
    pool: Sequence[int],
    plans: Sequence[Plan],
    examples: Sequence[int],
    goal: Objective,
    overhead: int,
) -> dict[str, float]:
    judge = Recorded(table, pool)
    winner = race(plans, examples, judge, goal, HALVING).winner
    seen = Recorded(table, pool)(list(table), examples, "")
    best = max(seen, key=lambda plan: goal.key(seen[plan]))
    unseen = Recorded(table, pool)([winner, best], sorted(set(pool) - set(examples)), "")
    loss = METRICS["text_loss" if goal.metric.weighted else "loss"]
    return {
        "saved": len(table) * len(examples) / (sum(judge.asked.values()) + overhead),
        "regret": _lost(goal.metric, seen[best], seen[winner]),
        "regret_nats": _lost(loss, seen[best], seen[winner]),
        "regret_unseen": _lost(goal.metric, unseen[best], unseen[winner]),
        "regret_unseen_nats": _lost(loss, unseen[best], unseen[winner]),
        "same": float(winner == best),
    }


def _lost(metric: Metric, best: np.ndarray, winner: np.ndarray) -> float:
    """How much better `best` is, in the metric's unit."""
    gap = metric.mean(best) - metric.mean(winner)
    return gap if metric.higher_is_better else 0.0 - gap


def _summed(results: list[dict[str, float]]) -> dict[str, float]:
    return {
        "times_fewer_evaluations": statistics.mean(r["saved"] for r in results),
        "least": min(r["saved"] for r in results),
        "mean_regret": statistics.mean(r["regret"] for r in results),
        "largest_regret": max(r["regret"] for r in results),
        "mean_regret_nats": statistics.mean(r["regret_nats"] for r in results),
        "mean_regret_unseen": statistics.mean(r["regret_unseen"] for r in results),
        "mean_regret_unseen_nats": statistics.mean(r["regret_unseen_nats"] for r in results),
        "same_winner": statistics.mean(r["same"] for r in results),
    }


if __name__ == "__main__":
    print(json.dumps(run(resamplings=int(sys.argv[1]) if len(sys.argv) > 1 else RESAMPLINGS), indent=2))
