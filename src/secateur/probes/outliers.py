"""Outlier tokens: those whose vectors are many times as long as most tokens' where they pass.

In most decoders the first token of a text carries "massive activations" (Sun et al. 2024, arXiv 2402.17762), and so do
a few others. In sums of squares, which linearity scores are made of, such tokens outweigh all others together.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.core.progress import Progress, silent
from secateur.evaluation.batching import Packing, with_room
from secateur.hf.readable import Readable
from secateur.probes.hooks import Ids, Tap, Token, batches, run, wide

TIMES = 5.0
"""An outlier token's norm is above so many median norms. Origin: at 5, one token in 26 holds half of a sum of squares;
and in SmolLM2-135M on prose nearly all tokens stay below 4 median norms in every block, while those that decide the
score of a block lie at 5 to 14 (blocks 2 to 9) and at 20 to 220 (blocks 11 to 28)."""
SAMPLE = 4096  # tokens that medians are taken over: a second pass over these alone, however long the text is
LISTED = 10  # positions, and token ids, that are named; the most frequent ones

Medians = tuple[
    float, ...
]  # of the norms of what enters a place, of what leaves it, and of what a block adds


class Often(NamedTuple):
    """A position or a token id, how many of its tokens are outliers, and how many tokens it has."""

    which: int
    count: int
    of: int


@dataclass(frozen=True)
class Outliers:
    """How many outlier tokens pass a place. `largest` is in median norms. Of `positions` and of `tokens` (ids) the ones
    that are most frequent among them."""

    count: int
    largest: float
    positions: tuple[Often, ...]
    tokens: tuple[Often, ...]


class Totals:
    """How many tokens of a stack have each position, and each id."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.positions = Counter(token.position for token in tokens)
        self.ids = Counter(token.id for token in tokens)


def norms(
    tap: Tap, x: Float[Tensor, "tokens in"], y: Float[Tensor, "tokens out"]
) -> Float[Tensor, "kinds tokens"]:
    """Return the norm of what enters a place, of what leaves it, and of a block (where that is defined) of what it
    adds."""
    kinds = [x, y]
    if tap.kind == "block" and tap.comparable:
        kinds.append(y - x)
    return torch.stack([vectors.norm(dim=1) for vectors in kinds])


def times_median(norms: Float[Tensor, "kinds tokens"], medians: Medians) -> Float[Tensor, " tokens"]:
    """Return each token's norm in median norms, of the kind where that is largest. Where most tokens have norm 0 none
    is an outlier."""
    usual = norms.new_tensor(medians)[:, None]
    return torch.where(usual > 0, norms / usual, 0).amax(dim=0)


def median_norms(
    readable: Readable,
    sequences: Sequence[Ids],
    taps: Sequence[Tap],
    *,
    packing: Packing,
    seed: int = 0,
    progress: Progress = silent,
) -> Mapping[Tap, Medians]:
    """Return the (lower) median norms at every tap over all tokens, or over whole sequences drawn by `seed` that have
    SAMPLE tokens together."""
    drawn = [sequences[number] for number in _drawn(sequences, seed)]

    def read(packing: Packing) -> Mapping[Tap, Medians]:
        planned = list(batches(drawn, [False] * len(drawn), packing))
        found: dict[Tap, list[Tensor]] = {tap: [] for tap in taps}
        for done, batch in enumerate(planned, start=1):
            run(
                readable, batch, taps, lambda tap, x, y: found[tap].append(norms(tap, wide(x), wide(y)).cpu())
            )
            progress("norms", done, len(planned))
        return {tap: tuple(torch.cat(one, dim=1).median(dim=1).values.tolist()) for tap, one in found.items()}

    return with_room(packing, read)


def _drawn(sequences: Sequence[Ids], seed: int) -> list[int]:
    """Numbers of sequences, in random order, until those before have SAMPLE tokens."""
    order = list(range(len(sequences)))
    random.Random(seed).shuffle(order)
    before = accumulate((len(sequences[number]) for number in order), initial=0)
    return [number for number, tokens in zip(order, before, strict=False) if tokens < SAMPLE]


class Count:
    """Counts the outlier tokens that pass one place."""

    def __init__(self, medians: Medians, totals: Totals) -> None:
        self._medians, self._totals = medians, totals
        self._largest = 0.0
        self._positions: Counter[int] = Counter()
        self._ids: Counter[int] = Counter()

    def outlying(
        self, norms: Float[Tensor, "kinds tokens"], tokens: Sequence[Token]
    ) -> Bool[Tensor, " tokens"]:
        """Return which of these tokens are outliers, and count them."""
        times = times_median(norms, self._medians)
        far = times > TIMES
        for place in far.nonzero().flatten().tolist():
            self._positions[tokens[place].position] += 1
            self._ids[tokens[place].id] += 1
        self._largest = max(self._largest, float(times.max()))
        return far

    @property
    def found(self) -> Outliers | None:
        """What was counted; None where there are no outlier tokens."""
        if not self._positions:
            return None
        positions = _listed(self._positions, self._totals.positions)
        tokens = _listed(self._ids, self._totals.ids)
        return Outliers(self._positions.total(), self._largest, positions, tokens)


def _listed(counts: Counter[int], totals: Counter[int]) -> tuple[Often, ...]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Often(which, count, totals[which]) for which, count in ordered[:LISTED])
