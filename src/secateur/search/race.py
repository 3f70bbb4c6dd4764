"""LASER's search: a grid of truncations, a race for the best one, greedy composition of several.

Knows values only. What judges a plan is handed in: `judge(plans, examples)` gives OUTCOME rows per plan.
Sources: Sharma, Ash, Misra 2023 (arXiv 2312.13558) for grid and composition; racing and its paired tests are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateur.core.plan import Plan, Truncate
from secateur.core.readings import Readings
from secateur.core.score import METRICS, Metric
from secateur.core.site import Site
from secateur.core.stats import paired_z
from secateur.search.evidence import SHOWN, Evidence

PAPER_FRACTIONS = (0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.01, 0.005)
SMALL_RANKS = (
    0,
    1,
    2,
    3,
    5,
)  # on small matrices the fractions never reach them, and rank 1 won in our trials

Judge = Callable[[Sequence[Plan], Sequence[int], str], Mapping[Plan, np.ndarray]]


def ranks(
    full_rank: int, fractions: Iterable[float] = PAPER_FRACTIONS, small: Iterable[int] = SMALL_RANKS
) -> list[int]:
    """Ranks to try, ascending: ⌊ρ · full⌋ for each fraction and the small ones, below the full rank, once each."""
    wanted = {math.floor(fraction * full_rank) for fraction in fractions} | set(small)
    return sorted(rank for rank in wanted if 0 <= rank < full_rank)


def grid(
    shapes: Mapping[Site, tuple[int, int]],
    fractions: Iterable[float] = PAPER_FRACTIONS,
    small: Iterable[int] = SMALL_RANKS,
) -> list[Truncate]:
    """Every truncation of every matrix, lowest block first."""
    fractions, small = tuple(fractions), tuple(small)
    return [
        Truncate(site, rank) for site in sorted(shapes) for rank in ranks(min(shapes[site]), fractions, small)
    ]


def screened(rankings: Sequence[Readings], candidates: Sequence[Truncate], share: float) -> list[Truncate]:
    """The `share` of `candidates` that some ranking puts highest, in grid order: best of each, then second best, ...

    One ranking is not enough. The second-order score punishes a large edit that helps every example alike, and missed
    the best one on CounterFact's loss by .18 nats; the first-order score misses other large edits.
    """
    by_name = {str(edit): edit for edit in candidates}
    count = max(1, math.ceil(share * len(candidates)))
    orders = [[name for name, _ in readings.ranked() if name in by_name] for readings in rankings]
    in_turn = dict.fromkeys(name for place in zip(*orders, strict=True) for name in place)
    kept = set(list(in_turn)[:count])
    return [edit for edit in candidates if str(edit) in kept]


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


def compose(
    base: Plan,
    candidates: Sequence[Truncate],
    examples: Sequence[int],
    judge: Judge,
    objective: Objective,
    evidence: Evidence,
    *,
    z: float = 3.0,
    stage: str = "compose",
) -> Plan:
    """Greedy composition: add to `base` the candidate that helps most beside what is there, as long as one is shown to.

    Source: section 4 of the paper. Differs: it goes through all matrices once, from the last block to the first, and
    takes the first rank that helps at all, so that some ten noisy gains nearly always pile up: on CounterFact twelve
    cuts that gained nothing on test.
    """
    plan = base
    while True:
        taken = {edit.site for edit in plan.edits}
        beside = [plan + edit for edit in candidates if edit.site not in taken]
        if not beside:
            return plan
        raced = race([plan, *beside], examples, judge, objective, z=z, stage=stage)
        before = judge([plan], examples, stage)[plan]
        choice = choose(raced.others(plan), before, evidence, objective)
        if not choice.shown:
            return plan
        plan = choice.best


def promising(raced: Race, base: Plan, objective: Objective, most: int) -> list[Truncate]:
    """The edit of each matrix that came furthest in the race and did best there, none that did worse than `base` on the
    same examples; at most `most`, the best first."""

    def came(edit: Truncate) -> tuple[int, tuple[float, float]]:
        rows = raced.standing[base + edit]
        return len(rows), objective.key(rows)

    best: dict[Site, Truncate] = {}
    for plan, rows in raced.standing.items():
        same = min(len(rows), len(raced.standing[base]))
        if plan.edits and objective.key(rows[:same]) >= objective.key(raced.standing[base][:same]):
            (edit,) = plan.edits
            best[edit.matrix] = max(edit, best.get(edit.matrix, edit), key=came)
    return sorted(best.values(), key=came, reverse=True)[:most]
