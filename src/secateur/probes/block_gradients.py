"""The activations that enter each block, and the gradient of each example's margin where they leave it.

With both, whatever is done inside a block can be tried on that block alone: no other block runs again.
`block_effects` prices edits of any kind so: the change of the block's output is exact, what the rest of the model makes
of it is taken to first order, from the gradient of each example's margin. `first_order_effects` takes the rest of the
block to first order too: then no block runs again for any plan. `effects_both_ways` does both by the same passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, product
from operator import itemgetter

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from secateur.core.plan import Drop, Edit, Plan, Truncate, blocks_of
from secateur.core.progress import Progress, silent
from secateur.evaluation.batching import Batch, Packing, with_room
from secateur.evaluation.forward import Forward
from secateur.evaluation.workers import CACHE_BYTES
from secateur.hf.anatomy import Anatomy
from secateur.hf.load import Loaded
from secateur.hf.matrices import Matrix
from secateur.hf.weights import differentiable, reread
from secateur.probes.answer_margin import AnswerMargin, Margins, PerExample
from secateur.surgery.mask import masked
from secateur.surgery.operations import OUTPUTS, columns_of, resolve
from secateur.surgery.spectra import Spectra

Stream = Float[Tensor, "rows length d_model"]


@dataclass(frozen=True, eq=False)
class BlockGradients:
    """Activations that enter some blocks, and margins' gradients where they leave them, for some examples.

    Attributes:
        batches: The examples as they run.
        examples: For each batch, the place among the examples of each row's example.
        entering: By block, the activations that enter it, for each batch.
        gradient: By block, the gradient of the summed margins with respect to those that leave it, for each batch: as
            they are a sum over examples, each row holds that of its own example.
        margins: Of the examples, under the model that was read.
    """

    model: nn.Module
    forward: Forward
    batches: Sequence[Batch]
    examples: Sequence[Int[Tensor, " rows"]]
    entering: Mapping[int, list[Stream]]
    gradient: Mapping[int, list[Stream]]
    margins: Margins

    @property
    def blocks(self) -> tuple[int, ...]:
        """Return the numbers of the blocks."""
        return tuple(self.entering)

    def leaving(self, block: int, batch: int) -> Stream:
        """Return what the block, as it is now, makes of the activations that enter it; no other block runs."""
        return self.forward.alone(block, self.batches[batch], self.entering[block][batch])

    def inside(self, block: int, batch: int, modules: Iterable[str]) -> dict[str, tuple[Stream, Stream]]:
        """Return by path the inputs of some linear layers of a block, and the margin's gradients at their outputs."""
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}

        def record(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                if not output.requires_grad:
                    output.requires_grad_()  # of what an encoder gave, where the graph does not reach
                inputs[path], outputs[path] = args[0].detach(), output

            return hook

        rows, gradient = self.batches[batch], self.gradient[block][batch]
        entering = self.entering[block][batch].detach().requires_grad_()
        with torch.enable_grad(), reread(self.model), ExitStack() as stack:
            for path in modules:
                handle = self.model.get_submodule(path).register_forward_hook(record(path))
                stack.callback(handle.remove)
            leaving = self.forward.alone(block, rows, entering)
            gradients = torch.autograd.grad(leaving, list(outputs.values()), gradient)

        def by_row(values: Tensor) -> Stream:
            return values.reshape(len(rows.tokens), -1, values.shape[-1])

        return {
            path: (by_row(inputs[path]), by_row(found))
            for path, found in zip(outputs, gradients, strict=True)
        }

    def of_parameters(self, block: int, batch: int, names: Sequence[str]) -> Iterator[list[Tensor]]:
        """Yield for each row, run by itself, the margin's gradients with respect to some parameters of a block."""
        entering, gradient = self.entering[block][batch], self.gradient[block][batch]
        with differentiable(self.model, names) as parameters:
            for number in range(len(entering)):
                row = slice(number, number + 1)
                with torch.enable_grad():
                    leaving = self.forward.alone(block, self.batches[batch].row(number), entering[row])
                yield list(torch.autograd.grad(leaving, parameters, gradient[row]))


def read_blocks(
    answer_margin: AnswerMargin, examples: Sequence[int], blocks: Iterable[int], packing: Packing, room: int
) -> Iterator[BlockGradients]:
    """Run the model, as it is now, forward and backward over the examples, and yield what its blocks see.

    Highest blocks first, as many at a time as there is room for.

    Args:
        blocks: Numbers of the blocks, each once.
        room: Bytes for activations and gradients.

    Cost: for as many blocks as there is room for, one forward pass, and a backward pass without parameter gradients
        that ends at the lowest of them.
    """
    loaded = answer_margin.loaded
    batches = packing.pack(answer_margin.encoded, examples)
    places = {example: place for place, example in enumerate(examples)}
    rows = [torch.tensor([places[e] for e in batch.row_example.tolist()]) for batch in batches]
    elsewhere, forward = answer_margin.scores_of_split(batches), Forward(loaded.model, loaded.anatomy)
    margins = answer_margin.unread(examples)
    width = loaded.anatomy.d_model * loaded.model.dtype.itemsize
    at_once = max(1, room // (2 * width * sum(batch.num_tokens for batch in batches)))
    left = sorted(blocks, reverse=True)
    while left:
        group, left = left[:at_once], left[at_once:]
        entering: dict[int, list[Stream]] = {block: [] for block in group}
        gradient: dict[int, list[Stream]] = {block: [] for block in group}
        for batch in batches:
            leaving: dict[int, Tensor] = {}
            with torch.enable_grad(), reread(loaded.model), forward.from_blocks(group, entering, leaving):
                found = answer_margin.of_batch(batch, elsewhere)
                total = torch.stack(list(found.values())).sum()
                gradients = torch.autograd.grad(total, [leaving[block] for block in group])
            for block, at_output in zip(group, gradients, strict=True):
                gradient[block].append(at_output)
            for example, odds in found.items():
                margins.odds[places[example]] = float(odds.detach())
        yield BlockGradients(loaded.model, forward, batches, rows, entering, gradient, margins)


# --------------------------------------------------------------------------------------------------------- edits


@dataclass(frozen=True, eq=False)
class PredictedEffects:
    """Predicted changes of each example's margin under some plans, nats; with the margins of the model itself."""

    margins: Margins
    changes: Mapping[Plan, PerExample]

    def loss(self, plan: Plan) -> float:
        """Return the expected change of the mean loss, nats: negative where cutting helps."""
        return self.margins.expected_loss_change(self.changes[plan])

    def first_order(self, plan: Plan) -> float:
        """Return the change of the mean loss to first order, nats."""
        return float(-(self._likelihood(plan) / self.margins.tokens).mean())

    def second_order(self, plan: Plan) -> float:
        """Return the first order with ½ D² / tokens, D the change of an answer's log-likelihood, nats.

        The square is Fisher's approximation of the curvature, as in `Margins.expected_loss_change`.
        """
        likelihood = self._likelihood(plan)
        return float(((0.5 * likelihood**2 - likelihood) / self.margins.tokens).mean())

    def _likelihood(self, plan: Plan) -> PerExample:
        """Return the change of each answer's log-likelihood to first order: d log P = (1 − P) d odds."""
        change: PerExample = self.changes[plan] * np.exp(-np.logaddexp(0, self.margins.odds))
        return change


def block_effects(
    answer_margin: AnswerMargin,
    examples: Sequence[int],
    plans: Iterable[Plan],
    *,
    spectra: Spectra,
    packing: Packing,
    under: Plan | None = None,
    room: int = CACHE_BYTES,
    progress: Progress = silent,
    stage: str = "screen",
) -> PredictedEffects:
    """Return the predicted change of each example's margin under each plan.

    A plan that changes several blocks has the sum of what each of them would do alone.

    Args:
        plans: No edit of them may change several blocks at once.
        under: A plan that is carried out beside each of them, and whose margins they change; none of them may write
            what it writes.
        spectra: Decompositions of the model's matrices.
        room: Bytes of activations and gradients between blocks that may be kept.

    Cost: one forward and one backward pass over the examples for as many blocks as there is room for, and one pass
        through a block for each different set of edits in it.
    """
    loaded = answer_margin.loaded
    carried_out = () if under is None else resolve(under, loaded.anatomy, loaded.fingerprint)
    with masked(loaded.model, carried_out, spectra):
        (found,) = _read(
            answer_margin,
            examples,
            [_InBlock(list(plans), loaded.anatomy, progress, stage)],
            spectra,
            packing,
            room,
        )
    return found


class _InBlock:
    """Add up what the pieces of plans change in each block, exactly."""

    def __init__(self, plans: Sequence[Plan], anatomy: Anatomy, progress: Progress, stage: str) -> None:
        self._parts = {plan: _by_block(plan, anatomy) for plan in plans}
        pieces: dict[int, set[Plan]] = {}
        for by_block in self._parts.values():
            for block, piece in by_block.items():
                pieces.setdefault(block, set()).add(piece)
        self.blocks = {block: sorted(some, key=str) for block, some in pieces.items()}
        self._progress, self._stage, self._effects = progress, stage, dict[Plan, PerExample]()

    def begin(self) -> None:
        """Forget what was added."""
        self._effects.clear()

    def add(self, answer_margin: AnswerMargin, read: BlockGradients, block: int, spectra: Spectra) -> None:
        """Try every piece of one block on the examples that were read."""
        before = [read.leaving(block, batch) for batch in range(len(read.batches))]
        total = sum(map(len, self.blocks.values()))
        for piece in self.blocks[block]:
            self._effects[piece] = _effect(answer_margin, read, block, before, piece, spectra)
            self._progress(self._stage, len(self._effects), total)

    def changes(self, count: int) -> dict[Plan, PerExample]:
        """Return the change of each of `count` examples' margin under each plan."""
        nothing = np.zeros(count)
        return {
            plan: sum((self._effects[piece] for piece in parts.values()), nothing)
            for plan, parts in self._parts.items()
        }


class _ToFirstOrder:
    """Add up what the weights that plans take away add to first order, block by block."""

    def __init__(self, plans: Sequence[Plan], anatomy: Anatomy, progress: Progress, stage: str) -> None:
        self.blocks: dict[int, dict[Matrix, list[tuple[Plan, Edit]]]] = {}
        self._plans = list(dict.fromkeys(plans))
        for plan in self._plans:
            for edit in plan.edits:
                for matrix in _written(edit, anatomy):
                    block = anatomy.number(matrix.site)
                    self.blocks.setdefault(block, {}).setdefault(matrix, []).append((plan, edit))
        self._progress, self._stage, self._done = progress, stage, 0
        self._sums: dict[Plan, Float[Tensor, " examples"]] = {}

    def begin(self) -> None:
        """Forget what was added."""
        self._sums, self._done = {}, 0

    def add(self, answer_margin: AnswerMargin, read: BlockGradients, block: int, spectra: Spectra) -> None:
        """Add what one block's matrices give on the examples that were read."""
        edits, count, loaded = self.blocks[block], len(read.margins.odds), answer_margin.loaded
        for group in spectra.fitting(edits):
            for matrix, rows, parts in _parts(loaded, read, block, group, spectra):
                for plan, own in groupby(edits[matrix], key=itemgetter(0)):
                    sums = self._sums.setdefault(plan, torch.zeros(count, dtype=torch.float64))
                    sums.index_add_(0, rows, parts.without([edit for _, edit in own]))
        self._done += 1
        self._progress(self._stage, self._done, len(self.blocks))

    def changes(self, count: int) -> dict[Plan, PerExample]:
        """Return the change of each of `count` examples' margin under each plan."""
        nothing = np.zeros(count)
        return {plan: self._sums[plan].numpy() if plan in self._sums else nothing for plan in self._plans}


def _read(
    answer_margin: AnswerMargin,
    examples: Sequence[int],
    ways: Sequence[_InBlock | _ToFirstOrder],
    spectra: Spectra,
    packing: Packing,
    room: int,
) -> list[PredictedEffects]:
    """Run the model over the examples, and return the effects that each way finds in what its blocks see."""

    def run(packing: Packing) -> list[PredictedEffects]:
        margins = answer_margin.unread(examples)
        for way in ways:
            way.begin()
        blocks = {block for way in ways for block in way.blocks}
        for read in read_blocks(answer_margin, examples, blocks, packing, room):
            margins = read.margins
            for block, way in product(read.blocks, ways):
                if block in way.blocks:
                    way.add(answer_margin, read, block, spectra)
        return [PredictedEffects(margins, way.changes(len(examples))) for way in ways]

    return with_room(packing, run)


def _by_block(plan: Plan, anatomy: Anatomy) -> Mapping[int, Plan]:
    """Return the plan's edits by the block that they change."""
    found: dict[int, list[Edit]] = {}
    for edit in plan.edits:
        (block,) = blocks_of(edit)
        found.setdefault(anatomy.number(block), []).append(edit)
    return {block: Plan(plan.model, tuple(edits)) for block, edits in found.items()}


@torch.inference_mode()
def _effect(
    answer_margin: AnswerMargin,
    read: BlockGradients,
    block: int,
    before: Sequence[torch.Tensor],
    piece: Plan,
    spectra: Spectra,
) -> PerExample:
    """Return Σ over positions of ⟨change of the block's output, gradient there⟩, for each example."""
    loaded = answer_margin.loaded
    effect = torch.zeros(len(read.margins.odds), dtype=torch.float64)
    with masked(loaded.model, resolve(piece, loaded.anatomy, loaded.fingerprint), spectra):
        for batch, rows in enumerate(read.examples):
            change = (read.leaving(block, batch) - before[batch]) * read.gradient[block][batch]
            effect.index_add_(0, rows, change.flatten(1).sum(dim=1, dtype=torch.float64).cpu())
    return effect.numpy()


# --------------------------------------------------------------------------------------------------------- first order


def first_order_effects(
    answer_margin: AnswerMargin,
    examples: Sequence[int],
    plans: Iterable[Plan],
    *,
    spectra: Spectra,
    packing: Packing,
    room: int = CACHE_BYTES,
    progress: Progress = silent,
    stage: str = "screen",
) -> PredictedEffects:
    """Return the change of each example's margin to first order in the weights that each plan takes away.

    Of a truncated matrix that is −Σ_{i removed} σᵢ uᵢᵀ Gₙ vᵢ, Gₙ the gradient of example n's margin with respect to it.
    Of a head, a KV group or a neuron it is −⟨its part of the output or down projection's output, the gradient there⟩;
    of an attention or a feed-forward network the sum over all that is in it, and its bias; of a block both.

    Args:
        plans: Of truncations and drops alone.
        spectra: Decompositions of the model's matrices.
        room: Bytes of activations and gradients between blocks that may be kept.

    Source: gradient of singular values (Sreeram et al. 2025, arXiv 2510.20800). Differs: of the margin.

    Cost: one decomposition per truncated matrix; one forward and one backward pass without parameter gradients for as
        many blocks as there is room for, and the same again of each block alone, whatever the number of plans.
    """
    (found,) = _read(
        answer_margin,
        examples,
        [_ToFirstOrder(list(plans), answer_margin.loaded.anatomy, progress, stage)],
        spectra,
        packing,
        room,
    )
    return found


def effects_both_ways(
    answer_margin: AnswerMargin,
    examples: Sequence[int],
    plans: Iterable[Plan],
    *,
    spectra: Spectra,
    packing: Packing,
    room: int = CACHE_BYTES,
    progress: Progress = silent,
    stage: str = "screen",
) -> tuple[PredictedEffects, PredictedEffects]:
    """Return what `block_effects` and `first_order_effects` do, by the same passes of the whole model.

    Args:
        plans: Of truncations and drops alone.
        spectra: Decompositions of the model's matrices.
        room: Bytes of activations and gradients between blocks that may be kept.
    """
    plans = list(plans)
    ways: list[_InBlock | _ToFirstOrder] = [
        _InBlock(plans, answer_margin.loaded.anatomy, progress, stage),
        _ToFirstOrder(plans, answer_margin.loaded.anatomy, silent, stage),
    ]
    exact, first = _read(answer_margin, examples, ways, spectra, packing, room)
    return exact, first


def _written(edit: Edit, anatomy: Anatomy) -> list[Matrix]:
    """Return the matrices that hold what an edit takes away: its own, or those that the dropped parts end in."""
    if isinstance(edit, Drop):
        assert edit.site.unit != "e", (
            f"{edit}: other experts take its tokens, which is no matter of first order"
        )
        parts = [edit.site.part] if edit.site.part else list(OUTPUTS)
        sites = [edit.site.beside(OUTPUTS[part]) for part in parts]
        return [anatomy.matrix(site) for site in sites if site in anatomy.matrices]
    assert isinstance(edit, Truncate), f"{edit}: neither a truncation nor a drop"
    return [anatomy.matrix(edit.matrix)]


def _parts(
    loaded: Loaded, read: BlockGradients, block: int, matrices: Sequence[Matrix], spectra: Spectra
) -> Iterator[tuple[Matrix, Int[Tensor, " rows"], _MatrixParts | _ExpertParts]]:
    """Yield for each batch and matrix of a block what its parts add to the margins of the rows' examples; for those of
    experts, which no linear layer holds, for each row."""
    linear = [matrix for matrix in matrices if matrix.expert is None]
    of_experts = [matrix for matrix in matrices if matrix.expert is not None]
    modules = dict.fromkeys(matrix.module for matrix in linear)
    names = list(dict.fromkeys(matrix.weight for matrix in of_experts))
    for batch, rows in enumerate(read.examples):
        inside = read.inside(block, batch, modules) if linear else {}
        for matrix in linear:
            x, g = inside[matrix.module]
            yield matrix, rows, _MatrixParts(loaded, matrix, x, matrix.of_output(g), spectra)
        if not of_experts:
            continue
        for row, gradients in zip(rows, read.of_parameters(block, batch, names), strict=True):
            by_name = dict(zip(names, gradients, strict=True))
            for matrix in of_experts:
                yield matrix, row[None], _ExpertParts(loaded, matrix, by_name[matrix.weight], spectra)


class _MatrixParts:
    """Sum what parts of one matrix add to each row's margin to first order, for one batch.

    Args:
        x: True inputs of the matrix.
        g: Gradients at its outputs.
    """

    def __init__(
        self,
        loaded: Loaded,
        matrix: Matrix,
        x: Float[Tensor, "rows t in"],
        g: Float[Tensor, "rows t out"],
        spectra: Spectra,
    ) -> None:
        self._loaded, self._matrix, self._x, self._g, self._spectra = loaded, matrix, x, g, spectra

    def without(self, edits: Sequence[Edit]) -> Float[Tensor, " rows"]:
        """Return the change of each row's margin where one plan's edits of the matrix are made, float64."""
        first = edits[0]
        if isinstance(first, Truncate):
            return _truncated(self._running, first)
        sites = [edit.site for edit in edits]
        if not all(site.unit for site in sites):
            return -self._whole
        columns = [column for site in sites for column in columns_of(site, self._loaded.anatomy)]
        return -self._columns[:, columns].sum(dim=1)

    @cached_property
    def _running(self) -> Float[Tensor, "rows k_plus_1"]:
        """Return in column r the sum of σᵢ uᵢᵀ Gₙ vᵢ over the first r components i; no Gₙ is formed."""
        spectrum = self._spectra(self._matrix, self._loaded.parameter(self._matrix.weight))
        left = self._g.to(spectrum.u.dtype) @ spectrum.u
        right = self._x.to(spectrum.u.dtype) @ spectrum.vh.T
        return _sums((left * right).sum(dim=1) * spectrum.sigma)

    @cached_property
    def _columns(self) -> Float[Tensor, "rows in"]:
        """Return what each input adds: xᵢ (Wᵀ g)ᵢ, summed over positions."""
        wide = torch.promote_types(self._x.dtype, torch.float32)
        weight = self._matrix.read(self._loaded.parameter(self._matrix.weight)).to(wide)
        return (self._x.to(wide) * (self._g.to(wide) @ weight)).sum(dim=1).double().cpu()

    @cached_property
    def _whole(self) -> Float[Tensor, " rows"]:
        """Return what all inputs add, and the bias."""
        columns = self._columns.sum(dim=1)
        if self._matrix.bias is None:
            return columns
        bias = self._matrix.of_output(self._loaded.parameter(self._matrix.bias)).double()
        return columns + (self._g.double() @ bias).sum(dim=1).cpu()


class _ExpertParts:
    """Sum what parts of an expert's matrix add to one row's margin to first order.

    Args:
        gradient: The margin's gradient with respect to the parameter that holds the matrices of all experts.
    """

    def __init__(self, loaded: Loaded, matrix: Matrix, gradient: Tensor, spectra: Spectra) -> None:
        self._loaded, self._matrix, self._spectra = loaded, matrix, spectra
        self._gradient = matrix.read(gradient)

    def without(self, edits: Sequence[Edit]) -> Float[Tensor, " 1"]:
        """Return the change of the row's margin where one truncation of the matrix is made, float64."""
        (only,) = edits
        assert isinstance(only, Truncate), f"{only}: of an expert only truncations are of first order"
        return _truncated(self._running, only)

    @cached_property
    def _running(self) -> Float[Tensor, "1 k_plus_1"]:
        """Return in column r the sum of σᵢ uᵢᵀ G vᵢ over the first r components i."""
        spectrum = self._spectra(self._matrix, self._loaded.parameter(self._matrix.weight))
        along = (spectrum.u * (self._gradient.to(spectrum.u.dtype) @ spectrum.vh.T)).sum(dim=0)
        return _sums((along * spectrum.sigma)[None])


def _sums(along: Float[Tensor, "rows k"]) -> Float[Tensor, "rows k_plus_1"]:
    """Return the sums over the first r components in column r, float64."""
    along = along.double().cpu()
    return torch.cat([along.new_zeros(len(along), 1), along.cumsum(dim=1)], dim=1)


def _truncated(running: Float[Tensor, "rows k_plus_1"], edit: Truncate) -> Float[Tensor, " rows"]:
    """Return the change of each row's margin with a truncation, from the sums over the first components."""
    whole, full_rank = running[:, -1], running.shape[1] - 1
    kept = running[:, edit.rank] if edit.side == "top" else whole - running[:, full_rank - edit.rank]
    return kept - whole
