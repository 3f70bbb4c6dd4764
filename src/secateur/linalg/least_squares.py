"""Least squares from second moments that come in batches, in float64. Pure tensor functions.

Memory is that of a few (width × width) matrices, however many vectors come. What is fitted on one stream can be scored
on another one, because the error of any linear map is a function of the moments alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

CONDITION = 1e12  # of XᵀX, the square of X's own: beyond a million, a fit in float64 is not to be trusted


@dataclass(frozen=True, eq=False)
class LinearMap:
    """y = W x + b."""

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"]

    def __call__(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        return x.to(self.weight.dtype) @ self.weight.T + self.bias


class PairMoments:
    """Streaming moments of pairs (x, y), of as much as least squares needs.

    Sums are of what is left without the means of the first batch, so that a large common offset, which hidden states
    have, costs no digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._near: tuple[Tensor, Tensor] | None = None

    def add(self, x: Float[Tensor, "vectors in"], y: Float[Tensor, "vectors out"]) -> None:
        x, y = x.double(), y.double()
        if self._near is None:
            self._near = x.mean(dim=0), y.mean(dim=0)
            self._x, self._y = torch.zeros_like(self._near[0]), torch.zeros_like(self._near[1])
            self._xx = x.new_zeros(x.shape[1], x.shape[1])
            self._xy = x.new_zeros(x.shape[1], y.shape[1])
            self._yy = torch.zeros_like(self._near[1])
        x, y = x - self._near[0], y - self._near[1]
        self.count += len(x)
        self._x += x.sum(dim=0)
        self._y += y.sum(dim=0)
        self._xx.addmm_(x.T, x)
        self._xy.addmm_(x.T, y)
        self._yy += (y * y).sum(dim=0)

    @property
    def mean_x(self) -> Float[Tensor, " in"]:
        return self._near[0] + self._x / self.count

    @property
    def mean_y(self) -> Float[Tensor, " out"]:
        return self._near[1] + self._y / self.count

    @property
    def centered_xx(self) -> Float[Tensor, "in in"]:
        """XᵀX of the centered X."""
        return self._xx - torch.outer(self._x, self._x) / self.count

    @property
    def centered_xy(self) -> Float[Tensor, "in out"]:
        return self._xy - torch.outer(self._x, self._y) / self.count

    @property
    def spread_y(self) -> float:
        """‖Y‖²_F of the centered Y."""
        return float((self._yy - self._y * self._y / self.count).sum())

    @property
    def condition(self) -> float:
        """Of XᵀX among the directions that the data have."""
        values = torch.linalg.eigvalsh(self.centered_xx)
        kept = values[values > _smallest(values)]
        return float(kept.max() / kept.min()) if len(kept) else 1.0

    @property
    def rank(self) -> int:
        """Of the centered X."""
        values = torch.linalg.eigvalsh(self.centered_xx)
        return int((values > _smallest(values)).sum())

    def fit(self, *, ridge: float = 0.0) -> LinearMap:
        """The map with the smallest ‖X W ᵀ + b − Y‖²; of several, the one with the smallest W.

        `ridge` is added to XᵀX, as a share of its mean eigenvalue. Directions that the data do not have are left out,
        so that rank-deficient and badly conditioned inputs do no harm.
        """
        values, vectors = torch.linalg.eigh(self.centered_xx)
        kept = values > _smallest(values)
        inverse = 1 / (values[kept] + ridge * values.mean().clamp_min(0))
        weight = ((vectors[:, kept] * inverse) @ (vectors[:, kept].T @ self.centered_xy)).T
        return LinearMap(weight, self.mean_y - weight @ self.mean_x)

    def error(self, fitted: LinearMap) -> float:
        """‖X Wᵀ + b − Y‖²_F of a map that may have been fitted elsewhere."""
        weight = fitted.weight.double()
        offset = weight @ self.mean_x + fitted.bias.double() - self.mean_y
        quadratic = (weight @ self.centered_xx * weight).sum() - 2 * (weight * self.centered_xy.T).sum()
        return max(0.0, float(quadratic) + self.spread_y + self.count * float(offset @ offset))

    def score(self, fitted: LinearMap | None = None) -> float:
        """1 − error / ‖Y‖²_F with Y centered: of the best map on these data, or of one fitted elsewhere, which may be
        below 0. Source: Razzhigaev et al. 2024 (arXiv 2405.12250), section 3; they score in-sample."""
        return 1 - self.error(fitted or self.fit()) / max(self.spread_y, 1e-300)


def _smallest(values: Float[Tensor, " n"]) -> float:
    """What is below this is rounding."""
    return float(values.max().clamp_min(0)) * len(values) * torch.finfo(values.dtype).eps
