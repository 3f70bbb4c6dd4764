"""What was cut and why to believe it, as HTML: guards, simpler changes, the model's map, the search's funnel.

Every string from data is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.core.site import ATTENTION_MATRICES, MATRICES, Site
from secateur.report.markup import MINUS, capital, change, key, known, number, text
from secateur.report.pruned_units import drop_list, drop_map, dropped, site_of

Record = Mapping[str, Any]

NUMBERED = 16  # blocks beside which a cell of a map is wide enough for a sign and a number
MOST_ITEMS = 8  # edits that are told before the rest is folded


def guards(verdict: Record) -> str:
    """Each guard as a sentence with its mark; a fired guard is marked by sign, word and color."""
    return '<ul class="guards">' + "".join(_guard(item) for item in verdict.get("guards") or ()) + "</ul>"


def _guard(item: Record) -> str:
    kind, sign, word = ("fired", "!", "fired") if item["fired"] else ("clear", "✓", "clear")
    if not item.get("applicable", True):
        kind, sign, word = "none", "–", ""
    said = f"<b>{text(capital(item['name']))}</b> <em>{word}</em><br>{text(item.get('detail', ''))}"
    return f'<li class="{kind}"><span class="sign" aria-hidden="true">{sign}</span><div>{said}</div></li>'


def not_applicable(verdict: Record) -> str:
    """The alternatives that this task has no place for, with the reason."""
    items = [item for item in verdict.get("alternatives") or () if not item.get("applicable")]
    said = "; ".join(f"{text(item['name'])} ({text(item.get('detail', ''))})" for item in items)
    return f'<p class="note">Not applicable here: {said}.</p>' if said else ""


def simpler(verdict: Record) -> str:
    """How far the alternatives that need no cut get, beside the cut, in one sentence each."""
    after, sign = verdict["after"]["value"], 1 if verdict.get("higher_is_better", True) else -1
    said = []
    for item in verdict.get("alternatives") or ():
        if item.get("applicable") and known(item.get("value")) and known(after):
            reached = number(item["value"], verdict["unit"])
            words = _beside(sign * (item["value"] - after), item["value"], verdict["after"].get("ci"))
            said.append(f"<b>{text(capital(item['name']))}</b> alone reaches {text(reached)}: {words}.")
    return f'<p class="aside">{" ".join(said)}</p>' if said else ""


def _beside(gain: float, value: float, ci: Sequence[float] | None) -> str:
    if ci and ci[0] <= value <= ci[1]:
        return "as much as the cut, within its interval"
    return "more than the cut" if gain > 0 else "less than the cut"


def sites_of(verdict: Record, analysis: Record) -> set[Site]:
    """Sites the run speaks of: swept, screened, read, drawn as a curve or cut; what is no address is left out."""
    rows = [row for block in ("sweep", "screen", "curves") for row in analysis.get(block) or ()]
    rows += (analysis.get("directions") or {}).get("matrices") or ()
    named = {
        site for row in [*rows, *_in_matrices(verdict)] if (site := site_of(row.get("site"))) is not None
    }
    return named | _in_blocks(verdict, analysis)


def _in_blocks(verdict: Record, analysis: Record) -> set[Site]:
    """Every matrix of the blocks that were measured as wholes."""
    steps = (analysis.get("depth") or {}).get("order") or ()
    blocks = {int(block) for step in steps for block in step["measured"]}
    return {
        Site(block, kind) for block in blocks for kind in (verdict.get("model") or {}).get("matrices") or ()
    }


def _in_matrices(verdict: Record) -> list[Record]:
    return [item for item in verdict.get("cut") or () if item.get("kind") != "drop"]


def removes_directions(item: Record) -> bool:
    return item.get("kind") == "remove_directions"


def _gone_of(item: Record, analysis: Record) -> tuple[int, int]:
    """Directions of a matrix that went, and those it had: with heads of its own more than its rank may be."""
    matrices = (analysis.get("directions") or {}).get("matrices") or ()
    own = [one for one in matrices if one["site"] == item["site"]]
    if not own:
        return item["full_rank"] - item["rank"], item["full_rank"]
    return sum(len(one["removed"]) for one in own), sum(one["of"] for one in own)


def model_map(verdict: Record, analysis: Record) -> str:
    """What was dropped on a map of heads and networks, what was cut inside matrices on one of these."""
    gone = dropped(verdict)
    if not gone.sites:
        return _matrix_map(verdict, analysis)
    return drop_map(gone) + (_matrix_map(verdict, analysis) if _in_matrices(verdict) else "")


def _matrix_map(verdict: Record, analysis: Record) -> str:
    """Blocks × matrices, with what was cut filled in and what was tried tinted."""
    sites = sites_of(verdict, analysis)
    blocks = 1 + max((site.block for site in sites), default=-1)
    if any(item.get("blocks") for item in _in_matrices(verdict)):
        blocks = max(blocks, (verdict.get("model") or {}).get("num_blocks") or 0)
    cut = {
        place: item | _mark(item, analysis, blocks)
        for item in _in_matrices(verdict)
        for place in [f"b{block}" for block in item.get("blocks") or ()] or [str(item["site"])]
    }
    names = [name for name in MATRICES if any(site.part == name for site in sites)] or list(MATRICES)
    if not blocks:
        return ""
    columns = f"grid-template-columns:3.6em repeat({blocks},minmax(0,{5.4 if blocks <= 6 else 3.4}em))"
    rows = "".join(_map_row(name, blocks, sites, cut) for name in names)
    shown = range(0, blocks, math.ceil(blocks / 16))
    foot = "<span></span>" + "".join(
        f'<span class="n">{b if b in shown else ""}</span>' for b in range(blocks)
    )
    label = (
        f"Map of the model: {blocks} blocks, {len(names)} matrices each; cut: {', '.join(cut) or 'nothing'}"
    )
    grid = f'<div class="map" role="img" aria-label="{text(label)}" style="{columns}">{rows}{foot}</div>'
    legend = key(("tried", "tried"), ("idle", "not tried"), *_cut_keys(verdict, blocks))
    return f'{grid}<p class="axis-title">block, first to last →</p>{legend}'


def _mark(item: Record, analysis: Record, blocks: int) -> Record:
    """What stands in its cell of the map."""
    if not removes_directions(item):
        return {"mark": item.get("rank", "×")}
    return {"mark": f"{MINUS}{_gone_of(item, analysis)[0]}" if blocks <= NUMBERED else ""}


def _cut_keys(verdict: Record, blocks: int) -> list[tuple[str, str]]:
    with_number = "cut, with the number of directions removed"
    words = {
        "linearize": "gone, a linear map stands for them",
        "remove_directions": with_number if blocks <= NUMBERED else "directions removed",
        "truncate": "cut, with the rank kept",
    }
    kinds = {item.get("kind", "truncate") for item in _in_matrices(verdict)} or {"truncate"}
    return [("cut", words[kind]) for kind in sorted(kinds)]


def _map_row(name: str, blocks: int, sites: set[Site], cut: Record) -> str:
    return f'<span class="m">{name}</span>' + "".join(_map_cell(b, name, sites, cut) for b in range(blocks))


def _map_cell(block: int, name: str, sites: set[Site], cut: Record) -> str:
    part = "attn" if name in ATTENTION_MATRICES else "mlp"
    found = next(
        (cut[key] for key in (f"b{block}.{name}", f"b{block}.{part}", f"b{block}") if key in cut), None
    )
    if found is None:
        kind = "tried" if Site(block, name) in sites else "idle"
        return f'<span class="{kind}" title="b{block}.{name}"></span>'
    return f'<span class="cut" title="{text(found.get("edit", ""))}">{text(found["mark"])}</span>'


def cut_list(verdict: Record, analysis: Record) -> str:
    """The edits in words, block by block where parts were dropped, then what they do to the size."""
    if not verdict.get("cut"):
        return "<p>Nothing was cut: the checkpoint beside this page holds the model unchanged.</p>" + _best(
            verdict
        )
    gone, summary = dropped(verdict), verdict.get("cut_summary")
    inside = _in_matrices(verdict)
    counted = gone.sites or len(inside) > MOST_ITEMS
    items = [f"<li><b>{text(summary)}</b></li>"] if counted and summary else []
    listed = [_cut_item(item, analysis) for item in inside]
    items += listed[:MOST_ITEMS]
    said = f'<ul class="cuts">{"".join(items)}</ul>' if items else ""
    more = (
        f'<details class="more"><summary>{len(listed) - MOST_ITEMS} more</summary>'
        if listed[MOST_ITEMS:]
        else ""
    )
    said += f'{more}<ul class="cuts">{"".join(listed[MOST_ITEMS:])}</ul></details>' if more else ""
    size = _size(verdict.get("parameters") or {}, inside, whole=bool(gone.sites))
    return _set_aside(verdict) + said + drop_list(gone) + size


def _set_aside(verdict: Record) -> str:
    """Where the checkpoint does not hold this cut, that it does not."""
    handed = verdict.get("handed_over") or {}
    if not handed.get("unproven"):
        return ""
    return (
        "<p><b>The checkpoint beside this page holds the unchanged model.</b> This cut was tried; its plan lies in "
        f"<code>{text(handed['unproven'])}</code>.</p>"
    )


def _best(verdict: Record) -> str:
    """The best plan of a search for gain that was not taken."""
    handed = verdict.get("handed_over") or {}
    if not handed.get("unproven"):
        return ""
    where = f"<code>{text(handed['unproven'])}</code>"
    return f"<p>The best that was tried, <b>{text(handed['edits'])}</b>, lies in {where}.</p>"


def _cut_item(item: Record, analysis: Record) -> str:
    shape = " × ".join(f"{size:,}" for size in item.get("shape") or ())
    kept = ""
    if removes_directions(item):
        gone, had = _gone_of(item, analysis)
        kept = f", {gone:,} of {had:,} directions removed"
    elif item.get("full_rank"):
        kept = f", {text(item['rank'])} of {text(item['full_rank'])} components kept"
    return f"<li><b>{text(item.get('edit', item['site']))}</b><br><small>{text(shape)}{kept}</small></li>"


def _size(parameters: Record, inside: Sequence[Record], *, whole: bool) -> str:
    before, after, stored = (parameters.get(name) for name in ("before", "after", "factorized"))
    if not before or after is None:
        return ""
    directions = sum(map(removes_directions, inside))
    said = [_means(parameters)] if directions else []
    if after != before:
        said.insert(0, f"{before:,} parameters before, {after:,} after ({_percent(after / before - 1)}).")
        said += [_as_factors(before, stored)] if inside and stored and stored < min(before, after) else []
    elif whole:
        said.insert(
            0, f"{before:,} parameters before and after: what was cut is zeroed, not gone, and saves none."
        )
    else:
        keeps = "the matrix keeps its shape" if len(inside) == 1 else "the matrices keep their shapes"
        said.insert(0, f"{before:,} parameters before and after: {keeps}, so the file is no smaller.")
        said += [_as_factors(before, stored)] if stored and stored < before else []
        said.append(f"{'The cut' if directions else 'Low rank'} serves accuracy here, not size.")
    return f"<p>{' '.join(said)}</p>"


def _means(parameters: Record) -> str:
    words = "What the removed directions gave on average stays"
    if parameters["after"] > parameters["before"]:
        return f"{words} in biases, which are what is new; they are zero where nothing was removed."
    return f"{words} in the biases."


def _as_factors(before: int, stored: int) -> str:
    return f"Stored as factors it would hold {stored:,} ({_percent(stored / before - 1)})."


def _percent(share: float) -> str:
    return change(share, "share", name_unit=False) + " %"


def funnel(verdict: Record) -> str:
    """How many candidates were set aside, dropped, and judged to the end: one bar and one sentence.

    Nothing for a search that does not narrow down, such as removal step by step.
    """
    search = verdict.get("search") or {}
    proposed = search.get("proposed")
    if not proposed or "raced_out" not in search:
        return ""
    screened, raced = search.get("screened_out") or 0, search.get("raced_out") or 0
    parts = [("screened", "set aside by the screen", screened), ("raced", "dropped early in the race", raced)]
    parts.append(("judged", "judged to the end", max(0, proposed - screened - raced)))
    bar = "".join(f'<i class="{k}" style="flex:{n}" title="{n:,} {words}"></i>' for k, words, n in parts if n)
    legend = key(*((k, f"{n:,} {words}") for k, words, n in parts if n))
    how = (
        "all of them judged on every example"
        if search.get("exhaustive")
        else "narrowed by screening and racing"
    )
    said = f"{proposed:,} candidates proposed by {text(search.get('method', 'the search'))}, {how}."
    return f'<div class="funnel" role="img" aria-label="{said}">{bar}</div>{legend}<p>{said}</p>'
