"""How much of what one step lost another brought back: a ratio of two paired means, with its interval.

Knows outcomes (arrays), nothing of models or tasks.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from secateur.core.score import Metric
from secateur.core.stats import FEWEST_GROUPS, LEVEL, Interval, group_sums

Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)


def recovered(
    metric: Metric, original: np.ndarray, cut: np.ndarray, healed: np.ndarray, groups: np.ndarray
) -> tuple[float, Interval] | None:
    """Return the share of the metric's loss from `original` to `cut` that `healed` regained, and its 95 % interval.

    1 is all of it, above 1 more, below 0 means that more was lost. None where the cut is not shown to have lost
    anything, which fewer than FEWEST_GROUPS groups never show.

    Args:
        original, cut, healed: OUTCOME arrays (n,) of the same examples.
        groups: labels (n,); examples with one label were sampled together.

    Source: Fieller 1954 (J. R. Stat. Soc. B 16:175), by the linearized variances of means over groups.
    """
    if np.unique(groups).size < FEWEST_GROUPS:
        return None
    weights = cut["tokens"].astype(float) if metric.weighted else np.ones(len(cut))
    back, lost = metric.gain(healed, cut), metric.gain(original, cut)
    y, x = np.average(back, weights=weights), np.average(lost, weights=weights)
    sums = np.stack([group_sums(weights * (v - m), groups) for v, m in ((back, y), (lost, x))])
    (yy, xy), (_, xx) = sums @ sums.T / weights.sum() ** 2
    a = x * x - Z * Z * xx
    if x <= 0 or a <= 0:
        return None
    middle, rest = x * y - Z * Z * xy, y * y - Z * Z * yy
    spread = math.sqrt(max(0.0, middle * middle - a * rest))
    return float(y / x), (float((middle - spread) / a), float((middle + spread) / a))
