"""From the log-probabilities of target tokens to one outcome per example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.score import OUTCOME
from secateur.evaluation.batching import Batch
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Task


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What the model says at each target of a batch; (targets,) numpy columns beside the batch's own."""

    logp: np.ndarray  # float64, log p(target)
    rank: np.ndarray  # int64, tokens likelier than the target
    top: np.ndarray  # int64, the likeliest token there


def token_scores(logits: Float[Tensor, "kept vocab"], batch: Batch, ban: Sequence[int] = ()) -> TokenScores:
    """Log-softmax in float32 or wider. `ban` are tokens that may not be answered: their logits become −∞ there."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if ban:
        logits = logits.index_fill(1, torch.tensor(list(ban), device=logits.device), -torch.inf)
    where, token = batch.where.to(logits.device), batch.token.to(logits.device)
    value = logits[where, token]
    logp = value - torch.logsumexp(logits, dim=1)[where]
    # ranks need the whole vocabulary at a target's position; only first tokens are ever asked for theirs
    rank = torch.full_like(token, -1)
    first = batch.first.to(logits.device)
    asked = where[first]
    each_once = torch.equal(asked, torch.arange(len(logits), device=asked.device))
    likelier = (logits if each_once else logits[asked]) > value[first, None]
    rank[first] = likelier.sum(dim=1, dtype=torch.int32).long()  # int32: 20 times as fast as int64 on a CPU
    top = logits.argmax(dim=1)[where]
    return TokenScores(logp.double().cpu().numpy(), rank.cpu().numpy(), top.cpu().numpy())


@dataclass
class Tally:
    """Collects token scores of many batches, per (example, continuation), until whole examples can be judged."""

    task: Task
    encoded: Mapping[int, Encoded]
    logp: dict[tuple[int, int], float] = field(default_factory=dict)
    exact: dict[tuple[int, int], bool] = field(default_factory=dict)
    first: dict[tuple[int, int], tuple[int, int]] = field(
        default_factory=dict
    )  # (rank, top token) at the first token

    def add(self, batch: Batch, scores: TokenScores) -> None:
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
        """Log-likelihood of each continuation of an example."""
        return [self.logp[example, number] for number in range(len(self.encoded[example].pairs))]

    def outcomes(self, examples: Sequence[int]) -> np.ndarray:
        """OUTCOME rows in the order of `examples`."""
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
                self._choose(row, example, encoded)
            elif kind == "generation":
                row["correct"], row["predicted"] = float(self.exact[gold]), top
            else:
                row["predicted"] = -1
        return out

    def _choose(self, row: np.void, example: int, encoded: Encoded) -> None:
        """Which choice is likeliest, by itself and per character, and the gold one's share of all likelihood."""
        logps = np.array(self.choice_logps(example))
        chosen, chosen_norm = int(logps.argmax()), int((logps / np.array(encoded.lengths)).argmax())
        row["predicted"] = chosen
        row["correct"], row["correct_norm"] = chosen == encoded.gold, chosen_norm == encoded.gold
        row["choice_loss"] = np.logaddexp.reduce(logps) - logps[encoded.gold]
