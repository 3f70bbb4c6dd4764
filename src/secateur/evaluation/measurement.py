"""Measure one model on `test` and on the side tasks, and compare two such measurements on the side tasks.

Decides nothing: the word of a verdict comes from `verdict.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypedDict

import numpy as np

from secateur.core.comparison import Comparison, compare
from secateur.core.plan import Plan
from secateur.core.records.verdict import IntervalRecord, ScoreRecord, SideEffect
from secateur.core.score import METRICS, PRIMARY, Score
from secateur.core.stats import exponential, exponential_interval
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.generate import greedy
from secateur.tasks.example import Example, Task, all_tested
from secateur.tasks.joint import test_splits, tested

GENERATED_TOKENS = 24
PROMPT_TOKENS = 24


@dataclass(frozen=True)
class SideTask:
    """A task that is watched for side effects.

    Attributes:
        continuations: Also generate greedy continuations of its chunks of text.
        phrasings: The task is the test questions in their other phrasings.
    """

    name: str
    task: Task
    continuations: bool = False
    phrasings: bool = False


@dataclass(frozen=True, eq=False)
class SplitResult:
    """OUTCOME rows of one test split, and the answer to each example as text."""

    outcomes: np.ndarray
    labels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Measurement:
    """All measurements of one model: enough to compare it when it is no longer in memory.

    Attributes:
        test: OUTCOME rows of the test split.
        side_outcomes: OUTCOME rows of each side task.
        continuations: Greedy continuations of each side task, as token ids; empty where it asks for none.
        labels: The answer to each test example as text.
        members: Of a joint task, each member on all of its own test split.
    """

    test: np.ndarray
    side_outcomes: tuple[np.ndarray, ...]
    continuations: tuple[list[list[int]], ...]
    labels: tuple[str, ...]
    members: tuple[SplitResult, ...] = ()


def measure_model(
    judge: Evaluator,
    side_judges: Sequence[Evaluator] = (),
    side_tasks: Sequence[SideTask] = (),
    plan: Plan | None = None,
) -> Measurement:
    """Measure the model that `judge` holds, as it is or as if cut by `plan`, on test; as it is on all side tasks."""
    assert plan is None or not side_tasks, "side tasks are measured of the model as it is"
    plan = Plan(judge.loaded.fingerprint) if plan is None else plan
    test, *members = _test_results(judge, plan)
    outcomes, continuations = [], []
    for side, side_judge in zip(side_tasks, side_judges, strict=True):
        everything = range(len(side.task.examples))
        outcomes.append(side_judge([plan], everything, "side effects")[plan])
        continuations.append(_continuations(side_judge) if side.continuations else [])
    return Measurement(test.outcomes, tuple(outcomes), tuple(continuations), test.labels, tuple(members))


def _test_results(judge: Evaluator, plan: Plan) -> list[SplitResult]:
    """Return the results of each of the test splits, which may overlap: no example runs twice."""
    every = tested(judge.task)
    place = {example: number for number, example in enumerate(every)}
    judged = judge([plan], every, "verify")[plan]
    rows = [judged[[place[example] for example in examples]] for examples in test_splits(judge.task)]
    return [SplitResult(outcomes, answer_labels(judge, outcomes)) for outcomes in rows]


def answer_labels(judge: Evaluator, outcomes: np.ndarray) -> tuple[str, ...]:
    """Return each answer as text: the chosen choice, or the first greedy token; empty for text and play."""

    def label(example: int, predicted: int) -> str:
        kind = judge.task.member(example).kind
        if kind in PRIMARY:
            return ""
        if kind == "choice":
            return choices_of(judge.task.examples[example])[predicted]
        return str(judge.loaded.tokenizer.decode([predicted]))

    return tuple(map(label, outcomes["example"].tolist(), outcomes["predicted"].tolist()))


def gold_labels(judge: Evaluator, examples: Sequence[int]) -> tuple[str, ...]:
    """Return the right answers in the same terms as `answer_labels`."""

    def label(number: int) -> str:
        example = judge.task.examples[number]
        if judge.task.member(number).kind == "choice":
            return choices_of(example)[example.gold]
        return str(judge.loaded.tokenizer.decode([judge.encoded[number].pairs[0][1][0]]))

    return tuple(map(label, examples))


def choices_of(example: Example) -> tuple[str, ...]:
    """Return the choices of an example of kind "choice"."""
    assert example.choices is not None, f"{example.id} has no choices"
    return example.choices


def _continuations(judge: Evaluator) -> list[list[int]]:
    """Return greedy continuations of the first tokens of up to 32 chunks."""
    chunks = [
        example.tokens
        for example in judge.task.examples
        if example.tokens and len(example.tokens) > PROMPT_TOKENS
    ]
    prompts = [chunk[:PROMPT_TOKENS] for chunk in chunks[:32]]
    return greedy(judge.loaded, prompts, GENERATED_TOKENS, judge.packing.max_tokens)


def paraphrase_task(task: Task, split: str) -> Task | None:
    """Return the other phrasings of a split's questions as a task, or None where there are none."""
    rows = [
        type(e)(f"{e.id}#{n}", text, e.answer, e.choices, group=e.group, meta=e.meta, task=e.task)
        for e in task.of(task.split(split))
        for n, text in enumerate(e.paraphrases)
    ]
    if not rows:
        return None
    name = f"{task.name} (paraphrases)"
    return replace(task, name=name, examples=tuple(rows), splits=all_tested(rows))


# ------------------------------------------------------------------------------------------------------------ compared


class PairedScores(TypedDict):
    """The fields that every record of a paired comparison has. `difference` is after − before."""

    before: ScoreRecord
    after: ScoreRecord
    difference: IntervalRecord
    gained: bool


def paired_scores(paired: Comparison) -> PairedScores:
    """Return both scores and their difference, which is in the metric's own unit, whichever way is better."""
    return {
        "before": score_record(paired.before),
        "after": score_record(paired.after),
        "difference": interval_record(paired.difference, paired.difference_ci),
        "gained": paired.gained,
    }


def score_record(score: Score) -> ScoreRecord:
    """Return a score as a record."""
    return ScoreRecord(
        metric=score.metric,
        value=score.value,
        ci=None if score.ci is None else list(score.ci),
        n=score.n,
        groups=score.groups,
        unit=score.unit,
        higher_is_better=score.higher_is_better,
    )


def interval_record(value: float, ci: Sequence[float] | None) -> IntervalRecord:
    """Return a number with its interval as a record."""
    return IntervalRecord(value=value, ci=None if ci is None else list(ci))


def compare_side_tasks(
    before: Measurement, after: Measurement, side_tasks: Sequence[SideTask], seed: int
) -> list[SideEffect]:
    """Compare two models on each side task, and their greedy continuations where there are some."""
    effects = []
    for number, side in enumerate(side_tasks):
        groups = side.task.groups(range(len(side.task.examples)))
        outcomes = before.side_outcomes[number], after.side_outcomes[number]
        paired = compare(METRICS[side.task.primary_metric], *outcomes, groups, seed=seed)
        effects.append(_side_effect(side, paired))
        if side.continuations and before.continuations[number]:  # none where chunks are too short to continue
            effects.append(_agreement(side, before.continuations[number], after.continuations[number]))
    return effects


def _side_effect(side: SideTask, paired: Comparison) -> SideEffect:
    """Report text as perplexity = exp(nats per token), the usual form; the test stays on the loss."""
    n, metric = len(side.task.examples), paired.before.metric
    if metric != "text_loss":
        return SideEffect(
            name=f"{metric.replace('_', ' ') if not side.task.answers else metric} on {side.name}",
            unit=paired.before.unit,
            higher_is_better=paired.before.higher_is_better,
            n=n,
            **paired_scores(paired),
        )
    longest = max(len(e.tokens or ()) for e in side.task.examples)  # the longer, the lower the perplexity
    return SideEffect(
        name=f"perplexity on {side.name} (chunks of {longest} tokens)",
        unit="perplexity",
        higher_is_better=False,
        n=n,
        before=_perplexity(paired.before.value, paired.before.ci),
        after=_perplexity(paired.after.value, paired.after.ci),
        ratio=_perplexity(paired.difference, paired.difference_ci),
    )


def _perplexity(loss: float, ci: Sequence[float] | None) -> IntervalRecord:
    return interval_record(float(exponential(loss)), exponential_interval(ci))


def _agreement(side: SideTask, before: list[list[int]], after: list[list[int]]) -> SideEffect:
    """Report how many greedy tokens are still the original's, and whether continuations repeat themselves."""
    same = [
        float(np.mean([x == y for x, y in zip(a, b, strict=False)])) if a and b else 1.0
        for a, b in zip(before, after, strict=True)
    ]
    return SideEffect(
        name=f"greedy continuations of {side.name}",
        unit="distinct bigrams, share",
        higher_is_better=True,
        n=len(before),
        before=interval_record(_distinct_bigrams(before), None),
        after=interval_record(_distinct_bigrams(after), None),
        detail=f"{float(np.mean(same)):.0%} of the tokens are the original's",
    )


def _distinct_bigrams(rows: Sequence[Sequence[int]]) -> float:
    """Return the mean share of bigrams that are different from each other within a continuation.

    Source: Li et al. 2016 (arXiv 1510.03055), distinct-2.
    """
    shares = [len(set(pairwise(row))) / (len(row) - 1) for row in rows if len(row) > 1]
    return float(np.mean(shares)) if shares else 1.0
