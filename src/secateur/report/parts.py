"""What blocks and their parts are worth as bars, and head importance against a score as points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.core.site import Site
from secateur.report.chart import ACCENT, AFTER, INK, Figure, marks, new_axis, new_layout, some
from secateur.report.grids import Values, amount, ranks, values_of
from secateur.report.markup import text, ticks
from secateur.report.pruned_units import Dropped

NAMED = 4  # heads that the scatter names: a small model has two to four clear induction heads
LABEL = 0.09  # of the axis: the height of a line of text in a figure of this size
CLEAR = 0.1  # prefix matching below this, or below half of the clearest, names no induction head: the median is .001

Record = Mapping[str, Any]


def part_bars(title: str, record: Record, gone: Dropped) -> Figure:
    """A bar for each block: the mean over readings of what the metric loses without it, a dot for each reading."""
    mean, unit = values_of(record["mean"]), record["unit"]
    sites, factor = sorted(mean), 100 if unit == "share" else 1
    readings = [(str(r["name"]), values_of(r["values"])) for r in record.get("readings") or ()]
    order = ranks(mean)
    bars = {
        "type": "bar",
        "x": [site.block for site in sites],
        "y": [factor * mean[site] for site in sites],
        "marker": {"color": [ACCENT if site in gone else AFTER for site in sites], "line": {"width": 0}},
        "text": [_bar_hover(site, mean, unit, order, gone) for site in sites],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }
    dots = [_dots(name, values, unit, factor) for name, values in readings] if len(readings) > 1 else []
    blocks = 1 + max(site.block for site in sites)
    steps = {"tickvals": some(blocks, 12), "range": [-0.6, blocks - 0.4], "tickangle": 0}
    words = "lost without it, points" if unit == "share" else f"loss added without it, {unit}"
    layout = new_layout(
        240,
        bargap=0.3,
        xaxis=new_axis("block", showgrid=False, **steps),
        yaxis=new_axis("", nticks=6) | {"zeroline": True, "zerolinecolor": "#b9b5aa"},
    )
    head = ("part", "mean", *(name for name, _ in readings if len(readings) > 1), "")
    rows = [_bar_row(site, mean, [v for _, v in readings], unit, gone) for site in sites]
    return Figure(title, [bars, *dots], layout, head, rows, words)


def _bar_hover(site: Site, mean: Values, unit: str, order: Mapping[Site, int], gone: Dropped) -> str:
    said = f"<b>{site}</b>{', cut' if site in gone else ''}<br>{amount(mean[site], unit)}"
    return f"{said}{'' if unit == 'share' else ' ' + text(unit)}<br>rank {order[site]} of {len(order)}"


def _dots(name: str, values: Values, unit: str, factor: int) -> dict[str, Any]:
    ring = {"width": 1, "color": "#ffffff"}
    points = [(site.block, factor * value) for site, value in values.items()]
    hover = [f"{text(name)}<br>{site}: {amount(value, unit)}" for site, value in values.items()]
    trace = marks(points, symbol="circle", size=6, color=INK, opacity=0.6, line=ring)
    del trace["hoverinfo"]
    return trace | {"text": hover, "hovertemplate": "%{text}<extra></extra>"}


def _bar_row(site: Site, mean: Values, readings: Sequence[Values], unit: str, gone: Dropped) -> list[str]:
    each = [amount(v[site], unit) if site in v else "—" for v in readings] if len(readings) > 1 else []
    return [str(site), amount(mean[site], unit), *each, "cut" if site in gone else "stays"]


def overlap_scatter(importance: Values, prefix: Values, unit: str, gone: Dropped, note: str) -> Figure:
    """Importance against prefix matching, both on square-root axes; the clearest induction heads are named."""
    sites = [site for site in sorted(importance) if site in prefix]
    x, y = {s: _root(prefix[s]) for s in sites}, {s: _root(importance[s]) for s in sites}
    clear = max(CLEAR, max((prefix[s] for s in sites), default=0.0) / 2)
    named = [s for s in sorted(sites, key=lambda s: -prefix[s])[:NAMED] if prefix[s] >= clear]
    tops = max(y.values(), default=0.0) or 1.0
    kept, cut = ([s for s in sites if (s in gone) == side] for side in (False, True))
    data = [_points(group, x, y, importance, prefix, unit, gone) for group in (cut, kept) if group]
    layout = new_layout(
        258,
        xaxis=new_axis("prefix matching", range=[-0.04, 1.04], **_root_ticks([0, 0.01, 0.1, 0.25, 0.5, 1])),
        yaxis=new_axis("importance", range=[-0.06 * tops, 1.12 * tops], **_root_ticks(_even(tops**2))),
        annotations=_names(named, x, y, tops),
    )
    layout["margin"] |= {"l": 56}
    order = ranks({s: prefix[s] for s in sites})
    rows = [_scatter_row(s, importance, prefix, unit) for s in order]
    return Figure(
        "Importance against prefix matching", data, layout, ("head", "prefix", "importance"), rows, note
    )


def _scatter_row(site: Site, importance: Values, prefix: Values, unit: str) -> list[str]:
    return [str(site), amount(prefix[site], "score"), amount(importance[site], unit)]


def _root(value: float) -> float:
    return math.sqrt(max(0.0, value))


def _even(most: float) -> list[float]:
    """Round values up to `most` that lie about evenly on a square-root axis."""
    return [0.0, *(t for t in ticks(0.0, most, count=6) if 0 < t <= 1.1 * most)]


def _root_ticks(values: Sequence[float]) -> dict[str, Any]:
    return {"tickvals": [_root(v) for v in values], "ticktext": [f"{v:.3g}" for v in values]}


def _points(
    sites: Sequence[Site], x: Values, y: Values, importance: Values, prefix: Values, unit: str, gone: Dropped
) -> dict[str, Any]:
    cut = sites[0] in gone
    look = {"symbol": "x-thin-open", "size": 6, "color": ACCENT, "line": {"width": 1.6}}
    trace = marks(
        [(x[s], y[s]) for s in sites], **(look if cut else {"size": 8, "color": AFTER, "opacity": 0.85})
    )
    del trace["hoverinfo"]
    hover = [
        f"<b>{s}</b>{', cut' if cut else ''}<br>prefix matching {prefix[s]:.3g}<br>"
        f"importance {amount(importance[s], unit)}"
        for s in sites
    ]
    return trace | {"text": hover, "hovertemplate": "%{text}<extra></extra>"}


def _names(sites: Sequence[Site], x: Values, y: Values, tops: float) -> list[dict[str, Any]]:
    """Labels left of their points, each with a line to it, stacked so that none covers another."""
    left, above = min((x[site] for site in sites), default=0.0) - 0.06, math.inf
    labels = []
    for site in sorted(sites, key=lambda s: -y[s]):
        above = min(y[site], above - LABEL * tops)
        ends = {"x": x[site], "y": y[site], "ax": left, "ay": above, "axref": "x", "ayref": "y"}
        line = {"showarrow": True, "arrowhead": 0, "arrowwidth": 1, "arrowcolor": "#b9b5aa", "standoff": 5}
        words = {"text": str(site), "xanchor": "right", "font": {"size": 11, "color": INK}}
        words["bgcolor"] = "rgba(253,252,250,.8)"
        labels.append(ends | line | words)
    return labels
