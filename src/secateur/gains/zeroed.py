"""What was masked and not cut: parts whose output weights are all zero, stored and computed all the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from secateur.core.site import Site
from secateur.hf.load import Loaded
from secateur.hf.matrices import Matrix


@dataclass(frozen=True)
class Zeroed:
    """Counts: query heads, whole feed-forward networks, neurons of the other networks; and the zeros in all matrices of
    two dimensions outside embeddings (`weights`), whatever their pattern."""

    heads: int
    ffns: int
    neurons: int
    weights: int

    @property
    def note(self) -> str | None:
        """`12 heads are zero but stored: nothing saved`, or None where no part is zero."""
        counts = {"head": self.heads, "feed-forward network": self.ffns, "neuron": self.neurons}
        told = [f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count]
        if not told:
            return None
        verb = "is" if sum(counts.values()) == 1 else "are"
        return f"{' and '.join(told)} {verb} zero but stored: nothing saved"


def zeroed(loaded: Loaded) -> Zeroed:
    """What of a model is there and does nothing. A factorized matrix counts as not zero."""
    silent = {site: _silent_inputs(loaded, matrix.module) for site, matrix in _outputs(loaded)}
    d_head = loaded.anatomy.d_head
    heads = [inputs.unflatten(0, (-1, d_head)).all(1) for site, inputs in silent.items() if site.part == "o"]
    downs = [inputs for site, inputs in silent.items() if site.part == "down"]
    return Zeroed(
        heads=sum(int(one.sum()) for one in heads),
        ffns=sum(bool(one.all()) for one in downs),
        neurons=sum(int(one.sum()) for one in downs if not one.all()),
        weights=_zeros(loaded),
    )


def _outputs(loaded: Loaded) -> list[tuple[Site, Matrix]]:
    """The matrices that write into the stream, as far as they are stored as one matrix."""
    return [
        (site, matrix)
        for site, matrix in loaded.anatomy.matrices.items()
        if site.part in ("o", "down")
        and isinstance(loaded.model.get_submodule(matrix.module), nn.Linear | Conv1D)
    ]


def _silent_inputs(loaded: Loaded, path: str) -> Bool[Tensor, " inputs"]:
    """Which inputs of a linear layer no output listens to."""
    weight = loaded.parameter(f"{path}.weight")
    linear = loaded.model.get_submodule(path)
    return ((weight.T if isinstance(linear, Conv1D) else weight) == 0).all(0)


def _zeros(loaded: Loaded) -> int:
    matrices = [
        f"{path}.{name}".lstrip(".")
        for path, module in loaded.model.named_modules()
        if not isinstance(module, nn.Embedding)
        for name, p in module.named_parameters(recurse=False)
        if p.dim() > 1
    ]
    weights = map(loaded.parameter, matrices)
    return sum(int(p.numel() - torch.count_nonzero(p)) for p in weights)
