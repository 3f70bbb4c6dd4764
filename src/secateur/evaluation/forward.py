"""Run the whole model but compute only what is needed: blocks below `start` and above `stop` stand aside, logits and
the last block's feed-forward network are computed at the kept positions alone.

During the call modules have another `forward`. No layer is driven by hand, so masks, positions and
caches stay the model's own business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.core.acts import POSITIONS
from secateur.evaluation.batching import Batch
from secateur.hf.anatomy import Anatomy
from secateur.hf.calls import entering, inputs_of, leaving, logits_of
from secateur.hf.weights import device_of
from secateur.surgery.mask import giving, swapped_forward

Change = Callable[[Tensor], Tensor]


class Forward:
    """Partial forward passes of one model."""

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        self._model = model
        self._anatomy = anatomy
        self._blocks = [model.get_submodule(name) for name in anatomy.blocks]
        self._positionwise = [model.get_submodule(name) for name in _positionwise(anatomy)]
        self.device = device_of(model, f"{anatomy.embedding}.weight")
        self._tuples = self._learn_return_types()

    def _learn_return_types(self) -> list[bool]:
        """Return which blocks return a tuple or a list that begins with their output, rather than a tensor; a stand-in
        has to do alike."""
        returns_tuple: list[bool] = [False] * len(self._blocks)

        def note(number: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[object, ...], output: object) -> None:
                returns_tuple[number] = isinstance(output, tuple | list)

            return hook

        handles = [block.register_forward_hook(note(i)) for i, block in enumerate(self._blocks)]
        try:
            with torch.no_grad():
                self._run_two_tokens()
        finally:
            for handle in handles:
                handle.remove()
        return returns_tuple

    def _run_two_tokens(self) -> None:
        two = torch.zeros((1, 2), dtype=torch.long, device=self.device)
        logits_of(self._model, inputs_of(two, self._anatomy))

    def _standin(self, number: int, change: Change) -> AbstractContextManager[None]:
        """Make block `number` return its input, changed."""

        def forward(*args: object, **kwargs: object) -> Tensor | tuple[Tensor, None]:
            hidden = change(entering(args, kwargs))
            return (hidden, None) if self._tuples[number] else hidden

        block = self._blocks[number]
        if self._anatomy.details.shared_bias:  # which blocks hand on, beside the stream
            return swapped_forward(block, giving(block.forward, change))
        return swapped_forward(block, forward)

    def _aside(self, block: int) -> list[int]:
        """Return the blocks that stand aside while `block` runs alone: all but the encoder that a decoder reads."""
        last = self._anatomy.num_encoder if block >= self._anatomy.num_encoder else 0
        return [number for number in range(last, len(self._blocks)) if number != block]

    def _skip_below(self, stack: ExitStack, start: int, entering: Tensor | None) -> None:
        for number in range(start):
            change: Change = _unchanged
            if number == start - 1 and entering is not None:
                change = _constant(entering)
            stack.enter_context(self._standin(number, change))

    def entering(
        self, batch: Batch, block: int, *, start: int = 0, hidden: Tensor | None = None
    ) -> Float[Tensor, "rows length d_model"]:
        """Compute the activations that enter `block` from those that enter `start` (or from the tokens)."""
        caught: list[Tensor] = []

        def catch(hidden: Tensor) -> Tensor:
            caught.append(hidden)
            return hidden

        with ExitStack() as stack:
            self._skip_below(stack, start, hidden)
            for number in range(block, len(self._blocks)):
                stack.enter_context(self._standin(number, catch if number == block else _unchanged))
            stack.enter_context(scored_at(self._model, self._anatomy, torch.zeros(1, dtype=torch.long)))
            logits_of(self._model, batch.inputs(self.device))
        return caught[0]

    def through(self, block: str) -> Float[Tensor, "1 2 d_model"]:
        """Return the output of `block` (its path) on the embeddings of two tokens, or of one step, while all other
        blocks stand aside."""
        with self._output_of(self._anatomy.blocks.index(block)) as caught:
            self._run_two_tokens()
        return caught[0]

    def alone(
        self, block: int, batch: Batch, entering: Float[Tensor, "rows length d_model"]
    ) -> Float[Tensor, "rows length d_model"]:
        """Return what leaves a block for what enters it, while all other blocks stand aside.

        Args:
            batch: The rows that it is about, from which the model makes positions and masks.
        """
        with (
            self._output_of(block) as caught,
            replaced_input(self._blocks[block], lambda _: entering),
            scored_at(self._model, self._anatomy, torch.zeros(1, dtype=torch.long)),
        ):
            logits_of(self._model, batch.inputs(self.device))
        return caught[0]

    @contextmanager
    def _output_of(self, block: int) -> Iterator[list[Tensor]]:
        """Make all other blocks return their input; yield the list that gets what this one returns."""
        caught: list[Tensor] = []
        with ExitStack() as stack:
            for number in self._aside(block):
                stack.enter_context(self._standin(number, _unchanged))
            handle = self._blocks[block].register_forward_hook(
                lambda module, args, output: caught.append(leaving(output))
            )
            stack.callback(handle.remove)
            yield caught

    @contextmanager
    def from_blocks(
        self, blocks: Sequence[int], entered: Mapping[int, list[Tensor]], left: dict[int, Tensor]
    ) -> Iterator[None]:
        """Let a graph begin at the lowest of some blocks, while the context is open.

        Args:
            entered: Gets the activations that enter each of the blocks, without the graph.
            left: Gets those that leave it, in the graph.
        """

        def begin(hidden: Tensor) -> Tensor:
            return hidden.detach().requires_grad_()

        def after(number: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[object, ...], output: object) -> None:
                left[number] = leaving(output)

            return hook

        def before(number: int) -> Change:
            def note(hidden: Tensor) -> Tensor:
                entered[number].append(hidden.detach())
                return hidden

            return note

        with ExitStack() as stack:
            stack.enter_context(replaced_input(self._blocks[min(blocks)], begin))
            for number in blocks:
                stack.enter_context(replaced_input(self._blocks[number], before(number)))
                handle = self._blocks[number].register_forward_hook(after(number))
                stack.callback(handle.remove)
            yield

    def logits(
        self,
        batch: Batch,
        *,
        start: int = 0,
        hidden: Tensor | None = None,
        cached: AbstractContextManager[None] | None = None,
    ) -> Float[Tensor, "kept vocab"]:
        """Compute the logits at `batch.keep`.

        Args:
            hidden: The activations that enter block `start`; with them lower blocks do not run.
            cached: What `ActivationCache.on` gives for this batch; with it, known parts of block `start` do not run
                either.
        """
        keep = batch.keep.to(self.device)
        with ExitStack() as stack:
            self._skip_below(stack, start, hidden)
            if keep.numel() < batch.num_tokens:
                for module in self._positionwise:
                    stack.enter_context(_only_at(module, keep))
            stack.enter_context(cached or nullcontext())
            return scored_logits(self._model, self._anatomy, batch, self.device)


def _unchanged(hidden: Tensor) -> Tensor:
    return hidden


def _constant(value: Tensor) -> Change:
    return lambda _: value


def _positionwise(anatomy: Anatomy) -> list[str]:
    """Return the modules of the last block that map each position by itself and whose other positions nobody reads.

    Keys and values are needed everywhere; a module that holds nothing else than q, o or a part of the feed-forward
    network is not.
    """
    last = anatomy.num_blocks - 1
    whole_block = anatomy.site(last)
    held: dict[str, set[str]] = {}
    for site, matrix in anatomy.matrices.items():
        if site.whole_block == whole_block:
            held.setdefault(matrix.module, set()).add(site.kind)
    alone = [module for module, parts in held.items() if not parts & {"k", "v"}]
    if anatomy.mlps is None:
        return alone
    whole = anatomy.mlps[last]
    return [whole, *(module for module in alone if not module.startswith(whole + "."))]


@contextmanager
def replaced_input(block: nn.Module, change: Change) -> Iterator[None]:
    """Give a block another input than it is called with, while the context is open."""

    def hook(
        module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        changed = change(entering(args, kwargs))
        return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": changed})

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def scored_logits(
    model: PreTrainedModel, anatomy: Anatomy, batch: Batch, device: torch.device
) -> Float[Tensor, "kept vocab"]:
    """Return the logits of a whole model at `batch.keep`; of a classifier those of its labels, for each row."""
    with scored_at(model, anatomy, batch.keep):
        logits = logits_of(model, batch.inputs(device))
    return logits if anatomy.labels else logits[0]


def scored_at(model: nn.Module, anatomy: Anatomy, keep: Tensor) -> AbstractContextManager[None]:
    """Compute the unembedding at the flat positions `keep` alone: inside, logits are (1, kept, vocab).

    A classifier finds by itself the one position of each row that its head reads, and stays as it is. The head of a
    decision transformer is given one position of each step, in their order.
    """
    if anatomy.labels:
        return nullcontext()
    head = model.get_submodule(anatomy.unembedding)
    original = head.forward
    if anatomy.acts:
        keep = keep // POSITIONS

    def forward(hidden: Tensor) -> Tensor:
        logits: Tensor = original(hidden.reshape(-1, hidden.shape[-1])[keep.to(hidden.device)][None])
        return logits

    return swapped_forward(head, forward)


def _only_at(module: nn.Module, keep: Tensor) -> AbstractContextManager[None]:
    """Run a module at the flat positions `keep` alone: inside, its output is zero everywhere else."""
    original = module.forward

    def forward(x: Tensor) -> Tensor:
        at = keep.to(x.device)
        kept = original(x.reshape(-1, x.shape[-1])[at][None])[0]
        out: Tensor = kept.new_zeros(x.shape[:-1].numel(), kept.shape[-1])
        out[at.to(kept.device)] = kept
        return out.reshape(*x.shape[:-1], -1)

    return swapped_forward(module, forward)
