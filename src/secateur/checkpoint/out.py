"""Check that a command may write to OUT: a new folder, apart from all that the command reads.

Every verb asks this before it reads anything. Knows paths, no checkpoint.
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
    """Return OUT as a path, where a folder may appear by rename.

    Args:
        reads: The files and folders that the command reads.
        keeps: Files that it keeps between runs, such as a ledger, which may also lie in OUT.run.

    Raises: `OutputError` for a name that no new folder can have, for links and mount points, which no folder can
        replace, for the folder that the process is in, and as `check_apart`.
    """
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
            raise mount_point_error(path)
        check_apart(path, [*reads, *keeps])
        check_apart(path.with_name(path.name + RUN), reads)
        if _lineage(path)[0] in _lineage(
            Path.cwd()
        ):  # relative paths would lead elsewhere once it is replaced
            raise OutputError(f"-o {path} is the folder that you are in, or one around it. Give another -o.")
    return path


def check_new_file(file: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` for a folder, a link, a file that is there, and where no folder is around it."""
    if file.is_dir():
        raise OutputError(f"-o {file} is a folder. Give a name for the file, such as {file / 'model.gguf'}.")
    if not file.absolute().parent.is_dir():
        raise OutputError(f"-o {file}: there is no folder {file.parent}. Make it, or give another -o.")
    if file.is_symlink() or (file.exists() and not overwrite):
        raise OutputError(f"-o {file} is there already. Give another -o, or --overwrite.")


def mount_point_error(path: Path) -> OutputError:
    """Return the error for an OUT that is a mount point."""
    return OutputError(
        f"-o {path} is a mount point, and the result appears by rename, which would have to replace it. Give a folder "
        f"in it, such as -o {path / 'cut'}."
    )


def check_apart(out: Path, reads: Iterable[str | Path]) -> None:
    """Raise `OutputError` where `out` is, contains or lies in one of `reads`, whatever links lead there."""
    out_lineage = _lineage(out)
    for read in reads:
        read_lineage = _lineage(Path(read))
        if out_lineage[0] == read_lineage[0]:
            raise OutputError(
                f"-o {out} is {read} itself, which this command reads and never overwrites. Give another -o."
            )
        if out_lineage[0] in read_lineage:
            raise OutputError(
                f"-o {out} contains {read}, which this command reads and would lose when -o is replaced. Give another "
                "-o."
            )
        if read_lineage[0] in out_lineage:
            raise OutputError(f"-o {out} lies in {read}, which this command only reads. Give another -o.")


def _lineage(path: Path) -> list[Key]:
    """Return the keys of a path without its links and of every folder around it, from the inside out.

    A key is the identity of the file that exists there, so that two names of one file are equal; else the path.
    """
    real = Path(os.path.realpath(path))
    keys: list[Key] = []
    for place in (real, *real.parents):
        try:
            status = place.stat()
        except OSError:
            keys.append(str(place))
        else:
            keys.append((status.st_dev, status.st_ino))
    return keys
