"""Attentions are dropped one after another: next goes the one without which the loss on `probe` is lowest.

How many go is chosen on `select`. Asks the judge alone, so a forecast runs it as it is.
Source: He et al. 2024 (arXiv 2406.15786), who drop attentions by the cosine of what enters and leaves them. Differs: by
the measured loss, ranked again after each.
"""

from __future__ import annotations

from secateur.core.noninferiority import MARGIN
from secateur.core.plan import Drop
from secateur.core.score import loss_or_worst
from secateur.core.site import Site
from secateur.methods.attention.method import AttentionConfig
from secateur.methods.attention.report import AttentionAnalysis, AttentionPoint, AttentionSearchRecord
from secateur.methods.method import CountingJudge, Proposal
from secateur.methods.removal import goal_of, kept_share
from secateur.options import layers_of
from secateur.records import base_record
from secateur.search.race import Judge
from secateur.search.removal import RemovalPoint
from secateur.session import Session
from secateur.surgery.operations import droppable


def attentions_of(session: Session) -> list[Site]:
    """Return the attentions that can go. Raises: `UnknownName` for layers that the model has not."""
    anatomy = session.loaded.anatomy
    sites = anatomy.attentions(layers_of(anatomy, session.options))
    return [site for site in sites if droppable(site, anatomy)]


def run(session: Session, judge: Judge) -> Proposal:
    """Return the most attentions dropped that the goal allows, or as many as are asked for.

    Args:
        session: What is searched. Its weights are not touched, and neither is `test`.
        judge: Outcomes of plans.
    """
    config, counting = session.config(AttentionConfig), CountingJudge(judge)
    probe, select = session.probed, session.shuffled("select")
    left, points = attentions_of(session), [RemovalPoint(session.empty, {"attentions": 0.0})]
    anatomy = session.loaded.anatomy
    whole = len(anatomy.attentions(range(anatomy.num_blocks)))
    order: list[Site] = []
    with session.timed("choose"):
        while left and len(order) < (config.attentions or len(left) + len(order)):
            plans = {points[-1].plan + Drop(site): site for site in left}
            judged = counting(list(plans), probe, "choose")
            plan = min(plans, key=lambda plan: (loss_or_worst(judged[plan], session.loss_name), plans[plan]))
            order.append(plans[plan])
            left.remove(plans[plan])
            points.append(RemovalPoint(plan, {"attentions": len(order) / whole}))
    with session.timed("analyze"):
        outcomes = counting([point.plan for point in points], select, "choose")
    chosen = len(points) - 1
    if config.attentions is None or config.max_loss is not None:
        kept = [kept_share(session, point.plan) for point in points]
        chosen = goal_of(session, config.max_loss).choose(points, outcomes, kept)
    metric = session.objective.metric
    rows = [
        AttentionPoint(
            attentions_removed=number,
            block=anatomy.number(order[number - 1]) if number else None,
            site=str(order[number - 1]) if number else None,
            value=metric.mean(outcomes[point.plan]),
            loss=base_record(outcomes[point.plan]).loss,
        )
        for number, point in enumerate(points)
    ]
    return Proposal(
        plan=points[chosen].plan,
        tried=counting.tried,
        evaluations=counting.evaluations,
        search=AttentionSearchRecord(
            method="attention", proposed=counting.tried, order=[anatomy.number(site) for site in order]
        ),
        analysis=AttentionAnalysis(base=base_record(outcomes[session.empty]), attentions=rows),
        margin=MARGIN if config.max_loss is None else config.max_loss,
    )
