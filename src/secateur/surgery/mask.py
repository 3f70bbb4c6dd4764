"""Plans applied for a while: the model is whole again, to the bit, when the context closes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from secateur.hf.matrices import Matrix
from secateur.linalg.spectrum import Spectrum
from secateur.surgery.operations import Decompose, Replace, decompose


@contextmanager
def masked(
    model: nn.Module, operations: Sequence[Replace], decompose: Decompose = decompose
) -> Iterator[None]:
    """Inside, `model` computes as if cut. Costs one copy of each parameter touched."""
    saved: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        try:
            for operation in operations:
                weight = model.get_parameter(operation.parameter)
                saved.setdefault(operation.parameter, weight.detach().clone())
                operation.apply_(weight, decompose)
            yield
        finally:
            for name, original in saved.items():
                model.get_parameter(name).copy_(original)


class Spectra:
    """Each matrix is decomposed once and its spectrum kept, the least recently used leaving beyond `max_bytes`.

    Holds spectra of the *original* matrices: it is only asked before an edit is written.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[str, Spectrum] = {}

    def fitting(self, matrices: Iterable[Matrix]) -> list[list[Matrix]]:
        """Runs of matrices whose float32 spectra have room together."""
        groups: list[list[Matrix]] = []
        used = 0
        for matrix in matrices:
            need = 4 * (min(matrix.shape) * (sum(matrix.shape) + 1))
            if not groups or used + need > self._max_bytes:
                groups.append([])
                used = 0
            groups[-1].append(matrix)
            used += need
        return groups

    def __call__(self, matrix: Matrix, weight: torch.Tensor) -> Spectrum:
        name = str(matrix.site)
        found = self._kept.pop(name, None) or decompose(matrix, weight)
        self._kept[name] = found
        while len(self._kept) > 1 and sum(s.num_bytes for s in self._kept.values()) > self._max_bytes:
            self._kept.pop(next(iter(self._kept)))
        return found
