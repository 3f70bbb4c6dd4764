"""How many dimensions a cloud of points has, by the distances to their two nearest neighbors. Pure tensor functions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SHARE = 5  # the lowest fifth of the ratios is fitted, as in the authors' toolkit
FEWEST = 20  # distinct points; with fewer, that fifth is no line


def intrinsic_dimension(points: Float[Tensor, "n d"]) -> float | None:
    """The TwoNN estimate: the slope of −log(1 − F(μ)) over log μ through the origin, with μ = r₂ / r₁ the ratio of the
    distances to the second and the nearest other point. None where fewer than 20 points are distinct.

    Source: Facco et al. 2017 (doi 10.1038/s41598-017-11873-y), fitted to the lowest fifth as in LLM-Microscope.
    Differs: equal points, such as one word's embedding wherever it stands, are one point. There they stay in F.
    """
    distinct = torch.unique(points.double(), dim=0)
    if len(distinct) < FEWEST:
        return None
    near = _two_nearest(distinct - distinct.mean(dim=0))
    ratios = (near[:, 1] / near[:, 0]).log().sort().values
    ratios = ratios[: len(distinct) // SHARE]
    below = torch.arange(1, len(ratios) + 1, dtype=ratios.dtype, device=ratios.device) / len(distinct)
    squares = float((ratios * ratios).sum())
    return float((ratios * -torch.log1p(-below)).sum()) / squares if squares else None


def _two_nearest(points: Float[Tensor, "n d"], rows: int = 256) -> Float[Tensor, "n 2"]:
    """Distances to the nearest other point and the next; `rows` points at a time. Exact differences: what is near would
    be lost in products of what is large."""
    mode = "donot_use_mm_for_euclid_dist"
    found = []
    for start in range(0, len(points), rows):
        distance = torch.cdist(points[start : start + rows], points, compute_mode=mode)
        at = torch.arange(len(distance), device=points.device)
        distance[at, start + at] = torch.inf
        found.append(distance.topk(2, largest=False).values)
    return torch.cat(found)
