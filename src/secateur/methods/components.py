"""Heads, feed-forward networks, or both: removed in steps, re-scored after each, as far as the task allows.

Importance is read on `probe`, how far to go is chosen on `select`. Beside the removal that is chosen from stand the
paper's, with ranks taken once, and random orders.
Source: Bansal et al. 2022 (arXiv 2212.09095).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from secateur import records
from secateur.core.plan import Plan
from secateur.core.readings import Readings
from secateur.core.score import METRICS
from secateur.core.site import Site
from secateur.errors import PlanError, SecateurError
from secateur.hf.anatomy import Anatomy
from secateur.judge.evaluator import Judge
from secateur.methods.found import Counted, Found
from secateur.probes.ablation import ablation_importance
from secateur.probes.heads import group_importance, head_importance
from secateur.probes.induction import copying, prefix_matching
from secateur.probes.neurons import neuron_importance
from secateur.readers.components import Components, Reading
from secateur.readers.record import components_record
from secateur.search.iterative import ONCE, RANDOM, RESCORED, Goal, Kind, Point, Pruner, Removal, steps
from secateur.session import Session, digest, layers_of
from secateur.sides import side_effects
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.surgery.shape import ffns_gone, heads_gone, shape_of

MARGIN = 0.02  # of accuracy, or nats
MAX_PROBED = 256  # as for the gradients of LASER's screen


def check(session: Session) -> None:
    """Raises `UnknownName` for layers, `PlanError` for parts the model has none of, `SecateurError` for shares."""
    kinds_of(session)
    goal_of(session)
    steps(session.options.step, session.options.target)


def goal_of(session: Session) -> Goal:
    """What the user set; where nothing is, as far as the default margin allows."""
    options = session.options
    if options.params is not None and not 0 < options.params < 1:
        raise SecateurError(
            f"--params {options.params}: the fraction of parameters to keep, between 0 and 1."
        )
    if options.max_loss is not None and options.max_loss < 0:
        raise SecateurError(f"--max-loss {options.max_loss}: a loss of 0 or more, in the metric's own unit.")
    free = options.target is None and options.params is None
    max_loss = MARGIN if options.max_loss is None and free else options.max_loss
    return Goal(session.objective.metric, max_loss, options.target, options.params)


def kinds_of(session: Session) -> list[Kind]:
    """The parts that may go. Raises `PlanError` where a stock class could not hold what is left."""
    anatomy, portable = session.loaded.anatomy, session.options.portable
    blocks = layers_of(anatomy, session.options)
    found = []
    if session.options.method != "ffns":
        found.append(Kind("heads", _heads(anatomy, blocks), portable))
        if portable and (not anatomy.details.free_heads or anatomy.alibi):
            raise PlanError(
                f"--portable: {anatomy.architecture} fixes the size of a head by their number, so a stock checkpoint "
                "has all of them. Take --method ffns, or leave out --portable."
            )
    if session.options.method != "heads":
        found.append(
            Kind("ffns", _neurons(anatomy, blocks) if portable else _ffns(anatomy, blocks), portable)
        )
        if portable and anatomy.details.width is None:
            raise PlanError(
                f"--portable: {anatomy.architecture} fixes the width of its feed-forward networks."
            )
    if portable and len(blocks) < anatomy.num_blocks:
        raise PlanError(
            "--portable needs the same shape in every block, so it cannot be joined with --layers."
        )
    for kind in found:
        if not kind.sites:
            raise PlanError(f"this model has no {kind.name} in blocks {blocks.start}:{blocks.stop}.")
    return found


def is_grouped(anatomy: Anatomy) -> bool:
    """Whether query heads share keys, so that only whole groups can leave."""
    return any(own.num_heads != own.num_kv_heads for own in anatomy.widths)


def _heads(anatomy: Anatomy, blocks: range) -> tuple[Site, ...]:
    unit = "g" if is_grouped(anatomy) else "h"
    counts = {block: anatomy.widths[block].num_kv_heads for block in blocks}
    return tuple(Site(block, "attn", unit, index) for block in blocks for index in range(counts[block]))


def _ffns(anatomy: Anatomy, blocks: range) -> tuple[Site, ...]:
    return tuple(Site(block, "mlp") for block in blocks if anatomy.widths[block].d_ff)


def _neurons(anatomy: Anatomy, blocks: range) -> tuple[Site, ...]:
    return tuple(Site(b, "mlp", "n", n) for b in blocks for n in range(anatomy.widths[b].d_ff))


def search(session: Session) -> Found:
    """All curves, and the furthest point that the goal allows. `test` is not touched."""
    options, evaluator, goal = session.options, session.judge(), goal_of(session)
    judge, select = Counted(evaluator), session.shuffled("select")
    reader = Reader(session, evaluator)
    pruner = Pruner(
        base=session.empty,
        kinds=kinds_of(session),
        shares=steps(options.step, options.target),
        read=reader.read,
        judge=judge,
        examples=select,
        weigh=lambda plan: shape_of(plan, session.loaded.anatomy).num_parameters(session.loaded.anatomy),
    )
    with session.timed("prune"):
        removals = [pruner.by_importance(again=again) for again in (True, False)]
        chosen_from = removals[0 if options.rescore else 1]
        removals += [pruner.at_random(seed, chosen_from) for seed in range(options.random_orders)]
        plans = dict.fromkeys(point.plan for removal in removals for point in removal.points)
        outcomes = judge(list(plans), select, "curves")
        kept = [_kept(session, point.plan) for point in chosen_from.points]
        number = goal.choose(chosen_from.points, outcomes, kept)
    with session.timed("analyze"):
        components = reader.components()
        pruning = _pruning_record(session, goal, removals, outcomes, components)
    pruning["chosen"] = {"order": chosen_from.order, "point": number}
    pruning["snapped"] = _snapped(session, pruner.kinds)
    search = {
        "method": options.method,
        "proposed": len(plans) - 1,
        "orders": [RESCORED, ONCE] + [RANDOM] * options.random_orders,
        "step": options.step,
    }
    plan = chosen_from.points[number].plan
    analysis = {
        "components": components,
        "pruning": pruning,
        "base": records.base_record(outcomes[session.empty]),
    }
    margin = MARGIN if options.max_loss is None else options.max_loss
    return Found(plan, judge.tried, judge.evaluations, search, analysis, margin)


def _kept(session: Session, plan: Plan) -> float:
    anatomy = session.loaded.anatomy
    return shape_of(plan, anatomy).num_parameters(anatomy) / anatomy.num_parameters


def _snapped(session: Session, kinds: Sequence[Kind]) -> str | None:
    """What a share of query heads had to be turned into."""
    anatomy = session.loaded.anatomy
    if session.options.method == "ffns" or not is_grouped(anatomy):
        return None
    queries, groups = anatomy.num_heads // anatomy.num_kv_heads, len(kinds[0].sites)
    return f"query heads leave in whole KV groups of {queries}; the model has {groups} of them"


class Reader:
    """Importance of parts under a plan, read on `probe` and remembered in the ledger."""

    def __init__(self, session: Session, judge: Judge) -> None:
        self._session, self._judge = session, judge
        self._probe = session.task.split("probe")[:MAX_PROBED]

    def read(self, plan: Plan, kind: str) -> Mapping[Site, float]:
        """How much the task hangs on each part that is left of a kind; parts that are gone have some number too."""
        if kind == "heads":
            heads = self._gradients("heads", plan)
            anatomy = self._session.loaded.anatomy
            values = (group_importance(heads, anatomy) if is_grouped(anatomy) else heads).values
        elif self._session.options.portable:
            values = self._gradients("neurons", plan).values
        else:
            values = self._ablation(plan).values
        return {Site.parse(site): value for site, value in values.items()}

    def _gradients(self, kind: str, plan: Plan) -> Readings:
        session = self._session
        key = f"{kind} {digest([plan.to_json()['edits'], len(self._probe)])}"
        known = session.ledger.recall(session.scope, key) if session.ledger else None
        if known is not None:
            return Readings.from_json(known)
        importance = {"heads": head_importance, "neurons": neuron_importance}[kind]
        loaded = session.loaded
        with masked(loaded.model, resolve(plan, loaded.anatomy, loaded.fingerprint)):
            found = importance(
                loaded, session.encoded, self._probe, packing=self._judge.packing, progress=session.progress
            )
        if session.ledger:
            session.ledger.remember(session.scope, key, found.to_json())
        return found

    def _ablation(self, plan: Plan) -> Readings:
        """Of the feed-forward networks that are left. By loss: accuracy ties on few examples."""
        blocks = layers_of(self._session.loaded.anatomy, self._session.options)
        left = [s for s in _ffns(self._session.loaded.anatomy, blocks) if s not in set(plan.dropped)]
        found = ablation_importance(self._judge, left, self._probe, split="probe", base=plan)
        return next(readings for name, readings in found.items() if "loss" in name)

    def components(self) -> dict[str, Any]:
        """What is read of the whole model for the report: importance, and what heads do."""
        session, empty = self._session, self._session.empty
        found = {
            "heads": {"importance": self._gradients("heads", empty)},
            "ffns": {"loss": self._ablation(empty)},
        }
        reading = Reading(session.task.name, session.options.shots, len(self._probe), len(self._probe), found)
        behavior = {
            "prefix_matching": prefix_matching(session.loaded, progress=session.progress),
            "copying": copying(session.loaded, progress=session.progress),
        }
        return components_record(Components((reading,), behavior))


# ------------------------------------------------------------------------------------------------------------- records


def _pruning_record(
    session: Session,
    goal: Goal,
    removals: Sequence[Removal],
    outcomes: Mapping[Plan, np.ndarray],
    components: Mapping[str, Any],
) -> dict[str, Any]:
    metric, options = goal.metric, session.options
    shown = [point.plan for removal in removals if removal.seed is None for point in removal.points]
    sides, units = _sides(session, list(dict.fromkeys(shown)))
    record = {
        "what": options.method,
        "unit": "KV group" if is_grouped(session.loaded.anatomy) else "head",
        "step": options.step,
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
        points = [
            _point(session, point, goal, outcomes[point.plan], components)
            | {"sides": sides.get(point.plan, {})}
            for point in removal.points
        ]
        series.append({"order": removal.order, "seed": removal.seed, "points": points})
    return record | {"series": series}


def _point(
    session: Session, point: Point, goal: Goal, outcomes: np.ndarray, components: Mapping[str, Any]
) -> dict[str, Any]:
    anatomy, gone = session.loaded.anatomy, heads_gone(point.plan, session.loaded.anatomy)
    heads = sum(own.num_heads for own in anatomy.widths)
    return {
        "heads_removed": len(gone) / max(1, heads),
        "ffns_removed": ffns_gone(point.plan, anatomy),
        "parameters": _kept(session, point.plan),
        "value": goal.metric.mean(outcomes),
        "loss": records.base_record(outcomes)["loss"],
        "prefix_matching": _share_left(components["prefix_matching"], gone),
        "copying": _share_left(components["copying"], gone),
        "complete": True,
    }


def _share_left(scores: Mapping[str, float], gone: Collection[Site]) -> float:
    """Of the total score of all heads of the whole model."""
    left = sum(score for site, score in scores.items() if Site.parse(site) not in gone)
    return left / max(sum(scores.values()), 1e-300)


def _sides(session: Session, plans: Sequence[Plan]) -> tuple[dict[Plan, dict[str, float]], dict[str, str]]:
    """Each side's metric under each plan, and its unit."""
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
