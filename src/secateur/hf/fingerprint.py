"""Which weights these are: one digest over all parameters, equal on every machine."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn


def fingerprint(model: nn.Module) -> str:
    """32 hex characters over (name, shape, dtype, bytes) of every parameter; tied ones count once.

    Two models with one fingerprint have the same parameters bit for bit, in the same dtype. Tensors are
    hashed in a thread pool (hashing releases the interpreter's lock) and joined in the order of their names.
    """
    named = sorted(model.named_parameters())
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(_digest, (parameter for _, parameter in named)))
    lines = [f"{n} {tuple(p.shape)} {p.dtype} {d}" for (n, p), d in zip(named, digests, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _digest(parameter: Tensor) -> str:
    data = parameter.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(data.view(torch.uint8).numpy()).hexdigest()
