"""Depth: whole blocks go, one after another; a linear map replaces them, or is folded into the network before them.

What goes next is chosen on `probe`, by the measured loss, by linearity or by cosine similarity, and maps are fitted
there; how far to go is chosen on `select`. Beside the form that is asked for, a plain drop is measured at every depth;
for a full report all forms with their side tasks, and the orders in which cheaper measures would have taken blocks.
`test` is not touched.
Sources: Razzhigaev et al. 2024 (arXiv 2405.12250); ReplaceMe (arXiv 2505.02819).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from secateur.core.comparison import compare
from secateur.core.noninferiority import MARGIN
from secateur.core.plan import Plan
from secateur.core.records.verdict import IntervalRecord
from secateur.errors import PlanError, SecateurError
from secateur.methods.depth.method import DepthConfig
from secateur.methods.depth.readings import DepthReader
from secateur.methods.depth.records import (
    BlockStep,
    DepthAnalysis,
    DepthPointRecord,
    DepthRecord,
    DepthSearchRecord,
    FormCurve,
    OtherOrderPoint,
    OtherOrderRecord,
    run_name,
)
from secateur.methods.depth.steps import DepthPoint, DepthReadings, DepthSteps, blocks_that_can_go
from secateur.methods.method import CountingJudge, Proposal
from secateur.methods.removal import goal_of, kept_share
from secateur.options import layers_of
from secateur.records import base_record
from secateur.search.race import Judge
from secateur.session import Session

LOG = logging.getLogger("secateur")
CHEAP = ("linearity", "cosine")  # measures that need no plan judged for every block that is left
FEW = 20
"""Tokens for each dimension of the stream; with fewer, a warning. Origin (docs/methods.md): from 10 to 20 on, maps give
back about as much as ever in domain, but on other text only later."""
NEEDS = {  # what stops a block from going
    "drop": "one block of a model stays",
    "fold": "one block stays, and the block before those that go needs a feed-forward network stored as whole matrices",
    "linear": "one block stays, and where a map would lie there may be none of an earlier cut",
}

Outcomes = Mapping[Plan, np.ndarray]  # on `select` in the order of the race
Curves = Mapping[str, Sequence[DepthPoint]]  # by form, or by measure


def check(session: Session) -> None:
    """Raise `UnknownName` for layers, `PlanError` for what cannot be folded, `SecateurError` for sizes."""
    config, anatomy = session.config(DepthConfig), session.loaded.anatomy
    form, number = config.form, config.blocks
    if anatomy.num_encoder and form != "drop":
        raise PlanError(
            f"--form {form}: blocks of an encoder-decoder ({anatomy.architecture}) are not replaced by linear maps. "
            "Take --form drop."
        )
    if anatomy.num_encoder and config.by != "loss":
        raise PlanError(
            f"--by {config.by} is not read of an encoder-decoder ({anatomy.architecture}). Take --by loss."
        )
    if form == "fold" and not anatomy.foldable:
        raise PlanError(
            f"--form fold: {anatomy.architecture} has a norm after its feed-forward networks, so no linear map can be "
            "folded into them. Take --form linear, or drop."
        )
    if config.rank is not None and config.rank > anatomy.d_model:
        raise SecateurError(f"--rank {config.rank}: from 1 to {anatomy.d_model}, the width of this model.")
    blocks = layers_of(anatomy, session.options)
    can = len(blocks_that_can_go(anatomy, session.options, form))
    if not can:
        raise PlanError(f"--form {form}: no block of {blocks.start}:{blocks.stop} can go ({NEEDS[form]}).")
    if number is not None and number > can:
        raise SecateurError(
            f"--blocks {number}: from 1 to {can} of the {len(blocks)} blocks may go ({NEEDS[form]})."
        )


def search(session: Session) -> Proposal:
    """Return the plan, and every form at every depth for the report."""
    evaluator = session.judge()
    return run(session, evaluator, DepthReader(session, evaluator.packing))


def run(session: Session, judge: Judge, readings: DepthReadings) -> Proposal:
    """Return what `search` does, without touching a model.

    Args:
        session: Its options, task and anatomy.
        judge: Gives the outcomes of plans.
        readings: Reads and fits.
    """
    config, counting, select = session.config(DepthConfig), CountingJudge(judge), session.shuffled("select")
    goal, steps = goal_of(session, config.max_loss), DepthSteps(session, counting, readings)
    _warn_of_few_tokens(session)
    with session.timed("choose"):
        order = steps.order(config.by)
    blocks = [step.block for step in order]
    if config.blocks is not None and len(blocks) < config.blocks:
        LOG.warning("only %d of %d blocks could go in one run.", len(blocks), config.blocks)
    with session.timed("analyze"):
        curves = {form: steps.points(blocks, form) for form in steps.forms}
        plans = dict.fromkeys(point.plan for points in curves.values() for point in points)
        outcomes = dict(counting(list(plans), select, "depth"))
    points = curves[config.form]
    chosen = len(points) - 1
    if config.blocks is None or config.max_loss is not None:
        chosen = goal.choose(points, outcomes, [kept_share(session, point.plan) for point in points])
    _warn_of_dropped(points[chosen], config.form)
    with session.timed("analyze"):
        full = session.options.full_report
        cheap = full and not session.loaded.anatomy.num_encoder  # of which they are not read
        others = other_orders(steps, max(1, chosen)) if cheap else {}
        outcomes |= counting([point.plan for other in others.values() for point in other], select, "depth")
        depth = depth_record(session, readings, curves, others, outcomes, order, chosen, goal.max_loss)
    found = DepthSearchRecord(
        method="depth",
        by=config.by,
        form=config.form,
        proposed=counting.tried,
        order=blocks,
        fell_back=list(points[chosen].fell_back),
    )
    analysis = DepthAnalysis(base=base_record(outcomes[session.empty]), depth=depth)
    margin = MARGIN if config.max_loss is None else config.max_loss
    return Proposal(points[chosen].plan, counting.tried, counting.evaluations, found, analysis, margin)


def other_orders(steps: DepthSteps, most: int) -> dict[str, list[DepthPoint]]:
    """Return how the form asked for does where blocks go by each cheap measure that was not asked for.

    Args:
        most: How many blocks go.
    """
    others = {}
    for by in CHEAP:
        if by != steps.config.by:
            blocks = [step.block for step in steps.order(by, most)]
            others[by] = steps.points(blocks, steps.config.form)
    return others


def fit_tokens(session: Session) -> int:
    """Return how many tokens of `probe` maps are fitted to, and linearity is read on."""
    encoded = session.encoded
    return sum(len(encoded[example].gold_alone.read(0)) for example in session.task.split("probe"))


def _warn_of_few_tokens(session: Session) -> None:
    """Warn where maps or linearity scores that are asked for have few tokens to be fitted to."""
    config, d_model, tokens = session.config(DepthConfig), session.loaded.anatomy.d_model, fit_tokens(session)
    if tokens < FEW * d_model and (config.form != "drop" or config.by == "linearity"):
        LOG.warning(
            "maps and linearity scores are fitted to %s tokens of probe, %.1f for each of the %d dimensions, where %d "
            "(%s tokens) are wanted: %s. Give more text (text:FILE) or longer chunks, or take --form drop, which fits "
            "nothing.",
            f"{tokens:,}",
            tokens / d_model,
            d_model,
            FEW,
            f"{FEW * d_model:,}",
            "on other text a map may ruin the model" if tokens < d_model else "they hold less on other text",
        )


def _warn_of_dropped(point: DepthPoint, form: str) -> None:
    """Warn of the runs that are dropped although a map was asked for."""
    for run_ in point.fell_back:
        LOG.warning(
            "%s: dropped, because the %s fitted on the calibration split does no better on the validation split "
            "(%.4f nats/token against %.4f).",
            run_name(run_.blocks),
            "folded map" if form == "fold" else "linear map",
            run_.fitted,
            run_.dropped,
        )


# ----------------------------------------------------------------------------------------------------------- the record


def depth_record(
    session: Session,
    readings: DepthReadings,
    curves: Curves,
    others: Curves,
    outcomes: Outcomes,
    order: Sequence[BlockStep],
    chosen: int,
    max_loss: float | None,
) -> DepthRecord:
    """Return `depth` of analysis.json.

    Args:
        curves: Points of every form, the one asked for first.
        others: Points of the form asked for, by the measures that were not asked for.
        outcomes: Of all plans of those.
        chosen: Index of the depth that was taken.
    """
    config, metric = session.config(DepthConfig), session.objective.metric
    plans = list(dict.fromkeys(point.plan for points in curves.values() for point in points))
    full = session.options.full_report
    sides, units = readings.side_values(plans) if full else ({plan: {} for plan in plans}, {})
    prompt, samples = readings.samples(plans)
    return DepthRecord(
        by=config.by,
        form=config.form,
        contiguous=config.contiguous,
        rank=config.rank,
        blocks=config.blocks,
        max_loss=max_loss,
        metric=metric.name,
        metric_unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        num_blocks=session.loaded.anatomy.num_blocks,
        encoder_blocks=session.loaded.anatomy.num_encoder,
        d_model=session.loaded.anatomy.d_model,
        fit_tokens=fit_tokens(session),
        side_units=units,
        prompt=prompt,
        order=list(order),
        other_orders=[_other_order(session, by, points, outcomes) for by, points in others.items()],
        series=form_curves(session, curves, outcomes, sides, samples),
        chosen=chosen,
    )


def form_curves(
    session: Session,
    curves: Curves,
    outcomes: Outcomes,
    sides: Mapping[Plan, dict[str, float]],
    samples: Mapping[Plan, str],
) -> list[FormCurve]:
    """Return every form at every depth: quality, side tasks, and a piece of text, because a good loss can hide garbage.

    Args:
        sides: Metrics of the side tasks under each plan.
        samples: Text under each plan.
    """
    metric = session.objective.metric
    return [
        FormCurve(
            form=form,
            points=[
                DepthPointRecord(
                    blocks_removed=len(point.plan.blocks_gone),
                    parameters=kept_share(session, point.plan),
                    value=metric.mean(outcomes[point.plan]),
                    loss=base_record(outcomes[point.plan]).loss,
                    over_drop=_over_drop(session, form, number, curves, outcomes),
                    sides=sides[point.plan],
                    sample=samples[point.plan],
                    fell_back=list(point.fell_back),
                )
                for number, point in enumerate(points)
            ],
        )
        for form, points in curves.items()
    ]


def _over_drop(
    session: Session, form: str, number: int, curves: Curves, outcomes: Outcomes
) -> IntervalRecord | None:
    """Return the metric of a form minus that of a drop of the same blocks, paired; None where nothing is compared."""
    metric = session.objective.metric
    if form == "drop" or number == 0 or "drop" not in curves:
        return None
    dropped, kept = (outcomes[curves[name][number].plan] for name in ("drop", form))
    if not all(np.isfinite(metric.values(rows)).all() for rows in (dropped, kept)):
        return None
    groups = session.task.groups(session.shuffled("select"))
    comparison = compare(metric, dropped, kept, groups, seed=session.options.seed)
    ci = comparison.difference_ci
    return IntervalRecord(value=comparison.difference, ci=None if ci is None else list(ci))


def _other_order(
    session: Session, by: str, points: Sequence[DepthPoint], outcomes: Outcomes
) -> OtherOrderRecord:
    """Return the blocks that go by another measure, and the form asked for at every depth."""
    gone = [after.plan.blocks_gone - before.plan.blocks_gone for before, after in pairwise(points)]
    return OtherOrderRecord(
        by=by,
        blocks=[block for step in gone for block in sorted(session.loaded.anatomy.numbers(step))],
        points=[
            OtherOrderPoint(
                blocks_removed=len(point.plan.blocks_gone),
                value=session.objective.metric.mean(outcomes[point.plan]),
                loss=base_record(outcomes[point.plan]).loss,
            )
            for point in points
        ],
    )
