"""Data sets of the `datasets` library: from the hub, from its cache, and from folders that it saved.

`datasets` (an extra) is imported only where it is used. Where the hub does not answer, its cache is read at once, and
what is missing there is said in one line. Nothing here runs code of a data set.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # whose it is depends on the version

from secateur.errors import SecateurError, TaskError, UnknownName
from secateur.tasks.formats import Row, is_saved

if TYPE_CHECKING:
    from datasets import Dataset

NEEDS = "secateur[datasets], network"
PATIENCE = 4.0  # seconds for the hub to answer
NOISY = ("datasets", "huggingface_hub", "lm_eval", "fsspec", "urllib3", "httpx")
SHOWN = 300  # characters of another library's message


class DatasetName(NamedTuple):
    """The words behind `hf:`: a saved folder, or a data set of the hub and perhaps its configuration; a split."""

    place: str
    config: str | None
    split: str | None

    @property
    def folder(self) -> Path | None:
        """Return the folder that it names; None for a data set of the hub."""
        path = Path(self.place)
        return path if os.path.isdir(path) else None


def parse_name(text: str) -> DatasetName:
    """Return the parts of `OWNER/NAME[/CONFIG][:SPLIT]` or `FOLDER[:SPLIT]`.

    Raises: `UnknownName` for a path that is not there, `TaskError` for a folder that `datasets` did not save.
    """
    place, colon, split = (text, "", "") if os.path.isdir(text) else text.rpartition(":")
    if not colon:
        place, split = text, ""
    if place and os.path.isdir(place):
        if not is_saved(Path(place)):
            raise TaskError(
                f"hf:{place}: not a folder that a Dataset's save_to_disk wrote. Of a folder with files, name a file."
            )
        return DatasetName(place, None, split or None)
    if place.startswith((".", "/", "~")):
        raise UnknownName(f"hf:{place}: there is no such folder.")
    owner, _, rest = place.partition("/")
    name, _, config = rest.partition("/")
    if not owner or not name or "/" in config:
        raise UnknownName(
            f"hf:{text}: a data set of the hub is written hf:OWNER/NAME, hf:OWNER/NAME/CONFIG, and with :SPLIT behind."
        )
    return DatasetName(f"{owner}/{name}", config or None, split or None)


def dataset_rows(text: str) -> Iterator[Row]:
    """Yield the rows of a data set: `OWNER/NAME[/CONFIG][:SPLIT]` or `FOLDER[:SPLIT]`.

    Raises: `SecateurError` without `datasets`; `TaskError` where it cannot be had, and for several splits of which none
    was named.
    """
    name = parse_name(text)
    if name.folder is not None:
        return saved_rows(name.folder, name.split)
    return _rows_of(_one_split(load(name.place, name.config), name.split, f"hf:{text}"))


def saved_rows(folder: Path, split: str | None = None) -> Iterator[Row]:
    """Yield the rows of a folder that `save_to_disk` wrote. Raises: as `dataset_rows`."""
    library = _library(str(folder))
    try:
        saved = library.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(f"{folder}: cannot be read as a saved data set ({_short(error)}).") from error
    return _rows_of(_one_split(saved, split, str(folder)))


def load(place: str, config: str | None, split: str | None = None) -> Dataset:
    """Return a data set of the hub, or its splits. Raises: as `dataset_rows`."""
    library = _library(place)
    try:
        with hub_or_cache():
            found: Dataset = library.load_dataset(place, config, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise TaskError(f"{place} cannot be loaded{why_missing(error)}") from error
    return found


def _library(what: str) -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise SecateurError(
            f"{what} is read by the datasets library: pip install 'secateur[datasets]'."
        ) from error
    module: ModuleType = datasets
    return module


def _one_split(found: Dataset, split: str | None, name: str) -> Dataset:
    """Return the split that was named, or the only one. Raises: `TaskError`."""
    if not isinstance(found, dict):
        if split is not None:
            raise TaskError(f"{name}: it has no splits; leave out :{split}.")
        return found
    splits = ", ".join(found)
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split is None:
        first = next(iter(found))
        raise TaskError(
            f"{name} has the splits {splits}: say which, such as --task hf:{name.removeprefix('hf:')}:{first}; with "
            "--test-task for the one to test on."
        )
    if split not in found:
        raise TaskError(f"{name}: there is no split {split!r}; it has {splits}.")
    return found[split]


def _rows_of(dataset: Dataset) -> Iterator[Row]:
    """Yield the rows without images and sounds, which would be decoded for nothing."""
    kept = [
        name
        for name, feature in dataset.features.items()
        if type(feature).__name__ not in ("Image", "Audio", "Video", "Pdf")
    ]
    for number, row in enumerate(dataset.select_columns(kept), start=1):
        yield Row(f"row {number}", row)


# ---------------------------------------------------------------------------------------------------- without a network


@cache
def hub_answers(endpoint: str) -> bool:
    """Return True where the hub answers anything at all within seconds; asked once a process."""
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=PATIENCE)
            answered.set()
        except (HTTPError, OSError):
            pass

    asking = threading.Thread(target=ask, daemon=True)  # to look a name up may take longer than any timeout
    asking.start()
    asking.join(PATIENCE)
    return answered.is_set()


def is_offline() -> bool:
    """Return True where the hub is not to be asked, or does not answer."""
    return bool(constants.HF_HUB_OFFLINE) or not hub_answers(constants.ENDPOINT)


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Let `datasets` and the evaluation harness read their cache alone where the hub does not answer.

    They would ask it again and again for minutes; that and the lines they write meanwhile are left out. With a network
    nothing changes.
    """
    if not is_offline():
        yield
        return
    import datasets

    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    asked = [(module, module.HF_HUB_OFFLINE) for module in (constants, datasets.config)]
    try:
        for module, _ in asked:
            vars(module)["HF_HUB_OFFLINE"] = True
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for module, value in asked:
            vars(module)["HF_HUB_OFFLINE"] = value
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_copy(what: str, otherwise: str = "") -> None:
    """Raise `TaskError` where the hub does not answer and nothing at all was loaded from it before.

    The harness takes a while to begin, which would be in vain.

    Args:
        what: The task, for the message.
        otherwise: Its end, where there is another way.
    """
    if is_offline():
        import datasets

        cached = Path(datasets.config.HF_DATASETS_CACHE)
        if not cached.is_dir() or not any(cached.iterdir()):
            raise TaskError(f"{what}: its data cannot be loaded{_no_copy()}{otherwise}")


def why_missing(error: Exception) -> str:
    """Return the end of a message about data that could not be loaded: the reason, or where a copy was looked for."""
    return _no_copy() if is_offline() else f" ({_short(error)})."


def _no_copy() -> str:
    import datasets

    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
    return (
        f": {why}, and there is no copy in {datasets.config.HF_DATASETS_CACHE} (HF_DATASETS_CACHE names another "
        "folder). Run it once with a network, or bring that folder."
    )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:SHOWN] or type(error).__name__
