"""A model that is in memory already: checked like one that is read from files, and given back as it was.

Knows no task and no command.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from secateur.errors import ModelError
from secateur.hf.anatomy import anatomy
from secateur.hf.fingerprint import config_digest, fingerprint
from secateur.hf.generation import end_ids
from secateur.hf.load import Loaded, quiet, refuse_nonfinite
from secateur.hf.source import MEMORY

NAME_DIGITS = 12  # hexadecimal, of the digest in a name: enough to tell the models of one user apart
PAIR = "Give the model and its tokenizer: prune(model, task, out, tokenizer=tokenizer)."


@contextmanager
def borrowed(model: object, tokenizer: object = None) -> Iterator[Loaded]:
    """Give the model as a `Loaded`, in eval mode and without gradients; afterwards both are as they were.

    Args:
        model: A `PreTrainedModel`, or what `secateur.load` returned.
        tokenizer: The tokenizer of a `PreTrainedModel`.

    Returns: One that `secateur.load` returned stays what it is as long as its weights are the same. Any other is named
    `memory:LABEL@DIGEST`, after all that its results depend on.

    Raises: `ModelError` for a model that cannot be cut, holds NaN, or lies on several devices.
    """
    bare, words = _parts(model, tokenizer)
    with _evaluated(bare), quiet():
        found = fingerprint(bare, _look)
        if isinstance(model, Loaded) and model.source is not None and model.fingerprint == found:
            yield model
            return
        parts = anatomy(bare)
        end_ids(bare, words)  # refused before anything is measured
        loaded = Loaded(_name(bare, words, found), bare, words, parts, found, None, None)
        yield replace(loaded, placement=model.placement) if isinstance(model, Loaded) else loaded


def _parts(model: object, tokenizer: object) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and its tokenizer. Raises: `ModelError` for anything else."""
    if isinstance(model, Loaded):
        if tokenizer is not None:
            raise ModelError("what secateur.load returned has a tokenizer already: leave out tokenizer=.")
        return model.model, model.tokenizer
    if not isinstance(model, PreTrainedModel):
        merge = (
            " Merge the adapter into its model first (merge_and_unload)." if "Peft" in _kind(model) else ""
        )
        raise ModelError(
            f"a model is a path, a hub name, a PreTrainedModel of transformers with tokenizer=, or what "
            f"secateur.load returns, not a {_kind(model)}.{merge}"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        missing = "it has no tokenizer" if tokenizer is None else f"a {_kind(tokenizer)} is no tokenizer"
        raise ModelError(f"a {_kind(model)} in memory: {missing}. {PAIR}")
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) != 1 or devices == ["meta"]:
        raise ModelError(
            f"this {_kind(model)} lies on {', '.join(devices)}. Give it by its name, with device_map=, or "
            "secateur.load(name, device_map=...)."
        )
    return model, tokenizer


def _kind(value: object) -> str:
    return type(value).__name__


def _look(name: str, parameter: nn.Parameter, values: Tensor) -> None:
    refuse_nonfinite(name, values, str(parameter.dtype).removeprefix("torch."))


@contextmanager
def _evaluated(model: PreTrainedModel) -> Iterator[None]:
    """Hold a model in eval mode and without gradients for a while."""
    training = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.train(False).requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, required in gradients:
            parameter.requires_grad_(required)


def _name(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, weights: str) -> str:
    """Return a name that two models share only where weights, config and tokenizer are equal."""
    digest = hashlib.sha256(f"{weights} {config_digest(model)}".encode())
    with TemporaryDirectory(prefix="secateur-") as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    label = Path(str(model.config._name_or_path)).name or _kind(model)
    return f"{MEMORY}{label}@{digest.hexdigest()[:NAME_DIGITS]}"
