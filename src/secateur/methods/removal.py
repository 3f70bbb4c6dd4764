"""Goal, parameters left and side tasks, for methods that remove parts as far as a bound allows."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.core.noninferiority import MARGIN
from secateur.core.plan import Plan
from secateur.core.score import METRICS
from secateur.search.removal import Goal
from secateur.session import Session
from secateur.side_tasks import side_effects
from secateur.surgery.shape import shape_of


def goal_of(
    session: Session, max_loss: float | None, *, target: float | None = None, params: float | None = None
) -> Goal:
    """Return the goal that the user set; where nothing is set, to go as far as the default margin allows."""
    free = target is None and params is None
    bound = MARGIN if max_loss is None and free else max_loss
    return Goal(session.objective.metric, bound, target, params)


def side_values(
    session: Session, plans: Sequence[Plan]
) -> tuple[dict[Plan, dict[str, float]], dict[str, str]]:
    """Return each side task's metric under each plan, and its unit, by the names of the side tasks."""
    values: dict[Plan, dict[str, float]] = {plan: {} for plan in plans}
    units = {}
    for side in side_effects(session):
        if side.phrasings:  # of the test questions, which are not looked at yet
            continue
        metric = METRICS[side.task.primary_metric]
        units[side.name] = metric.unit
        judge = session.on(side.task).judge()
        for plan, outcomes in judge(plans, range(len(side.task.examples)), "side effects").items():
            values[plan][side.name] = metric.mean(outcomes)
    return values, units


def parameters_left(session: Session, plan: Plan) -> int:
    """Return the number of parameters that a plan leaves."""
    return shape_of(plan, session.loaded.anatomy).num_parameters(session.loaded.anatomy)


def kept_share(session: Session, plan: Plan) -> float:
    """Return the fraction of the model's parameters that a plan leaves."""
    return parameters_left(session, plan) / session.loaded.anatomy.num_parameters
