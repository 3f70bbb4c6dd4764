"""Batch examples for scoring, and score them: rows of tokens, batches of similar length, logits to outcomes.

Rows are padded on the right. In a causal model nothing to the right of a position reaches it, so neither the padding
nor the rest of the batch changes a score beyond rounding, and no attention mask is needed. Where a model rotates
positions by the length of the whole batch (`hf/rope.py`), rows run together only where it does the same for each; in a
masked language model, whose positions attend to all, only rows of one length do, and nothing is padded. So it is with
what an encoder reads: rows whose sources are equally long run together, and only what the decoder reads is padded.
Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.core.acts import CHOSEN, POSITIONS, STEPS
from secateur.core.fitted import Fitted
from secateur.core.score import OUTCOME
from secateur.hf.calls import Inputs, played
from secateur.hf.rope import regime
from secateur.tasks.encode import Encoded, Ids
from secateur.tasks.example import Task

T = TypeVar("T")
SMALLEST = 64  # padded tokens; where these do not fit, nothing will


@dataclass(frozen=True)
class Target:
    """The token to be predicted at `position` of its row, for one continuation of one example."""

    position: int
    token: int
    example: int
    continuation: int
    first: bool  # the first token of its continuation


@dataclass(frozen=True)
class TokenRow:
    """The tokens of one example that run as one row, and the targets that are scored in it; or the steps that it is."""

    example: int
    tokens: tuple[int, ...]
    targets: tuple[Target, ...]
    types: tuple[int, ...] = ()
    source: tuple[int, ...] = ()
    steps: Fitted | None = None


def rows_of(example: int, encoded: Encoded, switches: Sequence[int] = ()) -> list[TokenRow]:
    """Return the fewest rows that score every continuation of an example, longest first.

    A row that is the beginning of another is not run twice, where both are of one regime of `switches` (the lengths at
    which the model changes its rotation of positions).
    """
    if encoded.mask is not None:
        return _masked_rows(example, encoded, encoded.mask)
    wanted: list[tuple[Ids, Ids, list[Target]]] = []
    for number, (_, continuation) in enumerate(encoded.pairs):
        places = zip(encoded.places(number), continuation, strict=True)
        targets = [Target(place, token, example, number, i == 0) for i, (place, token) in enumerate(places)]
        wanted.append((encoded.read(number), encoded.source(number), targets))
    rows: list[tuple[Ids, Ids, list[Target]]] = []
    for tokens, source, targets in sorted(wanted, key=lambda item: -len(item[0])):
        alike = (row for row in rows if regime(len(row[0]), switches) == regime(len(tokens), switches))
        longer = next((r for r in alike if r[0][: len(tokens)] == tokens and r[1] == source), None)
        if longer is None:
            rows.append((tokens, source, targets))
        else:
            longer[2].extend(targets)
    return [
        TokenRow(example, tokens, tuple(targets), encoded.types, source, encoded.steps)
        for tokens, source, targets in rows
    ]


def _masked_rows(example: int, encoded: Encoded, mask: int) -> list[TokenRow]:
    """Return a row for each token of the one continuation, in which that token alone is the mask."""
    ((row, continuation),) = encoded.pairs
    return [
        TokenRow(
            example, (*row[:place], mask, *row[place + 1 :]), (Target(place, token, example, 0, number == 0),)
        )
        for number, (place, token) in enumerate(zip(encoded.places(0), continuation, strict=True))
    ]


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
    types: Tensor | None = None  # (rows, length) int64: which text of a pair a token is of; None: all of one
    source: Tensor | None = None  # (rows, source length) int64: what an encoder reads; None: there is none
    steps: Mapping[str, Tensor] | None = None  # of logged play, (rows, length / 3, ...), then zeros
    controls: Tensor | None = None  # (targets, act_dim): what was done, where actions are numbers

    def inputs(self, device: torch.device) -> Inputs:
        """Return the arguments of a call of the whole model."""
        if self.steps is not None:
            return played({name: tensor.to(device) for name, tensor in self.steps.items()})
        rows = {"input_ids": self.tokens} | ({} if self.types is None else {"token_type_ids": self.types})
        if self.source is not None:
            rows = {"input_ids": self.source, "decoder_input_ids": self.tokens}
        return {name: tensor.to(device) for name, tensor in rows.items()} | {"use_cache": False}

    def row(self, number: int) -> Batch:
        """Return one row of tokens, to be run but not scored."""
        assert (self.types, self.source, self.steps) == (None, None, None), "rows of tokens alone"
        return replace(self, tokens=self.tokens[number : number + 1])

    @property
    def num_tokens(self) -> int:
        """Return how many tokens run, padding included; of a decoder its own."""
        return self.tokens.numel()


def batch_of(rows: Sequence[TokenRow], pad: int) -> Batch:
    """Return the rows as tensors, padded on the right with token `pad`."""
    length = max(len(row.tokens) for row in rows)
    tokens = torch.tensor([[*row.tokens, *[pad] * (length - len(row.tokens))] for row in rows])
    types = None
    if any(row.types for row in rows):
        types = torch.tensor([[*row.types, *[0] * (length - len(row.types))] for row in rows])
    targets = [(number * length + t.position, t) for number, row in enumerate(rows) for t in row.targets]
    keep, where = torch.unique(torch.tensor([flat for flat, _ in targets]), return_inverse=True)
    columns = torch.tensor([[t.token, t.example, t.continuation, t.first] for _, t in targets]).unbind(1)
    token, example, continuation, first = columns
    row_example = torch.tensor([row.example for row in rows])
    source = torch.tensor([row.source for row in rows]) if rows[0].source else None
    batch = Batch(tokens, keep, where, token, example, continuation, first.bool(), row_example, types, source)
    logged = [row.steps.content for row in rows if row.steps is not None]
    if not logged:
        return batch
    steps = {name: _side_by_side([one[name] for one in logged]) for name in STEPS}
    taken = steps["actions"].flatten(0, 1)[torch.tensor([flat // POSITIONS for flat, _ in targets])]
    return replace(batch, steps=steps, controls=taken if logged[0][CHOSEN].size == 0 else None)


def _side_by_side(arrays: Sequence[np.ndarray]) -> Tensor:
    """Return arrays of several lengths as rows of one tensor, with zeros after the end of each."""
    return nn.utils.rnn.pad_sequence([torch.from_numpy(array) for array in arrays], batch_first=True)


@dataclass(frozen=True)
class Packing:
    """The limits of one forward pass: padded tokens, and positions whose logits are computed.

    Rows of different regimes of `switches` never run together.
    """

    max_tokens: int
    max_kept: int
    pad: int
    switches: Sequence[int] = ()

    def halved(self) -> Packing:
        """Return half of both limits."""
        return replace(self, max_tokens=self.max_tokens // 2, max_kept=self.max_kept // 2)

    def regime(self, row: Sequence[int]) -> int:
        """Return how many switches of rotation these tokens are beyond (`hf/rope.py`)."""
        return regime(len(row), self.switches)

    def pack(self, encoded: Mapping[int, Encoded], examples: Iterable[int]) -> list[Batch]:
        """Return the examples in batches of similar length; the rows of one example and one regime stay together, but
        for those with one mask each, which are as many as tokens."""
        rows = [group for example in examples for group in self._together(example, encoded[example])]
        batches: list[list[TokenRow]] = []
        kept = 0
        for group in sorted(
            rows, key=lambda group: (len(group[0].source), len(group[0].tokens), group[0].example)
        ):
            targets = sum(len(row.targets) for row in group)
            width = max(len(row.tokens) + len(row.source) for row in group)
            fits = (
                batches
                and self.regime(batches[-1][0].tokens) == self.regime(group[0].tokens)
                and len(batches[-1][0].source) == len(group[0].source)
                and (len(batches[-1]) + len(group)) * width <= self.max_tokens
                and kept + targets <= self.max_kept
            )
            if not fits:
                batches.append([])
                kept = 0
            batches[-1].extend(group)
            kept += targets
        return [batch_of(group, self.pad) for group in batches]

    def _together(self, example: int, one: Encoded) -> list[list[TokenRow]]:
        """Return the rows of an example in groups that run together."""
        rows = sorted(rows_of(example, one, self.switches), key=lambda row: len(row.source))
        if one.mask is not None:
            return [[row] for row in rows]
        alike = groupby(rows, lambda row: (self.regime(row.tokens), len(row.source)))
        return [list(group) for _, group in alike]


def with_room(packing: Packing, run: Callable[[Packing], T]) -> T:
    """Return what `run` gives with `packing`; each time memory runs out, try again with half of it.

    Raises: `torch.OutOfMemoryError` where fewer than `SMALLEST` padded tokens do not fit.
    """
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
    """Yield examples of similar length, as many at a time as `cache_bytes` hold at `width` bytes a token."""
    shard: list[int] = []
    used = 0
    for example in sorted(examples, key=lambda e: (encoded[e].longest, e)):
        need = width * encoded[example].num_run
        if shard and used + need > cache_bytes:
            yield shard
            shard, used = [], 0
        shard.append(example)
        used += need
    if shard:
        yield shard


# ---------------------------------------------------------------------------------------------------------- outcomes


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Scores of each target of a batch; (targets,) numpy columns beside the batch's own."""

    logp: np.ndarray  # float64, log p(target)
    rank: np.ndarray  # int64, tokens likelier than the target
    top: np.ndarray  # int64, the likeliest token there


def target_logps(logits: Float[Tensor, "kept vocab"], batch: Batch) -> Float[Tensor, " targets"]:
    """Return the log-likelihood of each target, by a log-softmax.

    Of actions that are numbers it is minus the mean of their squared errors, as of a normal distribution up to a
    constant.
    """
    where, token = batch.where.to(logits.device), batch.token.to(logits.device)
    if batch.controls is not None:
        return -(logits[where] - batch.controls.to(logits)).square().mean(dim=1)
    return logits[where, token] - torch.logsumexp(logits, dim=1)[where]


def token_scores(logits: Float[Tensor, "kept vocab"], batch: Batch, ban: Sequence[int] = ()) -> TokenScores:
    """Score the targets of a batch by a log-softmax in float32 or wider.

    Args:
        ban: Tokens that may not be answered: their logits become −∞.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if ban:
        logits = logits.index_fill(1, torch.tensor(list(ban), device=logits.device), -torch.inf)
    logp = target_logps(logits, batch)
    where, token = batch.where.to(logits.device), batch.token.to(logits.device)
    value = logits[where, token]
    # a rank needs the whole vocabulary at its position; only those of first tokens are ever used
    rank = torch.full_like(token, -1)
    first = batch.first.to(logits.device)
    positions = where[first]
    each_once = torch.equal(positions, torch.arange(len(logits), device=positions.device))
    likelier = (logits if each_once else logits[positions]) > value[first, None]
    rank[first] = likelier.sum(dim=1, dtype=torch.int32).long()  # int32: 20 times as fast as int64 on a CPU
    top = logits.argmax(dim=1)[where]
    return TokenScores(logp.double().cpu().numpy(), rank.cpu().numpy(), top.cpu().numpy())


@dataclass
class Tally:
    """Collect token scores of many batches, by (example, continuation), until whole examples can be judged."""

    task: Task
    encoded: Mapping[int, Encoded]
    logp: dict[tuple[int, int], float] = field(default_factory=dict)
    exact: dict[tuple[int, int], bool] = field(default_factory=dict)
    first: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """The rank of the first token of a continuation, and the likeliest token there."""

    def add(self, batch: Batch, scores: TokenScores) -> None:
        """Add the scores of one batch."""
        columns = (batch.example, batch.continuation, batch.token, batch.first)
        rows = zip(
            *(c.tolist() for c in columns),
            scores.logp.tolist(),
            scores.rank.tolist(),
            scores.top.tolist(),
            strict=True,
        )
        for example, continuation, token, first, logp, rank, top in rows:
            key = (example, continuation)
            self.logp[key] = self.logp.get(key, 0.0) + logp
            self.exact[key] = self.exact.get(key, True) and top == token
            if first:
                self.first[key] = (rank, top)

    def choice_logps(self, example: int) -> list[float]:
        """Return the log-likelihood of each continuation of an example."""
        return [self.logp[example, number] for number in range(len(self.encoded[example].pairs))]

    def outcomes(self, examples: Sequence[int]) -> np.ndarray:
        """Return OUTCOME rows in the order of `examples`."""
        out = np.zeros(len(examples), dtype=OUTCOME)
        for row, example in zip(out, examples, strict=True):
            encoded = self.encoded[example]
            gold = (example, encoded.gold)
            tokens = len(encoded.pairs[encoded.gold][1])
            rank, top = self.first[gold]
            row["example"], row["tokens"], row["rank"] = example, tokens, rank
            row["loss"] = -self.logp[gold] / tokens
            kind = self.task.member(example).kind
            for name in ("correct", "correct_norm", "choice_loss"):
                row[name] = np.nan
            if kind == "choice":
                self._fill_choice(row, example, encoded)
            elif kind == "generation":
                row["correct"], row["predicted"] = float(self.exact[gold]), top
            else:
                row["predicted"] = -1
        return out

    def _fill_choice(self, row: np.void, example: int, encoded: Encoded) -> None:
        """Fill in the likeliest choice, by itself and per character, and the gold one's share of all likelihood."""
        logps = np.array(self.choice_logps(example))
        chosen, chosen_norm = int(logps.argmax()), int((logps / np.array(encoded.lengths)).argmax())
        row["predicted"] = chosen
        row["correct"], row["correct_norm"] = chosen == encoded.gold, chosen_norm == encoded.gold
        row["choice_loss"] = np.logaddexp.reduce(logps) - logps[encoded.gold]
