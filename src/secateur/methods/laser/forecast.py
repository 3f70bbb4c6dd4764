"""Readings of LASER that are drawn and noted instead of made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from secateur.core.plan import Plan, Truncate
from secateur.core.readings import Readings
from secateur.core.site import Site
from secateur.methods.laser.probe import MAX_PROBED
from secateur.methods.laser.records import TailRecord
from secateur.methods.method import DryRun, Reading
from secateur.session import Session

SCREEN, PREDICTION = "truncation effects", "block effects"
# passes of the whole model: forward 1, backward to activations 1, and for the screen both again of each block alone
SCREEN_PASSES, PREDICTION_PASSES = 4.0, 2.0
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
            Reading(SCREEN, "probe", probed, sites, passes=SCREEN_PASSES, decomposes=True, room=EVERYTHING)
        )
        values = {str(edit): self._dry.draw() for edit in edits}
        return Readings("drawn", "nats", "probe", probed, True, "forecast", values)

    def predict(self, plans: Sequence[Plan], before: np.ndarray) -> Mapping[Plan, np.ndarray]:
        """Note the readings; nothing is predicted."""
        sites = tuple(site for plan in plans for site in (edit.site for edit in plan.edits))
        self._dry.read(Reading(PREDICTION, "select", len(before), sites, passes=PREDICTION_PASSES))
        return {}

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
