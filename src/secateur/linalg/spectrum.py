"""Exact singular value decompositions, and truncations made of them. Pure tensor functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The decomposition W = U diag(σ) Vᵀ with σ descending, thin: k = min(out, in)."""

    u: Float[Tensor, "out k"]
    sigma: Float[Tensor, " k"]
    vh: Float[Tensor, "k in"]

    @property
    def full_rank(self) -> int:
        """Return the number of components."""
        return self.sigma.numel()

    @property
    def num_bytes(self) -> int:
        """Return the memory that the three tensors take."""
        return sum(t.numel() * t.element_size() for t in (self.u, self.sigma, self.vh))

    def truncate(self, rank: int, side: str = "top") -> Float[Tensor, "out in"]:
        """Return the sum of the `rank` largest components, or of the `rank` smallest for `side="tail"`; rank 0 is zero.

        A rank above the full one keeps everything. The largest ones are the best approximation of that rank in
        Frobenius and spectral norm (Eckart and Young 1936).
        """
        kept = self._kept(rank, side)
        return (self.u[:, kept] * self.sigma[kept]) @ self.vh[kept]

    def factors(
        self, rank: int, side: str = "top"
    ) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "rank out"]]:
        """Return (a, b) with bᵀ a = `truncate(rank, side)`.

        Each holds the square roots of the singular values, so that both have one scale in narrow dtypes.
        """
        kept = self._kept(rank, side)
        root = self.sigma[kept].sqrt()
        return root[:, None] * self.vh[kept], (self.u[:, kept] * root).T

    def _kept(self, rank: int, side: str) -> slice:
        rank = min(rank, self.full_rank)
        return slice(0, rank) if side == "top" else slice(self.full_rank - rank, self.full_rank)


def spectrum(matrix: Float[Tensor, "out in"]) -> Spectrum:
    """Return the exact decomposition, in float32 or wider. Deterministic on one machine with one number of threads.

    Differs: the LASER authors call an unseeded `svd_lowrank(niter=2)`, which is far from the truncation where the
    spectrum is flat.
    """
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    u, sigma, vh = torch.linalg.svd(wide, full_matrices=False)
    return Spectrum(u, sigma, vh.contiguous())  # so that a component is a row that lies together


def spectrum_bytes(shape: tuple[int, int]) -> int:
    """Return the bytes of a float32 decomposition of a matrix of this shape, with its singular values."""
    return 4 * min(shape) * (sum(shape) + 1)
