"""Means and second moments that are summed batch by batch, in float64, and least squares from them. Pure tensors.

Memory is that of a few (width × width) matrices, however many vectors come. A map that was fitted on one stream can
be scored on another one, because the error of any linear map is a function of the moments alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

CONDITION = 1e12  # of XᵀX, the square of X's own: beyond a million, a fit in float64 is not to be trusted


@dataclass(frozen=True, eq=False)
class LinearMap:
    """The affine map y = W x + b."""

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"]

    def __call__(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        return x.to(self.weight.dtype) @ self.weight.T + self.bias


class Moments:
    """Streaming mean and, with `second`, second moment.

    `near` is the mean of the first batch, in float32 or wider. Sums are of the differences to it, so that a large
    common offset, which hidden states have, costs no digits.
    """

    def __init__(self, *, second: bool = False) -> None:
        self.count = 0
        self._near: Tensor | None = None
        self._second = second

    def add(self, x: Float[Tensor, "vectors width"]) -> None:
        """Add vectors."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self._near is None:
            self._near = wide.mean(dim=0)
            self._sum = torch.zeros_like(self._near, dtype=torch.float64)
            if self._second:
                self._products = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
        self.count += len(x)
        self._sum += (wide - self._near).double().sum(dim=0)
        if self._second:
            double = x.double()
            self._products.addmm_(double.T, double)

    @property
    def near(self) -> Float[Tensor, " width"]:
        """Return the mean of the first batch."""
        assert self._near is not None, "nothing was added"
        return self._near

    @property
    def offset(self) -> Float[Tensor, " width"]:
        """Return the mean less `near`."""
        return self._sum / self.count

    @property
    def mean(self) -> Float[Tensor, " width"]:
        """Return the mean."""
        return self.near.double() + self.offset

    @property
    def second(self) -> Float[Tensor, "width width"]:
        """Return E x xᵀ, not centered."""
        return self._products / self.count


class PairMoments:
    """Streaming first and second moments of pairs (x, y), all that least squares needs.

    Sums are of the differences to the means of the first batch, so that a large common offset, which hidden states
    have, costs no digits.
    """

    def __init__(self, near: tuple[Tensor, Tensor] | None = None) -> None:
        """Begin with no pairs.

        Args:
            near: approximate means (in,) and (out,), which moments that are to be added must share; None: the means of
                the first batch.
        """
        self.count = 0
        self._near = near
        self._eigen: dict[bool, tuple[int, Tensor, Tensor]] = {}  # by whether XᵀX is centered
        if near is not None:
            self._start()

    @property
    def _means(self) -> tuple[Tensor, Tensor]:
        """Return the approximate means that sums are relative to; something must have been added."""
        assert self._near is not None
        return self._near

    def _start(self) -> None:
        x, y = self._means
        self._x, self._y, self._yy = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(y)
        self._xx, self._xy = x.new_zeros(len(x), len(x)), x.new_zeros(len(x), len(y))

    def add(self, x: Float[Tensor, "vectors in"], y: Float[Tensor, "vectors out"]) -> None:
        """Add pairs of vectors."""
        x, y = x.double(), y.double()
        if self._near is None:
            self._near = x.mean(dim=0), y.mean(dim=0)
            self._start()
        near_x, near_y = self._means
        x, y = x - near_x, y - near_y
        self.count += len(x)
        self._x += x.sum(dim=0)
        self._y += y.sum(dim=0)
        self._xx.addmm_(x.T, x)
        self._xy.addmm_(x.T, y)
        self._yy += self._squared(y)

    def _squared(self, y: Tensor) -> Tensor:
        """Return the diagonal of YᵀY."""
        return (y * y).sum(dim=0)

    def __add__(self, other: Self) -> Self:
        """Return the moments of both streams, which began with the same `near`."""
        both = type(self)(self._near)
        both.count = self.count + other.count
        both._x, both._y, both._yy = self._x + other._x, self._y + other._y, self._yy + other._yy
        both._xx, both._xy = self._xx + other._xx, self._xy + other._xy
        return both

    @property
    def mean_x(self) -> Float[Tensor, " in"]:
        """Return the mean of x."""
        return self._means[0] + self._x / self.count

    @property
    def mean_y(self) -> Float[Tensor, " out"]:
        """Return the mean of y."""
        return self._means[1] + self._y / self.count

    @property
    def centered_xx(self) -> Float[Tensor, "in in"]:
        """Return XᵀX of the centered X."""
        return self._xx - torch.outer(self._x, self._x) / self.count

    @property
    def centered_xy(self) -> Float[Tensor, "in out"]:
        """Return XᵀY of the centered X and Y."""
        return self._xy - torch.outer(self._x, self._y) / self.count

    @property
    def spread_x(self) -> float:
        """Return ‖X‖²_F of the centered X."""
        return float(self.centered_xx.trace())

    @property
    def spread_y(self) -> float:
        """Return ‖Y‖²_F of the centered Y."""
        return float((self._yy - self._y * self._y / self.count).sum())

    def _solved(self, intercept: bool = True) -> tuple[Float[Tensor, " in"], Float[Tensor, "in in"]]:
        """Return eigenvalues, ascending, and eigenvectors of XᵀX, centered for an intercept; cached until `add`."""
        if intercept not in self._eigen or self._eigen[intercept][0] != self.count:
            self._eigen[intercept] = self.count, *torch.linalg.eigh(self._products(intercept)[0])
        return self._eigen[intercept][1:]

    def _products(self, intercept: bool) -> tuple[Float[Tensor, "in in"], Float[Tensor, "in out"]]:
        """Return XᵀX and XᵀY, centered for an intercept, else with their means."""
        if intercept:
            return self.centered_xx, self.centered_xy
        x, y = self.mean_x, self.mean_y
        return (
            self.centered_xx + self.count * torch.outer(x, x),
            self.centered_xy + self.count * torch.outer(x, y),
        )

    @property
    def condition(self) -> float:
        """Return the condition number of XᵀX among the directions that the data have."""
        values, _ = self._solved()
        kept = values[values > _smallest(values)]
        return float(kept.max() / kept.min()) if len(kept) else 1.0

    @property
    def rank(self) -> int:
        """Return the rank of the centered X."""
        values, _ = self._solved()
        return int((values > _smallest(values)).sum())

    @property
    def largest_share(self) -> float:
        """Return the share of the variance of X along one direction: σ₁² / Σσ², 0 where nothing varies."""
        values = self._solved()[0].clamp_min(0)
        return float(values[-1] / values.sum().clamp_min(torch.finfo(values.dtype).tiny))

    def mean_eigenvalue(self, *, intercept: bool = True) -> float:
        """Return the mean eigenvalue of XᵀX, centered for an intercept: the unit in which a ridge is given."""
        return max(0.0, float(self._products(intercept)[0].diagonal().mean()))

    def fit(self, *, ridge: float = 0.0, intercept: bool = True) -> LinearMap:
        """Return the map with the smallest ‖X Wᵀ + b − Y‖² + ridge ‖W‖²; of several, the one with the smallest W.

        Without `intercept` b is 0. Directions that the data do not have are left out, so that rank-deficient and badly
        conditioned inputs do no harm.
        """
        values, vectors, xy = self._kept(intercept)
        weight = (vectors * (1 / (values + ridge)) @ xy).T
        bias = self.mean_y - weight @ self.mean_x
        return LinearMap(weight, bias if intercept else torch.zeros_like(bias))

    def _kept(
        self, intercept: bool
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "in k"], Float[Tensor, "k out"]]:
        """Return the directions that the data have, with their eigenvalues, and XᵀY along them."""
        values, vectors = self._solved(intercept)
        kept = values > _smallest(values)
        return values[kept], vectors[:, kept], vectors[:, kept].T @ self._products(intercept)[1]

    def ridge_errors(
        self, ridges: Sequence[float], other: PairMoments, *, intercept: bool = True
    ) -> list[float]:
        """Return `other.error(self.fit(ridge=ridge, intercept=intercept))` for each of `ridges`.

        In the eigenbasis of XᵀX a fit is a diagonal matrix D = 1 / (λ + ridge), so that after three products of
        matrices each ridge costs k² numbers.
        """
        values, vectors, xy = self._kept(intercept)
        xx, cross = (vectors.T @ product for product in other._products(intercept))
        both = (xx @ vectors) * (xy @ xy.T)
        linear = (xy * cross).sum(dim=1)
        shift = vectors.T @ (other.mean_x - self.mean_x), other.mean_y - self.mean_y
        y = other.spread_y + (0.0 if intercept else other.count * float(other.mean_y @ other.mean_y))
        errors = []
        for ridge in ridges:
            d = 1 / (values + ridge)
            offset = (d * shift[0]) @ xy - shift[1]
            beyond = other.count * float(offset @ offset) if intercept else 0.0
            errors.append(max(0.0, float(d @ both @ d - 2 * d @ linear) + y) + beyond)
        return errors

    def error(self, fitted: LinearMap) -> float:
        """Return ‖X Wᵀ + b − Y‖²_F of a map that may have been fitted elsewhere."""
        weight = fitted.weight.double()
        offset = weight @ self.mean_x + fitted.bias.double() - self.mean_y
        quadratic = (weight @ self.centered_xx * weight).sum() - 2 * (weight * self.centered_xy.T).sum()
        return max(0.0, float(quadratic) + self.spread_y + self.count * float(offset @ offset))

    def score(self, fitted: LinearMap | None = None) -> float:
        """Return 1 − error / ‖Y‖²_F with Y centered.

        Args:
            fitted: a map that was fitted elsewhere, whose score may be negative; None: the best map on these data.

        Source: Razzhigaev et al. 2024 (arXiv 2405.12250), section 3; they score in-sample.
        """
        return 1 - self.error(fitted or self.fit()) / max(self.spread_y, 1e-300)


class JointMoments(PairMoments):
    """Moments with all of YᵀY, from which the moments of (x, W y) follow for any later W."""

    def _start(self) -> None:
        super()._start()
        self._yy = self._y.new_zeros(len(self._y), len(self._y))

    def _squared(self, y: Tensor) -> Tensor:
        return y.T @ y

    @property
    def spread_y(self) -> float:
        return float((self._yy.diagonal() - self._y * self._y / self.count).sum())

    def through(self, weight: Float[Tensor, "to out"], columns: slice = slice(None)) -> PairMoments:
        """Return the moments of (x, `weight` y) with `columns` of y. The eigenvectors of XᵀX are reused."""
        weight = weight.double()
        near_x, near_y = self._means
        mapped = PairMoments((near_x, weight @ near_y[columns]))
        mapped.count, mapped._x, mapped._y = self.count, self._x, weight @ self._y[columns]
        mapped._xx, mapped._xy = self._xx, self._xy[:, columns] @ weight.T
        mapped._yy = ((weight @ self._yy[columns, columns]) * weight).sum(dim=1)
        mapped._eigen = {True: (self.count, *self._solved())}
        return mapped


def _smallest(values: Float[Tensor, " n"]) -> float:
    """Return the bound below which eigenvalues are rounding.

    Sums over many vectors gather more rounding than one product does; how much shows in eigenvalues below 0, of which
    XᵀX has none.
    """
    rounding = float(values.max().clamp_min(0)) * len(values) * torch.finfo(values.dtype).eps
    return max(rounding, -2 * float(values.min()))
