"""Rows of a file with the place of each: tables (CSV, TSV), JSON lines, a JSON list, a folder that `datasets` saved.

One reader a container; what a row means is decided elsewhere. Files are read line by line, and no line without a bound.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NoReturn

from secateur.core.reading import check_file, read_bytes
from secateur.errors import TaskError
from secateur.tasks.formats import ROW_FILES, TABLES, UTF_16, Row, head_of, is_saved, other_format
from secateur.tasks.hub import saved_rows

MAX_LINE = 16 * 2**20  # bytes: a row of more is a file without line ends
MAX_LIST = 256 * 2**20  # bytes of a JSON list, which is read as a whole
AHEAD = 1000  # lines that are looked at to tell an object over several lines from a broken one
UNNAMED = re.compile(r"(Unnamed: \d+)?")  # the index that pandas writes, and reads again under this name
SPACE = re.compile(r"\s*")


def read_rows(path: Path, wanted: str) -> Iterator[Row]:
    """Yield the rows of a file or of a folder that `datasets` saved.

    Args:
        wanted: Text for a message about a file that holds no rows: one of those in `formats`.

    Raises: `TaskError`, with file and line, for what cannot be read.
    """
    if other := other_format(path, wanted):
        raise TaskError(other)
    if os.path.isdir(path) and is_saved(path):
        return saved_rows(path)
    if path.suffix.lower() not in ROW_FILES:
        raise TaskError(f"{path} holds no rows by its name. {wanted}.")
    check_file(path, TaskError)
    if path.suffix.lower() in TABLES:
        return _table_rows(path)
    return _list_rows(path) if head_of(path).lstrip().startswith(b"[") else _json_lines(path, wanted)


def read_utf8(path: Path) -> str:
    """Return the file's text without a byte order mark. Raises: `TaskError` when missing or not UTF-8."""
    data = read_bytes(path, TaskError)
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, data[: error.start].count(b"\n") + 1, error) from error


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their ends. Raises: `TaskError` for one that is too long or not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            if len(line) > MAX_LINE:
                raise TaskError(
                    f"{path}, line {number}: longer than {MAX_LINE >> 20} MB. A row is a line of its own; end each one."
                )
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, error) from error


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> TaskError:
    found = f"the byte 0x{error.object[error.start]:02x} ({error.reason})"
    code, which = ("utf-16", "UTF-16") if head_of(path).startswith(UTF_16) else ("latin1", "Latin-1")
    return TaskError(
        f"{path}, line {line}: not UTF-8: {found}. If it is {which}, as some spreadsheets write it: "
        f"save it as UTF-8 there, or iconv -f {code} -t utf-8 {shlex.quote(str(path))} > NEW{path.suffix}"
    )


# ------------------------------------------------------------------------------------------------------------- tables


def _table_rows(path: Path) -> Iterator[Row]:
    lines = _lines(path)
    header = next(lines, "")
    delimiter = (
        max(",;\t", key=header.count) if path.suffix.lower() == ".csv" else "\t"
    )  # spreadsheets write ; too
    reader = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    begin = 1
    try:
        for cells in reader:
            where, begin = f"line {begin}", reader.line_num + 1
            if not any(cells):
                continue
            if names is None:
                names = _names(path, cells)
            elif len(cells) != len(names):
                raise TaskError(
                    f"{path}, {where}: {len(cells)} cells, and the header has {len(names)} columns "
                    f"({', '.join(names)}). Put quotes around a cell that holds "
                    f"the separator {delimiter!r}."
                )
            else:
                filled = zip(names, cells, strict=True)
                yield Row(
                    where, {name: cell for name, cell in filled if not UNNAMED.fullmatch(name)}, in_table=True
                )
    except csv.Error as error:
        raise TaskError(
            f"{path}, line {begin}: not a row of a table ({error}). Close every quotation mark, and double those "
            'inside a cell: "the ""old"" town".'
        ) from error


def _names(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise TaskError(f"{path}, line 1: the column {twice[0]!r} is there twice. Leave one out.")
    return names


# --------------------------------------------------------------------------------------------------------------- JSON


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice!r} is given twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no value of JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)


def _decode(text: str, start: int = 0) -> tuple[object, int]:
    """Return the JSON value that begins at `start`, and where it ends. Raises: `ValueError`."""
    try:
        value, end = DECODER.raw_decode(text, start)
        if "\\u" in text[start:end]:
            json.dumps(value, ensure_ascii=False).encode()  # halves of characters are a UnicodeEncodeError
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value, end


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        message = error.msg.removesuffix(" at")  # of a text that does not end
        return f"{message[:1].lower()}{message[1:]} at column {error.colno}"
    return "half of a character" if isinstance(error, UnicodeEncodeError) else str(error)


def _json_lines(path: Path, wanted: str) -> Iterator[Row]:
    lines = _lines(path)
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        try:
            value, end = _decode(text)
            if end < len(text):
                raise json.JSONDecodeError("more after the end of the value", text, end)
        except ValueError as error:
            if _goes_on(text, lines):
                raise TaskError(
                    f"{path}, line {number}: a JSON object over several lines. For one object a line: "
                    f"jq -c . {shlex.quote(str(path))} > NEW.jsonl"
                ) from error
            raise TaskError(f"{path}, line {number}: not JSON ({_reason(error)}). {wanted}.") from error
        yield Row(f"line {number}", value)


def _goes_on(line: str, rest: Iterator[str]) -> bool:
    """Return True where a JSON value begins on this line and ends on one of the next."""
    try:
        _, end = _decode("\n".join([line, *islice(rest, AHEAD)]))
    except ValueError:
        return False
    return end > len(line)


def _list_rows(path: Path) -> Iterator[Row]:
    if (size := path.stat().st_size) > MAX_LIST:
        raise TaskError(
            f"{path}: a JSON list of {size >> 20} MB, which would have to be read as a whole (at most "
            f"{MAX_LIST >> 20} MB). One object a line is read line by line: "
            f"jq -c '.[]' {shlex.quote(str(path))} > NEW.jsonl"
        )
    text = read_utf8(path)
    at, line, number = _skip(text, text.index("[") + 1), 1, 0
    counted = 0
    while text[at : at + 1] != "]":
        number, line, counted = number + 1, line + text.count("\n", counted, at), at
        where = f"item {number} (line {line})"
        try:
            value, end = _decode(text, at)
            at = _skip(text, end)
            if text[at : at + 1] not in (",", "]"):
                raise json.JSONDecodeError("a comma or ] is wanted after it", text, at)
        except ValueError as error:
            raise TaskError(f"{path}, {where}: not JSON ({_reason(error)}).") from error
        yield Row(where, value)
        at = _skip(text, at + 1) if text[at] == "," else at


def _skip(text: str, start: int) -> int:
    """Return the place of the next character that is no white space."""
    found = SPACE.match(text, start)
    return start if found is None else found.end()
