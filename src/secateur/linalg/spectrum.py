"""Singular value decompositions, exact, or of the largest values of a large matrix by products with it alone.

Pure tensor functions. What is random is seeded: the same matrix and the same seed give the same result on one machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

OVERSAMPLING = 16  # columns beyond the rank: 5 or 10 are usual (Halko et al., section 4.2)
ITERATIONS = 6  # of the power scheme: a weight's spectrum is flat, where 1 or 2 are 5 to 10 % off
PROBES, ALPHA = 20, 2.0  # the bound on ‖E‖ fails with probability ALPHA^-PROBES, 1e-6
PROBE_POWER = 4


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


# ----------------------------------------------------------------------------------------------------------- randomized


@dataclass(frozen=True)
class TruncationError:
    """The error of a truncation W' of W.

    `residual`: ‖W − W'‖ / ‖W‖ in Frobenius norm, computed. `excess`: with probability 1 − 1e-6, ‖W − W'‖ is larger than
    the error of the best matrix of this rank by at most this share of it; infinite where no bound holds.
    """

    residual: float
    excess: float


def randomized(
    matrix: Float[Tensor, "out in"],
    rank: int,
    *,
    seed: int = 0,
    oversampling: int = OVERSAMPLING,
    iterations: int = ITERATIONS,
) -> tuple[Spectrum, TruncationError]:
    """Return the `rank` largest components, in float32 or wider, and their error.

    Costs 2 (iterations + 1) products of the matrix with rank + oversampling columns instead of a decomposition.
    Source: randomized subspace iteration (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.1).
    Differs: the residual is computed, and a bound on the error of the best; the paper bounds ‖E‖ alone.
    """
    assert 0 <= rank <= min(matrix.shape)
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    width = min(rank + oversampling, *wide.shape)
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(wide @ _normal(wide.shape[1], width, draw, wide))[0]
    for _ in range(iterations):
        basis = torch.linalg.qr(wide.T @ basis)[0]
        basis = torch.linalg.qr(wide @ basis)[0]
    left, sigma, vh = torch.linalg.svd(basis.T @ wide, full_matrices=False)
    largest = Spectrum(basis @ left[:, :rank], sigma[:rank], vh[:rank])
    return largest, _error(wide, largest, basis, sigma, draw)


def _error(
    wide: Tensor, largest: Spectrum, basis: Tensor, sigma: Tensor, draw: torch.Generator
) -> TruncationError:
    rank, (left, whole) = largest.full_rank, _energies(wide, largest)
    if left <= (100 * torch.finfo(wide.dtype).eps) ** 2 * whole:  # nothing but rounding
        return TruncationError(math.sqrt(left / whole) if whole else 0.0, 0.0)
    best = left - _gain_bound(wide, basis, sigma, rank, draw)
    return TruncationError(math.sqrt(left / whole), math.sqrt(left / best) - 1 if best > 0 else math.inf)


def _gain_bound(wide: Tensor, basis: Tensor, sigma: Tensor, rank: int, draw: torch.Generator) -> float:
    """Return a bound on Σ (true σᵢ² − computed σᵢ²), i up to the rank.

    With B = Qᵀ W and E = W − Q B: each σᵢ² exceeds its estimate by ‖E‖² at most (Weyl, on WᵀW = BᵀB + EᵀE). Where
    η = σ̂ᵣ² − ‖E‖² is positive, they are also at most the eigenvalues of B Bᵀ + CᵀC / η with C = E Bᵀ, the Schur
    complement of W Wᵀ in the basis (Q, Q⊥).
    """
    outside = _norm_bound(wide, basis, draw) ** 2
    weyl, inner = rank * outside, float(sigma[rank - 1]) ** 2 - outside if rank else 0.0
    if inner <= 0:
        return weyl
    b = basis.T @ wide
    coupling, gram = _residue(wide @ b.T, basis).double(), (b @ b.T).double()
    most = torch.linalg.eigvalsh(gram + coupling.T @ coupling / inner)[-rank:].sum()
    computed = torch.linalg.eigvalsh(gram)[-rank:].sum()
    return min(weyl, float(most - computed))


def _norm_bound(wide: Tensor, basis: Tensor, draw: torch.Generator) -> float:
    """Return an upper bound of the spectral norm ‖E‖; it fails with probability ALPHA^-PROBES.

    Source: ‖B‖ ≤ α √(2/π) maxᵢ ‖B ωᵢ‖ for Gaussian ωᵢ (the same, lemma 4.1), taken for B = (E Eᵀ)ᵖ E, whose norm is
    ‖E‖^(2p+1), so that the factor all but vanishes.
    """
    probes = _residue(wide @ _normal(wide.shape[1], PROBES, draw, wide), basis)
    log_scale = 0.0
    for _ in range(PROBE_POWER):
        probes = _residue(wide @ (wide.T @ probes), basis)
        scale = float(torch.linalg.norm(probes, dim=0).max())
        if scale == 0:
            return 0.0
        probes, log_scale = probes / scale, log_scale + math.log(scale)
    longest = float(torch.linalg.norm(probes, dim=0).max())
    bound = math.log(ALPHA * math.sqrt(2 / math.pi) * longest) + log_scale if longest else -math.inf
    return math.exp(bound / (2 * PROBE_POWER + 1))


def _residue(columns: Tensor, basis: Tensor) -> Tensor:
    """Return the part of the columns outside the basis; projected twice, since once leaves rounding behind."""
    for _ in range(2):
        columns = columns - basis @ (basis.T @ columns)
    return columns


def _normal(rows: int, columns: int, draw: torch.Generator, like: Tensor) -> Tensor:
    """Draw normal numbers on the CPU, so that all devices see the same ones."""
    return torch.randn(rows, columns, generator=draw, dtype=torch.float64).to(like)


def _energies(wide: Tensor, largest: Spectrum) -> tuple[float, float]:
    """Return ‖W − W'‖² and ‖W‖², a few rows at a time: whole copies would be as large as the matrix."""
    left = whole = 0.0
    for rows, u in zip(wide.split(256), largest.u.split(256), strict=True):
        whole += float(rows.double().square().sum())
        left += float((rows - (u * largest.sigma) @ largest.vh).double().square().sum())
    return left, whole
