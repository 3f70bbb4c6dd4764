"""Keep the state of a run in `OUT.run/` while it works, and publish its result as `OUT` by one rename at the end.

Knows files, no model.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from pydantic import Field, JsonValue

from secateur.checkpoint.out import RUN, check_apart, mount_point_error, new_folder
from secateur.core.finite import finite
from secateur.core.reading import parse_json
from secateur.core.records.record import Record
from secateur.core.writing import flush, write_text, writing
from secateur.errors import OutputError

LOCK, NOTE = "lock", "command.json"
RECORDS = (
    "plan.json",
    "finetune.json",
    "heal.json",
    "train.json",
)  # each names the command that made a checkpoint
LEDGER = "ledger.sqlite"  # in the folder of a run, and beside a map
UNPROVEN = "unproven"  # the folder in OUT for a plan that was found and not carried out
PATIENCE = 0.2  # s: a process that only asks whether a lock is free holds it for an instant


class Command(Record):
    """The options of the run that wrote a record."""

    command: dict[str, JsonValue] = Field(description="option to value", min_length=1)


class ProvenRecord(Record):
    """A record that names the command that wrote it; all of `RECORDS` do."""

    provenance: Command = Field(description="where the checkpoint comes from")


@dataclass(frozen=True)
class Folder:
    """The two folders of one run: `out`, the checkpoint, and `run` beside it with ledger, lock and staging."""

    out: Path

    @classmethod
    def at(
        cls, out: str | Path, *, reads: Iterable[str | Path], keeps: Iterable[str | Path | None] = ()
    ) -> Folder:
        """Return the folders for `out`; arguments as of `new_folder`.

        Raises: `OutputError` where nothing may appear at `out`.
        """
        return cls(new_folder(out, reads=reads, keeps=[kept for kept in keeps if kept is not None]))

    @property
    def run(self) -> Path:
        """Return the folder that holds the state of the run."""
        return self.out.with_name(self.out.name + RUN)

    @property
    def ledger(self) -> Path:
        """Return the file of the run's ledger."""
        return self.run / LEDGER

    @property
    def staging(self) -> Path:
        """Return the folder that becomes `out`."""
        return self.run / "staging"

    @property
    def _replaced(self) -> Path:
        return self.run / "replaced"

    @contextmanager
    def claimed(self, command: Mapping[str, object], *, overwrite: bool) -> Iterator[bool]:
        """Lock the output for this process, after completing what a killed one left half done.

        On exit the staging folder is removed, and the run folder too where it holds nothing to resume from.

        Yields: whether `out` already holds the result of `command`.

        Raises: `OutputError` when another process is at work, when something else is at `out`, or when nothing can be
            written; nothing is changed then.
        """
        missing = [place for place in self.run.parents if not os.path.lexists(place)]
        with ExitStack() as stack:
            stack.callback(_remove_empty, missing)
            stack.enter_context(self._lock())
            stack.callback(self._tidy)
            self._put_back()
            already = self.finished(command, overwrite=overwrite)
            if not already:
                self._rehearse()
                (self.run / NOTE).unlink(
                    missing_ok=True
                )  # of another command, whose state is not gone on from
            yield already

    def note(self, verb: str, command: Mapping[str, object]) -> None:
        """Write down what runs here, for `secateur runs`; removed when it is finished."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.run / NOTE, {"verb": verb, "created": now, "command": dict(command)})

    @property
    def made(self) -> str:
        """Return when `out` was finished, which not every record says, in ISO 8601."""
        return datetime.fromtimestamp(self.out.stat().st_mtime, UTC).isoformat(timespec="seconds")

    @property
    def is_locked(self) -> bool:
        """Return whether a process is at work on this output now."""
        try:
            with open(self.run / LOCK) as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # there is none, or it is not ours to read
            return False
        return False

    def _put_back(self) -> None:
        """Undo the first rename of `publish` after a failure before the second."""
        if self._replaced.exists() and not self.out.exists():
            os.rename(self._replaced, self.out)

    def _rehearse(self) -> None:
        """Try both renames of `publish` now, so that the file system refuses before the work and not after it."""
        trial = self.run / "trial"
        with writing(self.out):
            try:
                if os.path.lexists(self.out):
                    shutil.rmtree(
                        self._replaced, ignore_errors=True
                    )  # left by a process killed after both renames
                    os.rename(self.out, self._replaced)
                    os.rename(self._replaced, self.out)
                else:
                    trial.mkdir(exist_ok=True)
                    os.rename(trial, self.out)
                    self.out.rmdir()
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise mount_point_error(self.out) from error
                if error.errno == errno.EXDEV:
                    raise OutputError(
                        f"{self.run} and {self.out} lie on different file systems, and the result appears by a rename "
                        "from the one to the other. Give another -o."
                    ) from error
                raise
            finally:
                with suppress(OSError):
                    trial.rmdir()

    def _tidy(self) -> None:
        self._put_back()
        shutil.rmtree(self.staging, ignore_errors=True)
        with suppress(OSError):  # another process may just be making a lock of its own
            if {path.name for path in self.run.iterdir()} <= {LOCK, NOTE}:
                (self.run / NOTE).unlink(missing_ok=True)
                (self.run / LOCK).unlink()
                self.run.rmdir()

    def _lock(self) -> TextIO:
        """Return an open file with the lock on it, which the kernel releases even when the process is killed."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with writing(self.run):
                self.run.mkdir(parents=True, exist_ok=True)
                lock = open(self.run / LOCK, "a+")  # noqa: SIM115  closed by the caller
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.close()
                if time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                raise OutputError(
                    f"{self.out} is in use: another secateur works on it (lock {lock.name}). Wait for it, or give "
                    "another -o."
                ) from error
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name)):
                    return lock
            lock.close()  # its last owner had just removed the file: that lock excludes nobody

    def finished(self, command: Mapping[str, object], *, overwrite: bool) -> bool:
        """Return True when `out` already holds the result of this very command, False when `out` may be written.

        Raises: `OutputError` when something else is there: only what secateur wrote may be overwritten.
        """
        with writing(self.out):
            if not os.path.lexists(self.out) or (self.out.is_dir() and not any(self.out.iterdir())):
                return False
        records = (record for name in RECORDS if (record := self.record(name)))
        made_by = next((ProvenRecord.model_validate(record).provenance.command for record in records), None)
        if made_by is None:
            raise OutputError(
                f"{self.out} exists and is not a checkpoint that secateur wrote, so it is left alone. Give another -o, "
                "or remove it yourself."
            )
        if overwrite:
            self._refuse_guests()
            return False
        if "method" in command:  # an older version also wrote the options of the methods that did not run
            made_by = {name: value for name, value in made_by.items() if name in command}
        if made_by == dict(command):
            return True
        raise OutputError(
            f"{self.out} holds the result of another command ({_difference(made_by, command)}). Give another -o, or "
            "--overwrite to replace it."
        )

    def _refuse_guests(self) -> None:
        """Raise `OutputError` for another checkpoint, a ledger or a run inside `out`, which would be lost with it."""
        for path in sorted(self.out.rglob("*")):
            nested = path.name in RECORDS and path.parent not in (self.out, self.out / UNPROVEN)
            if nested or path.suffix in (".sqlite", RUN):
                raise OutputError(
                    f"{self.out} holds {path}, which is of another command and would be lost. Move it away, or give "
                    "another -o."
                )

    def record(self, name: str) -> dict[str, Any] | None:
        """Return the content of one of `RECORDS` in `out`; None where there is none, or it names no command."""
        file = self.out / name
        with suppress(OSError, ValueError):
            record = parse_json(file.read_text(encoding="utf-8")) if file.is_file() else None
            ProvenRecord.model_validate(record)
            return record
        return None

    def publish(self) -> None:
        """Rename `staging` to `out` once it is on the disk; what was at `out` is removed only after that."""
        with writing(self.out):
            for path in [*self.staging.rglob("*"), self.staging]:
                flush(path)
            shutil.rmtree(self._replaced, ignore_errors=True)
            if self.out.exists():
                os.rename(self.out, self._replaced)
            os.rename(self.staging, self.out)
            shutil.rmtree(self._replaced, ignore_errors=True)


def _difference(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Return the options that differ between two commands, such as `seed 0, now 1`; the first three.

    Of another method the options differ anyway, so only its name is said.
    """
    names = sorted(name for name in {**now, **before} if before.get(name) != now.get(name))
    names = ["method"] if "method" in names else names
    differences = [
        f"{name.replace('_', ' ')} {_brief(before.get(name))}, now {_brief(now.get(name))}" for name in names
    ]
    return "; ".join(differences[:3]) + ("; ..." if len(differences) > 3 else "")


def _brief(value: object) -> str:
    return "none" if value is None else json.dumps(value).strip('"')


@contextmanager
def made_early(out: str | Path | None, *, reads: Iterable[str | Path]) -> Iterator[None]:
    """Make the folder `out`, if any, and try to write to it before hours of work; remove it again where that work fails
    and leaves it empty.

    Raises: `OutputError` where it cannot be made or written to.
    """
    if out is None:
        yield
        return
    place = Path(out)
    with writing(place):
        check_apart(place, reads)
        missing = [folder for folder in (place, *place.parents) if not folder.exists()]
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
    try:
        yield
    except BaseException:
        _remove_empty(missing)
        raise


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove the folders, as far as they are empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def copy_folder(source: Path, target: Path) -> None:
    """Copy all files of `source`, in its folders.

    `shutil.copytree` would report failures as text only, in which a full disk cannot be told from other causes.

    Raises: `OutputError`.
    """
    with writing(target):
        for path in sorted(source.rglob("*")):
            copy = target / path.relative_to(source)
            (copy if path.is_dir() else copy.parent).mkdir(parents=True, exist_ok=True)
            if path.is_file():
                shutil.copyfile(path, copy)


def write_json(path: Path, value: object) -> None:
    """Write readable JSON without NaN: numbers that are not finite become null."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
