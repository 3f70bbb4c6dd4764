"""Tokens through a model of any kind that can be read, and what passes chosen places on the way, caught by hooks.

Padding lies on the right and never reaches whoever looks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from secateur.core.readings import FINER
from secateur.errors import ModelError
from secateur.evaluation.batching import Packing
from secateur.hf.readable import Readable
from secateur.hf.running import check_finite
from secateur.hf.stacks import Stack, Sublayer, Weight

Ids = Sequence[int]


HEADS, MATRICES = FINER


@dataclass(frozen=True)
class Unit:
    """A head or a matrix: what it gives is its weight times those columns of a tap's Y that it reads."""

    site: str
    weight: Weight


@dataclass(frozen=True)
class Tap:
    """A place to look at: X is what enters the module `reads`, Y what the module `writes` gives.

    `kind` is `block`, `part`, `units`, or `last` (what leaves the last block, as X and as Y). `comparable`: Y, of a
    block less X, is what was added to the stream. With `units` Y is what enters `writes`, and what matters are linear
    maps of it.
    """

    kind: str
    site: str
    stack: str
    reads: str
    writes: str
    comparable: bool = True
    units: tuple[Unit, ...] = ()


def taps(
    readable: Readable, blocks: Sequence[int] | None = None, *, parts: bool = False, finer: Sequence[str] = ()
) -> list[Tap]:
    """Every block (of `blocks`) of every stack, and its parts: with `parts`, where norms follow, and in
    encoder-decoders. Where there is any `finer`, the parts, and their heads or matrices."""
    found: list[Tap] = []
    for stack in readable.stacks:
        own = parts or bool(finer) or stack.norm != "pre" or readable.kind == "encoder-decoder"
        for number in range(len(stack.blocks)) if blocks is None else blocks:
            found.extend(_of_block(stack, number, own, finer))
        if blocks is None or len(stack.blocks) - 1 in blocks:
            path = stack.blocks[-1].path
            found.append(Tap("last", f"{stack.prefix}last", stack.prefix, path, path))
    return found


def _of_block(stack: Stack, number: int, parts: bool, finer: Sequence[str]) -> Iterator[Tap]:
    block = stack.blocks[number]
    yield Tap("block", stack.site(number), stack.prefix, block.path, block.path, stack.norm != "post")
    for part in block.parts if parts else ():
        yield Tap("part", stack.site(number, part.name), stack.prefix, part.reads, part.writes)
        if HEADS in finer and part.num_heads:
            yield _of_heads(stack, number, part)
        if MATRICES in finer:
            yield from _of_matrices(stack, number, part)


def _of_heads(stack: Stack, number: int, part: Sublayer) -> Tap:
    """From what the attention reads to the heads' outputs; a head adds to the stream its columns of o times its own."""
    count = part.num_heads
    heads = (
        Unit(stack.site(number, part.name, head), Weight(part.projects, share=(head, count)))
        for head in range(count)
    )
    site = f"{stack.site(number, part.name)}.heads"
    return Tap("units", site, stack.prefix, part.reads, part.projects, units=tuple(heads))


def _of_matrices(stack: Stack, number: int, part: Sublayer) -> Iterator[Tap]:
    """From a stream to what matrices make of it behind its norm."""
    for one in part.readers:
        units = tuple(Unit(stack.site(number, name), weight) for name, weight in one.matrices)
        site = stack.site(number, part.name)
        if units:
            yield Tap("units", f"{site}.matrices", one.stack, one.enters, one.reads, units=units)


# -------------------------------------------------------------------------------------------------------------- tokens


@dataclass(frozen=True)
class Batch:
    """Sequences that run together, all `held_out` or none. `numbers` says which."""

    numbers: tuple[int, ...]
    sequences: tuple[Ids, ...]
    held_out: bool


def batches(sequences: Sequence[Ids], held_out: Sequence[bool], packing: Packing) -> Iterator[Batch]:
    """Of similar length, as many as `packing` allows."""
    for side in (False, True):
        group: list[int] = []
        numbers = [number for number, out in enumerate(held_out) if out == side]
        for number in sorted(numbers, key=lambda n: (len(sequences[n]), n)):
            row = sequences[number]
            full = (len(group) + 1) * len(row) > packing.max_tokens
            if group and (full or packing.regime(row) != packing.regime(sequences[group[-1]])):
                yield Batch(tuple(group), tuple(sequences[n] for n in group), side)
                group = []
            group.append(number)
        if group:
            yield Batch(tuple(group), tuple(sequences[n] for n in group), side)


def streams(readable: Readable, sequences: Iterable[Ids]) -> dict[str, list[Ids]]:
    """What each stack reads, by its prefix. An encoder-decoder reads the first half and goes on with the second."""
    if readable.kind != "encoder-decoder":
        return {readable.stacks[0].prefix: list(sequences)}
    halves = [(ids[: (len(ids) + 1) // 2], ids[(len(ids) + 1) // 2 :]) for ids in sequences]
    later = [(readable.start, *second[:-1]) for _, second in halves]
    return {"enc.": [first for first, _ in halves], "dec.": later}


class Token(NamedTuple):
    """One token: the number of its sequence, its position in what a stack reads of that, and its id."""

    sequence: int
    position: int
    id: int


def tokens_of(readable: Readable, sequences: Sequence[Ids], numbers: Sequence[int]) -> dict[str, list[Token]]:
    """The tokens that each stack shows for these sequences, in its order; `numbers` are those of the sequences."""
    return {
        stack: [
            Token(number, position, token)
            for number, ids in zip(numbers, rows, strict=True)
            for position, token in enumerate(ids)
        ]
        for stack, rows in streams(readable, sequences).items()
    }


def sampled(tokens: Sequence[Token], count: int, seed: int) -> set[Token]:
    """At most `count` of the tokens, the same whatever the batches."""
    return set(random.Random(seed).sample(tokens, min(count, len(tokens))))


# ---------------------------------------------------------------------------------------------------------------- runs


def wide(values: Tensor) -> Tensor:
    """In float64, where there is one: on Apple's GPUs there is none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


Seen = Callable[[Tap, Float[Tensor, "tokens in"], Float[Tensor, "tokens out"]], None]


@torch.inference_mode()
def run(readable: Readable, batch: Batch, places: Sequence[Tap], seen: Seen) -> None:
    """Runs the model once and shows X and Y of every tap. Raises `ModelError` for a module that never ran."""
    device = readable.device
    found = streams(readable, batch.sequences)
    padded = {stack: _padded(rows, readable.pad, device) for stack, rows in found.items()}
    real = {stack: where.flatten() for stack, (_, where) in padded.items()}

    def tokens(tap: Tap, value: Tensor) -> Float[Tensor, "tokens d"]:
        """A copy, since some families add into what a module gave."""
        return value.to(device).reshape(-1, value.shape[-1])[real[tap.stack]]

    with _tapped(readable.runs, places, tokens, seen) as missing:
        readable.runs(**_inputs(readable, padded))
    if missing:
        raise ModelError(f"{min(missing)} never ran as a module, so what passes there cannot be read.")


@torch.inference_mode()
def check_first(readable: Readable, sequences: Sequence[Ids]) -> None:
    """Runs the model on some sequences. Raises `ModelError` where the states that it gives are not finite."""
    found = {
        stack: _padded(rows, readable.pad, readable.device)
        for stack, rows in streams(readable, sequences).items()
    }
    states = readable.runs(**_inputs(readable, found)).last_hidden_state
    check_finite(readable.name, states, f"numbers after {len(sequences)} sequences")


def _padded(
    sequences: Sequence[Ids], pad: int, device: torch.device
) -> tuple[Tensor, Bool[Tensor, "rows t"]]:
    """Token ids with padding on the right, and where there is none."""
    length = max(map(len, sequences))
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in sequences], device=device)
    lengths = torch.tensor([len(row) for row in sequences], device=device)
    return ids, torch.arange(length, device=device) < lengths[:, None]


def _inputs(readable: Readable, padded: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """A decoder needs no mask: nothing to the right of a token reaches it."""
    if readable.kind == "decoder":
        return {"input_ids": padded[""][0], "use_cache": False}
    ids, mask = padded["enc."]
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    if readable.kind == "encoder-decoder":
        inputs |= {"decoder_input_ids": padded["dec."][0], "use_cache": False}
    return inputs


@contextmanager
def _tapped(
    model: nn.Module, places: Sequence[Tap], tokens: Callable[[Tap, Tensor], Tensor], seen: Seen
) -> Iterator[set[str]]:
    """While open, all taps are read; gives the paths of `writes` that have not run so far."""
    missing = {tap.writes for tap in places}
    entered: dict[Tap, Tensor] = {}

    def before(tap: Tap) -> Any:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            entered[tap] = tokens(tap, args[0] if args else kwargs["hidden_states"])

        return hook

    def arrived(tap: Tap, value: Tensor) -> None:
        y = tokens(tap, value)
        x = y if tap.kind == "last" else entered.pop(tap, None)
        if x is not None:
            missing.discard(tap.writes)
            seen(tap, x.to(y.device), y)  # blocks may lie on several devices

    def after(tap: Tap) -> Any:
        return lambda _, args, output: arrived(tap, output[0] if isinstance(output, tuple) else output)

    def within(tap: Tap) -> Any:
        return lambda _, args: arrived(tap, args[0])

    with ExitStack() as stack:
        for tap in places:
            if tap.kind != "last":
                module = model.get_submodule(tap.reads)
                stack.callback(module.register_forward_pre_hook(before(tap), with_kwargs=True).remove)
            written = model.get_submodule(tap.writes)
            handle = (
                written.register_forward_pre_hook(within(tap))
                if tap.units
                else written.register_forward_hook(after(tap))
            )
            stack.callback(handle.remove)
        yield missing
