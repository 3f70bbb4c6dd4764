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

    def key(self, outcomes: np.ndarray, added: Mapping[str, float] | None = None) -> tuple[float, float]:
        """Return a key by which to sort: larger is better; a plan under which the model gives no numbers is worst.

        Args:
            added: Corrections of the mean gain, by metric.
        """
        added = added or {}
        value, loss = self.metric.mean(outcomes), METRICS["loss"].mean(outcomes)
        if math.isnan(value) or math.isnan(loss):
            return -math.inf, -math.inf
        among = METRICS["choice_loss"].mean(outcomes)
        tie = "loss" if math.isnan(among) else "choice_loss"
        decides = value if self.metric.higher_is_better else -value
        return decides + added.get(self.metric.name, 0.0), added.get(tie, 0.0) - (
            loss if tie == "loss" else among
        )


@dataclass
class Race:
    """The result of a race.

    Attributes:
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
        share: Of the plans that are running at most this share goes into the next round, the best.
    """

    first: int = FIRST_RUNG
    z: float = 3.0
    share: float = 1.0


RULES = Rules()


def race(
    plans: Sequence[Plan],
    examples: Sequence[int],
    judge: Judge,
    objective: Objective,
    rules: Rules = RULES,
    *,
    predicted: Mapping[Plan, np.ndarray] | None = None,
    stage: str = "race",
) -> Race:
    """Judge all plans on few examples, drop the worse ones by the rules, double the examples, repeat.

    Plans that reach the end have been judged on all examples; the winner is the best of those.

    Args:
        examples: Indices of the selection examples, shuffled.
        predicted: OUTCOME rows that are predicted for plans on all examples, by which what was judged on some of them
            is corrected; those of the first plan are true. Plans without are taken as they are.
    """
    assert plans, "a race needs somebody to run"
    running = list(dict.fromkeys(plans))
    result = Race(running[0])
    count = len(examples) if math.isinf(rules.z) else min(rules.first, len(examples))
    while True:
        result.rungs.append((len(running), count))
        seen = judge(running, examples[:count], stage)
        result.outcomes.update(seen)
        standing = _Standing(seen, objective, predicted or {}, plans[0])
        order = sorted(running, key=standing.key, reverse=True)
        result.winner = leader = order[0]
        if count == len(examples):
            return result
        most = math.ceil(rules.share * len(running))
        close = [plan for plan in order if plan == leader or standing.z(plan, leader) >= -rules.z][:most]
        result.dropped_after |= {plan: count for plan in running if plan not in set(close)}
        running = [plan for plan in running if plan in set(close)]
        count = len(examples) if len(running) == 1 else min(2 * count, len(examples))


class _Standing:
    """Where plans stand after a round, in the objective's metric and in what breaks its ties.

    With predictions x of the gains y over the first plan, the mean of y over all examples is estimated by that over
    those that were judged, less β times how much larger the mean of x is over those than over all: where x follows y,
    few examples decide. β is one number for all plans of the round, by least squares, so that it hardly fits the noise
    of any.

    Source: regression estimator (Cochran 1977, Sampling Techniques, chapter 7), with control variates x.
    """

    def __init__(
        self,
        seen: Mapping[Plan, np.ndarray],
        objective: Objective,
        predicted: Mapping[Plan, np.ndarray],
        base: Plan,
    ) -> None:
        self._objective, self._seen = objective, seen
        self._corrections = {
            name: _corrections(METRICS[name], seen, predicted, base)
            for name in (objective.metric.name, "loss", "choice_loss")
            if predicted
        }

    def key(self, plan: Plan) -> tuple[float, float]:
        """Return a key by which to sort: larger is better."""
        added = {name: float(of[plan].mean()) for name, of in self._corrections.items() if plan in of}
        return self._objective.key(self._seen[plan], added)

    def z(self, plan: Plan, leader: Plan) -> float:
        """Return z of the mean paired difference of a plan to the leader: negative where it is worse."""
        gains = self._objective.metric.contributions(self._seen[plan], self._seen[leader])
        corrections = self._corrections.get(self._objective.metric.name, {})
        return paired_z(gains + corrections.get(plan, 0.0) - corrections.get(leader, 0.0))


def shifted(before: np.ndarray, predicted: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return OUTCOME rows with the differences that are predicted elsewhere, from `reference` to `predicted`."""
    rows = before.copy()
    for column in ("loss", "correct", "correct_norm", "choice_loss"):
        rows[column] += predicted[column] - reference[column]
    return rows


def _corrections(
    metric: Metric, seen: Mapping[Plan, np.ndarray], predicted: Mapping[Plan, np.ndarray], base: Plan
) -> dict[Plan, np.ndarray]:
    """Return what is added to each plan's gains on the examples that were judged: −β (x − mean of x over all)."""
    before = predicted[base]
    x, y = {}, {}
    for plan in seen:
        if plan in predicted and plan != base:
            n, gains = len(seen[plan]), metric.contributions(predicted[plan], before)
            x[plan] = gains[:n] - gains.mean()
            y[plan] = metric.contributions(seen[plan], before[:n])
    spread = sum(float(np.square(a - a.mean()).sum()) for a in x.values())
    beta = sum(float(((x[plan] - x[plan].mean()) * y[plan]).sum()) for plan in x) / spread if spread else 0.0
    return {plan: -beta * a for plan, a in x.items()} if math.isfinite(beta) else {}


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
            is never the best.
        before: OUTCOME rows, on the same examples, of the plan that they should improve on.
    """
    p_values = evidence.p_values(tried, before)
    whole = [plan for plan, rows in tried.items() if len(rows) == len(before)]
    shown = [plan for plan in whole if p_values[plan] < SHOWN]
    best = max(shown or whole or tried, key=lambda plan: (len(tried[plan]), objective.key(tried[plan])))
    gain = objective.metric.contributions(tried[best], before[: len(tried[best])]).mean()
    return Choice(best, bool(shown), bool(gain > 0), p_values[best], len(tried))
