"""Word the record of where a checkpoint loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secateur.core.records.verdict import PlaceRecord


def evidence_text(place: PlaceRecord) -> str:
    """Return `read back (secateur 0.1.0)` or `expected (not tried)`, and the condition.

    Of a program that was run elsewhere: with which version, and that this checkpoint was not run in it.

    Empty for a runtime that cannot load it, and for records of an earlier release, which say no more than whether.
    """
    if not place.loads or not place.evidence:
        return ""
    how = f"{place.evidence} ({place.detail})"
    if place.evidence == "run":
        how = f"expected: a checkpoint of this kind was run in {place.detail}, this one was not"
    between = "; " if place.evidence == "run" else ", "
    return how + between + place.condition if place.condition else how


def sign(place: PlaceRecord) -> str:
    """Return `✓` where this checkpoint was loaded, `○` where that is expected, `✗` where it does not load."""
    if not place.loads:
        return "✗"
    return "○" if place.evidence in ("expected", "run") else "✓"
