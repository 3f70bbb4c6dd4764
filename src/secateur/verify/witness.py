"""Everything that is measured on one of the two models, on `test` and on the sides. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateur.core.plan import Plan
from secateur.judge.evaluator import Judge
from secateur.judge.generate import greedy
from secateur.tasks.example import Task


@dataclass(frozen=True)
class Side:
    """A side effect to watch: another task's score, with `continuations` also what greedy generation does on it.

    `phrasings`: the task is the test questions in their other phrasings.
    """

    name: str
    task: Task
    continuations: bool = False
    phrasings: bool = False


@dataclass(frozen=True, eq=False)
class Witness:
    """Everything measured on one of the two models: what `compare` needs when the other is no longer in memory."""

    test: np.ndarray
    sides: tuple[np.ndarray, ...]  # OUTCOME rows per side
    generated: tuple[list[list[int]], ...]  # greedy continuations per side that asks for them
    labels: tuple[str, ...]  # what was answered on each test example, as text


def opening(task: Task) -> str:
    """The name under which openings of this task's test split are counted."""
    return task.split_hash("test")


def witness(judge: Judge, side_judges: Sequence[Judge], sides: Sequence[Side]) -> Witness:
    """Measure the model that `judge` holds, as it is, on test and on all sides."""
    plan = Plan(judge.loaded.fingerprint)
    test = judge([plan], judge.task.split("test"), "verify")[plan]
    outcomes, generated = [], []
    for side, side_judge in zip(sides, side_judges, strict=True):
        everything = range(len(side.task.examples))
        outcomes.append(side_judge([plan], everything, "side effects")[plan])
        generated.append(_continuations(side_judge) if side.continuations else [])
    return Witness(test, tuple(outcomes), tuple(generated), answer_labels(judge, test))


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
