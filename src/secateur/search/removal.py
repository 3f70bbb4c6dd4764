"""Prune iteratively: parts go in steps, the least important first; how far is chosen by the loss on `select`.

Knows values only. `read(plan)` gives the importance of the parts that are left under a plan, `judge` its outcomes.
Source: Bansal et al. 2022 (arXiv 2212.09095), section 4: 10 % at a time by ranks taken once. Ours: ranks taken again
after each step, equal shares of every block on request, and heads with feed-forward networks by what each step costs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.core.plan import Drop, Plan
from secateur.core.ranges import LEAST_SHARE
from secateur.core.score import Metric, loss_or_worst
from secateur.core.site import Site
from secateur.errors import SecateurError
from secateur.search.race import Judge

Importance = Mapping[Site, float]
Read = Callable[
    [Plan, str], Importance
]  # (plan, kind of part) to the importance of the parts left under the plan

RESCORED, ONCE, RANDOM, VOTED = "re-scored", "ranks once", "random", "voted"


@dataclass(frozen=True)
class PrunableGroup:
    """The sites of one kind of part, such as heads, that may be removed.

    With `removable_counts` equally many go from each block, and only in these numbers.
    """

    name: str
    sites: tuple[Site, ...]
    removable_counts: tuple[int, ...] = ()

    def next_to_go(self, gone: set[Site], share: float, importance: Importance) -> list[Site]:
        """Return the sites that go next, least important first, until `share` of all are gone."""
        pools = [self.sites]
        if self.removable_counts:
            blocks = dict.fromkeys(site.block for site in self.sites)
            pools = [tuple(site for site in self.sites if site.block == block) for block in blocks]
        going: list[Site] = []
        for pool in pools:
            left = [site for site in pool if site not in gone]
            count = round(share * len(pool))
            if self.removable_counts:
                count = max(number for number in self.removable_counts if number <= count)
            count -= len(pool) - len(left)
            going += sorted(left, key=lambda site: (importance[site], site))[: max(0, count)]
        return going


@dataclass(frozen=True)
class RemovalPoint:
    """One point of a removal: the plan, and the share of each kind that is gone."""

    plan: Plan
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Removal:
    """The points of one removal, from nothing on.

    `order` says how parts were ranked; `seed` is that of a random order.
    """

    order: str
    points: tuple[RemovalPoint, ...]
    seed: int | None = None


def steps(step: float, target: float | None = None) -> list[float]:
    """Return the shares at which a removal stops: multiples of `step` up to 1, and `target`, ascending.

    Both are from `LEAST_SHARE` to 1.
    """
    assert LEAST_SHARE <= step <= 1, step
    regular = {round(step * number, 6) for number in range(1, int(1 / step + 1e-9) + 1)}
    return sorted(regular | {1.0} | ({target} if target is not None else set()))


@dataclass
class Pruner:
    """Remove parts of `kinds` step by step from `base`, in one order or another.

    Attributes:
        shares: The shares of a kind at which to stop, ascending.
        count_parameters: Returns the parameters that a plan leaves.
        target: The share that every kind reaches before one of them goes further.
    """

    base: Plan
    kinds: Sequence[PrunableGroup]
    shares: Sequence[float]
    read: Read
    judge: Judge
    examples: Sequence[int]
    count_parameters: Callable[[Plan], int]
    target: float = 1.0
    _once: dict[str, Importance] = field(default_factory=dict)

    def by_importance(self, *, again: bool) -> Removal:
        """Remove by ranks taken once from the whole model, or `again` after each step."""
        rank = self.read if again else self._read_once
        points = self._one_kind(rank) if len(self.kinds) == 1 else self._greedy(rank)
        return Removal(RESCORED if again else ONCE, tuple(points))

    def at_random(self, seed: int, like: Removal) -> Removal:
        """Remove the same shares as `like`, point by point, of parts in one random order."""
        order = {}
        for kind in self.kinds:
            places = list(range(len(kind.sites)))
            random.Random(f"{seed} {kind.name}").shuffle(places)
            order[kind.name] = dict(zip(kind.sites, map(float, places), strict=True))
        points = [RemovalPoint(self.base, dict.fromkeys(order, 0.0))]
        for point in like.points[1:]:
            plan = points[-1].plan
            for kind in self.kinds:
                plan = advanced(plan, kind, point.shares[kind.name], order[kind.name])
            points.append(RemovalPoint(plan, point.shares))
        return Removal(RANDOM, tuple(points), seed)

    def _read_once(self, plan: Plan, kind: str) -> Importance:
        if kind not in self._once:
            self._once[kind] = self.read(self.base, kind)
        return self._once[kind]

    def _one_kind(self, rank: Read) -> list[RemovalPoint]:
        (kind,) = self.kinds
        points = [RemovalPoint(self.base, {kind.name: 0.0})]
        for share in self.shares:
            before = points[-1].plan
            plan = advanced(before, kind, share, rank(before, kind.name))
            if plan != before:
                points.append(RemovalPoint(plan, {kind.name: share}))
        return points

    def _greedy(self, rank: Read) -> list[RemovalPoint]:
        """Take at each step the kind whose next step costs the least loss for the parameters it frees."""
        points = [RemovalPoint(self.base, {kind.name: 0.0 for kind in self.kinds})]
        while options := self._options(points[-1], rank):
            before = points[-1].plan
            judged = self.judge([before, *(option.plan for option in options)], self.examples, "prune")
            losses = {plan: loss_or_worst(outcomes) for plan, outcomes in judged.items()}
            prices = []  # loss for each parameter freed; where the loss falls, the better the more is freed
            for option in options:
                freed = max(1, self.count_parameters(before) - self.count_parameters(option.plan))
                loss = losses[option.plan] - losses[before]
                prices.append(loss / freed if loss > 0 else loss * freed)
            points.append(options[prices.index(min(prices))])
        return points

    def _options(self, point: RemovalPoint, rank: Read) -> list[RemovalPoint]:
        """Return the next step of each kind; only those up to `target`, as long as there is one."""
        options = []
        for kind in self.kinds:
            for share in (s for s in self.shares if s > point.shares[kind.name]):
                plan = advanced(point.plan, kind, share, rank(point.plan, kind.name))
                if plan != point.plan:
                    options.append(RemovalPoint(plan, {**point.shares, kind.name: share}))
                    break
        return [option for option in options if max(option.shares.values()) <= self.target] or options


def advanced(plan: Plan, kind: PrunableGroup, share: float, importance: Importance) -> Plan:
    """Return `plan` with the drops that are needed until `share` of a kind is gone."""
    more = kind.next_to_go(set(plan.dropped), share, importance)
    return Plan(plan.model, (*plan.edits, *map(Drop, more)))


@dataclass(frozen=True)
class Goal:
    """The bounds on how far a removal goes; None does not bind.

    Attributes:
        max_loss: The most that the metric may lose on `select`, in its own unit.
        target: A share of the parts.
        params: A fraction of the parameters to keep.
    """

    metric: Metric
    max_loss: float | None = None
    target: float | None = None
    params: float | None = None

    def choose(
        self, points: Sequence[RemovalPoint], outcomes: Mapping[Plan, np.ndarray], kept: Sequence[float]
    ) -> int:
        """Return the number of the furthest point that is allowed; 0, where nothing is gone, always is.

        Args:
            kept: The fraction of parameters that each point leaves.

        Raises: `SecateurError` where `params` is out of reach.
        """
        last = self._last(points, kept)
        if self.max_loss is None:
            return last
        base = outcomes[points[0].plan]
        sign = -1 if self.metric.higher_is_better else 1
        whole = self.metric.mean(base)
        losses = [sign * (self.metric.mean(outcomes[p.plan]) - whole) for p in points[: last + 1]]
        bound = self.max_loss + 1e-9  # .9 − .88 is more than .02 in floating point
        return max(number for number, loss in enumerate(losses) if loss <= bound or number == 0)

    def check_reach(self, least: float) -> None:
        """Raise `SecateurError` where even the `least` fraction of parameters that can be left is above `params`."""
        if self.params is not None and least > self.params + 1e-9:
            raise SecateurError(
                f"--params {self.params}: without any of these parts {least:.1%} of the parameters are left. Ask for "
                "more, or take --method components."
            )

    def _last(self, points: Sequence[RemovalPoint], kept: Sequence[float]) -> int:
        ends = [len(points) - 1]
        if self.target is not None:
            within = [i for i, p in enumerate(points) if max(p.shares.values()) <= self.target + 1e-9]
            ends.append(max(within))
        if self.params is not None:
            far = [number for number, fraction in enumerate(kept) if fraction <= self.params + 1e-9]
            self.check_reach(min(kept))
            ends.append(far[0])
        return min(ends)
