"""Removal of singular directions that hurt; their mean effect stays as a bias.

Effects are read on `probe` by one backward pass, the directions and their number are chosen on `select` by true
evaluations, because the first order misjudges what goes together. Four protocols: `search` (what helps most),
`removal` (as many as the task allows), `threshold` (as many as the prediction allows; no evaluation) and `paper` (a
share of each matrix). Decides only: plans are judged, and the model is read, by what is handed in.
Source: eigenpruning (Vergara-Browne et al. 2024, arXiv 2404.03147); all but the last protocol are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from secateur.core.plan import Plan, RemoveDirections
from secateur.core.score import Metric
from secateur.core.site import Site
from secateur.core.stats import paired_z
from secateur.errors import SecateurError
from secateur.methods.directions.method import DirectionsConfig
from secateur.methods.directions.pools import (
    Direction,
    Pool,
    fixed_share,
    left,
    pools,
    proposals,
    removal,
    signed,
    weakest,
)
from secateur.methods.directions.records import (
    DirectionsAnalysis,
    DirectionsRecord,
    DirectionsSearchRecord,
    DirectionsStep,
    DirectionWords,
    MatrixDirections,
)
from secateur.methods.method import CountingJudge, Proposal, taken
from secateur.methods.removal import goal_of
from secateur.options import matrices_of
from secateur.records import base_record
from secateur.search.race import HALVING, Choice, Judge, Rules, choose, race
from secateur.search.removal import RemovalPoint, steps
from secateur.session import Session

if TYPE_CHECKING:
    from secateur.methods.directions.effects import MatrixEffects
    from secateur.methods.directions.readings import EffectsUnderPlan, Words

HELPS = 1.0  # standard errors by which a round must better the last
ROUNDS = 8
PATIENCE = 2  # rounds without a better plan on the confirming half, after which a search ends
SHARE = 0.1  # of each matrix, for the paper's protocol
SHOWN = 256  # directions of one matrix or head that a record lists, evenly along the spectrum, beside those that went
STRONGEST = 32  # directions by effect that it lists too
WORDED = 24  # removed directions of which the record says what they do, the most harmful first


class DirectionReadings(Protocol):
    """Readings of the model that the search asks for, beside the outcomes of plans."""

    def effects(self, plan: Plan) -> EffectsUnderPlan:
        """Return the effects of all directions in the model that `plan` leaves."""

    def words(self, edit: RemoveDirections, numbers: Sequence[int]) -> Sequence[Words]:
        """Return what some of the directions that `edit` removes say; empty where they cannot be told."""


def check(session: Session) -> None:
    """Raise `UnknownName` for matrices and layers that the model does not have, `SecateurError` as `check_read` does,
    and where --zeroed asks for the original's shapes and a mean effect has no bias to be folded into."""
    matrices = session.loaded.anatomy.matrices
    for site in check_read(session):
        if session.options.zeroed and not site.unit and matrices[site].bias is None:
            raise SecateurError(
                f"--zeroed keeps the original's shapes, and {site} has no bias that its directions could be folded "
                "into. Leave it out of --matrices, or leave out --zeroed."
            )


def check_read(session: Session) -> list[Site]:
    """Return the matrices whose directions are read.

    Raises: `UnknownName` for those that the model does not have, `SecateurError` for readings that experts lack.
    """
    sites, config = matrices_of(session.loaded.anatomy, session.options), session.config(DirectionsConfig)
    of_experts = [site for site in sites if site.unit]
    if of_experts and (config.second_order or config.whitened):
        flag = "--second-order" if config.second_order else "--whitened"
        raise SecateurError(
            f"{flag} is read of linear layers, and {of_experts[0]} is an expert's. Leave out the one or the other."
        )
    return sites


def run(session: Session, judge: Judge, readings: DirectionReadings) -> Proposal:
    """Return the plan that the protocol proposes.

    Args:
        session: What is searched. Its weights are not touched, and neither is `test`.
        judge: Outcomes of plans.
        readings: Readings of the model.
    """
    search = _Search(session, CountingJudge(judge), readings)
    protocol = search.config.chosen_protocol
    with session.timed("choose"):
        trace = _PROTOCOLS[protocol](search)
    with session.timed("analyze"):
        base = search.judge([session.empty], search.select, "choose")[session.empty]
        record = _record(search, trace)
    best = trace.plan
    outcome = DirectionsSearchRecord(
        method="directions",
        protocol=protocol,
        exhaustive=search.config.exhaustive,
        proposed=search.judge.tried,
        rounds=len(trace.chosen),
    )
    if trace.choice is not None:
        outcome = outcome.model_copy(update={"choice": trace.choice.record()})
        best = trace.choice.best if trace.choice.better and not trace.choice.shown else trace.plan
    analysis = DirectionsAnalysis(base=base_record(base), directions=record)
    tried, evaluations = search.judge.tried, search.judge.evaluations
    return Proposal(trace.plan, tried, evaluations, outcome, analysis, record.max_loss, best)


# -------------------------------------------------------------------------------------------------- what a search holds


@dataclass(frozen=True)
class SearchStep:
    """A plan that adds `added` directions of a pool to the plan before.

    Args:
        predicted: Sum of the predicted changes of the loss, nats.
        outcomes: OUTCOME rows of the plan, as far as it was judged.
        before: Those of the plan before.
    """

    round: int
    pool: str
    added: int
    predicted: float
    plan: Plan
    outcomes: np.ndarray
    before: np.ndarray

    def record(self, metric: Metric) -> DirectionsStep:
        """Return the record, both plans on the examples that both were judged on."""
        n = len(self.outcomes)
        before = self.before[:n]
        return DirectionsStep(
            round=self.round,
            pool=self.pool,
            added=self.added,
            predicted=self.predicted,
            value=metric.mean(self.outcomes),
            value_before=metric.mean(before),
            loss=base_record(self.outcomes).loss,
            loss_before=base_record(before).loss,
            removed=sum(len(edit.directions) for edit in self.plan.removed),
            n=n,
            complete=n == len(self.before),
        )


@dataclass
class SearchTrace:
    """The plan that a search came to, all steps that were judged, and those that were taken.

    Of a search for gain `choice` is what the other half of `select` says.
    """

    plan: Plan
    steps: list[SearchStep] = field(default_factory=list)
    chosen: list[SearchStep] = field(default_factory=list)
    choice: Choice | None = None

    def take(self, step: SearchStep) -> None:
        """Go on from the plan of a step."""
        self.plan = step.plan
        self.chosen.append(step)


@dataclass(frozen=True)
class _Search:
    """The session, the judge and the readings of one search, with what all protocols do with them."""

    session: Session
    judge: CountingJudge
    readings: DirectionReadings

    @cached_property
    def config(self) -> DirectionsConfig:
        return self.session.config(DirectionsConfig)

    @cached_property
    def select(self) -> list[int]:
        return self.session.shuffled("select")

    @property
    def weakest_first(self) -> bool:
        """The user's word; without it only where the aim is that as many go as can go."""
        asked = self.config.weakest
        return self.config.chosen_protocol == "removal" if asked is None else asked

    def order(self, direction: Direction) -> tuple[float, Site, int]:
        """Return the sort key by which directions go."""
        return weakest(direction) if self.weakest_first else signed(direction)

    def without(self, base: Plan, more: Sequence[Direction], effects: EffectsUnderPlan) -> Plan:
        """Return `base` with more directions removed."""
        return removal(base, more, effects.folds, per_head=self.config.per_head)

    def single_plan(self, name: str, directions: Sequence[Direction]) -> SearchTrace:
        """Return the trace of one plan without a choice, which is judged for the record."""
        empty = self.session.empty
        if not directions:
            self.judge([empty], self.select, "choose")
            return SearchTrace(empty)
        plan = self.without(empty, directions, self.readings.effects(empty))
        outcomes = self.judge([empty, plan], self.select, "choose")
        predicted = Pool(name, tuple(directions)).predicted(len(directions))
        step = SearchStep(0, name, len(directions), predicted, plan, outcomes[plan], outcomes[empty])
        return SearchTrace(plan, [step], [step])


# -------------------------------------------------------------------------------------------------------- the protocols


def _rounds(search: _Search) -> SearchTrace:
    """Remove round after round what helps most on one half of `select`; take as many rounds as do best on the other.

    None where that does not show that they help: a plan that was built by looking at examples has to prove itself on
    others. No further rounds where `PATIENCE` of them did not do better there.
    """
    session, goal = search.session, search.session.objective
    trace = SearchTrace(session.empty)
    build, confirm = session.halves()
    plans, judged = [session.empty], {}
    for number in range(ROUNDS if search.config.rescore else 1):
        step = _round(search, trace, number, build)
        if step is None:
            break
        trace.take(step)
        plans.append(step.plan)
        judged = dict(search.judge(plans, confirm, "choose"))
        best = max(plans, key=lambda plan: goal.key(judged[plan]))
        if len(plans) - 1 - plans.index(best) >= PATIENCE:
            break
    if not trace.chosen:
        return trace
    before = judged.pop(session.empty)
    choice = choose(judged, before, session.evidence(confirm), goal)
    plan = taken(session, choice)
    return SearchTrace(plan, trace.steps, trace.chosen[: plans.index(plan)], choice)


def _round(search: _Search, trace: SearchTrace, number: int, examples: Sequence[int]) -> SearchStep | None:
    """Add to the trace what was tried beside its plan; return the best of it, or None where nothing helps.

    To help is to better the plan before by HELPS standard errors.
    """
    goal, base = search.session.objective, trace.plan
    effects = search.readings.effects(base)
    proposed = {
        search.without(base, pool.ordered[:count], effects): (pool, count)
        for pool, count in proposals(pools(left(effects.directions, base), dynamic=search.config.dynamic))
    }
    rules = Rules(z=math.inf) if search.config.exhaustive else HALVING
    raced = race([base, *proposed], examples, search.judge, goal, rules)
    judged = search.judge([base, raced.winner], examples, "choose")
    tried = {
        plan: SearchStep(
            number, pool.name, count, pool.predicted(count), plan, raced.outcomes[plan], judged[base]
        )
        for plan, (pool, count) in proposed.items()
    }
    trace.steps.extend(tried.values())
    helps = paired_z(goal.metric.contributions(judged[raced.winner], judged[base])) >= HELPS
    return tried[raced.winner] if helps else None


def _removal(search: _Search) -> SearchTrace:
    """Remove step by step more directions, as far as the goal allows."""
    config, empty = search.config, search.session.empty
    goal = goal_of(search.session, config.max_loss, target=config.target)
    total = len(search.readings.effects(empty).directions)
    points, removed = [RemovalPoint(empty, {"directions": 0.0})], []
    for share in steps(config.step, config.target):
        base = points[-1].plan
        effects = search.readings.effects(base if config.rescore else empty)
        ordered = sorted(left(effects.directions, base), key=search.order)
        pool = Pool("all", tuple(ordered[: round(share * total) - (total - len(ordered))]))
        if pool.ordered:
            points.append(RemovalPoint(search.without(base, pool.ordered, effects), {"directions": share}))
            removed.append(pool)
    judged = search.judge([point.plan for point in points], search.select, "prune")
    trace = SearchTrace(empty)
    for number, pool in enumerate(removed):
        before, plan, count = points[number].plan, points[number + 1].plan, len(pool.ordered)
        trace.steps.append(
            SearchStep(number, "all", count, pool.predicted(count), plan, judged[plan], judged[before])
        )
    for step in trace.steps[: goal.choose(points, judged, [1.0] * len(points))]:
        trace.take(step)
    return trace


def _threshold(search: _Search) -> SearchTrace:
    """Remove as many as the prediction allows: their changes do not add up to a loss."""
    (pool,) = pools(search.readings.effects(search.session.empty).directions, search.order, dynamic=False)
    return search.single_plan("all", pool.ordered[: pool.harmless])


def _paper(search: _Search) -> SearchTrace:
    """Remove a share of each matrix's directions, or of all."""
    config, directions = search.config, search.readings.effects(search.session.empty).directions
    share = SHARE if config.target is None else config.target
    return search.single_plan("share", fixed_share(directions, share, search.order, overall=config.overall))


_PROTOCOLS: Mapping[str, Callable[[_Search], SearchTrace]] = {
    "search": _rounds,
    "removal": _removal,
    "threshold": _threshold,
    "paper": _paper,
}


# ------------------------------------------------------------------------------------------------ what the report shows


def _record(search: _Search, trace: SearchTrace) -> DirectionsRecord:
    """Return the record of the search; effects are those of the whole model."""
    session, config, metric = search.session, search.config, search.session.objective.metric
    whole = search.readings.effects(session.empty)
    effects = whole.effects
    edits = {edit.matrix: edit for edit in trace.plan.removed}
    bounded = config.chosen_protocol == "removal"
    return DirectionsRecord(
        protocol=config.chosen_protocol,
        order="weakest" if search.weakest_first else "signed",
        split=effects.split,
        n=effects.n,
        num_tokens=effects.num_tokens,
        per_head=config.per_head,
        second_order=config.second_order,
        whitened=effects.whitened,
        metric=metric.name,
        metric_unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        max_loss=goal_of(session, config.max_loss, target=config.target).max_loss if bounded else None,
        total=len(whole.directions),
        matrices=[matrix_record(piece, edits.get(piece.site)) for piece in effects.matrices],
        path=[step.record(metric) for step in trace.steps],
        chosen=[step.record(metric) for step in trace.chosen],
        words=_words(whole.directions, trace.plan, search.readings),
    )


def matrix_record(piece: MatrixEffects, edit: RemoveDirections | None) -> MatrixDirections:
    """Return the record of one matrix or head; directions count from its own largest singular value."""
    count = len(piece.effect)
    offset = (piece.head or 0) * count
    gone = () if edit is None else (number - offset for number in edit.directions)
    removed = sorted(number for number in gone if 0 <= number < count)
    even = np.linspace(0, count - 1, min(count, SHOWN)).round().astype(int).tolist()
    strongest = np.argsort(-np.abs(piece.predicted), kind="stable")[:STRONGEST].tolist()
    shown = sorted({*even, *strongest, *removed})
    return MatrixDirections(
        site=str(piece.site),
        matrix=piece.site.label,
        block=piece.site.block,
        head=piece.head,
        of=count,
        harmful=int((piece.predicted < 0).sum()),
        harm=float(np.abs(piece.predicted.clip(max=0)).sum()),
        index=shown,
        sigma=piece.sigma[shown].tolist(),
        effect=piece.predicted[shown].tolist(),
        removed=removed,
    )


def _words(directions: Sequence[Direction], plan: Plan, readings: DirectionReadings) -> list[DirectionWords]:
    """Return what the removed directions write, the most harmful first."""
    gone = {(edit.matrix, number) for edit in plan.removed for number in edit.directions}
    removed = [direction for direction in directions if (direction.matrix, direction.index) in gone]
    worst = sorted(removed, key=lambda direction: direction.change)[:WORDED]
    records = []
    for edit in plan.removed:
        of_matrix = [direction for direction in worst if direction.matrix == edit.matrix]
        words = readings.words(edit, [direction.index for direction in of_matrix])
        for direction, said in zip(of_matrix, words, strict=bool(words)):
            records.append(
                DirectionWords(
                    site=str(edit.matrix),
                    direction=direction.index,
                    effect=direction.change,
                    more=list(said.more),
                    less=list(said.less),
                )
            )
    return sorted(records, key=lambda record: record.effect)
