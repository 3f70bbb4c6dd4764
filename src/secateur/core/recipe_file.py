"""The file of a recipe: YAML whose values know their line, and names of files that stay right in another folder.

Knows no step of a recipe.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from secateur.core.reading import read_text
from secateur.errors import SecateurError

RECIPE = "recipe.yaml"  # beside plan.json
NAMED = ("builtin:", "hf:", "lm_eval:", "study:", "memory:")  # words that never name a file
PATHS = ("out", "ledger", "spectra", "offload_folder")  # keys whose value always does
DATA = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".gguf", ".yaml", ".yml")
WORDS = ("model", "task", "side", "test_task", "teacher", "plan", "device_map")  # keys whose value may


@dataclass(frozen=True)
class Place:
    """A line of a recipe, for messages."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


def compose(file: Path) -> yaml.MappingNode:
    """Return the keys and values of a YAML file, each with its line. Nothing is constructed from tags.

    Raises: `SecateurError` for no file, for broken YAML and for anything but keys with values.
    """
    text = read_text(file, SecateurError)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        where = file if mark is None else Place(str(file), mark.line + 1)
        parts = (error.context, error.problem) if isinstance(error, yaml.MarkedYAMLError) else (str(error),)
        reason = " ".join(" ".join(part for part in parts if part).split())
        raise SecateurError(f"{where}: this is no YAML ({reason}). A line is `limit: 400`.") from error
    except RecursionError as error:
        raise SecateurError(f"{file}: it is nested too deeply for a recipe.") from error
    if not isinstance(root, yaml.MappingNode):
        found = "nothing" if root is None else KINDS[type(root)]
        raise SecateurError(
            f"{file}: a recipe has lines with a key and a value, such as `model: ./my-llama`, and here is {found}."
        )
    return root


KINDS: Mapping[type[yaml.Node], str] = {
    yaml.MappingNode: "a section of keys",
    yaml.SequenceNode: "a list",
    yaml.ScalarNode: "one value",
}


def entries(node: yaml.MappingNode, file: Path) -> Iterator[tuple[Place, str, yaml.Node]]:
    """Yield the line, the key, with underscores, and the value of each entry of a section.

    Raises: `SecateurError` for a key that is no word, and for one that stands there twice.
    """
    lines: dict[str, int] = {}
    for key, value in node.value:
        place = Place(str(file), key.start_mark.line + 1)
        if not isinstance(key, yaml.ScalarNode):
            raise SecateurError(
                f"{place}: a key is one word, such as `model`, and here is {KINDS[type(key)]}."
            )
        name = key.value.replace("-", "_")
        if name in lines:
            raise SecateurError(
                f"{place}: {key.value!r} stands there twice, first in line {lines[name]}. Keep one."
            )
        lines[name] = place.line
        yield place, name, value


def recipe_text(keys: Mapping[str, object], folder: Path) -> str:
    """Return a recipe as YAML, for a file in `folder`; `keys` name files as seen from the current folder."""
    moved = {key: relocated(key, value, Path.cwd(), folder) for key, value in keys.items()}
    body: str = yaml.safe_dump(moved, sort_keys=False, allow_unicode=True, width=110)
    return f"# secateur run FILE -o OUT makes this again; paths are relative to this file\n{body}"


def relocated(key: str, value: object, before: Path, now: Path) -> object:
    """Return the value of a key whose files are named as seen from the folder `before`, as seen from `now`."""
    if isinstance(value, list | tuple):
        return [relocated(key, item, before, now) for item in value]
    if not isinstance(value, str) or before.resolve() == now.resolve():
        return value
    if key in PATHS:
        return _moved(value, before, now)
    if key not in WORDS or value.startswith(NAMED):
        return value
    prefix, colon, rest = value.partition(":")  # text:FILE, PRESET:FILE
    if os.path.lexists(before / value) or value.startswith(".") or (not colon and value.endswith(DATA)):
        return _moved(value, before, now)
    is_file = bool(rest) and (prefix == "text" or os.path.lexists(before / rest) or rest.endswith(DATA))
    return f"{prefix}{colon}{_moved(rest, before, now)}" if is_file else value


def _moved(path: str, before: Path, now: Path) -> str:
    return path if os.path.isabs(os.path.expanduser(path)) else os.path.relpath(before / path, now)
