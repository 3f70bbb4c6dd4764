"""Pools of singular directions in the order of their predicted effect, and how many of each to remove.

Knows values only. `change` is the predicted change of the loss when one direction alone is removed, in nats.
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

POOLS = 24  # pools that a round judges: those whose harmful directions are predicted to matter most
PROPOSED = 160  # pools and counts at most that a round judges
GROWTH = 2**0.5  # of the counts to try in one pool
COARSE = 2.0  # the same where there would be more than `PROPOSED`

Folds = Mapping[Site, Fitted | None]


@dataclass(frozen=True)
class Direction:
    """One singular direction: number `index` of its matrix, counted over all heads where each has its own."""

    matrix: Site
    index: int
    change: float


@dataclass(frozen=True)
class Pool:
    """Directions in the order of their removal. `name` is all, a kind of matrix such as k, or one such as b3.k."""

    name: str
    ordered: tuple[Direction, ...]

    def predicted(self, count: int) -> float:
        """Return the sum of the predicted changes of the first `count`."""
        return sum(direction.change for direction in self.ordered[:count])

    @property
    def harmful(self) -> int:
        """The number of directions that are predicted to hurt."""
        return sum(direction.change < 0 for direction in self.ordered)

    @property
    def harm(self) -> float:
        """The predicted cost of all directions that hurt, nats."""
        return -sum(min(0.0, direction.change) for direction in self.ordered)

    @property
    def harmless(self) -> int:
        """The largest number of first directions whose predicted changes do not add up to a loss."""
        sums = accumulate(direction.change for direction in self.ordered)
        return max((number for number, total in enumerate(sums, 1) if total <= 0), default=0)


def signed(direction: Direction) -> tuple[float, Site, int]:
    """Return a sort key that puts harmful directions first."""
    return direction.change, direction.matrix, direction.index


def weakest(direction: Direction) -> tuple[float, Site, int]:
    """Return a sort key that puts those that matter least first, whether they hurt or help."""
    return abs(direction.change), direction.matrix, direction.index


Order = Callable[[Direction], tuple[float, Site, int]]


def pools(directions: Sequence[Direction], order: Order = signed, *, dynamic: bool = True) -> list[Pool]:
    """Return all directions as one pool; with `dynamic` also those of each kind of matrix and of each matrix.

    Of these the `POOLS` whose harmful directions matter most.
    """
    ordered = tuple(sorted(directions, key=order))
    whole = Pool("all", ordered)
    if not dynamic:
        return [whole]
    named: dict[str, list[Direction]] = {}
    for direction in ordered:
        for name in (direction.matrix.name, str(direction.matrix)):
            named.setdefault(name, []).append(direction)
    parts = [Pool(name, tuple(members)) for name, members in named.items()]
    distinct = {pool.ordered: pool for pool in (*reversed(parts), whole)}  # of equal ones the most general
    return sorted(distinct.values(), key=lambda pool: (-pool.harm, pool.name))[:POOLS]


def proposals(candidates: Sequence[Pool]) -> list[tuple[Pool, int]]:
    """Return what a round judges: pools, those predicted to matter most first, each with its numbers of directions.

    Where that would be more than `PROPOSED`, in coarser steps, and without the pools predicted to matter least.
    """
    fine, coarse = (
        [(pool, count) for pool in candidates for count in counts(pool, growth)]
        for growth in (GROWTH, COARSE)
    )
    return fine if len(fine) <= PROPOSED else coarse[:PROPOSED]


def counts(pool: Pool, growth: float = GROWTH) -> list[int]:
    """Return the numbers of directions to try: 1, 2, 3, 4, 6, 8, ..., the number of harmful ones, and the most.

    The most is where the prediction says that nothing is left to gain.
    """
    most = pool.harmless
    grid, at = {pool.harmful, most}, 1.0
    while at < most:
        grid.add(round(at))
        at *= growth
    return sorted(count for count in grid if 0 < count <= most)


def fixed_share(
    directions: Sequence[Direction], share: float, order: Order = signed, *, overall: bool = False
) -> list[Direction]:
    """Return the first `share` of each matrix's directions, or `overall` of all in one list; in order."""
    lists: dict[Site | None, list[Direction]] = {}
    for direction in sorted(directions, key=order):
        lists.setdefault(None if overall else direction.matrix, []).append(direction)
    return [direction for members in lists.values() for direction in members[: round(share * len(members))]]


def left(directions: Iterable[Direction], base: Plan) -> list[Direction]:
    """Return those that `base` does not remove: of a removed one, rounding alone would decide whether it hurts."""
    gone = {(edit.matrix, number) for edit in base.removed for number in edit.directions}
    return [direction for direction in directions if (direction.matrix, direction.index) not in gone]


def removal(base: Plan, more: Iterable[Direction], folds: Folds, *, per_head: bool) -> Plan:
    """Return `base` with more directions removed. A matrix has one mean, so earlier removals are folded anew with it.

    Args:
        folds: By matrix, what its directions are folded with; None for those of experts, which are not folded.
    """
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
