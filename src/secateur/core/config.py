"""Options described once, beside the field of a dataclass that holds them: default, range, words, help.

The command line, Python keywords, messages and documents are read off these fields. Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, get_type_hints

from secateur.core.ranges import Range, check_ranges, range_of
from secateur.errors import SecateurError, UnknownName, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
_KEY = "option"
ALL_MATRICES: tuple[str, ...] = ("all",)


@dataclass(frozen=True)
class Option:
    """One option: how it is typed, shown and read.

    `flags` is written as typer writes it (`--rescore/--ranks-once`); empty: the field's name. `read(flag, text)` turns
    text into a value, on the command line and in Python alike, and `typed(value)` turns a value back, or gives None for
    one that has no word. `default_text` stands for the default on the command line. `speed_only` options change how
    long a command takes and not its result.
    """

    help: str
    metavar: str | None = None
    flags: str = ""
    choices: tuple[str, ...] = ()
    read: Callable[[str, str], object] | None = None
    typed: Callable[[Any], str | None] = str
    default_text: str | None = None
    repeated: bool = False
    speed_only: bool = False
    python_only: bool = False


class OptionWords(TypedDict, total=False):
    """The other fields of `Option`."""

    flags: str
    choices: tuple[str, ...]
    read: Callable[[str, str], object]
    typed: Callable[[Any], str | None]
    default_text: str
    repeated: bool
    speed_only: bool
    python_only: bool


def option(default: T, help: str, metavar: str | None = None, **more: Unpack[OptionWords]) -> T:
    """Return a dataclass field for an option.

    Args:
        default: Its default, or a field with a range, of `core.ranges`.

    Returns: a field; like `dataclasses.field` it is typed as the default.
    """
    described = Option(help, metavar, **more)
    if isinstance(default, dataclasses.Field):
        ranged: dataclasses.Field[T] = default
        assert ranged.default is not dataclasses.MISSING
        return field(default=ranged.default, metadata={**ranged.metadata, _KEY: described})
    return field(default=default, metadata={_KEY: described})


@dataclass(frozen=True)
class Named:
    """An option with the name and the default of its field."""

    name: str
    default: object
    kind: type | UnionType
    option: Option
    range: Range | None = None

    @property
    def key(self) -> str:
        """The name of the option in a recipe: that of its flag, such as `max_loss`."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def flag(self) -> str:
        """The first of its flags, such as `--max-loss`."""
        return self.option.flags.split("/")[0] or "--" + self.name.replace("_", "-")

    def value(self, given: object) -> object:
        """Return what the option is set to by `given`: text is read, a list becomes a tuple.

        Raises: `SecateurError` for text that cannot be read.
        """
        if isinstance(given, str) and self.option.read is not None:
            return self.option.read(self.flag, given)
        if isinstance(given, str) and self.option.repeated:
            return (given,)
        return tuple(given) if isinstance(given, list) else given

    def words(self, value: Any) -> list[str]:
        """Return the words that set the option to `value` on the command line; none where it has no word for it."""
        if self.option.repeated:
            return [word for item in value for word in (self.flag, str(item))]
        if isinstance(value, bool):
            _, _, no = self.option.flags.partition("/")
            return [self.flag if value else no or self.flag.replace("--", "--no-", 1)]
        text = self.option.typed(value)
        return [] if text is None else [self.flag, text]

    def entry(self, value: Any) -> object:
        """Return `value` as a recipe has it: a truth value, a number, a list, or text as on the command line."""
        if isinstance(value, bool | int | float):
            return value
        if self.option.repeated or self.option.python_only:
            return list(value)
        text = self.option.typed(value)
        return list(value) if text is None else text


def options_of(kind: DataclassInstance | type[DataclassInstance]) -> Iterator[Named]:
    """Return the options of a dataclass, or of an instance, in order; fields without a description are none."""
    hints = _hints(kind if isinstance(kind, type) else type(kind))
    for one in fields(kind):
        if _KEY in one.metadata:
            yield Named(one.name, one.default, hints[one.name], one.metadata[_KEY], range_of(one))


@cache
def _hints(kind: type) -> dict[str, type | UnionType]:
    """Return the types of the options of a dataclass; those of its other fields may name what is not imported."""
    described = {one.name for one in fields(kind) if _KEY in one.metadata}
    hints: dict[str, type | UnionType] = {}
    for base in reversed(kind.__mro__):
        names = {
            name: kind for name, kind in vars(base).get("__annotations__", {}).items() if name in described
        }
        part = type(base.__name__, (), {"__annotations__": names, "__module__": base.__module__})
        hints |= get_type_hints(part)
    return hints


@dataclass(frozen=True)
class Config:
    """The options of one method of `prune`; a method derives its own from this class.

    Class attributes that are no fields are what the rest of the house reads of any method: a method that has such an
    option declares a field of this name.
    """

    matrices = ALL_MATRICES
    portable = False
    keep_unproven = False

    @property
    def factorize(self) -> bool:
        """Return True where the method itself has matrices stored as two factors."""
        return False

    def __post_init__(self) -> None:
        check_options(self)

    def check_beside(self, common: Any) -> None:
        """Raise `SecateurError` where an option for all methods makes no sense with this one."""


def check_options(options: DataclassInstance) -> None:
    """Raise `UnknownName` for a value that is not among the choices, `SecateurError` for one out of its range."""
    for one in options_of(options):
        value, choices = vars(options)[one.name], one.option.choices
        if choices and value is not None and value not in choices:
            raise UnknownName(f"unknown {one.flag} {value!r}.{nearest(value, choices)}")
    check_ranges(options)


def share(flag: str, text: str) -> float:
    """Return the share that `70%` or `0.7` stands for. Raises: `SecateurError`."""
    digits = text.removesuffix("%")
    try:
        value = float(digits) / 100 if text.endswith("%") else float(digits)
    except ValueError:
        raise SecateurError(f"{flag} {text!r}: write a share, such as 70% or 0.7.") from None
    if text == digits and 2 <= value <= 100:
        raise SecateurError(f"{flag} {text}: write {text}%, or {value / 100:g}.")
    return value


def words_of(text: str) -> list[str]:
    """Return the words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
