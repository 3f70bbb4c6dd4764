"""Heads, feed-forward networks, both, or experts: removed in steps, re-scored after each, as far as the task allows.

Importance is read on `probe`, how far to go is chosen on `select`; `test` is not touched. For a full report, beside the
removal that is chosen from stand the paper's, with ranks taken once, and random orders.
Source: Bansal et al. 2022 (arXiv 2212.09095). Differs: what goes next is what the answers lose least
without.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np

from secateur.core.comparison import ALPHA, compare
from secateur.core.noninferiority import MARGIN
from secateur.core.plan import Plan
from secateur.core.records.probe import ComponentsRecord
from secateur.core.site import Site
from secateur.errors import PlanError, SecateurError
from secateur.hf.anatomy import Anatomy
from secateur.methods.components.method import ComponentsConfig
from secateur.methods.components.readings import RemovalReader, whole_ffns
from secateur.methods.components.records import (
    ChosenRecord,
    ComponentsAnalysis,
    PointRecord,
    PruningRecord,
    RemovalSearchRecord,
    SeriesRecord,
    VoteRecord,
)
from secateur.methods.method import CountingJudge, Proposal
from secateur.methods.removal import (
    experts_of,
    goal_of,
    heads_of,
    is_grouped,
    kept_share,
    parameters_left,
)
from secateur.options import layers_of
from secateur.records import base_record
from secateur.search.race import Judge
from secateur.search.removal import VOTED, Goal, PrunableGroup, Pruner, Removal, advanced, steps
from secateur.session import Session
from secateur.surgery.operations import droppable, droppable_experts
from secateur.surgery.portable import losses
from secateur.surgery.shape import experts_gone, ffns_gone, heads_gone

LOG = logging.getLogger("secateur")


class RemovalReadings(Protocol):
    """Readings of a model that removal needs beside outcomes of plans."""

    def importance(self, plan: Plan, kind: str, *, vote: int = 1) -> Mapping[Site, float]:
        """Return how much the task hangs on each part of a kind that is left under a plan, by so many readings."""

    def components(self) -> ComponentsRecord:
        """Return what the report shows of the whole model: importance, and what heads do."""

    def side_values(self, plans: Sequence[Plan]) -> tuple[Mapping[Plan, dict[str, float]], dict[str, str]]:
        """Return each side task's metric under each plan, and its unit."""


# ---------------------------------------------------------------------------------------------------- what may be asked


def check(session: Session) -> None:
    """Raise `UnknownName` for layers, `PlanError` for parts the model has none of, `SecateurError` for a share of the
    parameters that is out of reach."""
    config, everything = session.config(ComponentsConfig), session.empty
    if config.vote > len(session.probed):
        raise SecateurError(
            f"--vote {config.vote}: the calibration split has {len(session.probed)} examples, and a reading needs one."
        )
    for group in groups_of(session):
        everything = advanced(everything, group, 1.0, dict.fromkeys(group.sites, 0.0))
    _goal(session).check_reach(kept_share(session, everything))


def _goal(session: Session) -> Goal:
    config = session.config(ComponentsConfig)
    return goal_of(session, config.max_loss, target=config.target, params=config.params)


def groups_of(session: Session) -> list[PrunableGroup]:
    """Return the parts that may go, heads before networks; experts equally many of each block.

    Raises: `PlanError` where there are none, or where a stock class could not hold what is left.
    """
    anatomy, method = session.loaded.anatomy, session.options.method
    portable, blocks = session.config(ComponentsConfig).portable, layers_of(anatomy, session.options)
    if portable:
        _check_portable(anatomy, method, blocks)
    if method == "experts":
        return [_experts(session)]
    groups = []
    if method != "ffns":
        heads = heads_of(session)
        groups.append(PrunableGroup("heads", heads, tuple(losses("g", anatomy)) if portable else ()))
    if method != "heads":
        ffns = whole_ffns(anatomy, blocks)
        if portable:  # the same number of neurons of every network, in place of whole networks
            ffns = tuple(
                ffn.beside("mlp", "n", index)
                for ffn in ffns
                for index in range(anatomy.widths[anatomy.number(ffn)].d_ff)
            )
        groups.append(PrunableGroup("ffns", ffns, tuple(losses("n", anatomy)) if portable else ()))
    for group in groups:
        if not group.sites:
            raise PlanError(
                f"no {group.name} of blocks {blocks.start}:{blocks.stop} can go: earlier cuts took all, or stored the "
                "matrices that they end in as two factors."
            )
    return groups


def _experts(session: Session) -> PrunableGroup:
    """Return the experts that may go. Raises: `PlanError` where there are none."""
    anatomy, sites = session.loaded.anatomy, experts_of(session)
    if not sites:
        raise PlanError(
            f"no expert of {anatomy.architecture} can go: it has none there, or its routers need all or look at "
            "groups of equally many. Take --method heads."
        )
    most = min(droppable_experts(anatomy, block) for block in {site.block for site in sites})
    return PrunableGroup("experts", sites, tuple(range(most + 1)))


def _check_portable(anatomy: Anatomy, method: str, blocks: range) -> None:
    """Raise `PlanError` where no cut of this kind leaves a stock model."""
    name, family = anatomy.architecture, anatomy.details
    anatomy.refuse_pairs("--portable")
    if anatomy.carved:
        raise PlanError("--portable: this model has shapes of its own already; no plan makes it a stock one.")
    if len(blocks) < anatomy.num_blocks:
        raise PlanError(
            "--portable needs the same shape in every block, so it cannot be joined with --layers."
        )
    if method in ("heads", "components") and not anatomy.free_heads:
        raise PlanError(
            f"--portable: {name} fixes the size of a head by their number, so a stock checkpoint has all of them. "
            "Take --method ffns, or leave out --portable."
        )
    if method in ("ffns", "components") and family.width is None:
        raise PlanError(f"--portable: {name} fixes the width of its feed-forward networks.")


# ----------------------------------------------------------------------------------------------------------- the search


def search(session: Session) -> Proposal:
    """Return the furthest plan that the goal allows, and all curves for the report."""
    evaluator = session.judge()
    return run(session, evaluator, RemovalReader(session, evaluator))


def run(session: Session, judge: Judge, readings: RemovalReadings) -> Proposal:
    """Return what `search` does, without touching a model.

    Args:
        session: Its options, task and anatomy.
        judge: Gives the outcomes of plans.
        readings: Reads importance, behavior and side tasks.
    """
    config, goal, groups = session.config(ComponentsConfig), _goal(session), groups_of(session)
    snapped = _snapped(session, groups)
    if config.target is not None and snapped:
        LOG.warning("--target %.0f%% is rounded to %s.", 100 * config.target, snapped)
    for group in groups:
        _warn_of_fixed(session, group)
    counting, select = CountingJudge(judge), session.shuffled("select")
    with session.timed("prune"):
        removals = _removals(session, groups, readings, counting, select)
        points = removals[0].points
        plans = dict.fromkeys(point.plan for removal in removals for point in removal.points)
        outcomes = counting(list(plans), select, "prune")
        chosen = goal.choose(points, outcomes, [kept_share(session, point.plan) for point in points])
    with session.timed("analyze"):
        components = readings.components()
        pruning = pruning_record(session, readings, removals, outcomes, components, chosen, snapped)
        if config.vote > 1:
            vote = _vote_record(session, removals, outcomes, chosen)
            pruning = pruning.model_copy(update={"vote": vote})
    return Proposal(
        plan=points[chosen].plan,
        tried=counting.tried,
        evaluations=counting.evaluations,
        search=RemovalSearchRecord(
            method=session.options.method,
            proposed=counting.tried,
            orders=[removal.order for removal in removals],
            step=config.step,
        ),
        analysis=ComponentsAnalysis(
            base=base_record(outcomes[session.empty]), components=components, pruning=pruning
        ),
        margin=MARGIN if config.max_loss is None else config.max_loss,
    )


def _warn_of_fixed(session: Session, group: PrunableGroup) -> None:
    """Warn of parts that the model has and that cannot go."""
    anatomy, fixed = session.loaded.anatomy, []
    blocks = layers_of(anatomy, session.options)
    networks = [anatomy.site(block, "mlp") for block in blocks]
    for whole in anatomy.attentions(blocks) if group.name == "heads" else networks:
        width = anatomy.widths[anatomy.number(whole)]
        count = width.d_ff if whole.part == "mlp" else anatomy.heads(whole)[0]
        if count and not droppable(whole, anatomy):
            fixed.append(str(whole))
    if fixed:
        LOG.warning(
            "no %s of %s can go: the matrices they end in are stored as two factors by an earlier cut.",
            group.name,
            ", ".join(fixed),
        )


def _removals(
    session: Session,
    groups: Sequence[PrunableGroup],
    readings: RemovalReadings,
    judge: Judge,
    select: Sequence[int],
) -> list[Removal]:
    """Return every order; first the one that is chosen from."""
    config, full = session.config(ComponentsConfig), session.options.full_report
    shares = steps(config.step, config.target)
    if config.target is not None and not full:  # what lies beyond is for the curves of a full report
        shares = [share for share in shares if share <= config.target]
    single = Pruner(
        base=session.empty,
        kinds=groups,
        shares=shares,
        read=readings.importance,
        judge=judge,
        examples=select,
        count_parameters=lambda plan: parameters_left(session, plan),
        target=config.target or 1.0,
    )
    ranked = [single.by_importance(again=again) for again in (config.rescore, not config.rescore)[: 1 + full]]
    if config.vote > 1:
        voted = replace(single, read=partial(readings.importance, vote=config.vote), _once={})
        ranked.insert(0, replace(voted.by_importance(again=config.rescore), order=VOTED))
    return ranked + [single.at_random(seed, ranked[0]) for seed in range(config.random_orders if full else 0)]


def _vote_record(
    session: Session, removals: Sequence[Removal], outcomes: Mapping[Plan, np.ndarray], chosen: int
) -> VoteRecord:
    """Return what voting gives at the chosen point, beside one reading's plan of the nearest size."""
    metric, select = session.objective.metric, session.shuffled("select")
    plan = removals[0].points[chosen].plan
    size = kept_share(session, plan)
    other = min(
        (point.plan for point in removals[1].points),
        key=lambda one: abs(kept_share(session, one) - size),
    )
    pair = outcomes[other], outcomes[plan]
    found = compare(metric, *pair, session.task.groups(select), seed=session.options.seed)
    record = VoteRecord(
        readings=session.config(ComponentsConfig).vote,
        voted=metric.mean(pair[1]),
        single=metric.mean(pair[0]),
        difference=found.difference,
        ci=None if found.difference_ci is None else [*found.difference_ci],
        shown=found.gained and found.p_value < ALPHA,
    )
    LOG.info(
        "voting of %d readings: %s %.4g, of one reading %.4g at that size: %s",
        record.readings, metric.name, record.voted, record.single,
        "better" if record.shown else "no benefit is shown",
    )  # fmt: skip
    return record


def _snapped(session: Session, groups: Sequence[PrunableGroup]) -> str | None:
    """Return what shares are rounded to, where that is coarser than single heads or networks."""
    words = []
    if is_grouped(session.loaded.anatomy) and groups[0].name == "heads":
        widths = session.loaded.anatomy.widths
        sizes = sorted({width.num_heads // width.num_kv_heads for width in widths if width.num_kv_heads})
        words.append(f"whole KV groups of {' or '.join(map(str, sizes))} query heads")
    if groups[0].removable_counts:
        words.append("the same number in every block")
    return ", ".join(words) or None


# ----------------------------------------------------------------------------------------------------------- the record


def pruning_record(
    session: Session,
    readings: RemovalReadings,
    removals: Sequence[Removal],
    outcomes: Mapping[Plan, np.ndarray],
    components: ComponentsRecord,
    chosen: int,
    snapped: str | None,
) -> PruningRecord:
    """Return `pruning` of analysis.json: every point of every order, and what each costs in side tasks.

    Args:
        outcomes: Of all plans of the removals, on `select`.
        components: What heads of the whole model do.
        chosen: Index of the point of the first removal that was taken.
        snapped: What shares were rounded to.
    """
    goal, method = _goal(session), session.options.method
    unit = "KV group" if is_grouped(session.loaded.anatomy) else "head"
    shown = [point.plan for removal in removals if removal.seed is None for point in removal.points]
    full = session.options.full_report
    plans = list(dict.fromkeys(shown))
    sides, units = readings.side_values(plans) if full else ({plan: {} for plan in plans}, {})
    series = []
    for removal in removals:
        points = []
        for point in removal.points:
            # Of random orders side tasks are not shown, although both ends of theirs are the others' ends.
            beside = sides[point.plan] if removal.seed is None else {}
            points.append(point_record(session, point.plan, outcomes[point.plan], beside, components))
        series.append(SeriesRecord(order=removal.order, seed=removal.seed, points=points))
    return PruningRecord(
        what=method,
        unit="expert" if method == "experts" else unit,
        step=session.config(ComponentsConfig).step,
        metric=goal.metric.name,
        metric_unit=goal.metric.unit,
        higher_is_better=goal.metric.higher_is_better,
        max_loss=goal.max_loss,
        target=goal.target,
        params=goal.params,
        series=series,
        chosen=ChosenRecord(order=removals[0].order, point=chosen),
        snapped=snapped,
        side_units=units,
    )


def point_record(
    session: Session, plan: Plan, outcomes: np.ndarray, sides: dict[str, float], components: ComponentsRecord
) -> PointRecord:
    """Return what is gone under a plan, and what is left of the quality.

    Args:
        outcomes: Of the plan, on `select`.
        sides: Metrics of the side tasks under the plan.
        components: What heads of the whole model do.
    """
    anatomy = session.loaded.anatomy
    gone = heads_gone(plan, anatomy)
    num_heads = sum(width.num_heads + width.num_cross for width in anatomy.widths)
    behavior = {"prefix_matching": components.prefix_matching, "copying": components.copying}
    return PointRecord(
        heads_removed=len(gone) / max(1, num_heads),
        ffns_removed=ffns_gone(plan, anatomy),
        experts_removed=experts_gone(plan, anatomy),
        parameters=kept_share(session, plan),
        value=session.objective.metric.mean(outcomes),
        loss=base_record(outcomes).loss,
        sides=sides,
        complete=True,
        **{name: _share_left(scores, gone) for name, scores in behavior.items() if scores is not None},
    )


def _share_left(scores: Mapping[str, float], gone: Collection[Site]) -> float:
    """Return the share of all heads' score that the heads have that are not gone."""
    left = sum(score for site, score in scores.items() if Site.parse(site) not in gone)
    return left / max(sum(scores.values()), 1e-300)
