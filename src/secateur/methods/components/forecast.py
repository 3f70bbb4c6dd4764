"""Readings of heads and networks that are drawn and noted instead of made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secateur.core.plan import Drop, Plan
from secateur.core.records.probe import ComponentsRecord
from secateur.core.site import Site
from secateur.methods.components.method import ComponentsConfig
from secateur.methods.components.readings import MAX_PROBED, ffns_left
from secateur.methods.components.search import groups_of
from secateur.methods.method import DryRun, Reading
from secateur.methods.removal import side_values
from secateur.search.race import Judge
from secateur.session import Session

NAMES = {"heads": "head importance", "neurons": "neuron importance"}


class DryRemovalReadings:
    """In the place of `RemovalReader`. At the least, ranks taken again are those taken once."""

    def __init__(self, session: Session, judge: Judge, dry: DryRun) -> None:
        self._session, self._judge, self._dry = session, judge, dry
        self._sites = {group.name: group.sites for group in groups_of(session)}
        self._probe = session.task.split("probe")[:MAX_PROBED]
        self._read: dict[tuple[str, Plan], Mapping[Site, float]] = {}

    def importance(self, plan: Plan, kind: str) -> Mapping[Site, float]:
        """Note the pass with gradients, or the plans that leave out each network that is left."""
        if (kind, plan) not in self._read:
            if kind == "heads" or self._session.config(ComponentsConfig).portable:
                self._gradients("heads" if kind == "heads" else "neurons")
            else:
                self._ablation(plan)
            once = self._dry.luck == "least" and next(
                (v for (k, _), v in self._read.items() if k == kind), None
            )
            self._read[kind, plan] = once or {site: self._dry.draw() for site in self._sites[kind]}
        return self._read[kind, plan]

    def components(self) -> ComponentsRecord:
        """Note what the report shows of the whole model, as far as the search has not read it."""
        anatomy, empty = self._session.loaded.anatomy, self._session.empty
        if anatomy.attending and ("heads", empty) not in self._read:
            self._gradients("heads")
        if ffns_left(self._session, empty) and ("ffns", empty) not in self._read:
            self._ablation(empty)
        self._dry.read(Reading("behavior", "probe", 0, ()))
        return ComponentsRecord()

    def side_values(self, plans: Sequence[Plan]) -> tuple[Mapping[Plan, dict[str, float]], dict[str, str]]:
        """Note the side tasks, which are read from their files, and judged."""
        self._dry.read(Reading("sides read", "probe", 0, ()))
        return side_values(self._session, plans)

    def _gradients(self, kind: str) -> None:
        self._dry.read(Reading(NAMES[kind], "probe", len(self._probe), (), passes=2.0))

    def _ablation(self, plan: Plan) -> None:
        left = ffns_left(self._session, plan)
        self._judge([plan, *(plan + Drop(site) for site in left)], self._probe, "ablation")
