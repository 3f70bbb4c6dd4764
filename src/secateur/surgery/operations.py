"""Resolve a plan to operations on parameters and modules that make a model compute as if cut. All checks are here.

An operation on a parameter changes one stored tensor in place, so that the reversible mask, the physical cut and
anything that streams tensors one by one interpret the same list and agree. An operation that folds also returns the
constant that its layer adds to its output from then on, whether it has a bias to hold it or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.core.fitted import Fitted
from secateur.core.plan import Drop, Edit, Linearize, Plan, PlanOrEdits, RemoveDirections, Truncate, plan_of
from secateur.core.site import Site
from secateur.errors import PlanError, UnknownName
from secateur.hf.anatomy import Anatomy
from secateur.hf.calls import FewerExperts
from secateur.hf.family import Mixture
from secateur.hf.matrices import Matrix
from secateur.linalg.directions import directions, joined, part_along, pieces
from secateur.linalg.spectrum import Spectrum, spectrum

Decompose = Callable[[Matrix, Tensor], Spectrum]


def decompose(matrix: Matrix, weight: Tensor) -> Spectrum:
    """Return the spectrum of one logical matrix, read from the parameter that stores it."""
    return spectrum(matrix.read(weight))


@dataclass(frozen=True)
class ReplaceWeight:
    """Write a truncation of `matrix` into the parameter `matrix.weight`."""

    matrix: Matrix
    edit: Truncate

    @property
    def parameter(self) -> str:
        """Return the name of the parameter that is changed."""
        return self.matrix.weight

    def apply_(self, weight: Tensor, decompose: Decompose = decompose) -> None:
        """Change `weight`, the stored tensor that still holds the original of this matrix, in place."""
        kept = decompose(self.matrix, weight).truncate(self.edit.rank, self.edit.side)
        self.matrix.write_(weight, kept)


@dataclass(frozen=True)
class RemoveComponents:
    """Remove singular directions of `matrix` from the parameter `matrix.weight`.

    With `heads` > 1 each head has directions of its own, in the columns of an `o` and in the rows of others; 1: the
    matrix is one piece.
    """

    matrix: Matrix
    edit: RemoveDirections
    heads: int

    @property
    def parameter(self) -> str:
        """Return the name of the parameter that is changed."""
        return self.matrix.weight

    @property
    def needs_bias(self) -> bool:
        """Return True where the fold needs a bias that the layer does not have."""
        return self.edit.fold is not None and self.matrix.bias is None

    def apply_(self, weight: Tensor, decompose: Decompose = decompose) -> Float[Tensor, " out"] | None:
        """Change `weight` in place; return W_removed · mean, in float32 or wider, or None where nothing is folded."""
        whole, of_inputs = self.matrix.read(weight), self.matrix.site.kind == "o"
        parts = pieces(whole, self.heads, columns=of_inputs)
        u = self.basis(weight, decompose)
        gone = torch.zeros(u.shape[0], u.shape[2], dtype=torch.bool, device=u.device)
        gone.view(-1)[list(self.edit.directions)] = True
        leaves = joined(part_along(parts, u, gone), columns=of_inputs)
        self.matrix.write_(weight, whole.to(leaves.dtype) - leaves)
        return None if self.edit.fold is None else leaves @ self._fitted("mean", leaves)

    def basis(self, weight: Tensor, decompose: Decompose = decompose) -> Float[Tensor, "pieces out_ k"]:
        """Return all output directions of the matrix or of each head: the fitted ones, else those of the weights."""
        if self.edit.fold is not None and "u" in self.edit.fold.content:
            return self._fitted(
                "u", weight.new_empty(0, dtype=torch.promote_types(weight.dtype, torch.float32))
            )
        if not self.edit.per_head:
            return decompose(self.matrix, weight).u[None]
        of_inputs = self.matrix.site.kind == "o"
        return directions(pieces(self.matrix.read(weight), self.heads, columns=of_inputs)).u

    def _fitted(self, name: str, like: Tensor) -> Tensor:
        assert self.edit.fold is not None
        return torch.from_numpy(self.edit.fold.content[name]).to(like)


@dataclass(frozen=True)
class ZeroColumns:
    """Zero the input `columns` of `matrix` in `matrix.weight`; None: all of them."""

    matrix: Matrix
    columns: tuple[int, ...] | None

    @property
    def parameter(self) -> str:
        """Return the name of the parameter that is changed."""
        return self.matrix.weight

    def apply_(self, weight: Tensor, decompose: Decompose = decompose) -> None:
        """Change `weight` in place."""
        stored = weight.T if self.matrix.transposed else weight
        stored[:, slice(None) if self.columns is None else list(self.columns)] = 0


@dataclass(frozen=True)
class ZeroBias:
    """Zero the bias of a part's output, for a part that is dropped whole."""

    parameter: str

    def apply_(self, bias: Tensor, decompose: Decompose = decompose) -> None:
        """Change `bias` in place."""
        bias.zero_()


@dataclass(frozen=True)
class SkipBlock:
    """Skip the block at `path`: its output is its input."""

    path: str


@dataclass(frozen=True)
class ReplaceWithLinear:
    """Replace the block at `path` by a linear map."""

    path: str
    edit: Linearize

    def apply(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Return the map of `x`, computed in float32 or wider, in the dtype of `x`."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        arrays = {name: torch.from_numpy(a).to(wide) for name, a in self.edit.fitted.content.items()}
        whole = "weight" in arrays
        mapped = wide @ arrays["weight"].T if whole else wide + (wide @ arrays["a"].T) @ arrays["b"]
        return (mapped + arrays["bias"]).to(x.dtype)


@dataclass(frozen=True)
class FoldLinear:
    """Compose the output of `matrix` with a linear map, written into its weight or, with `bias`, into its bias."""

    matrix: Matrix
    edit: Linearize
    bias: bool = False

    @property
    def parameter(self) -> str:
        """Return the name of the parameter that is changed."""
        return self.matrix.bias if self.bias and self.matrix.bias is not None else self.matrix.weight

    def apply_(self, weight: Tensor, decompose: Decompose = decompose) -> None:
        """Change `weight` (or the bias) in place."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        content = self.edit.fitted.content
        arrays = {name: torch.from_numpy(array).to(weight.device, wide) for name, array in content.items()}
        fold = arrays["weight"]
        if self.bias:
            weight.copy_(fold @ weight.to(wide) + arrays.get("bias", 0))
        else:
            self.matrix.write_(weight, fold @ self.matrix.read(weight).to(wide))


@dataclass(frozen=True)
class DropExperts:
    """Keep the router of the mixture at `path`, of `count` experts, from choosing some of them."""

    path: str
    mixture: Mixture
    count: int
    experts: tuple[int, ...]

    def fewer(self, model: nn.Module) -> tuple[nn.Module, FewerExperts]:
        """Return the router, and the forward that it is to have."""
        router = f"{self.mixture.router}."
        rows = {
            name.removeprefix(router): dimension
            for name, dimension in self.mixture.rows.items()
            if name.startswith(router)
        }
        path = f"{self.path}.{self.mixture.router}"
        return model.get_submodule(path), FewerExperts(model, path, rows, self.count, self.experts)


OnParameter = ReplaceWeight | RemoveComponents | ZeroColumns | ZeroBias | FoldLinear
OnBlock = SkipBlock | ReplaceWithLinear
Operation = OnParameter | OnBlock | DropExperts


def resolve(plan: Plan, anatomy: Anatomy, fingerprint: str) -> tuple[Operation, ...]:
    """Return the operations of a plan, those first that need the original matrices.

    Raises: `PlanError` when the plan is for another model, a rank is above the full one, nothing would remain, or
    fitted tensors are missing; `UnknownName` for a site the model does not have.
    """
    if plan.model != fingerprint:
        raise PlanError(
            f"this plan is for the model with fingerprint {plan.model}, not for this one ({fingerprint}): its weights "
            "differ. Use the model the plan was made for, or search again."
        )
    check_sites(plan.dropped, anatomy)
    if anatomy.num_encoder and plan.linearized:
        raise PlanError(
            f"{plan.linearized[0]}: blocks of an encoder-decoder are not replaced by linear maps. Drop them."
        )
    gone = anatomy.numbers(plan.blocks_gone)
    if len(gone) == anatomy.num_blocks:
        raise PlanError("this plan takes every block of the model away. Keep at least one.")
    if not keeps_blocks(gone, anatomy):
        if anatomy.num_encoder:
            raise PlanError(
                "this plan takes every block of the encoder, or of the decoder, away. Keep one of each."
            )
        raise PlanError(
            f"this plan takes every block away that has attention ({', '.join(map(str, anatomy.attending))}), or every "
            "one that has none. Keep at least one of each kind."
        )
    for edit in plan.linearized:
        if edit.form == "linear":
            left = (number for number in range(anatomy.num_blocks) if number not in gone)
            entry_path(following(edit, left), anatomy)
    return (
        *(operation for edit in plan.by_kind for operation in _operations(edit, anatomy)),
        *_dropped(plan.dropped, anatomy),
    )


def resolve_early(asked: PlanOrEdits, anatomy: Anatomy) -> tuple[Operation, ...]:
    """Resolve before there are weights, and so without a fingerprint.

    Raises: as `resolve`, but for another model's plan.
    """
    plan = plan_of(asked, "")
    return resolve(plan, anatomy, plan.model)


def _operations(edit: Edit, anatomy: Anatomy) -> Iterator[Operation]:
    """Yield the operations of one edit; of a `Drop` none, since the units of one part are dropped together."""
    match edit:
        case Truncate():
            yield _truncation(edit, anatomy)
        case RemoveDirections():
            yield _removal(edit, anatomy)
        case Linearize():
            yield from _linearized(edit, anatomy)
        case Drop():
            return
        case _:
            assert_never(edit)


def _truncation(edit: Truncate, anatomy: Anatomy) -> ReplaceWeight:
    matrix = anatomy.matrix(edit.matrix)
    if edit.rank > min(matrix.shape):
        raise PlanError(
            f"{edit}: {edit.matrix} is {matrix.shape[0]} × {matrix.shape[1]}, "
            f"its rank is at most {min(matrix.shape)}."
        )
    return ReplaceWeight(matrix, edit)


def _removal(edit: RemoveDirections, anatomy: Anatomy) -> RemoveComponents:
    matrix = anatomy.matrix(edit.matrix)
    if edit.matrix.unit and edit.fold is not None:
        raise PlanError(
            f"{edit}: the mean effect of directions of an expert is not folded. Leave out the fold."
        )
    heads = anatomy.heads_in(edit.matrix) if edit.per_head else 1
    if heads is None:
        raise PlanError(f"{edit}: {edit.matrix} has no heads; its directions are those of the whole matrix.")
    count = heads * num_directions(matrix, heads)
    if edit.directions[-1] >= count:
        raise PlanError(f"{edit}: {edit.matrix} has {count} directions, counted from 0.")
    if edit.fold is not None:
        _check_fold(edit, edit.fold, matrix, heads)
    return RemoveComponents(matrix, edit, heads)


def _linearized(edit: Linearize, anatomy: Anatomy) -> Iterator[Operation]:
    """Yield the operations of one linear map.

    Raises: `PlanError` where the map does not fit, or nothing can carry it.
    """
    anatomy.number(Site(edit.blocks[-1]))
    _check_map(edit, anatomy)
    blocks = [anatomy.blocks[block] for block in edit.blocks]
    if edit.folded_into is None:
        yield ReplaceWithLinear(blocks.pop(0), edit)
    else:
        if not anatomy.foldable:
            raise PlanError(
                f"{edit}: {anatomy.architecture} has a norm after its feed-forward networks, so no linear map can be "
                "folded into them. Take the form linear, or drop."
            )
        matrix = anatomy.matrix(edit.folded_into)
        yield FoldLinear(matrix, edit)
        if matrix.bias is not None:
            yield FoldLinear(matrix, edit, bias=True)
    yield from map(SkipBlock, blocks)


def following(edit: Linearize, left: Iterable[int]) -> int | None:
    """Return the first remaining block after a run, or None."""
    return next((number for number in left if number > edit.blocks[-1]), None)


def entry_path(before: int | None, anatomy: Anatomy) -> str:
    """Return the module that linear maps are put before; the final norm where no block remains after them (None).

    Raises: `PlanError` where there is none, or it has such maps already.
    """
    path = anatomy.final_norm if before is None else anatomy.blocks[before]
    if path is None:
        raise PlanError(
            "the last block cannot be made linear: this model has no norm after it that could carry the map. Drop it."
        )
    if path in anatomy.entered:
        raise PlanError(
            f"before {path} lies a linear map of an earlier cut. Cut the original model once, with one plan for both."
        )
    return path


def _arrays(edit: Edit, fitted: Fitted) -> Mapping[str, np.ndarray]:
    """Return the fitted arrays of an edit. Raises: `PlanError` where only their digest was read."""
    if fitted.arrays is None:
        raise PlanError(
            f"{edit}: its fitted tensors ({fitted.digest}) are not there. Read the plan from the folder that holds "
            "tensors/ beside it."
        )
    return fitted.arrays


def _check_map(edit: Linearize, anatomy: Anatomy) -> None:
    arrays, width = _arrays(edit, edit.fitted), anatomy.d_model
    rank = len(arrays["a"]) if "a" in arrays else None
    maps = {"weight": (width, width)} if rank is None else {"a": (rank, width), "b": (rank, width)}
    into = edit.folded_into
    may_add = into is None or ("bias" in arrays and anatomy.matrix(into).bias is not None)
    wanted = maps | ({"bias": (width,)} if may_add else {})
    if {name: array.shape for name, array in arrays.items()} != wanted:
        raise PlanError(
            f"{edit}: its tensors are not those of a map of {width} numbers, as this model's stream has."
        )


def num_directions(matrix: Matrix, heads: int) -> int:
    """Return the number of directions of the matrix, or of each of its heads."""
    rows, columns = matrix.shape
    return min(rows, columns // heads) if matrix.site.kind == "o" else min(rows // heads, columns)


def _check_fold(edit: RemoveDirections, fold: Fitted, matrix: Matrix, heads: int) -> None:
    arrays = _arrays(edit, fold)
    rows = matrix.shape[0] if matrix.site.kind == "o" else matrix.shape[0] // heads
    wanted = {"mean": (matrix.shape[1],), "u": (heads, rows, num_directions(matrix, heads))}
    if "mean" not in arrays:
        raise PlanError(f"{edit}: its fitted tensors hold no mean input, so there is nothing to fold.")
    for name, array in arrays.items():
        if array.shape != wanted.get(name):
            raise PlanError(
                f"{edit}: fitted tensor {name} is {array.shape}, where it should be {wanted.get(name)}."
            )


def droppable(site: Site, anatomy: Anatomy) -> bool:
    """Return True for a block, attention or feed-forward network that the model has and that can be dropped.

    In a model that was cut before it may be gone already, or store its output in two factors, in which no column can be
    zeroed.
    """
    if not site.part:
        return keeps_blocks({anatomy.number(site)}, anatomy)
    return _has(anatomy, site) and site.beside(OUTPUTS[site.part]) in anatomy.matrices


OUTPUTS = {"attn": "o", "cross": "cross.o", "mlp": "down"}  # the matrix that a part's output comes from


def check_sites(sites: Sequence[Site], anatomy: Anatomy) -> None:
    """Raise `UnknownName` for a site that the model does not have, `PlanError` where a head would be dropped twice."""
    for site in sites:
        if site.part == "mlp" and anatomy.details.experts and site.unit != "e":
            raise UnknownName(
                f"{site}: a network of {anatomy.architecture} is a mixture of experts, of which whole experts go, such "
                f"as b{site.block}.mlp.e0."
            )
        anatomy.check_attention(site)
        if not anatomy.has_block(site) or (site.part and not _has(anatomy, site)):
            raise UnknownName(f"this model has no {site}: it has {_sizes(anatomy, site)}, counted from 0.")
    _check_experts(sites, anatomy)
    groups = {site for site in sites if site.unit == "g"}
    for site in sites:
        if site.unit == "h" and group_of(site, anatomy) in groups:
            raise PlanError(
                f"{site} gone, but its KV group {group_of(site, anatomy)} goes whole. Keep one of them."
            )


def _check_experts(sites: Iterable[Site], anatomy: Anatomy) -> None:
    """Raise `PlanError` where experts cannot go, or fewer would be left than a router needs."""
    gone = Counter(anatomy.number(site) for site in sites if site.unit == "e")
    for block, count in gone.items():
        most = droppable_experts(anatomy, block)
        if count > most:
            why = f"its router needs {anatomy.widths[block].num_experts - most} to choose from. Keep as many"
            if anatomy.routing is not None and anatomy.routing.groups > 1:
                why = f"its router looks at {anatomy.routing.groups} groups of equally many. Keep all"
            raise PlanError(f"b{block}.mlp: {count} of its experts are to go, and at most {most} can: {why}.")


def keeps_blocks(gone: Set[int], anatomy: Anatomy) -> bool:
    """Return True where a block is left, and of a hybrid one of each kind."""
    return all(kind - gone for kind in anatomy.kept_from)


def keeps_enough_experts(sites: Iterable[Site], anatomy: Anatomy) -> bool:
    """Return True where every router has as many experts left as it needs."""
    gone = Counter(anatomy.number(site) for site in sites if site.unit == "e")
    return all(count <= droppable_experts(anatomy, block) for block, count in gone.items())


def droppable_experts(anatomy: Anatomy, block: int) -> int:
    """Return how many experts of a block can go: all but those that a router needs to choose from."""
    routing, mixture = anatomy.routing, anatomy.details.experts
    if routing is None or mixture is None or routing.groups > 1:
        return 0
    return max(0, anatomy.widths[block].num_experts - max(routing.chosen, mixture.fewest))


def _has(anatomy: Anatomy, site: Site) -> bool:
    widths = anatomy.widths[anatomy.number(site)]
    heads, groups = anatomy.heads(site)
    counts = {"h": heads, "g": groups, "n": widths.d_ff, "e": widths.num_experts}
    count = counts.get(site.unit, widths.d_ff if site.part == "mlp" else heads)
    return site.index < count


def _sizes(anatomy: Anatomy, site: Site) -> str:
    if not anatomy.has_block(site) or not site.unit:
        return anatomy.blocks_in_words
    has, (heads, groups) = anatomy.widths[anatomy.number(site)], anatomy.heads(site)
    words = {
        "h": f"{heads} heads",
        "g": f"{groups} KV groups",
        "n": f"{has.d_ff} neurons",
        "e": f"{has.num_experts} experts",
    }
    return f"{words[site.unit]} there"


def group_of(head: Site, anatomy: Anatomy) -> Site:
    """Return the KV group of a query head."""
    heads, groups = anatomy.heads(head)
    return head.beside(head.part, "g", head.index // (heads // groups))


def _dropped(sites: Sequence[Site], anatomy: Anatomy) -> Iterator[Operation]:
    """Yield the operations that make the sites contribute nothing."""
    for whole, listed in groupby(sites, key=lambda site: site.beside(site.part)):
        block, part = anatomy.number(whole), whole.part
        if not part:
            yield SkipBlock(anatomy.blocks[block])
            continue
        mixture = anatomy.details.experts
        if part == "mlp" and mixture is not None:
            path, count = f"{anatomy.blocks[block]}.{mixture.network}", anatomy.widths[block].num_experts
            yield DropExperts(path, mixture, count, tuple(site.index for site in listed))
            continue
        matrix = anatomy.matrix(whole.beside(OUTPUTS[part]))
        units = [site for site in listed if site.unit]
        if units:
            yield ZeroColumns(matrix, tuple(column for site in units for column in columns_of(site, anatomy)))
            continue
        yield ZeroColumns(matrix, None)
        if matrix.bias is not None:
            yield ZeroBias(matrix.bias)


def columns_of(site: Site, anatomy: Anatomy) -> range:
    """Return the input columns of a head, group or neuron in its block's `o` or `down`."""
    size = 1
    if site.unit != "n":
        heads, groups = anatomy.heads(site)
        size = anatomy.widths[anatomy.number(site)].d_head * (heads // groups if site.unit == "g" else 1)
    return range(site.index * size, (site.index + 1) * size)
