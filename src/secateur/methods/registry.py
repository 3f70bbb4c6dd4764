"""The methods of `secateur prune`, ours and those of other packages, and options read for one of them. No torch.

Another package adds a method by an entry point of the group `secateur.methods` that names an instance of `Method`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from secateur.core.config import Config, Named, options_of
from secateur.errors import SecateurError, TaskError, UnknownName, nearest
from secateur.methods.attention.method import Attention
from secateur.methods.budget.method import Budget, BudgetConfig
from secateur.methods.components.method import Components
from secateur.methods.depth.method import Depth
from secateur.methods.directions.method import RemoveSingularDirections
from secateur.methods.laser.method import Laser
from secateur.methods.method import Method
from secateur.options import Options

OURS: tuple[Method, ...] = (
    Laser(),
    RemoveSingularDirections(),
    Depth(),
    Attention(),
    Components("heads", "attention heads, taken out step by step as far as the task allows"),
    Components("ffns", "feed-forward networks, likewise"),
    Components("components", "heads and feed-forward networks, likewise"),
    Components("experts", "experts of a mixture, equally many of each block, likewise"),
    Budget(),
)
GOALS = {"better": "laser", "smaller": "budget", "faster": "budget"}  # the method that each goal opens
GROUP = "secateur.methods"


@cache
def methods() -> Mapping[str, Method]:
    """Return every method by its name, in the order in which they are shown.

    Raises: `SecateurError` for an entry point that names no method, or one of a name that is taken.
    """
    known = {method.name: method for method in OURS}
    for point in entry_points(group=GROUP):
        method = point.load()
        if not isinstance(method, Method):
            raise SecateurError(f"entry point {point.name} = {point.value}: it is no secateur Method.")
        if method.name in known or vars(method.Config).get("__dataclass_fields__") is None:
            raise SecateurError(
                f"entry point {point.name} = {point.value}: the name {method.name!r} is taken, or its Config is no "
                "dataclass."
            )
        known[method.name] = method
    return known


def method_named(name: str) -> Method:
    """Return the method of this name. Raises: `UnknownName`."""
    if name not in methods():
        known = nearest(name, tuple(methods()))
        raise UnknownName(f"unknown method {name!r}.{known} `secateur prune --help` says what each does.")
    return methods()[name]


def method_readings() -> tuple[str, ...]:
    """Return the names of what `probe` can read by some method."""
    return tuple(name for method in methods().values() for name in method.readings)


def method_reading(name: str) -> Method:
    """Return the first method that has the reading of this name. Raises: `UnknownName`."""
    for method in methods().values():
        if name in method.readings:
            return method
    raise UnknownName(f"unknown probe {name!r}.{nearest(name, method_readings())}")


@cache
def method_options() -> Mapping[str, tuple[Named, list[str]]]:
    """Return the options that not all methods have: each by its name, with the methods that have it."""
    options: dict[str, tuple[Named, list[str]]] = {}
    for method in methods().values():
        for one in options_of(method.Config):
            options.setdefault(one.name, (one, []))[1].append(method.name)
    return options


def method_for(goal: str | None, method: str | None, given: Mapping[str, object]) -> str:
    """Return the name of the method that is searched by.

    Args:
        goal: `better`, `smaller` or `faster`; None: `smaller` where a budget is among the options, else `better`.
        method: The one asked for, which has to serve the goal.
        given: Options as they are typed.

    Raises: `UnknownName`; `SecateurError` for a goal and a method, or a goal and a budget, that contradict each other.
    """
    if goal is not None and goal not in GOALS:
        raise UnknownName(f"unknown --goal {goal!r}.{nearest(goal, GOALS)}")
    if method is not None:
        goals = method_named(method).goals
        if goal is not None and goal not in goals:
            raise SecateurError(
                f"--method {method} makes a model {either(goals)}, not {goal}: leave out one of them."
            )
        return method
    budgets = [
        one for one in options_of(BudgetConfig) if one.value(given.get(one.name, one.default)) != one.default
    ]
    if goal == "better" and budgets:
        raise SecateurError(
            f"{budgets[0].flag} is a budget, for --goal smaller or faster, and contradicts --goal better."
        )
    return GOALS[goal or ("smaller" if budgets else "better")]


def read_options(
    model: str, *tasks: str, method: str | None = None, goal: str | None = None, **given: object
) -> Options:
    """Return options from values as they are typed, in Python as on the command line: `matrices="q,v"` or a list,
    `layers="1:3"`, `target="70%"`.

    Raises: `TaskError` without a task; `UnknownName` for a method or an option that there is none of; `SecateurError`
    for text that cannot be read, for values out of range, for an option of another method, which would have no
    effect, and as `method_for`.
    """
    if not tasks:
        raise TaskError("no task is given; name one, such as questions.jsonl.")
    name = method_for(goal, method, given)
    chosen, common = method_named(name), {one.name: one for one in options_of(Options)}
    own = {one.name: one for one in options_of(chosen.Config)}
    values: dict[str, Any] = {key: _value(key, value, own | common, name) for key, value in given.items()}
    config = chosen.Config(**{key: value for key, value in values.items() if key in own})
    shared = {key: value for key, value in values.items() if key in common}
    return Options(model, tasks[0], name, tuple(tasks[1:]), config, **shared)


def _value(name: str, given: object, known: Mapping[str, Named], method: str) -> object:
    """Return the value of an option. Raises: `SecateurError` for one of another method that is not its default."""
    if name in known:
        return known[name].value(given)
    if name not in method_options():
        every = [*known, *method_options()]
        raise UnknownName(f"unknown option {name!r}.{nearest(name, every)}")
    other, listeners = method_options()[name]
    value = other.value(given)
    if value != other.default:
        typed = f"{other.flag} {given}" if isinstance(given, str) else " ".join(other.words(value)) or name
        raise SecateurError(f"{typed} is not for --method {method}, but for {either(listeners)}.")
    return value


def either(names: Sequence[str]) -> str:
    """Return `heads, ffns or components`."""
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def configs() -> Iterable[type[Config]]:
    """Return the configuration class of every method, each once."""
    return dict.fromkeys(method.Config for method in methods().values())
