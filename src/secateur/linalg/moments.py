"""Means and second moments of vectors that come in batches, in float64. Pure tensor functions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class Moments:
    """Streaming mean, and with `second` second moment. `near` is the mean of the first batch, in float32 or wider.

    Sums are of what is left without `near`, so that a large common offset, which hidden states have, costs no digits.
    """

    def __init__(self, *, second: bool = False) -> None:
        self.count = 0
        self.near: Tensor | None = None
        self._sum: Tensor | None = None
        self._products: Tensor | None = None
        self._wanted = second

    def add(self, x: Float[Tensor, "vectors width"]) -> None:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.near is None:
            self.near = wide.mean(dim=0)
            self._sum = torch.zeros_like(self.near, dtype=torch.float64)
            if self._wanted:
                self._products = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
        self.count += len(x)
        self._sum += (wide - self.near).double().sum(dim=0)
        if self._wanted:
            double = x.double()
            self._products.addmm_(double.T, double)

    @property
    def offset(self) -> Float[Tensor, " width"]:
        """The mean less `near`."""
        return self._sum / self.count

    @property
    def mean(self) -> Float[Tensor, " width"]:
        return self.near.double() + self.offset

    @property
    def second(self) -> Float[Tensor, "width width"]:
        """E x xᵀ; the mean is not taken away."""
        return self._products / self.count
