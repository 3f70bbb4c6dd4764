"""The one place that opens the `test` split: original against cut, paired, with its guards and honest alternatives.

What decides: the objective's metric on `test`, original against what was written to disk and read back. Everything
else (log-loss, guards, trivial alternatives, side effects) stands beside the word, it does not make it, except that a
fired constant-predictor guard takes `improves` away.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize

from secateur.core import stats
from secateur.core.ledger import Ledger
from secateur.core.plan import Plan
from secateur.core.score import METRICS, Metric, Score
from secateur.judge.evaluator import Judge
from secateur.judge.generate import greedy
from secateur.tasks.example import Task

VERDICT_VERSION = 1


@dataclass(frozen=True)
class Side:
    """A side effect to watch: another task's score, or with `continuations` what greedy generation does on it."""

    name: str
    task: Task
    continuations: bool = False


@dataclass(frozen=True, eq=False)
class Witness:
    """Everything measured on one of the two models: what `compare` needs when the other is no longer in memory."""

    test: np.ndarray
    sides: tuple[np.ndarray, ...]  # OUTCOME rows per side
    generated: tuple[list[list[int]], ...]  # greedy continuations per side that asks for them
    labels: tuple[str, ...]  # what was answered on each test example, as text
    paraphrases: np.ndarray | None


def opening(task: Task) -> str:
    """The name under which openings of this task's test split are counted."""
    return task.split_hash("test")


def witness(
    judge: Judge, side_judges: Sequence[Judge], sides: Sequence[Side], paraphrase_judge: Judge | None
) -> Witness:
    """Measure the model that `judge` holds, as it is, on test and on all sides."""
    plan = Plan(judge.loaded.fingerprint)
    test = judge([plan], judge.task.split("test"), "verify")[plan]
    outcomes, generated = [], []
    for side, side_judge in zip(sides, side_judges, strict=True):
        own = Plan(side_judge.loaded.fingerprint)
        everything = range(len(side.task.examples))
        outcomes.append(side_judge([own], everything, "side effects")[own])
        generated.append(_continuations(side_judge) if side.continuations else [])
    paraphrases = None
    if paraphrase_judge is not None:
        everything = range(len(paraphrase_judge.task.examples))
        paraphrases = paraphrase_judge([plan], everything, "paraphrases")[plan]
    return Witness(test, tuple(outcomes), tuple(generated), answer_labels(judge, test), paraphrases)


def answer_labels(judge: Judge, outcomes: np.ndarray) -> tuple[str, ...]:
    """What was answered, as text: the chosen choice, or the first greedy token; empty for text."""
    if judge.task.kind == "text":
        return ("",) * len(outcomes)
    if judge.task.kind == "choice":
        pairs = zip(outcomes["example"], outcomes["predicted"], strict=True)
        return tuple(judge.task.examples[e].choices[p] for e, p in pairs)
    return tuple(judge.loaded.tokenizer.decode([p]) for p in outcomes["predicted"].tolist())


def gold_labels(judge: Judge, examples: Sequence[int]) -> tuple[str, ...]:
    """The right answers in the same terms as `answer_labels`."""
    if judge.task.kind == "choice":
        asked = judge.task.of(examples)
        return tuple(example.choices[example.gold] for example in asked)
    golds = (judge.encoded[e].pairs[0][1][0] for e in examples)
    return tuple(judge.loaded.tokenizer.decode([token]) for token in golds)


GENERATED_TOKENS = 24
PROMPT_TOKENS = 24


def _continuations(judge: Judge) -> list[list[int]]:
    """Greedy continuations of the first tokens of up to 32 chunks."""
    chunks = [
        example.tokens
        for example in judge.task.examples
        if example.tokens and len(example.tokens) > PROMPT_TOKENS
    ]
    prompts = [chunk[:PROMPT_TOKENS] for chunk in chunks[:32]]
    return greedy(judge.loaded, prompts, GENERATED_TOKENS, judge.packing.max_tokens)


def paraphrase_task(task: Task, split: str) -> Task | None:
    """The other phrasings of a split's questions as a task of their own, or None where there are none."""
    asked = [task.examples[i] for i in task.split(split)]
    rows = [
        type(e)(f"{e.id}#{n}", text, e.answer, e.choices, group=e.group, meta=e.meta)
        for e in asked
        for n, text in enumerate(e.paraphrases)
    ]
    if not rows:
        return None
    splits = {"probe": (), "select": (), "test": tuple(range(len(rows)))}
    return Task(f"{task.name} (paraphrases)", task.kind, tuple(rows), splits, task.max_new_tokens)


def compare(
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
) -> dict[str, Any]:
    """The statistical part of `verdict.json`; records the opening of `test`."""
    examples = judge.task.split("test")
    groups = judge.task.groups(examples)
    primary = stats.compare(metric, before.test, after.test, groups, seed=seed)
    p_adjusted, openings = _adjusted(ledger, opening(judge.task), scope, plan, primary.p_value)
    guards = [_constant_guard(judge, before, after, plan), *_loss_guard(before, after, groups, metric, seed)]
    fired = any(guard["fired"] for guard in guards if guard["name"] == "constant predictor")
    word = stats.verdict_word(p_adjusted, primary.gained, fired)
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
        "secondary": [
            {"metric": other.name, "unit": other.unit, "higher_is_better": other.higher_is_better}
            | stats.compare(other, before.test, after.test, groups, seed=seed).to_json()
            for other in _secondary(judge.task, metric)
        ],
        "guards": guards,
        "side_effects": _side_effects(judge, before, after, sides, groups, seed),
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
    return stats.holm([o.p_value for o in known])[mine], len(known)


def _constant_guard(judge: Judge, before: Witness, after: Witness, plan: Plan) -> dict[str, Any]:
    name = "constant predictor"
    if judge.task.kind == "text" or not plan.edits:
        detail = "not applicable to text" if plan.edits else "nothing was cut"
        return {"name": name, "fired": False, "detail": detail}
    gold = gold_labels(judge, judge.task.split("test"))
    found = stats.constant_predictor(gold, before.labels, after.labels, judge.task.groups(judge.task.split("test")))
    return {"name": name, "fired": found.fired, "detail": found.reason} | found.to_json()


def _loss_guard(
    before: Witness, after: Witness, groups: np.ndarray, metric: Metric, seed: int
) -> list[dict[str, Any]]:
    """Accuracy can rise while the log-loss gets worse, as in some cells of LASER's own tables."""
    if metric.column == "loss":
        return []
    found = stats.compare(METRICS["loss"], before.test, after.test, groups, seed=seed)
    fired = found.difference > 0 and found.p_value < 0.05
    word = "got worse" if fired else "did not get worse"
    detail = f"the log-loss of the right answer {word}: {found.before.value:.3f} → {found.after.value:.3f} nats/token"
    return [{"name": "log-loss", "fired": bool(fired), "detail": detail}]


def _side_effects(
    judge: Judge, before: Witness, after: Witness, sides: Sequence[Side], groups: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    effects = []
    if before.paraphrases is not None and after.paraphrases is not None:
        task = paraphrase_task(judge.task, "test")
        assert task is not None
        paired = stats.compare(
            METRICS["accuracy"],
            before.paraphrases,
            after.paraphrases,
            task.groups(task.split("test")),
            seed=seed,
        )
        effects.append(
            {
                "name": "accuracy on the other paraphrases",
                "unit": "share",
                "higher_is_better": True,
                "n": len(before.paraphrases),
            }
            | paired.to_json()
        )
    for number, side in enumerate(sides):
        everything = range(len(side.task.examples))
        side_metric = METRICS[side.task.primary_metric]
        paired = stats.compare(
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
        which: {"value": float(np.exp(paired[which]["value"])), "ci": np.exp(paired[which]["ci"]).tolist()}
        for which in ("before", "after")
    }
    ratio = {
        "value": float(np.exp(paired["difference"]["value"])),
        "ci": np.exp(paired["difference"]["ci"]).tolist(),
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
    shares = [len(set(zip(r, r[1:], strict=False))) / (len(r) - 1) for r in rows if len(r) > 1]
    return float(np.mean(shares)) if shares else 1.0


# What a user could have had for nothing


def alternatives(judge: Judge, seed: int) -> list[dict[str, Any]]:
    """The original model with one token banned, and with one bias per answer; fitted on select, measured on test."""
    return [_ban(judge, seed), _calibration(judge, seed)]


def _ban(judge: Judge, seed: int) -> dict[str, Any]:
    name = "ban one token"
    if judge.task.kind != "generation":
        return {
            "name": name,
            "applicable": False,
            "detail": "answers are chosen among given ones, not generated",
        }
    plan = Plan(judge.loaded.fingerprint)
    on_select = judge([plan], judge.task.split("select"))[plan]
    wrong = Counter(on_select["predicted"][on_select["correct"] == 0].tolist())
    if not wrong:
        return {"name": name, "applicable": False, "detail": "the original makes no mistake on select"}
    token = min(wrong, key=lambda t: (-wrong[t], t))
    banned = Judge(judge.loaded, judge.task, judge.encoded, ban=(token,))
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


def _calibration(judge: Judge, seed: int) -> dict[str, Any]:
    name = "label calibration"
    sets = {e.choices for e in judge.task.examples}
    if judge.task.kind != "choice" or len(sets) != 1:
        detail = (
            "no fixed set of answers"
            if judge.task.kind != "choice"
            else "the choices differ from example to example"
        )
        return {"name": name, "applicable": False, "detail": detail}
    plan = Plan(judge.loaded.fingerprint)
    select, test = judge.task.split("select"), judge.task.split("test")
    bias = _fit_bias(*_choice_scores(judge, plan, select))
    logps, gold = _choice_scores(judge, plan, test)
    outcomes = judge([plan], test)[plan].copy()
    outcomes["correct"] = (logps + bias).argmax(axis=1) == gold
    score = _score(METRICS["accuracy"], outcomes, judge.task.groups(test), seed)
    words = ", ".join(f"{c.strip()} {b:+.2f}" for c, b in zip(next(iter(sets)), bias, strict=True))
    return {
        "name": name,
        "applicable": True,
        "detail": f"the original with a bias per answer: {words}",
        **_brief(score),
    }


def _choice_scores(judge: Judge, plan: Plan, examples: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    tally = judge.tally(plan, examples)
    return np.array([tally.choice_logps(e) for e in examples]), np.array(
        [judge.encoded[e].gold for e in examples]
    )


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
    return stats.compare(metric, outcomes, outcomes, groups, seed=seed).after


def _brief(score: Score) -> Mapping[str, Any]:
    return {"value": score.value, "ci": list(score.ci), "n": score.n}
