"""What a user could have had for nothing: one token banned, one bias per answer. Fitted on select, measured on test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize

from secateur.core.comparison import compare
from secateur.core.plan import Plan
from secateur.core.score import METRICS, Metric, Score
from secateur.evaluation.evaluator import Evaluator


def alternatives(judge: Evaluator, seed: int) -> list[dict[str, Any]]:
    """The original model with one token banned, and with one bias per answer; fitted on select, measured on test."""
    return [_ban(judge, seed), _calibration(judge, seed)]


def _ban(judge: Evaluator, seed: int) -> dict[str, Any]:
    name = "ban one token"
    if judge.task.kind != "generation":
        why = {"text": "text has no answers", "choice": "answers are chosen among given ones, not generated"}
        detail = why.get(judge.task.kind, "the tasks are of several kinds")
        return {"name": name, "applicable": False, "detail": detail}
    plan = Plan(judge.loaded.fingerprint)
    on_select = judge([plan], judge.task.split("select"))[plan]
    wrong = Counter(on_select["predicted"][on_select["correct"] == 0].tolist())
    if not wrong:
        return {"name": name, "applicable": False, "detail": "the original makes no mistake on select"}
    token = min(wrong, key=lambda t: (-wrong[t], t))
    banned = Evaluator(judge.loaded, judge.task, judge.encoded, ban=(token,))
    test = judge.task.split("test")
    score = _score(
        METRICS["accuracy"], banned([plan], test, "alternatives")[plan], judge.task.groups(test), seed
    )
    text = judge.loaded.tokenizer.decode([token])
    return {
        "name": name,
        "applicable": True,
        "detail": f"the original never answers {text!r}",
        **_brief(score),
    }


def _calibration(judge: Evaluator, seed: int) -> dict[str, Any]:
    name = "label calibration"
    answers = {frozenset(e.choices or ()) for e in judge.task.examples}
    if judge.task.kind != "choice" or len(answers) != 1:
        why = {"text": "text has no answers", "choice": "the choices differ from example to example"}
        detail = why.get(judge.task.kind, "no fixed set of answers")
        return {"name": name, "applicable": False, "detail": detail}
    labels = sorted(next(iter(answers)))
    plan = Plan(judge.loaded.fingerprint)
    bias = _fit_bias(*_label_scores(judge, plan, judge.task.split("select"), labels))
    test = judge.task.split("test")
    logps, gold = _label_scores(judge, plan, test, labels)
    outcomes = judge([plan], test)[plan].copy()
    outcomes["correct"] = (logps + bias).argmax(axis=1) == gold
    score = _score(METRICS["accuracy"], outcomes, judge.task.groups(test), seed)
    words = ", ".join(f"{label.strip()} {b:+.2f}" for label, b in zip(labels, bias, strict=True))
    detail = f"the original with a bias per answer: {words}"
    return {"name": name, "applicable": True, "detail": detail, **_brief(score)}


def _label_scores(
    judge: Evaluator, plan: Plan, examples: Sequence[int], labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihood of every label, (n, labels), and the index of the right one, (n,)."""
    tally = judge.tally(plan, examples)
    asked = judge.task.of(examples)
    places = [[example.choices.index(label) for label in labels] for example in asked]
    logps = [np.array(tally.choice_logps(e))[place] for e, place in zip(examples, places, strict=True)]
    return np.array(logps), np.array([labels.index(example.choices[example.gold]) for example in asked])


def _fit_bias(logps: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """The bias per answer that minimizes the log-loss of softmax(log-likelihood + bias). Convex; first bias is 0."""

    def loss(rest: np.ndarray) -> float:
        shifted = logps + np.concatenate([[0.0], rest])
        top = shifted.max(axis=1, keepdims=True)
        log_z = np.log(np.exp(shifted - top).sum(axis=1)) + top[:, 0]
        return float(np.mean(log_z - shifted[np.arange(len(gold)), gold])) + 1e-4 * float(rest @ rest)

    found = optimize.minimize(loss, np.zeros(logps.shape[1] - 1), method="L-BFGS-B")
    return np.concatenate([[0.0], found.x])


def _score(metric: Metric, outcomes: np.ndarray, groups: np.ndarray, seed: int) -> Score:
    return compare(metric, outcomes, outcomes, groups, seed=seed).after


def _brief(score: Score) -> Mapping[str, Any]:
    return {"value": score.value, "ci": score.ci and list(score.ci), "n": score.n, "groups": score.groups}
