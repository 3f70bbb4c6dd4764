"""Train a model through low-rank adapters (LoRA) by peft; find the modules that a cut put into a model.

Source of the method: Hu et al. 2021 (arXiv 2106.09685), y = Wx + (α/r)·BAx with B = 0 at first.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secateur.errors import ModelError
from secateur.hf.modeling_secateur import LowRank, Side


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
        f"{path}.entry"
        for path, module in model.named_modules()
        if isinstance(getattr(module, "entry", None), nn.Sequential)
    )
    factors = (path for path, module in model.named_modules() if isinstance(module, LowRank | Side))
    return (*entries, *factors)
