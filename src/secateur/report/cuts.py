"""The section about what was cut: a map of the model, the edits in words, sizes, how candidates were narrowed down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from secateur.core.records.verdict import CutRecord, ParametersRecord, VerdictRecord
from secateur.core.score import metric_name
from secateur.core.site import (
    ATTENTION_MATRICES,
    EVERY_MATRIX,
    MATRICES,
    Site,
    block_at,
    in_words,
    part_of,
)
from secateur.report.frame import PageSection
from secateur.report.markup import MINUS, change, key
from secateur.report.pruned_units import drop_list, drop_map, dropped, site_of
from secateur.report.templating import fragment

NUMBERED = 16  # blocks beside which a cell of a map is wide enough for a sign and a number
MOST_ITEMS = 8  # edits that are listed before the rest is folded


@dataclass(frozen=True)
class LookedAt:
    """The sites that a search looked at, for the map of the model. A method tells it; the page does not know methods.

    Args:
        sites: Matrices that candidates which were run were about.
        directions: By matrix, how many of its singular directions were removed, of how many.
        screened: Matrices all of whose candidates were set aside by a screen.
    """

    sites: frozenset[Site] = frozenset()
    directions: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    screened: frozenset[Site] = frozenset()


def cut_section(verdict: VerdictRecord, looked_at: LookedAt) -> PageSection:
    """Return the section."""
    drawn, words = model_map(verdict, looked_at), cut_list(verdict, looked_at)
    body = f'<div class="beside"><div>{drawn}</div><div>{words}</div></div>' if drawn else words
    whole = any(item.kind == "drop" for item in verdict.cut)
    lead = f"The model layer by layer, {'part by part' if whole else 'matrix by matrix'}."
    title = "What was cut" if verdict.cut else "What was tried"
    return PageSection("cut", title, lead, (body, funnel(verdict)))


def removed_directions(item: CutRecord, looked_at: LookedAt) -> tuple[int, int]:
    """Return how many directions of a matrix went, of how many; with heads of their own, these may exceed its rank."""
    if item.site in looked_at.directions:
        return looked_at.directions[item.site]
    assert item.rank is not None
    assert item.full_rank is not None
    return item.full_rank - item.rank, item.full_rank


def _in_matrices(verdict: VerdictRecord) -> list[CutRecord]:
    return [item for item in verdict.cut if item.kind != "drop"]


# --------------------------------------------------------------------------------------------------------- the map


def model_map(verdict: VerdictRecord, looked_at: LookedAt) -> str:
    """Return a map of heads and networks where some were dropped, and one of matrices where some were changed."""
    gone = dropped(verdict)
    if not gone.sites:
        return _matrix_map(verdict, looked_at)
    inside = any(
        item.kind != "linearize" for item in _in_matrices(verdict)
    )  # whole blocks are in the other map
    return drop_map(gone) + (_matrix_map(verdict, looked_at) if inside else "")


def _matrix_map(verdict: VerdictRecord, looked_at: LookedAt) -> str:
    inside = _in_matrices(verdict)
    named = {site for item in inside if (site := site_of(item.site)) is not None}
    sites = looked_at.sites | named
    considered = sites | looked_at.screened
    encoder = verdict.model.encoder_blocks
    blocks = 1 + max((site.block + encoder * (site.stack == "dec") for site in considered), default=-1)
    if any(item.blocks for item in inside):
        blocks = max(blocks, verdict.model.num_blocks)
    if not blocks:
        return ""
    cut = {
        place: item
        for item in inside
        for place in [f"b{block}" for block in item.blocks or ()] or [item.site]
    }
    names = [name for name in EVERY_MATRIX if any(site.part == name for site in considered)] or list(MATRICES)
    headless = dropped(verdict).headless
    none = {"kind": "", "title": "no heads here", "mark": ""}
    wholes = [block_at(block, encoder) for block in range(blocks)]
    rows = [
        (
            name,
            [
                none
                if (block in headless and name in ATTENTION_MATRICES)
                or (whole.stack == "enc" and part_of(name) == "cross")
                else _cell(whole.beside(name), sites, cut, looked_at, blocks)
                for block, whole in enumerate(wholes)
            ],
        )
        for name in names
    ]
    drawn = fragment(
        "cut",
        "matrix_map",
        rows=rows,
        columns=f"grid-template-columns:3.6em repeat({blocks},minmax(0,{5.4 if blocks <= 6 else 3.4}em))",
        label=f"Map of the model: {blocks} blocks, {len(names)} matrices each; cut: {', '.join(cut) or 'nothing'}",
        blocks=blocks,
        labelled=range(0, blocks, math.ceil(blocks / 10)),
    )
    return drawn + _legend(inside, numbered=blocks <= NUMBERED, screened=bool(looked_at.screened - sites))


def _cell(
    site: Site, sites: frozenset[Site], cut: Mapping[str, CutRecord], looked_at: LookedAt, blocks: int
) -> dict[str, object]:
    """Return class, hover text and mark of one matrix in the map."""
    of_experts = [
        item
        for place, item in cut.items()
        if (own := site_of(place)) and own.unit and own.beside(own.part) == site
    ]
    if of_experts:
        title = "; ".join(item.edit for item in of_experts)
        return {"kind": "cut", "title": title, "mark": f"{len(of_experts)} e"}
    places = (str(site), *map(str, site.wholes))
    item = next((cut[place] for place in places if place in cut), None)
    if item is None:
        kind = "tried" if site in sites else "set-aside" if site in looked_at.screened else "idle"
        return {"kind": kind, "title": str(site), "mark": ""}
    mark = "×" if item.rank is None else str(item.rank)
    if item.kind == "remove_directions":
        mark = f"{MINUS}{removed_directions(item, looked_at)[0]}" if blocks <= NUMBERED else ""
    return {"kind": "cut", "title": item.edit, "mark": mark}


def _legend(inside: Sequence[CutRecord], *, numbered: bool, screened: bool) -> str:
    words = {
        "linearize": "gone, a linear map stands for them",
        "remove_directions": "cut, with the number of directions removed"
        if numbered
        else "directions removed",
        "truncate": "cut, with the rank kept",
    }
    cut = [("cut", words.get(kind, "cut")) for kind in sorted({item.kind for item in inside})]
    aside = [("set-aside", "only screened")] if screened else []
    return key(("tried", "tried"), *aside, ("idle", "not tried"), *cut)


# ------------------------------------------------------------------------------------------------------ the words


def cut_list(verdict: VerdictRecord, looked_at: LookedAt) -> str:
    """Return the edits in words, block by block where parts were dropped, then what they do to the size."""
    if not verdict.cut:
        return fragment("cut", "nothing_cut", handed_over=verdict.handed_over)
    gone, inside = dropped(verdict), _in_matrices(verdict)
    items = [_words(item, looked_at) for item in inside]
    listed = fragment(
        "cut",
        "cut_list",
        unproven=verdict.handed_over.unproven,
        summary=verdict.cut_summary if gone.sites or len(inside) > MOST_ITEMS else "",
        shown=items[:MOST_ITEMS],
        folded=items[MOST_ITEMS:],
    )
    size = " ".join(_size(verdict.parameters, inside, whole=bool(gone.sites)))
    return f"{listed}{drop_list(gone)}<p>{size}</p>"


def _words(item: CutRecord, looked_at: LookedAt) -> tuple[str, str, str, str]:
    """Return the edit in words, the address, the shape of its matrix, and how much is left of it."""
    kept = ""
    if item.kind == "remove_directions":
        gone, had = removed_directions(item, looked_at)
        kept = f", {gone:,} of {had:,} directions removed"
    elif item.full_rank:
        kept = f", {item.rank} of {item.full_rank} components kept"
    return in_words(item.edit), item.site, " × ".join(f"{size:,}" for size in item.shape or ()), kept


def _size(parameters: ParametersRecord, inside: Sequence[CutRecord], *, whole: bool) -> list[str]:
    """Return sentences about the number of parameters."""
    before, after, stored = parameters.before, parameters.after, parameters.factorized
    factors = f"Stored as factors it would hold {stored:,} ({_percent(stored / before - 1)})."
    sentences = []
    if after != before:
        sentences.append(f"{before:,} parameters before, {after:,} after ({_percent(after / before - 1)}).")
        sentences += [factors] if inside and 0 < stored < min(before, after) else []
    elif whole:
        sentences.append(
            f"{before:,} parameters before and after: what was cut is zeroed, not gone, and saves none."
        )
    else:
        keeps = "the matrix keeps its shape" if len(inside) == 1 else "the matrices keep their shapes"
        sentences.append(f"{before:,} parameters before and after: {keeps}, so the file is no smaller.")
        sentences += [factors] if 0 < stored < before else []
    if any(item.kind == "remove_directions" for item in inside):
        means = "What the removed directions gave on average stays in"
        new = " biases, which are what is new; they are zero where nothing was removed."
        sentences.insert(1, means + (new if after > before else " the biases."))
        serves = "The cut"
    else:
        serves = "Low rank"
    if after == before and not whole:
        sentences.append(f"{serves} serves accuracy here, not size.")
    return sentences


def _percent(share: float) -> str:
    return change(share, "share", name_unit=False) + " %"


def _order(verdict: VerdictRecord) -> str:
    """Return by what a search for gain ordered the cuts that it tried, as `search.race.Objective` does."""
    if verdict.search.choice is None:
        return ""
    metrics = [item.metric for item in verdict.secondary]
    ties = "choice_loss" if "choice_loss" in metrics else "loss"
    equal = "" if ties == verdict.metric else f", equal ones by {metric_name(ties).lower()}"
    tried = f"{verdict.candidates_tried:,} were tried on the validation split"
    return f" {tried}, the best by {metric_name(verdict.metric).lower()}{equal}."


def funnel(verdict: VerdictRecord) -> str:
    """Return how many candidates were set aside, dropped, and judged to the end: one bar and one sentence.

    Nothing for a search that does not narrow down, such as removal step by step.
    """
    search = verdict.search
    if not search.proposed or search.raced_out is None:
        return ""
    screened, raced = search.screened_out or 0, search.raced_out
    parts = [
        ("screened", "set aside by the screen", screened),
        ("raced", "dropped early in the race", raced),
        ("judged", "judged to the end", max(0, search.proposed - screened - raced)),
    ]
    parts = [part for part in parts if part[2]]
    how = "all of them judged on every example" if search.exhaustive else "narrowed by screening and racing"
    return fragment(
        "cut",
        "funnel",
        parts=parts,
        sentence=f"{search.proposed:,} candidates proposed by {search.method}, {how}.{_order(verdict)}",
        legend=key(*((kind, f"{count:,} {words}") for kind, words, count in parts)),
    )
