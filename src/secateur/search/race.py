"""A race for the best of many plans, and the choice of one that is shown to gain. What several methods share.

Knows values only. What judges a plan is handed in: `judge(plans, examples)` gives OUTCOME rows per plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateur.core.plan import Plan
from secateur.core.score import METRICS, Metric
from secateur.core.stats import paired_z
from secateur.search.evidence import SHOWN, Evidence

Judge = Callable[[Sequence[Plan], Sequence[int], str], Mapping[Plan, np.ndarray]]


@dataclass(frozen=True)
class Objective:
    """What is chosen by: `metric`, fixed before the search. Ties go by the likelihood of the gold choice among the
    choices; without choices by the loss of the gold answer."""

    metric: Metric

    def key(self, outcomes: np.ndarray) -> tuple[float, float]:
        """Larger is better; a plan under which the model gives no numbers is worst."""
        value, loss = self.metric.mean(outcomes), METRICS["loss"].mean(outcomes)
        if math.isnan(value) or math.isnan(loss):
            return -math.inf, -math.inf
        among = METRICS["choice_loss"].mean(outcomes)
        return value if self.metric.higher_is_better else -value, -(loss if math.isnan(among) else among)


@dataclass
class Race:
    """Who ran, how far each came, and who won. `standing` has OUTCOME rows of every plan that was judged."""

    winner: Plan
    standing: dict[Plan, np.ndarray] = field(default_factory=dict)
    dropped_after: dict[Plan, int] = field(default_factory=dict)
    rungs: list[tuple[int, int]] = field(default_factory=list)  # (plans, examples) of each round

    def others(self, plan: Plan) -> dict[Plan, np.ndarray]:
        """Everybody's OUTCOME rows but those of `plan`."""
        return {one: rows for one, rows in self.standing.items() if one != plan}


def race(
    plans: Sequence[Plan],
    examples: Sequence[int],
    judge: Judge,
    objective: Objective,
    *,
    first: int = 32,
    z: float = 3.0,
    stage: str = "race",
) -> Race:
    """Judge all plans on few examples, drop those significantly worse than the leader, double the examples, repeat.

    "Significantly": the paired difference to the leader in the objective's metric is more than `z` standard errors
    below zero. `examples` should come shuffled. With `z=inf` nothing is dropped: the exhaustive search.
    Plans that reach the end have been judged on all examples; the winner is the best of those.
    """
    assert plans, "a race needs somebody to run"
    running = list(dict.fromkeys(plans))
    result = Race(running[0])
    count = len(examples) if math.isinf(z) else min(first, len(examples))
    while True:
        result.rungs.append((len(running), count))
        seen = judge(running, examples[:count], stage)
        result.standing.update(seen)
        leader = max(running, key=lambda plan: objective.key(seen[plan]))
        result.winner = leader
        if count == len(examples):
            return result
        kept = [p for p in running if p == leader or _stays(seen[p], seen[leader], objective.metric, z)]
        result.dropped_after |= {plan: count for plan in running if plan not in set(kept)}
        running = kept
        count = len(examples) if len(running) == 1 else min(2 * count, len(examples))


def _stays(outcomes: np.ndarray, leader: np.ndarray, metric: Metric, z: float) -> bool:
    return paired_z(metric.contributions(outcomes, leader)) >= -z


@dataclass(frozen=True)
class Choice:
    """The best of the plans that were tried for gain, and whether it is shown to gain: `p_value` is one-sided and
    corrected for all `tried`. `better`: its mean is, at least."""

    best: Plan
    shown: bool
    better: bool
    p_value: float
    tried: int

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"best": str(self.best)}


def choose(
    tried: Mapping[Plan, np.ndarray], before: np.ndarray, evidence: Evidence, objective: Objective
) -> Choice:
    """The best of the plans that are shown to gain over `before`; where none is, the best of all.

    OUTCOME rows of each plan, and of what they are to improve on, on the same examples. A plan that left its race early
    has fewer; it counts among those tried, and is never the best."""
    p_values = evidence.p_values(tried, before)
    whole = [plan for plan, rows in tried.items() if len(rows) == len(before)]
    shown = [plan for plan in whole if p_values[plan] < SHOWN]
    best = max(shown or whole or tried, key=lambda plan: (len(tried[plan]), objective.key(tried[plan])))
    gain = objective.metric.contributions(tried[best], before[: len(tried[best])]).mean()
    return Choice(best, bool(shown), bool(gain > 0), p_values[best], len(tried))
