"""The attention weights of a loaded model, one block at a time while it runs. What they are for is not said here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.hf.load import Loaded, quiet
from secateur.judge.forward import gathered, lent

Consume = Callable[[int, Tensor], None]


@contextmanager
def weights_on(loaded: Loaded) -> Iterator[Callable[[Tensor, Consume], None]]:
    """Gives a verb: run the model on tokens and hand each block's attention weights, (rows, heads, length, length),
    to a consumer as they arise, so that one block's are in memory at a time. The model's attention is as before after.

    Raises: `ModelError` where the model gives no weights, or weights that look ahead.
    """
    config = loaded.model.config
    before = config._attn_implementation
    with quiet():
        _set_attention(loaded, "eager")
    try:
        yield lambda tokens, consume: _run(loaded, tokens, consume)
    finally:
        with quiet():
            _set_attention(loaded, before)


def _set_attention(loaded: Loaded, name: str) -> None:
    """The public way first. Falcon, BLOOM and GPT-J do not take it but ask their config at every call; Falcon under
    sdpa, asked for weights, gives some that look ahead."""
    loaded.model.set_attn_implementation(name)
    loaded.model.config._attn_implementation = name


@torch.inference_mode()
def _run(loaded: Loaded, tokens: Int[Tensor, "rows length"], consume: Consume) -> None:
    parts, model = loaded.anatomy, loaded.model
    seen: list[int] = []
    with ExitStack() as stack:
        for block in range(parts.num_blocks):
            # the module that holds the output projection is the one that computes and returns the weights
            module = model.get_submodule(parts.matrix(Site(block, "o")).module.rpartition(".")[0])
            stack.enter_context(
                lent(module, _attending(module.forward, block, parts.num_heads, consume, seen))
            )
        stack.enter_context(
            gathered(model.get_submodule(parts.unembedding), torch.zeros(1, dtype=torch.long))
        )
        model(input_ids=tokens.to(model.device), use_cache=False, output_attentions=True)
    if len(seen) != parts.num_blocks:
        raise ModelError(
            f"{parts.architecture} gave attention weights for {len(seen)} of {parts.num_blocks} blocks."
        )


def _attending(
    own: Callable[..., Any], block: int, num_heads: int, consume: Consume, seen: list[int]
) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        weights = out[1] if isinstance(out, tuple) and len(out) > 1 else None
        if not isinstance(weights, Tensor) or weights.dim() != 4 or weights.shape[1] != num_heads:
            raise ModelError(
                f"the attention of block {block} returns no weights per head, so it cannot be read."
            )
        if weights[:, :, 0, 1:].any():
            raise ModelError(
                f"the attention weights of block {block} look ahead; they are not what the model uses."
            )
        consume(block, weights)
        seen.append(block)
        return (out[0], None, *out[2:])

    return forward
