"""Find the source of a MODEL word: a folder, a model of the package, or one of the hub.

Knows files, JSON and the hub; builds no model, runs no code of a checkpoint, reads no weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: which library's it is depends on its version
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from secateur.core.reading import beside, check_file, check_name, read_json
from secateur.core.records.verdict import GgufRecord
from secateur.errors import ModelError, UnknownName, nearest
from secateur.hf.gguf_header import read_header

BUILTIN = "builtin:"
MEMORY = "memory:"  # begins the name of a model that was handed over in Python
WEIGHTS, INDEX, CONFIG, ADAPTER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "adapter_config.json",
)
CARD = "README.md"
GGUF = ".gguf"
TEMPLATES = "additional_chat_templates/*.jinja"
TOKENIZER_FILES = (
    "tokenizer*.json",  # tokenizer.json, tokenizer_config.json, tokenizer.4.0.0.json
    "tokenizer.model*",  # also tokenizer.model.v3
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "merges*.txt",
    "*.model",  # spiece.model, sentencepiece.bpe.model
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    TEMPLATES,
)
"""Names of a tokenizer's files, as patterns. Its class may name more (`vocab_files_names`)."""
_WANTED = ["README.md", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.safetensors", *TOKENIZER_FILES]
_UNWANTED = ["*/*", "consolidated*"]  # other formats' folders, and the second copy that Mistral ships
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")
MOST_BLOCKS = 10_000  # of any model; to build more, even without memory, takes minutes
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ModelSource:
    """A folder with a checkpoint. `config` is its config.json; `revision` its commit on the hub.

    `cached`: the hub could not be asked, only the local cache. `gguf`: the file that the folder was made of.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    revision: str | None = None
    cached: bool = False
    gguf: GgufRecord | None = None

    @property
    def is_partly_here(self) -> bool:
        """Return True for a model of the hub of which only the config is here as yet."""
        return self.revision is not None and self.gguf is None


def builtin_names() -> tuple[str, ...]:
    """Return the models that ship inside the package, sorted."""
    root = resources.files("secateur") / "models"
    if not root.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in root.iterdir() if (entry / CONFIG).is_file()))


def folder_of(name: str) -> Path | None:
    """Return the local folder or GGUF file that MODEL names, without a look into it; None where it can only be a hub
    name.

    Raises: `UnknownName` for a built-in model or path that does not exist, `ModelError` for another file.
    """
    if name.startswith(BUILTIN):
        return _builtin(name)
    check_name(name, UnknownName)
    path = os.path.expanduser(name)  # of os.path, which takes any text for a path that is not there
    if os.path.isdir(path):
        return Path(path)
    if os.path.exists(path):
        if name.lower().endswith(GGUF):
            return Path(path)
        raise ModelError(
            f"{name} is a file; MODEL is the folder around it (config.json, {WEIGHTS}, tokenizer), or a {GGUF} file."
        )
    if name.startswith(MEMORY):
        raise UnknownName(
            f"{name} was a model in memory, which cannot be read by that name. Save it and its tokenizer "
            "(save_pretrained) and give the folder."
        )
    if name in builtin_names():
        raise UnknownName(f"there is no folder {name!r}. Did you mean {BUILTIN}{name}?")
    if not _may_be_of_hub(_repository(name)[0]):
        raise UnknownName(
            f"there is no folder {name!r}, and a hub name has the form owner/model.{beside(Path(path))}"
        )
    return None


def place_of(name: str) -> Path:
    """Return the folder or file that MODEL is read from, or the hub cache's.

    Raises: as `folder_of`, `read_header`; of a hub model that the cache has nothing of, where the hub does not have it
    or cannot be asked.
    """
    repository, local = _repository(name)[0], folder_of(name)
    if local is None:
        cached = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
        if not os.path.exists(cached) and not _ask_hub(_is_reachable, repository, None):
            raise ModelError(_unreachable(repository))
        return cached
    if local.is_file():
        read_header(local)  # what is damaged is told at once
    return local


def stated_blocks(place: Path) -> int | None:
    """Return how many blocks the files of a model state, the most where there are several stacks; None where they say
    nothing. Raises: `ModelError` for files that are damaged."""
    if place.is_file():
        stated = [read_header(place).number("block_count")]
    elif (place / CONFIG).exists():
        config = read_config(place)
        text = config.get("text_config")
        stated = [of.get(name) for of in (config, text) if isinstance(of, dict) for name in _DEPTHS]
    else:
        return None
    return max((count for count in stated if isinstance(count, int)), default=None)


def with_gguf(name: str, file: str | None) -> str:
    """Return the word for one GGUF file of a folder or a hub model: `FOLDER/FILE`, or `owner/model/FILE`.

    Raises: `UnknownName` for a file that is not in the folder; `ModelError` where MODEL has no such files.
    """
    if file is None:
        return name
    if not file.lower().endswith(GGUF) or os.path.isabs(file) or ".." in Path(file).parts:
        raise ModelError(f"--gguf-file {file!r}: give the name of a {GGUF} file in MODEL.")
    if name.startswith((BUILTIN, MEMORY)) or os.path.isfile(os.path.expanduser(name)):
        raise ModelError(f"--gguf-file names a file of a folder or of a hub model, and {name} is neither.")
    folder = Path(os.path.expanduser(name))
    if folder.is_dir() and not (folder / file).is_file():
        known = sorted(str(path.relative_to(folder)) for path in folder.rglob(f"*{GGUF}"))
        there = nearest(file, known) if known else f" No {GGUF} file is there."
        raise UnknownName(f"--gguf-file: {name} has no {file}.{there}")
    return f"{name.rstrip('/')}/{file}"


def gguf_of(name: str, revision: str | None) -> tuple[Path, str | None] | None:
    """Return the GGUF file that MODEL means, fetched where it is the hub's, and its commit there; None for no GGUF.

    A folder means one where it holds a single one and no safetensors. Raises: as `folder_of`; `ModelError` where it
    holds several.
    """
    folder = folder_of(name)
    if folder is None:
        return _gguf_of_hub(name, revision)
    if not folder.is_dir():
        return folder, None
    if name.startswith(BUILTIN) or any(folder.glob("*.safetensors")) or (folder / ADAPTER).exists():
        return None
    found = sorted(path.name for path in folder.glob(f"*{GGUF}"))
    if len(found) > 1 and not all(_PIECE.search(file) for file in found):
        raise ModelError(
            f"{name} holds {len(found)} GGUF files; say which with --gguf-file: {', '.join(found)}."
        )
    return (folder / found[0], None) if found else None


_PIECE = re.compile(r"-\d+-of-\d+\.gguf$")


def _repository(name: str) -> tuple[str, str]:
    """Return the hub name and the file in `owner/model/FILE.gguf`; of any other name itself and nothing."""
    parts = name.split("/")
    if len(parts) > 2 and parts[0] not in ("", ".", "..", "~") and name.lower().endswith(GGUF):
        return "/".join(parts[:2]), "/".join(parts[2:])
    return name, ""


def _gguf_of_hub(name: str, revision: str | None) -> tuple[Path, str] | None:
    repository, file = _repository(name)
    if not file:
        return None
    cached = not _ask_hub(_is_reachable, repository, revision)
    place = Path(_ask_hub(hf_hub_download, repository, revision, filename=file, local_files_only=cached))
    return place, place.parents[len(Path(file).parts) - 1].name  # the cache names it after the commit


def local_source(name: str) -> ModelSource | None:
    """Return the folder or built-in model that `name` means, or None where it can only be a hub name.

    Raises: as `folder_of`, and `ModelError` for no checkpoint.
    """
    folder = folder_of(name)
    if folder is None:
        return None
    _refuse_pipes(folder)
    if not any(os.path.exists(folder / file) for file in (CONFIG, ADAPTER)):
        raise ModelError(_no_checkpoint(name, folder))
    return ModelSource(name, folder, read_config(folder))


def _refuse_pipes(folder: Path) -> None:
    """Raise `ModelError` for a pipe, a socket or a device among the files: opening it may block for ever."""
    try:
        strange = [path for path in folder.iterdir() if not path.is_file() and not path.is_dir()]
    except OSError as error:
        raise ModelError(f"{folder} cannot be read ({error.strerror}).") from error
    for path in strange:
        if path.exists():  # else a link to nowhere, which is no file
            check_file(path, ModelError)


def _may_be_of_hub(name: str) -> bool:
    """Return True where a name has the form of a hub model's, owner/model or model."""
    return bool(name) and not name.startswith((".", "/", "~")) and "\\" not in name and name.count("/") <= 1


def _no_checkpoint(name: str, folder: Path) -> str:
    """Return the message about a folder without config.json, with what to do as far as its content tells."""
    message = f"{name} is no checkpoint: it has no {CONFIG}."
    below = [f"{path.parent}" for depth in ("*", "*/*") for path in sorted(folder.glob(f"{depth}/{CONFIG}"))]
    owner_model = folder.resolve().name.split("--")[1:]
    if (folder / "snapshots").is_dir() and owner_model:  # of the hub's cache: models--owner--model
        which = [*below, "/".join(owner_model)]
        return f"{message} It is a folder of the hub's cache: give {' or '.join(which[:3])}."
    if below:
        return f"{message} Did you mean {' or '.join(below[:3])}?"
    if _may_be_of_hub(name):
        return (
            f"{message} If the hub model {name} is meant, this folder hides it: rename it, or work elsewhere."
        )
    return message


def hub_source(name: str, revision: str | None) -> ModelSource:
    """Fetch only the config of the hub's model; `download` fetches the rest. Raises: `UnknownName`, `ModelError`."""
    cached = not _ask_hub(_is_reachable, name, revision)
    file = _ask_hub(hf_hub_download, name, revision, filename=CONFIG, local_files_only=cached)
    folder = Path(file).parent  # the cache names it after the commit
    return ModelSource(name, folder, read_config(folder), revision=folder.name, cached=cached)


def download(source: ModelSource, *, weights: bool = True) -> ModelSource:
    """Fetch the files of a source, from the very commit of its config; without `weights`, the small ones."""
    commit = source.name, source.revision
    wanted = [pattern for pattern in _WANTED if weights or not pattern.endswith(".safetensors")]
    cached = source.cached
    folder = _ask_hub(
        snapshot_download, *commit, allow_patterns=wanted, ignore_patterns=_UNWANTED, local_files_only=cached
    )
    _ask_hub(snapshot_download, *commit, allow_patterns=[TEMPLATES], local_files_only=cached)
    return replace(source, folder=Path(folder))


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return config.json as a dictionary. Raises: `ModelError` where it is missing or broken, and for adapters."""
    refuse_adapter(folder)
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


def refuse_adapter(folder: Path) -> None:
    """Raise `ModelError` where an adapter's config lies: with peft, transformers would look for the adapter."""
    if not (folder / ADAPTER).exists():
        return
    merge = "merge it into its base model (PEFT: merge_and_unload) and save the whole model."
    if not any((folder / file).exists() for file in (WEIGHTS, INDEX)):
        raise ModelError(f"{folder} holds an unmerged adapter ({ADAPTER}): {merge}")
    files = " and ".join([ADAPTER, *sorted(path.name for path in folder.glob("adapter_model*"))])
    raise ModelError(
        f"{folder} holds a whole model, and {files} of an adapter. If that is merged into the model already, remove "
        f"{files}; if not, {merge}"
    )


def _builtin(name: str) -> Path:
    short, known = name.removeprefix(BUILTIN), builtin_names()
    if short not in known:
        raise UnknownName(f"no built-in model {short!r}.{nearest(short, known)}")
    return Path(str(resources.files("secateur") / "models" / short))


def _is_reachable(name: str, *, revision: str | None) -> bool:
    """Ask the hub once: the client's downloads retry for 20 seconds. Raises the hub's own refusal."""
    try:
        HfApi().model_info(name, revision=revision)
    except HfHubHTTPError:  # also an OSError, but one with an answer in it
        raise
    except (HTTPError, OSError):
        return False
    return True


def _ask_hub(ask: Callable[..., Answer], name: str, revision: str | None, **what: object) -> Answer:
    """Call the hub and turn its failures into ours."""
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
        raise UnknownName(
            f"there is no folder and no hub model named {name!r}.{beside(Path(name))}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(_unreachable(name)) from error
    except EntryNotFoundError as error:
        raise ModelError(
            f"{name} on the hub has no {what.get('filename')}: no model, or only an adapter. Of GGUF files "
            "say which with --gguf-file."
        ) from error
    except (OSError, HTTPError) as error:
        raise ModelError(_unreachable(name)) from error


def _unreachable(name: str) -> str:
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    return (
        f"there is no folder {name!r}, {why}, and there is no copy of it in {constants.HF_HUB_CACHE} (HF_HUB_CACHE "
        "names another folder). Give the path of a checkpoint folder that you have here, or go online."
        f"{beside(Path(name))}"
    )
