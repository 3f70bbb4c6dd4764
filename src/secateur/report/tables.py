"""What is shown as HTML rather than drawn: guards, the model's map, the funnel of the search, tail answers, changed
examples, side effects, provenance. Every string from data is escaped here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from secateur.core.site import ATTENTION_MATRICES, MATRICES, Site
from secateur.errors import UnknownName
from secateur.report.markup import (
    MISSING,
    change,
    interval,
    known,
    metric_name,
    number,
    p_value,
    table,
    text,
)

MAX_CHANGED = 200
KINDS = ("recovered", "lost", "changed")

Record = Mapping[str, Any]


def guards(verdict: Record) -> str:
    """Each guard as a sentence with its mark; a fired guard is marked by sign, word and color."""
    return '<ul class="guards">' + "".join(_guard(item) for item in verdict.get("guards") or ()) + "</ul>"


def _guard(item: Record) -> str:
    kind, sign, word = ("fired", "!", "fired") if item["fired"] else ("clear", "✓", "clear")
    name = str(item["name"])
    return (
        f'<li class="{kind}"><span class="sign" aria-hidden="true">{sign}</span>'
        f"<div><b>{text(name[:1].upper() + name[1:])}</b> <em>{word}</em><br>{text(item.get('detail', ''))}</div></li>"
    )


def not_applicable(verdict: Record) -> str:
    """The alternatives that this task has no place for, with the reason."""
    items = [item for item in verdict.get("alternatives") or () if not item.get("applicable")]
    said = "; ".join(f"{text(item['name'])} ({text(item.get('detail', ''))})" for item in items)
    return f'<p class="note">Not applicable here: {said}.</p>' if said else ""


# The model's map ------------------------------------------------------------------------------------------------------


def sites_of(verdict: Record, analysis: Record) -> set[Site]:
    """All sites the run speaks of: what was swept, screened, drawn as a curve, or cut."""
    rows = [row for key in ("sweep", "screen", "curves") for row in analysis.get(key) or ()]
    return {
        site for row in [*rows, *(verdict.get("cut") or ())] if (site := _site(row.get("site"))) is not None
    }


def _site(address: Any) -> Site | None:
    try:
        return Site.parse(str(address))
    except UnknownName:
        return None


def model_map(verdict: Record, analysis: Record) -> str:
    """Blocks × matrices, with what was cut filled in and what was tried tinted."""
    sites = sites_of(verdict, analysis)
    cut = {str(item["site"]): item for item in verdict.get("cut") or ()}
    blocks = 1 + max((site.block for site in sites), default=-1)
    names = [name for name in MATRICES if any(site.part == name for site in sites)] or list(MATRICES)
    if not blocks:
        return ""
    columns = f"grid-template-columns:3.6em repeat({blocks},minmax(0,3.4em))"
    rows = "".join(_map_row(name, blocks, sites, cut) for name in names)
    shown = range(0, blocks, math.ceil(blocks / 16))
    foot = "<span></span>" + "".join(
        f'<span class="n">{b if b in shown else ""}</span>' for b in range(blocks)
    )
    label = (
        f"Map of the model: {blocks} blocks, {len(names)} matrices each; cut: {', '.join(cut) or 'nothing'}"
    )
    grid = f'<div class="map" role="img" aria-label="{text(label)}" style="{columns}">{rows}{foot}</div>'
    key = '<p class="key"><i class="tried"></i>tried <i class="idle"></i>not tried <i class="cut"></i>cut, with the rank kept</p>'
    return f'{grid}<p class="axis-title">block, first to last →</p>{key}'


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
    return f'<span class="cut" title="{text(found.get("edit", ""))}">{text(found.get("rank", "×"))}</span>'


def cut_list(verdict: Record) -> str:
    """The edits in words, then what they do to the size."""
    items = [_cut_item(item) for item in verdict.get("cut") or ()]
    if not items:
        return "<p>Nothing was cut: the checkpoint beside this page holds the model unchanged.</p>"
    return f'<ul class="cuts">{"".join(items)}</ul>' + _size(verdict.get("parameters") or {})


def _cut_item(item: Record) -> str:
    shape = " × ".join(f"{size:,}" for size in item.get("shape") or ())
    kept = (
        f", {text(item['rank'])} of {text(item['full_rank'])} components kept"
        if item.get("full_rank")
        else ""
    )
    return f"<li><b>{text(item.get('edit', item['site']))}</b><br><small>{text(shape)}{kept}</small></li>"


def _size(parameters: Record) -> str:
    before, after, stored = (parameters.get(key) for key in ("before", "after", "factorized"))
    if not before or after is None:
        return ""
    if after != before:
        return f"<p>{before:,} parameters before, {after:,} after ({_percent(after / before - 1)}).</p>"
    words = f"{before:,} parameters before and after: the matrix keeps its shape, so the file is no smaller."
    if stored and stored < before:
        words += f" Stored as factors it would hold {stored:,} ({_percent(stored / before - 1)})."
    return f"<p>{words} Low-rank edits are for accuracy first.</p>"


def _percent(share: float) -> str:
    return change(share, "share", name_unit=False) + " %"


# The search -----------------------------------------------------------------------------------------------------------


def funnel(verdict: Record) -> str:
    """How many candidates were proposed, set aside, dropped and judged to the end: one bar and one sentence."""
    search = verdict.get("search") or {}
    proposed = search.get("proposed")
    if not proposed:
        return ""
    screened, raced = search.get("screened_out") or 0, search.get("raced_out") or 0
    parts = [("screened", "set aside by the screen", screened), ("raced", "dropped early in the race", raced)]
    parts.append(("judged", "judged to the end", max(0, proposed - screened - raced)))
    bar = "".join(f'<i class="{k}" style="flex:{n}" title="{n:,} {words}"></i>' for k, words, n in parts if n)
    key = "".join(f'<span><i class="{k}"></i>{n:,} {words}</span>' for k, words, n in parts if n)
    how = "every candidate on every example" if search.get("exhaustive") else "screening and racing"
    said = f"{proposed:,} candidates proposed by {text(search.get('method', 'the search'))}; judged by {how}."
    return f'<div class="funnel" role="img" aria-label="{text(said)}">{bar}</div><p class="key">{key}</p><p>{said}</p>'


# Answers --------------------------------------------------------------------------------------------------------------

_TAIL_TITLES = {
    "full": "The whole matrix",
    "top": "Only the {rank} largest components",
    "tail": "Only the {rank} smallest components: what was removed",
}


def tail(rows: Sequence[Record]) -> str:
    """What the model answers with the whole matrix, its top and its tail: bars of counts, cosine, accuracy."""
    most = max((count for row in rows for _, count in row["answers"]), default=1)
    return '<div class="cards">' + "".join(_tail_card(row, most) for row in rows) + "</div>"


def _tail_card(row: Record, most: float) -> str:
    title = _TAIL_TITLES.get(row["kind"], "Rank {rank}").format(rank=f"{row['rank']:,}")
    bars = "".join(
        f'<div class="bar"><code>{token(answer)}</code><span><i style="width:{100 * count / most:.1f}%"></i></span>'
        f"<small>{count:,}</small></div>"
        for answer, count in row["answers"][:8]
    )
    facts = [("cosine to the right answer", f"{row['cosine']:.2f}" if known(row.get("cosine")) else MISSING)]
    facts.append(("accuracy", number(row.get("accuracy"), "share")))
    said = "".join(f"<div><b>{text(value)}</b><small>{name}</small></div>" for name, value in facts)
    return f'<div class="card"><h3>{text(title)}<small>{text(row["site"])}</small></h3>{bars}<div class="facts">{said}</div></div>'


def token(value: Any) -> str:
    """A model's answer with its edges visible: outer spaces matter little to a reader, an empty answer does."""
    stripped = str(value).strip()
    return text(stripped) if stripped else "<em>nothing</em>"


def changed(rows: Sequence[Record]) -> str:
    """Examples whose answer changed, filtered by kind in the page; at most `MAX_CHANGED` of them."""
    shown = _fair(rows, MAX_CHANGED)
    kinds = list(dict.fromkeys([*KINDS, *(str(row["kind"]) for row in rows)]))
    counts = {kind: sum(str(row["kind"]) == kind for row in rows) for kind in kinds}
    buttons = '<button type="button" data-kind="" aria-pressed="true">all</button>' + "".join(
        f'<button type="button" data-kind="{text(kind)}" aria-pressed="false">{text(kind)} {count:,}</button>'
        for kind, count in counts.items()
        if count
    )
    body = "".join(_changed_row(row) for row in shown)
    more = len(rows) - len(shown)
    tail = f'<p class="note">{more:,} more are in analysis.json.</p>' if more else ""
    heads = "".join(
        f'<th scope="col">{name}</th>' for name in ("", "prompt", "right answer", "before", "after")
    )
    return (
        f'<div class="toggle" id="filter" role="group" aria-label="which changes">{buttons}</div>'
        f'<div class="scroll tall"><table class="changed"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>{tail}'
    )


def _fair(rows: Sequence[Record], most: int) -> list[Record]:
    """At most `most` rows in their own order, no kind crowded out by a frequent one."""
    if len(rows) <= most:
        return list(rows)
    turn: dict[str, int] = {}
    places = []
    for index, row in enumerate(rows):
        turn[str(row["kind"])] = turn.get(str(row["kind"]), -1) + 1
        places.append((turn[str(row["kind"])], index))
    return [rows[index] for index in sorted(index for _, index in sorted(places)[:most])]


def _changed_row(row: Record) -> str:
    kind = str(row["kind"])
    known_kind = kind if kind in KINDS else "changed"
    cells = "".join(f"<td>{token(row[key])}</td>" for key in ("answer", "before", "after"))
    chip = f'<td><span class="chip {known_kind}">{text(kind)}</span></td>'
    return f'<tr data-kind="{text(kind)}" title="{text(row["id"])}">{chip}<td class="prompt">{text(row["prompt"])}</td>{cells}</tr>'


# Tables of numbers ----------------------------------------------------------------------------------------------------


def measures(items: Iterable[Record], name: str) -> str:
    """Before, after, difference and p-value of each item as a table; `name` is the key that labels a row."""
    rows = [_measure(item, name) for item in items]
    head = ("", "before", "interval", "after", "interval", "difference", "interval", "")
    return table(head, rows) if rows else ""


def _measure(item: Record, name: str) -> list[str]:
    unit, gap = item.get("unit", "share"), item.get("difference") or {}
    label = metric_name(item[name]) if name == "metric" else item[name]
    sides = [
        text(cell)
        for side in (item.get("before") or {}, item.get("after") or {})
        for cell in (number(side.get("value"), unit), interval(side.get("ci"), unit))
    ]
    ends = [text(change(gap.get("value"), unit)), text(interval(gap.get("ci"), unit, signed=True))]
    return [text(label), *sides, *ends, p_value(item.get("p_value"))]


def provenance(verdict: Record, plan: Record) -> str:
    """Where the numbers come from, down to the hashes, as one folded block."""
    model, task = verdict.get("model") or {}, verdict.get("task") or {}
    facts = {
        "command": f"<code>{text(verdict.get('command', MISSING))}</code>",
        "model": _words(model.get("name"), model.get("architecture"), model.get("family")),
        "model fingerprint": f"<code>{text(model.get('fingerprint', MISSING))}</code>",
        "task": _words(task.get("name"), task.get("kind")),
        "task hash": f"<code>{text(task.get('hash', MISSING))}</code>",
        "examples": _words(*(f"{name} {n}" for name, n in (task.get("splits") or {}).items())),
        "seed": f"{text(verdict.get('seed', MISSING))}, splits {text(verdict.get('split_seed', MISSING))}",
        "evaluations": f"{verdict.get('evaluations') or 0:,} (candidate, example) pairs",
        "time": _words(*(f"{name} {value:,.1f} s" for name, value in (verdict.get("seconds") or {}).items())),
        "versions": _words(*(f"{name} {value}" for name, value in (verdict.get("versions") or {}).items())),
        "plan": f"<code>{text(json.dumps(plan.get('edits', []), ensure_ascii=False))}</code>",
    }
    body = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    return f'<details class="provenance"><summary>Where these numbers come from</summary><dl>{body}</dl></details>'


def _words(*parts: Any) -> str:
    return text(", ".join(str(part) for part in parts if part) or MISSING)
