"""Which parameters a training changes: all, some, or what adapters stand for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.core.site import matrix_names
from secateur.errors import TrainingError
from secateur.hf.adapters import adapted, check_peft, substitutes
from secateur.hf.load import Loaded
from secateur.training.depths import named
from secateur.training.tuning import Tuning


@dataclass(frozen=True)
class TrainableParameters:
    """`whole` are names of parameters that are trained as they are; the linear layers at `paths` get adapters of
    `rank`, scaled by `alpha` / `rank`, and are otherwise left alone until these are merged."""

    whole: frozenset[str]
    paths: tuple[str, ...] = ()
    rank: int = 0
    alpha: float = 0.0

    @property
    def changed(self) -> frozenset[str]:
        """The names of the parameters that are others afterwards."""
        return self.whole | {f"{path}.weight" for path in self.paths}

    def count(self, model: nn.Module) -> int:
        """How many numbers are learned; of an adapter rank × (inputs + outputs)."""
        learned = sum(p.numel() for name, p in model.named_parameters() if name in self.whole)
        return learned + self.rank * sum(sum(model.get_submodule(path).weight.shape) for path in self.paths)

    @contextmanager
    def taken(self, model: nn.Module, seed: int) -> Iterator[None]:
        """What is at stake, and nothing else, can be trained; adapters are there, and merged in the end."""
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.whole)
        if not self.paths:
            yield
            return
        with adapted(model, self.paths, self.rank, self.alpha, seed):
            for name, parameter in model.named_parameters():
                if name in self.whole:  # peft freezes all but its own
                    parameter.requires_grad_(True)
            yield

    def to_json(self) -> dict[str, Any] | None:
        """Of adapters; None where there are none."""
        return {"rank": self.rank, "alpha": self.alpha, "layers": len(self.paths)} if self.paths else None


def everything(model: nn.Module) -> TrainableParameters:
    return TrainableParameters(frozenset(name for name, _ in model.named_parameters()))


def trainable_parameters_of(
    loaded: Loaded, tuning: Tuning, replaced: tuple[str, ...] = ()
) -> TrainableParameters:
    """Everything; with --lora adapters for the matrices it names, and whole what stands in a cut model for something:
    `replaced` (beginnings of names), linear maps and factors.

    Raises `UnknownName` for matrices that the model has not, `TrainingError` where no adapter has a place."""
    if tuning.lora is None:
        return everything(loaded.model)
    check_peft()
    names = [name for name, _ in loaded.model.named_parameters()]
    whole = named((*replaced, *substitutes(loaded.model)), names)
    kinds = matrix_names(tuning.lora_targets, loaded.anatomy.matrix_kinds)
    wanted = {m.module: m.weight for site, m in loaded.anatomy.matrices.items() if site.part in kinds}
    paths = tuple(path for path, weight in wanted.items() if weight not in whole)
    if not paths:
        raise TrainingError(
            f"--lora-targets {','.join(tuning.lora_targets)}: all of these are trained as they are, for they stand for "
            "what was cut. Name others, or leave out --lora."
        )
    return TrainableParameters(frozenset(whole), paths, tuning.lora, tuning.lora_scale)
