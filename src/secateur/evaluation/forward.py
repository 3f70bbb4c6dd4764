"""One whole-model call that computes only what is asked: blocks below `start` and above `stop` stand aside, logits
and the last block's feed-forward are computed at the kept positions alone.

Everything is done by lending modules another `forward` for the length of the call; no layer is driven by hand, so
masks, positions and caches stay the model's own business.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.evaluation.batching import Batch
from secateur.hf.anatomy import Anatomy
from secateur.hf.weights import device_of
from secateur.surgery.mask import swapped_forward


def _entering(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


class Forward:
    """Partial forward passes of one model. `entering(batch, block)` and `logits(batch, ...)` are its two verbs."""

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        self._model = model
        self._anatomy = anatomy
        self._blocks = [model.get_submodule(name) for name in anatomy.blocks]
        self._head = model.get_submodule(anatomy.unembedding)
        self._trimmed = [model.get_submodule(name) for name in _positionwise(anatomy)]
        self.device = device_of(model, f"{anatomy.embedding}.weight")
        self._tuples = self._learn_return_types()

    def _learn_return_types(self) -> list[bool]:
        """Some families' blocks return a tensor, some a tuple that begins with it; a stand-in does the same."""
        seen: list[bool] = [False] * len(self._blocks)

        def note(number: int) -> Callable:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                seen[number] = isinstance(output, tuple)

            return hook

        handles = [block.register_forward_hook(note(i)) for i, block in enumerate(self._blocks)]
        try:
            with torch.no_grad():
                self._run_two_tokens()
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def _run_two_tokens(self) -> None:
        self._model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=self.device), use_cache=False)

    def _standin(self, number: int, value: Callable[[Tensor], Tensor]) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = value(_entering(args, kwargs))
            return (hidden, None) if self._tuples[number] else hidden

        return swapped_forward(self._blocks[number], forward)

    def _skip_below(self, stack: ExitStack, start: int, entering: Tensor | None) -> None:
        for number in range(start):
            last = number == start - 1 and entering is not None
            stack.enter_context(self._standin(number, (lambda x: entering) if last else (lambda x: x)))

    def entering(
        self, batch: Batch, block: int, *, start: int = 0, hidden: Tensor | None = None
    ) -> Float[Tensor, "rows length d_model"]:
        """The activations that enter `block`, computed from those that enter `start` (or from the tokens)."""
        caught: list[Tensor] = []
        with ExitStack() as stack:
            self._skip_below(stack, start, hidden)
            for number in range(block, len(self._blocks)):
                catch = (lambda x: caught.append(x) or x) if number == block else (lambda x: x)
                stack.enter_context(self._standin(number, catch))
            stack.enter_context(gathered(self._head, torch.zeros(1, dtype=torch.long, device=self.device)))
            self._model(input_ids=batch.tokens.to(self.device), use_cache=False)
        return caught[0]

    def through(self, block: str) -> Float[Tensor, "1 2 d_model"]:
        """What `block` (its path) makes of the embeddings of two tokens while all other blocks stand aside."""
        caught: list[Any] = []
        handle = self._model.get_submodule(block).register_forward_hook(lambda m, a, out: caught.append(out))
        with ExitStack() as stack:
            stack.callback(handle.remove)
            for number, name in enumerate(self._anatomy.blocks):
                if name != block:
                    stack.enter_context(self._standin(number, lambda x: x))
            self._run_two_tokens()
        return caught[0][0] if isinstance(caught[0], tuple) else caught[0]

    def logits(
        self,
        batch: Batch,
        *,
        start: int = 0,
        hidden: Tensor | None = None,
        reuse: AbstractContextManager | None = None,
    ) -> Float[Tensor, "kept vocab"]:
        """Logits at `batch.keep`. With `hidden`, the activations entering block `start`, lower blocks do not run;
        with `reuse` (of `Reuse.on`) neither do those parts of block `start` that are known."""
        keep = batch.keep.to(self.device)
        with ExitStack() as stack:
            self._skip_below(stack, start, hidden)
            if keep.numel() < batch.num_tokens:
                for module in self._trimmed:
                    stack.enter_context(_only_at(module, keep))
            stack.enter_context(reuse or nullcontext())
            stack.enter_context(gathered(self._head, keep))
            out = self._model(input_ids=batch.tokens.to(self.device), use_cache=False)
        return out.logits[0]


def _positionwise(anatomy: Anatomy) -> list[str]:
    """Modules of the last block that map each position by itself and whose other positions nobody will read.

    Keys and values are needed everywhere; a module that holds nothing else than q, o or a part of the feed-forward
    network is not.
    """
    last = anatomy.num_blocks - 1
    held: dict[str, set[str]] = {}
    for site, matrix in anatomy.matrices.items():
        if site.block == last:
            held.setdefault(matrix.module, set()).add(site.part)
    alone = [module for module, parts in held.items() if not parts & {"k", "v"}]
    if anatomy.mlps is None:
        return alone
    whole = anatomy.mlps[last]
    return [whole, *(module for module in alone if not module.startswith(whole + "."))]


def gathered(head: nn.Module, keep: Tensor) -> Any:
    """The unembedding is computed at the flat positions `keep` alone: logits are (1, kept, vocab)."""
    own = head.forward

    def forward(hidden: Tensor) -> Tensor:
        return own(hidden.reshape(-1, hidden.shape[-1])[keep.to(hidden.device)][None])

    return swapped_forward(head, forward)


def _only_at(module: nn.Module, keep: Tensor) -> Any:
    own = module.forward

    def forward(x: Tensor) -> Tensor:
        at = keep.to(x.device)
        some = own(x.reshape(-1, x.shape[-1])[at][None])[0]
        out = some.new_zeros(x.shape[:-1].numel(), some.shape[-1])
        out[at.to(some.device)] = some
        return out.reshape(*x.shape[:-1], -1)

    return swapped_forward(module, forward)
