"""The metric and the loss along the way from the whole model to the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.report.chart import (
    ACCENT,
    AFTER,
    BEFORE,
    INK,
    Figure,
    level,
    marks,
    new_axis,
    new_layout,
    value_axis,
)
from secateur.report.frame import worst_allowed
from secateur.report.markup import MINUS, metric_name, number, text

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Stop:
    """A plan on the way: how many directions it lacks, its metric and loss, what it was made from, whether taken."""

    removed: int
    value: float
    loss: float
    name: str
    taken: bool


def stops(record: Record) -> list[Stop]:
    """From the original on: each round that a search took, or each step of a removal. None without any."""
    taken = {(step["round"], step["removed"]) for step in record["chosen"]}
    steps = record["path"] if record["protocol"] == "removal" else record["chosen"]
    if not steps:
        return []
    first = steps[0]
    start = Stop(0, first["value_before"], first["loss_before"], "original", True)
    return [start, *(_stop(step, (step["round"], step["removed"]) in taken) for step in steps)]


def _stop(step: Record, taken: bool) -> Stop:
    return Stop(
        step["removed"], step["value"], step["loss"], f"{step['pool']} {MINUS}{step['added']:,}", taken
    )


def walk(record: Record) -> list[Figure]:
    """The metric, and the loss beside it where that is not the metric; nothing for a way of fewer than two steps."""
    way = stops(record)
    if len(way) < 3:
        return []
    values = [stop.value for stop in way]
    title, unit = metric_name(record["metric"]), record["metric_unit"]
    found = [_panel(record, way, title, values, unit, worst_allowed(record, values[0]))]
    if record["metric"] not in ("loss", "text_loss"):
        found.append(_panel(record, way, "Loss", [stop.loss for stop in way], "nats/token", None))
    return found


def _panel(
    record: Record, way: Sequence[Stop], title: str, values: Sequence[float], unit: str, limit: float | None
) -> Figure:
    by_count = record["protocol"] == "removal"
    x = [stop.removed for stop in way] if by_count else list(range(len(way)))
    last = max(place for place, stop in enumerate(way) if stop.taken)
    hover = [
        f"<b>{text(stop.name)}</b><br>{stop.removed:,} directions removed<br>{text(number(value, unit))}"
        for stop, value in zip(way, values, strict=True)
    ]
    colors = [AFTER if stop.taken else BEFORE for stop in way]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": list(values),
        "text": hover,
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": BEFORE, "width": 2},
        "marker": {"size": 8, "color": colors},
    }
    chosen = marks(
        [(x[last], values[last])], symbol="circle", size=12, color=ACCENT, line={"width": 2, "color": INK}
    )
    layout = new_layout(
        300,
        xaxis=_along(way, x, by_count),
        yaxis=value_axis([*values, *([limit] if limit is not None else [])], unit),
        shapes=[level(limit)] if limit is not None else [],
    )
    layout["margin"] |= {"l": 52, "b": 60}
    rows = [
        [text(stop.name), f"{stop.removed:,}", text(number(value, unit)), "taken" if stop.taken else ""]
        for stop, value in zip(way, values, strict=True)
    ]
    return Figure(
        title,
        [line, chosen],
        layout,
        ("", "directions removed", title, ""),
        rows,
        "%" if unit == "share" else unit,
    )


def _along(way: Sequence[Stop], x: Sequence[int], by_count: bool) -> dict[str, Any]:
    if by_count:
        return new_axis("directions removed", range=[-0.03 * x[-1], 1.04 * x[-1]], nticks=7)
    names = [f"{text(stop.name)}<br>{stop.removed:,} in all" if stop.removed else "original" for stop in way]
    axis = new_axis("", tickvals=list(x), ticktext=names, showgrid=False)
    return axis | {"range": [-0.4, len(way) - 0.6], "tickangle": 0}
