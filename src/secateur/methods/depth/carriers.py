"""Which blocks of a model can go in which form: what can carry a fold or a map that stands for them."""

from __future__ import annotations

from secateur.hf.anatomy import Anatomy
from secateur.methods.depth.runs import Carriers, all_that_may_go, may_go
from secateur.options import Options, layers_of


def forms_of(anatomy: Anatomy) -> list[str]:
    """The forms in which any block of this model can go."""
    carriers, blocks = carriers_of(anatomy), range(anatomy.num_blocks)
    return [f for f in ("drop", "linear", "fold") if may_go([], blocks, f, carriers, contiguous=False)]


def blocks_that_can_go(anatomy: Anatomy, options: Options) -> list[int]:
    """The most of the blocks asked for that can go one after another in the form asked for."""
    return all_that_may_go(
        layers_of(anatomy, options), options.config.form, carriers_of(anatomy), anatomy.num_blocks
    )


def carriers_of(anatomy: Anatomy) -> Carriers:
    """What of this model can carry a fold or a map. In one that was cut a network may be gone or stored as two factors,
    and a map may lie where another would."""
    count = anatomy.num_blocks
    whole = {site.block for site in anatomy.matrices if site.part == "down"}
    ends = {**dict(enumerate(anatomy.blocks)), count: anatomy.final_norm}
    free = {number for number, path in ends.items() if path is not None and path not in anatomy.entered}
    return Carriers(frozenset(whole if anatomy.foldable else ()), frozenset(free))
