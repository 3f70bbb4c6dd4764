"""Run tokens through a model of any kind that can be read, and observe chosen places of it by hooks.

Padding lies on the right and is never shown.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from secateur.core.readings import FINER
from secateur.errors import ModelError
from secateur.evaluation.batching import Packing
from secateur.hf.calls import entering, leaving
from secateur.hf.readable import Readable
from secateur.hf.running import check_finite
from secateur.hf.stacks import Stack, Sublayer, Weight

Ids = Sequence[int]


HEADS, MATRICES = FINER


@dataclass(frozen=True)
class Unit:
    """A head or a matrix: its output is its weight times those columns of a hook point's Y that it reads."""

    site: str
    weight: Weight


@dataclass(frozen=True)
class HookPoint:
    """A place to observe: X is the input of the module `reads`, Y the output of the module `writes`.

    Attributes:
        kind: `block`, `part`, `units`, or `last` (the output of the last block, as X and as Y).
        comparable: Y (of a block Y less X) is what was added to the stream.
        units: With them Y is the input of `writes`, of which each unit computes a linear map.
    """

    kind: str
    site: str
    stack: str
    reads: str
    writes: str
    comparable: bool = True
    units: tuple[Unit, ...] = ()


def hook_points(
    readable: Readable, blocks: Sequence[int] | None = None, *, parts: bool = False, finer: Sequence[str] = ()
) -> list[HookPoint]:
    """Return every block (of `blocks`) of every stack, and its parts where a norm follows them and in encoder-decoders.

    Args:
        parts: Return the parts everywhere.
        finer: `heads` and `matrices`: return the parts everywhere, and their heads or matrices.
    """
    found: list[HookPoint] = []
    for stack in readable.stacks:
        with_parts = parts or bool(finer) or stack.norm != "pre" or readable.kind == "encoder-decoder"
        for number in range(len(stack.blocks)) if blocks is None else blocks:
            found.extend(_of_block(stack, number, with_parts, finer))
        if blocks is None or len(stack.blocks) - 1 in blocks:
            path = stack.blocks[-1].path
            found.append(HookPoint("last", f"{stack.prefix}last", stack.prefix, path, path))
    return found


def _of_block(stack: Stack, number: int, parts: bool, finer: Sequence[str]) -> Iterator[HookPoint]:
    block = stack.blocks[number]
    yield HookPoint("block", stack.site(number), stack.prefix, block.path, block.path, stack.norm != "post")
    for part in block.parts if parts else ():
        yield HookPoint("part", stack.site(number, part.name), stack.prefix, part.reads, part.writes)
        if HEADS in finer and part.num_heads:
            yield _of_heads(stack, number, part)
        for reader in (
            part.readers if MATRICES in finer else ()
        ):  # from a stream to the matrices behind its norm
            units = tuple(Unit(stack.site(number, name), weight) for name, weight in reader.matrices)
            site = f"{stack.site(number, part.name)}.matrices"
            if units:
                yield HookPoint("units", site, reader.stack, reader.enters, reader.reads, units=units)


def _of_heads(stack: Stack, number: int, part: Sublayer) -> HookPoint:
    """Return the point from the input of the attention to the heads' outputs; a head adds its columns of o times its
    output to the stream."""
    count = part.num_heads
    heads = (
        Unit(stack.site(number, part.name, head), Weight(part.projects, share=(head, count)))
        for head in range(count)
    )
    site = f"{stack.site(number, part.name)}.heads"
    return HookPoint("units", site, stack.prefix, part.reads, part.projects, units=tuple(heads))


# -------------------------------------------------------------------------------------------------------------- tokens


@dataclass(frozen=True)
class SequenceBatch:
    """Sequences that run together, all `held_out` or none; `numbers` are their indices.

    `types` says of which text of a pair each token is, where the model is told.
    """

    numbers: tuple[int, ...]
    sequences: tuple[Ids, ...]
    held_out: bool
    types: tuple[Ids, ...] = ()


def batches(
    sequences: Sequence[Ids], held_out: Sequence[bool], packing: Packing, types: Sequence[Ids] = ()
) -> Iterator[SequenceBatch]:
    """Yield sequences of similar length, as many at a time as `packing` allows; with `types` each with its own."""

    def together(group: Sequence[int], side: bool) -> SequenceBatch:
        rows, told = (tuple(of[n] for n in group) if of else () for of in (sequences, types))
        return SequenceBatch(tuple(group), rows, side, told)

    for side in (False, True):
        group: list[int] = []
        numbers = [number for number, out in enumerate(held_out) if out == side]
        for number in sorted(numbers, key=lambda n: (len(sequences[n]), n)):
            row = sequences[number]
            full = (len(group) + 1) * len(row) > packing.max_tokens
            if group and (full or packing.regime(row) != packing.regime(sequences[group[-1]])):
                yield together(group, side)
                group = []
            group.append(number)
        if group:
            yield together(group, side)


def stack_inputs(readable: Readable, sequences: Iterable[Ids]) -> dict[str, list[Ids]]:
    """Return the input of each stack, by its prefix. An encoder-decoder reads the first half and continues with the
    second."""
    if readable.kind != "encoder-decoder":
        return {readable.stacks[0].prefix: list(sequences)}
    halves = [(ids[: (len(ids) + 1) // 2], ids[(len(ids) + 1) // 2 :]) for ids in sequences]
    assert readable.start is not None, "a decoder behind an encoder has a first token"
    later: list[Ids] = [(readable.start, *second[:-1]) for _, second in halves]
    return {"enc.": [first for first, _ in halves], "dec.": later}


class Token(NamedTuple):
    """One token: the number of its sequence, its position in what a stack reads of that, and its id."""

    sequence: int
    position: int
    id: int


def tokens_of(readable: Readable, sequences: Sequence[Ids], numbers: Sequence[int]) -> dict[str, list[Token]]:
    """Return the tokens that each stack reads of these sequences, in its order; `numbers` are their indices."""
    return {
        stack: [
            Token(number, position, token)
            for number, ids in zip(numbers, rows, strict=True)
            for position, token in enumerate(ids)
        ]
        for stack, rows in stack_inputs(readable, sequences).items()
    }


def sampled(tokens: Sequence[Token], count: int, seed: int) -> set[Token]:
    """Draw at most `count` of the tokens, the same whatever the batches."""
    return set(random.Random(seed).sample(tokens, min(count, len(tokens))))


# ---------------------------------------------------------------------------------------------------------------- runs


def wide(values: Tensor) -> Tensor:
    """Return the values in float64, on the CPU where the device has none (Apple's GPUs)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


Observe = Callable[[HookPoint, Float[Tensor, "tokens in"], Float[Tensor, "tokens out"]], None]


@torch.inference_mode()
def run(readable: Readable, batch: SequenceBatch, points: Sequence[HookPoint], observe: Observe) -> None:
    """Run the model once and pass X and Y of every hook point to `observe`.

    Raises: `ModelError` for a module that never ran.
    """
    device = readable.device
    inputs = stack_inputs(readable, batch.sequences)
    padded = {stack: _padded(rows, readable.pad, device) for stack, rows in inputs.items()}
    real = {stack: where.flatten() for stack, (_, where) in padded.items()}

    def tokens(point: HookPoint, value: Tensor) -> Float[Tensor, "tokens d"]:
        """Return a copy, since some families add to the output of a module in place."""
        return value.to(device).reshape(-1, value.shape[-1])[real[point.stack]]

    given = _inputs(readable, padded)
    if any(batch.types):
        length = max(map(len, batch.sequences))
        rows = [[*types, *[0] * (length - len(types))] for types in batch.types]
        given["token_type_ids"] = torch.tensor(rows, device=device)
    with _hooked(readable.runs, points, tokens, observe) as missing:
        readable.runs(**given)
    if missing:
        raise ModelError(f"{min(missing)} never ran as a module, so what passes there cannot be read.")


@torch.inference_mode()
def check_first(readable: Readable, sequences: Sequence[Ids]) -> None:
    """Run the model on some sequences. Raises: `ModelError` where its last states are not finite."""
    padded = {
        stack: _padded(rows, readable.pad, readable.device)
        for stack, rows in stack_inputs(readable, sequences).items()
    }
    states = readable.runs(**_inputs(readable, padded)).last_hidden_state
    check_finite(readable.name, states, f"numbers after {len(sequences)} sequences")


def _padded(
    sequences: Sequence[Ids], pad: int, device: torch.device
) -> tuple[Tensor, Bool[Tensor, "rows t"]]:
    """Return token ids with padding on the right, and a mask that is True where there is a token."""
    length = max(map(len, sequences))
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in sequences], device=device)
    lengths = torch.tensor([len(row) for row in sequences], device=device)
    return ids, torch.arange(length, device=device) < lengths[:, None]


def _inputs(readable: Readable, padded: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor | bool]:
    """Return the arguments of the model. A decoder needs no mask: nothing to the right of a token reaches it."""
    ids, mask = padded[readable.stacks[0].prefix]
    if readable.kind == "decoder":
        return {"input_ids": ids, "use_cache": False}
    inputs: dict[str, Tensor | bool] = {"input_ids": ids, "attention_mask": mask.long()}
    if readable.kind == "encoder-decoder":
        inputs |= {"decoder_input_ids": padded["dec."][0], "use_cache": False}
    return inputs


@contextmanager
def _hooked(
    model: nn.Module,
    points: Sequence[HookPoint],
    tokens: Callable[[HookPoint, Tensor], Tensor],
    observe: Observe,
) -> Iterator[set[str]]:
    """Inside, observe all hook points; yield the paths of `writes` that have not run so far."""
    missing = {point.writes for point in points}
    entered: dict[HookPoint, Tensor] = {}

    def before(point: HookPoint) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            entered[point] = tokens(point, entering(args, kwargs))

        return hook

    def arrived(point: HookPoint, value: Tensor) -> None:
        y = tokens(point, value)
        x = y if point.kind == "last" else entered.pop(point, None)
        if x is not None:
            missing.discard(point.writes)
            observe(point, x.to(y.device), y)  # blocks may lie on several devices

    def after(point: HookPoint) -> Callable[..., None]:
        return lambda _, args, output: arrived(point, leaving(output))

    def within(point: HookPoint) -> Callable[..., None]:
        return lambda _, args: arrived(point, args[0])

    with ExitStack() as stack:
        for point in points:
            if point.kind != "last":
                module = model.get_submodule(point.reads)
                stack.callback(module.register_forward_pre_hook(before(point), with_kwargs=True).remove)
            written = model.get_submodule(point.writes)
            handle = (
                written.register_forward_pre_hook(within(point))
                if point.units
                else written.register_forward_hook(after(point))
            )
            stack.callback(handle.remove)
        yield missing
