"""The randomized decomposition against the exact one in float64: what it leaves, and what it says that it leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.linalg.spectrum import randomized

SHAPES = [(96, 160), (160, 96), (120, 120)]


def decaying(shape: tuple[int, int], power: float, seed: int) -> torch.Tensor:
    """Singular values i^-power, random directions."""
    draw = np.random.default_rng(seed)
    left, right = (np.linalg.qr(draw.normal(size=(size, min(shape))))[0] for size in shape)
    return torch.from_numpy((left * np.arange(1.0, min(shape) + 1) ** -power) @ right.T)


def spectra(shape: tuple[int, int], seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(*shape, generator=draw, dtype=torch.float64)
    planted = torch.randn(shape[0], 5, generator=draw, dtype=torch.float64) @ torch.randn(
        5, shape[1], generator=draw, dtype=torch.float64
    )
    return {
        "flat": noise,
        "slow": decaying(shape, 0.3, seed),
        "fast": decaying(shape, 1.5, seed),
        "planted": planted + 0.1 * noise,
        "of rank 5": planted,
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_it_leaves_and_what_it_says(shape, dtype):
    """The residual is the true one, the excess is never more than stated, and in truth below one percent."""
    for seed in range(3):
        for kind, matrix in spectra(shape, seed).items():
            given = matrix.to(dtype)
            exact = given.double().numpy()
            norm, sigma = np.linalg.norm(exact), np.linalg.svd(exact, compute_uv=False)
            for rank in (1, 3, 6, 24):
                found, accuracy = randomized(given, rank, seed=seed)
                truly = np.linalg.norm(exact - found.truncate(rank).double().numpy()) / norm
                best = np.sqrt((sigma[rank:] ** 2).sum()) / norm
                where = f"{kind}, rank {rank}"
                assert accuracy.residual == pytest.approx(truly, rel=1e-4, abs=1e-6), where
                if best > 1e-6:
                    assert truly / best - 1 <= accuracy.excess + 1e-5, where
                    assert truly / best - 1 < 0.01, where


@pytest.mark.parametrize("kind", ["fast", "planted"])
def test_where_the_spectrum_falls_the_bound_is_tight(kind):
    matrix = spectra((96, 160), 0)[kind]
    _, accuracy = randomized(matrix, 5)
    assert accuracy.excess < 1e-6


def test_the_bound_is_about_a_bad_decomposition_too():
    """Without a power iteration and oversampling it is far from the best, and says so."""
    matrix = spectra((120, 120), 1)["slow"]
    sigma = torch.linalg.svdvals(matrix)
    found, accuracy = randomized(matrix, 6, oversampling=0, iterations=0)
    best = float(sigma[6:].square().sum().sqrt())
    truly = float(torch.linalg.norm(matrix - found.truncate(6))) / best - 1
    assert truly > 0.01
    assert accuracy.excess >= truly


def test_components_are_orthonormal_and_in_order():
    found, _ = randomized(spectra((96, 160), 2)["slow"], 9)
    eye = torch.eye(9, dtype=torch.float64)
    torch.testing.assert_close(found.u.T @ found.u, eye, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.vh @ found.vh.T, eye, rtol=0, atol=1e-10)
    assert (found.sigma.diff() <= 0).all()


def test_same_seed_same_answer():
    matrix = spectra((96, 160), 3)["flat"]
    first, again, other = (randomized(matrix, 4, seed=seed)[0].truncate(4) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_smallest_and_the_largest_rank():
    matrix = spectra((96, 160), 4)["flat"]
    found, accuracy = randomized(matrix, 0)
    assert torch.equal(found.truncate(0), torch.zeros_like(matrix))
    assert (accuracy.residual, accuracy.excess) == (1.0, 0.0)
    found, accuracy = randomized(matrix, 96)
    torch.testing.assert_close(found.truncate(96), matrix)
    assert accuracy.residual < 1e-13
    found, accuracy = randomized(torch.zeros(8, 9), 2)
    assert (accuracy.residual, accuracy.excess) == (0.0, 0.0)
    assert torch.equal(found.truncate(2), torch.zeros(8, 9))
