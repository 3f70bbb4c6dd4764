"""What a probe read off a model: a value per address, with its unit, direction, split and source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secateur.errors import ModelError

PARTS = ("heads", "ffns", "neurons", "induction")  # what `probe` can read of a model's parts, several at once
LINEARITY = "linearity"
FINER = ("heads", "matrices")  # what linearity can look at inside a part


def check_finite(what: str, values: Mapping[str, float]) -> None:
    """Raises `ModelError` for readings that are NaN or infinite: no order of them would mean anything."""
    wrong = [site for site, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise ModelError(
            f"{what}: {len(wrong)} of {len(values)} readings are NaN or infinite, the first that of {wrong[0]}. "
            "Gradients or activations exceed what the model's precision can hold: try --dtype bfloat16 or float32."
        )


@dataclass(frozen=True)
class Readings:
    """`values` maps a site or an edit, as text, to a number. `low_is_removable`: small values name what may go.

    Raises: as `check_finite`."""

    what: str
    unit: str
    split: str
    n: int
    low_is_removable: bool
    source: str
    values: Mapping[str, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", dict(self.values))
        check_finite(self.what, self.values)

    def ranked(self) -> list[tuple[str, float]]:
        """Most removable first; equal values in the order of their addresses."""
        sign = 1 if self.low_is_removable else -1
        return sorted(self.values.items(), key=lambda item: (sign * item[1], item[0]))

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "values": dict(self.values)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Readings:
        return cls(**data)
