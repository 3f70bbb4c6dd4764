"""Two ways of doing one thing, timed turn by turn, so that both see the same machine.

Processor time: with one thread it is what the work takes, whoever else uses the machine's other cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

TURNS = 5


def paired(
    ours: Callable[[], np.ndarray], theirs: Callable[[], np.ndarray], *, turns: int = TURNS, times: int = 1
) -> dict[str, Any]:
    """Turn by turn, after one that is not counted. `times`: ours so often in a turn, where one is too fast to clock."""
    first, second = ours(), theirs()
    seconds = []
    for _ in range(turns):
        fast = _seconds(ours, times) / times
        seconds.append((fast, _seconds(theirs, 1)))
    ratios = [slow / fast for fast, slow in seconds]
    return {
        "seconds": np.median([fast for fast, _ in seconds]).item(),
        "plain_seconds": np.median([slow for _, slow in seconds]).item(),
        "ratio": float(np.median(ratios)),
        "ratio_iqr": np.quantile(ratios, (0.25, 0.75)).tolist(),
        "largest_difference": float(np.abs(first - second).max() / np.abs(second).max()),
    }


def _seconds(run: Callable[[], Any], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        run()
    return time.process_time() - start
