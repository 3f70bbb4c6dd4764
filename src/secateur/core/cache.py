"""Name the folder for what can be made again, and is kept because that takes time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(part: str) -> Path:
    """Return the folder for one kind of it. Source: XDG Base Directory Specification 0.8, `XDG_CACHE_HOME`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "secateur" / part
