"""Test whether the validation split shows that a cut helps, when it is the best of many that were tried on it.

The best of a hundred cuts that change nothing looks like a gain. A cut counts as shown when its gain is larger than
what the best of all that were tried would gain by chance: flip the sign of every group's gains at random, the same sign
for all cuts, and see how often the largest standardized gain is as large.

Knows outcomes (arrays) and plans, nothing of models or tasks.
Source: Westfall and Young 1993 (Resampling-Based Multiple Testing, max T); Winkler et al. 2014 (whole-block flips);
Hansen 2005 (J. Bus. Econ. Stat. 23:365): a plan that is clearly worse does not count among the tried.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from secateur.core.plan import Plan
from secateur.core.score import Metric
from secateur.core.stats import DRAWS

SHOWN = 0.05  # one-sided level at which a gain counts as shown
CLEARLY_WORSE = 3.0  # standard errors below zero, as in the race: such a plan cannot be the best by chance
_CHUNK = 2**22  # float32 cells of signs drawn at once: 16 MiB


class Evidence:
    """Hold the gains of everything that one search has tried, against chance.

    `groups` (n,) are the groups of the validation examples in the order in which they are judged. A search asks several
    times, about cuts of the model and about cuts beside those it took already; each call adds to what was tried, and
    later p-values are corrected for all of it.
    """

    def __init__(self, metric: Metric, groups: np.ndarray, *, seed: int, draws: int = DRAWS) -> None:
        self._metric, self._groups, self._seed = metric, np.asarray(groups), seed
        self._largest = np.full(draws, -np.inf)  # the largest standardized gain so far, by draw

    def p_values(self, tried: Mapping[Plan, np.ndarray], before: np.ndarray) -> dict[Plan, float]:
        """Return the one-sided p that a plan gains nothing over `before`, corrected for everything tried so far.

        Args:
            tried: OUTCOME rows of each plan on the first examples, as many as it was judged on.
            before: OUTCOME rows, on all examples, of the plan that they should improve on.
        """
        num_groups = int(self._groups.max()) + 1
        sums = np.empty((len(tried), num_groups))  # gains by group
        for number, rows in enumerate(tried.values()):
            n = len(rows)
            gains = self._metric.contributions(rows, before[:n])
            sums[number] = np.bincount(self._groups[:n], weights=gains, minlength=num_groups)
        scale = np.sqrt(np.square(sums).sum(axis=1))
        moved = scale > 0
        z = np.divide(sums.sum(axis=1), scale, out=np.zeros(len(sums)), where=moved)
        count = moved & (z > -CLEARLY_WORSE)
        if count.any():
            self._flip(sums[count] / scale[count, None])
        reached = (self._largest >= z[:, None] - 1e-4).sum(
            axis=1
        )  # so that float32 does not part a draw from itself
        p = np.where(count, (1 + reached) / (1 + self._largest.size), 1.0)
        return dict(zip(tried, p.tolist(), strict=True))

    def _flip(self, rows: np.ndarray) -> None:
        """Raise the largest gain of each draw to that of `rows` (plans, groups), of unit length, where that is larger.

        The draws are the same at every call.
        """
        rng, (_, num_groups) = np.random.default_rng(self._seed), rows.shape
        rows = rows.astype(np.float32).T
        step = max(1, _CHUNK // num_groups)
        for start in range(0, self._largest.size, step):
            size = min(step, self._largest.size - start)
            signs = rng.integers(0, 2, size=(size, num_groups), dtype=np.int8) * np.float32(2) - np.float32(1)
            place = slice(start, start + size)
            self._largest[place] = np.maximum(self._largest[place], (signs @ rows).max(axis=1))
