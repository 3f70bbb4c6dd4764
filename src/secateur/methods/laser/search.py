"""LASER: every matrix at every rank screened by gradients, raced on `select`, several composed.

Source: Sharma, Ash, Misra 2023 (arXiv 2312.13558); screening after Sreeram et al. 2025 (arXiv 2510.20800).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from secateur import records
from secateur.core.plan import Plan, Truncate
from secateur.core.readings import Readings
from secateur.evaluation.evaluator import Evaluator
from secateur.hf.anatomy import Anatomy
from secateur.methods.laser.answers import split_answers
from secateur.methods.laser.grid import compose, grid, promising, screened
from secateur.methods.laser.probe import truncation_effects
from secateur.methods.method import CountingJudge, Proposal, taken
from secateur.options import Options, matrices_of
from secateur.search.race import Race, choose, race
from secateur.session import Session, digest

KEPT_BY_SCREEN = 1 / 3  # in trials the best edit was within the top 25 % of one of the two rankings
RACE_Z = 3.0
COMPOSED = 16  # matrices at most whose best cut is tried beside the cuts that were taken
MAX_PROBED = 256  # gradients of 100 examples suffice (arXiv 2510.20800)
SHOWN_EXAMPLES = 256


def check(session: Session) -> None:
    """Raises `UnknownName` for matrices or layers the model does not have."""
    candidates(session.loaded.anatomy, session.options)


def candidates(anatomy: Anatomy, options: Options) -> tuple[Truncate, ...]:
    """The grid over the matrices and layers asked for. Raises `UnknownName`."""
    wanted = {site: anatomy.matrices[site].shape for site in matrices_of(anatomy, options)}
    return tuple(grid(wanted, options.config.fractions, options.config.small_ranks))


def search(session: Session) -> Proposal:
    """Screen on `probe`, race and compose on `select`. `test` is not touched."""
    options = session.options
    evaluator, goal = session.judge(), session.objective
    judge = CountingJudge(evaluator)
    everything = candidates(session.loaded.anatomy, options)
    select = session.shuffled("select")
    with session.timed("screen"):
        readings = None if options.config.exhaustive else screen(session, evaluator, everything)
    kept = everything if readings is None else screened(readings, everything, KEPT_BY_SCREEN)
    z = math.inf if options.config.exhaustive else RACE_Z
    base, evidence = session.empty, session.evidence(select)
    with session.timed("race"):
        raced = race([base, *(base + edit for edit in kept)], select, judge, goal, z=z)
        choice = choose(raced.others(base), judge([base], select, "race")[base], evidence, goal)
    plan = taken(session, choice)
    if choice.shown and options.config.compose:
        with session.timed("compose"):
            beside = promising(raced, base, goal, COMPOSED)
            plan = compose(plan, beside, select, judge, goal, evidence, z=z)
    predicted = None if readings is None else readings[-1]
    with session.timed("analyze"):
        analysis = _analyze(session, evaluator, plan, raced)
        if predicted is not None:
            analysis["screen"] = records.screen_records(predicted, everything, full_ranks(session))
    search = {
        "method": "laser",
        "exhaustive": options.config.exhaustive,
        "proposed": len(everything),
        "screened_out": len(everything) + 1 - len(raced.outcomes),
        "raced_out": len(raced.dropped_after),
        "rungs": [list(rung) for rung in raced.rungs],
        "composed": len(plan.edits) > 1,
        "choice": choice.record().to_json(),
    }
    return Proposal(
        plan, judge.tried, judge.evaluations, search, analysis, best=choice.best if choice.better else None
    )


def screen(session: Session, judge: Evaluator, edits: Sequence[Truncate]) -> list[Readings]:
    """Predicted changes of loss to first and to second order, read once per run and remembered in the ledger."""
    probe = session.task.split("probe")[:MAX_PROBED]
    contrast = session.task.kind == "choice" and session.objective.metric.column == "correct"
    key = f"screen {digest([contrast, len(probe), *map(str, edits)])}"
    known = session.ledger.recall(session.scope, key, _screens) if session.ledger else None
    if known is not None:
        return known
    readings = truncation_effects(
        session.loaded,
        session.encoded,
        probe,
        edits,
        spectra=judge.spectra,
        packing=judge.packing,
        contrast=contrast,
        progress=session.progress,
    )
    if session.ledger:
        session.ledger.remember(session.scope, key, [one.to_json() for one in readings])
    return list(readings)


def _screens(kept: Any) -> list[Readings]:
    return [Readings.from_json(one) for one in kept]


def _analyze(session: Session, judge: Evaluator, plan: Plan, raced: Race) -> dict[str, Any]:
    """What the report shows of the search and of the matrices that were cut; all of it on `select`.

    Curves and component answers are for looking at, so they read at most SHOWN_EXAMPLES, those a race read first.
    """
    select = session.shuffled("select")
    whole = full_ranks(session)
    base = judge([session.empty], select)[session.empty]
    shown = plan.truncated or _runner_up(session, raced)
    chosen = {edit.matrix: session.loaded.anatomy.matrix(edit.matrix).shape for edit in shown}
    ranks = [
        session.empty + edit
        for edit in grid(chosen, session.options.config.fractions, session.options.config.small_ranks)
    ]
    some = select[:SHOWN_EXAMPLES]
    curves = judge([session.empty, *ranks], some, "curves")
    base_there = curves.pop(session.empty)
    analysis = {
        "base": records.base_record(base),
        "sweep": records.sweep_records(raced.outcomes, whole, len(select)),
        "curves": records.curve_records(curves, whole, base_there),
        "spectrum": {str(edit.matrix): _spectrum(session, judge, edit) for edit in shown},
    }
    if "text" not in session.task.kinds:
        analysis["tail"] = split_answers(judge, plan, some)
    return analysis


def _runner_up(session: Session, raced: Race) -> tuple[Truncate, ...]:
    """Where nothing was cut, the cut that came nearest is shown."""
    cuts = [plan for plan in raced.outcomes if plan.edits]
    best = max(
        cuts,
        key=lambda plan: (len(raced.outcomes[plan]), session.objective.key(raced.outcomes[plan])),
    )
    return best.truncated


def _spectrum(session: Session, judge: Evaluator, edit: Truncate) -> dict[str, Any]:
    matrix = session.loaded.anatomy.matrix(edit.matrix)
    weight = session.loaded.parameter(matrix.weight)
    return {"values": judge.spectra(matrix, weight).sigma.double().tolist(), "kept": edit.rank}


def full_ranks(session: Session) -> Mapping[Any, int]:
    return {site: min(matrix.shape) for site, matrix in session.loaded.anatomy.matrices.items()}
