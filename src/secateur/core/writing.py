"""Write files whole, and turn refusals of the file system into errors of ours."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secateur.errors import OutputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(target: Path, option: str = "-o") -> Iterator[None]:
    """Turn a refusal of the file system into an error that says where and what to do.

    Args:
        option: the option that names the place.
    """
    try:
        yield
    except BaseException as error:
        if system_error(error) in FULL:
            raise no_space(target, option) from error
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {target}: {reason}. Give another {option}.") from error


def no_space(target: Path, option: str = "-o") -> OutputError:
    """Return the error for a full disk."""
    return OutputError(
        f"no space left while writing {target}. Free some and run the same command again, or give another {option}; "
        "nothing was half written."
    )


def system_error(error: BaseException) -> int | None:
    """Return the errno behind an error, also where safetensors tells it only in words."""
    if isinstance(error, OSError):
        return error.errno
    if type(error).__name__ != "SafetensorError":
        return None
    match = re.search(r"\bos error (\d+)|\bcode: (\d+)", str(error))
    return int(match[1] or match[2]) if match else None


def write_text(path: Path, text: str, option: str = "-o") -> None:
    """Write a whole file; where anything goes wrong, the earlier file stays. Raises: `OutputError`, as `writing`."""
    partial = path.with_name(path.name + ".part")
    with writing(path, option):
        try:
            partial.write_text(
                text, encoding="utf-8", errors="backslashreplace"
            )  # of names that are no UTF-8
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
