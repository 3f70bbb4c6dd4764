"""Count outlier tokens, whose vectors are many times as long as those of most tokens at the same place.

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
from secateur.probes.hooks import HookPoint, Ids, Token, batches, run, wide

TIMES = 5.0
"""An outlier token's norm is above so many median norms. Origin: at 5, one token in 26 holds half of a sum of squares;
and in SmolLM2-135M on prose nearly all tokens stay below 4 median norms in every block, while those that decide the
score of a block lie at 5 to 14 (blocks 2 to 9) and at 20 to 220 (blocks 11 to 28)."""
SAMPLE = 4096  # tokens that medians are taken over: a second pass over these alone, however long the text is
LISTED = 10  # positions, and token ids, that are named; the most frequent ones

Medians = tuple[
    float, ...
]  # of the norms of what enters a place, of what leaves it, and of what a block adds


class OutlierShare(NamedTuple):
    """A position or a token id, how many of its tokens are outliers, and how many tokens it has."""

    key: int
    num_outliers: int
    num_tokens: int


@dataclass(frozen=True)
class Outliers:
    """The outlier tokens of one place: their number, and the positions and token ids most frequent among them.

    `largest` is in median norms.
    """

    count: int
    largest: float
    positions: tuple[OutlierShare, ...]
    tokens: tuple[OutlierShare, ...]


class Totals:
    """Count the tokens of a stack by position and by id."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.positions = Counter(token.position for token in tokens)
        self.ids = Counter(token.id for token in tokens)


def norms(
    point: HookPoint, x: Float[Tensor, "tokens in"], y: Float[Tensor, "tokens out"]
) -> Float[Tensor, "kinds tokens"]:
    """Return the norm of the input of a place, of its output, and of a block (where that is defined) of the
    difference."""
    kinds = [x, y]
    if point.kind == "block" and point.comparable:
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
    points: Sequence[HookPoint],
    *,
    packing: Packing,
    seed: int = 0,
    types: Sequence[Ids] = (),
    progress: Progress = silent,
) -> Mapping[HookPoint, Medians]:
    """Return the (lower) median norms at every hook point over all tokens, or over whole sequences drawn by `seed` that
    have SAMPLE tokens together."""
    numbers = _drawn(sequences, seed)
    drawn = [sequences[number] for number in numbers]
    told = [types[number] for number in numbers] if types else ()

    def read(packing: Packing) -> Mapping[HookPoint, Medians]:
        planned = list(batches(drawn, [False] * len(drawn), packing, told))
        found: dict[HookPoint, list[Tensor]] = {point: [] for point in points}
        for done, batch in enumerate(planned, start=1):
            run(
                readable,
                batch,
                points,
                lambda point, x, y: found[point].append(norms(point, wide(x), wide(y)).cpu()),
            )
            progress("norms", done, len(planned))
        return {
            point: tuple(torch.cat(each, dim=1).median(dim=1).values.tolist())
            for point, each in found.items()
        }

    return with_room(packing, read)


def _drawn(sequences: Sequence[Ids], seed: int) -> list[int]:
    """Return numbers of sequences, in random order, until those before have SAMPLE tokens."""
    order = list(range(len(sequences)))
    random.Random(seed).shuffle(order)
    before = accumulate((len(sequences[number]) for number in order), initial=0)
    return [number for number, tokens in zip(order, before, strict=False) if tokens < SAMPLE]


class OutlierCounter:
    """Count the outlier tokens of one place."""

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
    def result(self) -> Outliers | None:
        """Return what was counted; None where there are no outlier tokens."""
        if not self._positions:
            return None
        positions = _listed(self._positions, self._totals.positions)
        tokens = _listed(self._ids, self._totals.ids)
        return Outliers(self._positions.total(), self._largest, positions, tokens)


def _listed(counts: Counter[int], totals: Counter[int]) -> tuple[OutlierShare, ...]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(OutlierShare(key, count, totals[key]) for key, count in ordered[:LISTED])
