"""Word the record of where a checkpoint loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secateur.core.records.verdict import PlaceRecord


def evidence_text(place: PlaceRecord) -> str:
    """Return `run (vLLM 0.32.0)` or `expected (not tried)`, and the condition.

    Empty for a runtime that cannot load it, and for records of an earlier release, which say no more than whether.
    """
    if not place.loads or not place.evidence:
        return ""
    how = f"{place.evidence} ({place.detail})"
    return f"{how}, {place.condition}" if place.condition else how


def sign(place: PlaceRecord) -> str:
    """Return `✓` where it was loaded, `○` where that is expected, `✗` where it does not load."""
    if not place.loads:
        return "✗"
    return "○" if place.evidence == "expected" else "✓"
