"""Where a MODEL word points, and whether the files there can be trusted, before any weight is loaded.

Knows files, JSON and the hub; builds no model, runs no code of a checkpoint, opens no pickle.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from secateur.core.reading import check_file, check_name, read_json
from secateur.errors import ModelError, UnknownName, nearest

BUILTIN = "builtin:"
WEIGHTS, INDEX, CONFIG, ADAPTER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "adapter_config.json",
)
_WANTED = ["*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.safetensors"]
_UNWANTED = ["*/*", "consolidated*"]  # other formats' folders, and the second copy that Mistral ships
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")
MOST_BLOCKS = 10_000  # of any model; to build more, even without memory, takes minutes
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Source:
    """A folder with a checkpoint. `config` is its config.json; `revision` its commit on the hub.

    `cached`: the hub could not be asked, only the local cache.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    revision: str | None = None
    cached: bool = False


def builtin_names() -> tuple[str, ...]:
    """The models that ship inside the package, sorted."""
    root = resources.files("secateur") / "models"
    if not root.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in root.iterdir() if (entry / CONFIG).is_file()))


def folder_of(name: str) -> Path | None:
    """The folder that MODEL is here, without a look into it; None where it can only be a hub name.

    Raises: `UnknownName` for a built-in model or path that does not exist, `ModelError` for a file.
    """
    if name.startswith(BUILTIN):
        return _builtin(name)
    check_name(name, UnknownName)
    path = os.path.expanduser(name)  # of os.path, which takes any text for a path that is not there
    if os.path.isdir(path):
        return Path(path)
    if os.path.exists(path):
        raise ModelError(
            f"{name} is a file; MODEL is the folder around it (config.json, {WEIGHTS}, tokenizer)."
        )
    if name in builtin_names():
        raise UnknownName(f"there is no folder {name!r}. Did you mean {BUILTIN}{name}?")
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or not name:
        raise UnknownName(f"there is no folder {name!r}, and a hub name has the form owner/model.")
    return None


def place_of(name: str) -> Path:
    """The folder that MODEL is read from: its own, or what the hub's cache has for it. Raises as `folder_of`."""
    return folder_of(name) or Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def local_source(name: str) -> Source | None:
    """The folder or built-in model that `name` means, or None where it can only be a hub name.

    Raises: as `folder_of`, and `ModelError` for no checkpoint.
    """
    folder = folder_of(name)
    if folder is None:
        return None
    _refuse_pipes(folder)
    return Source(name, folder, read_config(folder))


def _refuse_pipes(folder: Path) -> None:
    """Raises `ModelError` for a pipe, a socket or a device among the files: whoever opens it may wait for ever."""
    try:
        strange = [path for path in folder.iterdir() if not path.is_file() and not path.is_dir()]
    except OSError as error:
        raise ModelError(f"{folder} cannot be read ({error.strerror}).") from error
    for path in strange:
        if path.exists():  # else a link to nowhere, which is no file
            check_file(path, ModelError)


def hub_source(name: str, revision: str | None) -> Source:
    """Only the config of the hub's model; `download` brings the rest. Raises `UnknownName`, `ModelError`."""
    cached = not _ask_hub(_is_reachable, name, revision)
    found = _ask_hub(hf_hub_download, name, revision, filename=CONFIG, local_files_only=cached)
    folder = Path(found).parent  # the cache names it after the commit
    return Source(name, folder, read_config(folder), revision=folder.name, cached=cached)


def download(source: Source, *, weights: bool = True) -> Source:
    """The same source with its files there, from the very commit that the config came from; without `weights` all but
    those, which is little."""
    wanted = [pattern for pattern in _WANTED if weights or not pattern.endswith(".safetensors")]
    what = {"allow_patterns": wanted, "ignore_patterns": _UNWANTED, "local_files_only": source.cached}
    folder = _ask_hub(snapshot_download, source.name, source.revision, **what)
    return replace(source, folder=Path(folder))


def read_config(folder: Path) -> Mapping[str, Any]:
    """config.json as a dictionary. Raises `ModelError` where it is missing or broken, and for adapters."""
    if (folder / ADAPTER).exists():
        raise ModelError(
            f"{folder} holds an unmerged adapter ({ADAPTER}). Merge it into its base model "
            "(PEFT: merge_and_unload) and save the whole model."
        )
    if not (folder / CONFIG).exists():
        raise ModelError(f"{folder} is no checkpoint: it has no {CONFIG}.")
    config = read_json(folder / CONFIG, ModelError)
    if not isinstance(config, dict):
        raise ModelError(f"{folder / CONFIG} is not a JSON object.")
    if not isinstance(kind := config.get("model_type", ""), str):
        raise ModelError(f"{folder / CONFIG} has model_type {kind!r:.80}, which is no name of one: damaged?")
    for name in _DEPTHS:
        if isinstance(blocks := config.get(name), int) and blocks > MOST_BLOCKS:
            raise ModelError(
                f"{folder / CONFIG} has {name} {blocks}, more blocks than any model has: damaged?"
            )
    return config


@dataclass(frozen=True)
class Header:
    """What the header of a safetensors file says of one tensor: `dtype` in the format's own words, such as BF16."""

    dtype: str
    shape: tuple[int, ...]


def check_weights(folder: Path) -> dict[str, Header]:
    """Every tensor that is stored, by name, of shards that are all there, are whole safetensors files, and hold what
    the index promises.

    Raises: `ModelError` naming the file; for pickled weights, which are never opened.
    """
    if (folder / INDEX).exists():
        return _check_shards(folder)
    if not (folder / WEIGHTS).exists():
        raise ModelError(_no_safetensors(folder))
    return _headers(folder / WEIGHTS)


def _check_shards(folder: Path) -> dict[str, Header]:
    weight_map, found = read_index(folder), {}
    for shard in sorted(set(weight_map.values())):
        if not os.path.exists(folder / shard):
            raise ModelError(
                f"shard {shard} is missing from {folder}, and {INDEX} asks for it. Copy it again."
            )
        promised, held = (
            {tensor for tensor, file in weight_map.items() if file == shard},
            _headers(folder / shard),
        )
        if absent := promised - held.keys():
            raise ModelError(f"shard {folder / shard} lacks {min(absent)}, which {INDEX} says it holds.")
        found |= held
    return found


def read_index(folder: Path) -> Mapping[str, str]:
    """The file of every tensor, by their names. Raises `ModelError` where the index is no map of tensors to files of
    the same folder: nothing elsewhere is ever opened."""
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


def _headers(path: Path) -> dict[str, Header]:
    """From the header, which also states how long the file must be."""
    check_file(path, ModelError)
    with path.open("rb") as file:
        start = file.read(
            9
        )  # of safetensors: the length of its header, which may begin with any byte, and "{"
    if start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
        raise ModelError(f"{path} is a pickle under another name. Pickles can run code; it was not opened.")
    try:
        with safe_open(path, framework="pt") as tensors:
            told = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  it is no mapping
            return {name: Header(one.get_dtype(), tuple(one.get_shape())) for name, one in told.items()}
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


def _builtin(name: str) -> Path:
    short, known = name.removeprefix(BUILTIN), builtin_names()
    if short not in known:
        raise UnknownName(f"no built-in model {short!r}.{nearest(short, known)}")
    return Path(str(resources.files("secateur") / "models" / short))


def _is_reachable(name: str, *, revision: str | None) -> bool:
    """Asked once: the client's downloads retry for 20 seconds. Raises the hub's own refusal."""
    try:
        HfApi().model_info(name, revision=revision)
    except HfHubHTTPError:  # also an OSError, but one with an answer in it
        raise
    except (HTTPError, OSError):
        return False
    return True


def _ask_hub(ask: Any, name: str, revision: str | None, **what: Any) -> Any:
    """Calls the hub and turns its failures into ours."""
    try:
        return ask(name, revision=revision, **what)
    except HFValidationError as error:
        raise UnknownName(f"{name!r} is neither a folder nor a hub name (owner/model).") from error
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: accept its terms on the hub, then log in (hf auth login)."
        ) from error
    except RevisionNotFoundError as error:
        raise UnknownName(f"{name} has no revision {revision!r} on the hub.") from error
    except RepositoryNotFoundError as error:
        raise UnknownName(f"there is no folder and no hub model named {name!r}.") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(_unreachable(name)) from error
    except EntryNotFoundError as error:
        raise ModelError(
            f"{name} on the hub has no {what.get('filename')}: no model, or only an adapter."
        ) from error
    except (OSError, HTTPError) as error:
        raise ModelError(_unreachable(name)) from error


def _unreachable(name: str) -> str:
    return (
        f"there is no folder {name!r}, it is not in the local cache, and the hub cannot be reached. Give "
        "the path of a checkpoint folder that you have here, or go online."
    )
