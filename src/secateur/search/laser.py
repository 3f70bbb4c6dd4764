"""LASER's search: a grid of truncations, a race for the best one, greedy composition of several.

Knows values only. What judges a plan is handed in: `judge(plans, examples)` gives OUTCOME rows per plan.
Sources: Sharma, Ash, Misra 2023 (arXiv 2312.13558) for grid and composition; racing and its paired tests are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.core.plan import Plan, Truncate
from secateur.core.readings import Readings
from secateur.core.score import METRICS, Metric
from secateur.core.site import MATRICES, Site
from secateur.core.stats import paired_z

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
    """What is chosen by: `metric`, ties by loss."""

    metric: Metric

    def key(self, outcomes: np.ndarray) -> tuple[float, float]:
        """Larger is better; a plan under which the model gives no numbers is worst."""
        value, loss = self.metric.mean(outcomes), METRICS["loss"].mean(outcomes)
        key = (value if self.metric.higher_is_better else -value, -loss)
        return (-math.inf, -math.inf) if math.isnan(value) or math.isnan(loss) else key


@dataclass
class Race:
    """Who ran, how far each came, and who won. `standing` has OUTCOME rows of every plan that was judged."""

    winner: Plan
    standing: dict[Plan, np.ndarray] = field(default_factory=dict)
    dropped_after: dict[Plan, int] = field(default_factory=dict)
    rungs: list[tuple[int, int]] = field(default_factory=list)  # (plans, examples) of each round


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
    return paired_z(metric.gain(outcomes, leader)) >= -z


def compose(
    base: Plan,
    candidates: Iterable[Truncate],
    examples: Sequence[int],
    judge: Judge,
    objective: Objective,
    *,
    z: float = 3.0,
    helps: float = 1.0,
    stage: str = "compose",
) -> Plan:
    """Greedy composition: from the last block to the first, smallest rank first, keep what helps on `examples`.

    For each matrix the ranks race each other and the plan so far; the best one is added where its paired gain in
    the objective's metric is at least `helps` standard errors. Without that bar the best of some ten noisy gains
    nearly always looks like help: on CounterFact it piled up twelve cuts that gained nothing on test.
    Source: section 4 of the paper. Differs: it takes the first rank that helps at all.
    """
    by_matrix: dict[Site, list[Truncate]] = {}
    for edit in candidates:
        by_matrix.setdefault(edit.matrix, []).append(edit)
    plan = base
    for site in sorted(by_matrix, key=lambda site: (-site.block, MATRICES.index(site.part))):
        options = [plan, *(plan + edit for edit in sorted(by_matrix[site]))]
        best = race(options, examples, judge, objective, z=z, stage=stage).winner
        judged = judge([plan, best], examples, stage)
        if best != plan and paired_z(objective.metric.gain(judged[best], judged[plan])) >= helps:
            plan = best
    return plan
