"""Checks that a command may write to OUT: a new folder, apart from all that the command reads.

One answer for every verb, before anything is read. Knows paths, no checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from secateur.core.reading import check_name
from secateur.core.writing import writing
from secateur.errors import OutputError

RUN = ".run"  # the folder beside OUT that keeps the state of a run
Key = tuple[int, int] | str


def new_folder(out: str | Path, *, reads: Iterable[str | Path], keeps: Iterable[str | Path] = ()) -> Path:
    """OUT as a path, where a folder may appear by rename. `reads` are the files and folders that the command reads;
    what it `keeps` between runs, such as a ledger, may also lie in OUT.run.

    Raises: `OutputError` for no name of a new folder, for links and mount points, which no folder can replace, and as
    `check_apart`."""
    path = Path(out)
    check_name(str(out), OutputError)
    if path.name in ("", "..") or "\0" in str(out):
        raise OutputError(f"-o {str(out)!r} is no name for a new folder. Give one, such as ./cut.")
    if path.name.endswith(RUN):
        raise OutputError(
            f"-o {out}: the name {path.name} is for the state of a run that writes "
            f"{path.name.removesuffix(RUN) or 'its OUT'}. Give another -o."
        )
    with writing(path):
        if path.is_symlink():
            raise OutputError(
                f"-o {out} is a link to {os.readlink(path)}, and the result appears by rename, which would replace the "
                "link. Give the place that it leads to as -o."
            )
        if path.is_mount():
            raise mount_point(path)
        check_apart(path, [*reads, *keeps])
        check_apart(path.with_name(path.name + RUN), reads)
        _refuse_here(path)
    return path


def mount_point(path: Path) -> OutputError:
    return OutputError(
        f"-o {path} is a mount point, and the result appears by rename, which would have to replace it. Give a folder "
        f"in it, such as -o {path / 'cut'}."
    )


def check_apart(out: Path, reads: Iterable[str | Path]) -> None:
    """Raises `OutputError` where `out` is, contains or lies in one of `reads`, whatever links lead there."""
    own = _lineage(out)
    for read in reads:
        other = _lineage(Path(read))
        if own[0] == other[0]:
            raise OutputError(
                f"-o {out} is {read} itself, which this command reads and never overwrites. Give another -o."
            )
        if own[0] in other:
            raise OutputError(
                f"-o {out} contains {read}, which this command reads and would lose when -o is replaced. Give another "
                "-o."
            )
        if other[0] in own:
            raise OutputError(f"-o {out} lies in {read}, which this command only reads. Give another -o.")


def _refuse_here(path: Path) -> None:
    """Relative paths would lead elsewhere once the folder that they begin in is replaced."""
    if _lineage(path)[0] in _lineage(Path.cwd()):
        raise OutputError(f"-o {path} is the folder that you are in, or one around it. Give another -o.")


def _lineage(path: Path) -> list[Key]:
    """A path without its links, and every folder around it, from the inside out: what is there by its identity, so that
    two names of one thing are equal."""
    real = Path(os.path.realpath(path))
    return [_key(place) for place in (real, *real.parents)]


def _key(place: Path) -> Key:
    try:
        found = place.stat()
    except OSError:
        return str(place)
    return found.st_dev, found.st_ino
