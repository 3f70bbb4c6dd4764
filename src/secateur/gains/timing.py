"""Two models timed against each other: the same tokens, turn by turn, so that what else the machine does hits both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from secateur.core.progress import Progress
from secateur.core.records.verdict import SpeedRecord
from secateur.gains.cost import prefill

T = TypeVar("T")
Pair = tuple[float, float]  # before, after
Clock = Callable[[], float]
STAGE = "prefill and decode"


@dataclass(frozen=True)
class PairedTimes:
    """Seconds of each repetition, (before, after)."""

    prefill: tuple[Pair, ...]
    decode: tuple[Pair, ...]


@torch.inference_mode()
def paired(
    models: tuple[nn.Module, nn.Module],
    tokens: Int[Tensor, "batch prompt"],
    *,
    new: int,
    repeats: int,
    progress: Progress,
    clock: Clock = time.perf_counter,
) -> PairedTimes:
    """Prefill of `tokens`, then `new` greedy steps with the cache: `repeats` times for both models, one after the
    other, and the other one first each second time. One round before that warms up and is not counted."""
    rounds = []
    for number in range(repeats + 1):
        progress(STAGE, number, repeats + 1)
        rounds.append(_round(models, tokens, new, clock, swapped=number % 2 == 1))
    progress(STAGE, repeats + 1, repeats + 1)
    return PairedTimes(tuple(first for first, _ in rounds[1:]), tuple(second for _, second in rounds[1:]))


def _round(
    models: tuple[nn.Module, nn.Module], tokens: Tensor, new: int, clock: Clock, *, swapped: bool
) -> tuple[Pair, Pair]:
    order = (1, 0) if swapped else (0, 1)
    took: dict[tuple[str, int], float] = {}
    outputs: dict[int, CausalLMOutputWithPast] = {}
    for which in order:
        took["prefill", which], outputs[which] = _timed(partial(prefill, models[which], tokens), clock)
    for which in order:

        def decoded(which: int = which) -> Tensor:
            return decode(models[which], outputs.pop(which), new)

        took["decode", which], _ = _timed(decoded, clock)
    return (took["prefill", 0], took["prefill", 1]), (took["decode", 0], took["decode", 1])


def _timed(run: Callable[[], T], clock: Clock) -> tuple[float, T]:
    _finish()
    start = clock()
    result = run()
    _finish()
    return clock() - start, result


def _finish() -> None:
    """Wait for the accelerator, which returns before it is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def decode(model: nn.Module, output: CausalLMOutputWithPast, new: int) -> Int[Tensor, "batch new"]:
    """Return `new` greedy tokens after a prefill, one forward pass each; an end-of-text token does not stop it."""
    chosen = []
    for _ in range(new):
        assert output.logits is not None
        token = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        chosen.append(token)
    return torch.cat(chosen, dim=1)


def speed(pairs: tuple[Pair, ...], tokens: int, limit: float) -> SpeedRecord:
    """Return tokens/s (medians) and the speedup (median of the ratios within pairs), each with its quartiles.

    Args:
        pairs: Seconds (before, after) of each repetition.
        tokens: How many were processed each time.
        limit: The speedup that the shapes allow.
    """
    seconds = np.asarray(pairs)  # (repeats, 2)
    rates, ratios = tokens / seconds, seconds[:, 0] / seconds[:, 1]
    speedup = float(np.median(ratios))
    return SpeedRecord(
        before=float(np.median(rates[:, 0])),
        before_iqr=_quartiles(rates[:, 0]),
        after=float(np.median(rates[:, 1])),
        after_iqr=_quartiles(rates[:, 1]),
        speedup=speedup,
        speedup_iqr=_quartiles(ratios),
        limit=limit,
        of_limit=speedup / limit,
    )


def _quartiles(values: np.ndarray) -> list[float]:
    low, high = np.percentile(values, (25, 75))
    return [float(low), float(high)]
