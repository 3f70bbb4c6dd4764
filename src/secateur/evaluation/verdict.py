"""The verdict: original against cut on `test`, paired, with its guards and side effects.

What decides: the objective's metric on `test`, original against what was written to disk and read back. Everything
else (log-loss, trivial alternatives, side effects) stands beside the word, it does not make it, except that a fired
constant-predictor guard takes `improves` away, and `not worse by more than M` unless the original was as hollow; and
that several tasks are judged one by one, where harm to one of them decides (`members.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from secateur.core.comparison import compare, verdict_word
from secateur.core.guard import ConstantPredictor
from secateur.core.ledger import Ledger
from secateur.core.noninferiority import NonInferiority, non_inferiority
from secateur.core.plan import Plan
from secateur.core.score import METRICS, Metric
from secateur.core.stats import exponential, exponential_interval
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.measurement import Measurement, SideTask
from secateur.evaluation.members import (
    beyond_margin,
    constant_guards,
    harm_guards,
    harmed,
    member_rows,
    secondary,
)
from secateur.evaluation.openings import count, opening, record
from secateur.tasks.example import Task
from secateur.tasks.joint import alone

VERDICT_VERSION = 1


def decide(
    judge: Evaluator,
    before: Measurement,
    after: Measurement,
    plan: Plan,
    sides: Sequence[SideTask],
    metric: Metric,
    *,
    ledger: Ledger,
    scope: str,
    seed: int,
    margin: float | None = None,
) -> dict[str, Any]:
    """The statistical part of `verdict.json`; records the opening of `test`.

    `margin`, in the metric's unit: how much worse still counts as not worse. None, or nothing cut: the question is not
    asked. Where the ledger knows an earlier look at the same plan and metric, the margin named then decides the word.
    """
    examples = judge.task.split("test")
    groups = judge.task.groups(examples)
    primary = compare(metric, before.test, after.test, groups, seed=seed)
    margin = margin if plan.edits else None
    counted = count(ledger, judge.task, opening(scope, plan, metric.name, primary.p_value, margin))
    late, openings, bounded = counted.named_late(margin), counted.openings, None
    decides = counted.earlier.margin if late else margin
    if margin is not None:
        bounded = non_inferiority(
            metric, before.test, after.test, groups, margin=margin, openings=openings, seed=seed
        )
    members = member_rows(judge, before, after, metric, margin=decides, openings=openings, seed=seed)
    _record_members(ledger, judge.task, scope, plan, members)
    constants = constant_guards(judge, before, after) if plan.edits else {"": None}
    within = None if bounded is None or decides is None else replace(bounded, margin=decides)
    word = _word(counted.p_value, primary.gained, list(constants.values()), within, members)
    return {
        "version": VERDICT_VERSION,
        "verdict": word,
        **primary.to_json(),
        "metric": metric.name,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "n": len(examples),
        "groups": len(np.unique(groups)),
        "p_value": counted.p_value,
        "p_value_unadjusted": primary.p_value,
        "openings": openings,
        "non_inferiority": bounded and bounded.to_json() | {"named_late": late, "decides": decides},
        "secondary": secondary(judge.task.kinds, metric, before.test, after.test, groups, seed),
        "tasks": members,
        "guards": [
            *harm_guards(members),
            *(_constant_record(name, found) for name, found in constants.items() if found is not None),
            *(_loss_guard(before, after, groups, metric, seed) if plan.edits else ()),
        ],
        "side_effects": _side_effects(before, after, sides, seed),
    }


def _record_members(
    ledger: Ledger, task: Task, scope: str, plan: Plan, rows: Sequence[Mapping[str, Any]]
) -> None:
    """A joint verdict is a look at the test split of each member."""
    for member, row in zip(task.members, rows, strict=True):
        opened = opening(scope, plan, row["metric"], row["p_value_unadjusted"])
        record(ledger, alone(task, member), opened)


def _word(
    p_value: float,
    gained: bool,
    constants: Sequence[ConstantPredictor | None],
    bounded: NonInferiority | None,
    members: Sequence[Mapping[str, Any]],
) -> str:
    hollow = any(found.hollow for found in constants if found is not None)
    fired = any(found.fired for found in constants if found is not None) or any(map(harmed, members))
    not_worse = bounded.word if bounded is not None and bounded.shown and not hollow else None
    return verdict_word(p_value, gained, fired, not_worse, any(map(beyond_margin, members)))


def _constant_record(task: str, found: ConstantPredictor) -> dict[str, Any]:
    """`task` is "" for a task by itself."""
    return {"name": f"constant predictor on {task}" if task else "constant predictor"} | found.to_json()


def _loss_guard(
    before: Measurement, after: Measurement, groups: np.ndarray, metric: Metric, seed: int
) -> list[dict[str, Any]]:
    """Accuracy can rise while the log-loss gets worse, as in some cells of LASER's own tables."""
    if metric.column == "loss":
        return []
    found = compare(METRICS["loss"], before.test, after.test, groups, seed=seed)
    fired = found.difference_ci is not None and found.difference_ci[0] > 0
    word = "got worse" if fired else "did not get worse"
    detail = f"the log-loss of the right answer {word}: {found.before.value:.3f} → {found.after.value:.3f} nats/token"
    return [{"name": "log-loss", "fired": bool(fired), "detail": detail}]


def _side_effects(
    before: Measurement, after: Measurement, sides: Sequence[SideTask], seed: int
) -> list[dict[str, Any]]:
    effects = []
    for number, side in enumerate(sides):
        everything = range(len(side.task.examples))
        side_metric = METRICS[side.task.primary_metric]
        paired = compare(
            side_metric, before.sides[number], after.sides[number], side.task.groups(everything), seed=seed
        )
        effects.append(_named(side, side_metric, paired.measured(), len(side.task.examples)))
        if side.continuations and before.generated[number]:  # none where chunks are too short to go on from
            effects.append(_agreement(side, before.generated[number], after.generated[number]))
    return effects


def _named(side: SideTask, metric: Metric, paired: dict[str, Any], n: int) -> dict[str, Any]:
    """Text is reported as perplexity = exp(nats per token), as people know it; the test stays on the loss."""
    if metric.name != "text_loss":
        return {
            "name": f"{metric.name} on {side.name}",
            "unit": metric.unit,
            "higher_is_better": True,
            "n": n,
        } | paired
    shown = {
        which: {
            "value": float(exponential(paired[which]["value"])),
            "ci": exponential_interval(paired[which]["ci"]),
        }
        for which in ("before", "after")
    }
    ratio = {
        "value": float(exponential(paired["difference"]["value"])),
        "ci": exponential_interval(paired["difference"]["ci"]),
    }
    longest = max(
        len(example.tokens) for example in side.task.examples
    )  # the longer, the lower the perplexity
    name = f"perplexity on {side.name} (chunks of {longest} tokens)"
    head = {"name": name, "unit": "perplexity", "higher_is_better": False, "n": n}
    return head | shown | {"ratio": ratio}


def _agreement(side: SideTask, before: list[list[int]], after: list[list[int]]) -> dict[str, Any]:
    """How far greedy continuations are still the original's, and whether they fall into repetition."""
    same = [
        np.mean([x == y for x, y in zip(a, b, strict=False)] or [1.0])
        for a, b in zip(before, after, strict=True)
    ]
    return {
        "name": f"greedy continuations of {side.name}",
        "unit": "distinct bigrams, share",
        "higher_is_better": True,
        "n": len(before),
        "before": {"value": _distinct(before), "ci": None},
        "after": {"value": _distinct(after), "ci": None},
        "detail": f"{float(np.mean(same)):.0%} of the tokens are the original's",
    }


def _distinct(rows: Sequence[Sequence[int]]) -> float:
    """Share of bigrams that are different from each other within a continuation (Li et al. 2016, distinct-2), mean."""
    shares = [len(set(pairwise(r))) / (len(r) - 1) for r in rows if len(r) > 1]
    return float(np.mean(shares)) if shares else 1.0
