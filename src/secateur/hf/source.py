"""Where a MODEL word points: a folder, a model of the package, or one of the hub.

Knows files, JSON and the hub; builds no model, runs no code of a checkpoint, reads no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
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


def local_source(name: str) -> Source | None:
    """The folder or built-in model that `name` means, or None where it can only be a hub name.

    Raises: `UnknownName` for a built-in model or path that does not exist, `ModelError` for no checkpoint.
    """
    if name.startswith(BUILTIN):
        return _builtin(name)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return Source(name, path, read_config(path))
    if name and path.exists():
        raise ModelError(
            f"{name} is a file; MODEL is the folder around it (config.json, {WEIGHTS}, tokenizer)."
        )
    if name in builtin_names():
        raise UnknownName(f"there is no folder {name!r}. Did you mean {BUILTIN}{name}?")
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or not name:
        raise UnknownName(f"there is no folder {name!r}, and a hub name has the form owner/model.")
    return None


def hub_source(name: str, revision: str | None) -> Source:
    """Only the config of the hub's model; `download` brings the rest. Raises `UnknownName`, `ModelError`."""
    cached = not _ask_hub(_is_reachable, name, revision)
    found = _ask_hub(hf_hub_download, name, revision, filename=CONFIG, local_files_only=cached)
    folder = Path(found).parent  # the cache names it after the commit
    return Source(name, folder, read_config(folder), revision=folder.name, cached=cached)


def download(source: Source) -> Source:
    """The same source with weights and tokenizer there, from the very commit that the config came from."""
    what = {"allow_patterns": _WANTED, "ignore_patterns": _UNWANTED, "local_files_only": source.cached}
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
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise ModelError(f"{folder / CONFIG} is not a JSON object.")
    return config


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error


def _builtin(name: str) -> Source:
    short, known = name.removeprefix(BUILTIN), builtin_names()
    if short not in known:
        raise UnknownName(f"no built-in model {short!r}.{nearest(short, known)}")
    folder = Path(str(resources.files("secateur") / "models" / short))
    return Source(name, folder, read_config(folder))


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
