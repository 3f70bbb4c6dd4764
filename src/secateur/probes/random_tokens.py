"""Unique random tokens for probing what heads do: which ids may be drawn, how many fit, what begins a sequence.

Knows the tokenizer and the sizes of a model; runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from secateur.errors import ModelError
from secateur.hf.load import Loaded

LEFT_OUT = 0.04  # of the vocabulary at either end (arXiv 2212.09095)


def random_segments(
    loaded: Loaded,
    seeds: int,
    repeats: int,
    frequencies: Sequence[int] | None = None,
    *,
    unique: bool = False,
) -> list[Int[np.ndarray, " segment"]]:
    """One segment of unique random tokens a seed, with room for `repeats` of it in the context; with `unique`, one
    segment `repeats` times as long instead."""
    tokens = random_vocabulary(loaded, frequencies)
    context = loaded.anatomy.context
    room = len(tokens) if context is None else (context - lead_of(loaded)) // (1 if unique else repeats)
    most = min(len(tokens), room)
    if most < 2:
        raise ModelError(
            f"a segment of random tokens needs at least 2; a context of {context} and {len(tokens)} usable tokens "
            f"leave room for {max(most, 0)}."
        )
    lengths = [min((25 + 2 * seed) * (repeats if unique else 1), most) for seed in range(seeds)]
    return [
        np.random.default_rng(seed).choice(tokens, length, replace=False)
        for seed, length in enumerate(lengths)
    ]


def random_vocabulary(loaded: Loaded, frequencies: Sequence[int] | None = None) -> Int[np.ndarray, " tokens"]:
    """Ids without special tokens and without the most and the least frequent 4 %, most frequent first."""
    tokenizer = loaded.tokenizer
    usable = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    ids = np.array(sorted(i for i in usable if i < loaded.anatomy.vocab_size))
    if frequencies is not None:
        if len(frequencies) <= ids.max(initial=-1):
            raise ModelError(
                f"{len(frequencies)} token frequencies for ids up to {ids.max()}; give one for each id."
            )
        ids = ids[np.argsort(-np.asarray(frequencies)[ids], kind="stable")]
    drop = int(LEFT_OUT * len(ids))
    return ids[drop : len(ids) - drop]


def _bos(loaded: Loaded) -> tuple[int, ...]:
    """BOS, or EOS where there is no BOS (as in GPT-2, where they are one), or nothing where there is neither. Raises
    `ModelError` where the model has no embedding for it."""
    found = loaded.tokenizer.bos_token_id
    found = loaded.tokenizer.eos_token_id if found is None else found
    if found is not None and found >= loaded.anatomy.vocab_size:
        raise ModelError(
            f"the tokenizer begins a text with id {found}, and the model has no embedding for it: its vocab_size is "
            f"{loaded.anatomy.vocab_size}."
        )
    return () if found is None else (found,)


def lead_of(loaded: Loaded) -> int:
    return len(_bos(loaded))


def with_bos(loaded: Loaded, rows: Int[np.ndarray, "rows length"]) -> Int[Tensor, "rows length+1"]:
    lead = np.broadcast_to(np.array(_bos(loaded), dtype=rows.dtype), (len(rows), lead_of(loaded)))
    return torch.from_numpy(np.concatenate([lead, rows], axis=1))
