"""Batches of token ids with labels, and the loss of the labelled tokens. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from secateur.hf.rope import regime

IGNORED = -100  # torch's and Transformers' label of a token that is not scored
Sample = tuple[tuple[int, ...], int]  # token ids; how many of them, from the left, are read and not learned


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Return samples as one batch, padded on the right with token 0.

    There is no attention mask: in a causal model nothing to the right of a position reaches it.

    Returns: `input_ids`, `labels` (IGNORED where a token is not learned) and `real` (where there is a token), all of
    shape (samples, longest).
    """
    width = max(len(ids) for ids, _ in samples)
    input_ids = torch.zeros((len(samples), width), dtype=torch.long)
    labels = torch.full((len(samples), width), IGNORED, dtype=torch.long)
    for row, (ids, start) in enumerate(samples):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, start : len(ids)] = torch.tensor(ids[start:])
    real = torch.arange(width) < torch.tensor([len(ids) for ids, _ in samples])[:, None]
    return {"input_ids": input_ids, "labels": labels, "real": real}


def batches(samples: Sequence[Sample], size: int, switches: Sequence[int]) -> list[list[Sample]]:
    """Return samples in batches of similar length.

    Args:
        samples: Token ids with the number that is not learned.
        size: Most samples of a batch.
        switches: Lengths at which the model's rotary frequencies change (`hf/rope.py`); no batch has rows on both
            sides of one.
    """
    parts = []
    by_length = sorted(samples, key=lambda sample: len(sample[0]))
    for _, alike in groupby(by_length, lambda sample: regime(len(sample[0]), switches)):
        rows = list(alike)
        parts += [rows[start : start + size] for start in range(0, len(rows), size)]
    return parts


def answer_losses(
    logits: Float[Tensor, "rows width vocabulary"], labels: Int[Tensor, "rows width"]
) -> Float[Tensor, " answers"]:
    """Return −log p of every labelled token, nats, in float32 or wider."""
    targets = labels[:, 1:]
    scored = targets != IGNORED
    predicted = logits[:, :-1][scored]
    wide = torch.promote_types(predicted.dtype, torch.float32)
    return cross_entropy(predicted.to(wide), targets[scored], reduction="none")
