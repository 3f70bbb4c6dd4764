"""Tasks as a user of Python hands them over: as words, as rows, as texts. Knows no model; imports no torch.

Rows and texts are written to a file that is named after their content, in the user's cache, so that the command that a
checkpoint records can be run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from secateur.core.cache import cache_folder
from secateur.core.writing import writing
from secateur.errors import TaskError
from secateur.tasks.formats import Row
from secateur.tasks.questions import check_rows
from secateur.tasks.shapes import answer_columns, example_line, explain, is_text, spelled
from secateur.tasks.text import TextLine

TaskRow = Mapping[str, object]
NAME_DIGITS = 16  # hexadecimal, of the digest in a file's name
FORMS = (
    "a task is a path, a name such as builtin:facts, a list of dicts (prompt, answer, ...), or "
    "secateur.texts(...)"
)


@dataclass(frozen=True)
class Texts:
    """Plain text as a task; `texts` makes it. One string is one text, as a .txt file is."""

    documents: str | tuple[str | TaskRow, ...]


OneTask = str | Path | Texts | Iterable[TaskRow]
Tasks = OneTask | Iterable[OneTask]


def texts(documents: str | Iterable[str | TaskRow]) -> Texts:
    """Return plain text as a task, whose measure is the loss per token.

    A list of strings by itself would be several tasks by their names.

    Args:
        documents: Strings, or rows with `text` and perhaps `id` and `meta`, such as a `datasets.Dataset`; the chunks
            of one document stay in one split. One string is one text, which is split by its chunks.
    """
    return Texts(documents if isinstance(documents, str) else tuple(documents))


def task_words(given: Tasks) -> list[str]:
    """Return the tasks as the command line names them: one for rows or texts, several for a list of tasks.

    Raises: `TaskError` for what is no task, and as reading a task file does, with the place of the row: `task[3]`.
    """
    if isinstance(given, str | Path | Texts):
        return [_word(given)]
    if isinstance(given, Mapping):
        which = f"; give one of its splits, such as task[{next(iter(given))!r}]" if given else ""
        raise TaskError(f"a {type(given).__name__} is no task{which}. Rows are a list of dicts; {FORMS}.")
    if not isinstance(given, Iterable) or type(given).__name__ == "DataFrame":
        more = " Give frame.to_dict('records')." if type(given).__name__ == "DataFrame" else ""
        raise TaskError(f"a {type(given).__name__} is no task: {FORMS}.{more}")
    items = iter(given)
    for first in items:
        if isinstance(first, Mapping):
            return [_written_rows(chain([first], cast(Iterator[TaskRow], items)))]
        return [word for one in chain([first], items) for word in _nested(one)]
    return []


def task_word(given: OneTask) -> str:
    """Return one task as the command line names it. Raises: `TaskError` as `task_words`, and for none or several."""
    words = task_words(given)
    if len(words) != 1:
        raise TaskError(f"one task is wanted here, and {len(words)} are given: {', '.join(words) or 'none'}.")
    return words[0]


def _nested(given: TaskRow | OneTask) -> list[str]:
    """Return one task of several. Raises: `TaskError` for several again, and for rows among tasks."""
    if isinstance(given, Mapping):
        raise TaskError(
            "a list of tasks holds a single dict: put the rows of each task in a list of their own."
        )
    return [task_word(given)]


def _word(given: str | Path | Texts) -> str:
    if isinstance(given, Texts):
        if isinstance(given.documents, str):
            return f"text:{_stored('text', given.documents, '.txt')}"
        rows = [{"text": one} if isinstance(one, str) else one for one in given.documents]
        return f"text:{_stored('texts', ''.join(_text_lines(rows)), '.jsonl')}"
    return str(given)


def _written_rows(rows: Iterable[TaskRow]) -> str:
    """Return the file of checked rows, written where it is not there yet."""
    lines, checked = [], []
    for where, row, line in _lines(rows, "task"):
        lines.append(line)
        if not is_text(row):
            checked.append((where, example_line(Row(where, row))))
        elif not answer_columns(row):  # of labelled text the model knows the labels
            raise TaskError(f"{where} is a text and no question: give secateur.texts(rows).")
    if checked:
        check_rows(checked, "", "rows", "tasks")
    return str(_stored("rows", "".join(lines), ".jsonl"))


def _text_lines(rows: Iterable[object]) -> Iterator[str]:
    for where, row, line in _lines(rows, "texts"):
        try:
            TextLine.model_validate(spelled(row))
        except ValidationError as error:
            raise TaskError(f"{where}: {explain(error)}") from error
        yield line


def _lines(rows: Iterable[object], name: str) -> Iterator[tuple[str, dict[str, object], str]]:
    """Give the place of each row, what it holds, and it as a line of JSON. Raises: `TaskError` for what is no row."""
    for number, row in enumerate(rows):
        where = f"{name}[{number}]"
        if not isinstance(row, Mapping):
            raise TaskError(f"{where} is a {type(row).__name__}, and a dict is wanted.")
        # a table has all columns in all rows; what a row does not have is null there
        kept = {key: value for key, value in row.items() if value is not None}
        try:
            yield where, kept, json.dumps(kept, sort_keys=True) + "\n"
        except TypeError as error:
            raise TaskError(f"{where}: {error}.") from error


def _stored(kind: str, content: str, suffix: str) -> Path:
    """Return the file in the user's cache that holds `content`, readable by its owner alone.

    Raises: `OutputError` where the cache cannot be written.
    """
    data = content.encode("utf-8", errors="surrogatepass")
    file = cache_folder("tasks") / f"{kind}-{hashlib.sha256(data).hexdigest()[:NAME_DIGITS]}{suffix}"
    with writing(file, "XDG_CACHE_HOME"):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if file.is_file() and file.read_bytes() == data:
            return file
        number, partial = tempfile.mkstemp(dir=file.parent)  # which gives it mode 0600
        try:
            with os.fdopen(number, "wb") as stream:
                stream.write(data)
            os.replace(partial, file)
        except BaseException:
            os.unlink(partial)
            raise
    return file
