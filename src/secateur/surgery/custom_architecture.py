"""Turn a shape into the list of operations that `modeling_secateur.carve_` replays, here and in a checkpoint.

Knows paths and numbers only, no tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from secateur.core.site import Site
from secateur.hf.anatomy import Anatomy
from secateur.hf.matrices import Matrix
from secateur.surgery.operations import entry_path
from secateur.surgery.shape import BlockShape, Shape

CarveOperation = dict[str, object]  # `op`, `path`, and what that operation takes: the JSON of config.json


def carving_operations(shape: Shape, anatomy: Anatomy) -> list[CarveOperation]:
    """Return the operations that give a model with the right blocks, each as the original's, its new shape."""
    operations: list[CarveOperation] = []
    for block in shape.blocks:
        operations += _carved_attention(block, shape, anatomy)
        operations += _carved_mlp(block, shape, anatomy)
    for before, edits in shape.entries.items():
        maps = [edit.fitted.content for edit in edits]
        ranks = [len(arrays["a"]) if "a" in arrays else None for arrays in maps]
        path = entry_path(before, anatomy)
        operations.append({"op": "entry", "path": path, "width": anatomy.d_model, "ranks": ranks})
    return renumbered(operations, shape, anatomy)


def _carved_attention(block: BlockShape, shape: Shape, anatomy: Anatomy) -> list[CarveOperation]:
    path, num_heads = anatomy.attention(block.number), anatomy.widths[block.number].num_heads
    if not num_heads:
        return []
    if not block.groups:
        stand = {"op": "no_attention", "path": path, "width": anatomy.d_model, "layer": 0}
        bias = {"bias": block.groups is not None, "residual": anatomy.details.adds_residual}
        return [stand | {key: value for key, value in bias.items() if value}]
    operations = _carved_linears(block, "qkvo", shape, anatomy)
    if block.heads == list(range(num_heads)):
        return operations
    numbers = {
        "heads": len(block.heads),
        "kv_heads": len(block.groups),
        "queries": block.queries,
        "width": len(block.heads) * anatomy.d_head,
    }
    values = {name: numbers[what] for name, what in anatomy.details.counts.items()}
    if values:
        operations.append({"op": "attributes", "path": path, "values": values})
    if anatomy.alibi:
        operations.append({"op": "some_heads", "path": path, "heads": block.heads, "of": num_heads})
    return operations


def _carved_mlp(block: BlockShape, shape: Shape, anatomy: Anatomy) -> list[CarveOperation]:
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
) -> list[CarveOperation]:
    operations: list[CarveOperation] = []
    folds = {anatomy.matrices[site].module for site in shape.folds}
    for module, matrices in modules_of(block, kinds, anatomy).items():
        new = module in folds
        sizes = [shape.size(matrix, anatomy.d_head) for matrix in matrices]
        ranks = [shape.ranks.get(matrix.site) for matrix in matrices]
        parts: list[CarveOperation] = []
        for (rows, columns), rank, matrix in zip(sizes, ranks, matrices, strict=True):
            bias = new or matrix.bias is not None
            part: CarveOperation = {"rows": rows, "columns": columns, "bias": bias}
            parts.append(part if rank is None else part | {"rank": rank})
        if len(parts) > 1 and any(rank is not None for rank in ranks):
            groups = len(block.groups or ()) if is_grouped(matrices[0], anatomy) else 1
            operations.append({"op": "side", "path": module, "parts": parts, "groups": groups})
        elif ranks[0] == 0:
            operations.append(
                {"op": "constant", "path": module, "width": sizes[0][0], "bias": parts[0]["bias"]}
            )
        elif ranks[0] is not None:
            operations.append({"op": "low_rank", "path": module, **parts[0]})
        else:
            operations += [{"op": "bias", "path": module}] if new else []
            if sizes != [matrix.shape for matrix in matrices]:
                rows = sum(rows for rows, _ in sizes)
                operations.append({"op": "resize", "path": module, "rows": rows, "columns": sizes[0][1]})
    return operations


def modules_of(block: BlockShape, kinds: Sequence[str], anatomy: Anatomy) -> dict[str, list[Matrix]]:
    """Return the block's matrices by the module that stores them, in stored order."""
    modules: dict[str, list[Matrix]] = {}
    for kind in kinds:
        matrix = anatomy.matrices.get(Site(block.number, kind))
        if matrix is not None:
            modules.setdefault(matrix.module, []).append(matrix)
    return modules


def is_grouped(matrix: Matrix, anatomy: Anatomy) -> bool:
    """Return True where the module stores q, k and v group by group."""
    return anatomy.details.slots[matrix.site.part].layout == "grouped"


def renumbered(
    operations: Iterable[Mapping[str, object]], shape: Shape, anatomy: Anatomy
) -> list[CarveOperation]:
    """Return operations on the original's blocks as operations on the remaining blocks.

    CarveOperations on removed blocks are left out.
    """
    kept: list[CarveOperation] = []
    for operation in operations:
        path = str(operation["path"])
        if not any(f"{path}.".startswith(f"{block}.") for block in anatomy.blocks):
            kept.append(dict(operation))
            continue
        for new, old in enumerate(shape.numbers):
            if f"{path}.".startswith(f"{anatomy.blocks[old]}."):
                moved = anatomy.blocks[new] + path.removeprefix(anatomy.blocks[old])
                layer: CarveOperation = {"layer": new} if "layer" in operation else {}
                kept.append(dict(operation) | {"path": moved} | layer)
    return kept
