"""Split one source of examples, or two, into three disjoint splits, by content and the split seed only.

Groups are ordered by a hash of their name and the seed, so neither the order of a file nor the run's own seed
moves an example from one split to another. Knows no file format, no tokenizer.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from secateur.errors import TaskError
from secateur.tasks.example import Example, Task
from secateur.tasks.extract import Extraction

LOG = logging.getLogger("secateur")
Traits = tuple[tuple[str, object], ...]
SHARES = (0.1, 0.4, 0.5)  # as much to choose by as to test on, nearly: see docs/statistics.md
MIN_GROUPS = 50  # in select and in test: below it no paired test shows anything but the largest effects
PROOF: Mapping[str, int] = {
    "probe": 1,
    "select": MIN_GROUPS,
    "test": MIN_GROUPS,
}  # what a search and a verdict need
TRAINING: Mapping[str, int] = {
    "probe": 1,
    "select": MIN_GROUPS,
}  # what is learned, and what it is measured on


@dataclass(frozen=True)
class ExampleSource:
    """Examples as they were loaded. `held_out` are those that a data set itself keeps for the test split.

    `probed` are those of the probe split, where the others are no examples to take gradients of: then they are divided
    between select and test alone. `max_new_tokens` and `extraction` are as in `Task`.
    """

    name: str
    kind: str
    examples: tuple[Example, ...]
    held_out: tuple[Example, ...] | None = None
    max_new_tokens: int = 0
    shares: tuple[float, float, float] = SHARES
    extraction: Extraction | None = None
    probed: tuple[Example, ...] | None = None


def make_task(
    source: ExampleSource,
    test: ExampleSource | None,
    *,
    split_seed: int,
    limit: int | None,
    allow_small: bool,
    shares: tuple[float, float, float] | None,
    needs: Mapping[str, int] = PROOF,
) -> Task:
    """Split `source` by `shares`, or take `test` (else the examples that the source holds out) as the test split.

    `needs` says how many groups which splits must have; with `allow_small` one is enough.

    Raises: `TaskError` when two sources share examples or differ in kind, or a split has too few groups.
    """
    shares = _checked_shares(shares or source.shares)
    held_out = source.held_out
    if test is not None:
        if source.kind != test.kind:
            raise TaskError(
                f"{source.name} is a {source.kind} task and {test.name} a {test.kind} task. Take two of one kind."
            )
        held_out = test.held_out or test.examples
        if source.kind == "text":  # exports of text repeat headings and short lines
            source = replace(source, examples=_without(source, held_out, _content) or source.examples)
        _refuse_overlap(source, held_out, test.name)
    others = _without(source, held_out or (), _traits)
    first = arrange(take(alike_together(others), limit, split_seed), split_seed)
    second = arrange(take(alike_together(held_out or ()), limit, split_seed), split_seed)
    examples, named = _assign(first, second, shares if source.probed is None else (0.0, *shares[1:]))
    if source.probed is not None:
        examples += source.probed
        named |= {example.group: "probe" for example in source.probed}
    splits = {
        name: tuple(i for i, e in enumerate(examples) if named[e.group] == name)
        for name in ("probe", "select", "test")
    }
    task = Task(
        source.name, source.kind, examples, splits, source.max_new_tokens, extraction=source.extraction
    )
    _check_sizes(task, needs, shares, allow_small, paired=held_out is not None)
    return task


def rank(group: str, seed: int, purpose: str) -> str:
    """Return a group's place in the shuffled order: a hash, so the same on every machine."""
    return hashlib.sha256(f"{purpose}\0{seed}\0{group}".encode()).hexdigest()


def arrange(examples: Iterable[Example], seed: int) -> tuple[Example, ...]:
    """Return examples in the order of their groups' ranks, then by id: the order of the file is forgotten."""
    ranks: dict[str, str] = {}
    examples = list(examples)
    for example in examples:
        ranks.setdefault(example.group, rank(example.group, seed, "split"))
    return tuple(sorted(examples, key=lambda example: (ranks[example.group], example.id)))


def alike_together(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Put examples that ask the same, and have no group of their own, into one group: no split may share a prompt."""
    groups: dict[object, str] = {}
    joined = []
    for example in examples:
        group = groups.setdefault(_traits(example)[-1], example.group)
        joined.append(replace(example, group=group) if example.group == example.id else example)
    return tuple(joined)


def take(examples: Sequence[Example], limit: int | None, seed: int) -> tuple[Example, ...]:
    """Return whole groups, drawn by `seed`, at most `limit` examples together; a larger limit only adds to them."""
    if limit is None or not examples:
        return tuple(examples)
    if limit < 1:
        raise TaskError(f"a limit of {limit} examples leaves nothing. Give at least 1.")
    sizes: dict[str, int] = {}
    for example in examples:
        sizes[example.group] = sizes.get(example.group, 0) + 1
    kept, total = set(), 0
    for group in sorted(sizes, key=lambda name: rank(name, seed, "limit")):
        total += sizes[group]
        if total > limit:
            break
        kept.add(group)
    return tuple(example for example in examples if example.group in kept)


def _assign(
    first: tuple[Example, ...], second: tuple[Example, ...], shares: tuple[float, float, float]
) -> tuple[tuple[Example, ...], dict[str, str]]:
    """Return all examples in order, and the split of each group."""
    groups = list(dict.fromkeys(example.group for example in first))
    parts = shares[:2] if second else shares
    ends = [round(len(groups) * sum(parts[: n + 1]) / sum(parts)) for n in range(len(parts))]
    named: dict[str, str] = {}
    for name, begin, end in zip(("probe", "select", "test"), [0, *ends], ends, strict=False):
        named |= dict.fromkeys(groups[begin:end], name)
    named |= {example.group: "test" for example in second}
    return first + second, named


def _checked_shares(shares: tuple[float, float, float]) -> tuple[float, float, float]:
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise TaskError(
            f"shares for probe, select and test must be positive and sum to 1, not {tuple(shares)}."
        )
    return shares


def asked_for(example: Example) -> object:
    """Return what a model is shown: equal for two examples that ask the same.

    Contexts replace the prompt where there are several.
    """
    return example.tokens or example.contexts or example.prompt


def _content(example: Example) -> Traits:
    return (("prompt", asked_for(example)),)


def _traits(example: Example) -> Traits:
    """Return the traits that two sources must not share."""
    return (("id", example.id), ("group", example.group), *_content(example))


def _refuse_overlap(source: ExampleSource, test: Sequence[Example], test_name: str) -> None:
    seen = {trait: example.id for example in source.examples for trait in _traits(example)}
    for example in test:
        for trait in _traits(example):
            if trait in seen:
                raise TaskError(
                    f"{test_name}: example {example.id!r} has the same {trait[0]} as {seen[trait]!r} "
                    f"in {source.name}. "
                    "Test data must not be seen before: remove it from one of the two."
                )


def _without(
    source: ExampleSource, held_out: Sequence[Example], traits: Callable[[Example], Traits]
) -> tuple[Example, ...]:
    """Leave out the examples that share one of these traits with the test examples, and log how many."""
    seen = {trait for example in held_out for trait in traits(example)}
    kept = tuple(e for e in source.examples if not any(trait in seen for trait in traits(e)))
    if len(kept) < len(source.examples):
        LOG.warning(
            "%s: %d training examples repeat a %s and were left out.",
            source.name,
            len(source.examples) - len(kept),
            "chunk of the test text" if source.kind == "text" else "test prompt",
        )
    return kept


def _check_sizes(
    task: Task,
    needs: Mapping[str, int],
    shares: tuple[float, float, float],
    allow_small: bool,
    paired: bool,
) -> None:
    counts = {name: len({e.group for e in task.of(indices)}) for name, indices in task.splits.items()}
    if all(counts[name] >= least for name, least in needs.items()):
        return
    sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
    message = f"{task.name}: too few groups of examples ({sizes}); {_needed(needs, shares, paired)}."
    if empty := [name for name in needs if not counts[name]]:
        how = "give more data or a larger --limit"
        if empty == ["probe"] and task.kind == "episodes":
            how = 'gradients are of logged play, so name a file of it, "trajectories", beside the episodes'
        raise TaskError(f"{message} Nothing is left for {empty[0]}: {how}.")
    if not allow_small:
        more = "a larger --limit or smaller --seqlen" if task.kind == "text" else "a larger --limit"
        raise TaskError(f"{message} Give more data, {more}, or --allow-small for a first look.")
    LOG.warning("%s Going on, since small splits were allowed; expect wide intervals.", message)


def _needed(needs: Mapping[str, int], shares: tuple[float, float, float], paired: bool) -> str:
    """Return `select and test need 50 each: at least 125 groups in one source`."""
    most = max(needs.values())
    large = [name for name, least in needs.items() if least == most]
    subject, each = " and ".join(large), " each" if len(large) > 1 else ""
    text = f"{subject} need{'s' if len(large) == 1 else ''} {most}{each}"
    share = dict(zip(("probe", "select", "test"), shares, strict=True))
    if not paired:
        return f"{text}: at least {_whole(needs[n] / share[n] for n in needs)} groups in one source"
    chosen_by = share["probe"] + share["select"]
    first = [needs[n] * chosen_by / share[n] for n in needs if n != "test"]
    parts = [f"{_whole(first)} groups to choose by"] if first else []
    parts += [f"{needs['test']} to test on"] if "test" in needs else []
    return f"{text}: at least {' and '.join(parts)}"


def _whole(numbers: Iterable[float]) -> int:
    """Return the largest number, rounded up, but for rounding errors."""
    return math.ceil(max(numbers) - 1e-9)
