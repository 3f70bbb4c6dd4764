"""Which place of a cut model stands for which depth of its original, and what there replaced blocks. Names only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from secateur.core.plan import Plan
from secateur.errors import TrainingError
from secateur.hf.anatomy import Anatomy


@dataclass(frozen=True)
class Depth:
    """What comes out of the module at `path` of the cut model should be what leaves block `original` of the teacher.

    `replaced` are the parameters that stand for blocks that are gone there, as beginnings of names: a linear map's, a
    folded down projection's, or those of the whole block before a drop; none where no block is gone, or where nothing
    stands for the first blocks."""

    path: str
    original: int
    replaced: tuple[str, ...] = ()


def depths(plan: Plan, teacher: Anatomy, cut: Anatomy) -> list[Depth]:
    """Every place whose depth both have, from the embeddings up. Raises `TrainingError` where the plan leaves another
    model than `cut`."""
    left = teacher.num_blocks - len(plan.blocks_gone)
    if left != cut.num_blocks:
        raise TrainingError(
            f"plan.json leaves {left} blocks, and the model beside it has {cut.num_blocks}: they are not of one cut. "
            "Give a folder as secateur prune or apply wrote it."
        )
    return list(_depths(plan, teacher, cut))


def _depths(plan: Plan, teacher: Anatomy, cut: Anatomy) -> Iterator[Depth]:
    left = [block for block in range(teacher.num_blocks) if block not in plan.blocks_gone]
    folded = {edit.folded_into.block for edit in plan.linearized if edit.folded_into is not None}
    maps = {edit.blocks[-1] for edit in plan.linearized if edit.form == "linear"}
    ends = [*(block - 1 for block in left), teacher.num_blocks - 1]
    if left[0] and any(last < left[0] for last in maps):
        yield _entry(cut.blocks[0], left[0] - 1)
    for number, block in enumerate(left):
        end = ends[number + 1]
        path = cut.blocks[number]
        following = cut.blocks[number + 1] if number + 1 < len(left) else cut.final_norm
        if end == block:
            yield Depth(path, block)
        elif any(block < last <= end for last in maps) and following is not None:
            yield Depth(path, block)
            yield _entry(following, end)
        else:
            down = f"{path}.{cut.details.slots['down'].module}"
            yield Depth(path, end, (down if block in folded else path,))


def _entry(path: str, original: int) -> Depth:
    return Depth(f"{path}.entry", original, (f"{path}.entry",))


def named(beginnings: tuple[str, ...], names: list[str]) -> set[str]:
    """Those of `names` that begin with one of the paths."""
    return {name for name in names if any(name.startswith(f"{path}.") for path in beginnings)}
