"""Sections of single methods in the old form, from plain JSON, until each lies with its method as a `PageSection`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.core.site import Site
from secateur.report.cuts import Tried
from secateur.report.depth import SECTIONS as DEPTH
from secateur.report.directions import SECTIONS as DIRECTIONS
from secateur.report.figures import curves, screen, spectrum
from secateur.report.frame import Figures, Record, Section, place, section
from secateur.report.markup import MISSING, change, key, known, number, text
from secateur.report.pruned_units import site_of
from secateur.report.pruning import pruning
from secateur.report.sweep import color_limit, improvements, sweep


def _cuts(verdict: Record) -> list[Record]:
    """Return what was truncated: other kinds of cut have no place in a grid of ranks."""
    items = verdict.get("cut") or ()
    return [item for item in items if known(item.get("rank")) and item.get("kind") != "remove_directions"]


def _chosen(verdict: Record) -> set[tuple[str, int]]:
    return {(item["site"], item["rank"]) for item in _cuts(verdict)}


def _sweep(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    rows, base = analysis.get("sweep") or (), analysis.get("base") or {}
    metrics = [m for m in ("accuracy", "loss") if known(base.get(m)) and any(known(r.get(m)) for r in rows)]
    if not metrics:
        return ""
    if not str(verdict["metric"]).startswith("accuracy"):
        metrics.reverse()
    boxes = place(
        "sweep",
        sweep(rows, base, metrics, _chosen(verdict), analysis.get("screen") or ()),
        figures,
        layout="multiples",
    )
    scales = "".join(
        _scale(m, base, color_limit(improvements(rows, base, m)), m == metrics[0]) for m in metrics
    )
    lead = (
        "Each cell is one matrix cut to one rank, judged on the selection split: blue is better than the "
        "original, orange worse. The frame marks what was chosen, a stroke what left the race early, "
        "a dot what was not run."
    )
    return section(
        "sweep",
        "Every cut that was tried",
        lead,
        f'<div class="bar-row">{_toggle(metrics)}{scales}</div>',
        boxes,
    )


def _toggle(metrics: Sequence[str]) -> str:
    if len(metrics) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" data-metric="{m}" aria-pressed="{str(m == metrics[0]).lower()}">{m}</button>'
        for m in metrics
    )
    return f'<div class="toggle" id="metric" role="group" aria-label="color by">{buttons}</div>'


def _scale(metric: str, base: Record, limit: float, shown: bool) -> str:
    """The legend of the heat maps: a strip from worse over the base to better."""
    unit = "share" if metric == "accuracy" else "nats"
    worse, better = (
        (change(-limit, unit), change(limit, unit))
        if unit == "share"
        else (change(limit, unit), change(-limit, unit))
    )
    middle = f"original {number(base[metric], unit)}"
    ends = f"<span>{text(worse)} or worse</span><span>{text(middle)}</span><span>{text(better)}</span>"
    hidden = "" if shown else " hidden"
    return f'<div class="scale" data-metric="{metric}"{hidden}><i></i><div>{ends}</div></div>'


def _curves(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    chosen = {c["site"]: 100 * (1 - c["rank"] / c["full_rank"]) for c in _cuts(verdict) if c.get("full_rank")}
    found = curves(analysis.get("curves") or (), (analysis.get("base") or {}).get("loss"), chosen)
    boxes = place("curves", found, figures, layout="multiples")
    if not boxes:
        return ""
    legend = key(
        ("depth", "first block to last"),
        ("line accent", "the matrix that was cut"),
        ("line base", "original"),
    )
    lead = "Loss as components are removed, smallest singular values first; below the dotted line is a gain."
    return section("curves", "How much can go", lead, legend, boxes)


def _spectrum(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    found = analysis.get("spectrum") or {}
    drawn = [
        spectrum(site, item["values"], item["kept"], item.get("side", "top")) for site, item in found.items()
    ]
    lead = "Singular values of the matrix that was cut: in blue what stays, in gray what went."
    return section("spectrum", "Inside the matrix", lead, place("spectrum", drawn, figures))


def _tail(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    rows = analysis.get("tail") or ()
    lead = (
        "The model's most frequent answers with the whole matrix, with the components that stay, and with "
        "only those that were removed. Cosine: how near the answer's vector lies to the right one's."
    )
    return section("tail", "What the removed part says", lead, tail(rows) if rows else "")


def _screen(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    base = analysis.get("base") or {}
    found = screen(analysis.get("screen") or (), analysis.get("sweep") or (), base, _chosen(verdict))
    lead = (
        "Candidates in the order that gradients predicted, against the loss then measured: a good screen has "
        "its lowest points at the left. The orange point is the chosen cut; the strokes below were not run "
        "to the end."
    )
    return section("screen", "Was the shortcut right?", lead, place("screen", found, figures))


_TAIL_TITLES = {
    "full": "The whole matrix",
    "top": "Only the {rank} largest components",
    "tail": "Only the {rank} smallest components",
}


_TAIL_NOTES = {"full": ", as trained", "top": ", what stays", "tail": ", what was removed"}


def tail(rows: Sequence[Record]) -> str:
    """What the model answers with the whole matrix, its top, its tail: counts, cosine, accuracy."""
    most = max((count for row in rows for _, count in row["answers"]), default=1)
    return '<div class="cards">' + "".join(_tail_card(row, most) for row in rows) + "</div>"


def _tail_card(row: Record, most: float) -> str:
    title = _TAIL_TITLES.get(row["kind"], "Rank {rank}").format(rank=f"{row['rank']:,}")
    bars = "".join(
        f'<div class="bar"><code>{_token(answer)}</code>'
        f'<span><i style="width:{100 * count / most:.1f}%"></i></span>'
        f"<small>{count:,}</small></div>"
        for answer, count in row["answers"][:8]
    )
    facts = [("cosine to the right answer", f"{row['cosine']:.2f}" if known(row.get("cosine")) else MISSING)]
    facts.append(("accuracy", number(row.get("accuracy"), "share")))
    said = "".join(f"<div><b>{text(value)}</b><small>{name}</small></div>" for name, value in facts)
    where = f"{row['site']}{_TAIL_NOTES.get(row['kind'], '')}"
    head = f"<h3>{text(title)}<small>{text(where)}</small></h3>"
    return f'<div class="card">{head}{bars}<div class="facts">{said}</div></div>'


def _token(value: Any) -> str:
    """An answer without the space that joined it to its prompt; an empty one says that it is."""
    stripped = str(value).strip()
    return text(stripped) if stripped else "<em>nothing</em>"


def old_sections(verdict: Record, plan: Record, analysis: Record) -> tuple[list[str], Figures]:
    """Return the sections that only some methods have, as HTML, and their figures by id."""
    figures: Figures = {}
    return [build(verdict, plan, analysis, figures) for build in SECTIONS], figures


def tried(verdict: Record, analysis: Record) -> Tried:
    """Return what the search looked at: swept, screened, read, drawn as a curve, or measured as a whole block."""
    rows = [row for block in ("sweep", "screen", "curves") for row in analysis.get(block) or ()]
    matrices = (analysis.get("directions") or {}).get("matrices") or ()
    sites = {site for row in [*rows, *matrices] if (site := site_of(str(row.get("site")))) is not None}
    steps = (analysis.get("depth") or {}).get("order") or ()
    blocks = {int(block) for step in steps for block in step["measured"]}
    kinds = (verdict.get("model") or {}).get("matrices") or ()
    sites |= {Site(block, kind) for block in blocks for kind in kinds}
    removed: dict[str, tuple[int, int]] = {}
    for row in matrices:
        gone, had = removed.get(row["site"], (0, 0))
        removed[row["site"]] = gone + len(row["removed"]), had + row["of"]
    return Tried(frozenset(sites), removed)


SECTIONS: tuple[Section, ...] = (
    pruning,
    *DIRECTIONS,
    *DEPTH,
    _sweep,
    _curves,
    _spectrum,
    _tail,
    _screen,
)
