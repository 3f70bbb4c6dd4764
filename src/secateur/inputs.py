"""Finds the models, tasks and files that a command reads, by their names, before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from secateur.hf.source import place_of, stated_blocks
from secateur.options import Options, block_range
from secateur.tasks.joint import distinct
from secateur.tasks.load import files_of


def inputs(
    models: Iterable[str] = (), tasks: Iterable[str] = (), files: Iterable[str | Path | None] = ()
) -> list[Path]:
    """Return the folders and files behind these words; files that are None are left out.

    Raises: `UnknownName`, `ModelError`, `TaskError` for a model or a task that is not there.
    """
    found = [place_of(model) for model in models]
    found += [file for task in tasks for file in files_of(task)]
    return found + [Path(file) for file in files if file is not None]


def inputs_of(options: Options, *files: str | Path | None) -> list[Path]:
    """Return the folders and files behind all that options name, and `files`. Raises: as `inputs`, `model_places`."""
    device_map = options.device_map if (options.device_map or "").endswith(".json") else None
    return model_places(options) + inputs(tasks=tasks_of(options), files=[device_map, *files])


def model_places(options: Options) -> list[Path]:
    """Return the folder or file of the model that options name.

    Raises: `UnknownName`, `ModelError` for a model that is not there; `UnknownName` for `--layers` that it has not.
    """
    if options.in_memory is not None:
        return inputs(files=[options.in_memory.source])
    (place,) = inputs([options.model])
    if options.layers is not None and (count := stated_blocks(place)) is not None:
        block_range(options.layers, count)
    return [place]


def tasks_of(options: Options) -> list[str]:
    """Return the tasks that options name: those to prune for, one for the test split, those that are watched."""
    return [*options.tasks, *([] if options.test_task is None else [options.test_task]), *options.side]


def kept_of(options: Options) -> list[str | None]:
    """Return the folders in which a run with these options leaves something for the next."""
    return [options.spectra, options.offload_folder]


def folder_names(tasks: Sequence[str]) -> list[str]:
    """Return a folder name for each task, no two alike: `facts` of `builtin:facts`, `q` of `data/q.jsonl`."""
    return distinct([folder_name(task) for task in tasks], "{}-{}")


def folder_name(task: str) -> str:
    """Return the folder name of one task."""
    return re.sub(r"[^\w.-]+", "-", Path(task.rpartition(":")[2]).stem).strip(".-") or "task"
