"""Identify a model: one digest over all parameters, one over its configuration, equal on every machine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from secateur.hf.generation import generation_config
from secateur.hf.weights import distinct, is_offloaded, stored

_VOLATILE = (
    "_name_or_path",
    "transformers_version",
    "_from_model_config",
    "architectures",
    "dtype",
    "torch_dtype",
    "n_ctx",  # the length of GPT-2 once more, which only llama.cpp's converter reads
)


Look = Callable[[str, nn.Parameter, Tensor], None]  # a name, the parameter of that name, its numbers


def fingerprint(model: nn.Module, look: Look | None = None) -> str:
    """Return 32 hex characters over (name, shape, dtype, bytes) of every parameter; tied ones count once.

    Two models with one fingerprint have the same parameters bit for bit, in the same dtype. Tensors are hashed
    in a thread pool (hashing releases the interpreter's lock) and joined in the order of their names; those of
    an offloaded model one after the other, so that no two of them are in memory.

    Args:
        look: called with each tensor first, since to read them all once more may take minutes.
    """

    def digest(name: str, parameter: nn.Parameter) -> str:
        tensor = stored(model, name)
        if look is not None:
            look(name, parameter, tensor)
        data = tensor.detach().cpu().contiguous().reshape(-1)
        return hashlib.sha256(data.view(torch.uint8).numpy().data).hexdigest()

    named = sorted(distinct(model).items())
    workers = 1 if is_offloaded(model) else min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        digests = list(pool.map(digest, *zip(*named, strict=True)))
    lines = [f"{n} {tuple(p.shape)} {p.dtype} {d}" for (n, p), d in zip(named, digests, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def config_digest(model: PreTrainedModel) -> str:
    """Return 32 hex characters over a config without its names and versions.

    Equal weights compute something else under another rope base, norm epsilon or generation config.
    """
    return digest_of_configs(model.config, generation_config(model))


def digest_of_configs(*configs: PreTrainedConfig | GenerationConfig | None) -> str:
    """Return 32 hex characters over configs without their names and versions; None counts for none."""
    kept = [_lasting(config.to_dict()) for config in configs if config is not None]
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _lasting(config: Mapping[str, object]) -> dict[str, object]:
    """Drop names and versions, and `type`, which Phi-3 keeps beside `rope_type` where a config has both."""
    kept = {name: value for name, value in config.items() if name not in _VOLATILE}
    rope = kept.get("rope_parameters")
    if isinstance(rope, dict) and "rope_type" in rope:
        kept["rope_parameters"] = {name: value for name, value in rope.items() if name != "type"}
    return kept
