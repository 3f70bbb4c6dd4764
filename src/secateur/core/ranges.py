"""Ranges of numeric options, stated once beside the option, for the command line and Python alike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from secateur.errors import SecateurError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MOST = 2**31 - 1  # of anything that is counted: more would only overflow in some library below
LEAST_SHARE = 1e-4  # of a step, or of a target: one head at a time of the largest models
SEED = 2**32 - 1  # the largest that numpy's and torch's generators both take
_KEY = "range"
T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `above` and `below` exclude the ends.

    `flag` is the name of the option on the command line, where that differs from the field's; `such` is an example.
    """

    low: float
    high: float
    whole: bool
    above: bool = False
    below: bool = False
    flag: str = ""
    such: str = ""

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        if not self.low <= float(value) <= self.high or math.isinf(value):
            return False
        return not (self.above and value == self.low) and not (self.below and value == self.high)

    def __str__(self) -> str:
        """`a whole number from 0 to 5`, `a number above 0, such as 5e-5`, `a whole number, 1 or more`."""
        kind, low = "a whole number" if self.whole else "a number", _shown(self.low)
        if math.isfinite(self.high) and self.high != MOST:
            start = f"above {low} and" if self.above else f"from {low}"
            end = ("below" if self.above else "to below") if self.below else ("up to" if self.above else "to")
            text = f"{kind} {start} {end} {_shown(self.high)}"
        else:
            text = f"{kind} above {low}" if self.above else f"{kind}, {low} or more"
        return f"{text}{f', such as {self.such}' if self.such else ''}"


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


class RangeWords(TypedDict, total=False):
    """The other fields of `Range`."""

    above: bool
    below: bool
    flag: str
    such: str


def whole(default: T, low: int = 1, high: int = MOST, **more: Unpack[RangeWords]) -> T:
    """Return a dataclass field that holds a whole number, or a tuple of them; None only where that is the default."""
    return field(default=default, metadata={_KEY: Range(low, high, whole=True, **more)})


def real(default: T, low: float = 0.0, high: float = math.inf, **more: Unpack[RangeWords]) -> T:
    """Return a dataclass field that holds a finite number, or a tuple of them; None only where that is the default."""
    return field(default=default, metadata={_KEY: Range(low, high, whole=False, **more)})


def range_of(one: Field[Any]) -> Range | None:
    """Return the range of a field of a dataclass; None where it has none."""
    found: Range | None = one.metadata.get(_KEY)
    return found


def check_ranges(options: DataclassInstance, error: type[SecateurError] = SecateurError) -> None:
    """Raise `error` for the first field of a dataclass that is not in its range."""
    for option in fields(options):
        allowed, value = range_of(option), vars(options)[option.name]
        if allowed is not None and not (value is None and option.default is None):
            check_number(option.name, value, allowed, error)


def check_number(
    name: str, value: object, allowed: Range, error: type[SecateurError] = SecateurError
) -> None:
    """Raise `error` where a number, or one of a tuple of them, is not `allowed` for the option `name`."""
    for number in value if isinstance(value, tuple | list) else (value,):
        if number not in allowed:
            flag = allowed.flag or "--" + name.replace("_", "-")
            beyond = allowed.high == MOST and isinstance(number, Integral) and int(number) > MOST
            raise error(f"{flag} {_as_typed(value)}: give {allowed}{f', at most {MOST}' * beyond}.")


def _as_typed(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def whole_number(text: str) -> int | None:
    """Return the number that digits stand for; None for any other text, and for more digits than any count has."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def whole_numbers(words: Iterable[str]) -> list[int] | None:
    """Return the number of each word, as `whole_number`; None where one of them is no number."""
    numbers = []
    for word in words:
        number = whole_number(word)
        if number is None:
            return None
        numbers.append(number)
    return numbers
