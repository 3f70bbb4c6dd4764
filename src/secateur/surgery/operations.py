"""From a plan to primitive operations on named parameters. All checks happen here; applying is dumb.

An operation knows one parameter by name and changes one stored tensor in place, so that the reversible mask, the
physical cut and anything that streams tensors one by one interpret the same list and agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from secateur.core.plan import Plan, Truncate
from secateur.errors import PlanError
from secateur.hf.anatomy import Anatomy
from secateur.hf.matrices import Matrix
from secateur.linalg.spectrum import Spectrum, spectrum

Decompose = Callable[[Matrix, Tensor], Spectrum]


def decompose(matrix: Matrix, weight: Tensor) -> Spectrum:
    """The spectrum of one logical matrix, read from the parameter that stores it."""
    return spectrum(matrix.read(weight))


@dataclass(frozen=True)
class Replace:
    """Write a truncation of `matrix` into the parameter `matrix.weight`."""

    matrix: Matrix
    edit: Truncate

    @property
    def parameter(self) -> str:
        return self.matrix.weight

    def apply_(self, weight: Tensor, decompose: Decompose = decompose) -> None:
        """`weight` is the stored tensor, still holding the original of this matrix; changed in place."""
        kept = decompose(self.matrix, weight).truncate(self.edit.rank, self.edit.side)
        self.matrix.write_(weight, kept)


def resolve(plan: Plan, anatomy: Anatomy, fingerprint: str) -> tuple[Replace, ...]:
    """What to do to which parameter, lowest block first.

    Raises: `PlanError` when the plan is for another model or a rank is above the full one; `UnknownName` for a
    matrix the model does not have.
    """
    if plan.model != fingerprint:
        raise PlanError(
            f"this plan is for the model with fingerprint {plan.model}, not for this one ({fingerprint}): its weights "
            "differ. Use the model the plan was made for, or search again."
        )
    operations = []
    for edit in plan.edits:
        matrix = anatomy.matrix(edit.matrix)
        if edit.rank > min(matrix.shape):
            raise PlanError(
                f"{edit}: {edit.matrix} is {matrix.shape[0]} × {matrix.shape[1]}, "
                f"its rank is at most {min(matrix.shape)}."
            )
        operations.append(Replace(matrix, edit))
    return tuple(operations)
