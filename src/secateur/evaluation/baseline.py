"""Measure what a cut has to be compared with: what takes no model, the unchanged model, and the unchanged model with
one token banned or one bias per answer.

An accuracy says little by itself: 58 % of yes-or-no questions may be what a model gets that always says no.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from scipy import optimize

from secateur.core.baseline import warning
from secateur.core.comparison import compare
from secateur.core.plan import Plan
from secateur.core.records.verdict import AlternativeRecord, AnswerRecord, BaselineRecord
from secateur.core.score import METRICS, PRIMARY, Metric
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.measurement import choices_of
from secateur.tasks.example import Task


class Floors(TypedDict):
    """Scores that take no model; None where there is no such thing."""

    chance: float | None
    majority: AnswerRecord | None


def floors(task: Task) -> Floors:
    """Return what takes no model, read on the `select` split.

    Returns:
        `chance`, the mean of 1 / choices; `majority`, the most frequent right answer and its share, where all questions
        have the same choices.
    """
    examples = task.of(task.split("select"))
    if task.kinds != {"choice"} or not examples:
        return {"chance": None, "majority": None}
    chance = float(np.mean([1 / len(choices_of(example)) for example in examples]))
    if len({frozenset(choices_of(example)) for example in examples}) > 1:
        return {"chance": chance, "majority": None}
    return {
        "chance": chance,
        "majority": _most_frequent([choices_of(example)[example.gold] for example in examples]),
    }


def baseline(
    task: Task, split: str, examples: Sequence[int], outcomes: np.ndarray, metric: Metric, seed: int
) -> BaselineRecord:
    """Score a model on some examples in the metric that decides, beside chance and the most frequent right answer.

    Args:
        outcomes: Its OUTCOME rows on `examples`.
    """
    score = compare(metric, outcomes, outcomes, task.groups(examples), seed=seed).before
    given = None
    if task.kinds == {"choice"}:
        chosen = zip(task.of(examples), outcomes["predicted"].tolist(), strict=True)
        given = _most_frequent([choices_of(example)[number] for example, number in chosen])
    labelled = "label" in task.scored_as
    normed = METRICS["accuracy_norm"].mean(outcomes) if metric.name == "accuracy" and not labelled else np.nan
    record = BaselineRecord(
        split=split,
        metric=metric.name,
        n=score.n,
        value=score.value,
        ci=None if score.ci is None else list(score.ci),
        **floors(task),
        given=given,
        accuracy_norm=None if np.isnan(normed) else normed,
        extracted=any(task.member(example).extraction is not None for example in examples),
        labelled=labelled,
        warning=None,
    )
    return record.model_copy(update={"warning": warning(record)})


def _most_frequent(answers: Sequence[str]) -> AnswerRecord:
    answer, count = Counter(answers).most_common(1)[0]
    return AnswerRecord(answer=answer, share=count / len(answers))


# -------------------------------------------------------------------------------------- alternatives without a cut

BAN, CALIBRATION = "ban one token", "label calibration"
NO_ANSWERS = "text has no answers"
WITHOUT_ANSWERS = {
    kind: NO_ANSWERS if kind == "text" else "actions are no answers in words" for kind in PRIMARY
}


def alternatives(judge: Evaluator, seed: int) -> list[AlternativeRecord]:
    """Measure the original model with one token banned, and with one bias per answer: what could be had without a cut.

    Both are fitted on select and measured on test.
    """
    return [_ban(judge, seed), _calibration(judge, seed)]


def _ban(judge: Evaluator, seed: int) -> AlternativeRecord:
    if judge.task.kind != "generation":
        why = {**WITHOUT_ANSWERS, "choice": "answers are chosen among given ones, not generated"}
        detail = why.get(judge.task.kind, "the tasks are of several kinds")
        return AlternativeRecord(name=BAN, applicable=False, detail=detail)
    plan = Plan(judge.loaded.fingerprint)
    on_select = judge([plan], judge.task.split("select"))[plan]
    wrong = Counter(on_select["predicted"][on_select["correct"] == 0].tolist())
    if not wrong:
        detail = "the original makes no mistake on the validation split"
        return AlternativeRecord(name=BAN, applicable=False, detail=detail)
    token = min(wrong, key=lambda t: (-wrong[t], t))
    banned = Evaluator(judge.loaded, judge.task, judge.encoded, ban=(token,))
    outcomes = banned([plan], judge.task.split("test"), "alternatives")[plan]
    text = judge.loaded.tokenizer.decode([token])
    return _measured(BAN, f"the original never answers {text!r}", judge.task, outcomes, seed)


def _calibration(judge: Evaluator, seed: int) -> AlternativeRecord:
    answers = {frozenset(e.choices or ()) for e in judge.task.examples}
    if judge.task.kind != "choice" or len(answers) != 1:
        why = {**WITHOUT_ANSWERS, "choice": "the choices differ from example to example"}
        detail = why.get(judge.task.kind, "no fixed set of answers")
        return AlternativeRecord(name=CALIBRATION, applicable=False, detail=detail)
    labels = sorted(next(iter(answers)))
    plan = Plan(judge.loaded.fingerprint)
    bias = _fit_bias(*_label_scores(judge, plan, judge.task.split("select"), labels))
    test = judge.task.split("test")
    logps, gold = _label_scores(judge, plan, test, labels)
    outcomes = judge([plan], test)[plan].copy()
    outcomes["correct"] = (logps + bias).argmax(axis=1) == gold
    biases = ", ".join(f"{label.strip()} {b:+.2f}" for label, b in zip(labels, bias, strict=True))
    detail = f"the original with a bias per answer: {biases}"
    return _measured(CALIBRATION, detail, judge.task, outcomes, seed)


def _measured(name: str, detail: str, task: Task, outcomes: np.ndarray, seed: int) -> AlternativeRecord:
    """Return an alternative with its accuracy on test."""
    groups = task.groups(task.split("test"))
    score = compare(METRICS["accuracy"], outcomes, outcomes, groups, seed=seed).after
    return AlternativeRecord(
        name=name,
        applicable=True,
        detail=detail,
        value=score.value,
        ci=None if score.ci is None else list(score.ci),
        n=score.n,
        groups=score.groups,
    )


def _label_scores(
    judge: Evaluator, plan: Plan, examples: Sequence[int], labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-likelihood of every label, (n, labels), and the index of the right one, (n,)."""
    tally = judge.tally(plan, examples)
    questions = judge.task.of(examples)
    places = [[choices_of(example).index(label) for label in labels] for example in questions]
    logps = [np.array(tally.choice_logps(e))[place] for e, place in zip(examples, places, strict=True)]
    gold = [labels.index(choices_of(example)[example.gold]) for example in questions]
    return np.array(logps), np.array(gold)


def _fit_bias(logps: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Return the bias per answer that minimizes the log-loss of softmax(log-likelihood + bias), a convex problem; the
    first bias is 0."""

    def loss(others: np.ndarray) -> float:
        shifted = logps + np.concatenate([[0.0], others])
        top = shifted.max(axis=1, keepdims=True)
        log_z = np.log(np.exp(shifted - top).sum(axis=1)) + top[:, 0]
        return float(np.mean(log_z - shifted[np.arange(len(gold)), gold])) + 1e-4 * float(others @ others)

    fitted = optimize.minimize(loss, np.zeros(logps.shape[1] - 1), method="L-BFGS-B")
    return np.concatenate([[0.0], fitted.x])
