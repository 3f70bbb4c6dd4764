"""A matrix, or each of its heads, as a sum of rank-one parts, one for each singular direction. Pure tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Directions:
    """The singular directions of every piece: a head, or all of the matrix as the only piece.

    A piece is Σᵢ uᵢ rowᵢ, with rowᵢ = uᵢᵀ W; σ descends. From the plain decomposition rowᵢ = σᵢ vᵢᵀ. From the whitened
    one σ are the singular values of W C^½.
    """

    u: Float[Tensor, "pieces out k"]
    sigma: Float[Tensor, "pieces k"]
    rows: Float[Tensor, "pieces k in"]

    def along(
        self, x: Float[Tensor, "inputs rows t in"], g: Float[Tensor, "outputs rows t out"]
    ) -> tuple[Float[Tensor, "pieces rows k"], Float[Tensor, "pieces rows k"]]:
        """Return Σ_t (g_t · uᵢ)(rowᵢ · x_t), and Σ_t g_t · uᵢ.

        Two matrix products for all directions at once, no loop over singular values.

        Args:
            x: inputs of the matrix; `inputs` is 1 where all pieces share them.
            g: vectors in its output space; `outputs` is 1 where all pieces share them.
        """
        shape = g.shape[1:3]
        left = (g.to(self.u.dtype).flatten(1, 2) @ self.u).unflatten(1, shape)
        right = (x.to(self.u.dtype).flatten(1, 2) @ self.rows.mT).unflatten(1, shape)
        return torch.einsum("hrtk,hrtk->hrk", left, right), left.sum(dim=2)


def directions(
    matrix: Float[Tensor, "pieces out in"], moment: Float[Tensor, "pieces in in"] | None = None
) -> Directions:
    """Return the exact singular directions of each piece, in float32 or wider; with `moment`, those of W C^½.

    C is the second moment of the input, so that directions are ordered by how much of the output's energy they
    carry on the data. Only C's root up to a rotation is needed, which has the same u and σ, and no inverse: part i
    is uᵢ uᵢᵀ W. `pieces` of the moment is 1 where all pieces share their input.
    """
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    if moment is None:
        u, sigma, vh = torch.linalg.svd(wide, full_matrices=False)
        return Directions(u, sigma, sigma[..., None] * vh)
    values, vectors = torch.linalg.eigh(moment)
    root = vectors * values.clamp_min(0).sqrt()[..., None, :]
    u, sigma, _ = torch.linalg.svd(wide @ root.to(wide.dtype), full_matrices=False)
    return Directions(u, sigma, u.mT @ wide)


def pieces(matrix: Float[Tensor, "out in"], num: int, *, columns: bool) -> Float[Tensor, "pieces out_ in_"]:
    """Split the matrix into `num` equal pieces: of its rows, or of its `columns`."""
    if columns:
        return torch.unflatten(matrix, 1, (num, -1)).movedim(1, 0)
    return torch.unflatten(matrix, 0, (num, -1))


def joined(parts: Float[Tensor, "pieces out_ in_"], *, columns: bool) -> Float[Tensor, "out in"]:
    """Join the parts that `pieces` split a matrix into, in their order.

    Args:
        columns: The pieces lie side by side, as heads do in the columns of an `o`; else one below the other.
    """
    return parts.movedim(0, 1).flatten(1, 2) if columns else parts.flatten(0, 1)


def part_along(
    parts: Float[Tensor, "pieces out in"], u: Float[Tensor, "pieces out k"], gone: Bool[Tensor, "pieces k"]
) -> Float[Tensor, "pieces out in"]:
    """Return Σᵢ uᵢ uᵢᵀ W over the directions that are `gone`: the part of each piece that is removed with them."""
    taken = (
        u[:, :, gone[0]] if len(u) == 1 else u * gone[:, None, :]
    )  # of several pieces different ones may go
    return taken @ (taken.mT @ parts.to(u.dtype))
