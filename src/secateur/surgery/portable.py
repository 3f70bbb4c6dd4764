"""Find the nearest plan whose result a stock class can hold: every block loses equally many KV groups, neurons and
experts."""

from __future__ import annotations

from collections.abc import Mapping, Set

import torch

from secateur.core.plan import Drop, Edit, Plan, blocks_of
from secateur.core.site import Site
from secateur.errors import PlanError
from secateur.hf.anatomy import Anatomy
from secateur.hf.load import Loaded
from secateur.surgery.operations import columns_of, droppable_experts, resolve
from secateur.surgery.shape import shape_of, stock_config, stock_groups

Importance = Mapping[Site, float]


def portable_plan(plan: Plan, loaded: Loaded, importance: Importance | None = None) -> Plan:
    """Return `plan` where its result is stock already, else the nearest plan whose result is.

    That one drops as many KV groups, neurons and experts in all, to the nearest number that is the same in every block.
    Whole blocks go as planned, but for a first one that no other can stand for. In each block those the plan drops go
    first, then the least important; without `importance`, those whose output weights are smallest. Truncations stay but
    for those of experts that go, and so do removed directions whose fold has a bias to go to.

    Raises: `PlanError` for a carved model.
    """
    anatomy = loaded.anatomy
    resolve(plan, anatomy, loaded.fingerprint)
    if anatomy.carved:
        raise PlanError("this model has shapes of its own already; no plan makes it a stock one.")
    shape = shape_of(plan, anatomy)
    if not isinstance(stock_config(shape, anatomy), str):
        return plan
    if anatomy.num_encoder:
        raise PlanError(
            f"no stock class of transformers holds the result of this plan ({stock_config(shape, anatomy)}), and of an "
            "encoder-decoder none is sought beside it. Leave out --form stock."
        )
    if (
        anatomy.details.first_lacks and shape.numbers[0]
    ):  # the stock class would leave the next one without its norm
        kept_first = tuple(edit for edit in plan.edits if Site(0) not in blocks_of(edit))
        return portable_plan(Plan(plan.model, kept_first), loaded, importance)
    importance = importance or output_norms(loaded)
    dropped = set(plan.dropped)
    blocks = [site for site in plan.dropped if not site.part]
    held = (edit for edit in plan.removed if edit.fold is None or _can_hold(edit.matrix, anatomy))
    kept: list[Edit] = [*map(Drop, blocks), *plan.truncated, *held]
    for unit in "gne":
        rows = [row for block in shape.numbers if (row := _units(anatomy, block, unit))]
        if not rows:
            continue
        shares = {site: _share(site, dropped, anatomy) for row in rows for site in row}
        mean = sum(shares.values()) / len(rows)
        count = min(losses(unit, anatomy), key=lambda loss: (abs(loss - mean), loss))
        for row in rows:
            order = sorted(row, key=lambda site: (-shares[site], importance[site], site))
            kept += map(Drop, order[:count])
    gone = {edit.site for edit in kept if isinstance(edit, Drop) and edit.site.unit == "e"}
    return Plan(plan.model, tuple(edit for edit in kept if gone.isdisjoint(edit.site.wholes)))


def _can_hold(matrix: Site, anatomy: Anatomy) -> bool:
    """Return True where a stock class has a bias at this matrix."""
    has = anatomy.matrices[matrix].bias is not None
    return has or any(matrix.part in parts for parts in anatomy.details.biases.values())


def losses(unit: str, anatomy: Anatomy) -> list[int]:
    """Return how many KV groups (`g`), neurons (`n`) or experts (`e`) each block of a stock model may lose, ascending
    from 0."""
    if unit == "g":
        return sorted(anatomy.num_kv_heads - left for left in stock_groups(anatomy))
    if unit == "e":
        mixed = (block for block, width in enumerate(anatomy.widths) if width.num_experts)
        return list(range(1 + min(droppable_experts(anatomy, block) for block in mixed)))
    return list(range(anatomy.d_ff)) if anatomy.details.width is not None else [0]


def _units(anatomy: Anatomy, block: int, unit: str) -> list[Site]:
    counts = {"g": anatomy.num_kv_heads, "n": anatomy.d_ff, "e": anatomy.widths[block].num_experts}
    return [Site(block, "attn" if unit == "g" else "mlp", unit, index) for index in range(counts[unit])]


def _share(site: Site, dropped: Set[Site], anatomy: Anatomy) -> float:
    """Return the share of a unit that the plan drops: of a KV group perhaps only some of its query heads."""
    if site in dropped or not dropped.isdisjoint(site.wholes):
        return 1.0
    if site.unit != "g":
        return 0.0
    queries = anatomy.num_heads // anatomy.num_kv_heads
    heads = range(site.index * queries, (site.index + 1) * queries)
    return sum(Site(site.block, "attn", "h", head) in dropped for head in heads) / queries


def output_norms(loaded: Loaded) -> dict[Site, float]:
    """Return ‖W[:, columns]‖ of the output matrix for every KV group and neuron, ‖W‖ of that of every expert.

    It measures what a unit can write, whatever it reads.
    """
    norms = {}
    for block in range(loaded.anatomy.num_blocks):
        for expert in range(loaded.anatomy.widths[block].num_experts):
            matrix = loaded.anatomy.matrix(Site(block, "down", "e", expert))
            own = matrix.read(loaded.parameter(matrix.weight)).double()
            norms[Site(block, "mlp", "e", expert)] = float(torch.linalg.norm(own))
        for unit, kind in (("g", "o"), ("n", "down")):
            if Site(block, kind) not in loaded.anatomy.matrices:
                continue
            matrix = loaded.anatomy.matrices[Site(block, kind)]
            weight = matrix.read(loaded.parameter(matrix.weight)).double()
            for site in _units(loaded.anatomy, block, unit):
                columns = columns_of(site, loaded.anatomy)
                norms[site] = float(torch.linalg.norm(weight[:, columns.start : columns.stop]))
    return norms
