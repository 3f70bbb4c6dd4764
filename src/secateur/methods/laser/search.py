"""LASER: a grid of truncations of single matrices, screened by gradients, raced on `select`; the best composed.

Decides only: plans are judged, and the model is read, by what is handed in.
Source: Sharma, Ash, Misra 2023 (arXiv 2312.13558) for grid and composition; screening after Sreeram et al. 2025 (arXiv
2510.20800).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from secateur.core.plan import Plan, Truncate
from secateur.core.readings import Readings
from secateur.core.records.analysis import BaseRecord
from secateur.core.site import Site
from secateur.hf.anatomy import Anatomy
from secateur.methods.laser.method import PAPER_FRACTIONS, SMALL_RANKS, LaserConfig
from secateur.methods.laser.records import (
    CurveRecord,
    LaserAnalysis,
    LaserSearchRecord,
    ScreenedTruncation,
    SpectrumRecord,
    SweptTruncation,
    TailRecord,
    TruncationRecord,
)
from secateur.methods.method import CountingJudge, Proposal, taken
from secateur.options import Options, matrices_of
from secateur.records import base_record
from secateur.search.evidence import Evidence
from secateur.search.race import HALVING, RULES, Judge, Objective, Race, Rules, choose, race
from secateur.session import Session

RACED = 96  # candidates that the screen leaves: see benchmarks/RESULTS.md for what more or fewer give up
COMPOSED = 16  # matrices at most whose best cut is tried beside the cuts that were taken
SHOWN_EXAMPLES = {"quick": 0, "standard": 128, "full": 256}  # of curves and answers, which are looked at
SHOWN_MATRICES = 3  # whose curves are drawn, but for a full report


class LaserReadings(Protocol):
    """Readings of the model that the search asks for, beside the outcomes of plans."""

    def screen(self, edits: Sequence[Truncate]) -> Readings:
        """Return the predicted change of the loss with each edit, nats."""

    def spectrum(self, matrix: Site) -> list[float]:
        """Return the singular values of a matrix, descending."""

    def answers(self, part: Truncate, kind: str, outcomes: np.ndarray) -> TailRecord:
        """Return the answers of the model that keeps only `part` of a matrix; `outcomes` are its OUTCOME rows."""


def candidates(anatomy: Anatomy, options: Options) -> tuple[Truncate, ...]:
    """Return the grid over the matrices and layers that the options name.

    Raises: `UnknownName` for those that the model does not have.
    """
    shapes = {site: anatomy.matrix(site).shape for site in matrices_of(anatomy, options)}
    config = options.config
    assert isinstance(config, LaserConfig)
    return tuple(grid(shapes, config.fractions, config.small_ranks))


def run(session: Session, judge: Judge, readings: LaserReadings) -> Proposal:
    """Return the plan that is proposed: screened on `probe`, raced and composed on `select`.

    Args:
        session: What is searched. Its weights are not touched, and neither is `test`.
        judge: Outcomes of plans.
        readings: Readings of the model.
    """
    config, goal = session.config(LaserConfig), session.objective
    counting = CountingJudge(judge)
    proposed = candidates(session.loaded.anatomy, session.options)
    select = session.shuffled("select")
    with session.timed("screen"):
        screen = None if config.exhaustive else readings.screen(proposed)
    kept = screened(screen, proposed, RACED) if screen else proposed
    base, evidence = session.empty, session.evidence(select)
    rules = Rules(z=math.inf) if config.exhaustive else HALVING
    with session.timed("race"):
        raced = race([base, *(base + edit for edit in kept)], select, counting, goal, rules)
        choice = choose(raced.others(base), counting([base], select, "race")[base], evidence, goal)
    plan = taken(session, choice)
    if choice.shown and config.compose:
        with session.timed("compose"):
            beside = promising(raced, base, goal, COMPOSED)
            plan = compose(plan, beside, select, counting, goal, evidence, rules)
    with session.timed("analyze"):
        analysis = _analysis(session, judge, readings, plan, raced)
        if screen:
            predictions = screen_records(screen, proposed, full_ranks(session))
            analysis = analysis.model_copy(update={"screen": predictions})
    search = LaserSearchRecord(
        method="laser",
        exhaustive=config.exhaustive,
        proposed=len(proposed),
        screened_out=len(proposed) + 1 - len(raced.outcomes),
        raced_out=len(raced.dropped_after.keys() - {base}),
        rungs=raced.rungs,
        composed=len(plan.edits) > 1,
        choice=choice.record(),
    )
    best = choice.best if choice.better else None
    return Proposal(plan, counting.tried, counting.evaluations, search, analysis, best=best)


# ---------------------------------------------------------------------------------------------------- candidates


def grid_ranks(
    full_rank: int, fractions: Iterable[float] = PAPER_FRACTIONS, small: Iterable[int] = SMALL_RANKS
) -> list[int]:
    """Return the ranks to try, ascending: ⌊ρ · full⌋ for each fraction and the small ones, below the full rank."""
    wanted = {math.floor(fraction * full_rank) for fraction in fractions} | set(small)
    return sorted(rank for rank in wanted if 0 <= rank < full_rank)


def grid(
    shapes: Mapping[Site, tuple[int, int]],
    fractions: Iterable[float] = PAPER_FRACTIONS,
    small: Iterable[int] = SMALL_RANKS,
) -> list[Truncate]:
    """Return every truncation of every matrix, lowest block first."""
    fractions, small = tuple(fractions), tuple(small)
    return [
        Truncate(site, rank)
        for site in sorted(shapes)
        for rank in grid_ranks(min(shapes[site]), fractions, small)
    ]


def screened(readings: Readings, edits: Sequence[Truncate], most: int) -> list[Truncate]:
    """Return the edits that are predicted best, at most so many, in their order."""
    kept = {name for name, _ in readings.ranked()[:most]}
    return [edit for edit in edits if str(edit) in kept]


def compose(
    base: Plan,
    edits: Sequence[Truncate],
    examples: Sequence[int],
    judge: Judge,
    objective: Objective,
    evidence: Evidence,
    rules: Rules = RULES,
    *,
    stage: str = "compose",
) -> Plan:
    """Return `base` with edits added greedily: each time the one that helps most, as long as one is shown to help.

    Source: section 4 of the paper. Differs: the paper goes through all matrices once, from the last block to the first,
    and takes the first rank that helps at all, so that some ten noisy gains nearly always pile up: on CounterFact
    twelve cuts that gained nothing on test.
    """
    plan = base
    while True:
        cut = {edit.site for edit in plan.edits}
        beside = [plan + edit for edit in edits if edit.site not in cut]
        if not beside:
            return plan
        raced = race([plan, *beside], examples, judge, objective, rules, stage=stage)
        before = judge([plan], examples, stage)[plan]
        choice = choose(raced.others(plan), before, evidence, objective)
        if not choice.shown:
            return plan
        plan = choice.best


def promising(raced: Race, base: Plan, objective: Objective, most: int) -> list[Truncate]:
    """Return the edit of each matrix that came furthest in the race and did best there.

    None that did worse than `base` on the same examples; at most `most`, the best first.
    """

    def success(edit: Truncate) -> tuple[int, tuple[float, float]]:
        rows = raced.outcomes[base + edit]
        return len(rows), objective.key(rows)

    best: dict[Site, Truncate] = {}
    for plan, rows in raced.outcomes.items():
        before = raced.outcomes[base][: len(rows)]
        if objective.key(rows[: len(before)]) >= objective.key(before):
            for edit in plan.truncated:
                best[edit.matrix] = max(edit, best.get(edit.matrix, edit), key=success)
    return sorted(best.values(), key=success, reverse=True)[:most]


# ------------------------------------------------------------------------------------------------ what the report shows


def _analysis(
    session: Session, judge: Judge, readings: LaserReadings, plan: Plan, raced: Race
) -> LaserAnalysis:
    """Return what the report shows of the search and of the matrices that were cut, all of it on `select`.

    Curves and component answers are for looking at, so they read few examples, those a race read first. Where nothing
    was cut, the cut that came nearest is shown.
    """
    config, goal = session.config(LaserConfig), session.objective
    select, base, full = session.shuffled("select"), session.empty, full_ranks(session)
    before = judge([base], select, "judge")[base]
    shown = plan.truncated
    if not shown:
        cuts = [cut for cut in raced.outcomes if cut.edits]
        nearest = max(cuts, key=lambda cut: (len(raced.outcomes[cut]), goal.key(raced.outcomes[cut])))
        shown = nearest.truncated
    report = session.options.report
    shown = shown if session.options.full_report else shown[:SHOWN_MATRICES]
    shapes = {edit.matrix: session.loaded.anatomy.matrix(edit.matrix).shape for edit in shown}
    points = [base + edit for edit in grid(shapes, config.fractions, config.small_ranks)]
    some = select[: SHOWN_EXAMPLES[report]]
    analysis = LaserAnalysis(
        base=base_record(before),
        sweep=sweep_records(raced.outcomes, full, len(select)),
        curves=curve_records(judge([base, *points], some, "curves"), full) if some else [],
        spectrum={
            str(edit.matrix): SpectrumRecord(values=readings.spectrum(edit.matrix), kept=edit.rank)
            for edit in shown
        },
    )
    if "text" in session.task.kinds or not session.task.answers or not some:
        return analysis
    return analysis.model_copy(
        update={
            "tail": tail_records(
                session, judge, readings, [edit for edit in shown if edit in plan.edits], some
            )
        }
    )


def full_ranks(session: Session) -> dict[Site, int]:
    """Return the number of components of each matrix."""
    return {site: min(matrix.shape) for site, matrix in session.loaded.anatomy.every_matrix.items()}


def _truncation_record(edit: Truncate, full_rank: int) -> TruncationRecord:
    site, kept = edit.matrix, edit.rank / full_rank
    return TruncationRecord(
        site=str(site), matrix=site.label, block=site.block, rank=edit.rank, full_rank=full_rank, kept=kept
    )


def sweep_records(
    outcomes: Mapping[Plan, np.ndarray], full_ranks: Mapping[Site, int], num_examples: int
) -> list[SweptTruncation]:
    """Return a record of every truncation that raced, by block, matrix and rank.

    Args:
        outcomes: OUTCOME rows of plans with one edit, fewer than `num_examples` of those that left the race early.
    """
    records = []
    for plan, rows in outcomes.items():
        for edit in plan.truncated:
            truncation = _truncation_record(edit, full_ranks[edit.matrix]).model_dump()
            complete = len(rows) == num_examples
            records.append(SweptTruncation(**truncation, **base_record(rows).model_dump(), complete=complete))
    return sorted(records, key=lambda record: (record.block, record.matrix, record.rank))


def screen_records(
    readings: Readings, edits: Sequence[Truncate], full_ranks: Mapping[Site, int]
) -> list[ScreenedTruncation]:
    """Return the predicted change of the loss with every candidate, nats."""
    truncations = ((edit, _truncation_record(edit, full_ranks[edit.matrix])) for edit in edits)
    return [
        ScreenedTruncation(**truncation.model_dump(), score=readings.values[str(edit)])
        for edit, truncation in truncations
    ]


def curve_records(judged: Mapping[Plan, np.ndarray], full_ranks: Mapping[Site, int]) -> list[CurveRecord]:
    """Return one curve for each matrix: loss and accuracy against the share of components removed (LASER, Fig. 2).

    Args:
        judged: OUTCOME rows of the original, which is the first point of each curve, and of plans with one edit.
    """
    points: dict[Site, list[tuple[float, BaseRecord]]] = {}
    original = base_record(next(rows for plan, rows in judged.items() if not plan.edits))
    for plan, outcomes in judged.items():
        for edit in plan.truncated:
            removed = 100 * (1 - edit.rank / full_ranks[edit.matrix])
            points.setdefault(edit.matrix, [(0.0, original)]).append((removed, base_record(outcomes)))
    curves = []
    for site, curve in sorted(points.items()):
        curve.sort(key=lambda point: point[0])
        curves.append(
            CurveRecord(
                site=str(site),
                matrix=site.label,
                block=site.block,
                removed=[removed for removed, _ in curve],
                loss=[score.loss for _, score in curve],
                accuracy=[score.accuracy for _, score in curve],
            )
        )
    return curves


def tail_records(
    session: Session,
    judge: Judge,
    readings: LaserReadings,
    cuts: Sequence[Truncate],
    examples: Sequence[int],
) -> list[TailRecord]:
    """Return for each truncated matrix the answers of all of it, of the components kept, of those removed (Fig. 5)."""
    records = []
    for edit in cuts:
        full_rank = full_ranks(session)[edit.matrix]
        rest = Truncate(edit.matrix, full_rank - edit.rank, "tail" if edit.side == "top" else "top")
        for part, kind in ((Truncate(edit.matrix, full_rank), "full"), (edit, edit.side), (rest, rest.side)):
            alone = session.empty + part
            outcomes = judge([alone], examples, "component answers")[alone]
            records.append(readings.answers(part, kind, outcomes))
    return records
