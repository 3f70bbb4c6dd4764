"""Plans carried out for good: a new model that holds what is left, and nothing else.

The new model is built without memory (on the meta device), by the stock class with a repaired config where the shapes
allow it, else by the carved class of `modeling_secateur`, just as loading the checkpoint will build it. Then it is
handed its tensors: those of the original, shared where nothing of them went.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur.core.plan import Linearize, Plan
from secateur.core.site import MATRICES, Site
from secateur.errors import PlanError
from secateur.hf.anatomy import Anatomy
from secateur.hf.build import blank, carved, carving_of, filled_, repaired
from secateur.hf.load import Loaded
from secateur.hf.matrices import Matrix
from secateur.surgery.carving import carving, is_grouped, modules_of, renumbered
from secateur.surgery.operations import (
    Decompose,
    OnParameter,
    Operation,
    Silence,
    decompose,
    entry_path,
    resolve,
)
from secateur.surgery.shape import (
    BlockShape,
    Shape,
    columns_left,
    new_biases,
    rows_left,
    shape_of,
    stock_config,
)

Named = Iterator[tuple[str, Tensor]]


def cut(
    loaded: Loaded, plan: Plan, *, factorize: bool = False, decompose: Decompose = decompose
) -> PreTrainedModel:
    """What `plan` leaves of a model, which itself is not changed. Tensors of which nothing went are shared.

    With `factorize`, truncated matrices become two factors wherever that is smaller. Raises: `PlanError` as
    `resolve`, and where blocks cannot be renumbered.
    """
    operations = resolve(plan, loaded.anatomy, loaded.fingerprint)
    shape = shape_of(plan, loaded.anatomy, factorize=factorize)
    model = blank(config_left(loaded, shape), like=loaded.model)
    with torch.no_grad():
        tensors = dict(_Cutter(loaded, plan, operations, shape, decompose).tensors())
    before = {
        new: loaded.anatomy.blocks[old]
        for new, old in zip(loaded.anatomy.blocks, shape.numbers, strict=False)
    }
    return filled_(model, loaded.model, tensors, before)


def config_left(loaded: Loaded, shape: Shape) -> Any:
    """The stock config of what is left, or one that carries the carving. Raises `PlanError`."""
    anatomy, config = loaded.anatomy, loaded.model.config
    fewer = len(shape.blocks) < anatomy.num_blocks
    if fewer and config.to_dict().get("scale_attn_by_inverse_layer_idx"):
        raise PlanError("this model scales attention by the number of its block, so no block can be dropped.")
    changes = stock_config(shape, anatomy)
    if not isinstance(changes, str):
        return repaired(config, shape.numbers, **changes)
    earlier = renumbered(carving_of(config), shape, anatomy)
    return carved(repaired(config, shape.numbers), [*earlier, *carving(shape, anatomy)])


class _Cutter:
    """Gives the tensors of the cut model that are not the original's, under the names of the original's blocks."""

    def __init__(
        self, loaded: Loaded, plan: Plan, operations: Sequence[Operation], shape: Shape, decompose: Decompose
    ) -> None:
        self._model, self._anatomy, self._shape = loaded.model, loaded.anatomy, shape
        self._decompose = decompose
        self._truncated = {edit.matrix: edit for edit in plan.truncated}
        self._silenced = {o.matrix.site: o.columns for o in operations if isinstance(o, Silence)}
        self._written: dict[str, Tensor] = {}
        self._biased = new_biases(shape, loaded.anatomy)
        for matrix in loaded.anatomy.matrices.values():
            if matrix.module in self._biased:
                self._written[_bias_of(matrix)] = self._zeros(matrix)
        for operation in operations:
            if isinstance(operation, OnParameter):
                self._apply(operation)

    def _zeros(self, matrix: Matrix) -> Tensor:
        weight = self._original(matrix.weight)
        return weight.new_zeros(weight.shape[1] if matrix.transposed else weight.shape[0])

    def _apply(self, operation: OnParameter) -> None:
        weight = self._writable(operation.parameter)
        added = operation.apply_(weight, self._decompose)
        if added is not None:
            bias = self._writable(_bias_of(operation.matrix))
            bias.copy_(bias.to(added.dtype) + operation.matrix.in_output(added, weight))

    def _has_bias(self, matrix: Matrix) -> bool:
        return matrix.bias is not None or matrix.module in self._biased

    def _writable(self, name: str) -> Tensor:
        if name not in self._written:
            self._written[name] = self._original(name).clone()
        return self._written[name]

    def _original(self, name: str) -> Tensor:
        return self._model.get_parameter(name).detach()

    def _masked(self, name: str) -> Tensor:
        return self._written[name] if name in self._written else self._original(name)

    def tensors(self) -> Named:
        yield from self._written.items()
        for block in self._shape.blocks:
            for module, matrices in modules_of(block, MATRICES, self._anatomy).items():
                yield from self._module(block, module, matrices)
            yield from self._left_biases(block)
        for before, edits in self._shape.entries.items():
            yield from self._maps(entry_path(before, self._anatomy), edits)

    def _maps(self, path: str, edits: Sequence[Linearize]) -> Named:
        like = next(self._model.get_submodule(path).parameters())
        for number, edit in enumerate(edits):
            for name, array in edit.fitted.arrays.items():
                yield f"{path}.entry.{number}.{name}", torch.from_numpy(array).to(like)

    def _module(self, block: BlockShape, module: str, matrices: Sequence[Matrix]) -> Named:
        if any(matrix.site in self._shape.ranks for matrix in matrices):
            single = len(matrices) == 1
            for number, matrix in enumerate(matrices):
                yield from self._part(block, matrix, module if single else f"{module}.parts.{number}")
            return
        first = matrices[0]
        rows, columns = _stored_rows(block, matrices, self._anatomy), self._columns(first, block)
        weight = self._masked(first.weight)
        stored = weight.T if first.transposed else weight
        if (rows, columns) == (list(range(stored.shape[0])), list(range(stored.shape[1]))):
            return
        kept = stored[rows][:, columns]
        yield first.weight, (kept.T if first.transposed else kept).contiguous()
        if self._has_bias(first):
            yield _bias_of(first), self._masked(_bias_of(first))[rows]

    def _part(self, block: BlockShape, matrix: Matrix, path: str) -> Named:
        """One matrix that is a module of its own afterwards, as two factors where it has a rank."""
        rows, columns = list(rows_left(matrix, block, self._anatomy.d_head)), self._columns(matrix, block)
        if self._has_bias(matrix):
            yield f"{path}.bias", matrix.of_output(self._masked(_bias_of(matrix)))[rows]
        if matrix.site in self._shape.ranks:
            a, b = self._factors(matrix, self._shape.ranks[matrix.site])
            yield f"{path}.a", a[:, columns].contiguous()
            yield f"{path}.b", b[:, rows].contiguous()
        else:
            yield f"{path}.weight", matrix.read(self._masked(matrix.weight))[rows][:, columns].contiguous()

    def _factors(self, matrix: Matrix, rank: int) -> tuple[Tensor, Tensor]:
        weight, edit = self._original(matrix.weight), self._truncated.get(matrix.site)
        if edit is not None:
            a, b = self._decompose(matrix, weight).factors(edit.rank, edit.side)
        else:
            a, b = decompose(matrix, self._masked(matrix.weight)).factors(rank)
        gone = self._silenced.get(matrix.site, ())
        a[:, slice(None) if gone is None else list(gone)] = 0
        return a.to(weight.dtype), b.to(weight.dtype)

    def _columns(self, matrix: Matrix, block: BlockShape) -> list[int]:
        return list(columns_left(matrix, block, self._anatomy.d_head))

    def _left_biases(self, block: BlockShape) -> Named:
        """Where all units of a part are gone, one by one, the bias of its output is still there."""
        if block.groups is not None and not block.groups:
            bias = self._masked(_bias_of(self._anatomy.matrices[Site(block.number, "o")]))
            yield f"{self._anatomy.attention(block.number)}.output.bias", bias
        if block.neurons is not None and not block.neurons and self._anatomy.mlps is not None:
            bias = self._masked(_bias_of(self._anatomy.matrices[Site(block.number, "down")]))
            yield f"{self._anatomy.mlps[block.number]}.bias", bias


def _bias_of(matrix: Matrix) -> str:
    """The parameter that holds the bias of a matrix, or will."""
    return matrix.bias or f"{matrix.module}.bias"


def _stored_rows(block: BlockShape, matrices: Sequence[Matrix], anatomy: Anatomy) -> list[int]:
    """Rows of the stored parameter that are left, in their new order: group by group where it is laid out so."""
    in_turn = [replace(block, groups=(group,)) for group in block.groups or ()]
    turns = in_turn if is_grouped(matrices[0], anatomy) else [block]
    rows = ((m, rows_left(m, turn, anatomy.d_head)) for turn in turns for m in matrices)
    return list(chain.from_iterable(matrix.stored_rows(left) for matrix, left in rows))
