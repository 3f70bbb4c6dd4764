"""Directions: singular directions that hurt are removed, their mean effect stays as a bias.

Effects are read on `probe` by one backward pass, the directions and their number are chosen on `select` by true
evaluations, because the first order misjudges what goes together. Four protocols: `search` (what helps most),
`removal` (as many as the task allows), `threshold` (as many as the prediction allows; no evaluation) and `paper` (a
share of each matrix).
Source: eigenpruning (Vergara-Browne et al. 2024, arXiv 2404.03147); all but the last protocol are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from secateur import records
from secateur.core.plan import Plan
from secateur.core.stats import paired_z
from secateur.errors import SecateurError
from secateur.methods.directions.effects import Effects, Reading
from secateur.methods.directions.pools import (
    Direction,
    Order,
    Pool,
    counts,
    fixed_share,
    left,
    pools,
    removal,
    signed,
    weakest,
)
from secateur.methods.directions.search_trace import SearchStep, SearchTrace, trail_record
from secateur.methods.method import CountingJudge, Proposal, taken
from secateur.methods.removal import goal_of
from secateur.options import matrices_of
from secateur.search.race import choose, race
from secateur.search.removal import Goal, RemovalPoint, steps
from secateur.session import Session

RACE_Z = 3.0
HELPS = 1.0  # standard errors by which a round must better the last
ROUNDS = 8
SHARE = 0.1  # of each matrix, for the paper's protocol


def check(session: Session) -> None:
    """Raises `UnknownName` for matrices and layers that there are none of, `SecateurError` where zeros cannot stand for
    directions."""
    matrices_of(session.loaded.anatomy, session.options)
    if session.options.zeroed:
        _check_zeroed(session)


def _check_zeroed(session: Session) -> None:
    """Raises `SecateurError` where a mean effect could not be folded into the original's shapes."""
    matrices = session.loaded.anatomy.matrices
    for site in matrices_of(session.loaded.anatomy, session.options):
        if matrices[site].bias is None:
            raise SecateurError(
                f"--zeroed keeps the original's shapes, and {site} has no bias that its directions could be folded "
                "into. Leave it out of --matrices, or leave out --zeroed."
            )


def weakest_first(session: Session) -> bool:
    """What was asked for; else only where the aim is that as many as can go, go."""
    asked = session.options.config.weakest
    return session.options.config.chosen_protocol == "removal" if asked is None else asked


def search(session: Session) -> Proposal:
    """The plan that the protocol finds. `test` is not touched."""
    evaluator = session.judge()
    at = _At(
        session,
        CountingJudge(evaluator),
        Effects(session, evaluator, matrices_of(session.loaded.anatomy, session.options)),
    )
    protocol = session.options.config.chosen_protocol
    with session.timed("choose"):
        trail = _WALKS[protocol](at)
    with session.timed("analyze"):
        base = at.judge([session.empty], at.select, "choose")[session.empty]
        order = "weakest" if weakest_first(session) else "signed"
        reading = at.effects.read(session.empty)
        max_loss = _goal(session).max_loss if protocol == "removal" else None
        analysis = trail_record(session, protocol, order, max_loss, reading, trail, evaluator.spectra)
    search = {
        "method": "directions",
        "protocol": protocol,
        "exhaustive": session.options.config.exhaustive,
        "proposed": at.judge.tried,
        "rounds": len(trail.chosen),
    }
    found = {"base": records.base_record(base), "directions": analysis}
    best = trail.plan
    if trail.choice is not None:
        search["choice"] = trail.choice.record().to_json()
        best = trail.choice.best if trail.choice.better and not trail.choice.shown else trail.plan
    return Proposal(trail.plan, at.judge.tried, at.judge.evaluations, search, found, max_loss, best)


def _goal(session: Session) -> Goal:
    config = session.options.config
    return goal_of(session, config.max_loss, target=config.target)


@dataclass(frozen=True)
class _At:
    """What a walk from the whole model to a plan needs."""

    session: Session
    judge: CountingJudge
    effects: Effects

    @cached_property
    def select(self) -> list[int]:
        return self.session.shuffled("select")

    @property
    def order(self) -> Order:
        return weakest if weakest_first(self.session) else signed

    def without(self, base: Plan, more: Sequence[Direction], reading: Reading) -> Plan:
        return removal(base, more, reading.folds, per_head=self.session.options.config.per_head)

    def once(self, name: str, directions: Sequence[Direction]) -> SearchTrace:
        """One plan without a choice, which is judged for the record."""
        empty, pool = self.session.empty, Pool(name, tuple(directions))
        plan = self.without(empty, directions, self.effects.read(empty)) if directions else empty
        seen = self.judge([empty, plan], self.select, "choose")
        step = SearchStep(
            0, pool.name, len(directions), pool.predicted(len(directions)), plan, seen[plan], seen[empty]
        )
        return SearchTrace(plan, [step] if directions else [], [step] if directions else [])


def _search(at: _At) -> SearchTrace:
    """Round after round what helps most on one half of `select`; then as many of the rounds as do best on the other,
    where that shows that they help. A plan that was built by looking at examples has to prove itself on others."""
    trail = SearchTrace(at.session.empty)
    build, confirm = at.session.halves()
    for number in range(ROUNDS if at.session.options.config.rescore else 1):
        step = _round(at, trail, number, build)
        if step is None:
            break
        trail.took(step)
    return _confirmed(at, trail, confirm) if trail.chosen else trail


def _round(at: _At, trail: SearchTrace, number: int, examples: Sequence[int]) -> SearchStep | None:
    """Add to the trail what was tried beside its plan; the best of it, or None where nothing helps by its standard
    error."""
    options, goal, base = at.session.options, at.session.objective, trail.plan
    reading = at.effects.read(base)
    proposed = {
        at.without(base, pool.ordered[:count], reading): (pool, count)
        for pool in pools(left(reading.directions, base), dynamic=options.config.dynamic)
        for count in counts(pool)
    }
    z = math.inf if options.config.exhaustive else RACE_Z
    raced = race([base, *proposed], examples, at.judge, goal, z=z)
    judged = at.judge([base, raced.winner], examples, "choose")
    steps = {
        plan: SearchStep(
            number, pool.name, count, pool.predicted(count), plan, raced.outcomes[plan], judged[base]
        )
        for plan, (pool, count) in proposed.items()
    }
    trail.steps.extend(steps.values())
    helps = paired_z(goal.metric.contributions(judged[raced.winner], judged[base])) >= HELPS
    return steps[raced.winner] if helps else None


def _confirmed(at: _At, trail: SearchTrace, examples: Sequence[int]) -> SearchTrace:
    """The same trail up to the round that does best on examples that no round has seen, or none of it."""
    session, goal, empty = at.session, at.session.objective, at.session.empty
    plans = [step.plan for step in trail.chosen]
    judged = at.judge([empty, *plans], examples, "choose")
    before = judged.pop(empty)
    choice = choose(judged, before, session.evidence(examples), goal)
    plan = taken(session, choice)
    rounds = plans.index(plan) + 1 if plan.edits else 0
    return SearchTrace(plan, trail.steps, trail.chosen[:rounds], choice)


def _removal(at: _At) -> SearchTrace:
    """Step by step more directions, as far as the goal allows."""
    options, goal, empty = at.session.options, _goal(at.session), at.session.empty
    total = len(at.effects.read(empty).directions)
    points, walked = [RemovalPoint(empty, {"directions": 0.0})], []
    for share in steps(options.config.step, options.config.target):
        base = points[-1].plan
        reading = at.effects.read(base if options.config.rescore else empty)
        still = sorted(left(reading.directions, base), key=at.order)
        pool = Pool("all", tuple(still[: round(share * total) - (total - len(still))]))
        if pool.ordered:
            plan = at.without(base, pool.ordered, reading)
            points.append(RemovalPoint(plan, {"directions": share}))
            walked.append((pool, plan))
    seen = at.judge([point.plan for point in points], at.select, "prune")
    trail = SearchTrace(empty)
    for number, (pool, plan) in enumerate(walked):
        count, before = len(pool.ordered), seen[points[number].plan]
        trail.steps.append(SearchStep(number, "all", count, pool.predicted(count), plan, seen[plan], before))
    for step in trail.steps[: goal.choose(points, seen, [1.0] * len(points))]:
        trail.took(step)
    return trail


def _threshold(at: _At) -> SearchTrace:
    """As many as the prediction allows: their changes do not add up to a loss."""
    (pool,) = pools(at.effects.read(at.session.empty).directions, at.order, dynamic=False)
    return at.once("all", pool.ordered[: pool.harmless])


def _paper(at: _At) -> SearchTrace:
    """A share of each matrix's directions, or of all."""
    options, reading = at.session.options, at.effects.read(at.session.empty)
    share = SHARE if options.config.target is None else options.config.target
    return at.once("share", fixed_share(reading.directions, share, at.order, overall=options.config.overall))


_WALKS: Mapping[str, Callable[[_At], SearchTrace]] = {
    "search": _search,
    "removal": _removal,
    "threshold": _threshold,
    "paper": _paper,
}
