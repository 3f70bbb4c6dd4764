"""Join several tasks to one in which each counts alike, so that a plan is chosen for all of them.

Of each split as many examples of every task are drawn as the smallest has there, so that the plain mean over
examples is the mean over tasks, and a search need not know of it. Knows no model and no tokenizer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count

from secateur.errors import TaskError
from secateur.tasks.example import SPLITS, Member, Task, all_tested
from secateur.tasks.splits import asked_for, rank

LOG = logging.getLogger("secateur")
MIXED = "mixed"


def joint(tasks: Sequence[Task], seed: int) -> Task:
    """Return one task made of several, in their splits; `seed` (that of the splits) draws the examples left out.

    Ids and groups begin with the task's name, so groups of different tasks never meet. Splits alternate between
    the tasks, so the beginning of one is balanced too. `whole_test` has all test examples of a member, drawn or
    not. The kind is that of all members, or "mixed".
    """
    names = distinct([task.name for task in tasks])
    sizes = {split: min(len(task.split(split)) for task in tasks) for split in SPLITS}
    drawn = [{split: _drawn(task, split, sizes[split], seed) for split in SPLITS} for task in tasks]
    kept = [
        sorted({*parts["probe"], *parts["select"], *task.split("test")})
        for task, parts in zip(tasks, drawn, strict=True)
    ]
    pairs = ((number, index) for number, indices in enumerate(kept) for index in indices)
    place = {pair: new for new, pair in enumerate(pairs)}  # (task, index there) → index in the joint task
    examples = []
    for number, index in place:
        example, name = tasks[number].examples[index], names[number]
        examples.append(
            replace(example, id=f"{name}/{example.id}", group=f"{name}/{example.group}", task=name)
        )
    splits = {
        split: in_turn([place[number, index] for index in parts[split]] for number, parts in enumerate(drawn))
        for split in SPLITS
    }
    whole = {
        _whole(name): tuple(place[number, index] for index in tasks[number].split("test"))
        for number, name in enumerate(names)
    }
    members = []
    for name, task in zip(names, tasks, strict=True):
        probe, select, test = (len(task.split(split)) - sizes[split] for split in SPLITS)
        members.append(Member(name, task.kind, task.max_new_tokens, (probe, select, test), task.extraction))
    _log_left_out(members, sizes)
    kinds = {task.kind for task in tasks}
    kind = kinds.pop() if len(kinds) == 1 else MIXED
    limit = max(task.max_new_tokens for task in tasks)
    return Task(" + ".join(names), kind, tuple(examples), splits | whole, limit, tuple(members))


def whole_test(task: Task, member: Member) -> tuple[int, ...]:
    """Return all test examples of a member, on which it is measured by itself."""
    return task.split(_whole(member.name))


def test_splits(task: Task) -> list[tuple[int, ...]]:
    """Return the examples that a verdict reads: the test split, then the whole one of every member."""
    return [task.split("test"), *(whole_test(task, member) for member in task.members)]


def tested(task: Task) -> list[int]:
    """Return all examples of `test_splits`, each once."""
    return list(dict.fromkeys(chain.from_iterable(test_splits(task))))


def alone(task: Task, member: Member) -> Task:
    """Return the test split of a member as it was before joining, with its own ids.

    Its openings are counted by that.
    """
    prefix = f"{member.name}/"
    rows = tuple(
        replace(e, id=e.id.removeprefix(prefix), group=e.group.removeprefix(prefix), task="")
        for e in task.of(whole_test(task, member))
    )
    return Task(
        member.name, member.kind, rows, all_tested(rows), member.max_new_tokens, (), member.extraction
    )


def interleaved(task: Task, indices: Sequence[int]) -> list[int]:
    """Return the same examples, alternating between their tasks, each task's in the order given."""
    rows: dict[str, list[int]] = {}
    for index in indices:
        rows.setdefault(task.examples[index].task, []).append(index)
    return list(in_turn(rows.values()))


def in_turn(rows: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Return the first of each row, then the second of each, and so on; longer rows go on alone."""
    turns = [(place, row, value) for row, values in enumerate(rows) for place, value in enumerate(values)]
    return tuple(value for *_, value in sorted(turns))


def check_apart(tasks: Sequence[Task]) -> None:
    """Raise `TaskError` where one task is chosen by a question that another is tested on."""
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
    """Return the same names, the second of two equal ones called `name (2)`."""
    different: list[str] = []
    for name in names:
        tries = chain([name], (form.format(name, number) for number in count(2)))
        different.append(next(candidate for candidate in tries if candidate not in different))
    return different


def _whole(name: str) -> str:
    return f"test of {name}"


def _drawn(task: Task, split: str, size: int, seed: int) -> list[int]:
    """Return `size` examples of a split in its own order: whole groups as long as they fit, then a part of one more."""
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
    """Yield the groups of a split in the order of their ranks."""
    groups: dict[str, list[int]] = {}
    for index in task.split(split):
        groups.setdefault(task.examples[index].group, []).append(index)
    for group in sorted(groups, key=lambda name: rank(name, seed, "joint")):
        yield groups[group]


def _log_left_out(members: Sequence[Member], sizes: Mapping[str, int]) -> None:
    """Log how many examples were left out, where any were."""
    left = [f"{m.name} {', '.join(map(str, m.left_out))}" for m in members if any(m.left_out)]
    if left:
        LOG.warning(
            "%s examples of each task in %s, so that all count alike; left out: %s (each is tested on all it has).",
            ", ".join(str(sizes[split]) for split in SPLITS),
            ", ".join(SPLITS),
            "; ".join(left),
        )
