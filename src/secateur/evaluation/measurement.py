"""Everything that is measured on one of the two models, on `test` and on the sides. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from secateur.core.plan import Plan
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.generate import greedy
from secateur.tasks.example import Task, all_tested
from secateur.tasks.joint import test_splits, tested


@dataclass(frozen=True)
class SideTask:
    """A side effect to watch: another task's score, with `continuations` also what greedy generation does on it.

    `phrasings`: the task is the test questions in their other phrasings.
    """

    name: str
    task: Task
    continuations: bool = False
    phrasings: bool = False


@dataclass(frozen=True, eq=False)
class SideResult:
    """OUTCOME rows, and what was answered on each example as text."""

    outcomes: np.ndarray
    labels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Measurement:
    """Everything measured on one of the two models: what `compare` needs when the other is no longer in memory."""

    test: np.ndarray
    sides: tuple[np.ndarray, ...]  # OUTCOME rows per side
    generated: tuple[list[list[int]], ...]  # greedy continuations per side that asks for them
    labels: tuple[str, ...]  # what was answered on each test example, as text
    members: tuple[SideResult, ...] = ()  # of a joint task: each member on all of its own test split


def measure_model(
    judge: Evaluator, side_judges: Sequence[Evaluator], sides: Sequence[SideTask]
) -> Measurement:
    """Measure the model that `judge` holds, as it is, on test and on all sides."""
    plan = Plan(judge.loaded.fingerprint)
    test, *members = _told(judge, plan)
    outcomes, generated = [], []
    for side, side_judge in zip(sides, side_judges, strict=True):
        everything = range(len(side.task.examples))
        outcomes.append(side_judge([plan], everything, "side effects")[plan])
        generated.append(_continuations(side_judge) if side.continuations else [])
    return Measurement(test.outcomes, tuple(outcomes), tuple(generated), test.labels, tuple(members))


def _told(judge: Evaluator, plan: Plan) -> list[SideResult]:
    """What was said on each of the test splits, which may overlap: no example is run twice."""
    every = tested(judge.task)
    place = {example: number for number, example in enumerate(every)}
    judged = judge([plan], every, "verify")[plan]
    rows = [judged[[place[example] for example in examples]] for examples in test_splits(judge.task)]
    return [SideResult(some, answer_labels(judge, some)) for some in rows]


def answer_labels(judge: Evaluator, outcomes: np.ndarray) -> tuple[str, ...]:
    """What was answered, as text: the chosen choice, or the first greedy token; empty for text."""
    pairs = zip(outcomes["example"].tolist(), outcomes["predicted"].tolist(), strict=True)
    return tuple(_said(judge, example, predicted) for example, predicted in pairs)


def _said(judge: Evaluator, example: int, predicted: int) -> str:
    kind = judge.task.member(example).kind
    if kind == "text":
        return ""
    if kind == "choice":
        return judge.task.examples[example].choices[predicted]
    return judge.loaded.tokenizer.decode([predicted])


def gold_labels(judge: Evaluator, examples: Sequence[int]) -> tuple[str, ...]:
    """The right answers in the same terms as `answer_labels`."""
    return tuple(_right(judge, example) for example in examples)


def _right(judge: Evaluator, number: int) -> str:
    example = judge.task.examples[number]
    if judge.task.member(number).kind == "choice":
        return example.choices[example.gold]
    return judge.loaded.tokenizer.decode([judge.encoded[number].pairs[0][1][0]])


GENERATED_TOKENS = 24
PROMPT_TOKENS = 24


def _continuations(judge: Evaluator) -> list[list[int]]:
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
        type(e)(f"{e.id}#{n}", text, e.answer, e.choices, group=e.group, meta=e.meta, task=e.task)
        for e in asked
        for n, text in enumerate(e.paraphrases)
    ]
    if not rows:
        return None
    name = f"{task.name} (paraphrases)"
    return replace(task, name=name, examples=tuple(rows), splits=all_tested(rows))
