"""One logical matrix inside the parameter that stores it, which may be fused or transposed.

Knows tensors and row ranges; no family, no model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.core.site import Site

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Matrix:
    """`site`'s matrix, shape (out, in), stored in parameter `weight` of `module`.

    `rows` are half-open ranges of output rows of the stored parameter seen as (out, in), in the matrix's own
    order; None means all. `transposed`: the parameter itself is (in, out), as in GPT-2's Conv1D. `bias` is the
    parameter that holds its bias, with others' where fused, or None. `expert`: the parameter holds the same matrix of
    all experts of a network, one upon the other, and this is number `expert`.
    """

    site: Site
    module: str
    weight: str
    shape: tuple[int, int]
    rows: Ranges | None = None
    transposed: bool = False
    bias: str | None = None
    expert: int | None = None

    @property
    def num_parameters(self) -> int:
        """Return the parameters of the matrix and its bias."""
        return self.shape[0] * (self.shape[1] + (self.bias is not None))

    def stored_rows(self, rows: Iterable[int]) -> list[int]:
        """Return the rows of the stored parameter, seen as (out, in), that hold output rows of the matrix."""
        if self.rows is None:
            return list(rows)
        places = [place for start, stop in self.rows for place in range(start, stop)]
        return [places[row] for row in rows]

    def read(self, weight: Tensor) -> Tensor:
        """Return the matrix (out, in) in the parameter's dtype; a view where its rows lie together, else a copy."""
        stored = self._stored(weight)
        if self.rows is None:
            return stored
        return _joined([stored[start:stop] for start, stop in self.rows], dim=0)

    @torch.no_grad()
    def write_(self, weight: Tensor, matrix: Tensor) -> None:
        """Write `matrix` (out, in) over its own rows of the parameter, cast to its dtype, and no others."""
        assert tuple(matrix.shape) == self.shape, f"{self.site} is {self.shape}, not {tuple(matrix.shape)}"
        stored, first = self._stored(weight), 0
        for start, stop in self.rows or ((0, stored.shape[0]),):
            stored[start:stop].copy_(matrix[first : first + stop - start])
            first += stop - start

    def _stored(self, weight: Tensor) -> Tensor:
        """Return the stored parameter, or the slice of one expert, as (out, in)."""
        own = weight if self.expert is None else weight[self.expert]
        return own.T if self.transposed else own

    def of_output(self, y: Tensor) -> Tensor:
        """Return this matrix's part of the module's output or bias: (..., stored out) → (..., out)."""
        if self.rows is None:
            return y
        return _joined([y[..., start:stop] for start, stop in self.rows], dim=-1)

    def in_output(self, vector: Tensor, weight: Tensor) -> Tensor:
        """Return `vector` (out,) at this matrix's places of the module's whole output, and zeros at others' places."""
        whole = vector.new_zeros(weight.shape[1] if self.transposed else weight.shape[0])
        whole[self.stored_rows(range(self.shape[0]))] = vector
        return whole


def stacked_rows(sizes: tuple[int, ...], index: int) -> Ranges:
    """Return the rows of part `index` where parts of `sizes` rows lie one after the other."""
    start = sum(sizes[:index])
    return ((start, start + sizes[index]),)


def grouped_rows(kind: str, num_heads: int, num_kv_heads: int, d_head: int) -> Ranges:
    """Return the rows of q, k or v where each key/value group stores its query heads, its key and its value head."""
    queries = num_heads // num_kv_heads
    head, width = {"q": (0, queries), "k": (queries, 1), "v": (queries + 1, 1)}[kind]
    starts = [(group * (queries + 2) + head) * d_head for group in range(num_kv_heads)]
    return tuple((start, start + width * d_head) for start in starts)


def paired_rows(kind: str, num_heads: int, key: int, value: int) -> Ranges:
    """Return the rows of k or v where each head stores its key of so many numbers, then its value."""
    first, width = (0, key) if kind == "k" else (key, value)
    starts = [head * (key + value) + first for head in range(num_heads)]
    return tuple((start, start + width) for start in starts)


SLICES = 4  # of CodeGen's projection, which was trained in so many


def sliced_rows(kind: str, num_heads: int, d_head: int) -> Ranges:
    """Return the rows of q, k or v where each slice stores its query heads, then their values, then their keys."""
    width = num_heads // SLICES * d_head
    starts = [(3 * number + "qvk".index(kind)) * width for number in range(SLICES)]
    return tuple((start, start + width) for start in starts)


def _joined(pieces: list[Tensor], dim: int) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)
