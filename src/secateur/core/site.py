"""The address of one removable part of a model: `b12`, `b12.attn`, `b12.attn.h7`, `b12.mlp.n871`, `b12.down`; of a
mixture of experts `b12.mlp.e17`, `b12.e17.down`; of an encoder-decoder `enc.b3.attn`, `dec.b3.cross.h7`,
`dec.b3.cross.q`.

A Site is a value; it knows no tensor and no model. Blocks count from 0, in an encoder-decoder in each of the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from secateur.errors import UnknownName, nearest

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
STACKS = ("enc", "dec")
CROSS_MATRICES = tuple(f"cross.{kind}" for kind in "qkvo")
EVERY_MATRIX = (*MATRICES[:4], *CROSS_MATRICES, *MATRICES[4:])
EXPERT_MATRICES = ("experts.gate", "experts.up", "experts.down")
ATTENTION_MATRICES = frozenset((*"qkvo", *CROSS_MATRICES))

_PATTERN = re.compile(
    r"(?:(?P<stack>enc|dec)\.)?"
    r"b(?P<block>[0-9]{1,9})(?:\.(?:(?P<sub>attn|cross|mlp)(?:\.(?P<unit>[hgne])(?P<index>[0-9]{1,9}))?"
    r"|(?:e(?P<expert>[0-9]{1,9})\.(?=gate|up|down))?(?P<matrix>(?:cross\.)?[qkvo]|gate|up|down)))?"
)
_UNITS = {"attn": "hg", "cross": "hg", "mlp": "ne", "gate": "e", "up": "e", "down": "e"}
_STACK_WORDS = {"": "", "enc": "encoder ", "dec": "decoder "}
_PART_WORDS = {
    "attn": "attention",
    "cross": "cross-attention",
    "mlp": "MLP",
    "q": "attention query projection",
    "k": "attention key projection",
    "v": "attention value projection",
    "o": "attention output projection",
    "cross.q": "cross-attention query projection",
    "cross.k": "cross-attention key projection",
    "cross.v": "cross-attention value projection",
    "cross.o": "cross-attention output projection",
    "gate": "MLP gate projection",
    "up": "MLP up projection",
    "down": "MLP down projection",
}
UNIT_WORDS = {"h": "head", "g": "KV group", "n": "neuron", "e": "expert"}
_IN_TEXT = re.compile(rf"(?<![\w.]){_PATTERN.pattern}(?![\w]|\.\w)")

# kinds of components of a map
MAPPED = ("blocks", "attentions", "ffns", "groups", "heads", "neurons", "matrices")
CHECKS = 20  # components of a kind that a map takes out in truth, where nothing else is said


@dataclass(frozen=True)
class Site:
    """The address of one removable part.

    `part` is empty (the block), `attn`, `cross` (the attention to an encoder's output), `mlp` or a matrix, of a
    cross-attention `cross.q`; `unit` and `index` name a head (h), KV group (g), neuron (n) or an expert (e) of a
    mixture; a matrix with a unit is that of one expert. `stack` is `enc` or `dec` in an encoder-decoder, else empty.
    """

    block: int
    part: str = ""
    unit: str = ""
    index: int = 0
    stack: str = ""

    def __post_init__(self) -> None:
        known = self.part in ("", "attn", "cross", "mlp", *EVERY_MATRIX) and self.stack in ("", *STACKS)
        if not known or self.block < 0 or self.index < 0:
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
        if match is not None and "cross" in text and match["stack"] != "dec":
            raise UnknownName(f"{text}: only a decoder beside an encoder has cross-attention: dec.b3.cross.")
        if match is None:
            close = nearest(text.partition(".")[2], ("attn", "mlp", *MATRICES))
            hint = close if "Did you mean" in close else ""
            if text.startswith(("enc.", "dec.")):
                hint = " In an encoder-decoder write enc.b3.attn.h7, dec.b3.cross.h7, dec.b3.cross.q."
            raise UnknownName(
                f"{text!r} is not a site. Write b12 (block), b12.attn, b12.attn.h7, b12.attn.g3, b12.mlp, "
                f"b12.mlp.n871, b12.mlp.e17 (expert), or a matrix such as b12.down ({', '.join(MATRICES)}), "
                f"b12.e17.down.{hint}"
            )
        part = match["sub"] or match["matrix"] or ""
        unit = "e" if match["expert"] else match["unit"] or ""
        index = int(match["expert"] or match["index"] or 0)
        return cls(int(match["block"]), part, unit, index, match["stack"] or "")

    def __lt__(self, other: Site) -> bool:
        if self.stack != other.stack:
            return self.stack < other.stack if "" in (self.stack, other.stack) else self.stack == "enc"
        mine = (self.block, self.part, self.unit, self.index)
        return mine < (other.block, other.part, other.unit, other.index)

    def __str__(self) -> str:
        unit, part = f".{self.unit}{self.index}" if self.unit else "", f".{self.part}" if self.part else ""
        block = f"{self.stack}.b{self.block}" if self.stack else f"b{self.block}"
        return block + (unit + part if self.is_matrix else part + unit)

    @property
    def words(self) -> str:
        """Return the address for a reader who has not seen one: `layer 14, MLP gate projection`."""
        parts = [
            _PART_WORDS.get(self.part, ""),
            f"{UNIT_WORDS[self.unit]} {self.index}" if self.unit else "",
        ]
        inner = " ".join(part for part in parts if part)
        return f"{_STACK_WORDS[self.stack]}layer {self.block}" + (f", {inner}" if inner else "")

    @property
    def is_matrix(self) -> bool:
        """Return True for the address of a matrix."""
        return self.part in EVERY_MATRIX

    @property
    def kind(self) -> str:
        """Return the name of a matrix among those of its attention or network: `q` of `cross.q`."""
        return self.part.removeprefix("cross.")

    @property
    def name(self) -> str:
        """Return what `--matrices` calls a matrix of any block: `q`, `cross.q`, that of an expert `experts.gate`."""
        return f"experts.{self.part}" if self.unit and self.is_matrix else self.part

    @property
    def label(self) -> str:
        """Return what the site is in any block: `q`, `experts.gate`, in an encoder-decoder `enc.q`, `dec.cross.q`."""
        return f"{self.stack}.{self.name}" if self.stack else self.name

    @property
    def whole_block(self) -> Site:
        """Return the address of the block."""
        return Site(self.block, stack=self.stack)

    def beside(self, part: str, unit: str = "", index: int = 0) -> Site:
        """Return the address of another part of the same block."""
        return Site(self.block, part, unit, index, self.stack)

    @property
    def wholes(self) -> tuple[Site, ...]:
        """Return the parts that contain this one: attention or feed-forward network, then the block."""
        if not self.part:
            return ()
        if self.is_matrix and self.unit:
            expert = self.beside("mlp", self.unit, self.index)
            return expert, *expert.wholes
        if self.is_matrix:
            return self.beside(part_of(self.part)), self.whole_block
        return (self.beside(self.part), self.whole_block) if self.unit else (self.whole_block,)


def block_at(number: int, num_encoder: int) -> Site:
    """Return the block that is `number` of all; in an encoder-decoder those of the encoder come first."""
    if not num_encoder:
        return Site(number)
    inside = number < num_encoder
    return Site(number if inside else number - num_encoder, stack="enc" if inside else "dec")


def in_order(labels: Iterable[str]) -> list[str]:
    """Return labels of matrices in canonical order, an encoder's first; unknown ones come last."""
    stacks = ("", *(f"{stack}." for stack in STACKS))
    names = (*EVERY_MATRIX, *EXPERT_MATRICES)
    order = {stack + name: place for place, (stack, name) in enumerate(product(stacks, names))}
    return sorted(labels, key=lambda label: (order.get(label, len(order)), label))


def part_of(matrix: str) -> str:
    """Return the part that a kind of matrix is of: `attn`, `cross` or `mlp`."""
    if matrix in CROSS_MATRICES:
        return "cross"
    return "attn" if matrix in ATTENTION_MATRICES else "mlp"


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
_OF_PARTS = {name: (name,) for name in (*CROSS_MATRICES, *EXPERT_MATRICES)}
_GROUPS = {"cross": CROSS_MATRICES, "experts": EXPERT_MATRICES}
_BY_MODEL = ("fc_in", "attn", "mlp", "all")  # what these are depends on the matrices that a model has


def check_matrix_words(words: Iterable[str]) -> None:
    """Raise `UnknownName` for a word that names no matrix of any model."""
    for word in words:
        if word not in (*_WORDS, *_BY_MODEL, *_OF_PARTS, *_GROUPS):
            raise UnknownName(f"unknown matrix {word!r}.{nearest(word, (*_WORDS, *_BY_MODEL))}")


def matrix_names(words: Iterable[str], available: Iterable[str]) -> tuple[str, ...]:
    """Return canonical matrix names for the words of a user: `down`, LASER's `fc_out`, or a group `attn`/`mlp`/`all`.

    LASER's `fc_in` is the gate in gated families and the up projection elsewhere (METHODS 0, from the authors' layer
    tables). Experts' matrices are meant by `experts` or `experts.down` alone, not by `all`: a block has hundreds.

    Args:
        available: the matrices the model has.

    Raises: `UnknownName` for a word that names nothing, or nothing that this model has.
    """
    has, words = set(available), tuple(words)
    check_matrix_words(words)
    whole = tuple(name for name in EVERY_MATRIX if name in has)
    available = (*whole, *(name for name in EXPERT_MATRICES if name in has))
    meaning = {
        **_WORDS,
        **_OF_PARTS,
        **_GROUPS,
        "fc_in": ("gate",) if "gate" in has else ("up",),
        "attn": tuple(name for name in whole if part_of(name) == "attn"),
        "mlp": tuple(name for name in whole if part_of(name) == "mlp"),
        "all": whole,
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
