"""The address of a part that can be read: `enc.b3`, `dec.b3.cross`, `b3.attn.h7`, `dec.b3.cross.q`.

More can be read than can be cut. In a decoder a place is spelled as the `Site` of the same part; in an
encoder-decoder the stack (`enc.` or `dec.`) comes first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from secateur.core.site import MATRICES
from secateur.errors import UnknownName

ATTENTIONS = ("attn", "cross")

_MATRIX = "|".join(MATRICES)
_PATTERN = re.compile(
    rf"(?P<stack>enc\.|dec\.)?b(?P<block>[0-9]{{1,9}})"
    rf"(?:\.(?:(?P<attention>attn|cross)\.h(?P<head>[0-9]{{1,9}})|(?P<kind>attn|cross|mlp|(?:cross\.)?(?:{_MATRIX}))))?"
)


@dataclass(frozen=True)
class ReadableSite:
    """The address of one readable part.

    `stack` is empty, `enc.` or `dec.`. `kind` is empty (the block), a sublayer (`attn`, `cross`, `mlp`), or a
    matrix: `q`, `down`, and of a cross-attention `cross.q`. `head` numbers a query head of `attn` or `cross`.
    """

    block: int
    kind: str = ""
    head: int | None = None
    stack: str = ""

    @classmethod
    def parse(cls, text: str) -> ReadableSite:
        """Return the place that `text` names. Raises: `UnknownName` for text that is not an address."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise UnknownName(
                f"{text!r} is no place in a model. Write b3 (block), b3.attn, b3.mlp, b3.attn.h7 (head) or b3.q "
                f"({', '.join(MATRICES)}); with an encoder enc.b3, dec.b3.cross, dec.b3.cross.h7, dec.b3.cross.q."
            )
        head = None if match["head"] is None else int(match["head"])
        return cls(int(match["block"]), match["attention"] or match["kind"] or "", head, match["stack"] or "")

    def __str__(self) -> str:
        head = "" if self.head is None else f".h{self.head}"
        return f"{self.stack}b{self.block}" + (f".{self.kind}" if self.kind else "") + head

    @property
    def is_matrix(self) -> bool:
        """Return True for the address of a matrix."""
        return self.kind.removeprefix("cross.") in MATRICES
