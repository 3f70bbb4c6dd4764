"""Where a run keeps its state and how its result appears: `OUT.run/` while it works, `OUT` by one rename at the end.

Knows files, no model.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import OutputError


@dataclass(frozen=True)
class Folder:
    """The two places of one run: `out`, the checkpoint, and `run` beside it with ledger, lock and staging."""

    out: Path

    @property
    def run(self) -> Path:
        return self.out.with_name(self.out.name + ".run")

    @property
    def ledger(self) -> Path:
        return self.run / "ledger.sqlite"

    @property
    def staging(self) -> Path:
        return self.run / "staging"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """One process at a time works on an output. Raises `OutputError` when another one does, or nothing can be written."""
        with writing(self.run):
            self.run.mkdir(parents=True, exist_ok=True)
            lock = open(self.run / "lock", "a+")  # noqa: SIM115  closed below, and by the kernel when killed
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OutputError(
                    f"{self.out} is in use: another secateur works on it (lock {self.run / 'lock'}). "
                    "Wait for it, or give another -o."
                ) from error
            yield

    def finished(self, command: Mapping[str, Any], *, overwrite: bool) -> bool:
        """True when `out` already holds the result of this very command; False when the way is free.

        Raises `OutputError` when something else is there and may not be overwritten.
        """
        if not self.out.exists():
            return False
        try:
            plan = json.loads((self.out / "plan.json").read_text())
            same = plan["provenance"]["command"] == dict(command)
        except (OSError, json.JSONDecodeError, KeyError, TypeError):
            same = False
        if same and not overwrite:
            return True
        if not overwrite:
            raise OutputError(
                f"{self.out} exists already and is not the result of this command. Give another -o, or --overwrite to replace it."
            )
        return False

    def publish(self) -> None:
        """`staging` becomes `out` by rename; what was at `out` is gone only after that."""
        with writing(self.out):
            aside = self.run / "replaced"
            shutil.rmtree(aside, ignore_errors=True)
            if self.out.exists():
                os.rename(self.out, aside)
            os.rename(self.staging, self.out)
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns what a file system refuses into an error that says where and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"no space left while writing {target}. Free some, or give another -o; nothing was half written."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise OutputError(f"cannot write {target}: {error.strerror}. Give another -o.") from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Readable JSON without NaN: numbers that are not finite become null."""
    with writing(path):
        path.write_text(
            json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
