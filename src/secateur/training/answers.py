"""Answers as the Trainer reads them: batches of token ids with labels, and the loss of the labelled ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from secateur.hf.rope import regime

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


def batches(samples: Sequence[Sample], size: int, switches: Sequence[int]) -> list[list[Sample]]:
    """Of similar length, at most `size` samples each, all of one regime (`hf/rope.py`)."""
    found = []
    by_length = sorted(samples, key=lambda sample: len(sample[0]))
    for _, alike in groupby(by_length, lambda sample: regime(len(sample[0]), switches)):
        rows = list(alike)
        found += [rows[start : start + size] for start in range(0, len(rows), size)]
    return found


def answer_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p of every answer token, nats. `logits` (rows, width, vocabulary), `labels` (rows, width)."""
    wanted = labels[:, 1:]
    kept = wanted != IGNORED
    scored = logits[:, :-1][kept]
    return cross_entropy(
        scored.to(torch.promote_types(scored.dtype, torch.float32)), wanted[kept], reduction="none"
    )
