"""Count what was masked and not cut: parts whose output weights are all zero, stored and computed all the same."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from secateur.core.records.verdict import ZeroedRecord
from secateur.core.site import Site
from secateur.hf.load import Loaded
from secateur.hf.matrices import Matrix


def zeroed_note(counts: ZeroedRecord) -> str | None:
    """Return `12 heads are zero but stored: nothing saved`, or None where no part is zero."""
    parts = {"head": counts.heads, "feed-forward network": counts.ffns, "neuron": counts.neurons}
    words = [f"{count} {name}{'s' * (count > 1)}" for name, count in parts.items() if count]
    if not words:
        return None
    verb = "is" if sum(parts.values()) == 1 else "are"
    return f"{' and '.join(words)} {verb} zero but stored: nothing saved"


def zeroed(loaded: Loaded) -> ZeroedRecord:
    """Return how many parts of a model are there and do nothing. A factorized matrix counts as not zero."""
    unread = {site: _unread_inputs(loaded, matrix.module) for site, matrix in _outputs(loaded)}
    d_head = loaded.anatomy.d_head
    heads = [inputs.unflatten(0, (-1, d_head)).all(1) for site, inputs in unread.items() if site.part == "o"]
    neurons = [inputs for site, inputs in unread.items() if site.part == "down"]
    return ZeroedRecord(
        heads=sum(int(zero.sum()) for zero in heads),
        ffns=sum(bool(zero.all()) for zero in neurons),
        neurons=sum(int(zero.sum()) for zero in neurons if not zero.all()),
        weights=_zeros(loaded),
    )


def _outputs(loaded: Loaded) -> list[tuple[Site, Matrix]]:
    """Return the matrices that write into the residual stream, as far as they are stored as one matrix."""
    return [
        (site, matrix)
        for site, matrix in loaded.anatomy.matrices.items()
        if site.part in ("o", "down")
        and isinstance(loaded.model.get_submodule(matrix.module), nn.Linear | Conv1D)
    ]


def _unread_inputs(loaded: Loaded, path: str) -> Bool[Tensor, " inputs"]:
    """Return for each input of a linear layer whether all of its weights are zero."""
    weight = loaded.parameter(f"{path}.weight")
    linear = loaded.model.get_submodule(path)
    return ((weight.T if isinstance(linear, Conv1D) else weight) == 0).all(0)


def _zeros(loaded: Loaded) -> int:
    """Return the zeros in all matrices of two dimensions outside embeddings, whatever their pattern."""
    matrices = [
        f"{path}.{name}".lstrip(".")
        for path, module in loaded.model.named_modules()
        if not isinstance(module, nn.Embedding)
        for name, p in module.named_parameters(recurse=False)
        if p.dim() > 1
    ]
    weights = map(loaded.parameter, matrices)
    return sum(int(p.numel() - torch.count_nonzero(p)) for p in weights)
