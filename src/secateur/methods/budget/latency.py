"""The time of a generation on this machine by the parts of a model: measured once, and predicted of plans from then on.

Imports no torch: what is measured is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from secateur.core.plan import Drop, Edit, Plan
from secateur.core.site import Site
from secateur.hf.anatomy import Anatomy, Widths
from secateur.methods.budget.records import LatencyTable
from secateur.surgery.operations import droppable
from secateur.surgery.shape import Shape

Timer = Callable[[Plan], float]  # the time of a generation with a plan, as a share of the original's


def measured_table(anatomy: Anatomy, empty: Plan, time: Timer) -> LatencyTable:
    """Return what an attention, a feed-forward network and a block take of the time, and the halves of the first two.

    Five models at most are cut and timed: without every other block, attention or network, and with half of the KV
    groups or neurons everywhere. What a plan saves is the sum of what it saves in each block.

    Args:
        empty: The plan of the original.
        time: Measures a plan.
    """

    def saved(edits: Sequence[Edit]) -> float:
        """Return the share of the time that goes with some edits."""
        return max(0.0, 1 - time(Plan(empty.model, tuple(edits))))

    def part(edits: Sequence[Edit]) -> float:
        """Return what the parts that go take, in the mean over them."""
        return saved(edits) / len(edits) if edits else 0.0

    def half(unit: str, whole: float) -> float:
        """Return what is left of the time of a part with half of its units everywhere, as a share of that part's."""
        edits, parts = _halves(anatomy, unit)
        if not edits or not whole:
            return 0.5
        return max(0.0, 1 - saved(edits) / parts / whole)

    every_other = range(0, anatomy.num_blocks - 1, 2)
    attention, network = (
        part([Drop(site) for block in every_other if droppable(site := Site(block, name), anatomy)])
        for name in ("attn", "mlp")
    )
    block = max(part([Drop(Site(block)) for block in every_other]), attention + network)
    return LatencyTable(
        block=block,
        attention=attention,
        network=network,
        half_of_groups=half("g", attention),
        half_of_neurons=half("n", network),
    )


def _halves(anatomy: Anatomy, unit: str) -> tuple[list[Edit], int]:
    """Return the drops of half of all KV groups or neurons, and in how many parts they are."""
    part = "attn" if unit == "g" else "mlp"
    edits, parts = list[Edit](), 0
    for block, widths in enumerate(anatomy.widths):
        count = _count(widths, unit)
        if count > 1 and droppable(Site(block, part), anatomy):
            edits += [Drop(Site(block, part, unit, index)) for index in range(count - count // 2, count)]
            parts += 1
    return edits, parts


def _count(widths: Widths, unit: str) -> int:
    return widths.num_kv_heads if unit == "g" else widths.d_ff


def time_left(table: LatencyTable, shape: Shape, anatomy: Anatomy) -> float:
    """Return the time of a generation with a shape, as a share of the original's, by the table."""
    left = 1 - table.block * anatomy.num_blocks
    for block in shape.blocks:
        widths = anatomy.widths[block.number]
        left += table.block - table.attention - table.network
        groups = len(block.groups or ()) / (widths.num_kv_heads or 1)
        left += table.attention * (_between(groups, table.half_of_groups) if widths.num_kv_heads else 1)
        neurons = len(block.neurons or ()) / (widths.d_ff or 1)
        left += table.network * (_between(neurons, table.half_of_neurons) if widths.d_ff else 1)
    widest = max(widths.network or 3 * anatomy.d_model * widths.d_ff for widths in anatomy.widths)
    for edits in shape.entries.values():
        left += len(edits) * table.network * anatomy.d_model**2 / max(1, widest)
    return left


def _between(kept: float, half: float) -> float:
    """Return the share of a part's time with a share of its units kept: linear between none, half, and all."""
    return 2 * kept * half if kept <= 0.5 else half + (2 * kept - 1) * (1 - half)
