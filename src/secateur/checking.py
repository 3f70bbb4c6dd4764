"""Says what was understood of a task, before anything is searched: its form, splits, lengths in tokens, chance.

Reads a model's config and its tokenizer, no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from secateur.core.records.task_check import LengthsRecord, RenderedRecord, TaskCheckRecord
from secateur.errors import ModelError
from secateur.evaluation.baseline import floors
from secateur.hf.blank import Ruler
from secateur.options import Options
from secateur.session import blank_of, read_task
from secateur.tasks.encode import Encoded, encode
from secateur.tasks.example import SPLITS, Task
from secateur.tasks.load import describe
from secateur.tasks.splits import MIN_GROUPS

NUM_RENDERED = 3


def check_task(options: Options) -> TaskCheckRecord:
    """Return what was understood of the task that `options` name, in the tokens of their model.

    Raises: `TaskError` for a task that cannot be read, `ModelError` and `UnknownName` for a model.
    """
    blank = blank_of(options, ruler=Path(options.model).is_dir())  # of a folder weights may be missing
    if isinstance(blank.tokenizer, Ruler):
        raise ModelError(f"{options.model} has no tokenizer, and lengths are counted in its tokens.")
    task = read_task(replace(options, allow_small=True), blank, {})
    context, vocab_size = blank.anatomy.context, blank.anatomy.vocab_size
    encoded = [
        encode(example, blank.tokenizer, context=None, vocab_size=vocab_size, chat=options.chat)
        for example in task.examples
    ]

    def decode(tokens: Sequence[int]) -> str:
        return str(blank.tokenizer.decode(list(tokens)))

    shown = [i for name in reversed(SPLITS) for i in task.split(name)[:1]][:NUM_RENDERED]
    return TaskCheckRecord(
        task=options.task,
        format=describe(options.task),
        kind=task.kind,
        metric=task.primary_metric,
        model=options.named,
        examples=len(task.examples),
        splits={name: len(task.split(name)) for name in SPLITS},
        groups={name: _num_groups(task, name) for name in SPLITS},
        prompt_tokens=_lengths([len(one.pairs[0][0]) for one in encoded]),
        answer_tokens=_lengths([len(one.pairs[one.gold][1]) for one in encoded]),
        max_new_tokens=task.max_new_tokens,
        context=context,
        **floors(task),
        rendered=[_rendered(task, i, encoded[i], decode) for i in shown],
        problems=_problems(task, encoded, context),
    )


def _num_groups(task: Task, split: str) -> int:
    return len({example.group for example in task.of(task.split(split))})


def _lengths(counts: Sequence[int]) -> LengthsRecord:
    return LengthsRecord(least=min(counts), median=float(np.median(counts)), most=max(counts))


def _rendered(
    task: Task, index: int, encoded: Encoded, decode: Callable[[Sequence[int]], str]
) -> RenderedRecord:
    context, answer = encoded.pairs[encoded.gold]
    example = task.examples[index]
    split = next(name for name in SPLITS if index in task.split(name))
    choices = None if example.choices is None else list(example.choices)
    tokens = [decode([token]) for token in answer]
    return RenderedRecord(id=example.id, split=split, prompt=decode(context), answer=tokens, choices=choices)


def _problems(task: Task, encoded: Sequence[Encoded], context: int | None) -> list[str]:
    """Return what would stop a search or make its numbers doubtful, a sentence each."""
    small = [f"{name} {n}" for name in ("select", "test") if (n := _num_groups(task, name)) < MIN_GROUPS]
    long = sum(context is not None and one.longest > context for one in encoded)
    joined = sum(one.joined for one in encoded)
    found = []
    if small:
        found.append(
            f"Select and test need {MIN_GROUPS} groups of examples each, and there are {', '.join(small)}: give more "
            "data, or --allow-small for a first look."
        )
    if long:
        found.append(
            f"{long} of {len(encoded)} examples are longer than the model's context of {context} tokens: --skip-long "
            "leaves them out."
        )
    if joined:
        found.append(
            f"In {joined} of {len(encoded)} examples the answer begins within the last token of the prompt, and is "
            "scored in part: let answers begin at a word's border."
        )
    return found
