"""Readings of depth pruning that are drawn and noted instead of made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from secateur.core.fitted import Fitted
from secateur.core.plan import Linearize, Plan
from secateur.core.site import Site
from secateur.methods.depth.readings import SAMPLE
from secateur.methods.depth.steps import Similarity
from secateur.methods.method import DryRun, Reading
from secateur.methods.removal import side_values
from secateur.probes.maps import BlockRun
from secateur.probes.outliers import SAMPLE as LOOKED_AT
from secateur.session import Session


class DryDepthReadings:
    """In the place of `DepthReader`."""

    def __init__(self, session: Session, dry: DryRun) -> None:
        self._session, self._dry = session, dry
        self._probed = len(session.task.split("probe"))

    def similarity(self, plan: Plan, blocks: Sequence[int]) -> Mapping[int, Similarity]:
        """Note one pass for these blocks, and the one before it that finds how long tokens are."""
        parts = tuple(map(Site, blocks))
        self._dry.read(
            Reading("similarity", "probe", self._probed, parts, passes=1.0, fits=True, looks=LOOKED_AT)
        )
        return {block: Similarity(self._dry.draw(), self._dry.draw()) for block in blocks}

    def maps(self, plan: Plan, runs: Sequence[BlockRun]) -> Mapping[BlockRun, Linearize]:
        """Note the fit of these maps; each is a map of its own, of no size."""
        parts = tuple(Site(run.blocks[0]) for run in runs)
        self._dry.read(Reading("maps", "probe", self._probed, parts, passes=2.0, fits=True))
        return {run: Linearize(run.blocks, run.form, self._map()) for run in runs}

    def _map(self) -> Fitted:
        return Fitted.of({"drawn": np.array([self._dry.draw()], np.float32)})

    def samples(self, plans: Sequence[Plan]) -> tuple[str, Mapping[Plan, str]]:
        """Note greedy text under each plan."""
        self._dry.generated(1, SAMPLE, len(plans))
        return "", dict.fromkeys(plans, "")

    def side_values(self, plans: Sequence[Plan]) -> tuple[Mapping[Plan, dict[str, float]], dict[str, str]]:
        """Note the side tasks, which are read from their files, and judged."""
        self._dry.read(Reading("sides read", "probe", 0, ()))
        return side_values(self._session, plans)
