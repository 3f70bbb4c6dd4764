"""Read the residual stream where it enters and leaves blocks, by hooks while the whole model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.core.progress import Progress
from secateur.core.site import Site
from secateur.evaluation.batching import Batch, Packing
from secateur.hf.calls import entering, leaving, logits_of
from secateur.hf.load import Loaded
from secateur.tasks.encode import Encoded

StreamPoint = tuple[
    str, int
]  # "enters" or "leaves" a block, or the output of its feed-forward network: "gives"
Streams = dict[StreamPoint, Float[Tensor, "rows length d_model"]]


def real_tokens(batch: Batch, answers: Mapping[int, Encoded]) -> Bool[Tensor, "rows length"]:
    """Return a mask that is True where there is a token and no padding; `answers` are one continuation each."""
    lengths = torch.tensor([len(answers[e].read(0)) for e in batch.row_example.tolist()])
    return torch.arange(batch.tokens.shape[1]) < lengths[:, None]


@torch.inference_mode()
def run_hooked(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    hooks: Callable[[Bool[Tensor, "rows length"]], Iterable[RemovableHandle]],
    *,
    packing: Packing,
    progress: Progress,
) -> None:
    """Run the model on prompts and gold answers, a batch at a time, with hooks that know which positions are tokens.

    Args:
        hooks: Called before each batch with its `real_tokens`; attaches hooks and returns their handles, which are
            removed after it.
    """
    answers = {e: encoded[e].gold_alone for e in examples}
    batches = packing.pack(answers, examples)
    for number, batch in enumerate(batches):
        with ExitStack() as stack:
            for handle in hooks(real_tokens(batch, answers)):
                stack.callback(handle.remove)
            logits_of(loaded.model, batch.inputs(loaded.device))
        progress("importance", number + 1, len(batches))


@torch.inference_mode()
def read_streams(loaded: Loaded, batch: Batch, points: Iterable[StreamPoint]) -> Streams:
    """Return the activations at these points when the model, as it is now, reads `batch`."""
    caught: dict[StreamPoint, Tensor] = {}

    def before(point: StreamPoint) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            caught[point] = entering(args, kwargs).clone()

        return hook

    def after(point: StreamPoint) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            # a copy: some families add to the output of a module in place
            caught[point] = leaving(output).clone()

        return hook

    anatomy = loaded.anatomy
    with ExitStack() as stack:
        for kind, block in points:
            path = anatomy.module(Site(block, "down")) if kind == "gives" else anatomy.blocks[block]
            module = loaded.model.get_submodule(path)
            if kind == "enters":
                handle = module.register_forward_pre_hook(before((kind, block)), with_kwargs=True)
            else:
                handle = module.register_forward_hook(after((kind, block)))
            stack.callback(handle.remove)
        logits_of(loaded.model, batch.inputs(loaded.device))
    shape = batch.tokens.shape  # blocks may lie on several devices
    return {point: value.to(loaded.device).reshape(*shape, -1) for point, value in caught.items()}
