"""The loss whose gradients are read: of the answers of a task, each example by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.evaluation.batching import Batch
from secateur.evaluation.forward import gathered
from secateur.hf.load import Loaded
from secateur.tasks.encode import Encoded

Scores = dict[tuple[int, int], float]  # by example and continuation


@dataclass(frozen=True)
class AnswerLoss:
    """The mean log-loss of the gold answer's tokens, or with `contrast` that of the gold choice among the choices.

    Args:
        encoded: The task's examples in tokens; without `contrast` with the gold answer alone.
    """

    loaded: Loaded
    encoded: Mapping[int, Encoded]
    contrast: bool

    def summed(self, batch: Batch, elsewhere: Scores) -> Tensor:
        """Return the sum over the batch's examples, so that each row's gradient is that of its own example.

        Choices of an example that run in other batches are constants here: their gradients come with those batches.

        Args:
            elsewhere: `scores_of_split`.
        """
        logp = self._target_logps(batch)
        positions: dict[int, dict[int, list[int]]] = {}
        for i, (example, continuation) in enumerate(_continuations(batch)):
            positions.setdefault(example, {}).setdefault(continuation, []).append(i)
        losses = []
        for example, by_continuation in positions.items():
            here = {number: logp[where] for number, where in by_continuation.items()}
            gold = self.encoded[example].gold
            if not self.contrast:
                losses.append(-here[gold].mean())
                continue
            scores = [
                here[number].sum() if number in here else logp.new_tensor(elsewhere[example, number])
                for number in range(len(self.encoded[example].pairs))
            ]
            losses.append(-torch.log_softmax(torch.stack(scores), dim=0)[gold])
        return torch.stack(losses).sum()

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

    def _target_logps(self, batch: Batch) -> Float[Tensor, " targets"]:
        model, anatomy = self.loaded.model, self.loaded.anatomy
        with gathered(model.get_submodule(anatomy.unembedding), batch.keep):
            logits: Tensor = model(input_ids=batch.tokens.to(self.loaded.device), use_cache=False).logits[0]
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        where, token = batch.where.to(logits.device), batch.token.to(logits.device)
        return logits[where, token] - torch.logsumexp(logits, dim=1)[where]


def _continuations(batch: Batch) -> list[tuple[int, int]]:
    """Return of each target its example, and which continuation of it."""
    return list(zip(batch.example.tolist(), batch.continuation.tolist(), strict=True))
