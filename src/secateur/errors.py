"""What can go wrong for a user, and how it is said: what, where, what to do.

Every error a user can cause derives from `SecateurError`; the command line prints its message and exits with
`exit_code`. Broken invariants are `assert`s and are never caught.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SecateurError(Exception):
    """Base of all errors a user can mend."""

    exit_code = 2


class UnknownName(SecateurError):
    """A name (model, family, task, matrix, run) that nothing answers to."""


class ModelError(SecateurError):
    """A model that cannot be read, understood or trusted."""


class TaskError(SecateurError):
    """Task data that cannot be used as it is."""


class TooLong(TaskError):
    """An example that does not fit the model's context."""


class PlanError(SecateurError):
    """Edits that contradict each other, or a plan for another model."""


class TrainingError(SecateurError):
    """Training that cannot be done as asked, or went astray."""


class LedgerError(SecateurError):
    """A run folder that is in use, foreign, or of another version."""


class ClusterError(SecateurError):
    """Workers that cannot be reached, started or kept."""


class OutputError(SecateurError):
    """An output folder that cannot be written."""


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """The tail of an error message: `" Did you mean a or b?"`, or the whole list where nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return f" Known: {', '.join(known)}." if known else ""
