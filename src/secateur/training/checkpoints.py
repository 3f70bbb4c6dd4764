"""Checkpoints that a killed training continues from: trained parameters beside the Trainer's own state.

Nothing here is a checkpoint in the sense of `secateur.checkpoint`: these folders go when the training is finished.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

COMPLETE = "complete"  # the file that a checkpoint gets last: the seconds that training took until then
TRAINED = "trained.safetensors"


def save_trained(model: nn.Module, checkpoint: Path) -> None:
    """Write the parameters of `model` that are trained, tied ones once, by their names."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    save_file(trained, checkpoint / TRAINED)


@torch.no_grad()
def read_trained(model: nn.Module, checkpoint: Path) -> None:
    """Copy the trained parameters of a checkpoint into `model`; the others stay as they are."""
    for name, tensor in load_file(checkpoint / TRAINED).items():
        model.get_parameter(name).copy_(tensor)


def mark_complete(checkpoint: Path, seconds: float) -> None:
    """Mark a checkpoint as complete by one rename; `seconds` is how long training took until then."""
    half = checkpoint / "half"
    half.write_text(repr(seconds), encoding="utf-8")
    half.rename(checkpoint / COMPLETE)


def seconds_until(checkpoint: str | None) -> float:
    """Return how long training took until a complete checkpoint, over all sittings; 0 where there is none.

    What was trained after it is trained, and counted, again.
    """
    return 0.0 if checkpoint is None else _seconds(Path(checkpoint))


def _seconds(checkpoint: Path) -> float:
    """Return the seconds in the mark of a checkpoint. Raises: `ValueError` or `OSError` where it is not complete."""
    return float((checkpoint / COMPLETE).read_text(encoding="utf-8"))


def newest_checkpoint(folder: Path) -> str | None:
    """Return the last complete checkpoint in a folder, if any; remove those that a killed process left incomplete."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    for path in found:
        try:
            _seconds(path)
        except (OSError, ValueError):
            shutil.rmtree(path)
    complete = [path for path in found if path.exists()]
    return str(complete[-1].resolve()) if complete else None
