"""Rows, and files that hold none: messages that say what a file is, what is wanted, and how to get there.

Looks at a name and at the first bytes. Knows no tokenizer and no splits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

DOC = "docs/tasks.md"
ROWS = ".csv, .tsv, .jsonl, .json (a list of objects), or a folder that `datasets` saved"
QUESTIONS = (
    "A task is a file of questions with their answers, such as "
    f'{{"prompt": "The capital of Italy is", "answer": " Rome"}} ({ROWS}; {DOC})'
)
RECORDS = f"Records are rows of a file ({ROWS}; {DOC})"
TEXT = f'Text is a .txt file, or rows with "text" ({ROWS}; {DOC})'
HEAD = 2**20  # bytes that are looked at: more than a line has


class Row(NamedTuple):
    """A row and the words that say where it is, such as `line 3`; cells of a table are text."""

    where: str
    value: object
    in_table: bool = False


class Format(NamedTuple):
    """A kind of file that holds no rows, and how to make one of it that does."""

    what: str
    how: str


def _table(what: str, read: str) -> Format:
    return Format(what, f"With pandas: {read}(FILE).to_json('NEW.jsonl', orient='records', lines=True).")


PACKED = "Unpack it first."
MAGIC: Mapping[bytes, Format] = {
    b"\x1f\x8b": Format("packed by gzip", PACKED),
    b"BZh": Format("packed by bzip2", PACKED),
    b"\xfd7zXZ\x00": Format("packed by xz", PACKED),
    b"\x28\xb5\x2f\xfd": Format("packed by zstd", PACKED),
    b"PK\x03\x04": Format("a zip archive", PACKED),
    b"PAR1": _table("a Parquet file", "read_parquet"),
    b"ARROW1": _table("an Arrow file", "read_feather"),
}
SHEET = Format("a spreadsheet", "Save the sheet as CSV (in Excel: Save as).")
SHEETS = (".xlsx", ".xlsm", ".xls", ".ods")
BINARY = Format("no text", "Name another file.")
LISTS = Format("JSON lists, one a line", 'Give every value its name: {"prompt": ..., "answer": ...}.')
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # text with zeros in it; that it is not UTF-8 is said where it is read
TABLES = (".csv", ".tsv")
ROW_FILES = (*TABLES, ".jsonl", ".ndjson", ".json")


def is_saved(path: Path) -> bool:
    """Return True for a folder that `save_to_disk` of a Dataset or a DatasetDict wrote."""
    return any(os.path.isfile(path / name) for name in ("state.json", "dataset_dict.json"))


def head_of(path: Path) -> bytes:
    """Return the first `HEAD` bytes (1 MiB) of a file, less a byte order mark; none of a file that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD).removeprefix(b"\xef\xbb\xbf")
    except OSError:
        return b""


def other_format(path: Path, wanted: str) -> str:
    """Return the message about a path that can hold no rows, nor plain text where TEXT is `wanted`; else an empty one.

    A file that cannot be read passes; the error is raised where it is read.
    """
    found = _format(path)
    return "" if found is None else f"{path} is {found.what}. {found.how} {wanted}."


def _in_folder(folder: Path) -> str:
    """Return what to name instead of a folder: the first files of rows in it, where it has some."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in ROW_FILES and path.is_file())
    named = f": {' or '.join(map(str, found[:3]))}" if found else ""
    return f"Name a file in it{named}, or a folder that a Dataset's save_to_disk wrote."


def _format(path: Path) -> Format | None:
    if os.path.isdir(path):
        return None if is_saved(path) else Format("a folder", _in_folder(path))
    if os.path.exists(path) and path.suffix.lower() in SHEETS:
        return SHEET
    head = head_of(path)
    known = next((form for magic, form in MAGIC.items() if head.startswith(magic)), None)
    if known is not None:
        return known
    if b"\0" in head and not head.startswith(UTF_16):
        return BINARY
    first, _, rest = (part.strip() for part in head.strip().partition(b"\n"))
    lists = first.startswith(b"[") and first.endswith(b"]") and rest.startswith(b"[")
    return LISTS if lists and path.suffix.lower() in ROW_FILES else None
