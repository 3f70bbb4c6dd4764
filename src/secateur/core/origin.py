"""Read from a checkpoint's plan.json which model it was cut from, and how its questions were joined."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from secateur.core.reading import read_json
from secateur.errors import SecateurError


@dataclass(frozen=True)
class Origin:
    """The options with which a model was loaded to be cut; `join` is the text before answers, empty for none."""

    model: str
    revision: str | None
    dtype: str
    join: str = ""


def origin_of(folder: Path, error: type[SecateurError], mend: str) -> Origin:
    """Return the model that the checkpoint in `folder` was cut from.

    Raises: `error`, whose message ends with `mend` (what to do), where the folder does not say.
    """
    file = folder / "plan.json"
    wrong = f"{folder} does not say what it was cut from"
    if not os.path.exists(file):
        raise error(f"{wrong} (it has no plan.json). {mend}")
    value = read_json(file, error, mend)
    for name in ("provenance", "command"):
        value = value.get(name) if isinstance(value, dict) else None
    command = value if isinstance(value, dict) else {}
    model, revision, dtype = command.get("model"), command.get("revision"), command.get("dtype", "auto")
    if not (isinstance(model, str) and isinstance(revision, str | None) and isinstance(dtype, str)):
        raise error(f"{wrong} (its plan.json lacks that). {mend}")
    join = command.get("join", "")
    return Origin(model, revision, dtype, join if isinstance(join, str) else "")
