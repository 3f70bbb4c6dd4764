"""The tasks of a joint one, each by itself: measured on all of its own test split, compared, and guarded.

A mean over tasks can rise while one of them is ruined. What got worse is therefore said of every task by name, and a
plan that harms one does not improve them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur.core.comparison import ALPHA, compare
from secateur.core.guard import ConstantPredictor, constant_predictor
from secateur.core.noninferiority import non_inferiority
from secateur.core.score import METRICS, Metric
from secateur.core.stats import holm
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.measurement import Measurement, SideResult, gold_labels
from secateur.tasks.example import SPLITS, Member
from secateur.tasks.joint import whole_test

SECONDARY: Mapping[str, tuple[str, ...]] = {
    "text": (),
    "choice": ("accuracy", "accuracy_norm", "choice_loss", "loss"),
    "generation": ("accuracy", "loss", "top5", "top10"),
}


def secondary(
    kinds: frozenset[str],
    primary: Metric,
    before: np.ndarray,
    after: np.ndarray,
    groups: np.ndarray,
    seed: int,
) -> list[dict[str, Any]]:
    """The other metrics that all of `kinds` have, with intervals. None is tested: each test would be an opening."""
    shared = [name for name in METRICS if all(name in SECONDARY[kind] for kind in kinds)]
    return [
        {"metric": other.name, "unit": other.unit, "higher_is_better": other.higher_is_better}
        | compare(other, before, after, groups, seed=seed).measured()
        for other in (METRICS[name] for name in shared if name != primary.name)
    ]


def member_rows(
    judge: Evaluator,
    before: Measurement,
    after: Measurement,
    metric: Metric,
    *,
    margin: float | None,
    openings: int,
    seed: int,
) -> list[dict[str, Any]]:
    """One record a member: paired, in the metric that decides; empty for a task by itself.

    `p_value` is corrected by Holm for the number of members, not for openings of `test`: a guard that is looked at
    often must not go blind. `within_margin` is whether it was shown to be no worse than `margin`; None without one.
    """
    pairs = list(zip(judge.task.members, before.members, after.members, strict=True))
    rows = [_row(judge, *pair, metric, margin, openings, seed) for pair in pairs]
    adjusted = holm([row["p_value_unadjusted"] for row in rows]) if rows else []
    return [row | {"p_value": float(p)} for row, p in zip(rows, adjusted, strict=True)]


def _row(
    judge: Evaluator,
    member: Member,
    before: SideResult,
    after: SideResult,
    metric: Metric,
    margin: float | None,
    openings: int,
    seed: int,
) -> dict[str, Any]:
    examples = whole_test(judge.task, member)
    groups, was, now = judge.task.groups(examples), before.outcomes, after.outcomes
    paired = compare(metric, was, now, groups, seed=seed).to_json()
    within = None
    if margin is not None:
        within = non_inferiority(metric, was, now, groups, margin=margin, openings=openings, seed=seed).shown
    return {
        "name": member.name,
        "kind": member.kind,
        "n": len(examples),
        "groups": len(np.unique(groups)),
        "left_out": dict(zip(SPLITS, member.left_out, strict=True)),
        "metric": metric.name,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        **paired,
        "p_value_unadjusted": paired["p_value"],
        "within_margin": within,
        "secondary": secondary(frozenset({member.kind}), metric, was, now, groups, seed),
    }


def harmed(row: Mapping[str, Any]) -> bool:
    """Whether a task got worse, significantly among all of them."""
    return row["p_value"] < ALPHA and not row["gained"]


def beyond_margin(row: Mapping[str, Any]) -> bool:
    """Whether it got worse by more than was allowed beforehand, as far as is known."""
    return harmed(row) and not row["within_margin"]


def harm_guards(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One guard a task: it fires where that task got worse."""
    return [
        {"name": f"harm to {row['name']}", "fired": harmed(row), "detail": _detail(row, len(rows))}
        for row in rows
    ]


def _detail(row: Mapping[str, Any], count: int) -> str:
    scale, unit, digits = (100, " %", ".1f") if row["unit"] == "share" else (1, f" {row['unit']}", ".3f")
    was, now = (f"{row[which]['value'] * scale:{digits}}{unit}" for which in ("before", "after"))
    word = "got worse" if harmed(row) else "was not shown to get worse"
    within = ", by no more than the margin" if row["within_margin"] and harmed(row) else ""
    name, p = row["metric"].replace("_", " "), f"p = {row['p_value']:.2g} among {count} tasks"
    return f"{name} {word}{within}: {was} → {now}, {p}"


def constant_guards(
    judge: Evaluator, before: Measurement, after: Measurement
) -> dict[str, ConstantPredictor | None]:
    """The guard against constant answers for each task, by name, "" for one by itself; None for text."""
    task = judge.task
    if not task.members:
        told = SideResult(before.test, before.labels), SideResult(after.test, after.labels)
        return {"": _constant(judge, task.kind, task.split("test"), *told)}
    return {
        member.name: _constant(judge, member.kind, whole_test(task, member), was, now)
        for member, was, now in zip(task.members, before.members, after.members, strict=True)
    }


def _constant(
    judge: Evaluator, kind: str, examples: Sequence[int], before: SideResult, after: SideResult
) -> ConstantPredictor | None:
    if kind == "text":
        return None
    gold = gold_labels(judge, examples)
    return constant_predictor(gold, before.labels, after.labels, judge.task.groups(examples))
