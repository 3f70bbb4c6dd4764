"""The residual stream where it enters and leaves blocks, caught by hooks while the whole model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from secateur.core.site import Site
from secateur.evaluation.batching import Batch
from secateur.hf.load import Loaded
from secateur.tasks.encode import Encoded

Place = tuple[str, int]  # "enters" or "leaves" a block, or what its feed-forward network "gives"
Streams = dict[Place, Float[Tensor, "rows length d_model"]]


def real_tokens(batch: Batch, answers: Mapping[int, Encoded]) -> Bool[Tensor, "rows length"]:
    """Where there is a token and no padding; `answers` are one continuation each."""
    lengths = torch.tensor([answers[e].longest - 1 for e in batch.row_example.tolist()])
    return torch.arange(batch.tokens.shape[1]) < lengths[:, None]


@torch.inference_mode()
def streams(loaded: Loaded, batch: Batch, places: Iterable[Place]) -> Streams:
    """What passes these places when the model, as it is now, reads `batch`."""
    with _caught(loaded, places) as found:
        loaded.model(input_ids=batch.tokens.to(loaded.device), use_cache=False)
    shape = batch.tokens.shape  # blocks may lie on several devices
    return {place: value.to(loaded.device).reshape(*shape, -1) for place, value in found.items()}


@contextmanager
def _caught(loaded: Loaded, places: Iterable[Place]) -> Iterator[dict[Place, Tensor]]:
    found: dict[Place, Tensor] = {}
    with ExitStack() as stack:
        for place in places:
            module = loaded.model.get_submodule(_path(loaded, place))
            if place[0] == "enters":
                hook = module.register_forward_pre_hook(_before(found, place), with_kwargs=True)
            else:
                hook = module.register_forward_hook(_after(found, place))
            stack.callback(hook.remove)
        yield found


def _path(loaded: Loaded, place: Place) -> str:
    kind, block = place
    return loaded.anatomy.module(Site(block, "down")) if kind == "gives" else loaded.anatomy.blocks[block]


def _before(found: dict[Place, Tensor], place: Place) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        found[place] = (args[0] if args else kwargs["hidden_states"]).clone()

    return hook


def _after(found: dict[Place, Tensor], place: Place) -> Callable[..., None]:
    """Copies: some families add to what a module gave in place."""

    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        found[place] = (output[0] if isinstance(output, tuple) else output).clone()

    return hook
