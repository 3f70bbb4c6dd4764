"""Answers as the Trainer reads them: batches of token ids with labels, and the loss of the labelled ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = -100  # torch's and Transformers' label of a token that is not scored
Sample = tuple[tuple[int, ...], int]  # token ids; how many of them, from the left, are read and not learned


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Right padding, with token 0 and no attention mask: in a causal model nothing to the right reaches a position.

    `real` is where there is a token."""
    width = max(len(ids) for ids, _ in samples)
    input_ids = torch.zeros((len(samples), width), dtype=torch.long)
    labels = torch.full((len(samples), width), IGNORED, dtype=torch.long)
    for row, (ids, start) in enumerate(samples):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, start : len(ids)] = torch.tensor(ids[start:])
    real = torch.arange(width) < torch.tensor([len(ids) for ids, _ in samples])[:, None]
    return {"input_ids": input_ids, "labels": labels, "real": real}


def answer_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p of every answer token, nats. `logits` (rows, width, vocabulary), `labels` (rows, width)."""
    wanted = labels[:, 1:]
    kept = wanted != IGNORED
    scored = logits[:, :-1][kept]
    return cross_entropy(
        scored.to(torch.promote_types(scored.dtype, torch.float32)), wanted[kept], reduction="none"
    )
