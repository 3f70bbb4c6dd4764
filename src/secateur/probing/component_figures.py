"""Figures of what parts are worth: maps of heads, rank correlations, bars of blocks, scatter of behavior, neurons.

Importance is heavy-tailed: a few heads are worth tens of times the median. So color and axes follow the square root of
the value, color on a scale of even lightness; hover and table carry the value itself. Knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from secateur.core.records.probe import ImportanceRecord, OverlapRecord
from secateur.core.site import Site
from secateur.report.chart import (
    ACCENT,
    AFTER,
    DIVERGING,
    EDGE,
    INK,
    ON,
    SEQUENTIAL,
    Figure,
    Trace,
    cell_height,
    depth_color,
    marks,
    new_axis,
    new_layout,
    some,
)
from secateur.report.markup import MINUS, known, text, ticks
from secateur.report.pruned_units import Dropped, site_of

LARGE, SMALL = 560, 330  # pixels that the lines of a map take at most: alone, or as one of several
MOST_NAMES = 12  # readings whose correlations are also written in the cells
NAMED = 4  # heads that the scatter names: a small model has two to four clear induction heads
LABEL = 0.09  # of the axis: the height of a line of text in a figure of this size
CLEAR = 0.1  # prefix matching below this, or below half of the clearest, names no induction head: the median is .001
POINTS = 60  # of a curve over neurons: as many as its width can show
SHOWN = (1, 10, 50)  # percent of the neurons, in the table

Values = Mapping[Site, float]


def values_of(numbers: Mapping[str, float] | None) -> dict[Site, float]:
    """Return the values that were measured, by site; text that is no address is left out."""
    found = ((site_of(address), value) for address, value in (numbers or {}).items())
    return {site: value for site, value in found if site is not None and known(value)}


def ranks(values: Values) -> dict[Site, int]:
    """Return the rank of every site: 1 for the largest value, ties in the model's order."""
    ordered = sorted(values, key=lambda site: (-values[site], site))
    return {site: rank for rank, site in enumerate(ordered, start=1)}


def amount(value: float, unit: str) -> str:
    """Return a value to three significant figures, since readings span orders of magnitude."""
    if unit == "share":
        return f"{100 * value:.3g} points".replace("-", MINUS)
    return f"{value:.3g}".replace("-", MINUS)


def unit_map(
    title: str,
    values: Values,
    gone: Dropped,
    *,
    unit: str,
    word: str,
    note: str = "",
    most: int = SMALL,
    part: str = "head",
) -> Figure:
    """Return a map with a cell for each head or expert, colored by the root of its value, and × on what was cut.

    Args:
        values: By head or expert; color runs from 0 to the largest, or to 1 where `unit` is `score`.
        gone: What was cut.
        word: What a value is, for hover and table.
        most: Pixels that the lines take at most.
        part: The noun for one of them.
    """
    order = ranks(values)
    lines = lines_of(values)
    blocks, heads = 1 + max(lines.values()), 1 + max(site.index for site in values)
    first = min(lines.values())
    z: list[list[float | None]] = [[None] * heads for _ in range(blocks)]
    hover = [[""] * heads for _ in range(blocks)]
    unit_words = "" if unit in ("share", "score") else f" {text(unit)}"
    for site, value in values.items():
        z[lines[site]][site.index] = _root(value)
        hover[lines[site]][site.index] = (
            f"<b>{site}</b>{', cut' if site in gone else ''}<br>{word} {amount(value, unit)}{unit_words}"
            f"<br>rank {order[site]} of {len(order)}"
        )
    top = 1.0 if unit == "score" else _root(max(values.values())) or 1.0
    height = cell_height(blocks - first, most)
    size = max(3.0, min(9.0, 0.4 * height, 110 / heads))
    cut = [(site.index, lines[site]) for site in values if site in gone]
    crosses = marks(cut, symbol="x-thin-open", size=size, color=ACCENT, line={"width": 1.6})
    rows = [[str(site), str(rank), amount(values[site], unit)] for site, rank in order.items()]
    if gone.sites:
        rows = [[*row, "cut" if site in gone else "stays"] for site, row in zip(order, rows, strict=True)]
    head = (part, "rank", word, *(("",) if gone.sites else ()))
    layout = map_layout(blocks, heads, height, part, first)
    return Figure(title, [_heat(z, hover, SEQUENTIAL, 0.0, top), crosses], layout, head, rows, note)


def lines_of(sites: Iterable[Site]) -> dict[Site, int]:
    """Return the line of each part: its block, in an encoder-decoder that of its attention or network among all."""
    sites = list(sites)
    if not any(site.stack for site in sites):
        return {site: site.block for site in sites}
    wholes = sorted({site.beside(site.part) for site in sites})
    place = {whole: number for number, whole in enumerate(wholes)}
    return {site: place[site.beside(site.part)] for site in sites}


def map_layout(blocks: int, heads: int, height: float, part: str = "head", first: int = 0) -> Trace:
    """Return axes for a map of heads or other parts, `height` pixels a block, block number `first` of `blocks` at the
    bottom."""
    plain = {"showgrid": False, "showline": False, "tickangle": 0, "ticks": ""}
    shown = blocks - first
    ticks = [first + place for place in some(shown, 16)]
    return new_layout(
        int(54 + height * shown),
        xaxis=new_axis(part, range=[-0.6, heads - 0.4], tickvals=some(heads, 12), **plain),
        yaxis=new_axis("layer", range=[first - 0.6, blocks - 0.4], tickvals=ticks, **plain),
    )


def _root(value: float) -> float:
    return math.sqrt(max(0.0, value))


def _heat(
    z: list[list[float | None]], hover: list[list[str]], scale: list[list[object]], low: float, high: float
) -> Trace:
    gap = 2 if max(len(z), len(z[0])) <= 16 else 1
    return {
        "type": "heatmap",
        "z": z,
        "text": hover,
        "hovertemplate": "%{text}<extra></extra>",
        "hoverongaps": False,
        "zmin": low,
        "zmax": high,
        "colorscale": scale,
        "showscale": False,
        "xgap": gap,
        "ygap": gap,
    }


def correlations(title: str, overlap: OverlapRecord, of: str = "heads") -> Figure:
    """Return Spearman's correlation of every pair of readings: blue alike, orange opposite, numbered as in the axis."""
    names, rho, order = overlap.names, overlap.rho, range(len(overlap.names))
    z = [[None if i == j else rho[i][j] for j in order] for i in order]
    hover = [[f"{text(names[i])}<br>{text(names[j])}<br>{_signed(rho[i][j])}" for j in order] for i in order]
    layout = names_layout(names)
    if len(names) <= MOST_NAMES:
        layout["annotations"] = [
            correlation_label(i, j, value)
            for i in order
            for j in order
            if i != j and (value := rho[i][j]) is not None and known(value)
        ]
    rows = [[text(names[i]), *(_signed(rho[i][j]) for j in order)] for i in order]
    head = ("", *(str(1 + i) for i in order))
    cells = _heat(z, hover, DIVERGING, -1.0, 1.0)
    return Figure(title, [cells], layout, head, rows, f"Spearman, over {overlap.n:,} {of}")


def _signed(value: float | None) -> str:
    return f"{value:+.2f}".replace("-", MINUS) if known(value) else "—"


def correlation_label(row: int, column: int, value: float) -> Trace:
    """Return the annotation that writes a correlation in its cell."""
    font = {"size": 11, "color": ON if abs(value) > 0.65 else INK}  # white on dark cells
    words = (MINUS if value < 0 else "") + f"{abs(value):.2f}".removeprefix("0")
    return {"x": column, "y": row, "text": words, "showarrow": False, "font": font}


def names_layout(names: Sequence[str], most: int = 24) -> Trace:
    """Return axes with the numbered names at the left, cut to `most` characters, and the numbers alone below."""
    count, plain = len(names), {"showgrid": False, "showline": False, "ticks": "", "tickangle": 0}
    shown = some(count, 16)
    short = [name if len(name) <= most else name[: most - 1] + "…" for name in names]
    words = [f"{text(short[i])}  {1 + i}" for i in shown]
    below = {"tickvals": shown, "ticktext": [str(1 + i) for i in shown], "range": [-0.6, count - 0.4]}
    return new_layout(
        int(34 + min(34.0, max(9.0, 420 / count)) * count),
        {"l": 20, "b": 24},
        xaxis=new_axis("", **below, **plain),
        yaxis=new_axis(
            "", tickvals=shown, ticktext=words, range=[count - 0.4, -0.6], automargin=True, **plain
        ),
    )


# -------------------------------------------------------------------------------------------------- networks and blocks


def part_bars(title: str, record: ImportanceRecord, gone: Dropped) -> Figure:
    """Return a bar for each block, the mean over readings of what the metric loses without it, and a dot for each."""
    mean, unit = values_of(record.mean), record.unit
    sites, order = sorted(mean), ranks(mean)
    factor = 100 if unit == "share" else 1
    unit_words = "" if unit == "share" else " " + text(unit)
    readings = [(reading.name, values_of(reading.values)) for reading in record.readings]
    readings = readings if len(readings) > 1 else []
    bars: Trace = {
        "type": "bar",
        "x": list(lines_of(sites).values()),
        "y": [factor * mean[site] for site in sites],
        "marker": {"color": [ACCENT if site in gone else AFTER for site in sites], "line": {"width": 0}},
        "text": [
            f"<b>{site}</b>{', cut' if site in gone else ''}<br>{amount(mean[site], unit)}{unit_words}"
            f"<br>rank {order[site]} of {len(order)}"
            for site in sites
        ],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }
    dots = [reading_dots(name, values, unit, factor) for name, values in readings]
    head = ("part", "mean", *(name for name, _ in readings), "")
    rows = [
        [
            str(site),
            amount(mean[site], unit),
            *(amount(values[site], unit) if site in values else "—" for _, values in readings),
            "cut" if site in gone else "stays",
        ]
        for site in sites
    ]
    note = "lost without it, points" if unit == "share" else f"loss added without it, {unit}"
    return Figure(title, [bars, *dots], bars_layout(1 + max(lines_of(sites).values())), head, rows, note)


def bars_layout(blocks: int) -> Trace:
    """Return axes for a bar for each block."""
    steps = {"tickvals": some(blocks, 12), "range": [-0.6, blocks - 0.4], "tickangle": 0}
    return new_layout(
        240,
        bargap=0.3,
        xaxis=new_axis("layer", showgrid=False, **steps),
        yaxis=new_axis("", nticks=6) | {"zeroline": True, "zerolinecolor": EDGE},
    )


def reading_dots(name: str, values: Values, unit: str, factor: int) -> Trace:
    """Return the dots of one reading: a dot for each block. Values are shown times `factor`."""
    lines = lines_of(values)
    points = [(lines[site], factor * value) for site, value in values.items()]
    hover = [f"{text(name)}<br>{site}: {amount(value, unit)}" for site, value in values.items()]
    ring = {"width": 1, "color": ON}
    trace = marks(points, symbol="circle", size=6, color=INK, opacity=0.6, line=ring)
    del trace["hoverinfo"]
    return trace | {"text": hover, "hovertemplate": "%{text}<extra></extra>"}


# ---------------------------------------------------------------------------------------------- importance and behavior


def overlap_scatter(importance: Values, prefix: Values, unit: str, gone: Dropped) -> Figure:
    """Return importance against prefix matching, on square-root axes; the clearest induction heads are named.

    Args:
        importance: By head, in `unit`.
        prefix: Prefix matching by head, 0 to 1.
    """
    sites = [site for site in sorted(importance) if site in prefix]
    x, y = {s: _root(prefix[s]) for s in sites}, {s: _root(importance[s]) for s in sites}
    clear = max(CLEAR, max((prefix[s] for s in sites), default=0.0) / 2)
    named = [s for s in sorted(sites, key=lambda s: -prefix[s])[:NAMED] if prefix[s] >= clear]
    top = max(y.values(), default=0.0) or 1.0
    hover = {
        s: f"<b>{s}</b>{', cut' if s in gone else ''}<br>prefix matching {prefix[s]:.3g}<br>"
        f"importance {amount(importance[s], unit)}"
        for s in sites
    }
    looks: list[tuple[bool, Trace]] = [
        (True, {"symbol": "x-thin-open", "size": 6, "color": ACCENT, "line": {"width": 1.6}}),
        (False, {"size": 8, "color": AFTER, "opacity": 0.85}),
    ]
    data = []
    for cut, look in looks:
        group = [s for s in sites if (s in gone) == cut]
        if group:
            trace = marks([(x[s], y[s]) for s in group], **look)
            del trace["hoverinfo"]
            words = {"text": [hover[s] for s in group], "hovertemplate": "%{text}<extra></extra>"}
            data.append(trace | words)
    layout = scatter_layout(top) | {"annotations": head_labels(named, x, y, top)}
    order = ranks({s: prefix[s] for s in sites})
    rows = [[str(s), amount(prefix[s], "score"), amount(importance[s], unit)] for s in order]
    head = ("head", "prefix", "importance")
    return Figure("Importance against prefix matching", data, layout, head, rows, "square-root axes")


def scatter_layout(top: float) -> Trace:
    """Return square-root axes; `top` is the root of the largest importance."""
    # Round values up to the largest that lie about evenly on a square-root axis.
    even = [0.0, *(tick for tick in ticks(0.0, top**2, count=6) if 0 < tick <= 1.1 * top**2)]
    return new_layout(
        258,
        {"l": 56},
        xaxis=new_axis("prefix matching", range=[-0.04, 1.04], **_root_ticks([0, 0.01, 0.1, 0.25, 0.5, 1])),
        yaxis=new_axis("importance", range=[-0.06 * top, 1.12 * top], **_root_ticks(even)),
    )


def _root_ticks(values: Sequence[float]) -> Trace:
    return {"tickvals": [_root(v) for v in values], "ticktext": [f"{v:.3g}" for v in values]}


def head_labels(sites: Sequence[Site], x: Values, y: Values, top: float) -> list[Trace]:
    """Return labels left of their points, each with a line to it, stacked so that none covers another."""
    left, above = min((x[site] for site in sites), default=0.0) - 0.06, math.inf
    labels = []
    for site in sorted(sites, key=lambda s: -y[s]):
        above = min(y[site], above - LABEL * top)
        ends = {"x": x[site], "y": y[site], "ax": left, "ay": above, "axref": "x", "ayref": "y"}
        line = {"showarrow": True, "arrowhead": 0, "arrowwidth": 1, "arrowcolor": EDGE, "standoff": 5}
        words = {"text": str(site), "xanchor": "right", "font": {"size": 11, "color": INK}}
        labels.append(ends | line | words | {"bgcolor": "rgba(253,252,250,0.8)"})
    return labels


# -------------------------------------------------------------------------------------------------------------- neurons


def concentration(values: Values, unit: str) -> Figure:
    """Return for each block the share of its importance that the most important x % of its neurons hold.

    Curves, because a map of thousands of cells would show nothing.
    """
    by_block: dict[int, list[float]] = {}
    names: dict[int, str] = {}
    lines = lines_of(values)
    for site, value in values.items():
        by_block.setdefault(lines[site], []).append(value)
        names[lines[site]] = str(site.whole_block)
    blocks = 1 + max(by_block)
    curves = {block: cumulated(found) for block, found in sorted(by_block.items())}
    percent = {"range": [-2, 102], "tickvals": [0, 25, 50, 75, 100]}
    layout = new_layout(
        300,
        {"l": 54},
        xaxis=new_axis("% of the block’s neurons, most important first", **percent),
        yaxis=new_axis("% of its importance", **percent),
    )
    rows = []
    for block, curve in curves.items():
        places = np.arange(len(curve)) * 100 / (len(curve) - 1)
        held = [f"{np.interp(share, places, curve):.1f} %" for share in SHOWN]
        size, largest = f"{len(by_block[block]):,}", text(amount(max(by_block[block]), unit))
        rows.append([names[block], size, largest, *held])
    head = ("block", "neurons", "largest", *(f"in the top {share} %" for share in SHOWN))
    data = [neuron_curve(names[block], curve, depth_color(block, blocks)) for block, curve in curves.items()]
    return Figure("Neurons", data, layout, head, rows, f"importance in {unit}")


def cumulated(values: Sequence[float]) -> np.ndarray:
    """Return in entry k the percentage of the sum that the k largest values hold; zeros where all are zero."""
    ordered = np.sort(np.asarray(values))[::-1]
    return np.concatenate([[0.0], 100 * np.cumsum(ordered) / (ordered.sum() or 1.0)])


def neuron_curve(block: str, curve: np.ndarray, color: str) -> Trace:
    """Return the curve of one block, thinned to as many points as its width can show."""
    count = len(curve) - 1
    at = np.unique(np.linspace(0, count, min(POINTS, count) + 1).round().astype(int))
    share, held = 100 * at / count, curve[at]
    hover = [f"<b>{block}.mlp</b><br>top {x:.3g} %: {y:.1f} %" for x, y in zip(share, held, strict=True)]
    line = {"type": "scatter", "mode": "lines", "x": share.tolist(), "y": held.tolist(), "text": hover}
    return line | {"line": {"color": color, "width": 2}, "hovertemplate": "%{text}<extra></extra>"}
