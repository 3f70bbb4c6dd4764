"""Functions of Python whose signature names every option, and whose unknown keywords are errors of ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from types import UnionType
from typing import ParamSpec, TypeVar, get_origin

from secateur.core.config import Named
from secateur.errors import UnknownName, nearest

P = ParamSpec("P")
R = TypeVar("R")


def verb(
    options: Iterable[Named] = (), others: Callable[[], Iterable[str]] = tuple
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for a function of the Python API.

    `inspect.signature` of the function has each of `options` in place of its `**options`, so that help and completion
    show them; a keyword that is neither there nor among `others` raises `UnknownName` with the nearest right one.

    Args:
        options: Those that are shown; the first of each name counts.
        others: Names that the function takes too, asked for only when they are needed.
    """
    described: dict[str, Named] = {}
    for one in options:
        described.setdefault(one.name, one)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        stated = inspect.signature(function)
        plain = [p for p in stated.parameters.values() if p.kind is not p.VAR_KEYWORD]
        given = {parameter.name for parameter in plain}
        more = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=annotation_of(one)
            )
            for name, one in described.items()
            if name not in given
        ]
        signature = stated.replace(parameters=[*plain, *more])

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            unknown = kwargs.keys() - signature.parameters.keys()
            if unknown and (wrong := sorted(unknown - set(others()))):
                known = [*signature.parameters, *others()]
                raise UnknownName(
                    f"{function.__name__} has no option {wrong[0]!r}.{nearest(wrong[0], known)}"
                )
            return function(*args, **kwargs)

        vars(checked)["__signature__"] = signature
        return checked

    return decorate


def annotation_of(one: Named) -> str:
    """Return the type of what an option takes in Python: its value, or text as on the command line."""
    shown = str(one.kind) if isinstance(one.kind, UnionType) or get_origin(one.kind) else one.kind.__name__
    many = shown.startswith("tuple[") and shown.endswith(", ...]")
    if one.option.metavar == "TASK":
        return "Tasks" if many else "OneTask | None"
    kind = f"Sequence[{shown[6:-6]}]" if many else shown.removesuffix(" | None")
    kinds = [kind, *(["str"] if one.option.read is not None or one.option.repeated else [])]
    return " | ".join([*kinds, *(["None"] if shown.endswith(" | None") else [])])
