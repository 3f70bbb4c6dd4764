"""Objectives of healing: the hidden states of the original at matching depths, and its probabilities.

Both models run on the same batch; padding takes no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from secateur.core.plan import Plan
from secateur.errors import TrainingError
from secateur.hf.anatomy import Anatomy
from secateur.hf.calls import leaving
from secateur.hf.load import Loaded
from secateur.training.distributed import mean_scale


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
    left = [block for block in range(teacher.num_blocks) if block not in plan.blocks_gone]
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
