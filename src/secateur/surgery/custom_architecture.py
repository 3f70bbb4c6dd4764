"""From a shape to the operations that give a model this shape: what `modeling_secateur.carve_` replays, here and in a
checkpoint. Paths and numbers only, no tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from secateur.core.plan import Linearize
from secateur.core.site import Site
from secateur.hf.anatomy import Anatomy
from secateur.hf.matrices import Matrix
from secateur.surgery.operations import entry_path
from secateur.surgery.shape import BlockShape, Shape


def carving(shape: Shape, anatomy: Anatomy) -> list[dict[str, Any]]:
    """What `modeling_secateur.carve_` has to do to a model that has the right blocks, each as the original's."""
    found = []
    for block in shape.blocks:
        found += _carved_attention(block, shape, anatomy)
        found += _carved_mlp(block, shape, anatomy)
    found += [_entry(before, edits, anatomy) for before, edits in shape.entries.items()]
    return renumbered(found, shape, anatomy)


def _entry(before: int | None, edits: Sequence[Linearize], anatomy: Anatomy) -> dict[str, Any]:
    ranks = [len(edit.fitted.arrays["a"]) if "a" in edit.fitted.arrays else None for edit in edits]
    return {"op": "entry", "path": entry_path(before, anatomy), "width": anatomy.d_model, "ranks": ranks}


def _carved_attention(block: BlockShape, shape: Shape, anatomy: Anatomy) -> list[dict[str, Any]]:
    path, own = anatomy.attention(block.number), anatomy.widths[block.number]
    if not own.num_heads:
        return []
    if not block.groups:
        stand = {"op": "no_attention", "path": path, "width": anatomy.d_model, "layer": 0}
        bias = {"bias": block.groups is not None, "residual": anatomy.details.adds_residual}
        return [stand | {key: value for key, value in bias.items() if value}]
    found = _carved_linears(block, "qkvo", shape, anatomy)
    if block.heads == list(range(own.num_heads)):
        return found
    numbers = {
        "heads": len(block.heads),
        "kv_heads": len(block.groups),
        "queries": block.queries,
        "width": len(block.heads) * anatomy.d_head,
    }
    values = {name: numbers[what] for name, what in anatomy.details.counts.items()}
    if values:
        found.append({"op": "attributes", "path": path, "values": values})
    if anatomy.alibi:
        found.append({"op": "some_heads", "path": path, "heads": block.heads, "of": own.num_heads})
    return found


def _carved_mlp(block: BlockShape, shape: Shape, anatomy: Anatomy) -> list[dict[str, Any]]:
    if not anatomy.widths[block.number].d_ff:
        return []
    if block.neurons:
        return _carved_linears(block, ("gate", "up", "down"), shape, anatomy)
    down = anatomy.matrices[Site(block.number, "down")]
    path = down.module if anatomy.mlps is None else anatomy.mlps[block.number]
    stand = {"op": "constant", "path": path, "width": anatomy.d_model}
    if block.neurons is not None:
        stand["bias"] = True
    if anatomy.mlps is not None:
        return [stand]
    return [{"op": "nothing", "path": anatomy.matrices[Site(block.number, "up")].module}, stand]


def _carved_linears(
    block: BlockShape, kinds: Sequence[str], shape: Shape, anatomy: Anatomy
) -> list[dict[str, Any]]:
    found, folds = [], {anatomy.matrices[site].module for site in shape.folds}
    for module, matrices in modules_of(block, kinds, anatomy).items():
        new = module in folds
        sizes = [shape.size(matrix, anatomy.d_head) for matrix in matrices]
        ranks = [shape.ranks.get(matrix.site) for matrix in matrices]
        parts = [
            {"rows": rows, "columns": columns, "bias": new or m.bias is not None}
            | ({} if r is None else {"rank": r})
            for (rows, columns), r, m in zip(sizes, ranks, matrices, strict=True)
        ]
        if len(parts) > 1 and any(rank is not None for rank in ranks):
            groups = len(block.groups or ()) if is_grouped(matrices[0], anatomy) else 1
            found.append({"op": "side", "path": module, "parts": parts, "groups": groups})
        elif ranks[0] == 0:
            found.append({"op": "constant", "path": module, "width": sizes[0][0], "bias": parts[0]["bias"]})
        elif ranks[0] is not None:
            found.append({"op": "low_rank", "path": module} | parts[0])
        else:
            found += [{"op": "bias", "path": module}] if new else []
            if sizes != [matrix.shape for matrix in matrices]:
                rows = sum(rows for rows, _ in sizes)
                found.append({"op": "resize", "path": module, "rows": rows, "columns": sizes[0][1]})
    return found


def modules_of(block: BlockShape, kinds: Sequence[str], anatomy: Anatomy) -> dict[str, list[Matrix]]:
    """The block's matrices by the module that stores them, in stored order."""
    found: dict[str, list[Matrix]] = {}
    for kind in kinds:
        matrix = anatomy.matrices.get(Site(block.number, kind))
        if matrix is not None:
            found.setdefault(matrix.module, []).append(matrix)
    return found


def is_grouped(matrix: Matrix, anatomy: Anatomy) -> bool:
    return anatomy.details.slots[matrix.site.part].layout == "grouped"


def renumbered(
    operations: Iterable[Mapping[str, Any]], shape: Shape, anatomy: Anatomy
) -> list[dict[str, Any]]:
    """Operations on the original's blocks as those on the blocks that are left; what was done to others is gone."""
    found = []
    for operation in operations:
        if not any(f"{operation['path']}.".startswith(f"{block}.") for block in anatomy.blocks):
            found.append(dict(operation))
            continue
        for new, old in enumerate(shape.numbers):
            if f"{operation['path']}.".startswith(f"{anatomy.blocks[old]}."):
                path = anatomy.blocks[new] + operation["path"].removeprefix(anatomy.blocks[old])
                moved = {"layer": new} if "layer" in operation else {}
                found.append(dict(operation) | {"path": path} | moved)
    return found
