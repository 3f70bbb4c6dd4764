"""The arithmetic and the memory traffic of a forward pass, counted on the model itself: the limit of any speedup.

Counts shapes and calls, so it holds for uneven and factorized models too; measures no time, changes nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.cache_utils import (
    CacheLayerMixin,
    DummyLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from secateur.hf.load import Loaded

Layer = CacheLayerMixin | LinearAttentionCacheLayerMixin | DummyLayer  # of a block in the cache


@dataclass(frozen=True)
class Attended:
    """One block in the cache: `width` numbers a query (query heads × head size; 0: attends to nothing), `held` bytes a
    token, and how many tokens back it sees (`window`, itself included; None: all). `state` are bytes that it holds of a
    text of any length, where it has another mixer than attention."""

    width: int
    held: int
    window: int | None
    state: int = 0

    def seen(self, length: int) -> int:
        """Return the keys that the token at position `length` (from 1) attends to."""
        return length if self.window is None else min(length, self.window)

    def seen_in_all(self, length: int) -> int:
        """Return Σ seen(i) for i = 1 … length."""
        inner = self.seen(length)
        return inner * (inner + 1) // 2 + (length - inner) * inner


@dataclass(frozen=True)
class Cost:
    """The cost of one prefill of `batch` prompts of `prompt` tokens, and of the decoding after it.

    `matmul_flops`: 2 for each weight and each position it is applied to; an unembedding that is computed at the last
    position only counts there only. `weight_bytes`: what one decoding step reads of the weights; rows that are looked
    up are left out. `cache_bytes`: what the real cache held after the prefill.
    """

    batch: int
    prompt: int
    matmul_flops: int
    weight_bytes: int
    cache_bytes: int
    attended: tuple[Attended, ...]

    @property
    def prefill_flops(self) -> int:
        """Return matrix products and attention: 4 for each query number and each key that it attends to."""
        scores = sum(4 * a.width * a.seen_in_all(self.prompt) for a in self.attended)
        return self.matmul_flops + self.batch * scores

    @property
    def kv_bytes_per_token(self) -> float:
        """Return bytes of the cache for each token of one sequence; less than `held` where windows slide, and with the
        states of a hybrid."""
        return self.cache_bytes / (self.batch * self.prompt)

    def decode_bytes(self, new: int) -> float:
        """Return the bytes that a step reads (weights, and the cache so far), in the mean over `new` steps."""
        lengths = range(self.prompt + 1, self.prompt + new + 1)
        cached = sum(a.state + a.held * a.seen(length) for a in self.attended for length in lengths)
        return self.weight_bytes + self.batch * cached / new


def random_tokens(vocab_size: int, batch: int, prompt: int) -> Int[Tensor, "batch prompt"]:
    """Return random tokens, the same ones every time; their values do not change the cost."""
    return torch.randint(vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(0))


def prefill(model: nn.Module, tokens: Int[Tensor, "batch prompt"]) -> CausalLMOutputWithPast:
    """Return the model's output with its cache; where it can, with logits of the last position alone, as `generate`."""
    can = "logits_to_keep" in inspect.signature(model.forward).parameters
    output: CausalLMOutputWithPast = model(
        input_ids=tokens, use_cache=True, **({"logits_to_keep": 1} if can else {})
    )
    return output


@torch.inference_mode()
def cost(loaded: Loaded, tokens: Int[Tensor, "batch prompt"]) -> Cost:
    """Count one prefill of `tokens`."""
    with _positions(loaded.model) as positions:
        cache = prefill(loaded.model, tokens.to(loaded.device)).past_key_values
    assert cache is not None
    # matrices multiply, be they one or two factors; norms and biases cost next to nothing
    weights = {module: [p for p in _own(module) if p.dim() > 1 + _of_experts(module)] for module in positions}
    chosen = 0 if loaded.anatomy.routing is None else loaded.anatomy.routing.chosen
    attended = _attended(loaded, cache.layers, tokens.shape[0])
    return Cost(
        batch=tokens.shape[0],
        prompt=tokens.shape[1],
        matmul_flops=round(
            sum(
                2.0 * p.numel() * count * _share(module, p, chosen)
                for module, count in positions.items()
                for p in weights[module]
            )
        ),
        weight_bytes=round(
            sum(
                p.nbytes * _share(module, p, chosen, tokens.shape[0])
                for module in positions
                for p in _own(module)
            )
        ),
        cache_bytes=sum(_bytes(layer) for layer in cache.layers),
        attended=attended,
    )


def _own(module: nn.Module) -> list[nn.Parameter]:
    return [*module.parameters(recurse=False)]


def _of_experts(module: nn.Module) -> bool:
    """Return True for a module that holds a network's experts, the matrices of all one upon the other."""
    return any(parameter.dim() == 3 for parameter in _own(module))


def _share(module: nn.Module, parameter: nn.Parameter, chosen: int, tokens: int = 1) -> float:
    """Return the share of a module's parameter that so many tokens read: all of it, but of a network's experts that of
    those which are chosen.

    Args:
        chosen: Experts that a token goes through, each token its own draw; 0: there are none.
    """
    if not chosen or not _of_experts(module):
        return 1.0
    return 1 - (1 - chosen / parameter.shape[0]) ** tokens


@contextmanager
def _positions(model: nn.Module) -> Iterator[dict[nn.Module, int]]:
    """Every module that is called and holds parameters of its own → the positions it is applied to. Not embeddings:
    they look up, and where one is tied to the unembedding, that counts."""
    found: dict[nn.Module, int] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        found[module] = found.get(module, 0) + x.shape[:-1].numel()

    with ExitStack() as stack:
        for module in model.modules():
            if not isinstance(module, nn.Embedding) and any(True for _ in module.parameters(recurse=False)):
                stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield found


def _bytes(layer: Layer) -> int:
    held: list[Tensor | None] = []
    if isinstance(layer, CacheLayerMixin):
        held = [layer.keys, layer.values]
    elif isinstance(layer, LinearAttentionCacheLayerMixin):
        held = [*layer.conv_states.values(), *layer.recurrent_states.values()]
    return sum(tensor.nbytes for tensor in held if tensor is not None)


def _attended(loaded: Loaded, layers: Sequence[Layer], batch: int) -> tuple[Attended, ...]:
    """Return what each block attends to; the cache has one layer a block."""
    anatomy = loaded.anatomy
    return tuple(
        Attended(
            own.num_heads * anatomy.d_head,
            _held(layer),
            layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None,
            0 if isinstance(layer, CacheLayerMixin) else _bytes(layer) // batch,
        )
        for own, layer in zip(anatomy.widths, layers, strict=True)
    )


def _held(layer: Layer) -> int:
    """Return the bytes of one token in the cache; 0 where nothing is held."""
    if not isinstance(layer, CacheLayerMixin) or layer.keys is None or layer.keys.numel() == 0:
        return 0
    return _bytes(layer) // (layer.keys.shape[0] * layer.keys.shape[-2])
