"""Check that the files with a checkpoint's weights are whole and safe, before any of them is loaded; read the others.

Of weights it reads headers and indices; it builds no model, opens no pickle. The others are those that no cut touches:
the tokenizer's, and the generation config. They are copied byte for byte into every checkpoint that is made of a model:
transformers would write some of them in a form that its earlier releases do not read, and others not at all.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from huggingface_hub.repocard import metadata_load
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_relative_imports
from yaml import YAMLError

from secateur.core.reading import check_file, read_json
from secateur.errors import ModelError
from secateur.hf.source import CARD, CONFIG, INDEX, TOKENIZER_FILES, WEIGHTS

GENERATION = "generation_config.json"
PROCESSORS = "*processor_config.json"  # of images and videos
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class LoadingInfo(TypedDict):
    """The names that transformers could not match between the weights and the model it built."""

    missing_keys: Collection[str]
    unexpected_keys: Collection[str]
    mismatched_keys: Collection[tuple[str, Sequence[int], Sequence[int]]]
    error_msgs: Collection[str]


@dataclass(frozen=True)
class Header:
    """One tensor by the header of its safetensors file: `dtype` in the format's own words, such as BF16."""

    dtype: str
    shape: tuple[int, ...]


def stated_license(folder: Path) -> str | None:
    """Return the license that a model's card states in its metadata; None where there is none, or none to be read."""
    try:
        stated = metadata_load(folder / CARD) if (folder / CARD).is_file() else None
    except (ValueError, OSError, YAMLError):
        return None
    found = stated.get("license") if isinstance(stated, dict) else None
    return found if isinstance(found, str) else None


def check_weights(folder: Path, config: Mapping[str, object]) -> dict[str, Header]:
    """Check the files that transformers will load, and return every tensor in them by name.

    All files are there, are whole safetensors files, and hold the tensors that the index promises; and there
    are no others that transformers might load.

    Raises: `ModelError` naming the file; for pickled weights, which are never opened.
    """
    _refuse_other_places(folder, config)
    shards = _shards(folder)
    if shards is not None:
        return _check_shards(folder, shards)
    if not (folder / WEIGHTS).exists():
        raise ModelError(_no_safetensors(folder))
    return _headers(folder / WEIGHTS)


def _refuse_other_places(folder: Path, config: Mapping[str, object]) -> None:
    """Refuse weights that transformers reads before it looks for the usual names."""
    named = config.get("transformers_weights")
    if named is not None:
        raise ModelError(
            f"{CONFIG} of {folder} says that the weights are in {named} (transformers_weights), and secateur reads "
            f"{WEIGHTS} or the shards of {INDEX}. Rename the file and remove that entry."
        )
    pieces = sorted(folder.glob("shard-*-model-*-of-*.safetensors"))
    if pieces:
        raise ModelError(
            f"{folder} is a distributed checkpoint ({pieces[0].name}), where tensors may be in pieces. Load it with "
            "transformers, save it elsewhere (save_pretrained), and give that folder."
        )


def _shards(folder: Path) -> Mapping[str, str] | None:
    """Return tensor → file, by the index; None where the weights are in one file.

    An index without files beside one file is an old one. Raises: `ModelError` where both are there:
    transformers would read the one file silently.
    """
    if not (folder / INDEX).exists():
        return None
    shards = read_index(folder)
    if not (folder / WEIGHTS).exists():
        return shards
    others = [file for file in sorted(set(shards.values()) - {WEIGHTS}) if os.path.exists(folder / file)]
    if others:
        raise ModelError(
            f"{folder} holds two sets of weights: {WEIGHTS}, and the shards of {INDEX} ({others[0]}, ...). Move one of "
            "them away, the index with its shards."
        )
    return None


def read_index(folder: Path) -> Mapping[str, str]:
    """Return the file of every tensor.

    Raises: `ModelError` where the index is no map of tensors to files of the same folder: nothing elsewhere is
    opened.
    """
    index = read_json(folder / INDEX, ModelError)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{folder / INDEX} has no weight_map.")
    for tensor, shard in weight_map.items():
        named = isinstance(shard, str) and shard not in ("", "..") and "\0" not in shard
        if not named or Path(shard).name != shard:
            raise ModelError(
                f"{folder / INDEX} says that {tensor} lies in {shard!r:.80}, which is no name of a file beside it. "
                "Copy the checkpoint again."
            )
    return weight_map


def _check_shards(folder: Path, shards: Mapping[str, str]) -> dict[str, Header]:
    held: dict[str, Header] = {}
    files: dict[str, str] = {}  # tensor → the file it is in
    for shard in sorted(set(shards.values())):
        if not os.path.exists(folder / shard):
            raise ModelError(
                f"shard {shard} is missing from {folder}, and {INDEX} asks for it. Copy it again."
            )
        headers = _headers(folder / shard)
        if twice := headers.keys() & files.keys():
            raise ModelError(f"{min(twice)} is in two shards of {folder}, {files[min(twice)]} and {shard}.")
        files |= dict.fromkeys(headers, shard)
        held |= headers
    for tensor, shard in shards.items():
        if files.get(tensor) != shard:
            elsewhere = f", and which {files[tensor]} holds" if tensor in files else ""
            raise ModelError(
                f"shard {folder / shard} lacks {tensor}, which {INDEX} says it holds{elsewhere}. Copy both again."
            )
    if strangers := sorted(set(files) - set(shards)):
        raise ModelError(
            f"shard {folder / files[strangers[0]]} holds {strangers[0]}, which {INDEX} does not name. Copy both again."
        )
    return held


def _headers(path: Path) -> dict[str, Header]:
    """Return the tensors in a file, from its header, which also states how long the file must be."""
    check_file(path, ModelError)
    with path.open("rb") as file:
        start = file.read(9)  # safetensors: the length of its header, which may begin with any byte, and "{"
    if start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
        raise ModelError(f"{path} is a pickle under another name. Pickles can run code; it was not opened.")
    try:
        with safe_open(path, framework="pt") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  it is no mapping
            return {name: Header(part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(_broken_shard(path, start)) from error


def _broken_shard(path: Path, start: bytes) -> str:
    size = path.stat().st_size
    if start.startswith(b"version "):
        return f"{path} is not the weights but a pointer to them (Git LFS): git lfs pull fetches them."
    if len(start) < 8 or struct.unpack("<Q", start[:8])[0] > size - 8:
        return f"{path} ends within its header ({size} bytes): truncated, or not safetensors. Copy it again."
    return f"{path} ({size} bytes) is not what its header states: truncated or broken. Copy it again."


def _no_safetensors(folder: Path) -> str:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if not pickles:
        missing = f"{folder} has no safetensors weights ({WEIGHTS} or {INDEX}); "
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        return missing + (f"{others[0]} has another name." if others else "pickled weights are never read.")
    return (
        f"{folder} has only pickled weights ({pickles[0]}). Opening a pickle can run code: left alone. "
        f"If you trust it, convert it once, AutoModelForCausalLM.from_pretrained({str(folder)!r})"
        ".save_pretrained(NEW), and copy the tokenizer files to NEW."
    )


# ------------------------------------------------------------------------------------------------ files that are copied


def copied_files(folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """Return the files: name relative to `folder` → content. Raises: `ModelError` for a file that cannot be read."""
    patterns = {*TOKENIZER_FILES, *tokenizer.vocab_files_names.values(), GENERATION, PROCESSORS}
    found = _contents(folder, {path for pattern in patterns for path in folder.glob(pattern)})
    return found | _contents(folder, _code(folder, found.get("tokenizer_config.json")))


def _contents(folder: Path, paths: set[Path]) -> dict[str, bytes]:
    try:
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths) if path.is_file()}
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _code(folder: Path, config: bytes | None) -> set[Path]:
    """Find the modules of a tokenizer that brings its own code; only those in `folder` itself. None of them is run."""
    named: Any = json.loads(config or b"{}").get("auto_map", [])
    classes = named.get("AutoTokenizer", []) if isinstance(named, dict) else named
    classes = [classes] if isinstance(classes, str) else classes
    todo = [name.partition(".")[0] for name in classes if name and "--" not in name]
    found: set[Path] = set()
    while todo:
        module = folder / f"{todo.pop()}.py"
        if module.parent == folder and module.is_file() and module not in found:
            found.add(module)
            todo += get_relative_imports(module)
    return found
