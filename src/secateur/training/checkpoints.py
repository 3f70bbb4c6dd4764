"""What a killed training goes on from: the parameters that it trains, beside the Trainer's own state, whole or not."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

COMPLETE = "complete"  # the file that a checkpoint gets last: the seconds that training took until then
TRAINED = "trained.safetensors"


def save_trained(model: nn.Module, checkpoint: Path) -> None:
    """The parameters that are trained, tied ones once, by their names in `model`; what is not trained is not kept."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    kept = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    save_file(kept, checkpoint / TRAINED)


@torch.no_grad()
def read_trained(model: nn.Module, checkpoint: Path) -> None:
    """Into `model`, in place. What was not trained is as the model already has it."""
    for name, tensor in load_file(checkpoint / TRAINED).items():
        model.get_parameter(name).copy_(tensor)


def complete(checkpoint: Path, seconds: float) -> None:
    """Marks it as whole, at once or not at all."""
    half = checkpoint / "half"
    half.write_text(repr(seconds), encoding="utf-8")
    half.rename(checkpoint / COMPLETE)


def seconds_until(checkpoint: str | None) -> float:
    """What training took until it was whole, over all sittings; what came after it is done, and counted, again."""
    return 0.0 if checkpoint is None else _seconds(Path(checkpoint))


def _seconds(checkpoint: Path) -> float:
    """Raises `ValueError`, `OSError` where it is not whole."""
    return float((checkpoint / COMPLETE).read_text(encoding="utf-8"))


def newest_checkpoint(folder: Path) -> str | None:
    """The last one that is whole; what a killed process left half written is removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    for path in found:
        try:
            _seconds(path)
        except (OSError, ValueError):
            shutil.rmtree(path)
    whole = [path for path in found if path.exists()]
    return str(whole[-1].resolve()) if whole else None
