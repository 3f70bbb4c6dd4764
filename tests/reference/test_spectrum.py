"""Decompositions against numpy, and against what Eckart and Young proved of truncations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.linalg.spectrum import spectrum

SHAPES = [(7, 7), (12, 5), (5, 12), (1, 6), (6, 1), (40, 33)]


def random(shape: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(
        dtype
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thin_orthonormal_descending_and_equal_to_numpys(shape, dtype):
    w = random(shape, dtype)
    found, k = spectrum(w), min(shape)
    assert (found.u.shape, found.vh.shape, found.full_rank) == ((shape[0], k), (k, shape[1]), k)
    eye = torch.eye(k, dtype=dtype)
    torch.testing.assert_close(found.u.T @ found.u, eye)
    torch.testing.assert_close(found.vh @ found.vh.T, eye)
    assert (found.sigma.diff() <= 0).all()
    expected = np.linalg.svd(w.double().numpy(), compute_uv=False)
    torch.testing.assert_close(found.sigma.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
    assert found.num_bytes == (k * (sum(shape) + 1)) * w.element_size()


@pytest.mark.parametrize("shape", SHAPES)
def test_truncations_are_numpys_at_every_rank_and_sides_add_up(shape):
    w = random(shape)
    found = spectrum(w)
    u, s, vh = np.linalg.svd(w.numpy(), full_matrices=False)
    for rank in range(min(shape) + 1):
        top, tail = found.truncate(rank), found.truncate(min(shape) - rank, "tail")
        torch.testing.assert_close(top, torch.from_numpy((u[:, :rank] * s[:rank]) @ vh[:rank]))
        torch.testing.assert_close(top + tail, w)
        assert int(torch.linalg.matrix_rank(top)) == rank if rank else not top.any()
    assert torch.equal(found.truncate(99), found.truncate(min(shape)))
    assert torch.equal(found.truncate(99, "tail"), found.truncate(min(shape), "tail"))


def test_errors_are_those_of_eckart_and_young_and_no_other_matrix_of_that_rank_is_nearer():
    w, rank = random((20, 15)), 4
    found = spectrum(w)
    error = w - found.truncate(rank)
    torch.testing.assert_close(error.norm() ** 2, (found.sigma[rank:] ** 2).sum())
    torch.testing.assert_close(torch.linalg.matrix_norm(error, 2), found.sigma[rank])
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):  # the best matrix of rank 4 with a random row space, near the true one or not
        noise = torch.rand((), generator=generator) * torch.randn(
            rank, 15, generator=generator, dtype=w.dtype
        )
        basis = torch.linalg.qr((found.vh[:rank] + noise).T).Q
        assert (w - w @ basis @ basis.T).norm() >= error.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_matrices_are_decomposed_in_float32(dtype):
    w = random((9, 6), dtype)
    found = spectrum(w)
    assert found.sigma.dtype == torch.float32
    torch.testing.assert_close(found.truncate(6), w.float(), rtol=0, atol=1e-5)
    large = (
        w.abs() > 0.1
    )  # a float32 decomposition errs by some 1e-6, below half a step of narrow numbers from here on
    assert torch.equal(found.truncate(6).to(dtype)[large], w[large])  # full rank is the original to the bit


def test_ranks_above_the_true_one_change_nothing_and_zero_stays_zero():
    low = random((10, 3)) @ random((3, 8))
    found = spectrum(low)
    for rank in range(3, 9):
        torch.testing.assert_close(found.truncate(rank), low)
    torch.testing.assert_close(found.truncate(5, "tail"), torch.zeros_like(low))
    assert not spectrum(torch.zeros(4, 6)).truncate(4).any()


def test_the_same_matrix_gives_the_same_bits_whatever_its_strides():
    w = random((12, 9), torch.float32)
    first, again, strided = spectrum(w), spectrum(w.clone()), spectrum(w.T.contiguous().T)
    for other in (again, strided):
        for column in ("u", "sigma", "vh"):
            assert torch.equal(getattr(first, column), getattr(other, column))
