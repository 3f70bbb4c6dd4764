"""Carry a plan out for good: build a new model that holds the remaining parts and nothing else.

The new model is built without memory (on the meta device), by the stock class with a repaired config where the shapes
allow it, else by the carved class of `modeling_secateur`, just as loading the checkpoint will build it. Its tensors
are made when they are asked for, one module at a time, so that the cut fits in memory where the model does not.

At the end a shape becomes the list of operations that `modeling_secateur.carve_` replays, here and in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur.core.plan import Linearize, Plan
from secateur.core.site import CROSS_MATRICES, EVERY_MATRIX, Site
from secateur.errors import PlanError
from secateur.hf.anatomy import Anatomy
from secateur.hf.build import Find, blank, carved, carving_of, filled_, held_by, repaired, restated
from secateur.hf.family import Mixture
from secateur.hf.load import Loaded
from secateur.hf.matrices import SLICES, Matrix
from secateur.surgery.operations import (
    OUTPUTS,
    Decompose,
    OnParameter,
    Operation,
    RemoveComponents,
    ReplaceWeight,
    ZeroColumns,
    decompose,
    entry_path,
    resolve,
)
from secateur.surgery.shape import (
    BlockShape,
    Shape,
    columns_left,
    depths_of,
    new_biases,
    rows_left,
    shape_of,
    spread,
    stock_config,
)

Named = Iterator[tuple[str, Tensor]]


def cut(
    loaded: Loaded, plan: Plan, *, factorize: bool = False, decompose: Decompose = decompose
) -> PreTrainedModel:
    """Return the model that `plan` leaves. The original is not changed; tensors of which nothing is removed are shared.

    With `factorize`, truncated matrices become two factors wherever that is smaller.

    Raises: `PlanError` as `resolve`, and where blocks cannot be renumbered.
    """
    left = cut_model(loaded, plan, factorize=factorize, decompose=decompose)
    return filled_(left.model, left.tensors_of(loaded.model))


@dataclass(frozen=True)
class CutModel:
    """A cut model on the meta device, with the code that makes its tensors."""

    model: PreTrainedModel
    _remade: CutTensors
    _before: Mapping[str, str]  # path of a block → its path in the original
    _first: Set[str] = frozenset()  # modules of first blocks that stay there, whichever block comes first

    def tensors_of(self, original: PreTrainedModel) -> Find:
        """Return a function from a name to the new model's tensor: made when asked for, or the original's."""
        held, before = held_by(original), self._before

        def find(name: str) -> Tensor | None:
            if name.rpartition(".")[0] in self._first:
                return held(name)
            moved = (
                old + name.removeprefix(new) for new, old in before.items() if name.startswith(f"{new}.")
            )
            original_name = next(moved, name)
            made = self._remade(original_name)
            return held(original_name) if made is None else made

        return find


def cut_model(
    loaded: Loaded,
    plan: Plan,
    *,
    factorize: bool = False,
    zeroed: bool = False,
    decompose: Decompose = decompose,
) -> CutModel:
    """Return the cut model without tensors; with `zeroed`, in the original's shapes. Raises as `cut`."""
    anatomy = loaded.anatomy
    operations = resolve(plan, anatomy, loaded.fingerprint)
    shape = shape_of(Plan(plan.model) if zeroed else plan, anatomy, factorize=factorize)
    model = blank(cut_config(loaded, shape), like=loaded.model)
    before = {
        anatomy.blocks[new]: anatomy.blocks[old]
        for new, old in zip(new_numbers(shape, anatomy), shape.numbers, strict=True)
    }
    first = anatomy.details.from_first
    firsts = {f"{anatomy.blocks[number]}.{first}" for number in {0, anatomy.num_encoder} if first}
    return CutModel(model, CutTensors(loaded, plan, operations, shape, decompose), before, firsts)


def new_numbers(shape: Shape, anatomy: Anatomy) -> list[int]:
    """Return the places that the remaining blocks get among all: each stack from its first place on."""
    encoder = sum(number < anatomy.num_encoder for number in shape.numbers)
    decoder = len(shape.numbers) - encoder
    return [*range(encoder), *range(anatomy.num_encoder, anatomy.num_encoder + decoder)]


def cut_config(loaded: Loaded, shape: Shape) -> Any:
    """Return the stock config of the cut model, or one that carries the carving. Raises: `PlanError`."""
    anatomy, config = loaded.anatomy, loaded.model.config
    fewer = len(shape.blocks) < anatomy.num_blocks
    if fewer and config.to_dict().get("scale_attn_by_inverse_layer_idx"):
        raise PlanError("this model scales attention by the number of its block, so no block can be dropped.")
    changes = stock_config(shape, anatomy)
    if anatomy.num_encoder:
        depths = depths_of(shape, anatomy)
        stock = restated(config, **depths | ({} if isinstance(changes, str) else changes))
    else:
        stock = repaired(config, shape.numbers, **({} if isinstance(changes, str) else changes))
    if not isinstance(changes, str):
        return stock
    earlier = renumbered(carving_of(config), shape, anatomy)
    operations = [*earlier, *carving_operations(shape, anatomy)]
    return carved(stock, operations, anatomy.details.head)


class CutTensors:
    """The tensors of the cut model that differ from the original's, by their names in the original.

    A module is made when one of its tensors is asked for, and only the last one is kept: ask for all tensors of a
    module before those of the next.
    """

    def __init__(
        self, loaded: Loaded, plan: Plan, operations: Sequence[Operation], shape: Shape, decompose: Decompose
    ) -> None:
        self._loaded, self._anatomy, self._shape = loaded, loaded.anatomy, shape
        self._decompose = decompose
        self._truncated = {edit.matrix: edit for edit in plan.truncated}
        self._silenced = {o.matrix.site: o.columns for o in operations if isinstance(o, ZeroColumns)}
        self._biased = new_biases(shape, loaded.anatomy)
        self._operations: dict[str, list[OnParameter]] = {}
        for operation in operations:
            factored = isinstance(operation, ReplaceWeight) and operation.matrix.site in shape.ranks
            if isinstance(operation, OnParameter) and not factored:
                self._operations.setdefault(operation.parameter.rpartition(".")[0], []).append(operation)
        self._modules: dict[str, Callable[[], Named]] = dict(self._made())
        self._last: tuple[str, dict[str, Tensor]] = ("", {})

    @torch.no_grad()
    def __call__(self, name: str) -> Tensor | None:
        """Return the new tensor, or None where the original's stays as it is."""
        module = next((path for path in _paths_around(name) if path in self._modules), None)
        if module is None:
            return None
        if self._last[0] != module:
            self._last = ("", {})  # before the next is made, so that two are never there
            self._last = (module, dict(self._modules[module]()))
        return self._last[1].get(name)

    def _made(self) -> Iterator[tuple[str, Callable[[], Named]]]:
        """Yield each changed module's path with the function that makes its tensors."""
        anatomy = self._anatomy
        for block in self._shape.blocks:
            for module, matrices in modules_of(block, EVERY_MATRIX, anatomy).items():
                yield module, partial(self._module, block, module, matrices)
            if anatomy.details.per_head and block.groups and _lost_heads(block, anatomy):
                yield anatomy.attention(block.number), partial(self._of_heads, block)
            mixture = anatomy.details.experts
            if mixture is not None and block.experts:
                network = f"{anatomy.blocks[block.number]}.{mixture.network}"
                for owner in dict.fromkeys(name.rpartition(".")[0] for name in mixture.rows):
                    path = f"{network}.{owner}".rstrip(".")
                    yield path, partial(self._of_experts, block, network, owner, mixture)
            for part in ("attn", "cross"):
                groups = block.groups_of(part)
                if groups is not None and not groups and not anatomy.details.mixes:
                    path = f"{anatomy.attention(block.number, part)}.output"
                    yield path, partial(self._left_bias, path, block.site.beside(OUTPUTS[part]))
            if block.neurons is not None and not block.neurons and anatomy.mlps is not None:
                path = anatomy.mlps[block.number]
                yield path, partial(self._left_bias, path, block.site.beside("down"))
        for before, edits in self._shape.entries.items():
            path = entry_path(before, anatomy)
            yield f"{path}.entry", partial(self._maps, path, edits)

    def _maps(self, path: str, edits: Sequence[Linearize]) -> Named:
        held = (f"{path}.{name}" for name, _ in self._loaded.model.get_submodule(path).named_parameters())
        nearest = next(held, f"{self._anatomy.unembedding}.weight")  # OLMo's norms hold nothing
        like = self._loaded.parameter(nearest)
        for number, edit in enumerate(edits):
            for name, array in edit.fitted.content.items():
                yield f"{path}.entry.{number}.{name}", torch.from_numpy(array).to(like)

    def _of_heads(self, block: BlockShape) -> Named:
        """Yield the parameters of an attention that have a number for each head, of those that are left."""
        for name in self._anatomy.details.per_head:
            path = f"{self._anatomy.attention(block.number)}.{name}"
            yield path, self._loaded.parameter(path)[block.heads]

    def _of_experts(self, block: BlockShape, network: str, owner: str, mixture: Mixture) -> Named:
        """Yield the tensors of a module of a mixture that hold something of every expert, of those that are left."""
        held = held_by(self._loaded.model)
        for name in (f"{network}.{name}" for name in mixture.rows if name.rpartition(".")[0] == owner):
            whole = held(name)
            assert whole is not None, name
            operations = [o for o in self._operations.get(name.rpartition(".")[0], ()) if o.parameter == name]
            whole = whole.clone() if operations else whole
            for operation in operations:
                operation.apply_(whole, self._decompose)
            if len(block.experts) < self._anatomy.widths[block.number].num_experts:
                dimension = mixture.rows[name.removeprefix(f"{network}.")]
                whole = whole.index_select(dimension, torch.tensor(block.experts, device=whole.device))
            yield name, whole

    def _left_bias(self, path: str, site: Site) -> Named:
        """Yield the output bias of a part whose units were all dropped one by one; the bias remains."""
        matrix = self._anatomy.matrices[site]
        yield f"{path}.bias", self._written(matrix)[_bias_of(matrix)]

    def _module(self, block: BlockShape, module: str, matrices: Sequence[Matrix]) -> Named:
        first, written = matrices[0], self._written(matrices[0])
        if any(matrix.site in self._shape.ranks for matrix in matrices):
            single = len(matrices) == 1
            for number, matrix in enumerate(matrices):
                path = module if single else f"{module}.parts.{number}"
                yield from self._part(block, matrix, path, written)
            return
        rows, columns = _stored_rows(block, matrices, self._anatomy), self._columns(first, block)
        weight = written[first.weight]
        stored = weight.T if first.transposed else weight
        if (rows, columns) == (list(range(stored.shape[0])), list(range(stored.shape[1]))):
            yield from written.items()
            return
        kept = stored[rows][:, columns]
        yield first.weight, (kept.T if first.transposed else kept).contiguous()
        if _bias_of(first) in written:
            yield _bias_of(first), written[_bias_of(first)][rows]

    def _written(self, matrix: Matrix) -> dict[str, Tensor]:
        """Return the parameters of a matrix's module, with the operations on them carried out in copies."""
        held = {matrix.weight: self._loaded.parameter(matrix.weight)}
        if matrix.bias is not None:
            held[matrix.bias] = self._loaded.parameter(matrix.bias)
        elif matrix.module in self._biased:
            weight = held[matrix.weight]
            held[_bias_of(matrix)] = weight.new_zeros(
                weight.shape[1] if matrix.transposed else weight.shape[0]
            )
        operations = self._operations.get(matrix.module, ())
        changed = {operation.parameter for operation in operations}
        held |= {name: held[name].clone() for name in sorted(changed)}
        for operation in operations:
            weight = held[operation.parameter]
            added = operation.apply_(weight, self._decompose)
            if added is not None:
                assert isinstance(operation, RemoveComponents), "only removed directions fold their mean"
                name, added = _bias_of(operation.matrix), operation.matrix.in_output(added, weight)
                held[name] = (held[name].to(added.dtype) + added).to(held[name])
        return held

    def _part(self, block: BlockShape, matrix: Matrix, path: str, written: Mapping[str, Tensor]) -> Named:
        """Yield the tensors of a matrix that becomes a module of its own, as two factors where it has a rank."""
        rows = list(rows_left(matrix, block, self._anatomy.widths[block.number].head))
        columns = self._columns(matrix, block)
        if _bias_of(matrix) in written:
            yield f"{path}.bias", matrix.of_output(written[_bias_of(matrix)])[rows]
        if matrix.site in self._shape.ranks:
            a, b = self._factors(matrix, self._shape.ranks[matrix.site], written[matrix.weight])
            yield f"{path}.a", a[:, columns].contiguous()
            yield f"{path}.b", b[:, rows].contiguous()
        else:
            yield f"{path}.weight", matrix.read(written[matrix.weight])[rows][:, columns].contiguous()

    def _factors(self, matrix: Matrix, rank: int, written: Tensor) -> tuple[Tensor, Tensor]:
        weight, edit = self._loaded.parameter(matrix.weight), self._truncated.get(matrix.site)
        if edit is not None:
            a, b = self._decompose(matrix, weight).factors(edit.rank, edit.side)
        else:
            a, b = decompose(matrix, written).factors(rank)
        gone = self._silenced.get(matrix.site, ())
        a[:, slice(None) if gone is None else list(gone)] = 0
        return a.to(weight.dtype), b.to(weight.dtype)

    def _columns(self, matrix: Matrix, block: BlockShape) -> list[int]:
        return list(columns_left(matrix, block, self._anatomy.widths[block.number].head))


def _paths_around(name: str) -> Iterator[str]:
    """Yield the path of every module around a tensor, the innermost first."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _bias_of(matrix: Matrix) -> str:
    """Return the name of the parameter that holds the bias of a matrix, or will hold it."""
    return matrix.bias or f"{matrix.module}.bias"


def _stored_rows(block: BlockShape, matrices: Sequence[Matrix], anatomy: Anatomy) -> list[int]:
    """Return the remaining rows of the stored parameter, in their new order: group by group where it is stored so, with
    gates where heads have them."""
    head = anatomy.widths[block.number].head
    if anatomy.is_gated(matrices[0].site):
        return spread(block.heads, 2 * head.query)
    in_turn = [replace(block, groups=(group,)) for group in block.groups or ()]
    layout = _layout(matrices[0], anatomy)
    turns = in_turn if layout in ("grouped", "paired") else [block]
    rows = ((m, rows_left(m, turn, head)) for turn in turns for m in matrices)
    stored = list(chain.from_iterable(matrix.stored_rows(left) for matrix, left in rows))
    return sorted(stored) if layout == "sliced" else stored


CarveOperation = dict[str, object]  # `op`, `path`, and what that operation takes: the JSON of config.json


def carving_operations(shape: Shape, anatomy: Anatomy) -> list[CarveOperation]:
    """Return the operations that give a model with the right blocks, each as the original's, its new shape."""
    operations: list[CarveOperation] = []
    lacks, first = anatomy.details.first_lacks, anatomy.blocks[shape.numbers[0]]
    if lacks and shape.numbers[0]:
        operations.append({"op": "like", "path": f"{first}.{lacks[0]}", "other": lacks[1]})
    for block in shape.blocks:
        for part in ("attn", "cross"):
            operations += _carved_attention(block, part, shape, anatomy)
        operations += _carved_mlp(block, shape, anatomy)
        operations += _carved_experts(block, anatomy)
    for before, edits in shape.entries.items():
        maps = [edit.fitted.content for edit in edits]
        ranks = [len(arrays["a"]) if "a" in arrays else None for arrays in maps]
        path = entry_path(before, anatomy)
        operations.append({"op": "entry", "path": path, "width": anatomy.d_model, "ranks": ranks})
    return renumbered(operations, shape, anatomy)


def _carved_attention(block: BlockShape, part: str, shape: Shape, anatomy: Anatomy) -> list[CarveOperation]:
    """Return the operations for the self-attention (`attn`) or the cross-attention (`cross`) of a block."""
    widths, groups = anatomy.widths[block.number], block.groups_of(part)
    num_heads, _ = widths.heads(part)
    if not num_heads:
        return []
    path = anatomy.attention(block.number, part)
    if not groups:
        if anatomy.details.shared_bias:
            return [{"op": "no_shared_attention", "path": path, "layer": 0}]
        stand = {"op": "no_attention", "path": path, "width": anatomy.d_model, "layer": 0}
        bias = {"bias": True} if groups is not None else {}
        if anatomy.details.mixes:
            out: CarveOperation = {"op": "constant", "path": anatomy.matrices[block.site.beside("o")].module}
            return [stand | {"width": 0}, out | {"width": anatomy.d_model} | bias]
        residual = {"residual": True} if anatomy.details.adds_residual else {}
        alone = {"alone": True} if anatomy.details.returns_list else {}
        return [stand | bias | residual | alone]
    operations = _carved_linears(block, CROSS_MATRICES if part == "cross" else "qkvo", shape, anatomy)
    if not _lost_heads(block, anatomy, part):
        return operations
    heads = block.heads_of(part)
    numbers = {
        "heads": len(heads),
        "kv_heads": len(groups),
        "queries": len(groups[0].queries),
        "width": len(heads) * widths.d_head,
    }
    values = {name: numbers[what] for name, what in anatomy.family_of(block.number).counts.items()}
    if values:
        operations.append({"op": "attributes", "path": path, "values": values})
    if anatomy.details.per_head:
        names = list(anatomy.details.per_head)
        operations.append({"op": "per_head", "path": path, "names": names, "heads": len(heads)})
    if anatomy.alibi:
        operations.append({"op": "some_heads", "path": path, "heads": heads, "of": num_heads})
    if anatomy.details.shared_bias:
        operations.append({"op": "shared_bias", "path": path, "heads": heads})
    return operations


def _lost_heads(block: BlockShape, anatomy: Anatomy, part: str = "attn") -> bool:
    num_heads, _ = anatomy.widths[block.number].heads(part)
    return block.heads_of(part) != list(range(num_heads))


def _carved_mlp(block: BlockShape, shape: Shape, anatomy: Anatomy) -> list[CarveOperation]:
    if not anatomy.widths[block.number].d_ff:
        return []
    if block.neurons:
        return _carved_linears(block, ("gate", "up", "down"), shape, anatomy)
    down = anatomy.matrices[block.site.beside("down")]
    path = down.module if anatomy.mlps is None else anatomy.mlps[block.number]
    stand = {"op": "constant", "path": path, "width": anatomy.d_model}
    if block.neurons is not None:
        stand["bias"] = True
    if anatomy.mlps is not None:
        return [stand]
    return [{"op": "nothing", "path": anatomy.matrices[block.site.beside("up")].module}, stand]


def _carved_experts(block: BlockShape, anatomy: Anatomy) -> list[CarveOperation]:
    count, mixture = anatomy.widths[block.number].num_experts, anatomy.details.experts
    if mixture is None or len(block.experts) == count:
        return []
    path = f"{anatomy.blocks[block.number]}.{mixture.network}"
    rows = dict(mixture.rows)
    return [{"op": "experts", "path": path, "rows": rows, "of": count, "left": len(block.experts)}]


def _carved_linears(
    block: BlockShape, kinds: Sequence[str], shape: Shape, anatomy: Anatomy
) -> list[CarveOperation]:
    operations: list[CarveOperation] = []
    folds = {anatomy.matrices[site].module for site in shape.folds}
    for module, matrices in modules_of(block, kinds, anatomy).items():
        new = module in folds
        sizes = [shape.size(matrix, anatomy) for matrix in matrices]
        ranks = [shape.ranks.get(matrix.site) for matrix in matrices]
        parts: list[CarveOperation] = []
        for (rows, columns), rank, matrix in zip(sizes, ranks, matrices, strict=True):
            bias = new or matrix.bias is not None
            part: CarveOperation = {"rows": rows, "columns": columns, "bias": bias}
            parts.append(part if rank is None else part | {"rank": rank})
        if len(parts) > 1 and any(rank is not None for rank in ranks):
            kept = len(block.groups or ())
            groups = {"grouped": kept, "paired": kept, "sliced": SLICES}.get(_layout(matrices[0], anatomy), 1)
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
                rows = sum(rows for rows, _ in sizes) * (2 if anatomy.is_gated(matrices[0].site) else 1)
                operations.append({"op": "resize", "path": module, "rows": rows, "columns": sizes[0][1]})
    return operations


def modules_of(block: BlockShape, kinds: Sequence[str], anatomy: Anatomy) -> dict[str, list[Matrix]]:
    """Return the block's matrices by the module that stores them, in stored order."""
    modules: dict[str, list[Matrix]] = {}
    if "k" in kinds and anatomy.details.slots["k"].layout == "sliced":
        kinds = [{"k": "v", "v": "k"}.get(kind, kind) for kind in kinds]
    for kind in kinds:
        matrix = anatomy.matrices.get(block.site.beside(kind))
        if matrix is not None:
            modules.setdefault(matrix.module, []).append(matrix)
    return modules


def _layout(matrix: Matrix, anatomy: Anatomy) -> str:
    """Return how a matrix shares its module with others."""
    return anatomy.slot(matrix.site).layout


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
        for new, old in zip(new_numbers(shape, anatomy), shape.numbers, strict=True):
            if f"{path}.".startswith(f"{anatomy.blocks[old]}."):
                moved = anatomy.blocks[new] + path.removeprefix(anatomy.blocks[old])
                place = anatomy.site(new).block  # in its own stack, by which caches count
                layer: CarveOperation = {"layer": place} if "layer" in operation else {}
                kept.append(dict(operation) | {"path": moved} | layer)
    return kept
