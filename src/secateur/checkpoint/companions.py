"""Write the files beside a checkpoint's weights: config, tokenizer, generation config.

The config gets the older names that transformers 4, programs that bundle it, and llama.cpp's converter read.
Transformers 5 keeps all that concerns rotary positions in `rope_parameters`. An earlier release does not look there: it
loads the checkpoint silently, and computes with a base of 10,000 and no scaling.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from secateur.checkpoint.folder import write_json
from secateur.hf.source import CONFIG


def write_companions(tokenizer: PreTrainedTokenizerBase, copied: Mapping[str, bytes], folder: Path) -> None:
    """Write the tokenizer and the generation config, and restate the config that `save_pretrained` left in `folder`.

    Args:
        copied: `Loaded.copied` of the model that the checkpoint is made of: file contents by name. Where it is empty,
            the tokenizer is written as transformers writes it.
    """
    config = with_older_names(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    stated = json.loads(copied.get("tokenizer_config.json", "{}"))
    if copied and "carving" in config and "tokenizer_class" not in stated:
        # transformers goes by the class of the config then, which in a carved model is not the family's own
        config["stock"]["tokenizer_class"] = type(tokenizer).__name__
    write_json(folder / CONFIG, dict(sorted(config.items())))
    if not copied:
        tokenizer.save_pretrained(folder)
    for name, content in copied.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


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
