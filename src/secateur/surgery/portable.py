"""Find the nearest plan whose result a stock class can hold: every block loses equally many KV groups and neurons."""

from __future__ import annotations

from collections.abc import Mapping, Set

import torch

from secateur.core.plan import Drop, Edit, Plan
from secateur.core.site import Site
from secateur.errors import PlanError
from secateur.hf.anatomy import Anatomy
from secateur.hf.load import Loaded
from secateur.surgery.operations import columns_of, resolve
from secateur.surgery.shape import shape_of, stock_config, stock_groups

Importance = Mapping[Site, float]


def portable_plan(plan: Plan, loaded: Loaded, importance: Importance | None = None) -> Plan:
    """Return `plan` where its result is stock already, else the nearest plan whose result is.

    That one drops as many KV groups and neurons in all, to the nearest number that is the same in every block. Whole
    blocks go as planned. In each block those the plan drops go first, then the least important; without `importance`,
    those whose output weights are smallest. Truncations stay, and removed directions whose fold has a bias to go to.

    Raises: `PlanError` for a carved model.
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
    held = (edit for edit in plan.removed if edit.fold is None or _can_hold(edit.matrix, anatomy))
    kept: list[Edit] = [*map(Drop, blocks), *plan.truncated, *held]
    for unit in "gn":
        rows = [_units(anatomy, block, unit) for block in shape.numbers]
        shares = {site: _share(site, dropped, anatomy) for row in rows for site in row}
        mean = sum(shares.values()) / len(rows)
        count = min(losses(unit, anatomy), key=lambda loss: (abs(loss - mean), loss))
        for row in rows:
            order = sorted(row, key=lambda site: (-shares[site], importance[site], site))
            kept += map(Drop, order[:count])
    return Plan(plan.model, tuple(kept))


def _can_hold(matrix: Site, anatomy: Anatomy) -> bool:
    """Return True where a stock class has a bias at this matrix."""
    has = anatomy.matrices[matrix].bias is not None
    return has or any(matrix.part in parts for parts in anatomy.details.biases.values())


def losses(unit: str, anatomy: Anatomy) -> list[int]:
    """Return how many KV groups (`g`) or neurons (`n`) each block of a stock model may lose, ascending from 0."""
    if unit == "g":
        return sorted(anatomy.num_kv_heads - left for left in stock_groups(anatomy))
    return list(range(anatomy.d_ff)) if anatomy.details.width is not None else [0]


def _units(anatomy: Anatomy, block: int, unit: str) -> list[Site]:
    part, count = ("attn", anatomy.num_kv_heads) if unit == "g" else ("mlp", anatomy.d_ff)
    return [Site(block, part, unit, index) for index in range(count)]


def _share(site: Site, dropped: Set[Site], anatomy: Anatomy) -> float:
    """Return the share of a KV group or neuron that the plan drops: of a group perhaps only some of its query heads."""
    if site in dropped or not dropped.isdisjoint(site.wholes):
        return 1.0
    if site.unit == "n":
        return 0.0
    queries = anatomy.num_heads // anatomy.num_kv_heads
    heads = range(site.index * queries, (site.index + 1) * queries)
    return sum(Site(site.block, "attn", "h", head) in dropped for head in heads) / queries


def output_norms(loaded: Loaded) -> dict[Site, float]:
    """Return ‖W[:, columns]‖ of the output matrix for every KV group and neuron.

    It measures what a unit can write, whatever it reads.
    """
    norms = {}
    for block in range(loaded.anatomy.num_blocks):
        for unit, kind in (("g", "o"), ("n", "down")):
            matrix = loaded.anatomy.matrices[Site(block, kind)]
            weight = matrix.read(loaded.parameter(matrix.weight)).double()
            for site in _units(loaded.anatomy, block, unit):
                columns = columns_of(site, loaded.anatomy)
                norms[site] = float(torch.linalg.norm(weight[:, columns.start : columns.stop]))
    return norms
