"""Where a run keeps its state and how its result appears: `OUT.run/` while it works, `OUT` by one rename at the end.

Knows files, no model.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from secateur.core.finite import finite
from secateur.core.writing import flush, writing
from secateur.errors import OutputError


@dataclass(frozen=True)
class Folder:
    """The two places of one run: `out`, the checkpoint, and `run` beside it with ledger, lock and staging."""

    out: Path

    @classmethod
    def at(cls, out: str | Path, *, reads: str) -> Folder:
        """Raises `OutputError` for no name of a new folder, such as `.`, and for the very folder that `reads` is."""
        path = Path(out)
        if path.name in ("", ".."):
            raise OutputError(f"-o {str(out)!r} is no name for a new folder. Give one, such as ./cut.")
        if path.exists() and Path(reads).exists() and path.samefile(reads):
            raise OutputError(f"-o {out} is the model itself, which is never overwritten. Give another -o.")
        return cls(path)

    @property
    def run(self) -> Path:
        return self.out.with_name(self.out.name + ".run")

    @property
    def ledger(self) -> Path:
        return self.run / "ledger.sqlite"

    @property
    def staging(self) -> Path:
        return self.run / "staging"

    @property
    def _replaced(self) -> Path:
        return self.run / "replaced"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """One process at a time works on an output; what a killed one left half done is mended first.

        Afterwards no staging is left, nor a run folder in which nothing but the lock is. Raises `OutputError` when
        another process is at work, or nothing can be written.
        """
        with self._locked() as lock:
            self._put_back()
            try:
                yield
            finally:
                self._tidy(lock.name)

    def _put_back(self) -> None:
        """After a death or a failure between the two renames of `publish`."""
        if self._replaced.exists() and not self.out.exists():
            os.rename(self._replaced, self.out)

    def _tidy(self, lock: str) -> None:
        self._put_back()
        shutil.rmtree(self.staging, ignore_errors=True)
        with suppress(OSError):  # another process may just be making a lock of its own
            if [path.name for path in self.run.iterdir()] == ["lock"]:
                os.unlink(lock)
                self.run.rmdir()

    def _locked(self) -> TextIO:
        """An open file with the lock on it, which the kernel takes back even when the process is killed."""
        while True:
            with writing(self.run):
                self.run.mkdir(parents=True, exist_ok=True)
                lock = open(self.run / "lock", "a+")  # noqa: SIM115  closed by the caller
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.close()
                raise OutputError(
                    f"{self.out} is in use: another secateur works on it (lock {lock.name}). Wait for it, or give "
                    "another -o."
                ) from error
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name)):
                    return lock
            lock.close()  # its last owner had just removed it: that lock keeps nobody out

    def finished(self, command: Mapping[str, Any], *, overwrite: bool) -> bool:
        """True when `out` already holds the result of this very command; False when the way is free.

        Raises `OutputError` when something else is there: only what secateur wrote may be overwritten.
        """
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return False
        found = self._command_there()
        if found is None:
            raise OutputError(
                f"{self.out} exists and is not a checkpoint that secateur wrote, so it is left alone. Give another -o, "
                "or remove it yourself."
            )
        if overwrite:
            return False
        if found == dict(command):
            return True
        raise OutputError(
            f"{self.out} holds the result of another command ({_difference(found, command)}). Give another -o, or "
            "--overwrite to replace it."
        )

    def _command_there(self) -> dict[str, Any] | None:
        """What made the checkpoint at `out`; None for anything else."""
        for name in ("plan.json", "finetune.json", "heal.json", "train.json"):
            if record := self.record(name):
                return dict(record["provenance"]["command"])
        return None

    def record(self, name: str) -> dict[str, Any] | None:
        """A file in `out` that says what made the checkpoint; None where there is none, or it is another's."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads((self.out / name).read_text(encoding="utf-8"))
            if dict(record["provenance"]["command"]):
                return record
        return None

    def publish(self) -> None:
        """`staging` becomes `out` by rename, once it is on the disk; what was at `out` is gone only after that."""
        with writing(self.out):
            for path in [*self.staging.rglob("*"), self.staging]:
                flush(path)
            shutil.rmtree(self._replaced, ignore_errors=True)
            if self.out.exists():
                os.rename(self.out, self._replaced)
            os.rename(self.staging, self.out)
            shutil.rmtree(self._replaced, ignore_errors=True)


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """`seed 0, now 1`: what was asked there and is asked differently now."""
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    told = [
        f"{name.replace('_', ' ')} {_brief(found.get(name))}, now {_brief(wanted.get(name))}"
        for name in sorted(names)
    ]
    return "; ".join(told[:3]) + ("; ..." if len(told) > 3 else "")


def _brief(value: Any) -> str:
    return "none" if value is None else json.dumps(value).strip('"')


@contextmanager
def made_early(out: str | Path | None) -> Iterator[None]:
    """The folder `out`, if any, exists before hours of work, or `OutputError` says now that it cannot; gone again where
    that work fails and leaves it empty."""
    places = [] if out is None else [Path(out), *Path(out).parents]
    missing: list[Path] = []
    try:
        for place in places[:1]:
            with writing(place):
                missing = [place for place in places if not place.exists()]
                place.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # something is in it, or it was never made
            for place in missing:
                place.rmdir()
        raise


def copy_folder(source: Path, target: Path) -> None:
    """All files of `source`, in its folders. Raises `OutputError`.

    `shutil.copytree` would gather what goes wrong as words, in which a full disk is not told from others."""
    with writing(target):
        for path in sorted(source.rglob("*")):
            copy = target / path.relative_to(source)
            (copy if path.is_dir() else copy.parent).mkdir(parents=True, exist_ok=True)
            if path.is_file():
                shutil.copyfile(path, copy)


def write_json(path: Path, value: Any) -> None:
    """Readable JSON without NaN: numbers that are not finite become null."""
    with writing(path):
        path.write_text(
            json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
