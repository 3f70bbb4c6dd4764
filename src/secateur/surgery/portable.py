"""The nearest plan whose result a stock class can hold: every block loses equally many KV groups and neurons."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from secateur.core.plan import Drop, Plan
from secateur.core.site import Site
from secateur.errors import PlanError
from secateur.hf.anatomy import Anatomy
from secateur.hf.load import Loaded
from secateur.surgery.operations import columns_of, resolve
from secateur.surgery.shape import Shape, shape_of, stock_config

Importance = Mapping[Site, float]


def portable_plan(plan: Plan, loaded: Loaded, importance: Importance | None = None) -> Plan:
    """`plan` where its result is stock already, else one that takes as many KV groups and neurons in all, to the
    nearest number that is the same in every block.

    Whole blocks go as planned. In each block those the plan drops go first, then the least important; without
    `importance`, those whose output weights are smallest. Truncations stay. Raises: `PlanError` for a carved model.
    """
    anatomy = loaded.anatomy
    resolve(plan, anatomy, loaded.fingerprint)
    if anatomy.carved:
        raise PlanError("this model has shapes of its own already; no plan makes it a stock one.")
    shape = shape_of(plan, anatomy)
    if not isinstance(stock_config(shape, anatomy), str):
        return plan
    importance = importance or output_norms(loaded)
    dropped = set(plan.dropped)
    blocks = [site for site in plan.dropped if not site.part]
    kept = tuple(Drop(site) for site in blocks) + plan.truncated
    counts = {"g": _groups_lost(shape, anatomy), "n": _neurons_lost(shape, anatomy)}
    drops = [
        Drop(site)
        for block in shape.numbers
        for unit, count in counts.items()
        for site in _first(_units(anatomy, block, unit), dropped, importance, count)
    ]
    return Plan(plan.model, (*kept, *drops))


def _groups_lost(shape: Shape, anatomy: Anatomy) -> int:
    """KV groups that each block loses: the mean over blocks of the query heads lost, in groups; one group stays."""
    if not anatomy.details.free_heads or anatomy.alibi:
        return 0
    lost = sum(anatomy.num_heads - len(set(block.heads)) for block in shape.blocks)
    queries = anatomy.num_heads // anatomy.num_kv_heads
    return min(round(lost / (queries * len(shape.blocks))), anatomy.num_kv_heads - 1)


def _neurons_lost(shape: Shape, anatomy: Anatomy) -> int:
    if anatomy.details.width is None:
        return 0
    lost = sum(anatomy.d_ff - len(block.neurons or ()) for block in shape.blocks)
    return min(round(lost / len(shape.blocks)), anatomy.d_ff - 1)


def _units(anatomy: Anatomy, block: int, unit: str) -> list[Site]:
    part, count = ("attn", anatomy.num_kv_heads) if unit == "g" else ("mlp", anatomy.d_ff)
    return [Site(block, part, unit, index) for index in range(count)]


def _first(units: list[Site], dropped: set[Site], importance: Importance, count: int) -> list[Site]:
    """The plan's own first, then the least important; ties in order."""
    return sorted(units, key=lambda site: (site not in dropped, importance[site], site))[:count]


def output_norms(loaded: Loaded) -> dict[Site, float]:
    """‖W[:, columns]‖ of the output matrix of every KV group and neuron: what they can write, whatever they read."""
    found = {}
    for block in range(loaded.anatomy.num_blocks):
        for unit, kind in (("g", "o"), ("n", "down")):
            matrix = loaded.anatomy.matrices[Site(block, kind)]
            weight = matrix.read(loaded.model.get_parameter(matrix.weight).detach()).double()
            for site in _units(loaded.anatomy, block, unit):
                columns = columns_of(site, loaded.anatomy)
                found[site] = float(torch.linalg.norm(weight[:, columns.start : columns.stop]))
    return found
