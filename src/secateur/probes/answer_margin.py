"""Read the margin of each answer of a task: its distance from going the other way; and the loss that follows from it.

Gradients are read of the margin, not of the loss: a loss saturates, so that its gradient knows little of a large
change; a margin keeps its slope, and the loss is an exact function of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from secateur.evaluation.batching import Batch, target_logps
from secateur.evaluation.forward import scored_logits
from secateur.hf.load import Loaded
from secateur.tasks.encode import Encoded

Scores = dict[tuple[int, int], float]  # by example and continuation
RELATIVE_ERROR = (
    1.0  # standard deviation of a predicted change, as a share of it: measured in benchmarks/RESULTS.md
)
PerExample = Float[np.ndarray, " examples"]


@dataclass(frozen=True, eq=False)
class Margins:
    """Margins of some examples under a model.

    Attributes:
        odds: Log-odds of the right answer, nats: of the gold choice among the choices, or of the gold answer among all
            texts. The log-loss of the answer is softplus(−odds).
        tokens: Tokens over which the loss is a mean: 1 with choices.
    """

    odds: PerExample
    tokens: PerExample

    def expected_loss_change(self, change: PerExample) -> float:
        """Return the expected change of the mean loss where margins are predicted to change by so much, nats.

        A prediction is off by as much as it says (`RELATIVE_ERROR`), so that of two equal ones the larger cut is
        expected to do worse: E softplus(−x) of normal x is q softplus(−mean / q), q² = 1 + π variance / 8.

        The loss of a text is a sum over its tokens, each of which curves as that of a single answer does, while their
        sum is all but straight in its margin. With D the change of the text's log-likelihood, ½ D² is what the tokens'
        curvatures add up to in expectation (Fisher information), for the sum; so ½ D² / tokens for the mean.

        Source: the moments of MacKay 1992 (Neural Computation 4:720), integrated.
        """
        q = np.sqrt(1 + np.pi / 8 * (RELATIVE_ERROR * change) ** 2)
        loss = q * np.logaddexp(0, -(self.odds + change) / q) - np.logaddexp(0, -self.odds)
        likelihood = change * np.exp(-np.logaddexp(0, self.odds))  # d log P = (1 − P) d odds
        curvature = np.where(self.tokens > 1, 0.5 * likelihood**2, 0.0)
        return float(((loss + curvature) / self.tokens).mean())


@dataclass(frozen=True)
class AnswerMargin:
    """The margin of each example's answer under a model, to be read with its gradient.

    Args:
        encoded: The task's examples in tokens; without `contrast` with the gold answer alone.
        contrast: Whether the answer is one of the choices, rather than any text.
    """

    loaded: Loaded
    encoded: Mapping[int, Encoded]
    contrast: bool

    @classmethod
    def of(
        cls, loaded: Loaded, encoded: Mapping[int, Encoded], examples: Sequence[int], contrast: bool
    ) -> AnswerMargin:
        """Return the margin of some examples of a task."""
        read = {example: encoded[example] for example in examples}
        return cls(loaded, read if contrast else {e: one.gold_alone for e, one in read.items()}, contrast)

    def of_batch(self, batch: Batch, elsewhere: Scores) -> dict[int, Tensor]:
        """Return the odds of each example that has rows in the batch.

        What of an example runs in other batches is a constant here: its gradients come with those batches.

        Args:
            elsewhere: What `scores_of_split` returned.
        """
        logp = self._target_logps(batch)
        positions: dict[int, dict[int, list[int]]] = {}
        for i, (example, continuation) in enumerate(_continuations(batch)):
            positions.setdefault(example, {}).setdefault(continuation, []).append(i)
        margins = {}
        for example, by_continuation in positions.items():
            scores = []
            for number in range(len(self.encoded[example].pairs)):
                here = logp[by_continuation.get(number, [])].sum()
                whole = elsewhere.get((example, number))
                scores.append(here if whole is None else here + (whole - here.detach()))
            margins[example] = _odds(scores, self.encoded[example].gold, self.contrast)
        return margins

    def scores_of_split(self, batches: Sequence[Batch]) -> Scores:
        """Return the log-likelihood of each continuation of the examples whose rows do not all run together."""
        num_batches = Counter(example for batch in batches for example in set(batch.row_example.tolist()))
        scores: Scores = {}
        for batch in batches:
            if any(num_batches[example] > 1 for example in batch.row_example.tolist()):
                with torch.inference_mode():
                    logp = self._target_logps(batch)
                for key, value in zip(_continuations(batch), logp.tolist(), strict=True):
                    scores[key] = scores.get(key, 0.0) + value
        return scores

    def unread(self, examples: Sequence[int]) -> Margins:
        """Return the margins of some examples before they are read: 0, with the tokens of their losses."""
        golds = [self.encoded[example].pairs[self.encoded[example].gold][1] for example in examples]
        tokens = np.array([1.0 if self.contrast else len(gold) for gold in golds])
        return Margins(np.zeros(len(examples)), tokens)

    def _target_logps(self, batch: Batch) -> Float[Tensor, " targets"]:
        logits = scored_logits(self.loaded.model, self.loaded.anatomy, batch, self.loaded.device)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return target_logps(logits, batch)


def _odds(scores: Sequence[Tensor], gold: int, contrast: bool) -> Tensor:
    """Return the log-odds of the gold answer from the log-likelihoods of the choices."""
    right = scores[gold]
    if not contrast:
        surest = -torch.finfo(right.dtype).eps  # beyond, the probability rounds to 1 and the odds to infinity
        return right - torch.log(-torch.expm1(right.clamp(max=surest)))
    others = [score for number, score in enumerate(scores) if number != gold]
    if not others:  # a single choice is right whatever happens
        return 0 * right
    return right - torch.logsumexp(torch.stack(others), dim=0)


def _continuations(batch: Batch) -> list[tuple[int, int]]:
    """Return of each target its example, and which continuation of it."""
    return list(zip(batch.example.tolist(), batch.continuation.tolist(), strict=True))
