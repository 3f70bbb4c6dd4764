"""Decide the verdict: original against cut on `test`, paired, with its guards and side effects.

What decides is the objective's metric on `test`, original against what was written to disk and read back. All else
(log-loss, alternatives without a cut, side effects) stands beside the word and does not make it, with two exceptions. A
fired guard against constant predictors takes `improves` away, and `not worse by more than M` unless the original was as
hollow. And several tasks are judged one by one: a mean over tasks can rise while one of them is ruined, so each is
measured on all of its own test split, and a plan that harms one of them does not improve them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from secateur.core.comparison import ALPHA, ConstantPredictor, compare, constant_predictor, verdict_word
from secateur.core.ledger import Ledger
from secateur.core.noninferiority import NonInferiority, non_inferiority
from secateur.core.plan import Plan
from secateur.core.records.verdict import (
    DecisionRecord,
    GuardRecord,
    MemberRecord,
    NonInferiorityRecord,
    SecondaryRecord,
)
from secateur.core.score import METRICS, PRIMARY, Metric
from secateur.core.stats import holm
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.measurement import (
    Measurement,
    SideTask,
    SplitResult,
    compare_side_tasks,
    gold_labels,
    paired_scores,
)
from secateur.evaluation.openings import CountedOpening, count_opening, opening, record_opening
from secateur.tasks.example import SPLITS, Member, Task
from secateur.tasks.joint import alone, whole_test

VERDICT_VERSION = 1
SECONDARY: Mapping[str, tuple[str, ...]] = {
    "text": (),
    "choice": ("accuracy", "accuracy_norm", "choice_loss", "loss"),
    "generation": ("accuracy", "loss", "top5", "top10"),
    "label": ("accuracy", "loss"),
    "trajectories": (),
    "continuous": (),
    "episodes": ("return", "success"),
}


def decide(
    judge: Evaluator,
    before: Measurement,
    after: Measurement,
    plan: Plan,
    side_tasks: Sequence[SideTask],
    metric: Metric,
    *,
    ledger: Ledger,
    scope: str,
    seed: int,
    margin: float | None = None,
) -> DecisionRecord:
    """Return the statistical part of `verdict.json`, and record the opening of `test`.

    Args:
        margin: How much worse still counts as not worse, in the metric's unit. With None, or where nothing is cut, this
            is not tested. Where the ledger knows an earlier opening for the same plan and metric, the margin named then
            decides the word.
    """
    examples = judge.task.split("test")
    groups = judge.task.groups(examples)
    primary = compare(metric, before.test, after.test, groups, seed=seed)
    margin = margin if plan.edits else None
    counted = count_opening(ledger, judge.task, opening(scope, plan, metric.name, primary.p_value, margin))
    deciding = counted.earlier.margin if counted.earlier and counted.named_late(margin) else margin
    bounded = None
    if margin is not None:
        bounded = non_inferiority(
            metric, before.test, after.test, groups, margin=margin, openings=counted.openings, seed=seed
        )
    members = member_records(
        judge, before, after, metric, margin=deciding, openings=counted.openings, seed=seed
    )
    _record_members(ledger, judge.task, scope, plan, members)
    constants = _constant_predictors(judge, before, after) if plan.edits else {}
    within = None if bounded is None or deciding is None else replace(bounded, margin=deciding)
    return DecisionRecord(
        version=VERDICT_VERSION,
        verdict=_word(counted.p_value, primary.gained, constants, within, members),
        **paired_scores(primary),
        test=primary.test,
        metric=metric.name,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        n=len(examples),
        groups=len(np.unique(groups)),
        p_value=counted.p_value,
        p_value_unadjusted=primary.p_value,
        openings=counted.openings,
        non_inferiority=None if bounded is None else _bound_record(bounded, counted, deciding),
        secondary=secondary(judge.task.scored_as, metric, before.test, after.test, groups, seed),
        tasks=members,
        guards=[
            *harm_guards(members),
            *(_constant_guard(name, constant) for name, constant in constants.items()),
            *(_loss_guard(before, after, groups, metric, seed) if plan.edits else ()),
        ],
        side_effects=compare_side_tasks(before, after, side_tasks, seed),
    )


def _bound_record(
    bounded: NonInferiority, counted: CountedOpening, deciding: float | None
) -> NonInferiorityRecord:
    return NonInferiorityRecord(
        margin=bounded.margin,
        unit=bounded.unit,
        bound=bounded.bound if np.isfinite(bounded.bound) else None,
        level=bounded.level,
        method=bounded.method,
        shown=bool(bounded.shown),
        named_late=counted.named_late(bounded.margin),
        decides=deciding,
    )


def _word(
    p_value: float,
    gained: bool,
    constants: Mapping[str, ConstantPredictor],
    bounded: NonInferiority | None,
    members: Sequence[MemberRecord],
) -> str:
    hollow = any(constant.hollow for constant in constants.values())
    fired = any(constant.fired for constant in constants.values()) or any(map(harmed, members))
    not_worse = bounded.word if bounded is not None and bounded.shown and not hollow else None
    return verdict_word(p_value, gained, fired, not_worse, any(map(beyond_margin, members)))


def secondary(
    kinds: frozenset[str],
    primary: Metric,
    before: np.ndarray,
    after: np.ndarray,
    groups: np.ndarray,
    seed: int,
) -> list[SecondaryRecord]:
    """Compare the other metrics that all of `kinds` have, with intervals. None is tested: each test would be an
    opening."""
    shared = [name for name in METRICS if all(name in SECONDARY[kind] for kind in kinds)]
    return [
        SecondaryRecord(
            metric=name,
            unit=METRICS[name].unit,
            higher_is_better=METRICS[name].higher_is_better,
            **paired_scores(compare(METRICS[name], before, after, groups, seed=seed)),
        )
        for name in shared
        if name != primary.name
    ]


# -------------------------------------------------------------------------------------- the tasks of a joint one


def member_records(
    judge: Evaluator,
    before: Measurement,
    after: Measurement,
    metric: Metric,
    *,
    margin: float | None,
    openings: int,
    seed: int,
) -> list[MemberRecord]:
    """Return one record a member: paired, in the metric that decides; none for a task by itself.

    `p_value` is corrected by Holm for the number of members, not for openings of `test`: a guard that is looked at
    often must not go blind. `within_margin` is whether it was shown to be no worse than `margin`; None without one.
    """
    pairs = zip(judge.task.members, before.members, after.members, strict=True)
    records = [_member_record(judge, *pair, metric, margin, openings, seed) for pair in pairs]
    adjusted = holm([record.p_value_unadjusted for record in records]) if records else []
    return [
        record.model_copy(update={"p_value": float(p)}) for record, p in zip(records, adjusted, strict=True)
    ]


def _member_record(
    judge: Evaluator,
    member: Member,
    before: SplitResult,
    after: SplitResult,
    metric: Metric,
    margin: float | None,
    openings: int,
    seed: int,
) -> MemberRecord:
    """Return the record of one member; its `p_value` is not corrected yet."""
    examples = whole_test(judge.task, member)
    outcomes, groups = (before.outcomes, after.outcomes), judge.task.groups(examples)
    paired = compare(metric, *outcomes, groups, seed=seed)
    within = None
    if margin is not None:
        bounded = non_inferiority(metric, *outcomes, groups, margin=margin, openings=openings, seed=seed)
        within = bool(bounded.shown)
    return MemberRecord(
        name=member.name,
        kind=member.kind,
        n=len(examples),
        groups=len(np.unique(groups)),
        left_out=dict(zip(SPLITS, member.left_out, strict=True)),
        metric=metric.name,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        **paired_scores(paired),
        p_value=paired.p_value,
        p_value_unadjusted=paired.p_value,
        test=paired.test,
        within_margin=within,
        secondary=secondary(frozenset({member.kind}), metric, *outcomes, groups, seed),
    )


def _record_members(
    ledger: Ledger, task: Task, scope: str, plan: Plan, records: Sequence[MemberRecord]
) -> None:
    """Record that a joint verdict opens the test split of each member."""
    for member, record in zip(task.members, records, strict=True):
        opened = opening(scope, plan, record.metric, record.p_value_unadjusted)
        record_opening(ledger, alone(task, member), opened)


def harmed(member: MemberRecord) -> bool:
    """Return whether a task got worse, significantly among all of them."""
    return member.p_value < ALPHA and not member.gained


def beyond_margin(member: MemberRecord) -> bool:
    """Return whether it got worse by more than was allowed beforehand, as far as is known."""
    return harmed(member) and not member.within_margin


# ------------------------------------------------------------------------------------------------------- guards


def harm_guards(members: Sequence[MemberRecord]) -> list[GuardRecord]:
    """Return one guard a task: it fires where that task got worse."""
    return [
        GuardRecord(
            name=f"harm to {member.name}", fired=harmed(member), detail=_harm_text(member, len(members))
        )
        for member in members
    ]


def _harm_text(member: MemberRecord, count: int) -> str:
    scale, unit, digits = (100, " %", ".1f") if member.unit == "share" else (1, f" {member.unit}", ".3f")
    was, now = (f"{score.value * scale:{digits}}{unit}" for score in (member.before, member.after))
    word = "got worse" if harmed(member) else "was not shown to get worse"
    within = ", by no more than the margin" if member.within_margin and harmed(member) else ""
    name, p = member.metric.replace("_", " "), f"p = {member.p_value:.2g} among {count} tasks"
    return f"{name} {word}{within}: {was} → {now}, {p}"


def _constant_predictors(
    judge: Evaluator, before: Measurement, after: Measurement
) -> dict[str, ConstantPredictor]:
    """Return the guard against constant answers by task, "" for one by itself; none for text."""
    task = judge.task
    results = [
        (member.name, member.kind, whole_test(task, member), was.labels, now.labels)
        for member, was, now in zip(task.members, before.members, after.members, strict=True)
    ] or [("", task.kind, task.split("test"), before.labels, after.labels)]
    return {
        name: constant_predictor(gold_labels(judge, examples), was, now, task.groups(examples))
        for name, kind, examples, was, now in results
        if kind not in PRIMARY
    }


def _constant_guard(task: str, constant: ConstantPredictor) -> GuardRecord:
    name = f"constant predictor on {task}" if task else "constant predictor"
    return GuardRecord(name=name, **asdict(constant))


def _loss_guard(
    before: Measurement, after: Measurement, groups: np.ndarray, metric: Metric, seed: int
) -> list[GuardRecord]:
    """Guard the log-loss: accuracy can rise while it gets worse, as in some cells of LASER's own tables."""
    if metric.column.removeprefix("-") == "loss" or metric.name == "success":
        return []
    paired = compare(METRICS["loss"], before.test, after.test, groups, seed=seed)
    fired = paired.difference_ci is not None and bool(paired.difference_ci[0] > 0)
    word = "got worse" if fired else "did not get worse"
    was, now = paired.before.value, paired.after.value
    detail = f"the log-loss of the right answer {word}: {was:.3f} → {now:.3f} nats/token"
    return [GuardRecord(name="log-loss", fired=fired, detail=detail)]
