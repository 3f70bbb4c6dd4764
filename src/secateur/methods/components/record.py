"""What was seen of iterative pruning, as records: every point of every order, and what each costs on the side."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from secateur import records
from secateur.core.plan import Plan
from secateur.core.site import Site
from secateur.methods.components.importance import is_grouped
from secateur.methods.removal import kept_share, side_values
from secateur.search.removal import Goal, Removal, RemovalPoint
from secateur.session import Session
from secateur.surgery.shape import ffns_gone, heads_gone


def pruning_record(
    session: Session,
    goal: Goal,
    removals: Sequence[Removal],
    outcomes: Mapping[Plan, np.ndarray],
    components: Mapping[str, Any],
) -> dict[str, Any]:
    metric, options = goal.metric, session.options
    shown = [point.plan for removal in removals if removal.seed is None for point in removal.points]
    sides, units = side_values(session, list(dict.fromkeys(shown)))
    record = {
        "what": options.method,
        "unit": "KV group" if is_grouped(session.loaded.anatomy) else "head",
        "step": options.config.step,
        "metric": metric.name,
        "metric_unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "max_loss": goal.max_loss,
        "target": goal.target,
        "params": goal.params,
        "side_units": units,
    }
    series = []
    for removal in removals:
        known = sides if removal.seed is None else {}  # their ends are the others' ends
        points = [
            _point(session, point, goal, outcomes[point.plan], components)
            | {"sides": known.get(point.plan, {})}
            for point in removal.points
        ]
        series.append({"order": removal.order, "seed": removal.seed, "points": points})
    return record | {"series": series}


def _point(
    session: Session, point: RemovalPoint, goal: Goal, outcomes: np.ndarray, components: Mapping[str, Any]
) -> dict[str, Any]:
    anatomy, gone = session.loaded.anatomy, heads_gone(point.plan, session.loaded.anatomy)
    heads = sum(own.num_heads for own in anatomy.widths)
    return {
        "heads_removed": len(gone) / max(1, heads),
        "ffns_removed": ffns_gone(point.plan, anatomy),
        "parameters": kept_share(session, point.plan),
        "value": goal.metric.mean(outcomes),
        "loss": records.base_record(outcomes)["loss"],
        "complete": True,
    } | {
        name: _share_left(components[name], gone)
        for name in ("prefix_matching", "copying")
        if name in components
    }


def _share_left(scores: Mapping[str, float], gone: Collection[Site]) -> float:
    """Of the total score of all heads of the whole model."""
    left = sum(score for site, score in scores.items() if Site.parse(site) not in gone)
    return left / max(sum(scores.values()), 1e-300)
