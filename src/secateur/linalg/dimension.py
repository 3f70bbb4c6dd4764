"""Estimate the intrinsic dimension of a cloud of points from distances to nearest neighbors. Pure tensor functions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SHARE = 5  # the lowest fifth of the ratios is fitted, as in the authors' toolkit
ROUNDING = 8  # units of rounding, as a share of the mean distance from the middle: nearer points are equal
FEWEST = 20  # distinct points; with fewer, that fifth is no line


def intrinsic_dimension(points: Float[Tensor, "n d"]) -> float | None:
    """Return the TwoNN estimate of the dimension; None where fewer than 20 points are distinct.

    It is the slope of −log(1 − F(μ)) over log μ through the origin, with μ = r₂ / r₁ the ratio of the distances to
    the second and the nearest other point.

    Source: Facco et al. 2017 (doi 10.1038/s41598-017-11873-y), fitted to the lowest fifth as in LLM-Microscope.
    Differs: points that are equal up to rounding, such as a first token at its every occurrence, count as one point;
    there they stay in F.
    """
    centered = points.double() - points.double().mean(dim=0)
    rounding = ROUNDING * torch.finfo(points.dtype).eps * float(centered.norm(dim=-1).mean())
    distinct = centered[_first_of_equals(centered, rounding)]
    if len(distinct) < FEWEST:
        return None
    near = torch.cat([d.topk(2, largest=False).values for _, d in _distances(distinct)])
    ratios = (near[:, 1] / near[:, 0]).log().sort().values
    ratios = ratios[: len(distinct) // SHARE]
    below = torch.arange(1, len(ratios) + 1, dtype=ratios.dtype, device=ratios.device) / len(distinct)
    squares = float((ratios * ratios).sum())
    return float((ratios * -torch.log1p(-below)).sum()) / squares if squares else None


def _first_of_equals(points: Float[Tensor, "n d"], rounding: float) -> Bool[Tensor, " n"]:
    """Return True for each point that no earlier point is as near to."""
    first = []
    for numbers, distance in _distances(points):
        before = torch.arange(len(points), device=points.device) < numbers[:, None]
        first.append(~((distance <= rounding) & before).any(dim=1))
    return torch.cat(first)


def _distances(
    points: Float[Tensor, "n d"], rows: int = 256
) -> Iterator[tuple[Tensor, Float[Tensor, "rows n"]]]:
    """Yield the numbers of some points and their distances to all, infinite to themselves.

    Differences are exact: the small distances would be lost in products of large numbers.
    """
    for start in range(0, len(points), rows):
        some = points[start : start + rows]
        distance = torch.cdist(some, points, compute_mode="donot_use_mm_for_euclid_dist")
        numbers = torch.arange(start, start + len(some), device=points.device)
        distance[numbers - start, numbers] = torch.inf
        yield numbers, distance
