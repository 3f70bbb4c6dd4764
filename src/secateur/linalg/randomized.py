"""The largest singular values of a large matrix, by products with it alone, and how far that may be from the best.

Pure tensor functions. Seeded: the same matrix and the same seed give the same result on one machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.linalg.spectrum import Spectrum

OVERSAMPLING = 16  # columns beyond the rank: 5 or 10 are usual (Halko et al., section 4.2)
ITERATIONS = 6  # of the power scheme: a weight's spectrum is flat, where 1 or 2 are 5 to 10 % off
PROBES, ALPHA = 20, 2.0  # the bound on ‖E‖ fails with probability ALPHA^-PROBES, 1e-6
PROBE_POWER = 4


@dataclass(frozen=True)
class TruncationError:
    """Of a truncation W' of W. `residual`: ‖W − W'‖ / ‖W‖ in Frobenius norm, computed; `excess`: at most so much is
    ‖W − W'‖ larger than what the best matrix of this rank leaves, as a share of that, with probability 1 − 1e-6;
    infinite where nothing can be said."""

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
    """The `rank` largest components, in float32 or wider, and how good they are.

    Costs 2 (iterations + 1) products of the matrix with rank + oversampling columns instead of a decomposition.
    Source: randomized subspace iteration (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.1).
    Differs: the residual is computed, and a bound on what a better one would leave; the paper bounds ‖E‖ alone.
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
    found = Spectrum(basis @ left[:, :rank], sigma[:rank], vh[:rank])
    return found, _accuracy(wide, found, basis, sigma, draw)


def _accuracy(
    wide: Tensor, found: Spectrum, basis: Tensor, sigma: Tensor, draw: torch.Generator
) -> TruncationError:
    rank, (left, whole) = found.full_rank, _energies(wide, found)
    if left <= (100 * torch.finfo(wide.dtype).eps) ** 2 * whole:  # nothing but rounding
        return TruncationError(math.sqrt(left / whole) if whole else 0.0, 0.0)
    best = left - _gain_bound(wide, basis, sigma, rank, draw)
    return TruncationError(math.sqrt(left / whole), math.sqrt(left / best) - 1 if best > 0 else math.inf)


def _gain_bound(wide: Tensor, basis: Tensor, sigma: Tensor, rank: int, draw: torch.Generator) -> float:
    """At most so much larger is the sum of the true σᵢ² than that of those found, i up to the rank.

    With B = Qᵀ W and E = W − Q B: each σᵢ² exceeds its own by ‖E‖² at most (Weyl, on WᵀW = BᵀB + EᵀE). Where
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
    found = torch.linalg.eigvalsh(gram)[-rank:].sum()
    return min(weyl, float(most - found))


def _norm_bound(wide: Tensor, basis: Tensor, draw: torch.Generator) -> float:
    """At least ‖E‖, the spectral norm, but with probability ALPHA^-PROBES.

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
    """What of the columns lies outside the basis; twice, as once leaves rounding behind."""
    for _ in range(2):
        columns = columns - basis @ (basis.T @ columns)
    return columns


def _normal(rows: int, columns: int, draw: torch.Generator, like: Tensor) -> Tensor:
    """Drawn on the CPU, so that all devices see the same numbers."""
    return torch.randn(rows, columns, generator=draw, dtype=torch.float64).to(like)


def _energies(wide: Tensor, found: Spectrum) -> tuple[float, float]:
    """‖W − W'‖² and ‖W‖², a few rows at a time: whole copies would be as large as the matrix."""
    left = whole = 0.0
    for rows, u in zip(wide.split(256), found.u.split(256), strict=True):
        whole += float(rows.double().square().sum())
        left += float((rows - (u * found.sigma) @ found.vh).double().square().sum())
    return left, whole
