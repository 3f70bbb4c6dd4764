"""Read the attention weights that a model computes with, one block at a time while it runs, without changing its
settings.

Under `sdpa` the weights are computed once more from the very queries, keys and masks that are handed to torch; under
`eager` they are those that the attention returns. A loaded model cannot be switched to eager instead: the public switch
has no effect on Falcon, BLOOM and GPT-J (transformers 5), Falcon asked for weights under sdpa forgets the causal mask,
and Falcon with ALiBi adds it twice in eager mode.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from secateur.errors import ModelError
from secateur.evaluation.forward import gathered
from secateur.hf.load import Loaded
from secateur.surgery.mask import swapped_forward

Consume = Callable[[int, Tensor], None]


@torch.inference_mode()
def attend(loaded: Loaded, tokens: Int[Tensor, "rows length"], consume: Consume) -> None:
    """Run the model on `tokens` and pass each block's weights to `consume` as they arise.

    The weights of one block at a time are in memory.

    Args:
        consume: Called with the block's number and its weights, (rows, heads, length, length).

    Raises: `ModelError` where the attention shows no weights (flash kernels), or weights that look ahead.
    """
    parts, model = loaded.anatomy, loaded.model
    seen: list[int] = []
    with ExitStack() as stack:
        for block in parts.attending:
            # the module that holds the output projection is the one that computes the weights
            module = model.get_submodule(parts.attention(block))
            forward = _attending(module.forward, block, parts.widths[block].num_heads, consume, seen)
            stack.enter_context(swapped_forward(module, forward))
        stack.enter_context(
            gathered(model.get_submodule(parts.unembedding), torch.zeros(1, dtype=torch.long))
        )
        eager = model.config._attn_implementation == "eager"
        options = {"output_attentions": True} if eager else {}
        model(input_ids=tokens.to(loaded.device), use_cache=False, **options)
    if seen != parts.attending:
        raise ModelError(
            f"{parts.architecture}: the attentions of blocks {seen} ran, in this order, not all once."
        )


def _attending(
    original: Callable[..., object], block: int, num_heads: int, consume: Consume, seen: list[int]
) -> Callable[..., object]:
    def forward(*args: object, **kwargs: object) -> object:
        with _AttentionCalls() as calls:
            out = original(*args, **kwargs)
        returned = [out[1]] if isinstance(out, tuple) and len(out) > 1 else []
        weights = next((w for w in (*calls.weights, *returned) if w is not None), None)
        if not isinstance(weights, Tensor) or weights.dim() != 4 or weights.shape[1] != num_heads:
            raise ModelError(
                f"the attention of block {block} shows no weights per head; load the model with "
                'attn_implementation="sdpa" or "eager".'
            )
        if weights[:, :, 0, 1:].any():
            raise ModelError(
                f"the attention weights of block {block} look ahead: this is no causal attention."
            )
        consume(block, weights)
        seen.append(block)
        return (out[0], None, *out[2:]) if isinstance(out, tuple) and len(out) > 1 else out

    return forward


class _AttentionCalls(TorchFunctionMode):
    """Compute the weights of every call of torch's attention inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.weights.append(sdpa_weights(*args, **kwargs))
        return func(*args, **kwargs)


def sdpa_weights(
    query: Float[Tensor, "rows heads length d"],
    key: Float[Tensor, "rows kv_heads length d"],
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "rows heads length length"]:
    """Return the weights inside `scaled_dot_product_attention` called with these arguments, in float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query.to(wide) @ key.to(wide).transpose(-1, -2)
    scores *= query.shape[-1] ** -0.5 if scale is None else scale
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores.masked_fill_(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores += attn_mask
    return scores.softmax(dim=-1)
