"""Depth pruning: blocks go one after another, the least missed first, and something simpler stands for them.

Knows values only. Blocks that go side by side are one run, which is fitted as one.
Sources: Razzhigaev et al. 2024 (arXiv 2405.12250), the most linear first, re-scored after each; ShortGPT (arXiv
2403.03853) by cosine similarity; SLEB (arXiv 2402.09025) by measured loss; ReplaceMe (arXiv 2505.02819) for one run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from secateur.core.plan import Drop, Edit, Linearize, Plan
from secateur.core.site import Site
from secateur.search.removal import RemovalPoint

BY = ("loss", "linearity", "cosine")
FORMS = ("fold", "linear", "drop")


@dataclass(frozen=True)
class FellBack:
    """A run of blocks that is dropped although a map was fitted for it: on `select` the map's mean loss is no lower."""

    blocks: tuple[int, ...]
    fitted: float
    dropped: float

    def __str__(self) -> str:
        first, last = self.blocks[0], self.blocks[-1]
        return f"b{first}" if first == last else f"b{first} to b{last}"

    def to_json(self) -> dict[str, Any]:
        return {"blocks": list(self.blocks), "fitted": self.fitted, "dropped": self.dropped}


@dataclass(frozen=True)
class DepthPoint(RemovalPoint):
    """A point of depth pruning, with the runs that were dropped where a map was asked for."""

    fell_back: tuple[FellBack, ...] = ()


@dataclass(frozen=True)
class Carriers:
    """What can carry the maps that stand for runs of blocks: `folds` are blocks into whose network a map can be folded,
    `entries` blocks that a map can lie before (the number of blocks: the final norm)."""

    folds: frozenset[int]
    entries: frozenset[int]

    def carry(self, run: tuple[int, ...], form: str) -> bool:
        """Whether `form` can stand for this run, whose neighbors stay."""
        return form == "drop" or (run[0] - 1 in self.folds if form == "fold" else run[-1] + 1 in self.entries)


def run_with(gone: Collection[int], block: int) -> tuple[int, ...]:
    """The blocks that are gone around `block`, with it: one run."""
    first = last = block
    while first - 1 in gone:
        first -= 1
    while last + 1 in gone:
        last += 1
    return tuple(range(first, last + 1))


def may_go(
    gone: Collection[int], blocks: Iterable[int], form: str, carriers: Carriers, *, contiguous: bool
) -> list[int]:
    """The blocks that may go next: where something can carry what stands for the run that they make with those that are
    gone; with `contiguous` only next to those."""
    left = [block for block in blocks if block not in gone]
    if contiguous and gone:
        left = [block for block in left if {block - 1, block + 1} & set(gone)]
    return [block for block in left if carriers.carry(run_with(gone, block), form)]


def all_that_may_go(blocks: Iterable[int], form: str, carriers: Carriers, num_blocks: int) -> list[int]:
    """The most blocks that can go one after another, in an order in which they can; one of the model's stays."""
    gone: list[int] = []
    while len(gone) + 1 < num_blocks and (left := may_go(gone, blocks, form, carriers, contiguous=False)):
        gone.append(left[-1] if form == "linear" else left[0])
    return gone


def without(plan: Plan, run: tuple[int, ...]) -> Plan:
    """`plan` without what takes blocks of this run away, or stands for them."""
    return Plan(plan.model, tuple(edit for edit in plan.edits if not _takes(edit, run)))


def _takes(edit: Edit, run: tuple[int, ...]) -> bool:
    if isinstance(edit, Linearize):
        return bool(set(edit.blocks) & set(run))
    return isinstance(edit, Drop) and not edit.site.part and edit.site.block in run


def dropped(plan: Plan, blocks: Iterable[int]) -> Plan:
    """`plan`, and these blocks dropped."""
    have = set(plan.dropped)
    new = (Drop(Site(block)) for block in blocks if Site(block) not in have)
    return Plan(plan.model, (*plan.edits, *new))
