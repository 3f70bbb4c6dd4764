"""Put solved examples before every prompt, drawn from the probe split alone.

So no model is shown an example that a plan is chosen or judged by. Layout as in the evaluation harness: prompt
and answer of each, a blank line after it. Differs: the harness draws in the order in which it asks, from
whatever part a task names; here a draw depends on the seed, the example and the probe split, and on nothing
else. Knows no tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from secateur.errors import TaskError
from secateur.tasks.example import Example, Task

SEPARATOR = "\n\n"  # lm-evaluation-harness 0.4, `fewshot_delimiter`


def with_shots(task: Task, shots: int, seed: int) -> Task:
    """Return the same task with `shots` solved examples before every prompt, context and paraphrase.

    Splits, groups, answers and choices stay. 0 gives the task itself.

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
        before = "".join(map(demonstration, shown))
        contexts = None if example.contexts is None else tuple(before + text for text in example.contexts)
        examples.append(
            replace(
                example,
                prompt=before + example.prompt,
                contexts=contexts,
                paraphrases=tuple(before + prompt for prompt in example.paraphrases),
                shown=len(before),
                turns=_before_the_last(example.turns, before),
            )
        )
    return replace(task, name=f"{task.name} ({shots}-shot)", examples=tuple(examples))


def _before_the_last(turns: tuple[tuple[str, str], ...], before: str) -> tuple[tuple[str, str], ...]:
    """Return a conversation with the solved examples at the beginning of its last turn."""
    if not turns:
        return ()
    *others, (role, content) = turns
    return (*others, (role, before + content))


def demonstrations(task: Task, example: Example, shots: int, seed: int) -> list[Example]:
    """Return the examples that `with_shots` shows before `example`, each of another group."""
    return _drawn(_pool(task), task.name, example, shots, seed)


def demonstration(example: Example) -> str:
    """Return one solved example as text: its prompt, with the right choice in it where it has contexts."""
    prompt = example.prompt if example.contexts is None else example.contexts[example.gold]
    return prompt + example.answer + SEPARATOR


def _pool(task: Task) -> dict[str, list[Example]]:
    """Return the examples of the probe split by group, both in the order of their names and not of the task."""
    pool: dict[str, list[Example]] = {}
    for example in sorted(task.of(task.split("probe")), key=lambda example: (example.group, example.id)):
        pool.setdefault(example.group, []).append(example)
    return pool


def _drawn(
    pool: Mapping[str, Sequence[Example]], name: str, example: Example, shots: int, seed: int
) -> list[Example]:
    """Draw one more group than wanted, so that the example's own can be left out of them."""
    others = len(pool) - (example.group in pool)
    if shots > others:
        raise TaskError(
            f"{name}: {shots} shots for example {example.id!r} need {shots} other groups in the calibration split, "
            f"which has {others}. Give fewer --shots, more data, or a larger --limit."
        )
    rng = random.Random(f"shots {seed} {shots} {example.id}")
    groups = rng.sample(list(pool), min(shots + 1, len(pool)))
    return [rng.choice(pool[group]) for group in groups if group != example.group][:shots]
