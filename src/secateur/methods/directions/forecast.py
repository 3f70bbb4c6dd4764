"""Readings of directions that are drawn and noted instead of made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.core.plan import Plan, RemoveDirections
from secateur.methods.directions.method import DirectionsConfig
from secateur.methods.directions.probe import ROOM, DirectionEffects, MatrixEffects
from secateur.methods.directions.readings import MAX_PROBED, EffectsUnderPlan, Words
from secateur.methods.method import DryRun, Reading
from secateur.options import matrices_of
from secateur.session import Session

HARMLESS = {"least": 0.1, "expected": 0.7, "most": 1.0}  # share of a pool, by the prediction
MOST_DIRECTIONS = 20_000  # that are drawn; of larger models each matrix has fewer, in proportion


class DryDirectionReadings:
    """In the place of `DirectionsProbe`."""

    def __init__(self, session: Session, dry: DryRun) -> None:
        self._session, self._dry = session, dry
        self._config = session.config(DirectionsConfig)
        self._sites = tuple(matrices_of(session.loaded.anatomy, session.options))
        self._known: dict[Plan, EffectsUnderPlan] = {}

    def effects(self, plan: Plan) -> EffectsUnderPlan:
        """Note the reading under a plan, once; of every pool the stated share is harmless together."""
        if plan not in self._known:
            probed = len(self._session.task.split("probe")[:MAX_PROBED])
            anew = self._config.per_head or self._config.whitened
            self._dry.read(
                Reading(
                    "direction effects", "probe", probed, self._sites,
                    passes=4.0, decomposes=True, under=bool(plan.edits), anew=anew, room=ROOM,
                )
            )  # fmt: skip
            self._known[plan] = EffectsUnderPlan(self._drawn(probed))
        return self._known[plan]

    def _drawn(self, probed: int) -> DirectionEffects:
        anatomy = self._session.loaded.anatomy
        sizes = {site: min(anatomy.matrix(site).shape) for site in self._sites}
        share = min(1.0, MOST_DIRECTIONS / sum(sizes.values()))
        harmless = HARMLESS[self._dry.luck]
        pieces = []
        for site, size in sizes.items():
            count = max(1, round(share * size))
            # Sums from the most harmful on are below 0 up to the harmless share: harm h, then as much help.
            place = (np.arange(count) + 0.5) / count
            effect = (
                np.where(place < harmless / 2, -1.0, 1.0) * 1e-6 if harmless < 1 else np.full(count, -1e-6)
            )
            mean = np.zeros(anatomy.matrix(site).shape[1])
            pieces.append(MatrixEffects(site, None, np.ones(count), effect, None, mean))
        return DirectionEffects("probe", probed, 1, False, tuple(pieces))

    def words(self, edit: RemoveDirections, numbers: Sequence[int]) -> Sequence[Words]:
        """Return none."""
        return []
