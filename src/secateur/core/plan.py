"""Edits and plans: the parts that are to be cut, as values that can be compared, written down and read back.

A plan says nothing about how an edit is carried out; `secateur.surgery` does that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, assert_never, get_args

from secateur.core.fitted import Fitted
from secateur.core.ranges import MOST, whole_numbers
from secateur.core.site import UNIT_WORDS, Site
from secateur.errors import PlanError, SecateurError, UnknownName, nearest

if TYPE_CHECKING:
    from pydantic import JsonValue

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
        """Return the site that the edit changes."""
        return self.matrix

    def __str__(self) -> str:
        return f"{self.matrix} → rank {self.rank}" + ("" if self.side == "top" else " (tail components)")

    def to_json(self) -> dict[str, JsonValue]:
        """Return the edit as plain values."""
        return {"kind": self.kind, "matrix": str(self.matrix), "rank": self.rank, "side": self.side}

    @classmethod
    def from_json(cls, data: Mapping[str, JsonValue]) -> Truncate:
        """Return the edit that `to_json` wrote."""
        return cls(Site.parse(_text(data["matrix"])), _whole(data["rank"]), _text(data.get("side", "top")))


@dataclass(frozen=True)
class RemoveDirections:
    """Remove singular directions from a matrix, W − Σᵢ uᵢ uᵢᵀ W, and add their mean effect to the bias.

    `directions` count from the largest singular value. With `per_head` each head's rows (of o: columns) have k
    directions of their own, and number h·k + i is direction i of head h. `fold` holds `mean`, the layer's mean input
    (in,), and `u` (pieces, out, k) where the directions are not those of the weights alone; without it nothing is
    folded. Source: eigenpruning (Vergara-Browne et al. 2024, arXiv 2404.03147). Differs: one bias for all positions.
    """

    matrix: Site
    directions: tuple[int, ...]
    per_head: bool = False
    fold: Fitted | None = None

    kind = "remove_directions"

    def __post_init__(self) -> None:
        if not self.matrix.is_matrix:
            raise PlanError(f"only a matrix has singular directions, and {self.matrix} is not one")
        ordered = tuple(sorted(set(self.directions)))
        if not ordered or ordered[0] < 0:
            raise PlanError(f"{self.matrix}: name at least one direction to remove, counted from 0.")
        object.__setattr__(self, "directions", ordered)

    @property
    def site(self) -> Site:
        """Return the site that the edit changes."""
        return self.matrix

    def __str__(self) -> str:
        numbers, heads = list(self.directions), " of its heads" if self.per_head else ""
        return f"{self.matrix} without {_counted('direction', numbers)}{heads}"

    def to_json(self) -> dict[str, JsonValue]:
        """Return the edit as plain values."""
        return {
            "kind": self.kind,
            "matrix": str(self.matrix),
            "directions": list(self.directions),
            "per_head": self.per_head,
            "fold": None if self.fold is None else self.fold.digest,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, JsonValue]) -> RemoveDirections:
        """Return the edit that `to_json` wrote, with the digest of its fold alone."""
        fold = None if data["fold"] is None else Fitted(_text(data["fold"]))
        directions, per_head = tuple(map(_whole, _items(data["directions"]))), data["per_head"]
        if not isinstance(per_head, bool):
            raise TypeError(f"per_head {per_head!r} is neither true nor false")
        return cls(Site.parse(_text(data["matrix"])), directions, per_head, fold)


@dataclass(frozen=True)
class Drop:
    """Remove `site`: a block, its attention or feed-forward network, a query head, a KV group, a neuron, an expert.

    An attention or feed-forward network is removed with its biases but without its norms; a block with all it has. Of a
    head, group or neuron its contribution to the residual stream is removed, so after the last head the output's bias
    stays. Of an expert its row of the router goes too, so that each token goes to as many of the others as before.
    """

    site: Site

    kind = "drop"

    def __post_init__(self) -> None:
        if self.site.is_matrix:
            raise PlanError(f"{self.site} is a matrix, which is truncated (rank 0 is nothing), not dropped")

    def __str__(self) -> str:
        return f"{self.site} gone"

    def to_json(self) -> dict[str, JsonValue]:
        """Return the edit as plain values."""
        return {"kind": self.kind, "site": str(self.site)}

    @classmethod
    def from_json(cls, data: Mapping[str, JsonValue]) -> Drop:
        """Return the edit that `to_json` wrote."""
        return cls(Site.parse(_text(data["site"])))


FORMS = ("linear", "fold")


@dataclass(frozen=True)
class Linearize:
    """Replace a run of blocks by one linear map.

    `linear`: the run's output becomes `weight` x + `bias`, or x + `b`ᵀ `a` x + `bias` of low rank, for its input x.
    `fold`: the run is removed, and the feed-forward network before it gives `weight` y in place of y, plus `bias` where
    its output has one; that costs nothing.
    Arrays are (d_model, d_model), (rank, d_model), (d_model,). Sources: Razzhigaev et al. 2024 (arXiv 2405.12250) for
    the map; ReplaceMe (Shopkhoev et al. 2025, arXiv 2505.02819) for the fold.
    """

    blocks: tuple[int, ...]
    form: str
    fitted: Fitted

    kind = "linearize"

    def __post_init__(self) -> None:
        first, last = min(self.blocks, default=0), max(self.blocks, default=-1)
        if tuple(range(first, last + 1)) != self.blocks or first < 0 or not self.blocks:
            raise PlanError(f"blocks {self.blocks}: a run of blocks, one after the other, please.")
        if self.form not in FORMS:
            raise UnknownName(f"unknown form {self.form!r}.{nearest(self.form, FORMS)}")
        if self.form == "fold" and first == 0:
            raise PlanError("block 0 has no feed-forward network before it that it could be folded into.")

    @property
    def site(self) -> Site:
        """Return the first block of the run."""
        return Site(self.blocks[0])

    @property
    def folded_into(self) -> Site | None:
        """Return the matrix that carries a fold; None for a map of its own."""
        return Site(self.blocks[0] - 1, "down") if self.form == "fold" else None

    def __str__(self) -> str:
        first, last = self.blocks[0], self.blocks[-1]
        name = f"b{first}" if first == last else f"b{first} to b{last}"
        return f"{name} " + ("linear" if self.form == "linear" else f"folded into {self.folded_into}")

    def to_json(self) -> dict[str, JsonValue]:
        """Return the edit as plain values."""
        blocks: list[JsonValue] = list(self.blocks)
        return {"kind": self.kind, "blocks": blocks, "form": self.form, "fold": self.fitted.digest}

    @classmethod
    def from_json(cls, data: Mapping[str, JsonValue]) -> Linearize:
        """Return the edit that `to_json` wrote, with the digest of its map alone."""
        blocks = tuple(map(_whole, _items(data["blocks"])))
        return cls(blocks, _text(data["form"]), Fitted(_text(data["fold"])))


Edit = Truncate | RemoveDirections | Linearize | Drop  # in the order in which they are carried out
_KINDS: dict[str, type[Edit]] = {kind.kind: kind for kind in get_args(Edit)}


def _claims(edit: Edit) -> list[Site]:
    """Return the sites that an edit changes, and that no other edit may change."""
    match edit:
        case Truncate() | RemoveDirections() | Drop():
            return [edit.site]
        case Linearize():
            into = edit.folded_into
            return [*map(Site, edit.blocks), *([] if into is None else [into])]
        case _:
            assert_never(edit)


DROPPED: Mapping[tuple[str, str], str] = {
    ("", ""): "blocks",
    ("attn", ""): "attentions",
    ("attn", "g"): "KV groups",
    ("attn", "h"): "heads",
    ("cross", ""): "cross-attentions",
    ("cross", "g"): "KV groups of cross-attentions",
    ("cross", "h"): "heads of cross-attentions",
    ("mlp", ""): "feed-forward networks",
    ("mlp", "n"): "neurons",
    ("mlp", "e"): "experts",
}
"""Words for kinds of drops, by part and unit of their sites."""
WITH_MEAN = "directions with a mean"
OF_EXPERTS = "matrices of experts"
MAPS = {"linear": "linear maps", "fold": "folded blocks"}  # in words, by their form


_WORDS = {  # of options, where kinds are called otherwise
    "ffns": DROPPED["mlp", ""],
    "groups": DROPPED["attn", "g"],
    "folds": MAPS["fold"],
    "maps": MAPS["linear"],
}


def proved_kinds(names: Iterable[str], matrices: Collection[str], foldable: bool) -> frozenset[str]:
    """Return the kinds of edit, as `kinds_of` does, that options call `ffns`, `folds`, `matrices` and so on.

    Args:
        matrices: Kinds of matrices that the model has.
        foldable: Whether linear maps can be folded in it.
    """
    kinds = {_WORDS.get(name, name) for name in names}
    if "matrices" in kinds:
        kinds = (kinds - {"matrices"}) | set(matrices)
    return frozenset(kinds if foldable else kinds - {MAPS["fold"]})


def proved_as(matrix: Site) -> str:
    """Return the kind of edit, as `kinds_of` does, that a truncation of a matrix is."""
    return OF_EXPERTS if matrix.unit else matrix.part


def kinds_of(edits: Iterable[Edit]) -> frozenset[str]:
    """Return the kinds of edit there are, in the words in which `secateur models MODEL` lists them."""
    kinds: set[str] = set()
    for edit in edits:
        match edit:
            case Truncate() | RemoveDirections():
                kinds.add(proved_as(edit.matrix))
                kinds |= {WITH_MEAN} if isinstance(edit, RemoveDirections) and edit.fold else set()
            case Drop():
                kinds.add(DROPPED[edit.site.part, edit.site.unit])
            case Linearize():
                kinds.add(MAPS[edit.form])
            case _:
                assert_never(edit)
    return frozenset(kinds)


def blocks_of(edit: Edit) -> tuple[Site, ...]:
    """Return the blocks that an edit changes, ascending."""
    return tuple(sorted({site.whole_block for site in _claims(edit)}))


@dataclass(frozen=True)
class Plan:
    """Edits in canonical order, for the model with fingerprint `model`. The empty plan leaves a model as it is.

    Raises: `PlanError` at construction when two edits claim the same site, or one a part of what another drops.
    """

    model: str
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.edits, key=lambda edit: edit.site))
        claims = sorted(
            ((site, edit) for edit in ordered for site in _claims(edit)), key=lambda pair: pair[0]
        )
        for (site, first), (following, second) in pairwise(claims):
            if site == following:
                first, second = sorted((first, second), key=str)
                raise PlanError(f"two edits claim {site}: {first}; {second}. Keep one of them.")
        gone = {
            site
            for site, edit in claims
            if (isinstance(edit, Drop) and site.unit in ("", "e")) or not site.part
        }
        blocks = {site.block for site in gone}  # of either stack: more are looked at than need be
        for site, edit in claims:
            for whole in site.wholes if site.block in blocks else ():
                if whole in gone:
                    raise PlanError(f"{edit}, but {whole} goes whole. Keep one of them.")
        object.__setattr__(self, "edits", ordered)

    def __add__(self, edit: Edit) -> Plan:
        return Plan(self.model, (*self.edits, edit))

    def __len__(self) -> int:
        return len(self.edits)

    def __str__(self) -> str:
        return "; ".join(self.descriptions) or "nothing cut"

    @property
    def descriptions(self) -> list[str]:
        """Return the edits in words; the heads, groups or neurons of one part are named together."""
        others = (edit for edit in self.by_kind if not isinstance(edit, Drop))
        return [*map(str, others), *_dropped_text(self.dropped)]

    @property
    def by_kind(self) -> tuple[Edit, ...]:
        """Return the edits in the order in which they are carried out: those of one kind together."""
        return tuple(sorted(self.edits, key=lambda edit: list(_KINDS).index(edit.kind)))

    @property
    def dropped(self) -> tuple[Site, ...]:
        """Return the sites that are dropped, in order."""
        return tuple(edit.site for edit in self.edits if isinstance(edit, Drop))

    @property
    def truncated(self) -> tuple[Truncate, ...]:
        """Return the truncations, in order."""
        return tuple(edit for edit in self.edits if isinstance(edit, Truncate))

    @property
    def removed(self) -> tuple[RemoveDirections, ...]:
        """Return the removals of directions, in order."""
        return tuple(edit for edit in self.edits if isinstance(edit, RemoveDirections))

    @property
    def linearized(self) -> tuple[Linearize, ...]:
        """Return the runs of blocks that a linear map replaces, in order."""
        return tuple(edit for edit in self.edits if isinstance(edit, Linearize))

    @property
    def blocks_gone(self) -> set[Site]:
        """Return the blocks of which nothing is left: dropped, or replaced by a linear map."""
        dropped = {site for site in self.dropped if not site.part}
        return dropped.union(*(map(Site, edit.blocks) for edit in self.linearized))

    @property
    def fitted(self) -> tuple[Fitted, ...]:
        """Return the arrays that lie beside the plan, each once."""
        folds = (edit.fold for edit in self.removed if edit.fold is not None)
        return tuple(dict.fromkeys((*folds, *(edit.fitted for edit in self.linearized))))

    def with_fitted(self, known: Mapping[str, Fitted]) -> Plan:
        """Return the same plan with the arrays that `known` has by digest."""

        def filled(edit: Edit) -> Edit:
            match edit:
                case Truncate() | Drop():
                    return edit
                case RemoveDirections():
                    return edit if edit.fold is None else replace(edit, fold=known[edit.fold.digest])
                case Linearize():
                    return replace(edit, fitted=known[edit.fitted.digest])
                case _:
                    assert_never(edit)

        return Plan(self.model, tuple(map(filled, self.edits)))

    @property
    def identity(self) -> str:
        """Return the hex digest that two equal plans share, on any machine."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:32]

    @property
    def lowest_block(self) -> Site | None:
        """Return the first block this plan changes, or None for the empty plan: activations below it may be reused."""
        return min((site.whole_block for edit in self.edits for site in _claims(edit)), default=None)

    def to_json(self) -> dict[str, JsonValue]:
        """Return the plan as plain values."""
        return {
            "version": PLAN_VERSION,
            "model": self.model,
            "edits": [edit.to_json() for edit in self.edits],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, JsonValue]) -> Plan:
        """Return the plan that `to_json` wrote; unknown keys (provenance) are ignored. Raises: `PlanError`."""
        if data.get("version") != PLAN_VERSION:
            raise PlanError(
                f"a plan of version {data.get('version')!r}; this secateur reads version {PLAN_VERSION}."
            )
        try:
            edits = tuple(_edit_from_json(item) for item in _items(data["edits"]))
            return cls(_text(data["model"]), edits)
        except KeyError as error:
            raise PlanError(f"not a plan: it lacks {error}.") from error
        except (TypeError, ValueError) as error:
            raise PlanError(f"not a plan: {error}.") from error


def _items(value: JsonValue) -> list[JsonValue]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is no list")
    return value


def _whole(value: JsonValue) -> int:
    """Return a JSON value that is a whole number. Raises: `TypeError` for others, such as 5.5 or "5"."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is no whole number")
    if abs(value) > MOST:
        raise ValueError("a number is larger than any that counts something")
    return value


def _text(value: JsonValue) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


PlanOrEdits = (
    Plan | tuple[Edit, ...]
)  # a user gives a plan, which is for one model, or bare edits for any model


def plan_of(plan: PlanOrEdits, fingerprint: str) -> Plan:
    """Return the plan itself, or a plan of the bare edits for the model with this fingerprint."""
    return plan if isinstance(plan, Plan) else Plan(fingerprint, plan)


def _edit_from_json(item: JsonValue) -> Edit:
    if not isinstance(item, Mapping):
        raise TypeError(f"{item!r:.40} is no edit")
    kind = _text(item["kind"])
    if kind not in _KINDS:
        raise UnknownName(f"unknown kind of edit {kind!r}.{nearest(kind, _KINDS)}")
    return _KINDS[kind].from_json(item)


NAMED = 12  # numbers in one line; more are counted


def _dropped_text(dropped: Iterable[Site]) -> list[str]:
    """Return `b0.attn without heads 1, 2, 5`: the units of one part together, whole parts one by one."""
    words = []
    for (whole, unit), sites in groupby(dropped, key=lambda site: (site.beside(site.part), site.unit)):
        numbers = [site.index for site in sites]
        words.append(f"{whole} without {_counted(UNIT_WORDS[unit], numbers)}" if unit else f"{whole} gone")
    return words


def _counted(word: str, numbers: list[int]) -> str:
    word += "" if len(numbers) == 1 else "s"
    return f"{len(numbers)} {word}" if len(numbers) > NAMED else f"{word} {', '.join(map(str, numbers))}"


def parse_edits(words: Iterable[str]) -> tuple[Edit, ...]:
    """Return the edits that the words of a command line name.

    `b2.gate=5` truncates to rank 5 (`b2.e3.gate=5` that of an expert), `b2.gate=tail:5` keeps the 5 smallest,
    `b2.k=without:0,7` removes two directions and folds nothing, and `b2.attn.h3=drop` drops a head; so do `b2.attn.g1`,
    `b2.attn`, `b2.mlp`, `b2.mlp.n7`, `b2.mlp.e3`, `b2`; in an encoder-decoder `dec.b2.cross.h3=drop`.
    """
    return tuple(_edit_from_word(word) for word in words)


def _edit_from_word(word: str) -> Edit:
    site, sep, value = word.partition("=")
    if value == "drop":
        return Drop(Site.parse(site))
    side, _, numbers = value.rpartition(":")
    listed = whole_numbers(numbers.split(",") if side == "without" else [numbers])
    if not sep or side not in ("", "tail", "without") or listed is None:
        raise SecateurError(
            f"{word!r} is not an edit. Write for example b2.gate=5 (keep 5 components), b2.gate=tail:5, "
            "b2.k=without:0,7 (take out two directions), or b2.attn.h3=drop."
        )
    if side == "without":
        return RemoveDirections(Site.parse(site), tuple(listed))
    return Truncate(Site.parse(site), listed[0], side or "top")
