"""The verdict: original against cut on `test`, paired, with its guards and side effects.

What decides: the objective's metric on `test`, original against what was written to disk and read back. Everything
else (log-loss, trivial alternatives, side effects) stands beside the word, it does not make it, except that a fired
constant-predictor guard takes `improves` away, and `not worse by more than M` unless the original was as hollow.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from secateur.core.comparison import compare, verdict_word
from secateur.core.guard import ConstantPredictor, constant_predictor
from secateur.core.ledger import Ledger
from secateur.core.noninferiority import NonInferiority, non_inferiority
from secateur.core.plan import Plan
from secateur.core.score import METRICS, Metric
from secateur.core.stats import exponential, holm
from secateur.judge.evaluator import Judge
from secateur.tasks.example import Task
from secateur.verify.witness import Side, Witness, gold_labels, opening

VERDICT_VERSION = 1


def decide(
    judge: Judge,
    before: Witness,
    after: Witness,
    plan: Plan,
    sides: Sequence[Side],
    metric: Metric,
    *,
    ledger: Ledger,
    scope: str,
    seed: int,
    margin: float | None = None,
) -> dict[str, Any]:
    """The statistical part of `verdict.json`; records the opening of `test`.

    `margin`, in the metric's unit: how much worse still counts as not worse. The caller fixes it before `test` is
    opened. None, or nothing cut: the question is not asked.
    """
    examples = judge.task.split("test")
    groups = judge.task.groups(examples)
    primary = compare(metric, before.test, after.test, groups, seed=seed)
    p_adjusted, openings = _adjusted(ledger, opening(judge.task), scope, plan, primary.p_value)
    bounded = None
    if margin is not None and plan.edits:
        bounded = non_inferiority(
            metric, before.test, after.test, groups, margin=margin, openings=openings, seed=seed
        )
    constant = _constant_guard(judge, before, after, plan)
    word = _word(p_adjusted, primary.gained, constant, bounded)
    return {
        "version": VERDICT_VERSION,
        "verdict": word,
        **primary.to_json(),
        "metric": metric.name,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "n": len(examples),
        "groups": len(np.unique(groups)),
        "p_value": p_adjusted,
        "p_value_unadjusted": primary.p_value,
        "openings": openings,
        "non_inferiority": None if bounded is None else bounded.to_json(),
        "secondary": [
            {"metric": other.name, "unit": other.unit, "higher_is_better": other.higher_is_better}
            | compare(other, before.test, after.test, groups, seed=seed).to_json()
            for other in _secondary(judge.task, metric)
        ],
        "guards": [_constant_record(plan, constant), *_loss_guard(before, after, groups, metric, seed)],
        "side_effects": _side_effects(before, after, sides, seed),
    }


def _secondary(task: Task, primary: Metric) -> list[Metric]:
    names = {
        "text": [],
        "choice": ["accuracy", "accuracy_norm", "loss"],
        "generation": ["accuracy", "loss", "top5", "top10"],
    }
    return [METRICS[name] for name in names[task.kind] if name != primary.name]


def _adjusted(ledger: Ledger, split: str, scope: str, plan: Plan, p_value: float) -> tuple[float, int]:
    """Holm's correction over every plan this ledger has opened this test split for, this one included."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    ledger.record_opening(split, scope, plan, p_value, now)
    known = ledger.openings(split)
    mine = next(i for i, o in enumerate(known) if o.scope == scope and o.plan == plan)
    return holm([o.p_value for o in known])[mine], len(known)


def _word(
    p_value: float, gained: bool, constant: ConstantPredictor | None, bounded: NonInferiority | None
) -> str:
    fired, hollow = (False, False) if constant is None else (constant.fired, constant.hollow)
    not_worse = bounded.word if bounded is not None and bounded.shown and not hollow else None
    return verdict_word(p_value, gained, fired, not_worse)


def _constant_guard(judge: Judge, before: Witness, after: Witness, plan: Plan) -> ConstantPredictor | None:
    """None where there is nothing to guard: text, or nothing cut."""
    if judge.task.kind == "text" or not plan.edits:
        return None
    examples = judge.task.split("test")
    gold = gold_labels(judge, examples)
    return constant_predictor(gold, before.labels, after.labels, judge.task.groups(examples))


def _constant_record(plan: Plan, found: ConstantPredictor | None) -> dict[str, Any]:
    why_not = "not applicable to text" if plan.edits else "nothing was cut"
    record = {"fired": False, "detail": why_not} if found is None else found.to_json()
    return {"name": "constant predictor", **record}


def _loss_guard(
    before: Witness, after: Witness, groups: np.ndarray, metric: Metric, seed: int
) -> list[dict[str, Any]]:
    """Accuracy can rise while the log-loss gets worse, as in some cells of LASER's own tables."""
    if metric.column == "loss":
        return []
    found = compare(METRICS["loss"], before.test, after.test, groups, seed=seed)
    fired = found.difference > 0 and found.p_value < 0.05
    word = "got worse" if fired else "did not get worse"
    detail = f"the log-loss of the right answer {word}: {found.before.value:.3f} → {found.after.value:.3f} nats/token"
    return [{"name": "log-loss", "fired": bool(fired), "detail": detail}]


def _side_effects(before: Witness, after: Witness, sides: Sequence[Side], seed: int) -> list[dict[str, Any]]:
    effects = []
    for number, side in enumerate(sides):
        everything = range(len(side.task.examples))
        side_metric = METRICS[side.task.primary_metric]
        paired = compare(
            side_metric, before.sides[number], after.sides[number], side.task.groups(everything), seed=seed
        )
        effects.append(_named(side, side_metric, paired.to_json(), len(side.task.examples)))
        if side.continuations:
            effects.append(_agreement(side, before.generated[number], after.generated[number]))
    return effects


def _named(side: Side, metric: Metric, paired: dict[str, Any], n: int) -> dict[str, Any]:
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
            "ci": exponential(paired[which]["ci"]).tolist(),
        }
        for which in ("before", "after")
    }
    ratio = {
        "value": float(exponential(paired["difference"]["value"])),
        "ci": exponential(paired["difference"]["ci"]).tolist(),
    }
    head = {"name": f"perplexity on {side.name}", "unit": "perplexity", "higher_is_better": False, "n": n}
    return head | shown | {"ratio": ratio, "p_value": paired["p_value"], "test": paired["test"]}


def _agreement(side: Side, before: list[list[int]], after: list[list[int]]) -> dict[str, Any]:
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
        "p_value": None,
        "detail": f"{float(np.mean(same)):.0%} of the tokens are the original's",
    }


def _distinct(rows: Sequence[Sequence[int]]) -> float:
    """Share of bigrams that are different from each other within a continuation (Li et al. 2016, distinct-2), mean."""
    shares = [len(set(pairwise(r))) / (len(r) - 1) for r in rows if len(r) > 1]
    return float(np.mean(shares)) if shares else 1.0
