"""Test that a cut is not worse by more than a margin: a one-sided lower bound of the paired gain, and its wording.

Knows outcomes (arrays), nothing of models or tasks.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from secateur.core.comparison import ALPHA, finite_values
from secateur.core.score import Metric
from secateur.core.stats import DRAWS, FEWEST_GROUPS, effective_n, resample, tango_counts
from secateur.errors import SecateurError

if TYPE_CHECKING:
    from pydantic import JsonValue

    from secateur.core.records.verdict import NonInferiorityRecord

NOT_WORSE = "not worse by more than"
MARGIN = 0.02  # of accuracy, or nats: where nothing else is asked for


@dataclass(frozen=True)
class NonInferiority:
    """A test of whether the loss is less than `margin`, in `unit`.

    `bound`: one-sided lower bound, at `level`, of the gain (positive is better, whatever the metric's own direction);
    −inf where there is too little data to bound it at this level. `shown`: bound > −margin.
    """

    margin: float
    unit: str
    bound: float
    level: float
    method: str

    @property
    def shown(self) -> bool:
        """Return True where the bound lies above −margin."""
        return self.bound > -self.margin

    @property
    def word(self) -> str:
        """Return `not worse by more than 2.0 points`, or `… 0.020 nats`."""
        return f"{NOT_WORSE} {margin_text(self.margin, self.unit)}"

    def to_json(self) -> dict[str, JsonValue]:
        """Return plain values; `bound` is None where there is none."""
        bound = self.bound if math.isfinite(self.bound) else None
        return asdict(self) | {"bound": bound, "shown": self.shown}


def non_inferiority(
    metric: Metric,
    before: np.ndarray,
    after: np.ndarray,
    groups: np.ndarray,
    *,
    margin: float,
    openings: int = 1,
    seed: int,
) -> NonInferiority:
    """Test whether `after` is shown to be no worse than `before` by more than `margin`.

    0/1 metric: the lower limit of Tango's interval at the effective sample size. Loss: the studentized bootstrap's
    one-sided limit, clustered by group, token-weighted where the metric is.

    Args:
        before, after, groups: as in `compare`.
        margin: in the metric's unit.
        openings: how often this test split was opened; each bound holds at 1 − .05 / openings.

    Raises: `SecateurError` for a margin that is negative or not finite, and as `compare` does.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise SecateurError(
            f"a margin of {margin:g} {metric.unit} bounds nothing; give a number that is 0 or more."
        )
    for outcomes, when in ((before, "before"), (after, "after")):
        finite_values(metric, outcomes, when)
    gain, level = metric.gain(after, before), 1 - ALPHA / openings
    if np.unique(groups).size < FEWEST_GROUPS:
        bound, method = -math.inf, "none, too few groups"
    elif metric.unit == "share":
        bound, method = _by_tango(gain, groups, level), "Tango score interval"
    else:
        weights = before["tokens"] if metric.weighted else None
        bound, method = resample([gain], groups, weights, DRAWS, seed).lower(0, level), "paired bootstrap"
    return NonInferiority(float(margin), metric.unit, bound, level, method)


def _by_tango(gain: np.ndarray, groups: np.ndarray, level: float) -> float:
    """One-sided at 1 − α is the limit of the two-sided interval at 1 − 2α. Source: Tango 1998."""
    n = effective_n(gain, groups)
    gained, lost = float((gain > 0).mean()), float((gain < 0).mean())
    return tango_counts(gained * n, lost * n, n, 2 * level - 1)[0]


# ---------------------------------------------------------------- in words


def margin_text(margin: float, unit: str) -> str:
    """Return `2.0 points` or `0.020 nats`; more digits where the margin has them."""
    scale, digits, name = (100, 1, "points") if unit == "share" else (1, 3, unit.partition("/")[0])
    return f"{np.format_float_positional(round(margin * scale, 10), trim='k', min_digits=digits)} {name}"


def bound_text(record: NonInferiorityRecord) -> str:
    """Return `non_inferiority` of a verdict in words: the bound, its level, and on which side of the margin it lies."""
    openings = round(ALPHA / (1 - record.level))
    over = f"; {100 * (1 - ALPHA):g} % over {openings} openings of this split" if openings > 1 else ""
    limit, name = margin_text(record.margin, record.unit).split(maxsplit=1)
    fixed = f"the margin of {limit} fixed before test was opened"
    if record.named_late:
        fixed = f"the margin of {limit}; {_late(record)}"
    level = f"{100 * record.level:.6g} %"
    if record.bound is None:
        return f"too few groups for a one-sided {level} bound{over} of the loss, so nothing is shown about {fixed}"
    so_much = f"{_apart(record)} {name}"
    if record.bound >= 0:
        most = f"the gain is at least {so_much}"
    else:
        most = f"the loss is at most {so_much}" if record.shown else f"the loss may be up to {so_much}"
    side = "within" if record.shown else "not within"
    return f"with {level} confidence (one-sided{over}) {most}, {side} {fixed}"


def _late(record: NonInferiorityRecord) -> str:
    first = record.decides
    about = "which asked for no margin" if first is None else f"about {margin_text(first, record.unit)}"
    return f"this margin was named after the split was opened, so the first verdict, {about}, stands"


def _apart(record: NonInferiorityRecord) -> str:
    """Return the size of the bound with enough digits to read differently from the margin where it differs."""
    assert record.bound is not None
    scale, digits = (100, 1) if record.unit == "share" else (1, 3)
    bound, limit = record.bound * scale, -record.margin * scale
    while digits < 9 and bound != limit and round(bound, digits) == round(limit, digits):
        digits += 1
    return f"{abs(bound):.{digits}f}"
