"""Check that a model computes: with finite weights, a wrong config or too narrow a precision may give no numbers; and
with how many threads it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from secateur.core.acts import POSITIONS
from secateur.errors import ModelError
from secateur.hf.anatomy import Anatomy
from secateur.hf.calls import inputs_of, logits_of
from secateur.hf.load import Loaded

FEW = 8  # tokens, or steps, that a model is run on first, where there is no task


def few_tokens(anatomy: Anatomy) -> range:
    """Return the row that a model is run on where there is no task."""
    return range(POSITIONS * FEW if anatomy.acts else min(FEW, anatomy.vocab_size))


@contextmanager
def using_threads(count: int | None) -> Iterator[int]:
    """Let torch compute with `count` threads (None: as many as now) until the context closes."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield count or before
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def check_runs(loaded: Loaded, rows: Sequence[Sequence[int]]) -> None:
    """Run the model once over each of `rows` of tokens. Raises: `ModelError` where a logit is NaN or infinite."""
    for row in rows:
        tokens = torch.tensor([list(row)], device=loaded.device)
        logits = logits_of(loaded.model, inputs_of(tokens, loaded.anatomy))
        check_finite(loaded.name, logits, f"logits for {len(row)} tokens")


def check_finite(name: str, values: Tensor, what: str) -> None:
    """Raise `ModelError` where a model, whose weights are finite, computed `values` that are not."""
    wrong = values.numel() - int(torch.isfinite(values).sum())
    if wrong:
        raise not_finite(name, values.dtype, f"{wrong} of {values.numel()} {what} are")


def not_finite(name: str, dtype: torch.dtype, what: str) -> ModelError:
    """Return the error for values that are not finite; `what` ends with is or are."""
    hint = "Numbers in config.json that are not of these weights do that: a norm's epsilon, a scale, rope."
    if dtype == torch.float16:
        hint = "float16 ends at 65,504, which this model may exceed: try --dtype bfloat16 or float32."
    return ModelError(
        f"{name} does not compute: in {str(dtype).removeprefix('torch.')}, {what} NaN or infinite, though its weights "
        f"are finite. {hint}"
    )
