"""Parameters that a training changes: all, some, or those that adapters (LoRA, by peft) are merged into."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.core.site import matrix_names
from secateur.errors import ModelError, TrainingError
from secateur.hf.load import Loaded
from secateur.hf.modeling_secateur import LowRank, Side
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


# ------------------------------------------------------------------------------------------------------ adapters


def check_peft() -> None:
    """Raise `ModelError` where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ModelError("--lora needs peft, which is not installed: pip install 'secateur[lora]'")


@contextmanager
def adapted(model: nn.Module, paths: Sequence[str], rank: int, alpha: float, seed: int) -> Iterator[None]:
    """Give the linear layers at `paths` (GPT-2's Conv1D included) adapters while the context is open.

    Afterwards W holds W + (α/r)·BA and the adapters are gone. All other weights stay as they are. A is drawn by
    `seed`.
    """
    _insert(model, paths, rank, alpha, seed)
    yield
    _merge(model)


def _insert(model: nn.Module, paths: Sequence[str], rank: int, alpha: float, seed: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(seed)
    # peft says int, and only divides it by the rank
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(paths))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # it finds that out by itself
        inject_adapter_in_model(config, model)
    found = {name for name, module in model.named_modules() if _is_adapter(module)}
    assert found == set(paths), found ^ set(paths)


@torch.no_grad()
def _merge(model: nn.Module) -> None:
    for path in [name for name, module in model.named_modules() if _is_adapter(module)]:
        layer: Any = model.get_submodule(path)
        layer.merge()
        model.set_submodule(path, layer.get_base_layer())
    del model.peft_config  # else the model would say that it still carries an adapter


def _is_adapter(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


def substitutes(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of the modules that a cut put in: linear maps for blocks, pairs of factors for matrices."""
    entries = (
        path
        for path, module in model.named_modules()
        if path.rpartition(".")[2] == "entry" and isinstance(module, nn.Sequential)
    )
    factors = (path for path, module in model.named_modules() if isinstance(module, LowRank | Side))
    return (*entries, *factors)
