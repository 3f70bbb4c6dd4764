"""The devices that a forecast is for, checked before anything is read. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from secateur.core.ranges import check_ranges, real, whole
from secateur.errors import SecateurError

UTILIZATION = 0.4  # of the peak, in matrix products of large batches: commonly reached, 0.3 to 0.6


@dataclass(frozen=True)
class DeviceFleet:
    """`devices` equal ones of `memory` GB, or as much as it takes (None). `tflops` and `bandwidth` (GB/s) of one that
    is not here; None: as measured here."""

    devices: int = whole(1)
    tflops: float | None = real(None, 0, above=True)
    bandwidth: float | None = real(None, 0, above=True)
    utilization: float = real(UTILIZATION, 0, 1, above=True)
    memory: float | None = real(None, 0, above=True)

    def __post_init__(self) -> None:
        check_ranges(self)
        if (self.tflops is None) != (self.bandwidth is None):
            raise SecateurError("--tflops and --bandwidth describe one device: give both, or none.")

    @property
    def elsewhere(self) -> bool:
        return self.tflops is not None

    def workers(self, weight_bytes: int) -> int:
        """Models side by side. Raises `SecateurError` where not even one has room."""
        each = 1 if self.memory is None else math.ceil(1.2 * weight_bytes / (self.memory * 1e9))
        if each > self.devices:
            raise SecateurError(
                f"{weight_bytes / 1e9:.0f} GB of weights, with a fifth more for activations, need {each} devices of "
                f"{self.memory:g} GB: give more --devices, or --memory."
            )
        return self.devices // each
