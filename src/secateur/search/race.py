"""Race many plans for the best one, and choose one that is shown to gain. Several methods share this.

Knows values only. The callable that judges plans is handed in: `judge(plans, examples)` returns OUTCOME rows by plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.core.plan import Plan
from secateur.core.records.verdict import ChoiceRecord
from secateur.core.score import METRICS, Metric
from secateur.core.stats import paired_z
from secateur.search.evidence import SHOWN, Evidence

FIRST_RUNG = 32  # examples of the first round of a race
Judge = Callable[[Sequence[Plan], Sequence[int], str], Mapping[Plan, np.ndarray]]


@dataclass(frozen=True)
class Objective:
    """The metric that plans are chosen by, fixed before the search.

    Ties are broken by the likelihood of the gold choice among the choices; without choices by the loss of the gold
    answer.
    """

    metric: Metric

    def key(self, outcomes: np.ndarray) -> tuple[float, float]:
        """Return a key by which to sort: larger is better; a plan under which the model gives no numbers is worst."""
        value, loss = self.metric.mean(outcomes), METRICS["loss"].mean(outcomes)
        if math.isnan(value) or math.isnan(loss):
            return -math.inf, -math.inf
        among = METRICS["choice_loss"].mean(outcomes)
        return value if self.metric.higher_is_better else -value, -(loss if math.isnan(among) else among)


@dataclass
class Race:
    """The result of a race.

    Attributes:
        winner: The plan with the best mean of those that came to the end.
        outcomes: OUTCOME rows of every plan that was judged, on as many examples as it was judged on.
        dropped_after: The examples after which a plan was dropped.
        rungs: Numbers of plans and of examples, by round.
    """

    winner: Plan
    outcomes: dict[Plan, np.ndarray] = field(default_factory=dict)
    dropped_after: dict[Plan, int] = field(default_factory=dict)
    rungs: list[tuple[int, int]] = field(default_factory=list)

    def others(self, plan: Plan) -> dict[Plan, np.ndarray]:
        """Return the OUTCOME rows of all plans but this one."""
        return {other: rows for other, rows in self.outcomes.items() if other != plan}


@dataclass(frozen=True)
class Rules:
    """When a plan leaves a race.

    Attributes:
        first: Examples of the first round.
        z: A plan is dropped where its paired difference to the leader in the objective's metric is more than so many
            standard errors below zero. With `inf` nothing is dropped: the exhaustive search.
        share: Of the plans that are running at most this share, rounded up, goes into the next round: the best.
    """

    first: int = FIRST_RUNG
    z: float = 3.0
    share: float = 1.0


RULES = Rules()
HALVING = Rules(share=0.5)


def race(
    plans: Sequence[Plan],
    examples: Sequence[int],
    judge: Judge,
    objective: Objective,
    rules: Rules = RULES,
    *,
    stage: str = "race",
) -> Race:
    """Judge all plans on few examples, drop the worse ones by the rules, double the examples, repeat.

    Plans that reach the end have been judged on all examples; the winner is the best of those.

    Args:
        examples: Indices of the validation examples, shuffled.
    """
    assert plans, "a race needs somebody to run"
    running = list(dict.fromkeys(plans))
    result = Race(running[0])
    count = len(examples) if math.isinf(rules.z) else min(rules.first, len(examples))
    while True:
        result.rungs.append((len(running), count))
        seen = judge(running, examples[:count], stage)
        result.outcomes.update(seen)
        order = sorted(running, key=lambda plan: objective.key(seen[plan]), reverse=True)
        result.winner = leader = order[0]
        if count == len(examples):
            return result
        best, gains = seen[leader], objective.metric.contributions
        close = [p for p in order if p == leader or paired_z(gains(seen[p], best)) >= -rules.z]
        kept = set(close[: math.ceil(rules.share * len(running))])
        result.dropped_after |= {plan: count for plan in running if plan not in kept}
        running = [plan for plan in running if plan in kept]
        count = len(examples) if len(running) == 1 else min(2 * count, len(examples))


@dataclass(frozen=True)
class Choice:
    """The best of the plans that were tried for gain, and whether it is shown to gain.

    Attributes:
        better: Its mean is better than that of the plan it should improve on.
        p_value: One-sided, corrected for all that were `tried`.
    """

    best: Plan
    shown: bool
    better: bool
    p_value: float
    tried: int

    def record(self) -> ChoiceRecord:
        """Return the choice as verdict.json has it."""
        return ChoiceRecord(
            best=str(self.best), shown=self.shown, better=self.better, p_value=self.p_value, tried=self.tried
        )


def choose(
    tried: Mapping[Plan, np.ndarray], before: np.ndarray, evidence: Evidence, objective: Objective
) -> Choice:
    """Return the best of the plans that are shown to gain over `before`; where none is, the best of all.

    Args:
        tried: OUTCOME rows of each plan. One that left its race early has fewer rows; it counts among those tried, and
            is the best only where none of them came to the end.
        before: OUTCOME rows, on the same examples, of the plan that they should improve on.
    """
    p_values = evidence.p_values(tried, before)
    whole = [plan for plan, rows in tried.items() if len(rows) == len(before)]
    shown = [plan for plan in whole if p_values[plan] < SHOWN]
    best = max(shown or whole or tried, key=lambda plan: (len(tried[plan]), objective.key(tried[plan])))
    gain = objective.metric.contributions(tried[best], before[: len(tried[best])]).mean()
    return Choice(best, bool(shown), bool(gain > 0), p_values[best], len(tried))
