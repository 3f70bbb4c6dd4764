"""Write a piece of greedy text for people to read: a good loss can hide garbage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secateur.core.plan import Plan
from secateur.evaluation.generate import greedy
from secateur.hf.load import Loaded
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Task

PROMPT = 8  # tokens of a chunk of text that the model continues


def prompts(task: Task, encoded: Mapping[int, Encoded], count: int) -> list[tuple[int, ...]]:
    """Return prompts from the first `count` examples of `select`: the beginning of a chunk of text, or the question."""
    starts = []
    for example in task.split("select")[:count]:
        context, answer = encoded[example].pairs[0]
        starts.append((context + answer)[:PROMPT] if task.member(example).kind == "text" else context)
    return starts


def sample(loaded: Loaded, prompt: Sequence[int], length: int, plan: Plan | None = None) -> str:
    """Return the text of up to `length` greedy tokens after the prompt, of the model as it is or under a plan.

    The text is empty where the context has no room for it, and of a model that writes none.
    """
    context = loaded.anatomy.context
    room = length if context is None else min(length, context - len(prompt))
    if room < 1 or not loaded.anatomy.writes_text:
        return ""
    operations = resolve(plan or Plan(loaded.fingerprint), loaded.anatomy, loaded.fingerprint)
    with masked(loaded.model, operations):
        (tokens,) = greedy(loaded, [prompt], room, room + len(prompt))
    return plain(loaded, tokens)


def plain(loaded: Loaded, tokens: Sequence[int]) -> str:
    """Return tokens as people read them, without those that only mark where a text begins."""
    return str(loaded.tokenizer.decode(list(tokens), skip_special_tokens=True))
