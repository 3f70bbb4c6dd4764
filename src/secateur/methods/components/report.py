"""Figures of a pruning run: one quantity against the share removed, a line for each order, a band for random ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.report.chart import (
    ACCENT,
    AFTER,
    BEFORE,
    INK,
    MUTED,
    Figure,
    level,
    loss_axis,
    marks,
    new_axis,
    new_layout,
)
from secateur.report.frame import Record
from secateur.report.markup import known, number, text

ONCE = "#7a6a1d"  # the page's olive: an alternative
_LOOKS = {"re-scored": (AFTER, 2.8, "solid"), "ranks once": (ONCE, 2.0, "dash")}
_SHARES: dict[
    str, tuple[str, str, Callable[[Record], float]]
] = {  # in words, on an axis, how much of it is gone
    "heads": ("heads", "heads", lambda point: point["heads_removed"]),
    "ffns": ("feed-forward networks", "FFNs", lambda point: point["ffns_removed"]),
    "components": ("parameters", "parameters", lambda point: 1 - point["parameters"]),
}

Points = list[tuple[float, float, Record]]


def noun(record: Record) -> str:
    """What the horizontal axis counts."""
    return _SHARES[record["what"]][0]


def removed(record: Record, point: Record) -> float:
    """Percent of it that is gone at a point."""
    return 100 * _SHARES[record["what"]][2](point)


@dataclass(frozen=True)
class Quantity:
    """What a panel shows: how to read it from a point, its unit, and the bound that the choice held it to."""

    title: str
    unit: str
    read: Callable[[Record], Any]
    bound: float | None = None
    height: int = 236
    note: str = ""

    def points(self, record: Record, series: Record) -> Points:
        """(% removed, value, point) where it was measured, in order of the share removed."""
        found = [(removed(record, p), self.read(p), p) for p in series["points"] if known(self.read(p))]
        return sorted(found, key=lambda item: item[0])


def panels(record: Record, quantities: Sequence[Quantity]) -> list[Figure]:
    """A figure for each quantity that was measured anywhere."""
    lines = [
        (q, [(s, found) for s in record["series"] if (found := q.points(record, s))]) for q in quantities
    ]
    return [_panel(record, quantity, found) for quantity, found in lines if found]


def _panel(record: Record, quantity: Quantity, lines: Sequence[tuple[Record, Points]]) -> Figure:
    unit, bound = quantity.unit, quantity.bound
    random = [points for series, points in lines if series["order"] == "random"]
    data = _band(random, unit) if random else []
    data += [_line(series, points, unit) for series, points in lines if series["order"] != "random"]
    data += _chosen_mark(record, quantity)
    values = [y for _, points in lines for _, y, _ in points] + ([bound] if bound is not None else [])
    axis = _value_axis(values, unit)
    shapes = ([level(bound)] if bound is not None else []) + aim(record)
    layout = new_layout(quantity.height, xaxis=_share_axis(record), yaxis=axis, shapes=shapes)
    layout["margin"] |= {"l": 46}
    head = ("order", "removed", quantity.title, "judged on")
    rows = [_row(series, *point, unit) for series, points in lines for point in points]
    said = [
        quantity.note or ("%" if unit == "share" else unit),
        "log scale" if axis.get("type") == "log" else "",
    ]
    return Figure(quantity.title, data, layout, head, rows, ", ".join(word for word in said if word))


def _row(series: Record, x: float, y: float, point: Record, unit: str) -> list[str]:
    seed = f", seed {series['seed']}" if series.get("seed") is not None else ""
    end = "all of select" if point.get("complete", True) else "a part of select"
    return [text(f"{series['order']}{seed}"), f"{x:.1f} %", text(number(y, unit)), end]


def _share_axis(record: Record) -> dict[str, Any]:
    most = max(removed(record, point) for series in record["series"] for point in series["points"])
    return new_axis(f"% of {_SHARES[record['what']][1]} removed", range=[-0.03 * most, 1.04 * most], nticks=7)


def _value_axis(values: Sequence[float], unit: str) -> dict[str, Any]:
    if unit != "share":
        return loss_axis(values, "") | {"title": {"text": ""}}
    low, high = min(values), max(values)
    pad = 0.06 * max(high - low, 0.02)
    return new_axis(
        "", tickformat=".0%" if high - low > 0.05 else ".1%", nticks=6, range=[low - pad, high + pad]
    )


def aim(record: Record) -> list[dict[str, Any]]:
    """An upright line at the target: the share to remove, or what `params` leaves to remove."""
    share = record.get("target")
    if known(record.get("params")) and record["what"] == "components":
        share = 1 - record["params"]
    if not known(share):
        return []
    place = {"x0": 100 * share, "x1": 100 * share, "y0": 0, "y1": 1, "yref": "paper"}
    return [{"type": "line", **place, "line": {"color": MUTED, "width": 1, "dash": "dash"}, "layer": "below"}]


def _line(series: Record, points: Points, unit: str) -> dict[str, Any]:
    color, width, dash = _LOOKS.get(series["order"], (MUTED, 1.6, "dot"))
    symbols = ["circle" if point.get("complete", True) else "circle-open" for _, _, point in points]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": text(series["order"]),
        "x": [x for x, _, _ in points],
        "y": [y for _, y, _ in points],
        "text": [_hover(series["order"], *point, unit) for point in points],
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": color, "width": width, "dash": dash},
        "marker": {"size": 5 + width / 2, "color": color, "symbol": symbols},
    }


def _hover(order: str, x: float, y: float, point: Record, unit: str) -> str:
    left = point.get("parameters")
    said = [f"<b>{text(order)}</b>, {x:.1f} % removed", text(number(y, unit))]
    said += [f"{100 * left:.1f} % of the parameters left"] if known(left) else []
    return "<br>".join(said + ([] if point.get("complete", True) else ["on a part of the split"]))


def _band(random: Sequence[Points], unit: str) -> list[dict[str, Any]]:
    """Lowest to highest of the random orders as an area, their median as a line."""
    grid, low, middle, high = spread([[(x, y) for x, y, _ in points] for points in random])
    hover = [
        f"<b>random order</b>, {x:.1f} % removed<br>median {text(number(m, unit))}<br>"
        f"{text(number(a, unit))} to {text(number(b, unit))} over {len(random)}"
        for x, a, m, b in zip(grid, low, middle, high, strict=True)
    ]
    edge = {"type": "scatter", "mode": "lines", "x": grid, "line": {"width": 0}, "hoverinfo": "skip"}
    area = [edge | {"y": low}, edge | {"y": high, "fill": "tonexty", "fillcolor": "rgba(139,144,153,.24)"}]
    line = {"type": "scatter", "mode": "lines", "x": grid, "y": middle, "text": hover, "name": "random"}
    return [
        *area,
        line | {"line": {"color": BEFORE, "width": 1.8}, "hovertemplate": "%{text}<extra></extra>"},
    ]


def spread(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[list[float], ...]:
    """Positions, lowest, median and highest of several curves, each read between its points on straight lines.

    Positions are those of all the curves' points, where every curve reaches.
    """
    start, end = max(points[0][0] for points in curves), min(points[-1][0] for points in curves)
    grid = sorted({x for points in curves for x, _ in points if start <= x <= end})
    at = np.array([np.interp(grid, *zip(*points, strict=True)) for points in curves])
    return grid, at.min(axis=0).tolist(), np.median(at, axis=0).tolist(), at.max(axis=0).tolist()


def chosen(record: Record) -> Record | None:
    """The point that was chosen, or None where none held the bound."""
    found = record.get("chosen")
    if not found:
        return None
    series = next(series for series in record["series"] if series["order"] == found["order"])
    return series["points"][found["point"]]


def _chosen_mark(record: Record, quantity: Quantity) -> list[dict[str, Any]]:
    point = chosen(record)
    if point is None or not known(quantity.read(point)):
        return []
    at = [(removed(record, point), quantity.read(point))]
    return [marks(at, symbol="circle", size=12, color=ACCENT, line={"width": 2, "color": INK})]
