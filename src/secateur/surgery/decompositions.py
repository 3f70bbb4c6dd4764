"""How each matrix of one plan is decomposed: exactly, or by the randomized method where that is asked for or pays."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor

from secateur.core.form import SVDS
from secateur.core.plan import Plan
from secateur.core.site import Site
from secateur.hf.matrices import Matrix
from secateur.linalg.randomized import randomized
from secateur.linalg.spectrum import Spectrum, spectrum

# Measured at 2048 × 5504 on one core: rank 128 takes 0.9 s instead of 10 s, rank 512 5 s. Below 4096 an exact one takes
# seconds, and at 4096 × 11008 minutes.
LARGE, SMALL_SHARE = 4096, 16


class Decompositions:
    """`Decompose` for the matrices of a plan, which remembers by site how it went, in `told`.

    `auto` is exact but for a rank of at most a sixteenth of a matrix with at least 4096 rows and columns. Only the
    largest components are ever found by the randomized method: all other edits need all of them. Seeded by the site.
    """

    def __init__(self, plan: Plan, svd: str = "auto", device: torch.device | str = "cpu") -> None:
        assert svd in SVDS, svd
        self._svd, self._device = svd, device
        self._top = {edit.matrix: edit.rank for edit in plan.truncated if edit.side == "top"}
        self.told: dict[Site, dict[str, Any]] = {}

    def __call__(self, matrix: Matrix, weight: Tensor) -> Spectrum:
        """Computed on the device, given where the weight is."""
        rank, whole = self._top.get(matrix.site), matrix.read(weight).to(self._device)
        told: dict[str, Any] = {"matrix": str(matrix.site), "shape": list(matrix.shape), "rank": rank}
        if rank is not None and self._is_randomized(matrix, rank):
            found, accuracy = randomized(whole, rank, seed=zlib.crc32(str(matrix.site).encode()))
            told |= {"svd": "randomized", "residual": accuracy.residual, "excess": accuracy.excess}
        else:
            found = spectrum(whole)
            told |= {"svd": "exact", "residual": _residual(found, rank), "excess": 0.0}
        self.told[matrix.site] = told
        return Spectrum(*(t.to(weight.device) for t in (found.u, found.sigma, found.vh)))

    def _is_randomized(self, matrix: Matrix, rank: int) -> bool:
        pays = min(matrix.shape) >= LARGE and rank * SMALL_SHARE <= min(matrix.shape)
        return self._svd == "randomized" or (self._svd == "auto" and pays)


def _residual(found: Spectrum, rank: int | None) -> float | None:
    """‖W − W'‖ / ‖W‖ of the truncation; None where the edit is no truncation to the largest."""
    if rank is None:
        return None
    energy = found.sigma.double().square()
    whole = float(energy.sum())
    return (float(energy[rank:].sum()) / whole) ** 0.5 if whole else 0.0
