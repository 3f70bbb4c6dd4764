"""The values of a task: examples, their groups, three disjoint splits. Knows no model and no tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

SPLITS = ("probe", "select", "test")


@dataclass(frozen=True)
class Example:
    """One question with its gold answer, or one chunk of text.

    `prompt` ends without white space; `answer` and every choice begin with the space that joins them to it,
    and `answer` is one of `choices` where there are any. `group` is what must stay in one split and is
    resampled as one. A chunk of text has its token ids in `tokens`, an empty prompt, and every token but the
    first is scored.

    Three fields are for what an evaluation harness asks and prompt and choices alone cannot say: `contexts`,
    one context per choice, where a choice is put into the question and `answer` is scored after each;
    `label`, the index of the right choice, where two choices may read alike; `lengths`, the characters of
    each choice as the harness counts them. `task` names the member of a joint task that it is of. `shown`: so many
    characters at the beginning of prompt and contexts are solved examples, not what is asked.
    """

    id: str
    prompt: str
    answer: str
    choices: tuple[str, ...] | None = None
    paraphrases: tuple[str, ...] = ()
    group: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)
    tokens: tuple[int, ...] | None = None
    contexts: tuple[str, ...] | None = None
    label: int | None = None
    lengths: tuple[int, ...] | None = None
    task: str = ""
    shown: int = 0

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.id)

    @property
    def gold(self) -> int:
        """Index of the answer among the choices."""
        assert self.choices is not None, f"{self.id} has no choices"
        if self.label is not None:
            return self.label
        return self.choices.index(self.answer)


@dataclass(frozen=True)
class Member:
    """What is asked of an example: one of the tasks in a joint one, or a task by itself. `left_out`: its examples
    of probe, select and test that the joint task has no use for, so that all members count alike."""

    name: str
    kind: str
    max_new_tokens: int = 0
    left_out: tuple[int, int, int] = (0, 0, 0)

    @property
    def new_tokens(self) -> int:
        """How many tokens are generated to see whether the answer is among them; 0: none, or as many as it has."""
        return self.max_new_tokens if self.kind == "generation" else 0


@dataclass(frozen=True)
class Task:
    """Examples with their splits. `kind` is "choice", "generation" or "text"; it decides the primary metric.

    `splits` maps probe / select / test to indices into `examples`; probe is for gradients and statistics,
    select for choosing, test for the one verdict. `max_new_tokens` bounds greedy generation (0: as many as
    the answer has). A joint task has `members`, and may be of kind "mixed"; see `joint.py`.
    """

    name: str
    kind: str
    examples: tuple[Example, ...]
    splits: Mapping[str, tuple[int, ...]]
    max_new_tokens: int = 0
    members: tuple[Member, ...] = ()

    def split(self, name: str) -> tuple[int, ...]:
        return self.splits[name]

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of its members, or its own."""
        return frozenset(member.kind for member in self.members) or frozenset({self.kind})

    def member(self, index: int) -> Member:
        """The task that an example is of."""
        return self._members[self.examples[index].task] if self.members else self._own

    @cached_property
    def _members(self) -> Mapping[str, Member]:
        """By the name in their examples."""
        return {member.name: member for member in self.members}

    @cached_property
    def _own(self) -> Member:
        return Member(self.name, self.kind, self.max_new_tokens)

    def of(self, indices: Sequence[int]) -> list[Example]:
        return [self.examples[i] for i in indices]

    def without(self, dropped: Collection[int]) -> Task:
        """The same task with some examples left out; the others stay in their splits."""
        kept = [i for i in range(len(self.examples)) if i not in dropped]
        place = {old: new for new, old in enumerate(kept)}
        splits = {name: tuple(place[i] for i in split if i in place) for name, split in self.splits.items()}
        return replace(self, examples=tuple(self.examples[i] for i in kept), splits=splits)

    def groups(self, indices: Sequence[int]) -> np.ndarray:
        """Integer group label for each of `indices`: (n,) int64, equal where the examples belong together."""
        names = [self.examples[i].group for i in indices]
        order = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return np.array([order[name] for name in names], dtype=np.int64)

    @property
    def primary_metric(self) -> str:
        """Accuracy of answers, loss per token of text. Of several tasks with text among them the loss per example, as
        weights of tokens would let the task with the longer chunks count for more."""
        if "text" not in self.kinds:
            return "accuracy"
        return "loss" if self.members else "text_loss"

    @property
    def hash(self) -> str:
        """Digest of the content and the splits: what a verdict is about."""
        return _digest(
            [
                self.kind,
                self.max_new_tokens,
                [_row(e) for e in self.examples],
                {k: list(v) for k, v in self.splits.items()},
                *[[m.name, m.kind, m.max_new_tokens] for m in self.members],
            ]
        )

    def split_hash(self, name: str) -> str:
        """Digest of one split's content, by which openings of `test` are counted."""
        return _digest([self.kind, [_row(e) for e in self.of(self.splits[name])]])

    def group_digests(self, name: str) -> list[str]:
        """Digests of what the groups of one split ask, by which two test splits are known to share some: equal whatever
        ids, names, shots or chunk lengths are."""
        groups: dict[str, list[Example]] = {}
        for example in self.of(self.splits[name]):
            groups.setdefault(example.group, []).append(example)
        return [_digest(sorted(set(map(_asked, own)))) for own in groups.values()]


def all_tested(examples: Sequence[Example]) -> dict[str, tuple[int, ...]]:
    """The splits of a task that is only measured, never chosen by."""
    return {"probe": (), "select": (), "test": tuple(range(len(examples)))}


def _row(example: Example) -> list[Any]:
    said = [
        example.id,
        example.prompt,
        example.answer,
        example.choices,
        example.paraphrases,
        example.group,
        example.tokens,
    ]
    return [*said, example.contexts, example.label, example.lengths]


def _asked(example: Example) -> str:
    """What an example asks and what should follow; of a chunk of text from which document its group is."""
    if example.tokens is not None:
        asked = [example.meta.get("document"), example.group.removeprefix(f"{example.task}/")]
    else:
        contexts = example.contexts and [context[example.shown :] for context in example.contexts]
        asked = [example.prompt[example.shown :], contexts, example.answer, example.choices]
    return json.dumps(asked, ensure_ascii=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:32]
