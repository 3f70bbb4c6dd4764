"""Least squares from streamed moments against numpy's lstsq and SVD on all vectors at once, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from secateur.linalg.least_squares import CONDITION, PairMoments
from secateur.probes.linearity import intrinsic_dimension

N, D = 3000, 24
Array = NDArray[np.float64]


def draw(seed: int = 0, *, condition: float = 3.0, rank: int = D, noise: float = 0.1, offset: float = 0.0):
    """X with singular values spread evenly by their logarithm, and Y that is linear in it but for noise."""
    random = np.random.default_rng(seed)
    left, _ = np.linalg.qr(random.normal(size=(N, rank)))
    right, _ = np.linalg.qr(random.normal(size=(D, rank)))
    x = (left * np.geomspace(1, 1 / condition, rank)) @ right.T * N**0.5
    y = x @ random.normal(size=(D, D)) + noise * random.normal(size=(N, D))
    return x + offset, y - offset


def streamed(x: Array, y: Array, size: int = 100, order: list[int] | None = None) -> PairMoments:
    moments = PairMoments()
    starts = list(range(0, len(x), size))
    for number in order or range(len(starts)):
        part = slice(starts[number], starts[number] + size)
        moments.add(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    return moments


def paper_score(x: Array, y: Array) -> float:
    """As the authors' toolkit has it: centered, divided by the norms, projected on the left singular vectors of X."""
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    left, sigma, _ = np.linalg.svd(x, full_matrices=False)
    left = left[:, sigma > sigma[0] * 1e-12]
    return float(1 - np.linalg.norm(left @ (left.T @ y) - y) ** 2)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_papers_score(condition: float, noise: float) -> None:
    x, y = draw(condition=condition, noise=noise)
    assert streamed(x, y).score() == pytest.approx(paper_score(x, y), abs=1e-9)


def test_the_map_is_that_of_lstsq() -> None:
    x, y = draw()
    fitted = streamed(x, y).fit()
    solved = np.linalg.lstsq(np.c_[x, np.ones(N)], y, rcond=None)[0]
    assert fitted.weight.numpy() == pytest.approx(solved[:-1].T, abs=1e-9)
    assert fitted.bias.numpy() == pytest.approx(solved[-1], abs=1e-9)
    direct = float(((x @ fitted.weight.numpy().T + fitted.bias.numpy() - y) ** 2).sum())
    assert streamed(x, y).error(fitted) == pytest.approx(direct, rel=1e-9)


@pytest.mark.parametrize("rank", [1, 7, D - 1])
def test_rank_deficient_inputs(rank: int) -> None:
    x, y = draw(rank=rank)
    moments = streamed(x, y)
    assert moments.rank == rank
    assert moments.score() == pytest.approx(paper_score(x, y), abs=1e-9)
    smallest = np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=1e-9)[0]
    assert moments.fit().weight.numpy() == pytest.approx(smallest.T, abs=1e-6)


def test_rank_of_few_distinct_vectors_that_come_often() -> None:
    """As embeddings of a small vocabulary, with one direction far larger than the rest; their sums gather rounding."""
    random = np.random.default_rng(0)
    table = random.normal(size=(12, D)) + 30 * random.normal(size=(12, 1)) * random.normal(size=D)
    x = table[random.integers(12, size=60_000)]
    y = np.tanh(x @ random.normal(size=(D, D)))
    moments = streamed(x, y, size=64)
    assert moments.rank == 11  # the mean takes one
    assert moments.condition < 1e8
    assert moments.score() == pytest.approx(paper_score(x, y), abs=1e-9)


def test_fewer_vectors_than_dimensions() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 10, D))
    moments = streamed(x, y, size=4)
    assert moments.rank == 9  # the mean takes one
    assert moments.score() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("condition", "good"), [(1e3, True), (3e5, True), (3e6, False)])
def test_a_bad_condition_is_seen(condition: float, good: bool) -> None:
    """Of XᵀX, so the square of X's own."""
    x, y = draw(condition=condition)
    found = streamed(x, y).condition
    assert (found <= CONDITION) == good
    assert found == pytest.approx(np.linalg.cond(x - x.mean(0)) ** 2, rel=0.2)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_a_large_common_offset_costs_no_digits(offset: float) -> None:
    x, y = draw(offset=offset)
    assert streamed(x, y).score() == pytest.approx(paper_score(x, y), abs=1e-9)


def test_batches_in_any_order_and_size() -> None:
    x, y = draw(offset=50.0)
    order = np.random.default_rng(1).permutation(30).tolist()
    scores = [
        streamed(x, y, size, o).score() for size, o in ((100, None), (100, order), (7, None), (N, None))
    ]
    assert scores == pytest.approx([scores[0]] * 4, abs=1e-12)


def test_held_out_errors_are_those_of_the_map_itself() -> None:
    x, y = draw(noise=1.0)
    fit, other = streamed(x[:400], y[:400]), streamed(x[400:], y[400:])
    solved = np.linalg.lstsq(np.c_[x[:400], np.ones(400)], y[:400], rcond=None)[0]
    direct = ((np.c_[x[400:], np.ones(N - 400)] @ solved - y[400:]) ** 2).sum()
    assert other.error(fit.fit()) == pytest.approx(direct, rel=1e-9)
    spread = ((y[400:] - y[400:].mean(0)) ** 2).sum()
    assert other.spread_y == pytest.approx(spread, rel=1e-12)
    assert other.score(fit.fit()) == pytest.approx(1 - direct / spread, abs=1e-9)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("rank", [D, 9])
def test_ridges(intercept: bool, rank: int) -> None:
    """Fits by the normal equations, and what they cost on other data, of all ridges at once and one by one."""
    x, y = draw(noise=1.0, offset=0.3, rank=rank)
    x[500:], y[500:] = x[500:] * 1.5 + 0.1, y[500:] - 0.2
    fit, other = streamed(x[:500], y[:500]), streamed(x[500:], y[500:])
    ridges = [0.0, 1e-3, 1.0, 30.0, 1e4]
    shifts = (x[:500].mean(0), y[:500].mean(0)) if intercept else (0, 0)
    a, b = x[:500] - shifts[0], y[:500] - shifts[1]
    direct = []
    for ridge in ridges:
        solved = np.linalg.pinv(a.T @ a + ridge * np.eye(D), rcond=1e-12) @ a.T @ b
        found = fit.fit(ridge=ridge, intercept=intercept)
        assert found.weight.numpy() == pytest.approx(solved.T, abs=1e-8)
        direct.append((((x[500:] - shifts[0]) @ solved + shifts[1] - y[500:]) ** 2).sum())
        assert other.error(found) == pytest.approx(direct[-1], rel=1e-8)
    assert fit.ridge_errors(ridges, other, intercept=intercept) == pytest.approx(direct, rel=1e-8)
    assert fit.mean_eigenvalue(intercept=intercept) == pytest.approx(np.trace(a.T @ a) / D, rel=1e-9)


def test_noise_scores_in_sample_and_not_held_out() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 40 * D, D))
    half = 20 * D
    fit, other = streamed(x[:half], y[:half]), streamed(x[half:], y[half:])
    assert fit.score() == pytest.approx(1 / 20, abs=0.015)
    assert other.score(fit.fit()) == pytest.approx(-1 / 20, abs=0.02)


def test_two_streams_together() -> None:
    x, y = draw()
    near = torch.zeros(D, dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
    parts = [PairMoments(near), PairMoments(near)]
    for moments, part in zip(parts, (slice(0, 1000), slice(1000, N)), strict=True):
        moments.add(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    both = parts[0] + parts[1]
    assert both.count == N
    assert both.score() == pytest.approx(streamed(x, y).score(), abs=1e-12)


def test_what_was_solved_is_solved_again_when_more_comes() -> None:
    x, y = draw(noise=1.0)
    moments = streamed(x[:200], y[:200])
    before = moments.score(), moments.rank
    moments.add(torch.from_numpy(x[200:]), torch.from_numpy(y[200:]))
    assert moments.score() == pytest.approx(paper_score(x, y), abs=1e-9) != before[0]


def test_the_share_of_the_largest_direction() -> None:
    x, y = draw(condition=50.0, offset=3.0)
    sigma = np.linalg.svd(x - x.mean(0), compute_uv=False)
    assert streamed(x, y).largest_share == pytest.approx(sigma[0] ** 2 / (sigma**2).sum(), rel=1e-9)
    assert streamed(np.ones((5, 3)), np.ones((5, 3))).largest_share == 0


# -------------------------------------------------------------------------------------------------- intrinsic dimension


def slow_dimension(points: Array) -> float:
    """Point by point."""
    points = np.unique(points, axis=0)
    ratios = []
    for point in points:
        first, second = sorted(np.linalg.norm(points - point, axis=1))[1:3]
        ratios.append(np.log(second / first))
    ratios = np.sort(ratios)[: len(points) // 5]
    heights = -np.log(1 - np.arange(1, len(ratios) + 1) / len(points))
    return float(ratios @ heights / (ratios @ ratios))


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_points_in_a_space_of_few_dimensions(dimension: int) -> None:
    random = np.random.default_rng(0)
    basis, _ = np.linalg.qr(random.normal(size=(40, dimension)))
    points = 100 + random.uniform(size=(1000, dimension)) @ basis.T
    found = intrinsic_dimension(torch.from_numpy(points))
    assert found == pytest.approx(slow_dimension(points), rel=1e-6)
    assert found == pytest.approx(dimension, rel=0.2)


def test_equal_points_are_one_point() -> None:
    points = torch.from_numpy(np.random.default_rng(0).uniform(size=(300, 3)))
    again = torch.cat([points, points[:200], points[:1].expand(100, -1) + 1e-16])
    assert intrinsic_dimension(again) == pytest.approx(intrinsic_dimension(points), rel=1e-9)
    assert intrinsic_dimension(again.float()) == pytest.approx(intrinsic_dimension(points), rel=1e-3)
    assert intrinsic_dimension(points[:10]) is None
    assert intrinsic_dimension(points[:1].expand(500, -1)) is None
