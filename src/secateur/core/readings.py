"""Readings of a model: a value per address, with its unit, direction, split and source; their mean and agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import rankdata

from secateur.core.stats import Interval
from secateur.errors import ModelError, SecateurError

# what `probe` can read of a model's parts, several at once
PARTS = ("heads", "ffns", "neurons", "experts", "induction")
LINEARITY = "linearity"
FINER = ("heads", "matrices")  # what linearity can look at inside a part


def check_finite(what: str, values: Mapping[str, float]) -> None:
    """Raise `ModelError` for readings that are NaN or infinite: no order of them would mean anything."""
    wrong = [site for site, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise ModelError(
            f"{what}: {len(wrong)} of {len(values)} readings are NaN or infinite, the first that of {wrong[0]}. "
            "Gradients or activations exceed what the model's precision can hold: try --dtype bfloat16 or float32."
        )


@dataclass(frozen=True)
class Readings:
    """Values by address: `values` maps a site or an edit, as text, to a number.

    `low_is_removable`: small values name parts that may be removed. `intervals`: 95 % of those values that have one.

    Raises: as `check_finite`.
    """

    what: str
    unit: str
    split: str
    n: int
    low_is_removable: bool
    source: str
    values: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", dict(self.values))
        object.__setattr__(self, "intervals", {site: tuple(ci) for site, ci in self.intervals.items()})
        check_finite(self.what, self.values)

    def ranked(self) -> list[tuple[str, float]]:
        """Return the values, most removable first; equal values in the order of their addresses."""
        sign = 1 if self.low_is_removable else -1
        return sorted(self.values.items(), key=lambda item: (sign * item[1], item[0]))

    def to_json(self) -> dict[str, object]:
        """Return plain values by field."""
        intervals = {site: list(ci) for site, ci in self.intervals.items()}
        return {**self.__dict__, "values": dict(self.values), "intervals": intervals}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Readings:
        """Return the readings that `to_json` wrote."""
        return cls(**data)


@dataclass(frozen=True)
class Overlap:
    """Spearman's rank correlation of every pair of readings over the same `n` addresses.

    `rho[i][j]` is the correlation of readings i and j: 1 on the diagonal, nan where a reading is constant and so has no
    order.
    """

    names: tuple[str, ...]
    rho: tuple[tuple[float, ...], ...]
    n: int

    def to_json(self) -> dict[str, object]:
        """Return plain values; nan becomes None."""
        rows = [[None if np.isnan(value) else value for value in row] for row in self.rho]
        return {"names": list(self.names), "rho": rows, "n": self.n}


def mean_readings(readings: Sequence[Readings]) -> Readings:
    """Return the mean over tasks (or shots) at each address; every reading counts once. `n` adds up.

    Raises: `SecateurError` for no readings, for different addresses, or for readings of different kinds or directions.
    Source: Bansal et al. 2022 (arXiv 2212.09095), aggregate importance.
    """
    if not readings:
        raise SecateurError("there are no readings to average; give at least one.")
    first = readings[0]
    addresses = _addresses({str(i): reading for i, reading in enumerate(readings)})
    kind = first.what, first.unit, first.low_is_removable
    for reading in readings[1:]:
        if (reading.what, reading.unit, reading.low_is_removable) != kind:
            raise SecateurError(
                f"{first.what} ({first.unit}) and {reading.what} ({reading.unit}) are not of one kind: no mean of them."
            )
    values = {a: float(np.mean([reading.values[a] for reading in readings])) for a in addresses}
    splits = ", ".join(dict.fromkeys(reading.split for reading in readings))
    source = f"mean of {len(readings)} readings: {first.source}"
    n = sum(reading.n for reading in readings)
    return Readings(first.what, first.unit, splits, n, first.low_is_removable, source, values)


def spearman_overlap(readings: Mapping[str, Readings]) -> Overlap:
    """Return Spearman's correlation of the orders "most removable first" of each pair of readings; ties get mean ranks.

    Readings may be of different kinds (importance beside prefix matching), but must have the same addresses.

    Raises: `SecateurError` for no readings, different addresses, or fewer than two addresses.
    Source: Bansal et al. 2022 (arXiv 2212.09095), overlap between tasks and between shots.
    """
    addresses = _addresses(readings)
    if len(addresses) < 2:
        raise SecateurError("an order needs at least two addresses; these readings have fewer.")
    signed = (
        [
            value if reading.low_is_removable else -value
            for value in map(reading.values.__getitem__, addresses)
        ]
        for reading in readings.values()
    )
    ranks = np.array([rankdata(values) for values in signed])
    ranks -= ranks.mean(axis=1, keepdims=True)
    length = np.sqrt((ranks**2).sum(axis=1))
    length[length == 0] = np.nan
    rho = (ranks @ ranks.T) / np.outer(length, length)
    return Overlap(tuple(readings), tuple(tuple(row) for row in rho.clip(-1, 1).tolist()), len(addresses))


def _addresses(readings: Mapping[str, Readings]) -> list[str]:
    """Return the addresses, which must be the same for all readings. Raises: `SecateurError`."""
    if not readings:
        raise SecateurError("there are no readings to compare; give at least one.")
    (name, first), *rest = readings.items()
    for other, reading in rest:
        different = set(reading.values) ^ set(first.values)
        if different:
            raise SecateurError(
                f"readings {name} and {other} are not of the same parts: {len(different)} addresses are in one of "
                f"them only, such as {min(different)}. Read both from models of one shape."
            )
    return list(first.values)
