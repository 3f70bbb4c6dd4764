"""Combine readings of several tasks or shots: their mean, and how far their orders agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from secateur.core.readings import Readings
from secateur.errors import SecateurError


@dataclass(frozen=True)
class Overlap:
    """Spearman's rank correlation of every pair of readings over the same `n` addresses.

    `rho[i][j]` is the correlation of readings i and j: 1 on the diagonal, nan where a reading is constant and so has no
    order.
    """

    names: tuple[str, ...]
    rho: tuple[tuple[float, ...], ...]
    n: int

    def to_json(self) -> dict[str, Any]:
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
    for other in readings[1:]:
        if (other.what, other.unit, other.low_is_removable) != (
            first.what,
            first.unit,
            first.low_is_removable,
        ):
            raise SecateurError(
                f"{first.what} ({first.unit}) and {other.what} ({other.unit}) are not of one kind: no mean of them."
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
    ranks = np.array([_ranks(reading, addresses) for reading in readings.values()])
    ranks -= ranks.mean(axis=1, keepdims=True)
    length = np.sqrt((ranks**2).sum(axis=1))
    length[length == 0] = np.nan
    rho = (ranks @ ranks.T) / np.outer(length, length)
    return Overlap(tuple(readings), tuple(tuple(row) for row in rho.clip(-1, 1).tolist()), len(addresses))


def _ranks(reading: Readings, addresses: Sequence[str]) -> np.ndarray:
    sign = 1 if reading.low_is_removable else -1
    return rankdata([sign * reading.values[address] for address in addresses])


def _addresses(readings: Mapping[str, Readings]) -> list[str]:
    """Return the addresses, which must be the same for all readings. Raises: `SecateurError`."""
    if not readings:
        raise SecateurError("there are no readings to compare; give at least one.")
    (name, first), *others = readings.items()
    for other, reading in others:
        different = set(reading.values) ^ set(first.values)
        if different:
            raise SecateurError(
                f"readings {name} and {other} are not of the same parts: {len(different)} addresses are in one of "
                f"them only, such as {min(different)}. Read both from models of one shape."
            )
    return list(first.values)
