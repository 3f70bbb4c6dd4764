"""Edits and plans: what is to be cut, as a value that can be compared, written down and read back.

A plan says nothing about how an edit is carried out; `secateur.surgery` does that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from secateur.core.site import Site
from secateur.errors import PlanError, SecateurError, UnknownName, nearest

PLAN_VERSION = 1


@dataclass(frozen=True, order=True)
class Truncate:
    """Replace a matrix by `rank` of its singular components: the largest (`side="top"`) or the smallest (`"tail"`).

    Rank 0 is the zero matrix. Source: LASER (Sharma, Ash, Misra 2023, arXiv 2312.13558), section 3; `tail` is their
    Fig. 5, the higher-order components alone.
    """

    matrix: Site
    rank: int
    side: str = "top"

    kind = "truncate"

    def __post_init__(self) -> None:
        if not self.matrix.is_matrix:
            raise PlanError(f"only a matrix can be truncated, and {self.matrix} is not one")
        if self.rank < 0 or self.side not in ("top", "tail"):
            raise PlanError(
                f"{self.matrix}: rank must be at least 0 and side top or tail, not {self.rank}, {self.side!r}"
            )

    @property
    def site(self) -> Site:
        return self.matrix

    def __str__(self) -> str:
        return f"{self.matrix} → rank {self.rank}" + ("" if self.side == "top" else " (tail components)")

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "matrix": str(self.matrix), "rank": self.rank, "side": self.side}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Truncate:
        return cls(Site.parse(data["matrix"]), int(data["rank"]), data.get("side", "top"))


@dataclass(frozen=True)
class Drop:
    """Take `site` away: a block, its attention or feed-forward network, a query head, a KV group, a neuron.

    An attention or feed-forward network goes with its biases and leaves its norms; a block goes with all it has. Of a
    head, group or neuron goes what it adds to the stream, so the last head leaves the output's bias behind.
    """

    site: Site

    kind = "drop"

    def __post_init__(self) -> None:
        if self.site.is_matrix:
            raise PlanError(f"{self.site} is a matrix, which is truncated (rank 0 is nothing), not dropped")

    def __str__(self) -> str:
        return f"{self.site} gone"

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "site": str(self.site)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Drop:
        return cls(Site.parse(data["site"]))


Edit = Truncate | Drop
_KINDS: dict[str, type[Truncate] | type[Drop]] = {kind.kind: kind for kind in (Truncate, Drop)}


@dataclass(frozen=True)
class Plan:
    """Edits in canonical order, for the model with fingerprint `model`. The empty plan leaves a model as it is.

    Raises: `PlanError` at construction when two edits claim the same site, or one a part of what another drops.
    """

    model: str
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.edits, key=lambda edit: edit.site))
        for first, second in pairwise(ordered):
            if first.site == second.site:
                first, second = sorted((first, second), key=str)
                raise PlanError(f"two edits claim {first.site}: {first}; {second}. Keep one of them.")
        dropped = {edit.site for edit in ordered if isinstance(edit, Drop)}
        for edit in ordered:
            for whole in edit.site.wholes:
                if whole in dropped:
                    raise PlanError(f"{edit}, but {whole} is dropped whole. Keep one of them.")
        object.__setattr__(self, "edits", ordered)

    def __add__(self, edit: Edit) -> Plan:
        return Plan(self.model, (*self.edits, edit))

    def __len__(self) -> int:
        return len(self.edits)

    def __str__(self) -> str:
        return "; ".join(self.told) or "nothing cut"

    @property
    def told(self) -> list[str]:
        """What is cut, in words; the heads, groups or neurons of one part together."""
        return [*map(str, self.truncated), *_told(self.dropped)]

    @property
    def dropped(self) -> tuple[Site, ...]:
        """The sites that go, in order."""
        return tuple(edit.site for edit in self.edits if isinstance(edit, Drop))

    @property
    def truncated(self) -> tuple[Truncate, ...]:
        return tuple(edit for edit in self.edits if isinstance(edit, Truncate))

    @property
    def identity(self) -> str:
        """Hex digest that two equal plans share, on any machine."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:32]

    @property
    def lowest_block(self) -> int | None:
        """The first block this plan changes, or None for the empty plan: everything below may be reused."""
        return min((edit.site.block for edit in self.edits), default=None)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": PLAN_VERSION,
            "model": self.model,
            "edits": [edit.to_json() for edit in self.edits],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Reads what `to_json` wrote; keys it does not know (provenance) are left alone. Raises `PlanError`."""
        if data.get("version") != PLAN_VERSION:
            raise PlanError(
                f"a plan of version {data.get('version')!r}; this secateur reads version {PLAN_VERSION}."
            )
        try:
            edits = [_edit_from_json(item) for item in data["edits"]]
            return cls(str(data["model"]), tuple(edits))
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"not a plan: {error!r}") from error


def _edit_from_json(item: Mapping[str, Any]) -> Edit:
    kind = item["kind"]
    if kind not in _KINDS:
        raise UnknownName(f"unknown kind of edit {kind!r}.{nearest(kind, _KINDS)}")
    return _KINDS[kind].from_json(item)


_UNITS = {"h": "head", "g": "KV group", "n": "neuron"}
NAMED = 12  # numbers in one line; more are counted


def _told(dropped: Iterable[Site]) -> list[str]:
    """`b0.attn without heads 1, 2, 5`: the units of one part together, whole parts one by one."""
    words = []
    for (block, part, unit), sites in groupby(dropped, key=lambda site: (site.block, site.part, site.unit)):
        whole, numbers = Site(block, part), [site.index for site in sites]
        words.append(f"{whole} without {_units(unit, numbers)}" if unit else f"{whole} gone")
    return words


def _units(unit: str, numbers: list[int]) -> str:
    word = _UNITS[unit] + ("" if len(numbers) == 1 else "s")
    return f"{len(numbers)} {word}" if len(numbers) > NAMED else f"{word} {', '.join(map(str, numbers))}"


def parse_edits(words: Iterable[str]) -> tuple[Edit, ...]:
    """Edits from the command line: `b2.gate=5` truncates to rank 5, `b2.gate=tail:5` keeps the 5 smallest, and
    `b2.attn.h3=drop` takes a head away; so do `b2.attn.g1`, `b2.attn`, `b2.mlp`, `b2.mlp.n7` and `b2`."""
    edits: list[Edit] = []
    for word in words:
        site, sep, value = word.partition("=")
        if value == "drop":
            edits.append(Drop(Site.parse(site)))
            continue
        side, rank = ("tail", value[5:]) if value.startswith("tail:") else ("top", value)
        if not sep or not rank.isdecimal():
            raise SecateurError(
                f"{word!r} is not an edit. Write for example b2.gate=5 (keep 5 components), b2.gate=tail:5, or "
                "b2.attn.h3=drop."
            )
        edits.append(Truncate(Site.parse(site), int(rank), side))
    return tuple(edits)
