"""Several tasks as one, in which each counts alike: what a plan is chosen by that is to be good for all of them.

Of each split as many examples of every task are drawn as the smallest has there, so that the plain mean over examples
is the mean over tasks, and nothing that searches need know of it. Knows no model and no tokenizer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count

from secateur.errors import TaskError
from secateur.tasks.example import SPLITS, Example, Member, Task, all_tested
from secateur.tasks.splits import asked_for, rank

LOG = logging.getLogger("secateur")
MIXED = "mixed"


def joint(tasks: Sequence[Task], seed: int) -> Task:
    """One task out of several, in their splits; `seed` (that of the splits) draws what is left out.

    Ids and groups begin with the task's name, so groups of different tasks never meet. Splits are in turn of the
    tasks, so a beginning of one is balanced too. `whole_test` has all test examples of a member, drawn or not.
    The kind is that of all members, or "mixed".
    """
    names = distinct([task.name for task in tasks])
    sizes = {split: min(len(task.split(split)) for task in tasks) for split in SPLITS}
    drawn = [{split: _drawn(task, split, sizes[split], seed) for split in SPLITS} for task in tasks]
    kept = [
        sorted({*one["probe"], *one["select"], *task.split("test")})
        for task, one in zip(tasks, drawn, strict=True)
    ]
    place = {pair: number for number, pair in enumerate((t, i) for t, own in enumerate(kept) for i in own)}
    examples = [_named(tasks[t].examples[i], names[t]) for t, i in place]
    splits = {
        split: in_turn([place[t, i] for i in one[split]] for t, one in enumerate(drawn)) for split in SPLITS
    }
    whole = {_whole(name): tuple(place[t, i] for i in tasks[t].split("test")) for t, name in enumerate(names)}
    left = [tuple(len(task.split(split)) - sizes[split] for split in SPLITS) for task in tasks]
    members = tuple(
        Member(n, t.kind, t.max_new_tokens, o) for n, t, o in zip(names, tasks, left, strict=True)
    )
    _say(members, sizes)
    kinds = {task.kind for task in tasks}
    kind = kinds.pop() if len(kinds) == 1 else MIXED
    limit = max(task.max_new_tokens for task in tasks)
    return Task(" + ".join(names), kind, tuple(examples), splits | whole, limit, members)


def whole_test(task: Task, member: Member) -> tuple[int, ...]:
    """All test examples of a member: what it is measured on by itself."""
    return task.split(_whole(member.name))


def test_splits(task: Task) -> list[tuple[int, ...]]:
    """What a verdict reads: the test split, then the whole one of every member."""
    return [task.split("test"), *(whole_test(task, member) for member in task.members)]


def tested(task: Task) -> list[int]:
    """All examples of `test_splits`, each once."""
    return list(dict.fromkeys(chain.from_iterable(test_splits(task))))


def alone(task: Task, member: Member) -> Task:
    """The test split of a member as it was before it was joined, with its own ids: what its openings are counted by."""
    prefix = f"{member.name}/"
    rows = tuple(
        replace(e, id=e.id.removeprefix(prefix), group=e.group.removeprefix(prefix), task="")
        for e in task.of(whole_test(task, member))
    )
    return Task(member.name, member.kind, rows, all_tested(rows), member.max_new_tokens)


def interleaved(task: Task, indices: Sequence[int]) -> list[int]:
    """The same examples in turn of their tasks, each task's in the order given."""
    own: dict[str, list[int]] = {}
    for index in indices:
        own.setdefault(task.examples[index].task, []).append(index)
    return list(in_turn(own.values()))


def in_turn(rows: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The first of each, the second of each, ...; those that are longer go on alone."""
    turns = [(place, row, value) for row, own in enumerate(rows) for place, value in enumerate(own)]
    return tuple(value for *_, value in sorted(turns))


def check_apart(tasks: Sequence[Task]) -> None:
    """What one task chooses by must not be what another is tested on. Raises `TaskError`."""
    seen: dict[object, tuple[str, str, str]] = {}
    for task, name in zip(tasks, distinct([task.name for task in tasks]), strict=True):
        for split in SPLITS:
            for example in task.of(task.split(split)):
                where = seen.setdefault(asked_for(example), (name, split, example.id))
                if where[0] != name and where[1] != split:
                    raise TaskError(
                        f"{name}: example {example.id!r} of {split} asks the same as {where[2]!r} of {where[0]}, which "
                        f"is in {where[1]}. Tasks that are searched together must not share questions across splits: "
                        "leave it out of one of them, or give both the same ids."
                    )


def distinct(names: Sequence[str], form: str = "{} ({})") -> list[str]:
    """The same names, the second of two that are alike called `name (2)`."""
    told: list[str] = []
    for name in names:
        tries = chain([name], (form.format(name, number) for number in count(2)))
        told.append(next(one for one in tries if one not in told))
    return told


def _whole(name: str) -> str:
    return f"test of {name}"


def _named(example: Example, name: str) -> Example:
    return replace(example, id=f"{name}/{example.id}", group=f"{name}/{example.group}", task=name)


def _drawn(task: Task, split: str, size: int, seed: int) -> list[int]:
    """`size` examples of a split in its own order: whole groups as long as they fit, then a part of one more."""
    chosen: list[int] = []
    rest: list[int] = []
    for group in _groups(task, split, seed):
        if len(group) <= size - len(chosen):
            chosen.extend(group)
        else:
            rest = rest or group
    taken = {*chosen, *rest[: size - len(chosen)]}
    return [index for index in task.split(split) if index in taken]


def _groups(task: Task, split: str, seed: int) -> Iterator[list[int]]:
    """Groups of a split in the order of their ranks."""
    own: dict[str, list[int]] = {}
    for index in task.split(split):
        own.setdefault(task.examples[index].group, []).append(index)
    for group in sorted(own, key=lambda name: rank(name, seed, "joint")):
        yield own[group]


def _say(members: Sequence[Member], sizes: Mapping[str, int]) -> None:
    """What was left out, where anything was."""
    left = [f"{m.name} {', '.join(map(str, m.left_out))}" for m in members if any(m.left_out)]
    if left:
        LOG.warning(
            "%s examples of each task in %s, so that all count alike; left out: %s (each is tested on all it has).",
            ", ".join(str(sizes[split]) for split in SPLITS),
            ", ".join(SPLITS),
            "; ".join(left),
        )
