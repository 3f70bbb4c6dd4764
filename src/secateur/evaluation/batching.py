"""What has to be run to score examples: rows of tokens, the positions that count, and batches of similar length.

Rows are padded on the right. In a causal model nothing to the right of a position reaches it, so neither the padding
nor the rest of the batch changes a score beyond rounding, and no attention mask is needed. Where a model rotates
positions by the length of the whole batch (`hf/rope.py`), rows run together only where it does the same for each.
Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from secateur.hf.rope import regime
from secateur.tasks.encode import Encoded

T = TypeVar("T")
SMALLEST = 64  # padded tokens; where these do not fit, nothing will


@dataclass(frozen=True)
class Target:
    """The token that should follow `position` in its row, for one continuation of one example."""

    position: int
    token: int
    example: int
    continuation: int
    first: bool  # the first token of its continuation


@dataclass(frozen=True)
class Row:
    example: int
    tokens: tuple[int, ...]
    targets: tuple[Target, ...]


def rows_of(example: int, encoded: Encoded, switches: Sequence[int] = ()) -> list[Row]:
    """The fewest rows that score every continuation, longest first: a row that is the beginning of another is not run
    twice, where both are of one regime of `switches`."""
    wanted: list[tuple[tuple[int, ...], list[Target]]] = []
    for number, (context, continuation) in enumerate(encoded.pairs):
        start = len(context) - 1
        targets = [Target(start + i, token, example, number, i == 0) for i, token in enumerate(continuation)]
        wanted.append((context + continuation[:-1], targets))
    rows: list[tuple[tuple[int, ...], list[Target]]] = []
    for tokens, targets in sorted(wanted, key=lambda item: -len(item[0])):
        own = regime(len(tokens), switches)
        alike = (row for row in rows if regime(len(row[0]), switches) == own)
        longer = next((row for row in alike if row[0][: len(tokens)] == tokens), None)
        if longer is None:
            rows.append((tokens, targets))
        else:
            longer[1].extend(targets)
    return [Row(example, tokens, tuple(targets)) for tokens, targets in rows]


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows side by side. `keep` are the flat (row × length) positions whose logits count; targets index into it."""

    tokens: Tensor  # (rows, length) int64
    keep: Tensor  # (kept,) int64, ascending
    where: Tensor  # (targets,) index into keep
    token: Tensor  # (targets,)
    example: Tensor  # (targets,)
    continuation: Tensor  # (targets,)
    first: Tensor  # (targets,) bool
    row_example: Tensor  # (rows,)

    @property
    def num_tokens(self) -> int:
        return self.tokens.numel()


def batch_of(rows: Sequence[Row], pad: int) -> Batch:
    length = max(len(row.tokens) for row in rows)
    tokens = torch.tensor([[*row.tokens, *[pad] * (length - len(row.tokens))] for row in rows])
    targets = [(number * length + t.position, t) for number, row in enumerate(rows) for t in row.targets]
    keep, where = torch.unique(torch.tensor([flat for flat, _ in targets]), return_inverse=True)
    columns = torch.tensor([[t.token, t.example, t.continuation, t.first] for _, t in targets]).unbind(1)
    token, example, continuation, first = columns
    row_example = torch.tensor([row.example for row in rows])
    return Batch(tokens, keep, where, token, example, continuation, first.bool(), row_example)


@dataclass(frozen=True)
class Packing:
    """The limits of one forward pass: padded tokens, and positions whose logits are computed. Rows of different
    regimes of `switches` never run together."""

    max_tokens: int
    max_kept: int
    pad: int
    switches: tuple[int, ...] = ()

    def halved(self) -> Packing:
        return replace(self, max_tokens=self.max_tokens // 2, max_kept=self.max_kept // 2)

    def regime(self, row: Sequence[int]) -> int:
        """Counts the switches of rotation that these tokens are beyond (`hf/rope.py`)."""
        return regime(len(row), self.switches)

    def pack(self, encoded: Mapping[int, Encoded], examples: Iterable[int]) -> list[Batch]:
        """Examples sorted by length and cut into batches; the rows of one example and one regime lie in one batch."""
        rows = [group for example in examples for group in self._together(example, encoded[example])]
        batches: list[list[Row]] = []
        kept = 0
        for group in sorted(rows, key=lambda group: (len(group[0].tokens), group[0].example)):
            targets = sum(len(row.targets) for row in group)
            width = max(len(row.tokens) for row in group)
            fits = (
                batches
                and self.regime(batches[-1][0].tokens) == self.regime(group[0].tokens)
                and (len(batches[-1]) + len(group)) * width <= self.max_tokens
                and kept + targets <= self.max_kept
            )
            if not fits:
                batches.append([])
                kept = 0
            batches[-1].extend(group)
            kept += targets
        return [batch_of(group, self.pad) for group in batches]

    def _together(self, example: int, encoded: Encoded) -> Iterator[list[Row]]:
        """The rows of one example, those of one regime together."""
        rows = rows_of(example, encoded, self.switches)
        for _, group in groupby(rows, lambda row: self.regime(row.tokens)):
            yield list(group)


def with_room(packing: Packing, run: Callable[[Packing], T]) -> T:
    """What `run` gives with `packing`, or with half of it, and half of that, as often as memory runs out."""
    while True:
        try:
            return run(packing)
        except torch.OutOfMemoryError:
            if packing.max_tokens < SMALLEST:
                raise
            packing = packing.halved()


def shards(
    examples: Sequence[int], encoded: Mapping[int, Encoded], width: int, cache_bytes: int
) -> Iterator[list[int]]:
    """Examples of similar length, as many as `cache_bytes` hold at `width` bytes a token."""
    shard: list[int] = []
    used = 0
    for example in sorted(examples, key=lambda e: (encoded[e].longest, e)):
        need = width * sum(len(context) + len(answer) for context, answer in encoded[example].pairs)
        if shard and used + need > cache_bytes:
            yield shard
            shard, used = [], 0
        shard.append(example)
        used += need
    if shard:
        yield shard
