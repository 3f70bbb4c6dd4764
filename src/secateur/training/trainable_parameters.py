"""Parameters that a training changes: all, some, or those that adapters are merged into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from secateur.core.site import matrix_names
from secateur.errors import TrainingError
from secateur.hf.adapters import adapted, check_peft, substitutes
from secateur.hf.load import Loaded
from secateur.training.options import Tuning
from secateur.training.records.finetune import AdaptersRecord


@dataclass(frozen=True)
class TrainableParameters:
    """The parameters that a training changes.

    Args:
        whole: Names of the parameters that are trained themselves.
        paths: Paths of the linear layers that get adapters; their weights stay as they are until adapters are merged.
        rank: Rank of each adapter.
        alpha: Adapters are scaled by `alpha` / `rank`.
    """

    whole: frozenset[str]
    paths: tuple[str, ...] = ()
    rank: int = 0
    alpha: float = 0.0

    @property
    def changed(self) -> frozenset[str]:
        """Return the names of the parameters that have other values after the training."""
        return self.whole | {f"{path}.weight" for path in self.paths}

    def count(self, model: nn.Module) -> int:
        """Return how many numbers are trained; an adapter has rank × (inputs + outputs)."""
        trained = sum(p.numel() for name, p in model.named_parameters() if name in self.whole)
        return trained + self.rank * sum(
            sum(model.get_parameter(f"{path}.weight").shape) for path in self.paths
        )

    @contextmanager
    def enabled(self, model: nn.Module, seed: int) -> Iterator[None]:
        """Let these parameters of `model`, and no others, be trained; insert adapters, and merge them at the end.

        Args:
            model: Changed in place.
            seed: Seed of the adapters' initial values.
        """
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

    def adapters(self) -> AdaptersRecord | None:
        """Return the record of the adapters; None where there are none."""
        if not self.paths:
            return None
        return AdaptersRecord(rank=self.rank, alpha=self.alpha, layers=len(self.paths))


def all_parameters(model: nn.Module) -> TrainableParameters:
    """Return all parameters of a model as trainable."""
    return TrainableParameters(frozenset(name for name, _ in model.named_parameters()))


def parameters_under(paths: Iterable[str], names: Iterable[str]) -> frozenset[str]:
    """Return those of the parameters' names that lie below one of the module paths."""
    beginnings = tuple(f"{path}." for path in paths)
    return frozenset(name for name in names if name.startswith(beginnings))


def trainable_parameters_of(
    loaded: Loaded, tuning: Tuning, replacements: Iterable[str] = ()
) -> TrainableParameters:
    """Return what a tuning trains: all parameters or, with `--lora`, adapters and what replaced parts of a cut model.

    Args:
        loaded: The model.
        tuning: Says whether there are adapters, and for which matrices.
        replacements: Module paths that are trained whole beside the adapters, as linear maps and factors are.

    Raises: `UnknownName` for matrices that the model does not have, `TrainingError` where no matrix is left for an
    adapter, `ModelError` where peft is missing.
    """
    if tuning.lora is None:
        return all_parameters(loaded.model)
    check_peft()
    names = [name for name, _ in loaded.model.named_parameters()]
    whole = parameters_under((*replacements, *substitutes(loaded.model)), names)
    kinds = matrix_names(tuning.lora_targets, loaded.anatomy.matrix_kinds)
    matrices = [matrix for site, matrix in loaded.anatomy.matrices.items() if site.part in kinds]
    weights = {matrix.module: matrix.weight for matrix in matrices}  # a fused weight holds several matrices
    paths = tuple(path for path, weight in weights.items() if weight not in whole)
    if not paths:
        raise TrainingError(
            f"--lora-targets {','.join(tuning.lora_targets)}: all of these are trained as they are, for they stand for "
            "what was cut. Name others, or leave out --lora."
        )
    return TrainableParameters(whole, paths, tuning.lora, tuning.lora_scale)
