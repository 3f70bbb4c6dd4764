"""The page of `secateur map`: one grid of all components, layers across, and how far each reading of them is true.

No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from secateur.core.baseline import split_words
from secateur.core.records.map import MapKindRecord, MapRecord
from secateur.core.writing import write_text
from secateur.probing.component_figures import correlations
from secateur.report.chart import (
    AFTER,
    DIVERGING,
    EDGE,
    Figure,
    Trace,
    marks,
    new_axis,
    new_layout,
    root_axis,
    signed_root,
    some,
)
from secateur.report.frame import FigureGroup, PageSection
from secateur.report.markup import MISSING, capital, folded, signed, table, text
from secateur.report.page import assemble
from secateur.report.tables import folded_facts, joined

UNITS = {
    "in_block": "nats",
    "first_order": "nats",
    "second_order": "nats",
    "importance": "nats/token",
    "cosine": "1 − cosine",
    "nonlinearity": "1 − score",
    "prefix_matching": "score",
    "copying": "score",
}
"""The readings with their units. Those of nats are signed: below 0, the model does better without the component."""
WORDS = {
    "in_block": "exact in its block",
    "first_order": "first order",
    "second_order": "first and second order",
    "importance": "published importance",
    "cosine": "change of direction",
    "nonlinearity": "nonlinearity",
    "prefix_matching": "prefix matching",
    "copying": "copying",
    "measured": "taken out in truth",
}
BEHAVIOR = ("prefix_matching", "copying")  # what a head does, not what it is worth
TRUTH = "measured"  # the view of what was taken out in truth
KIND_WORDS = {
    "blocks": "blocks",
    "attentions": "attentions",
    "ffns": "feed-forward networks",
    "groups": "KV groups",
    "heads": "heads",
    "neurons": "eighths of neurons",
    "matrices": "truncated matrices",
}
FEWEST = 4  # removals that have a rank correlation
LINE = 15  # pixels of a line of the grid
SATURATED = 0.02  # of the values lie beyond the ends of the color scale


def write_map_page(record: MapRecord, path: Path) -> Path:
    """Write the page of a map. Raises: `OutputError` for a page that cannot be written."""
    write_text(path, render_map(record), "folder")
    return path


def render_map(record: MapRecord) -> str:
    """Return one self-contained HTML page from the content of `map.json`."""
    head = (
        f'<header class="neutral probe"><p class="who">secateur map</p><h1>{text(record.model)}</h1>'
        f'<p class="sentence">What every component is worth for {text(record.task)}, read on {record.n:,} '
        f"examples ({text(split_words(record.split))}). Nothing was cut.</p></header>"
    )
    notes = "".join(f"<li>{text(note)}</li>" for note in record.notes)
    facts = {
        "model": text(record.model),
        "task": text(record.task),
        "seed": text(record.seed),
        "time": joined(*(f"{name} {value:,.1f} s" for name, value in record.seconds.items())),
        "versions": joined(*(f"{name} {value}" for name, value in (record.versions or {}).items())),
    }
    parts: list[str | PageSection] = [
        head,
        grid_section(record),
        truth_section(record),
        agreement_section(record),
        PageSection("notes", "What could not be read", "", (f"<ul>{notes}</ul>" if notes else "",)),
        f"<footer>{folded_facts(facts)}</footer>",
    ]
    return assemble(f"map: {record.model}", parts)


# ----------------------------------------------------------------------------------------------------------- sentences


def trust_words(kind: MapKindRecord) -> str:
    """Return which reading to trust for one kind of component on this model."""
    check, name = kind.check, KIND_WORDS[kind.kind]
    if check is None:
        return f"{capital(name)}: nothing was taken out, so no reading was checked."
    known = {
        reading: found for reading, found in check.agreement.items() if reading not in BEHAVIOR and found.rho
    }
    if not known:
        return f"{capital(name)}: {check.n} removals say nothing about the readings; more are needed."
    best = kind.trusted or max(known, key=lambda reading: known[reading].rho or 0.0)
    found = known[best]
    ci = f" [{', '.join(map(_rho, found.ci))}]" if found.ci else ""
    with_ = f"rank correlation {_rho(found.rho)}{ci} with {check.n} removals"
    if kind.trusted is None:
        return f"{capital(name)}: trust no reading on this model; the best is “{WORDS[best]}”, {with_}."
    return f"{capital(name)}: trust “{WORDS[best]}” on this model ({with_})."


def _rho(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}".replace("0.", ".", 1).replace("-", "−")


# ------------------------------------------------------------------------------------------------------------- the grid


def place_of(name: str) -> tuple[int, str]:
    """Return the layer of a component, and its part of the block: `3` and `attn.h2` of `b3.attn.h2`."""
    block, _, part = name.partition(".")
    return int(block[1:]), part.replace("=", " rank ") or "block"


def grid_section(record: MapRecord) -> PageSection:
    """Return the map: a column for each layer, a line for each part of a block, a view for each reading."""
    views = {name: {site: value for kind in record.kinds for site, value in kind.readings.get(name, {}).items()}
             for name in record.units}  # fmt: skip
    if any(kind.check for kind in record.kinds):
        views[TRUTH] = {
            site: rise for kind in record.kinds if kind.check for site, rise in kind.check.rise.items()
        }
    limits = {name: _limit(list(values.values())) for name, values in views.items()}
    buttons = "".join(
        f'<button type="button" data-metric="{name}" aria-pressed="{str(not place).lower()}">'
        f"{WORDS[name]}</button>"
        for place, name in enumerate(views)
    )
    scales = "".join(
        _scale(name, limit, record.units.get(name, "nats"), shown=not place)
        for place, (name, limit) in enumerate(limits.items())
    )
    legend = (
        f'<div class="toggle" id="metric" role="group" aria-label="color by">{buttons}</div>'
        f'<div class="bar-row">{scales}</div>'
    )
    lead = (
        "Layers run across, parts of a block down; color follows the root of the value. Blue: the loss rises "
        "without it. Orange: the model does better without it. Readings in other units than nats have no sign."
    )
    return PageSection(
        "map", "What is needed, and what hurts", lead, (legend, FigureGroup((_grid(record, views, limits),)))
    )


def _limit(values: Sequence[float]) -> float:
    """Return the value at which a color scale ends: a few of the largest must not bleach all others."""
    return float(np.quantile(np.abs(values), 1 - SATURATED, method="higher")) or 1e-9


def _scale(name: str, limit: float, unit: str, *, shown: bool) -> str:
    ends = (f"{signed(-limit)} {unit}: hurts", "0", f"{signed(limit)}: needed")
    if unit != "nats":
        ends = ("", "0", f"{limit:.3g} {unit}")
    words = "".join(f"<span>{text(end)}</span>" for end in ends)
    return (
        f'<div class="scale" data-metric="{name}"{"" if shown else " hidden"}><i></i><div>{words}</div></div>'
    )


def _grid(record: MapRecord, views: Mapping[str, Mapping[str, float]], limits: Mapping[str, float]) -> Figure:
    """Return the heat map; one trace for each view, of which the first is shown."""
    names = [site for kind in record.kinds for site in next(iter(kind.readings.values()))]
    layers = sorted({place_of(name)[0] for name in names})
    parts = list(dict.fromkeys(place_of(name)[1] for kind in record.kinds for name in _down(kind)))
    at = {name: (layers.index(place_of(name)[0]), parts.index(place_of(name)[1])) for name in names}
    hover = [[""] * len(layers) for _ in parts]
    for name, (x, y) in at.items():
        lines = [f"{WORDS[view]} {signed(values[name])}" for view, values in views.items() if name in values]
        hover[y][x] = "<br>".join([f"<b>{text(name)}</b>", *lines])
    data: list[Trace] = []
    for number, (view, values) in enumerate(views.items()):
        z: list[list[float | None]] = [[None] * len(layers) for _ in parts]
        for name, value in values.items():
            x, y = at[name]
            z[y][x] = signed_root(value)
        end = signed_root(limits[view])
        data.append(
            {
                "type": "heatmap", "z": z, "x": layers, "text": hover, "hovertemplate": "%{text}<extra></extra>",
                "hoverongaps": False, "zmin": -end, "zmax": end, "colorscale": DIVERGING, "showscale": False,
                "xgap": 1, "ygap": 1, "meta": view, "visible": not number,
            }
        )  # fmt: skip
    head = ("component", *(WORDS[view] for view in views))
    rows = [[text(n), *(signed(v[n]) if n in v else MISSING for v in views.values())] for n in names]
    return Figure("", data, _grid_layout(layers, parts), head, rows, source="map.json")


def _grid_layout(layers: Sequence[int], parts: Sequence[str]) -> Trace:
    """Return the axes of the grid, the first part at the top, and a rule between parts of different kinds."""
    bounds = [i - 0.5 for i in range(1, len(parts)) if _family(parts[i]) != _family(parts[i - 1])]
    ends = {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "line": {"color": EDGE, "width": 1}}
    plain = {"showgrid": False, "showline": False, "tickangle": 0, "ticks": ""}
    return new_layout(
        54 + LINE * len(parts),
        {"l": 20, "r": 6},
        xaxis=new_axis("layer", tickvals=[layers[i] for i in some(len(layers), 12)], **plain),
        yaxis=new_axis(
            "", tickvals=list(range(len(parts))), ticktext=[text(part) for part in parts],
            range=[len(parts) - 0.5, -0.5], automargin=True, **plain,
        ),
        shapes=[{**ends, "y0": y, "y1": y} for y in bounds],
    )  # fmt: skip


def _down(kind: MapKindRecord) -> list[str]:
    """Return the components of one kind in the order in which they lie below each other."""
    names = list(next(iter(kind.readings.values())))
    return (
        sorted(names, key=lambda name: (len(place_of(name)[1].partition("/")[0]), place_of(name)[1]))
        if kind.kind != "matrices"
        else names
    )


def _family(part: str) -> str:
    """Return what lines of the grid have in common: `attn.h` of `attn.h2`, `down` of `down rank 5`."""
    return part.partition(" ")[0].partition("/")[0].rstrip("0123456789")


# ------------------------------------------------------------------------------------------------ how true they are


def truth_section(record: MapRecord) -> PageSection:
    """Return which reading to trust for each kind, with every rank correlation, and what was read beside the truth."""
    checked = [kind for kind in record.kinds if kind.check]
    words = "".join(f"<li>{text(trust_words(kind))}</li>" for kind in checked)
    rows = [
        [
            text(KIND_WORDS[kind.kind]),
            text(WORDS[name]),
            _rho(found.rho),
            " to ".join(map(_rho, found.ci or ())),
            str(check.n),
        ]
        for kind in checked
        if (check := kind.check)
        for name, found in check.agreement.items()
    ]
    cells = table(("", "reading", "rank correlation", "interval", "removals"), rows, source="map.json")
    all_of_them = f'<div class="bar-row">{folded(cells, "all rank correlations")}</div>' if rows else ""
    lead = (
        "Components from the top, the middle and the bottom of every reading’s order were taken out, one at a "
        "time, and the loss was measured again. A point is one of them; it is right where it lies on a rising curve."
    )
    figures = tuple(_scatter(kind) for kind in checked if kind.check and kind.check.n >= FEWEST)
    return PageSection(
        "truth",
        "Which reading to trust",
        lead,
        (f"<ul>{words}</ul>" if words else "", all_of_them, FigureGroup(figures, "multiples words")),
    )


def _scatter(kind: MapKindRecord) -> Figure:
    """Return the true rise of the loss against the best reading of one kind."""
    check = kind.check
    assert check is not None
    found = {name: agreed.rho or -1.0 for name, agreed in check.agreement.items() if name not in BEHAVIOR}
    best = kind.trusted or max(found, key=lambda name: found[name])
    read, rise = kind.readings[best], check.rise
    trace = marks(
        [(signed_root(read[name]), signed_root(value)) for name, value in rise.items()],
        size=8,
        color=AFTER,
        opacity=0.8,
    )
    del trace["hoverinfo"]
    trace |= {
        "text": [
            f"<b>{text(name)}</b><br>{WORDS[best]} {signed(read[name])}<br>true {signed(value)}"
            for name, value in rise.items()
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }
    layout = new_layout(
        250,
        {"l": 56},
        xaxis=root_axis([read[name] for name in rise], WORDS[best], nticks=5),
        yaxis=root_axis(rise.values(), "true rise"),
    )
    rows = [[text(name), signed(read[name]), signed(value)] for name, value in rise.items()]
    return Figure(
        capital(KIND_WORDS[kind.kind]), [trace], layout, ("component", WORDS[best], "true rise"), rows
    )


def agreement_section(record: MapRecord) -> PageSection:
    """Return the rank correlations between readings, for each kind."""
    figures = [
        correlations(
            capital(KIND_WORDS[kind.kind]),
            kind.overlap.model_copy(update={"names": [WORDS[name] for name in kind.overlap.names]}),
            of=KIND_WORDS[kind.kind],
        )
        for kind in record.kinds
        if kind.overlap
    ]
    lead = "Rank correlations between readings, over all components of a kind: 1 where two give one order."
    return PageSection(
        "agreement", "Do the readings agree?", lead, (FigureGroup(tuple(figures), "multiples words"),)
    )
