"""Words and signs for the record of where a checkpoint loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def evidence_text(place: Mapping[str, Any]) -> str:
    """`run (vLLM 0.32.0)` or `expected (not tried)`, and the condition; empty for a place where it does not load, and
    for a record of an earlier release, which says no more than whether.

    Args:
        place: the record of a `Place` of where_it_loads.
    """
    if not place["loads"] or "evidence" not in place:
        return ""
    how = f"{place['evidence']} ({place['detail']})"
    return f"{how}, {place['condition']}" if place["condition"] else how


def sign(place: Mapping[str, Any]) -> str:
    """`✓` where it was loaded, `○` where that is expected, `✗` where it does not load."""
    if not place["loads"]:
        return "✗"
    return "○" if place.get("evidence") == "expected" else "✓"
