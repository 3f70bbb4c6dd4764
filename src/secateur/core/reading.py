"""Read files that anybody may have written, so that nothing in them stops or hangs the program."""

from __future__ import annotations

import difflib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError


def read_text(path: Path, error: type[SecateurError]) -> str:
    """Return the content of a UTF-8 file.

    Raises: `error` where there is none; folders, pipes and devices are no files.
    """
    try:
        return read_bytes(path, error).decode("utf-8")
    except UnicodeDecodeError as cause:
        raise error(f"{path}: cannot be read, for it is not UTF-8 ({cause.reason}).") from cause


def read_bytes(path: Path, error: type[SecateurError]) -> bytes:
    """Return the content of a file as bytes. Raises: `error`, as `read_text`."""
    check_file(path, error)
    try:
        return path.read_bytes()
    except OSError as cause:
        raise error(f"{path}: cannot be read ({_reason(cause)}).") from cause


def check_file(path: Path, error: type[SecateurError]) -> None:
    """Raise `error` where there is no readable file. To open a pipe may block for ever, and a device may never end."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            path.open("rb").close()
            return
    except (OSError, ValueError) as cause:  # a name with a zero byte is a ValueError
        raise error(f"{path}: cannot be read ({_reason(cause)}).{beside(path)}") from cause
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    kind = next((name for test, name in kinds.items() if test(mode)), "a device")
    raise error(f"{path}: cannot be read, for it is {kind} and no file.")


def beside(path: Path) -> str:
    """Return the end of a message about a path that is not there: ` Did you mean X, beside it?`, or an empty text."""
    try:
        names = [] if path.exists() else os.listdir(path.parent)
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f" Did you mean {path.parent / close[0]}, beside it?" if close else ""


def check_name(name: str, error: type[SecateurError]) -> None:
    """Raise `error` for a path of bytes that are not UTF-8: the libraries for weights cannot open it."""
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise error(f"{name}: the name is not UTF-8, so weights there cannot be read or written. Rename it.")


def read_json(path: Path, error: type[SecateurError], mend: str = "") -> Any:
    """Return the value in a JSON file.

    Raises: `error` for no file and for broken JSON; the message ends with `mend` (what to do).
    """
    text = read_text(path, error)
    try:
        return parse_json(text)
    except ValueError as cause:
        raise error(f"{path}: cannot be read as JSON ({cause}). {mend}".strip()) from cause


def parse_json(text: str) -> Any:
    """Return the JSON value of `text`. Raises: `ValueError`, also for nesting that is too deep for Python."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except TypeError as error:  # of a database: what is no text
        raise ValueError("it is no text") from error


@contextmanager
def as_written(place: Path | str, error: type[SecateurError], mend: str) -> Iterator[None]:
    """Raise `error` where the records from `place`, which are used inside, are not as secateur writes them."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as cause:
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split()):.100}"
        raise error(f"{place}: a record there is not as secateur writes it ({reason}). {mend}") from cause


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
