"""A piece of greedy text, to be read by people: a good loss can hide garbage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secateur.core.plan import Plan
from secateur.evaluation.generate import greedy
from secateur.hf.load import Loaded
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Task

PROMPT = 8  # tokens of a chunk of text that it goes on from


def prompts(task: Task, encoded: Mapping[int, Encoded], count: int) -> list[tuple[int, ...]]:
    """Of the first `count` examples of `select`: the beginning of a chunk of text, or the question."""
    found = []
    for example in task.split("select")[:count]:
        context, answer = encoded[example].pairs[0]
        found.append((context + answer)[:PROMPT] if task.member(example).kind == "text" else context)
    return found


def sample(loaded: Loaded, prompt: Sequence[int], length: int, plan: Plan | None = None) -> str:
    """The text of up to `length` tokens after the prompt, of the model as it is or under a plan; empty where the
    context has no room for it."""
    context = loaded.anatomy.context
    room = length if context is None else min(length, context - len(prompt))
    if room < 1:
        return ""
    operations = resolve(plan or Plan(loaded.fingerprint), loaded.anatomy, loaded.fingerprint)
    with masked(loaded.model, operations):
        (tokens,) = greedy(loaded, [prompt], room, room + len(prompt))
    return plain(loaded, tokens)


def plain(loaded: Loaded, tokens: Sequence[int]) -> str:
    """Tokens as people read them, without those that only mark where a text begins."""
    return loaded.tokenizer.decode(tokens, skip_special_tokens=True)
