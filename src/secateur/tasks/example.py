"""Examples, their groups, and tasks with three disjoint splits. Values that know no model and no tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import numpy as np

from secateur.core.fitted import Fitted
from secateur.core.score import PRIMARY
from secateur.tasks.extract import Extraction

SPLITS = ("probe", "select", "test")


@dataclass(frozen=True)
class Episode:
    """One episode that is to be played: a gymnasium environment by name, reset with `seed`.

    The model is asked for `target_return`, and sees the last `context` steps. Returns are divided by `return_scale`
    where it reads them. An episode ends after `max_steps`, and succeeds with `success_return` or more.
    """

    environment: str
    seed: int
    target_return: float
    success_return: float
    max_steps: int
    context: int
    return_scale: float = 1.0


@dataclass(frozen=True)
class Example:
    """One question with its gold answer, or one chunk of text.

    `prompt` ends without white space; `answer` and every choice begin with the space that joins them to it, and
    `answer` is one of `choices` where there are any. A `group` stays in one split and is resampled as one. A
    chunk of text has its token ids in `tokens`, an empty prompt, and every token but the first is scored.

    Three fields serve tasks of an evaluation harness for which prompt and choices are not enough: `contexts`,
    one context per choice, where a choice is put into the question and `answer` is scored after each; `label`,
    the index of the right choice, where two choices may read alike; `lengths`, the characters of each choice as
    the harness counts them. `task` names the member of a joint task that it belongs to. `shown`: the number of
    characters at the beginning of prompt and contexts that are solved examples and not the question. `turns`: of a
    conversation the role and content of each turn before the answer, for a chat template. `labelled`: it is a text with
    its label for a sequence classifier, of which `choices` are all labels; `pair` is a second text beside `prompt`.

    For a decision transformer `steps` are arrays of logged play (`core/acts.py`), or `episode` is to be played; then
    `prompt` says in words all that there is to it, by which examples are told apart.
    """

    id: str
    prompt: str
    answer: str
    choices: tuple[str, ...] | None = None
    paraphrases: tuple[str, ...] = ()
    group: str = ""
    meta: Mapping[str, object] = field(default_factory=dict, compare=False, hash=False)
    tokens: tuple[int, ...] | None = None
    contexts: tuple[str, ...] | None = None
    label: int | None = None
    lengths: tuple[int, ...] | None = None
    task: str = ""
    shown: int = 0
    turns: tuple[tuple[str, str], ...] = ()
    labelled: bool = False
    pair: str = ""
    steps: Fitted | None = None
    episode: Episode | None = None

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.id)

    @property
    def gold(self) -> int:
        """Return the index of the answer among the choices."""
        assert self.choices is not None, f"{self.id} has no choices"
        if self.label is not None:
            return self.label
        return self.choices.index(self.answer)


@dataclass(frozen=True)
class Member:
    """A task of a joint one, or a task by itself; `extraction` finds the answer in what is generated.

    `left_out`: the number of its examples of probe, select and test that the joint task leaves out, so that all
    members count alike.
    """

    name: str
    kind: str
    max_new_tokens: int = 0
    left_out: tuple[int, int, int] = (0, 0, 0)
    extraction: Extraction | None = None

    @property
    def new_tokens(self) -> int:
        """Return how many tokens are generated to look for the answer; 0: none, or as many as the answer has."""
        return self.max_new_tokens if self.kind == "generation" else 0


@dataclass(frozen=True)
class Task:
    """Examples with their splits. `kind` is "choice", "generation" or "text", or of play "trajectories", "continuous"
    (actions are numbers) or "episodes"; it decides the primary metric.

    `splits` maps probe / select / test to indices into `examples`; probe is for gradients and statistics,
    select for choosing, test for the one verdict. `max_new_tokens` bounds greedy generation (0: as many as
    the answer has), in which `extraction` finds the answer where there is one. A joint task has `members`, and may be
    of kind "mixed"; see `joint.py`.
    """

    name: str
    kind: str
    examples: tuple[Example, ...]
    splits: Mapping[str, tuple[int, ...]]
    max_new_tokens: int = 0
    members: tuple[Member, ...] = ()
    extraction: Extraction | None = None

    def split(self, name: str) -> tuple[int, ...]:
        """Return the indices of the split called `name`."""
        return self.splits[name]

    @property
    def kinds(self) -> frozenset[str]:
        """Return the kinds of its members, or its own."""
        return frozenset(member.kind for member in self.members) or frozenset({self.kind})

    @property
    def scored_as(self) -> frozenset[str]:
        """Return the kinds by which metrics fit: its `kinds`, or `label`, whose choices are all of one token."""
        return frozenset({"label"}) if any(example.labelled for example in self.examples) else self.kinds

    def member(self, index: int) -> Member:
        """Return the member that an example belongs to; the task itself where it is not joint."""
        return self._members[self.examples[index].task] if self.members else self._alone

    @cached_property
    def _members(self) -> Mapping[str, Member]:
        """Return members by the name in their examples."""
        return {member.name: member for member in self.members}

    @cached_property
    def _alone(self) -> Member:
        return Member(self.name, self.kind, self.max_new_tokens, extraction=self.extraction)

    def of(self, indices: Sequence[int]) -> list[Example]:
        """Return the examples at `indices`."""
        return [self.examples[i] for i in indices]

    def without(self, dropped: Collection[int]) -> Task:
        """Return the same task with some examples left out; the others stay in their splits."""
        kept = [i for i in range(len(self.examples)) if i not in dropped]
        place = {old: new for new, old in enumerate(kept)}
        splits = {name: tuple(place[i] for i in split if i in place) for name, split in self.splits.items()}
        return replace(self, examples=tuple(self.examples[i] for i in kept), splits=splits)

    def groups(self, indices: Sequence[int]) -> np.ndarray:
        """Return an integer group label for each of `indices`: (n,) int64, equal where the examples belong together."""
        names = [self.examples[i].group for i in indices]
        order = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return np.array([order[name] for name in names], dtype=np.int64)

    @property
    def primary_metric(self) -> str:
        """Return the metric that decides: accuracy of answers, loss per token of text or per logged action, return of
        episodes.

        Of several tasks with text among them it is the loss per example, as weights of tokens would let the
        task with the longer chunks count for more.
        """
        if self.members:
            return "loss" if "text" in self.kinds else "accuracy"
        return PRIMARY.get(self.kind, "accuracy")

    @property
    def answers(self) -> bool:
        """Return True where examples have answers in words: not those of text and of play."""
        return self.kind not in PRIMARY

    @property
    def hash(self) -> str:
        """Return the digest of the content and the splits, which a verdict is about."""
        return _digest(
            [
                self.kind,
                self.max_new_tokens,
                [_row(e) for e in self.examples],
                {k: list(v) for k, v in self.splits.items()},
                *[[m.name, m.kind, m.max_new_tokens] for m in self.members],
                *[asdict(m.extraction) for m in (self._alone, *self.members) if m.extraction],
            ]
        )

    def split_hash(self, name: str) -> str:
        """Return the digest of one split's content, by which openings of `test` are counted."""
        return _digest([self.kind, [_row(e) for e in self.of(self.splits[name])]])

    def group_digests(self, name: str) -> list[str]:
        """Return a digest of the content of each group of one split; shared digests show that two test splits overlap.

        They are equal whatever ids, names, shots or chunk lengths are.
        """
        groups: dict[str, list[Example]] = {}
        for example in self.of(self.splits[name]):
            groups.setdefault(example.group, []).append(example)
        return [_digest(sorted(set(map(_content, members)))) for members in groups.values()]


def all_tested(examples: Sequence[Example]) -> dict[str, tuple[int, ...]]:
    """Return the splits of a task that is only measured, never chosen by."""
    return {"probe": (), "select": (), "test": tuple(range(len(examples)))}


def _row(example: Example) -> list[object]:
    return [
        example.id,
        example.prompt,
        example.answer,
        example.choices,
        example.paraphrases,
        example.group,
        example.tokens,
        example.contexts,
        example.label,
        example.lengths,
        *([example.turns] if example.turns else []),
        *(["labelled", example.pair] if example.labelled else []),
    ]


def _content(example: Example) -> str:
    """Return the content of an example: question and answer; of a chunk of text, its document and its group."""
    if example.tokens is not None:
        content = [example.meta.get("document"), example.group.removeprefix(f"{example.task}/")]
    else:
        contexts = example.contexts and [context[example.shown :] for context in example.contexts]
        content = [example.prompt[example.shown :], contexts, example.answer, example.choices]
        content += [example.pair] if example.pair else []
    return json.dumps(content, ensure_ascii=False)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:32]
