"""The other drawn figures: curves, spectrum, screen; plotly.js dictionaries with their tables.

Builders return an empty list where their block of the analysis is absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.chart import (
    ACCENT,
    AFTER,
    INK,
    Figure,
    Row,
    by_matrix,
    depth_color,
    level,
    loss_axis,
    marks,
    new_axis,
    new_layout,
)
from secateur.report.markup import change, known, number, text

SHIFT = 0.08  # of a bin: keeps the two intervals of a bin apart


def curves(rows: Sequence[Row], base_loss: float | None, chosen: Mapping[str, float]) -> list[Figure]:
    """A panel for each matrix type, a line for each block (LASER, arXiv 2312.13558, Fig. 2); one loss axis.

    `chosen` maps a cut site to the percentage of components that the cut removes.
    """
    losses = [loss for row in rows for loss in row["loss"] if known(loss)]
    if not losses:
        return []
    axis = loss_axis(losses + ([base_loss] if known(base_loss) else []))
    blocks = 1 + max(row["block"] for row in rows)
    return [
        _curve_panel(name, group, base_loss, chosen, blocks, axis) for name, group in by_matrix(rows).items()
    ]


def _curve_panel(
    name: str,
    rows: list[Row],
    base_loss: float | None,
    chosen: Mapping[str, float],
    blocks: int,
    axis: dict[str, Any],
) -> Figure:
    plain = [_curve(row, depth_color(row["block"], blocks), 1.6) for row in rows if row["site"] not in chosen]
    cut = [row for row in rows if row["site"] in chosen]
    data = (
        plain
        + [_curve(row, ACCENT, 2.8) for row in cut]
        + [_cut_point(row, chosen[row["site"]]) for row in cut]
    )
    lines = [level(base_loss)] if known(base_loss) else []
    steps = {"range": [-3, 103], "tickvals": [0, 25, 50, 75, 100]}
    layout = new_layout(
        240, xaxis=new_axis("% of components removed", **steps), yaxis=dict(axis), shapes=lines
    )
    cells = [
        [text(row["site"]), f"{removed:.4g}{chr(160)}%", number(loss, "nats"), number(accuracy, "share")]
        for row in rows
        for removed, loss, accuracy in zip(row["removed"], row["loss"], _accuracies(row), strict=True)
    ]
    return Figure(name, data, layout, ("site", "removed", "loss", "accuracy"), cells)


def _accuracies(row: Row) -> Sequence[float | None]:
    return row.get("accuracy") or [None] * len(row["loss"])


def _curve(row: Row, color: str, width: float) -> dict[str, Any]:
    points = zip(row["removed"], row["loss"], _accuracies(row), strict=True)
    hover = [
        f"<b>{text(row['site'])}</b><br>{removed:.4g} % removed<br>loss {number(loss, 'nats')}"
        + (f"<br>accuracy {number(accuracy, 'share')}" if known(accuracy) else "")
        for removed, loss, accuracy in points
    ]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(row["removed"]),
        "y": list(row["loss"]),
        "text": hover,
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": color, "width": width},
        "marker": {"size": 3 + width, "color": color},
    }


def _cut_point(row: Row, removed: float) -> dict[str, Any]:
    """A ring at the rank that was chosen, where the curve has it."""
    near = [
        (x, y)
        for x, y in zip(row["removed"], row["loss"], strict=True)
        if known(y) and abs(x - removed) < 0.05
    ]
    return marks(near, symbol="circle-open", size=15, color=INK, line={"width": 2})


def spectrum(site: str, values: Sequence[float], kept: int, side: str = "top") -> Figure:
    """Singular values, the kept ones colored: the `kept` largest, or smallest where `side` is "tail"."""
    ordered = sorted(values, reverse=True)
    count = len(ordered)
    keeps = [(i < kept) if side == "top" else (i >= count - kept) for i in range(count)]
    energy = sum(v * v for v, k in zip(ordered, keeps, strict=True) if k) / (
        sum(v * v for v in ordered) or 1.0
    )
    bars = {
        "type": "bar",
        "x": list(range(1, count + 1)),
        "y": ordered,
        "marker": {"color": [AFTER if keep else "#cfccc4" for keep in keeps], "line": {"width": 0}},
        "text": [
            f"component {i + 1}: {v:.4g}<br>{'kept' if keeps[i] else 'removed'}"
            for i, v in enumerate(ordered)
        ],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }
    layout = new_layout(
        270,
        bargap=0.25 if count <= 128 else 0,
        xaxis=new_axis("component, largest first", showgrid=False, nticks=8, range=[0, count + 1]),
        yaxis=new_axis("singular value", rangemode="tozero", nticks=6),
    )
    title = f"{site}: {kept:,} of {count:,} components kept, with {100 * energy:.1f} % of the squared norm"
    cells = [[str(i + 1), f"{v:.5g}", "kept" if keeps[i] else "removed"] for i, v in enumerate(ordered)]
    return Figure(title, [bars], layout, ("component", "singular value", ""), cells)


def screen(
    rows: Sequence[Row], judged: Sequence[Row], base: Row, chosen: set[tuple[str, int]]
) -> list[Figure]:
    """Measured change of loss against the place in the screen's order: did the screen keep the good ones?"""
    order = sorted((row for row in rows if known(row.get("score"))), key=lambda row: row["score"])
    done = {(r["site"], r["rank"]): r["loss"] for r in judged if r["complete"] and known(r.get("loss"))}
    places = [(place, row, done.get((row["site"], row["rank"]))) for place, row in enumerate(order, start=1)]
    if not known(base.get("loss")):
        return []
    found = [(place, row, loss - base["loss"]) for place, row, loss in places if loss is not None]
    if len(found) < 3:
        return []
    low, high = (end([0.0, *(delta for _, _, delta in found)]) for end in (min, max))
    floor = low - 0.12 * (high - low)
    rug = [(place, floor) for place, _, loss in places if loss is None]
    strokes = marks(rug, symbol="line-ns-open", size=8, color="#b9b5aa", line={"width": 1})
    layout = new_layout(
        290,
        xaxis=new_axis("place in the screen's order (1: predicted best)", showgrid=False, nticks=8),
        yaxis=new_axis("measured change of loss, nats", nticks=6),
        shapes=[level(0.0)],
    )
    layout["xaxis"]["range"] = [-0.01 * len(order), 1.01 * len(order) + 1]
    cells = [_screen_numbers(place, row, delta) for place, row, delta in found]
    head = ("site", "rank", "place", "predicted", "measured")
    return [Figure("", [strokes, _screen_dots(found, chosen)], layout, head, cells)]


def _screen_dots(found: Sequence[tuple[int, Row, float]], chosen: set[tuple[str, int]]) -> dict[str, Any]:
    hits = [(row["site"], row["rank"]) in chosen for _, row, _ in found]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [place for place, _, _ in found],
        "y": [delta for _, _, delta in found],
        "text": [_screen_hover(place, row, delta) for place, row, delta in found],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": [ACCENT if hit else AFTER for hit in hits],
            "size": [14 if hit else 7 for hit in hits],
            "opacity": 0.85,
        },
    }


def _screen_numbers(place: int, row: Row, delta: float) -> list[str]:
    ends = [str(place), change(row["score"], "nats"), change(delta, "nats")]
    return [text(row["site"]), text(row["rank"]), *ends]


def _screen_hover(place: int, row: Row, delta: float) -> str:
    head = f"<b>{text(row['site'])}</b>, rank {text(row['rank'])}<br>place {place} in the screen's order"
    return f"{head}<br>predicted {change(row['score'], 'nats')}<br>measured {change(delta, 'nats')} nats"
