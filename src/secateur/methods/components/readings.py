"""Readings for removal of heads, networks and experts: importance of parts under a plan, behavior of heads, side tasks.

Importance is read on `probe`; what costs a pass with gradients is remembered in the ledger. At the end the readings of
a forecast, which are drawn and noted instead of made.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from secateur.core.plan import Drop, Plan
from secateur.core.readings import Readings
from secateur.core.records.probe import ComponentsRecord
from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.evaluation.evaluator import Evaluator
from secateur.hf.anatomy import Anatomy
from secateur.methods.components.method import ComponentsConfig
from secateur.methods.forecasting import DryRun, ReadingCost
from secateur.methods.removal import experts_left, experts_of, heads_of, side_values
from secateur.options import layers_of
from secateur.probes.ablation import ablation_importance
from secateur.probes.experts import router_mass
from secateur.probing.components import (
    BY_GRADIENT,
    ComponentReadings,
    TaskReading,
    behavior,
    components_record,
    expected_rise,
)
from secateur.search.race import Judge
from secateur.search.removal import PrunableGroup
from secateur.session import Session, decided_by_choices, digest
from secateur.surgery.mask import masked
from secateur.surgery.operations import droppable, resolve

LOG = logging.getLogger("secateur")
HEADS = "head effects"
NAMES = {"heads": "head importance", "neurons": "neuron importance"}
CONFIRMED = 2  # times as many heads as go in a step are measured before it
FEWEST_CONFIRMED = 16


def whole_ffns(anatomy: Anatomy, blocks: range) -> tuple[Site, ...]:
    """Return the feed-forward networks of these blocks that can go."""
    return tuple(site for block in blocks if droppable(site := anatomy.site(block, "mlp"), anatomy))


def ffns_left(session: Session, plan: Plan) -> list[Site]:
    """Return the feed-forward networks of the blocks asked for that can go and that `plan` leaves."""
    anatomy, gone = session.loaded.anatomy, set(plan.dropped)
    whole = whole_ffns(anatomy, layers_of(anatomy, session.options))
    return [site for site in whole if site not in gone]


def shown_kinds(session: Session) -> list[str]:
    """Return the kinds of parts whose importance the report shows: those that go, for a full report all."""
    method = session.options.method
    asked: tuple[str, ...] = ("heads", "ffns") if method == "components" else (method,)
    if session.options.full_report:
        asked = ("heads", "ffns", "experts")
    has = {
        "heads": session.loaded.anatomy.attending,
        "ffns": ffns_left(session, session.empty),
        "experts": experts_of(session),
    }
    return [kind for kind in asked if has[kind]]


def num_confirmed(session: Session) -> int:
    """Return how many heads are measured before each step."""
    step = math.ceil(session.config(ComponentsConfig).step * len(heads_of(session)))
    return max(FEWEST_CONFIRMED, CONFIRMED * step)


def heads_left(session: Session, plan: Plan) -> list[Site]:
    """Return the heads, or KV groups, that can go and that `plan` leaves."""
    gone = set(plan.dropped)
    return [site for site in heads_of(session) if site not in gone]


class RemovalReader:
    """The readings of a real model; see `search.RemovalReadings`."""

    def __init__(self, session: Session, judge: Evaluator) -> None:
        self._session, self._judge = session, judge
        self._probe = session.probed

    def importance(self, plan: Plan, kind: str, *, vote: int = 1) -> Mapping[Site, float]:
        """Return a number for each part of a kind (`heads`, `ffns`, `experts`) that `plan` leaves.

        Args:
            vote: Read it on so many pieces of `probe` by themselves, and take the mean of a part's places.
        """
        if kind == "heads":
            return self._confirmed(plan, vote)
        if kind == "experts":
            left = experts_left(self._session, plan)
            read = self._voted(lambda examples: self._effects(plan, left, examples), vote)
            return {site: read.get(str(site), math.inf) for site in experts_of(self._session)}
        if self._session.config(ComponentsConfig).portable:
            values = self._voted(lambda examples: self._gradients("neurons", plan, examples), vote)
        else:
            values = self._voted(lambda examples: self._ablation(plan, examples), vote)
        return {Site.parse(site): value for site, value in values.items()}

    def _voted(self, read: Callable[[Sequence[int]], Readings], vote: int) -> Mapping[str, float]:
        """Return what is read on all of `probe`, or each part's mean place in the orders of its pieces.

        Source: Borda's count.
        """
        if vote == 1:
            return read(self._probe).values
        places: dict[str, float] = {}
        for number in range(vote):
            for place, (site, _) in enumerate(read(self._probe[number::vote]).ranked()):
                places[site] = places.get(site, 0.0) + place / vote
        return places

    def components(self) -> ComponentsRecord:
        """Return what the report shows of the whole model: importance, and for a full one what heads do."""
        session = self._session
        by_kind: dict[str, dict[str, Readings]] = {}
        if "heads" in shown_kinds(session):
            by_kind["heads"] = {"importance": self._gradients("heads", session.empty, self._probe)}
        if "ffns" in shown_kinds(session):
            by_kind["ffns"] = {"loss": self._ablation(session.empty, self._probe)}
        if "experts" in shown_kinds(session):
            mass = router_mass(session.loaded, session.encoded, self._probe, packing=self._judge.packing)
            rise = self._effects(session.empty, experts_left(session, session.empty), self._probe)
            by_kind["experts"] = {"importance": mass, "expected_rise": rise}
        n = len(self._probe)
        reading = TaskReading(session.task.name, session.options.shots, n, n, by_kind)
        heads = self._behavior() if session.options.full_report else {}
        return components_record(ComponentReadings((reading,), heads))

    def _behavior(self) -> Mapping[str, Readings]:
        """Return prefix matching and copying of all heads; nothing where they cannot be read, which is said."""
        loaded = self._session.loaded
        try:
            return behavior(loaded, range(loaded.anatomy.num_blocks), self._session.progress)
        except ModelError as error:  # too little room for random repeats, or heads of two factors
            LOG.warning("prefix matching and copying are left out of the report: %s", error)
            return {}

    def side_values(self, plans: Sequence[Plan]) -> tuple[Mapping[Plan, dict[str, float]], dict[str, str]]:
        """Return each side task's metric under each plan, and its unit."""
        return side_values(self._session, plans)

    def _gradients(self, kind: str, plan: Plan, examples: Sequence[int]) -> Readings:
        session, loaded = self._session, self._session.loaded
        key = f"{kind} {digest([plan.to_json()['edits'], *self._which(examples)])}"
        known = session.recall(key, Readings.from_json)
        if known is not None:
            return known
        with masked(loaded.model, resolve(plan, loaded.anatomy, loaded.fingerprint)):
            read = BY_GRADIENT[kind](
                loaded, session.encoded, examples, packing=self._judge.packing, progress=session.progress
            )
        session.remember(key, read.to_json())
        return read

    def _which(self, examples: Sequence[int]) -> list[int]:
        """Return what tells a reading's examples: their number where they are all of `probe`, else themselves."""
        return [len(examples)] if len(examples) == len(self._probe) else [*examples]

    def _confirmed(self, plan: Plan, vote: int) -> Mapping[Site, float]:
        """Return the place of each head that is left in the order in which they go.

        What the model does without those that are predicted to be worth least is measured, in the metric that decides;
        the others follow as predicted.
        """
        left = heads_left(self._session, plan)
        values = self._voted(lambda examples: self._effects(plan, left, examples), vote)
        predicted = [Site.parse(site) for site in sorted(values, key=lambda site: (values[site], site))]
        near = predicted[: num_confirmed(self._session)]
        judged = self._judge([plan + Drop(site) for site in near], self._probe, "head measurement")
        key = self._session.objective.key
        near.sort(key=lambda site: key(judged[plan + Drop(site)]), reverse=True)
        order = [*near, *predicted[len(near) :]]
        return {site: float(place) for place, site in enumerate(order)}

    def _effects(self, plan: Plan, left: Sequence[Site], examples: Sequence[int]) -> Readings:
        """Return the expected rise of the loss without each of the parts that are left, nats: below 0, it hurts."""
        session, contrast = self._session, decided_by_choices(self._session)
        which = self._which(examples)
        key = f"head effects {digest([contrast, plan.to_json()['edits'], *which, *map(str, left)])}"
        known = session.recall(key, Readings.from_json)
        if known is not None:
            return known
        read = expected_rise(session, left, examples, "probe", under=plan)
        session.remember(key, read.to_json())
        return read

    def _ablation(self, plan: Plan, examples: Sequence[int]) -> Readings:
        """Return the loss without each of the feed-forward networks that are left; accuracy ties on few examples."""
        left = ffns_left(self._session, plan)
        by_metric = ablation_importance(self._judge, left, examples, split="probe", base=plan)
        return [*by_metric.values()][-1]


# ------------------------------------------------------------------------------------------------------------- forecast


class DryRemovalReadings:
    """In the place of `RemovalReader`. At the least, ranks taken again are those taken once."""

    def __init__(self, session: Session, judge: Judge, groups: Iterable[PrunableGroup], dry: DryRun) -> None:
        self._session, self._judge, self._dry = session, judge, dry
        self._sites = {group.name: group.sites for group in groups}
        self._probe = session.probed
        self._read: dict[tuple[str, Plan], Mapping[Site, float]] = {}

    def importance(self, plan: Plan, kind: str, *, vote: int = 1) -> Mapping[Site, float]:
        """Note the pass with gradients, or the plans that leave out each network that is left; pieces of `probe` take
        together what all of it takes."""
        if (kind, plan) not in self._read:
            if kind == "experts":
                self._effects(experts_left(self._session, plan))
            elif kind == "heads":
                sites = heads_left(self._session, plan)
                self._effects(sites)
                count = num_confirmed(self._session)
                near = sites[:: max(1, len(sites) // count)][:count]
                self._judge([plan + Drop(site) for site in near], self._probe, "head measurement")
            elif self._session.config(ComponentsConfig).portable:
                self._gradients("neurons")
            else:
                self._ablation(plan)
            once = self._dry.case == "least" and next(
                (v for (k, _), v in self._read.items() if k == kind), None
            )
            self._read[kind, plan] = once or {site: self._dry.draw() for site in self._sites[kind]}
        return self._read[kind, plan]

    def components(self) -> ComponentsRecord:
        """Note what the report shows of the whole model, as far as the search has not read it."""
        empty = self._session.empty
        if "heads" in shown_kinds(self._session):
            self._gradients("heads")
        if "ffns" in shown_kinds(self._session) and ("ffns", empty) not in self._read:
            self._ablation(empty)
        if "experts" in shown_kinds(self._session):
            self._dry.read(ReadingCost("router mass", "probe", len(self._probe), (), passes=1.0))
            if ("experts", empty) not in self._read:
                self._effects(experts_left(self._session, empty))
        if self._session.options.full_report:
            self._dry.read(ReadingCost("behavior", "probe", 0, ()))
        return ComponentsRecord()

    def side_values(self, plans: Sequence[Plan]) -> tuple[Mapping[Plan, dict[str, float]], dict[str, str]]:
        """Note the side tasks, which are read from their files, and judged."""
        self._dry.read(ReadingCost("sides read", "probe", 0, ()))
        return side_values(self._session, plans)

    def _effects(self, left: Sequence[Site]) -> None:
        n, choices = len(self._probe), decided_by_choices(self._session)
        self._dry.read(ReadingCost(HEADS, "probe", n, tuple(left), passes=2.0, blocks=1.0, choices=choices))

    def _gradients(self, kind: str) -> None:
        self._dry.read(ReadingCost(NAMES[kind], "probe", len(self._probe), (), passes=2.0))

    def _ablation(self, plan: Plan) -> None:
        left = ffns_left(self._session, plan)
        self._judge([plan, *(plan + Drop(site) for site in left)], self._probe, "ablation")
