"""What a cut model is healed towards: its original's streams, and its original's probabilities. Two objectives.

Both models run on the same batch; padding has no part in either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from secateur.hf.load import Loaded
from secateur.training.depths import Depth
from secateur.training.distributed import share


@dataclass(frozen=True)
class Distillation:
    """Σ over `depths` of the relative squared error of the stream, times `hidden`; and, where `temperature` is not
    None, τ² KL(teacher ‖ student) of the probabilities at that temperature, nats a token.

    The relative error is Σ ‖student − teacher‖² / Σ ‖teacher‖² over all tokens of the batch, so that every depth counts
    alike. Of several processes each has its part of the batch, and the mean of what they give is that of all of it.
    Source of τ²: Hinton et al. 2015 (arXiv 1503.02531), so that the gradient's size does not depend on τ.
    """

    teacher: Loaded
    depths: Sequence[Depth]
    hidden: float = 1.0
    temperature: float | None = None

    def __call__(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        model.eval()  # without dropout: the target has none
        real = inputs["real"]
        blocks = self.teacher.anatomy.blocks
        with torch.no_grad(), caught(self.teacher.model, [blocks[d.original] for d in self.depths]) as wanted:
            target = self.teacher.model(input_ids=inputs["input_ids"], use_cache=False).logits
        with caught(alone(model), [d.path for d in self.depths]) as found:
            logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
        errors = [relative_error(found[d.path], wanted[blocks[d.original]], real) for d in self.depths]
        loss = self.hidden * torch.stack(errors).sum() if errors else logits.new_zeros(())
        if self.temperature is not None:
            loss = loss + divergence(logits[real], target[real], self.temperature)
        return loss


def alone(model: nn.Module) -> nn.Module:
    """The model itself, where several processes train copies of it together."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def caught(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules at these paths give while the model runs, by path."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            found[path] = output[0] if isinstance(output, tuple) else output

        return hook

    with ExitStack() as stack:
        for path in dict.fromkeys(paths):
            stack.callback(model.get_submodule(path).register_forward_hook(keep(path)).remove)
        yield found


def relative_error(
    found: Float[Tensor, "rows length d"],
    wanted: Float[Tensor, "rows length d"],
    real: Bool[Tensor, "rows length"],
) -> Float[Tensor, ""]:
    """Σ ‖found − wanted‖² / Σ ‖wanted‖² over the real tokens, in float32 or wider; 0 is perfect, 1 as bad as zeros.

    Of several processes weighted, as `share` does."""
    wide = torch.promote_types(found.dtype, torch.float32)
    found, wanted = found[real].to(wide), wanted[real].to(wide)
    size = wanted.square().sum()
    return (found - wanted).square().sum() / size * share(size)


def divergence(
    found: Float[Tensor, "tokens vocabulary"], wanted: Float[Tensor, "tokens vocabulary"], temperature: float
) -> Float[Tensor, ""]:
    """τ² times the mean of KL(softmax(wanted/τ) ‖ softmax(found/τ)), nats a token; weighted as `share` does."""
    wide = torch.promote_types(found.dtype, torch.float32)
    found = (found.to(wide) / temperature).log_softmax(-1)
    wanted = (wanted.to(wide) / temperature).log_softmax(-1)
    return temperature**2 * (wanted.exp() * (wanted - found)).sum(-1).mean() * share(len(found))
