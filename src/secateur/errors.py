"""Define the errors that a user can cause and mend; each message says what is wrong, where, and what to do.

Every such error derives from `SecateurError`; the command line prints its message and exits with `exit_code`.
Broken invariants are `assert`s and are never caught.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class SecateurError(Exception):
    """Base class of all errors that a user can mend."""

    exit_code = 2


class UnknownName(SecateurError):
    """Raised for a name (of a model, family, task, matrix or run) that does not exist."""


class ModelError(SecateurError):
    """Raised for a model that cannot be read, understood or trusted."""


class TaskError(SecateurError):
    """Raised for task data that cannot be used as it is."""


class TooLong(TaskError):
    """Raised for an example that does not fit the model's context."""


class PlanError(SecateurError):
    """Raised for edits that contradict each other, and for a plan that was made for another model."""


class TrainingError(SecateurError):
    """Raised for training that cannot be done with the given options, and for training that diverged."""


class LedgerError(SecateurError):
    """Raised for a ledger or run folder that is in use, not ours, damaged, or of an unknown version."""


class ClusterError(SecateurError):
    """Raised for workers that cannot be reached, started or kept alive."""


class OutputError(SecateurError):
    """Raised for an output folder that cannot be written."""


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """Return the end of an error message: `" Did you mean a or b?"`, or all known names where none is similar."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return f" Known: {', '.join(known)}." if known else ""


_MEMORY_WORDS = (  # of torch, safetensors, the dynamic linker, Python's threads, C++
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "failed to map segment",
    "can't start new thread",
    "bad_alloc",
)


def lacks_memory(error: BaseException) -> bool:
    """Return True for an error that says that memory ran out.

    Looks at `MemoryError`, `OSError`, `RuntimeError` (as torch raises) and `ImportError`; False for all others.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | ImportError | OSError) and any(
        word in text for word in _MEMORY_WORDS
    )
