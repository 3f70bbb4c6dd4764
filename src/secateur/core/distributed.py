"""Read from the environment which of several processes this is, as `torchrun` and `accelerate launch` set it."""

from __future__ import annotations

import os

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def world() -> int:
    """Return how many processes train together; 1 where this process was started alone."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _VARIABLES) else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def is_main() -> bool:
    """Return True for the one process that writes files and prints."""
    return rank() == 0
