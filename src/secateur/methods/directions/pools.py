"""Which singular directions go: pools of directions in the order of their predicted effect, and how many of each.

Knows values only. `change` is what the removal of one direction alone is predicted to do to the loss, in nats.
Source: eigenpruning (Vergara-Browne et al. 2024, arXiv 2404.03147) removes a number set by hand from matrices set by
hand; choosing both on held-out examples is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from secateur.core.fitted import Fitted
from secateur.core.plan import Plan, RemoveDirections
from secateur.core.site import Site

POOLS = 24  # that a round judges: those whose harmful directions are predicted to matter most
GROWTH = 2**0.5  # of the counts to try in one pool

Folds = Mapping[Site, Fitted]


@dataclass(frozen=True)
class Direction:
    """Number `index` of a matrix's directions, or of its heads' where each has its own."""

    matrix: Site
    index: int
    change: float


@dataclass(frozen=True)
class Pool:
    """Directions in the order in which they go. `name` is all, a kind of matrix such as k, or one such as b3.k."""

    name: str
    ordered: tuple[Direction, ...]

    def predicted(self, count: int) -> float:
        """The sum of the predicted changes of the first `count`."""
        return sum(direction.change for direction in self.ordered[:count])

    @property
    def harmful(self) -> int:
        """How many of them are predicted to hurt."""
        return sum(direction.change < 0 for direction in self.ordered)

    @property
    def harm(self) -> float:
        """What all that hurt are predicted to cost together."""
        return -sum(min(0.0, direction.change) for direction in self.ordered)

    @property
    def harmless(self) -> int:
        """The most of them, in their order, whose predicted changes do not add up to a loss."""
        sums = accumulate(direction.change for direction in self.ordered)
        return max((number for number, total in enumerate(sums, 1) if total <= 0), default=0)


def signed(direction: Direction) -> tuple[float, Site, int]:
    """Harmful first."""
    return direction.change, direction.matrix, direction.index


def weakest(direction: Direction) -> tuple[float, Site, int]:
    """Those that matter least first, whether they hurt or help."""
    return abs(direction.change), direction.matrix, direction.index


Order = Callable[[Direction], tuple[float, Site, int]]


def pools(directions: Sequence[Direction], order: Order = signed, *, dynamic: bool = True) -> list[Pool]:
    """All directions as one pool; with `dynamic` also those of each kind of matrix and of each matrix, the most
    promising `POOLS` of them."""
    ordered = tuple(sorted(directions, key=order))
    whole = Pool("all", ordered)
    if not dynamic:
        return [whole]
    named: dict[str, list[Direction]] = {}
    for direction in ordered:
        for name in (direction.matrix.part, str(direction.matrix)):
            named.setdefault(name, []).append(direction)
    parts = [Pool(name, tuple(own)) for name, own in named.items()]
    distinct = {pool.ordered: pool for pool in (*reversed(parts), whole)}  # of equal ones the most general
    return sorted(distinct.values(), key=lambda pool: (-pool.harm, pool.name))[:POOLS]


def counts(pool: Pool) -> list[int]:
    """How many to take: 1, 2, 3, 4, 6, 8, ... up to where the prediction says that nothing is left to gain, that
    number and the number of harmful ones among them."""
    most = pool.harmless
    grid, at = {pool.harmful, most}, 1.0
    while at < most:
        grid.add(round(at))
        at *= GROWTH
    return sorted(count for count in grid if 0 < count <= most)


def fixed_share(
    directions: Sequence[Direction], share: float, order: Order = signed, *, overall: bool = False
) -> list[Direction]:
    """The first `share` of each matrix's directions, or `overall` of all in one list; in order."""
    lists: dict[Site | None, list[Direction]] = {}
    for direction in sorted(directions, key=order):
        lists.setdefault(None if overall else direction.matrix, []).append(direction)
    return [one for own in lists.values() for one in own[: round(share * len(own))]]


def left(directions: Iterable[Direction], base: Plan) -> list[Direction]:
    """Those that `base` does not remove: of one that is gone, rounding alone would say whether it hurts."""
    gone = {(edit.matrix, number) for edit in base.removed for number in edit.directions}
    return [one for one in directions if (one.matrix, one.index) not in gone]


def removal(base: Plan, more: Iterable[Direction], folds: Folds, *, per_head: bool) -> Plan:
    """`base` without these directions too. A matrix has one mean, so what went before is folded anew with it."""
    gone: dict[Site, set[int]] = {}
    for direction in more:
        gone.setdefault(direction.matrix, set()).add(direction.index)
    kept = []
    for edit in base.edits:
        if isinstance(edit, RemoveDirections) and edit.matrix in gone:
            gone[edit.matrix].update(edit.directions)
        else:
            kept.append(edit)
    edits = (
        RemoveDirections(site, tuple(numbers), per_head and site.part in "qkvo", folds[site])
        for site, numbers in gone.items()
    )
    return Plan(base.model, (*kept, *edits))
