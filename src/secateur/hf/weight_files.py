"""Whether the files with a checkpoint's weights are whole and safe, before any of them is loaded.

Reads headers and indices; builds no model, opens no pickle.
"""

from __future__ import annotations

import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open

from secateur.errors import ModelError
from secateur.hf.source import INDEX, WEIGHTS, read_json

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_weights(folder: Path) -> None:
    """Every shard is there, is a whole safetensors file, and holds the tensors that the index promises.

    Raises: `ModelError` naming the file; for pickled weights, which are never opened.
    """
    if (folder / INDEX).exists():
        return _check_shards(folder)
    if not (folder / WEIGHTS).exists():
        raise ModelError(_no_safetensors(folder))
    _tensor_names(folder / WEIGHTS)


def _check_shards(folder: Path) -> None:
    index = read_json(folder / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{folder / INDEX} has no weight_map.")
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).exists():
            raise ModelError(
                f"shard {shard} is missing from {folder}, and {INDEX} asks for it. Copy it again."
            )
        promised = {tensor for tensor, file in weight_map.items() if file == shard}
        absent = promised - _tensor_names(folder / shard)
        if absent:
            raise ModelError(f"shard {folder / shard} lacks {min(absent)}, which {INDEX} says it holds.")


def _tensor_names(path: Path) -> set[str]:
    """From the header, which also states how long the file must be."""
    with path.open("rb") as file:
        start = file.read(
            9
        )  # of safetensors: the length of its header, which may begin with any byte, and "{"
    if start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
        raise ModelError(f"{path} is a pickle under another name. Pickles can run code; it was not opened.")
    try:
        with safe_open(path, framework="pt") as tensors:
            return set(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(_broken_shard(path, start)) from error


def _broken_shard(path: Path, start: bytes) -> str:
    size = path.stat().st_size
    if len(start) < 8 or struct.unpack("<Q", start[:8])[0] > size - 8:
        return f"{path} ends within its header ({size} bytes): truncated, or not safetensors. Copy it again."
    return f"{path} ({size} bytes) is not what its header states: truncated or broken. Copy it again."


def _no_safetensors(folder: Path) -> str:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if not pickles:
        return f"{folder} has no safetensors weights ({WEIGHTS} or {INDEX}); pickled weights are never read."
    return (
        f"{folder} has only pickled weights ({pickles[0]}). Opening a pickle can run code: left alone. "
        f"If you trust it, convert it once, AutoModelForCausalLM.from_pretrained({str(folder)!r})"
        ".save_pretrained(NEW), and copy the tokenizer files to NEW."
    )
