"""Terms of a loss that look at hidden states; of healing, and of training for linearity.

Healing compares the hidden states of the original at matching depths, and its probabilities: both models run on the
same batch, and padding takes no part. `LinearityRegulariser` pulls the hidden states before and after each block
together; it takes two lines in any training loop: one makes it of the model, one adds its `loss()`. Knows no task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, Trainer

from secateur.core.plan import Plan
from secateur.core.site import Site
from secateur.errors import TrainingError, UnknownName, nearest
from secateur.hf.anatomy import Anatomy, anatomy
from secateur.hf.calls import entering, leaving
from secateur.hf.load import Loaded
from secateur.training.distributed import mean_scale
from secateur.training.options import REGULARISERS


@dataclass(frozen=True)
class DepthPair:
    """A place in the cut model and the block of the original after which the hidden states should be equal.

    Args:
        path: The module of the cut model whose output is compared.
        original: The block of the original whose output it should equal.
        replacements: Module paths whose parameters replace removed blocks here: a linear map, a folded down projection,
            or the whole block before a drop. Empty where no block was removed, and where nothing replaces the first
            blocks.
    """

    path: str
    original: int
    replacements: tuple[str, ...] = ()


def depth_pairs(plan: Plan, teacher: Anatomy, cut: Anatomy) -> list[DepthPair]:
    """Return every depth that both models have, from the embeddings up.

    Raises: `TrainingError` where carrying out the plan does not leave as many blocks as `cut` has.
    """
    left = teacher.num_blocks - len(plan.blocks_gone)
    if left != cut.num_blocks:
        raise TrainingError(
            f"plan.json leaves {left} blocks, and the model beside it has {cut.num_blocks}: they are not of one cut. "
            "Give a folder as secateur prune or apply wrote it."
        )
    return list(_depth_pairs(plan, teacher, cut))


def _depth_pairs(plan: Plan, teacher: Anatomy, cut: Anatomy) -> Iterator[DepthPair]:
    left = [block for block in range(teacher.num_blocks) if Site(block) not in plan.blocks_gone]
    folded = {edit.folded_into.block for edit in plan.linearized if edit.folded_into is not None}
    maps = {edit.blocks[-1] for edit in plan.linearized if edit.form == "linear"}
    ends = [*(block - 1 for block in left), teacher.num_blocks - 1]
    if left[0] and any(last < left[0] for last in maps):
        yield _after_map(cut.blocks[0], left[0] - 1)
    for number, block in enumerate(left):
        end = ends[number + 1]  # the last block of the original before the next one that is left
        path = cut.blocks[number]
        following = cut.blocks[number + 1] if number + 1 < len(left) else cut.final_norm
        if end == block:
            yield DepthPair(path, block)
        elif any(block < last <= end for last in maps) and following is not None:
            yield DepthPair(path, block)
            yield _after_map(following, end)
        else:
            down = f"{path}.{cut.details.slots['down'].module}"
            yield DepthPair(path, end, (down if block in folded else path,))


def _after_map(path: str, original: int) -> DepthPair:
    """Return the pair after a linear map, which is kept in the block that follows it, at `path`."""
    return DepthPair(f"{path}.entry", original, (f"{path}.entry",))


@dataclass(frozen=True)
class Distillation:
    """The objective `hidden` · Σ relative errors of hidden states + τ² KL(teacher ‖ student).

    The relative error at a depth is Σ ‖student − teacher‖² / Σ ‖teacher‖² over all tokens of the batch, so that every
    depth counts alike. With several processes each has its part of the batch, and the mean of their values is the
    value of the whole batch.

    Args:
        teacher: The original.
        depths: Where hidden states are compared.
        hidden: Weight of their error, summed over depths.
        temperature: τ; None: probabilities are not compared.

    Source: Hinton et al. 2015 (arXiv 1503.02531) for τ², which keeps the gradient's size independent of τ.
    """

    teacher: Loaded
    depths: Sequence[DepthPair]
    hidden: float = 1.0
    temperature: float | None = None

    def __call__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Return the objective for one batch, as `collate` makes it; leaves `model` in evaluation mode."""
        model.eval()  # without dropout: the target has none
        input_ids, real = inputs["input_ids"], inputs["real"]
        blocks = self.teacher.anatomy.blocks
        with (
            torch.no_grad(),
            recorded_outputs(self.teacher.model, [blocks[d.original] for d in self.depths]) as of_teacher,
        ):
            target = self.teacher.model(input_ids=input_ids, use_cache=False).logits
        with recorded_outputs(_unwrapped(model), [d.path for d in self.depths]) as of_student:
            logits = model(input_ids=input_ids, use_cache=False).logits
        errors = [
            relative_error(of_student[d.path], of_teacher[blocks[d.original]], real) for d in self.depths
        ]
        loss = self.hidden * torch.stack(errors).sum() if errors else logits.new_zeros(())
        if self.temperature is not None:
            loss = loss + kl_divergence(logits[real], target[real], self.temperature)
        return loss


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside the wrapper that several processes train it in."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def recorded_outputs(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record what the modules at `paths` return while the model runs.

    Yields: Outputs by path; of a tuple the first entry.
    """
    outputs: dict[str, Tensor] = {}

    def record(path: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            outputs[path] = leaving(output)

        return hook

    with ExitStack() as stack:
        for path in dict.fromkeys(paths):
            stack.callback(model.get_submodule(path).register_forward_hook(record(path)).remove)
        yield outputs


def relative_error(
    student: Float[Tensor, "rows length d"],
    teacher: Float[Tensor, "rows length d"],
    real: Bool[Tensor, "rows length"],
) -> Float[Tensor, ""]:
    """Return Σ ‖student − teacher‖² / Σ ‖teacher‖² over the real tokens, in float32 or wider, times `mean_scale`.

    0 is perfect, 1 as bad as zeros.
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student[real].to(wide), teacher[real].to(wide)
    size = teacher.square().sum()
    return (student - teacher).square().sum() / size * mean_scale(size)


def kl_divergence(
    student: Float[Tensor, "tokens vocabulary"],
    teacher: Float[Tensor, "tokens vocabulary"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Return τ² times the mean of KL(softmax(teacher/τ) ‖ softmax(student/τ)), nats per token, times `mean_scale`.

    Args:
        student: Logits.
        teacher: Logits.
        temperature: τ.
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    student = (student.to(wide) / temperature).log_softmax(-1)
    teacher = (teacher.to(wide) / temperature).log_softmax(-1)
    divergence = (teacher.exp() * (teacher - student)).sum(-1).mean()
    return temperature**2 * divergence * mean_scale(len(student))


# ----------------------------------------------------------------------------------------------------- linearity


Stream = Float[Tensor, "rows length d_model"]
TINY = 1e-8  # a shorter state has no direction; torch's own bound


class _CosineDistances(torch.autograd.Function):
    """Compute Σᵢ 1 − cos(hᵢ₋₁, hᵢ) of each token, with a backward pass of its own.

    The one by autograd would write every product to memory, and cost several times as much.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, *stream: Stream) -> Float[Tensor, "rows length 1"]:
        norms = [torch.linalg.vector_norm(h, dim=-1, keepdim=True).clamp_min(TINY) for h in stream]
        pairs = zip(stream[:-1], stream[1:], norms[:-1], norms[1:], strict=True)
        cosines = [
            (a * b).sum(-1, keepdim=True) / (length_a * length_b) for a, b, length_a, length_b in pairs
        ]
        ctx.save_for_backward(*stream, *norms, *cosines)
        return len(cosines) - torch.stack(cosines).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, upstream: Float[Tensor, "rows length 1"]) -> tuple[Stream, ...]:
        count = (len(ctx.saved_tensors) + 1) // 3
        stream, norms = ctx.saved_tensors[:count], ctx.saved_tensors[count : 2 * count]
        cosines = ctx.saved_tensors[2 * count :]
        gradients = []
        for i, (state, norm) in enumerate(zip(stream, norms, strict=True)):
            neighbors = [j for j in (i - 1, i + 1) if 0 <= j < count]
            along = sum(cosines[max(i, j) - 1] for j in neighbors)
            gradient = state * (upstream * along / norm.square())
            for j in neighbors:
                gradient.addcmul_(stream[j], upstream / (norm * norms[j]), value=-1)
            gradients.append(gradient)
        return tuple(gradients)


def cosine_distances(stream: Sequence[Stream]) -> Float[Tensor, "rows length"]:
    """Return Σᵢ 1 − cos(hᵢ₋₁, hᵢ) of each token's states."""
    distances: Tensor = _CosineDistances.apply(*stream)  # type: ignore[no-untyped-call]
    return distances.squeeze(-1)


def squared_distances(stream: Sequence[Stream]) -> Float[Tensor, "rows length"]:
    """Return Σᵢ ‖hᵢ − hᵢ₋₁‖² of each token's states: summed over the d_model channels, not averaged."""
    steps = [after - before for before, after in pairwise(stream)]
    return torch.stack([step.square().sum(-1) for step in steps]).sum(0)


KINDS: dict[str, Callable[[Sequence[Stream]], Tensor]] = {
    "cosine": cosine_distances,
    "mse": squared_distances,
}
assert tuple(KINDS) == REGULARISERS, "the options of `train` name exactly these"


class LinearityRegulariser:
    """Measure how far blocks move the residual stream: weight · meanₜ Σᵢ distance(hᵢ₋₁, hᵢ), without a unit.

    h₀ enters the first block of `model`, hᵢ leaves block i, before the final norm; the mean is over all tokens of the
    batch that are not padding. Computed in float32 or wider. Make it of the model itself, before it is compiled or
    wrapped:

        regulariser = LinearityRegulariser(model, weight=0.5)
        ...
        loss = loss + regulariser.loss()

    Args:
        model: The model that is trained; it gets hooks, which `remove` takes off.
        weight: Weight of the term in the loss.
        kind: `cosine`, 1 − cos(hᵢ₋₁, hᵢ), or `mse`, ‖hᵢ − hᵢ₋₁‖².

    Raises: `UnknownName` for another kind, `TrainingError` for a weight below 0, `ModelError` as `anatomy` does.

    Source: Razzhigaev et al. 2024 (arXiv 2405.12250), section 5; the default weight is theirs.
    """

    def __init__(self, model: PreTrainedModel, weight: float = 0.5, kind: str = "cosine") -> None:
        if kind not in KINDS:
            raise UnknownName(f"unknown regulariser {kind!r}.{nearest(kind, KINDS)}")
        if not (weight >= 0 and math.isfinite(weight)):
            raise TrainingError(f"the regulariser's weight is {weight}: give 0 or more, such as 0.5.")
        blocks = anatomy(model).blocks
        self.weight, self.kind = weight, kind
        self._decoder = model.get_submodule(blocks[0].rsplit(".", 2)[0])
        self._stream: list[Tensor | None] = [None] * (len(blocks) + 1)
        self._real: Tensor | None = None
        self._recording = False
        self._hooks = [
            self._decoder.register_forward_pre_hook(self._begin, with_kwargs=True),
            self._decoder.register_forward_hook(self._end),
            model.get_submodule(blocks[0]).register_forward_pre_hook(self._record_input, with_kwargs=True),
        ]
        for number, path in enumerate(blocks, 1):
            self._hooks.append(model.get_submodule(path).register_forward_hook(self._record_output(number)))

    def loss(self, real: Bool[Tensor, "rows length"] | None = None) -> Float[Tensor, ""]:
        """Return the term for the last forward pass in training mode; 0 in evaluation, where losses stay comparable.

        Args:
            real: True where there is a token. None: as the two-dimensional attention mask says that the model was
                given; without such a mask, everywhere.

        Raises: `TrainingError` where no forward pass went before, and for a second call after one pass.
        """
        if not self._decoder.training:
            return torch.zeros(())
        stream = [state for state in self._stream if state is not None]
        if len(stream) < len(self._stream):
            raise TrainingError(
                f"the regulariser saw {len(stream)} of {len(self._stream)} streams: call loss() once after each "
                "forward pass of the model that it was made of, on one device a process."
            )
        real = self._real if real is None else real
        self._stream, self._real = [None] * len(stream), None
        wide = [state.to(torch.promote_types(state.dtype, torch.float32)) for state in stream]
        return self.weight * _mean(KINDS[self.kind](wide), real)

    def remove(self) -> None:
        """Take the hooks off, so that the model is as it was."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Record until the decoder's forward pass ends: blocks that a backward pass runs again are not recorded."""
        mask = kwargs.get("attention_mask")
        self._real = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self._stream = [None] * len(self._stream)
        self._recording = module.training

    def _end(self, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        self._recording = False

    def _record_input(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if self._recording:
            self._stream[0] = entering(args, kwargs)

    def _record_output(self, number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            if self._recording:
                self._stream[number] = leaving(output)

        return hook


def _mean(values: Float[Tensor, "rows length"], real: Tensor | None) -> Float[Tensor, ""]:
    if real is None:
        return values.mean()
    kept = real.to(values)
    return (values * kept).sum() / kept.sum()


class RegularisedTrainer(Trainer):
    """A Hugging Face Trainer that adds `regulariser.loss()` to its loss in training.

    With gradient accumulation the term is the mean over the batches of a step: the Trainer does not divide the loss of
    models that count their tokens themselves, so the term is divided here.
    """

    def __init__(self, *args: Any, regulariser: LinearityRegulariser, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.regulariser = regulariser

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, object]:
        """Return the Trainer's own loss plus the term."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss + self.regulariser.loss() / self._undivided(num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _undivided(self, num_items_in_batch: Tensor | int | None) -> int:
        """Return the number of batches that the Trainer adds up without dividing."""
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        assert self.model is not None
        undivided = self.model.training and (counted or self.compute_loss_func is not None)
        return self.current_gradient_accumulation_steps if undivided else 1
