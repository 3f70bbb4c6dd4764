"""Solved examples before every prompt, drawn from the probe split alone, so that neither choosing nor the verdict's
data is ever shown to a model.

Layout as in the evaluation harness: prompt and answer of each, a blank line after it. Differs: the harness draws in
the order in which it asks, from whatever part a task names; here a draw depends on the seed, the example and the
probe split, and on nothing else. Knows no tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from secateur.errors import TaskError
from secateur.tasks.example import Example, Task

SEPARATOR = "\n\n"  # lm-evaluation-harness 0.4, `fewshot_delimiter`


def with_shots(task: Task, shots: int, seed: int) -> Task:
    """The same task with `shots` solved examples before every prompt (every context, every paraphrase); splits, groups,
    answers and choices stay. 0 gives the task itself.

    Raises: `TaskError` for a text task, a negative number, and a probe split with too few groups to draw from.
    """
    if shots == 0:
        return task
    if shots < 0:
        raise TaskError(f"{shots} shots: give 0 or more.")
    if task.kind == "text":
        raise TaskError(f"{task.name}: text has no questions to show answers to. Leave out --shots.")
    pool = _pool(task)
    examples = []
    for example in task.examples:
        shown = _drawn(pool, task.name, example, shots, seed)
        examples.append(_after("".join(map(demonstration, shown)), example))
    return replace(task, name=f"{task.name} ({shots}-shot)", examples=tuple(examples))


def demonstrations(task: Task, example: Example, shots: int, seed: int) -> list[Example]:
    """What `with_shots` shows before `example`, in its order: each of another group, none of the example's own."""
    return _drawn(_pool(task), task.name, example, shots, seed)


def demonstration(example: Example) -> str:
    """One solved example as it is read: its prompt, with the right choice in it where choices stand in the question."""
    prompt = example.prompt if example.contexts is None else example.contexts[example.gold]
    return prompt + example.answer + SEPARATOR


def _pool(task: Task) -> dict[str, list[Example]]:
    """The examples of the probe split by group, both in the order of their names and not of the task."""
    pool: dict[str, list[Example]] = {}
    for example in sorted(task.of(task.split("probe")), key=lambda example: (example.group, example.id)):
        pool.setdefault(example.group, []).append(example)
    return pool


def _drawn(
    pool: Mapping[str, Sequence[Example]], name: str, example: Example, shots: int, seed: int
) -> list[Example]:
    """One more group than wanted is drawn, so that the example's own can be left out of them."""
    others = len(pool) - (example.group in pool)
    if shots > others:
        raise TaskError(
            f"{name}: {shots} shots for example {example.id!r} need {shots} other groups in the probe split, which has "
            f"{others}. Give fewer --shots, more data, or a larger --limit."
        )
    rng = random.Random(f"shots {seed} {shots} {example.id}")
    groups = rng.sample(list(pool), min(shots + 1, len(pool)))
    return [rng.choice(pool[group]) for group in groups if group != example.group][:shots]


def _after(shown: str, example: Example) -> Example:
    contexts = None if example.contexts is None else tuple(shown + context for context in example.contexts)
    paraphrases = tuple(shown + prompt for prompt in example.paraphrases)
    asked = {"prompt": shown + example.prompt, "contexts": contexts, "paraphrases": paraphrases}
    return replace(example, **asked, shown=len(shown))
