"""Find the answer in what a model wrote: by a pattern, or the last number. Knows text alone.

Source: lm-evaluation-harness 0.4.13, the `regex` filter and the `exact_match` metric. Differs: white space around an
answer never counts.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from secateur.errors import TaskError

NUMBER = "number"
_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Extraction:
    """A rule that finds an answer in a text and compares it with the right one.

    Attributes:
        pattern: Regular expression; its first group that took part is the answer, or the whole match without groups.
            Empty: the whole text.
        last: The last match counts instead of the first.
        from_gold: The right answer is looked for in the example's answer by the same pattern, where it matches.
        numeric: Answers are equal as numbers: 1,200 and 1200.0.
        until: The text ends before the first of these.
        ignored: Patterns that are taken out of both sides before they are compared.
        ignore_case, ignore_punctuation: Both sides are compared without.
    """

    pattern: str = ""
    last: bool = False
    from_gold: bool = True
    numeric: bool = False
    until: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    ignore_case: bool = False
    ignore_punctuation: bool = False

    def __post_init__(self) -> None:
        for pattern in (self.pattern, *self.ignored):
            try:
                re.compile(pattern)
            except re.error as error:
                raise TaskError(f"{pattern!r} is no regular expression ({error}).") from error

    def find(self, text: str) -> str | None:
        """Return the answer in `text`; None where there is none."""
        for end in filter(None, self.until):
            text = text.partition(end)[0]
        if not self.pattern:
            return text
        matches = list(re.finditer(self.pattern, text))
        if not matches:
            return None
        match = matches[-1 if self.last else 0]
        groups = match.groups() or (match.group(),)
        return next((group.strip() for group in groups if group), None)

    def agrees(self, text: str, gold: str) -> bool:
        """Return True where the answer in `text` is the right one, of which `gold` is the text."""
        found = self.find(text)
        right = self.find(gold) if self.from_gold and self.pattern else None
        return found is not None and self._compared(found) == self._compared(gold if right is None else right)

    def _compared(self, text: str) -> str:
        for pattern in self.ignored:
            text = re.sub(pattern, "", text)
        text = text.lower() if self.ignore_case else text
        text = text.translate(_PUNCTUATION) if self.ignore_punctuation else text
        return _as_number(text) if self.numeric else text.strip()


def extraction_of(text: str) -> Extraction:
    """Return the rule that `--extract` names: `number`, or a regular expression.

    Raises: `TaskError` for a broken one.
    """
    if text == NUMBER:
        return Extraction(_NUMBER, last=True, numeric=True)
    return Extraction(text)


def _as_number(text: str) -> str:
    """Return one way to write a number, and any other text as it is."""
    try:
        return str(Decimal(re.sub(r"[$,\s]", "", text)).normalize())
    except InvalidOperation:
        return text.strip()
