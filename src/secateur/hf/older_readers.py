"""Add the older names to config.json that transformers 4, programs that bundle it, and llama.cpp's converter read.

Transformers 5 keeps all that concerns rotary positions in `rope_parameters`. An earlier release does not look
there: it loads the checkpoint silently, and computes with a base of 10,000 and no scaling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BASE, _SHARE = "rope_theta", "partial_rotary_factor"


def with_older_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of config.json, with the same values again under the names that transformers 4 reads."""
    stated = dict(config)
    if "dtype" in config:
        stated["torch_dtype"] = config["dtype"]
    if config["model_type"] == "gpt2" and "n_positions" in config:
        stated["n_ctx"] = config["n_positions"]  # which llama.cpp's converter asks for
    if rope := config.get("rope_parameters"):
        stated |= _rotary(config, rope)
    return stated


def _rotary(config: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, object]:
    if (
        "full_attention" in rope
    ):  # Gemma 3 has one base for the blocks that see all, one for those with a window
        local = {"rope_local_base_freq": rope["sliding_attention"][_BASE]}
        return local | _rotary(config, rope["full_attention"])
    kind, share = config["model_type"], rope.get(_SHARE)
    base_name, share_name = ("rotary_emb_base", "rotary_pct") if kind == "gpt_neox" else (_BASE, _SHARE)
    stated = {base_name: rope[_BASE]}
    if share is not None and not (kind == "phi3" and share == 1):  # which it takes for granted
        stated[share_name] = share
    return stated if rope["rope_type"] == "default" else stated | _scaling(kind, rope)


def _scaling(kind: str, rope: Mapping[str, Any]) -> dict[str, object]:
    scaling = {key: value for key, value in rope.items() if key not in (_BASE, _SHARE)}
    length = {"original_max_position_embeddings": scaling.get("original_max_position_embeddings")}
    if kind == "phi3":  # takes exactly three values, and the length beside them
        scaling = {key: value for key, value in scaling.items() if key not in length}
        scaling["type"] = scaling.pop("rope_type")
    return {"rope_scaling": scaling} | (length if rope["rope_type"] == "longrope" else {})
