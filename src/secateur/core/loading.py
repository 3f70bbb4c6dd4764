"""Word the record of where a checkpoint loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def evidence_text(place: Mapping[str, Any]) -> str:
    """Return `run (vLLM 0.32.0)` or `expected (not tried)`, and the condition.

    Empty for a runtime that cannot load it, and for records of an earlier release, which say no more than whether.
    """
    if not place["loads"] or "evidence" not in place:
        return ""
    how = f"{place['evidence']} ({place['detail']})"
    return f"{how}, {place['condition']}" if place["condition"] else how


def sign(place: Mapping[str, Any]) -> str:
    """Return `✓` where it was loaded, `○` where that is expected, `✗` where it does not load."""
    if not place["loads"]:
        return "✗"
    return "○" if place.get("evidence") == "expected" else "✓"
