"""Readings of LASER that are drawn and noted instead of made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.core.plan import Truncate
from secateur.core.readings import Readings
from secateur.core.site import Site
from secateur.methods.laser.probe import MAX_PROBED
from secateur.methods.laser.records import TailRecord
from secateur.methods.method import DryRun, Reading
from secateur.session import Session

SCREEN = "truncation effects"
PASSES = 4.0  # of the whole model: forward 1, backward to activations 1, and both again of each block alone
EVERYTHING = 2**62  # bytes: the screen reads once, however many spectra have room


class DryLaserReadings:
    """In the place of `LaserProbe`."""

    def __init__(self, session: Session, dry: DryRun) -> None:
        self._session, self._dry = session, dry

    def screen(self, edits: Sequence[Truncate]) -> Readings:
        """Note the screen; candidates are ranked evenly over the grid."""
        probed = len(self._session.task.split("probe")[:MAX_PROBED])
        sites = tuple(dict.fromkeys(edit.matrix for edit in edits))
        self._dry.read(
            Reading(SCREEN, "probe", probed, sites, passes=PASSES, decomposes=True, room=EVERYTHING)
        )
        values = {str(edit): self._dry.draw() for edit in edits}
        return Readings("drawn", "nats", "probe", probed, True, "forecast", values)

    def spectrum(self, matrix: Site) -> list[float]:
        """Return none: what was decomposed for plans is there."""
        return []

    def answers(self, part: Truncate, kind: str, outcomes: np.ndarray) -> TailRecord:
        """Return an empty record: the plans it is made of are judged by then."""
        return TailRecord(
            site=str(part.matrix),
            rank=part.rank,
            kind=kind,
            answers=[],
            cosine=0.0,
            accuracy=0.0,
            n=len(outcomes),
        )
