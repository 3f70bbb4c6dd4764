"""Recognizes files that are no task files, for messages that say what a file is, what is wanted, and how to get there.

Looks at a name and at the first bytes. Knows no tokenizer and no splits.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from secateur.errors import TaskError

_LINES = "a line, in a file that ends in .jsonl"
QUESTIONS = f"A task is JSON lines: one object with id, prompt and answer {_LINES}"
RECORDS = f"Records are JSON lines: one object {_LINES}"
TEXT = f'Text is a .txt file, or JSON lines: one object with "text" {_LINES}'
HEAD = 2**20  # bytes that are looked at: more than a line has


class Format(NamedTuple):
    """A kind of file that is no task file, and how to make a task file of it."""

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
    b"PK\x03\x04": Format("a zip archive or a spreadsheet", "Unpack it, or save its table as JSON lines."),
    b"PAR1": _table("a Parquet file", "read_parquet"),
    b"ARROW1": _table("an Arrow file", "read_feather"),
}
TABLES: Mapping[str, Format] = {
    ".csv": _table("a table (CSV)", "read_csv"),
    ".tsv": _table("a table (TSV)", "read_table"),
}
FOLDER = Format("a folder", "Name a file in it; of a saved Dataset, what its to_json('NEW.jsonl') writes.")
BINARY = Format("no text", "Name another file.")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # text with zeros in it; that it is not UTF-8 is said where it is read


def refuse_other_formats(path: Path, wanted: str) -> None:
    """Raise `TaskError` for a file that cannot be JSON lines, nor plain text where TEXT is `wanted`.

    A file that cannot be read passes; the error is raised where it is read.
    """
    other = _format(path, wanted)
    if other is not None:
        raise TaskError(f"{path} is {other.what}. {wanted}. {other.how}")


def _format(path: Path, wanted: str) -> Format | None:
    if path.is_dir():
        return FOLDER
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    suffix = path.suffix.lower()
    known = next((form for magic, form in MAGIC.items() if head.startswith(magic)), TABLES.get(suffix))
    if known is not None:
        return known
    if b"\0" in head and not head.startswith(UTF_16):
        return BINARY
    if wanted == TEXT and suffix not in (".json", ".jsonl"):
        return None
    return _json(path, head.removeprefix(b"\xef\xbb\xbf").strip())


def _json(path: Path, head: bytes) -> Format | None:
    """Recognize lists, an object over several lines, or JSON lines under another name, by how the file begins."""
    first, rest = (part.strip() for part in head.partition(b"\n")[::2])
    if first.startswith(b"["):
        if first.endswith(b"]") and rest.startswith(b"["):
            return Format("JSON lists, one a line", 'Give every value its name: {"id": ..., "prompt": ...}.')
        return Format("a JSON list", f"To write it so: {jq_command('.[]', path)}")
    if not first.startswith(b"{") or path.suffix == ".jsonl":
        return None
    if first.endswith(b"}") and rest[:1] in (b"", b"{"):
        return Format("JSON lines under another name", f"Rename it to {path.with_suffix('.jsonl')}.")
    return Format("a JSON object over several lines", f"To write it so: {jq_command('.', path)}")


def jq_command(selected: str, path: Path) -> str:
    """Return a jq command that writes the selected values of a JSON file, one a line."""
    return f"jq -c {shlex.quote(selected)} {shlex.quote(str(path))} > NEW.jsonl"
