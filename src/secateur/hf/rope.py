"""Rows that may run together: lengths at which a model computes otherwise for all rows of a batch.

LongRoPE has one set of factors up to a length and another beyond it, for all positions at once. The other kind
that looks at lengths, dynamic NTK, changes nothing up to `max_position_embeddings`, and nothing longer is ever
run. Where positions attend to what follows them, padding would be seen: there each length is by itself.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from transformers import PreTrainedConfig


def rope_switches(config: PreTrainedConfig) -> tuple[int, ...]:
    """Return the lengths beyond which a model rotates all positions by other factors; none for most models."""
    stated = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in stated.values() if isinstance(value, Mapping)]  # one for each type of layer
    lengths = {
        rope["original_max_position_embeddings"]
        for rope in nested or [stated]
        if rope.get("rope_type") == "longrope"
    }
    return tuple(sorted(lengths))


def length_switches(config: PreTrainedConfig, bidirectional: bool) -> Sequence[int]:
    """Return the lengths beyond which rows are of another regime: those of `rope_switches`; where positions attend to
    what follows them, each."""
    return range(sys.maxsize) if bidirectional else rope_switches(config)


def regime(length: int, switches: Sequence[int]) -> int:
    """Return the number of `switches` that this length is beyond.

    In one batch a model computes as for its longest row, so only rows of one regime may run together.
    """
    return bisect_left(switches, length)
