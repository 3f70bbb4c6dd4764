"""Plans applied for good."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from secateur.surgery.operations import Decompose, Replace, decompose


def cut_(model: nn.Module, operations: Sequence[Replace], decompose: Decompose = decompose) -> None:
    """Changes `model` in place. The result has the original's shapes and dtype and needs nothing of ours to run."""
    with torch.no_grad():
        for operation in operations:
            operation.apply_(model.get_parameter(operation.parameter), decompose)
