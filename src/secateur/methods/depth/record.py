"""What was seen of depth pruning, as a record: every form at every depth, and what other orders would have cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from secateur import records
from secateur.core.comparison import compare
from secateur.core.plan import Plan
from secateur.evaluation.sample import plain, prompts, sample
from secateur.methods.depth.runs import DepthPoint
from secateur.methods.removal import kept_share, side_values
from secateur.session import Session

SAMPLE = 24  # tokens of greedy text at each depth

Outcomes = Mapping[Plan, np.ndarray]  # on `select` in the order of the race
Curves = Mapping[str, Sequence[DepthPoint]]


def depth_record(
    session: Session,
    curves: Curves,
    others: Curves,
    outcomes: Outcomes,
    order: Sequence[dict[str, Any]],
    max_loss: float | None,
) -> dict[str, Any]:
    """`depth` of analysis.json, but for what was chosen. `curves` are by form, `others` by measure."""
    options, metric = session.options, session.objective.metric
    return {
        "by": options.config.by,
        "form": options.config.form,
        "contiguous": options.config.contiguous,
        "rank": options.config.rank,
        "blocks": options.config.blocks,
        "max_loss": max_loss,
        "metric": metric.name,
        "metric_unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "num_blocks": session.loaded.anatomy.num_blocks,
        "order": list(order),
        "other_orders": [_other(session, by, points, outcomes) for by, points in others.items()],
    } | _series(session, curves, outcomes)


def _series(session: Session, curves: Curves, outcomes: Outcomes) -> dict[str, Any]:
    """Every form at every depth: the metric, the loss, the sides, and a piece of greedy text, because a good loss can
    hide garbage."""
    plans = list(dict.fromkeys(point.plan for points in curves.values() for point in points))
    sides, units = side_values(session, plans)
    (prompt,) = prompts(session.task, session.encoded, 1)
    texts = {plan: sample(session.loaded, prompt, SAMPLE, plan) for plan in plans}
    series = []
    for form, points in curves.items():
        told = [
            _measured(session, point, outcomes)
            | {
                "parameters": kept_share(session, point.plan),
                "over_drop": _over_drop(session, form, number, curves, outcomes),
                "sides": sides[point.plan],
                "sample": texts[point.plan],
                "fell_back": [one.to_json() for one in point.fell_back],
            }
            for number, point in enumerate(points)
        ]
        series.append({"form": form, "points": told})
    return {"side_units": units, "prompt": plain(session.loaded, prompt), "series": series}


def _measured(session: Session, point: DepthPoint, outcomes: Outcomes) -> dict[str, Any]:
    return {
        "blocks_removed": len(point.plan.blocks_gone),
        "value": session.objective.metric.mean(outcomes[point.plan]),
        "loss": records.measured(outcomes[point.plan])["loss"],
    }


def _over_drop(
    session: Session, form: str, number: int, curves: Curves, outcomes: Outcomes
) -> dict[str, Any] | None:
    """The metric of a form minus that of a drop of the same blocks, paired; None where there is nothing to compare."""
    metric = session.objective.metric
    if form == "drop" or number == 0:
        return None
    dropped, kept = (outcomes[curves[name][number].plan] for name in ("drop", form))
    if not all(np.isfinite(metric.values(found)).all() for found in (dropped, kept)):
        return None
    groups = session.task.groups(session.shuffled("select"))
    return compare(metric, dropped, kept, groups, seed=session.options.seed).to_json()["difference"]


def _other(session: Session, by: str, points: Sequence[DepthPoint], outcomes: Outcomes) -> dict[str, Any]:
    """The form asked for, where blocks go by another measure."""
    gone = [after.plan.blocks_gone - before.plan.blocks_gone for before, after in pairwise(points)]
    return {
        "by": by,
        "blocks": [block for step in gone for block in sorted(step)],
        "points": [_measured(session, point, outcomes) for point in points],
    }
