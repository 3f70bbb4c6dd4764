"""What a model is made of: its sizes, and for every site the module and the rows that hold it.

Reads names and shapes only, so it works on the meta device; changes nothing. What it cannot name it refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from secateur.core.site import MATRICES, Site
from secateur.errors import ModelError, UnknownName, nearest
from secateur.hf.families import Family, Sizes, family_of, sizes
from secateur.hf.matrices import Matrix, Ranges, grouped_rows, stacked_rows


@dataclass(frozen=True)
class Anatomy:
    """A model's parts by name. Paths are what `model.get_submodule` takes; `context` counts usable positions.

    `mlps` are the feed-forward modules that map one tensor to one tensor, one per block, or None for families
    whose blocks have no such module; Falcon adds into what they return, so clone it to keep it.
    `num_parameters` counts tied parameters once.
    """

    family: str
    architecture: str
    num_blocks: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    d_head: int
    d_ff: int
    vocab_size: int
    context: int | None
    blocks: tuple[str, ...]
    mlps: tuple[str, ...] | None
    embedding: str
    unembedding: str
    final_norm: str | None
    tied: bool
    num_parameters: int
    matrices: Mapping[Site, Matrix]

    def matrix(self, site: Site) -> Matrix:
        """Raises `UnknownName` with the nearest names for a site that is no matrix of this model."""
        if site not in self.matrices:
            known = [str(other) for other in self.matrices]
            raise UnknownName(f"this model has no matrix {site}.{nearest(str(site), known)}")
        return self.matrices[site]

    @property
    def matrix_kinds(self) -> tuple[str, ...]:
        """The kinds every block has, in canonical order: `q k v o gate up down` or a part of it."""
        kinds = {site.part for site in self.matrices}
        return tuple(kind for kind in MATRICES if kind in kinds)


def anatomy(model: nn.Module) -> Anatomy:
    """The anatomy of a Hugging Face causal language model.

    Raises: `ModelError` for adapters, quantized models, mixtures of experts and other kinds that are not cut,
    for unknown families, and for any module with a matrix that the family's table does not name.
    """
    _refuse_wrapped(model)
    family = family_of(type(model).__name__, model.config.to_dict())
    _refuse_foreign_code(model, family)
    widths = sizes(family, model.config)
    blocks = _block_paths(model, family)
    listed = (_block(model, family, widths, block, index) for index, block in enumerate(blocks))
    matrices = {matrix.site: matrix for matrix in chain.from_iterable(listed)}
    _refuse_unnamed(model, family, matrices)
    embedding, unembedding = (_module(model, path) for path in (family.embedding, family.unembedding))
    return Anatomy(
        family=family.name,
        architecture=family.architecture,
        num_blocks=len(blocks),
        d_model=widths.d_model,
        num_heads=widths.num_heads,
        num_kv_heads=widths.num_kv_heads,
        d_head=widths.d_head,
        d_ff=_d_ff(matrices),
        vocab_size=unembedding.weight.shape[0],
        context=widths.context,
        blocks=blocks,
        mlps=None if family.mlp is None else tuple(f"{block}.{family.mlp}" for block in blocks),
        embedding=family.embedding,
        unembedding=family.unembedding,
        final_norm=None if _find(model, family.final_norm) is None else family.final_norm,
        tied=unembedding.weight is embedding.weight,
        num_parameters=sum(p.numel() for p in model.parameters()),
        matrices=matrices,
    )


def _refuse_wrapped(model: Any) -> None:
    if getattr(model, "peft_config", None) or getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            "this model carries an unmerged adapter (PEFT): merge_and_unload() it and save that."
        )
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise ModelError(f"this {type(model).__name__} is quantized; use the original float checkpoint.")
    if not hasattr(getattr(model, "config", None), "to_dict"):
        raise ModelError(f"{type(model).__name__} is not a Hugging Face model: it has no config.")


def _refuse_foreign_code(model: nn.Module, family: Family) -> None:
    """A class of the same name from elsewhere may order fused rows in another way, which no shape shows."""
    fused = any(slot.layout != "whole" for slot in family.slots.values())
    if fused and not type(model).__module__.startswith("transformers."):
        raise ModelError(
            f"{family.architecture} of {type(model).__module__} is not transformers' own class, and its "
            "fused matrices may be laid out otherwise. Load it with transformers' class of that name."
        )


def _block_paths(model: nn.Module, family: Family) -> tuple[str, ...]:
    blocks = _module(model, family.blocks)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        raise ModelError(f"{family.architecture}: {family.blocks} is not a list of blocks.")
    return tuple(f"{family.blocks}.{index}" for index in range(len(blocks)))


def _block(model: nn.Module, family: Family, widths: Sizes, block: str, index: int) -> Iterator[Matrix]:
    d_ff = _stored_shape(_linear(model, f"{block}.{family.slots['down'].module}"))[1]
    for kind, slot in family.slots.items():
        path = f"{block}.{slot.module}"
        linear = _linear(model, path)
        rows = _rows(kind, slot.layout, widths, d_ff)
        shape = _shape(kind, widths, d_ff)
        needed = _stored_rows(kind, slot.layout, widths, d_ff), shape[1]
        if _stored_shape(linear) != needed:
            found = _stored_shape(linear)
            raise ModelError(f"{path} is {found} (out, in), where {family.name} should have {needed}.")
        yield Matrix(Site(index, kind), path, f"{path}.weight", shape, rows, isinstance(linear, Conv1D))


def _shape(kind: str, widths: Sizes, d_ff: int) -> tuple[int, int]:
    """(out, in) of a matrix, from the widths alone."""
    queries, keys = widths.num_heads * widths.d_head, widths.num_kv_heads * widths.d_head
    outputs = {"q": queries, "k": keys, "v": keys, "gate": d_ff, "up": d_ff}
    inputs = {"o": queries, "down": d_ff}
    return outputs.get(kind, widths.d_model), inputs.get(kind, widths.d_model)


def _sharers(kind: str, layout: str) -> tuple[str, ...]:
    """The kinds that live in one parameter with `kind`, in stored order where they are stacked."""
    if layout == "whole":
        return (kind,)
    return ("q", "k", "v") if kind in "qkv" else ("gate", "up")


def _stored_rows(kind: str, layout: str, widths: Sizes, d_ff: int) -> int:
    return sum(_shape(sharer, widths, d_ff)[0] for sharer in _sharers(kind, layout))


def _rows(kind: str, layout: str, widths: Sizes, d_ff: int) -> Ranges | None:
    if layout == "whole":
        return None
    if layout == "grouped":
        return grouped_rows(kind, widths.num_heads, widths.num_kv_heads, widths.d_head)
    sharers = _sharers(kind, layout)
    return stacked_rows(tuple(_shape(sharer, widths, d_ff)[0] for sharer in sharers), sharers.index(kind))


def _d_ff(matrices: Mapping[Site, Matrix]) -> int:
    widths = {matrix.shape[1]: site for site, matrix in matrices.items() if site.part == "down"}
    if len(widths) > 1:
        found = ", ".join(f"{site.block}: {width}" for width, site in widths.items())
        raise ModelError(f"feed-forward networks of different widths (block {found}) are not supported.")
    return next(iter(widths))


def _refuse_unnamed(model: nn.Module, family: Family, matrices: Mapping[Site, Matrix]) -> None:
    """Every parameter of two or more dimensions must have a name; norms and biases have one dimension."""
    named = {family.embedding, family.unembedding, *family.extras} | {m.module for m in matrices.values()}
    for path, module in model.named_modules():
        unknown = path not in named and any(p.dim() > 1 for p in module.parameters(recurse=False))
        if unknown:
            raise ModelError(
                f"{family.architecture}: {path} ({type(module).__name__}) holds a matrix that the family "
                f"{family.name} does not have (an adapter, cross-attention, or another variant?)."
            )


def _linear(model: nn.Module, path: str) -> nn.Linear | Conv1D:
    module = _module(model, path)
    if not isinstance(module, (nn.Linear, Conv1D)):
        kind = type(module).__name__
        raise ModelError(f"{path} is a {kind}, not a linear layer: quantized, or with an adapter?")
    return module


def _stored_shape(linear: nn.Linear | Conv1D) -> tuple[int, int]:
    """(out, in) whatever the storage."""
    shape = tuple(linear.weight.shape)
    return shape[::-1] if isinstance(linear, Conv1D) else shape


def _module(model: nn.Module, path: str) -> nn.Module:
    found = _find(model, path)
    if found is None:
        raise ModelError(f"{type(model).__name__} has no module {path}, which its family should have.")
    return found


def _find(model: nn.Module, path: str) -> nn.Module | None:
    """The module at `path`, or None where there is none or it was set to None."""
    module: Any = model
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return module
