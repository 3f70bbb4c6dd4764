"""A preset's records from a file of one's own: `cb:train.jsonl`. The prompts are the preset's, no network is needed.

A record has the fields of the hub's copy (also those of SuperGLUE's own files, where labels are words), one JSON
object a line. Knows no tokenizer and no splits.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import RootModel

from secateur.errors import TaskError
from secateur.tasks.example import Example
from secateur.tasks.formats import RECORDS, refuse_other_formats
from secateur.tasks.jsonl import parse_lines
from secateur.tasks.presets import Preset, unique
from secateur.tasks.splits import Source

Line = RootModel[dict[str, Any]]


def read_records(preset: Preset, path: Path) -> Source:
    """The examples of `preset` from a file of its records; nothing is held out for the test.

    Ids come from the content, so neither the order of lines nor the file's name moves an example to another
    split. Raises: `TaskError`, with file and line, for a line that is no such record.
    """
    refuse_other_formats(path, RECORDS)
    if path.suffix != ".jsonl":
        raise TaskError(f"{preset.name}:{path}: {RECORDS}.")
    examples: list[Example] = []
    seen: Counter[str] = Counter()
    for number, line in parse_lines(path, Line):
        name = f"{preset.name}-{_digest(line.root)}"
        seen[name] += 1
        name += f"-{seen[name]}" if seen[name] > 1 else ""
        examples += _examples(preset, line.root, name, f"{path}, line {number}")
    if not examples:
        raise TaskError(f"{path}: no examples of {preset.name} in it.")
    found = tuple(examples)
    return Source(
        preset.name, preset.kind, unique(found) if preset.unique else found, None, preset.max_new_tokens
    )


def _examples(preset: Preset, record: Mapping[str, Any], name: str, where: str) -> list[Example]:
    try:
        return preset.examples(record, name)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise TaskError(f"{where}: {_reason(preset, record, error)}") from error


def _reason(preset: Preset, record: Mapping[str, Any], error: Exception) -> str:
    if {"prompt", "answer"} <= record.keys():
        return f"a question as it is asked, no record of {preset.name}. Name the file without {preset.name}: before it."
    if isinstance(error, KeyError) and error.args[0] not in record:
        return f"{error.args[0]!r} is missing; {preset.name} reads the fields of {preset.dataset}."
    return f"not as {preset.name} reads it ({error!r}); it reads the fields of {preset.dataset}."


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]
