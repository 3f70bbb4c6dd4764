"""The address of one removable part of a model: `b12`, `b12.attn`, `b12.attn.h7`, `b12.mlp.n871`, `b12.down`, and of a
mixture of experts `b12.mlp.e17`, `b12.e17.down`.

A Site is a value; it knows no tensor and no model. Blocks count from 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from secateur.errors import UnknownName, nearest

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
ATTENTION_MATRICES = frozenset("qkvo")

_PATTERN = re.compile(
    r"b(?P<block>[0-9]{1,9})(?:\.(?:(?P<sub>attn|mlp)(?:\.(?P<unit>[hgne])(?P<index>[0-9]{1,9}))?"
    r"|(?:e(?P<expert>[0-9]{1,9})\.(?=gate|up|down))?(?P<matrix>q|k|v|o|gate|up|down)))?"
)
_UNITS = {"attn": "hg", "mlp": "ne", "gate": "e", "up": "e", "down": "e"}
_PART_WORDS = {
    "attn": "attention",
    "mlp": "MLP",
    "q": "attention query projection",
    "k": "attention key projection",
    "v": "attention value projection",
    "o": "attention output projection",
    "gate": "MLP gate projection",
    "up": "MLP up projection",
    "down": "MLP down projection",
}
UNIT_WORDS = {"h": "head", "g": "KV group", "n": "neuron", "e": "expert"}
_IN_TEXT = re.compile(rf"(?<![\w.]){_PATTERN.pattern}(?![\w]|\.\w)")

# kinds of components of a map
MAPPED = ("blocks", "attentions", "ffns", "groups", "heads", "neurons", "matrices")
CHECKS = 20  # components of a kind that a map takes out in truth, where nothing else is said


@dataclass(frozen=True, order=True)
class Site:
    """The address of one removable part.

    `part` is empty (the block), `attn`, `mlp` or a matrix; `unit` and `index` name a head (h), KV group (g), neuron (n)
    or an expert (e) of a mixture; a matrix with a unit is that of one expert.
    """

    block: int
    part: str = ""
    unit: str = ""
    index: int = 0

    def __post_init__(self) -> None:
        if self.part not in ("", "attn", "mlp", *MATRICES) or self.block < 0 or self.index < 0:
            raise UnknownName(
                f"no such site: block {self.block}, part {self.part!r}.{nearest(self.part, MATRICES)}"
            )
        assert self.unit or not self.index, f"index {self.index} of no unit: would print as another site"
        if self.unit and self.unit not in _UNITS.get(self.part, ""):
            raise UnknownName(
                f"{self.part!r} has no unit {self.unit!r}: heads are attn.hN, KV groups attn.gN, neurons mlp.nN, "
                "experts mlp.eN, their matrices eN.down"
            )

    @classmethod
    def parse(cls, text: str) -> Site:
        """Return the site that `text` names. Raises: `UnknownName` for text that is not an address."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            close = nearest(text.partition(".")[2], ("attn", "mlp", *MATRICES))
            hint = close if "Did you mean" in close else ""
            if text.startswith(("enc.", "dec.")):
                hint = " Encoders, and what has one, are read (probe --what linearity) and not cut."
            raise UnknownName(
                f"{text!r} is not a site. Write b12 (block), b12.attn, b12.attn.h7, b12.attn.g3, b12.mlp, "
                f"b12.mlp.n871, b12.mlp.e17 (expert), or a matrix such as b12.down ({', '.join(MATRICES)}), "
                f"b12.e17.down.{hint}"
            )
        part = match["sub"] or match["matrix"] or ""
        unit = "e" if match["expert"] else match["unit"] or ""
        return cls(int(match["block"]), part, unit, int(match["expert"] or match["index"] or 0))

    def __str__(self) -> str:
        unit, part = f".{self.unit}{self.index}" if self.unit else "", f".{self.part}" if self.part else ""
        return f"b{self.block}" + (unit + part if self.is_matrix else part + unit)

    @property
    def words(self) -> str:
        """Return the address for a reader who has not seen one: `layer 14, MLP gate projection`."""
        parts = [
            _PART_WORDS.get(self.part, ""),
            f"{UNIT_WORDS[self.unit]} {self.index}" if self.unit else "",
        ]
        inner = " ".join(part for part in parts if part)
        return f"layer {self.block}" + (f", {inner}" if inner else "")

    @property
    def is_matrix(self) -> bool:
        """Return True for the address of a matrix."""
        return self.part in MATRICES

    @property
    def wholes(self) -> tuple[Site, ...]:
        """Return the parts that contain this one: attention or feed-forward network, then the block."""
        if not self.part:
            return ()
        if self.is_matrix and self.unit:
            expert = Site(self.block, "mlp", self.unit, self.index)
            return expert, *expert.wholes
        if self.is_matrix:
            return Site(self.block, "attn" if self.part in ATTENTION_MATRICES else "mlp"), Site(self.block)
        return (Site(self.block, self.part), Site(self.block)) if self.unit else (Site(self.block),)


def in_words(text: str) -> str:
    """Return text with words for every address: `layer 2, MLP gate projection → rank 1` for `b2.gate → rank 1`."""
    return _IN_TEXT.sub(lambda found: Site.parse(found[0]).words, text)


_WORDS = {  # what may be written for matrices: names, those of LASER's authors and of module paths; groups have several
    **{name: (name,) for name in MATRICES},
    **{f"{name}_proj": (name,) for name in ("q", "k", "v", "o", "gate", "up", "down")},
    "out_proj": ("o",),
    "fc_up": ("up",),
    "fc_out": ("down",),
}
_BY_MODEL = ("fc_in", "attn", "mlp", "all")  # what these are depends on the matrices that a model has


def check_matrix_words(words: Iterable[str]) -> None:
    """Raise `UnknownName` for a word that names no matrix of any model."""
    for word in words:
        if word not in _WORDS and word not in _BY_MODEL:
            raise UnknownName(f"unknown matrix {word!r}.{nearest(word, (*_WORDS, *_BY_MODEL))}")


def matrix_names(words: Iterable[str], available: Iterable[str]) -> tuple[str, ...]:
    """Return canonical matrix names for the words of a user: `down`, LASER's `fc_out`, or a group `attn`/`mlp`/`all`.

    LASER's `fc_in` is the gate in gated families and the up projection elsewhere (METHODS 0, from the authors' layer
    tables).

    Args:
        available: the matrices the model has.

    Raises: `UnknownName` for a word that names nothing, or nothing that this model has.
    """
    has, words = set(available), tuple(words)
    check_matrix_words(words)
    available = tuple(name for name in MATRICES if name in has)
    meaning = _WORDS | {
        "fc_in": ("gate",) if "gate" in has else ("up",),
        "attn": tuple(name for name in available if name in ATTENTION_MATRICES),
        "mlp": tuple(name for name in available if name not in ATTENTION_MATRICES),
        "all": available,
    }
    chosen: set[str] = set()
    for word in words:
        missing = [name for name in meaning[word] if name not in available]
        if missing:
            raise UnknownName(
                f"this model has no {missing[0]!r} matrix (asked for by {word!r}); it has {', '.join(available)}."
            )
        chosen.update(meaning[word])
    return tuple(name for name in available if name in chosen)
