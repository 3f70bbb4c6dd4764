"""Depth pruning: blocks go one after another, the least missed first, and something simpler stands for them.

Knows values only. Blocks that go side by side are one run, which is fitted as one.
Sources: Razzhigaev et al. 2024 (arXiv 2405.12250), the most linear first, re-scored after each; ShortGPT (arXiv
2403.03853) by cosine similarity; SLEB (arXiv 2402.09025) by measured loss; ReplaceMe (arXiv 2505.02819) for one run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from secateur.core.plan import Drop, Linearize, Plan
from secateur.core.site import Site

BY = ("loss", "linearity", "cosine")
FORMS = ("fold", "linear", "drop")


def run_with(gone: Collection[int], block: int) -> tuple[int, ...]:
    """The blocks that are gone around `block`, with it: one run."""
    first = last = block
    while first - 1 in gone:
        first -= 1
    while last + 1 in gone:
        last += 1
    return tuple(range(first, last + 1))


def may_go(gone: Collection[int], blocks: Iterable[int], form: str, *, contiguous: bool) -> list[int]:
    """The blocks that may go next: never block 0 in a fold, which needs one before it; with `contiguous` only next to
    those that are gone."""
    left = [block for block in blocks if block not in gone]
    if contiguous and gone:
        left = [block for block in left if {block - 1, block + 1} & set(gone)]
    return [block for block in left if form != "fold" or run_with(gone, block)[0] > 0]


def without(plan: Plan, run: tuple[int, ...]) -> Plan:
    """`plan` without what stands for blocks of this run."""
    kept = [edit for edit in plan.edits if not (isinstance(edit, Linearize) and set(edit.blocks) & set(run))]
    return Plan(plan.model, tuple(kept))


def dropped(plan: Plan, blocks: Iterable[int]) -> Plan:
    """`plan`, and these blocks dropped."""
    have = set(plan.dropped)
    new = (Drop(Site(block)) for block in blocks if Site(block) not in have)
    return Plan(plan.model, (*plan.edits, *new))
