"""Measure how much the loss of the gold answers depends on each head or neuron, and read what heads attend to.

One backward pass per batch gives the importance of all. It is taken at the output projection's input, where heads lie
side by side, and at the down projection's, where neurons do. `unit_importance` does the same for any units that lie
side by side at the input of a matrix. No parameter gets a gradient: the graph begins at the first hooked input.

Attention weights are read one block at a time while the model runs, without changing its settings. Under `sdpa` they
are computed once more from the very queries, keys and masks that are handed to torch; under `eager` they are those that
the attention returns. A loaded model cannot be switched to eager instead: the public switch has no effect on Falcon,
BLOOM and GPT-J (transformers 5), Falcon asked for weights under sdpa forgets the causal mask, and Falcon with ALiBi
adds it twice in eager mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from secateur.core.progress import Progress, silent
from secateur.core.readings import Readings
from secateur.core.site import Site, part_of
from secateur.errors import ModelError
from secateur.evaluation.batching import Batch, Packing, with_room
from secateur.evaluation.forward import Forward, scored_at
from secateur.hf.load import Loaded
from secateur.hf.stacks import Weight
from secateur.hf.weights import reread
from secateur.probes.gradient_hooks import summed_loss
from secateur.probes.residual_stream import run_hooked
from secateur.surgery.mask import swapped_forward
from secateur.tasks.encode import Encoded


def head_importance(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    *,
    packing: Packing,
    split: str = "probe",
    progress: Progress = silent,
) -> Readings:
    """Return E|A_h · dL/dA_h| of every query head, as `b3.attn.h5`: the dot product is over its d_head numbers A_h.

    L is an example's mean negative log-likelihood over the tokens of its gold answer. The mean is over all tokens
    that are run, those of every prompt and of every answer but its last, pooled over the examples; padding is not
    among them. Units: nats per token. `n` counts examples.
    Source: Bansal et al. 2022 (arXiv 2212.09095), after Michel et al. 2019 (arXiv 1905.10650).
    Differs: all blocks are divided by one and the same number of tokens, where the authors' code divides the last
    block by another, which biases its rank.
    Raises: `ModelError` where there are none, or an output projection never runs as a module.
    """
    anatomy = loaded.anatomy
    heads = {
        anatomy.site(n, "o"): width.num_heads for n, width in enumerate(anatomy.widths) if width.num_heads
    }
    crossing = {anatomy.site(n, "cross.o"): w.num_cross for n, w in enumerate(anatomy.widths) if w.num_cross}
    units = heads | crossing
    values = unit_importance(loaded, encoded, examples, "o", units, packing=packing, progress=progress)
    sites = {
        str(o.beside(part_of(o.part), "h", h)): v for o, own in values.items() for h, v in enumerate(own)
    }
    return _readings("head importance", split, len(examples), "E|A·dL/dA| (arXiv 2212.09095)", sites)


# ------------------------------------------------------------------------------------------------------ the machinery


def _readings(what: str, split: str, n: int, source: str, values: Mapping[str, float]) -> Readings:
    """Return importance in nats per token, of which little means removable."""
    return Readings(what, "nats/token", split, n, True, source, values)


def unit_importance(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    part: str,
    units: Mapping[Site, int],
    *,
    packing: Packing,
    progress: Progress = silent,
) -> dict[Site, list[float]]:
    """Return E|a · dL/da| per token, by matrix, for each of equal slices of the input of matrices of the kind `part`.

    Costs one forward and one backward pass without parameter gradients. Memory does not grow with the examples, and
    nothing is kept of a block's gradient but one number per unit.

    Args:
        units: The number of slices, by matrix.

    Raises: as `head_importance`.
    """
    if not units:
        raise ModelError(f"this model has no {part}: earlier cuts took all that could be read there.")
    answers = {e: encoded[e].gold_alone for e in examples}
    tokens = sum(len(answer.read(0)) for answer in answers.values())  # without an answer's last, never run
    sources = sum(len(answer.source(0)) for answer in answers.values())
    hooks = _UnitHooks(loaded, units)

    def summed(packing: Packing) -> dict[Site, np.ndarray]:
        total = {block: np.zeros(count) for block, count in units.items()}
        batches = packing.pack(answers, examples)
        for number, batch in enumerate(batches):
            for block, sums in hooks.read(batch).items():
                total[block] += sums.double().cpu().numpy()
            progress("importance", number + 1, len(batches))
        return total

    return {
        matrix: (total / max(1, sources if matrix.stack == "enc" else tokens)).tolist()
        for matrix, total in with_room(packing, summed).items()
    }


class _UnitHooks:
    """Read the inputs of one matrix of every block that has units, and the gradients at them."""

    def __init__(self, loaded: Loaded, units: Mapping[Site, int]) -> None:
        self._paths = {matrix: loaded.anatomy.module(matrix) for matrix in units}
        self._modules = {path: loaded.model.get_submodule(path) for path in self._paths.values()}
        self._model, self._forward = loaded.model, Forward(loaded.model, loaded.anatomy)
        self._units = units

    @torch.enable_grad()
    def read(self, batch: Batch) -> dict[Site, Float[Tensor, " units"]]:
        """Return the sum over the batch's tokens of |a · dL/da|. Padding adds nothing, since no loss depends on it."""
        sums: dict[str, Tensor] = {}
        leaves: list[Tensor] = []
        with ExitStack() as stack:
            for block, path in self._paths.items():
                stack.enter_context(_hooked(self._modules[path], path, self._units[block], sums, leaves))
            stack.enter_context(reread(self._model))
            loss = summed_loss(self._forward.logits(batch), batch)
        if not leaves:
            raise ModelError(f"{next(iter(self._modules))} never ran, so it cannot be read.")
        torch.autograd.grad(loss, leaves)  # the hooks keep what is wanted of it
        for path in self._modules:
            if path not in sums:
                raise ModelError(f"{path} never ran, or the loss does not hang on it, so it cannot be read.")
        return {block: sums[path] for block, path in self._paths.items()}


@contextmanager
def _hooked(
    module: nn.Module, path: str, num_units: int, sums: dict[str, Tensor], leaves: list[Tensor]
) -> Iterator[None]:
    """Inside, fill `sums[path]` when the gradient arrives at the module's input. The graph begins at an input that
    requires no gradient yet."""

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        if not x.requires_grad:
            x = x.detach().requires_grad_()
            leaves.append(x)
        value = x.detach()  # a hook that holds its own tensor would never be freed

        def arrived(gradient: Tensor) -> None:
            wide = torch.promote_types(value.dtype, torch.float32)
            product = value.to(wide) * gradient.to(wide)
            units = product.reshape(-1, num_units, value.shape[-1] // num_units)
            sums[path] = units.sum(dim=2).abs().sum(dim=0)  # over the numbers of a unit, then over tokens

        x.register_hook(arrived)
        return (x, *args[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# -------------------------------------------------------------------------------------------------------------- neurons


def neuron_importance(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    *,
    packing: Packing,
    split: str = "probe",
    progress: Progress = silent,
) -> Readings:
    """Return E|a_n · dL/da_n| of every neuron, as `b3.mlp.n17`; a_n is the input of the down projection (gate × up).

    Loss, tokens, units and errors as for `head_importance`, which this is for slices of one number.
    Source: ours; the head importance of Bansal et al. 2022 (arXiv 2212.09095) carried over to neurons.
    """
    anatomy = loaded.anatomy
    neurons = {anatomy.site(n, "down"): width.d_ff for n, width in enumerate(anatomy.widths) if width.d_ff}
    values = unit_importance(loaded, encoded, examples, "down", neurons, packing=packing, progress=progress)
    sites = {str(down.beside("mlp", "n", n)): v for down, own in values.items() for n, v in enumerate(own)}
    return _readings(
        "neuron importance", split, len(examples), "E|a·dL/da| at the down projection's input", sites
    )


def weighted_inputs(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    blocks: Sequence[int],
    *,
    packing: Packing,
    progress: Progress = silent,
) -> dict[int, Float[np.ndarray, " neurons"]]:
    """Return ‖a_n‖ · Σ_i |W_in| of every neuron n of these blocks: W is the down projection, a_n its input.

    The norm is over all tokens that are run. Costs one forward pass; needs no answer, and says nothing of the loss.
    Source: the score of Wanda (Sun et al. 2023, arXiv 2306.11695, eq. 1), summed over the outputs of each input.
    """
    paths = {block: loaded.anatomy.module(Site(block, "down")) for block in blocks}

    def summed(packing: Packing) -> dict[int, Tensor]:
        squares: dict[int, Tensor] = {}

        def adding(block: int, real: Tensor) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                inputs = args[0].reshape(*real.shape, -1)[real.to(args[0].device)]
                wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
                squares[block] = squares.get(block, 0) + wide.square().sum(0).double().cpu()

            return hook

        def hooks(real: Tensor) -> Iterator[RemovableHandle]:
            for block, path in paths.items():
                yield loaded.model.get_submodule(path).register_forward_pre_hook(adding(block, real))

        run_hooked(loaded, encoded, examples, hooks, packing=packing, progress=progress)
        return squares

    squares = with_room(packing, summed) if blocks else {}
    found = {}
    for block, path in paths.items():  # one matrix in float64 at a time
        weights = Weight(path).read(loaded.model).cpu().double()
        found[block] = (weights.abs().sum(0) * squares[block].sqrt()).numpy()
    return found


# -------------------------------------------------------------------------------------------- what heads look at


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
    parts.check_causal("what heads attend to among earlier tokens")
    seen: list[int] = []
    with ExitStack() as stack:
        for block in parts.attending:
            module = model.get_submodule(parts.attention(block))
            forward = _attending(module.forward, block, parts.widths[block].num_heads, consume, seen)
            stack.enter_context(swapped_forward(module, forward))
        stack.enter_context(scored_at(model, parts, torch.zeros(1, dtype=torch.long)))
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
        parts = [*out] if isinstance(out, tuple | list) else []  # OpenAI GPT's returns a list
        returned = parts[1:2]
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
        if len(parts) < 2:
            return out
        shown = [parts[0], None, *parts[2:]]
        return shown if isinstance(out, list) else tuple(shown)

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
