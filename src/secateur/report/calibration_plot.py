"""What was predicted of a plan against what the loss then did, every plan that was judged a point."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.stats import rankdata

from secateur.report.chart import (
    ACCENT,
    AFTER,
    INK,
    Figure,
    depth_color,
    level,
    marks,
    new_axis,
    new_layout,
    root_axis,
    signed_root,
)
from secateur.report.markup import DASH, number, signed, text

ENOUGH = 3  # plans without which there is no order to speak of
MANY = 20  # plans from which shares by their number of directions are shown
_UP_TO = (1, 4, 16, 64, 256)  # directions added at once: ends of the bins
Record = Mapping[str, Any]


def measured(step: Record) -> float:
    """What the loss did, in nats per token."""
    return step["loss"] - step["loss_before"]


def spearman(path: Sequence[Record]) -> float | None:
    """Rank correlation of prediction and truth, ties at their mean ranks; None where either is the same throughout."""
    ranks = [rankdata([read(step) for step in path]) for read in (lambda step: step["predicted"], measured)]
    if any(len(set(one)) < 2 for one in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def scatter(path: Sequence[Record], chosen: Sequence[Record]) -> Figure:
    """Predicted against measured on root axes, by round; orange was chosen, the line is truth as predicted."""
    rounds = 1 + max(step["round"] for step in path)
    x = [step["predicted"] for step in path]
    y = [measured(step) for step in path]
    low, high = max(min(x), min(y)), min(max(x), max(y))
    ends = {"x0": signed_root(low), "y0": signed_root(low), "x1": signed_root(high), "y1": signed_root(high)}
    identity = {"type": "line", **ends, "line": {"color": INK, "width": 1.3}, "layer": "below"}
    layout = new_layout(
        380,
        xaxis=root_axis(x, "predicted change of loss, nats"),
        yaxis=root_axis(y, ""),
        shapes=[level(0.0), *([identity] if low < high else [])],
    )
    layout["margin"] |= {"l": 52}
    rings = [(signed_root(s["predicted"]), signed_root(measured(s))) for s in chosen]
    look = {"symbol": "circle", "size": 11, "color": ACCENT, "line": {"width": 2, "color": INK}}
    data = [_points([s for s in path if s["round"] == n], depth_color(n, rounds)) for n in range(rounds)]
    head = ("plan", "round", "directions added", "predicted, nats", "measured, nats", "examples")
    return Figure(
        "Measured change of loss, nats",
        [*data, marks(rings, **look)],
        layout,
        head,
        [_row(step) for step in path],
        "square-root axes",
    )


def _points(steps: Sequence[Record], color: str) -> dict[str, Any]:
    points = [(signed_root(step["predicted"]), signed_root(measured(step))) for step in steps]
    symbols = ["circle" if step["complete"] else "circle-open" for step in steps]
    trace = marks(points, size=6, color=color, opacity=0.75, symbol=symbols)
    del trace["hoverinfo"]
    return trace | {"text": list(map(_hover, steps)), "hovertemplate": "%{text}<extra></extra>"}


def _hover(step: Record) -> str:
    end = "" if step["complete"] else ", then dropped from the race"
    return (
        f"<b>{text(step['pool'])}</b>, {step['added']:,} more, round {step['round'] + 1}<br>"
        f"predicted {signed(step['predicted'])}<br>measured {signed(measured(step))} nats<br>"
        f"{step['n']:,} examples{end}"
    )


def _row(step: Record) -> list[str]:
    values = (signed(step["predicted"]), signed(measured(step)))
    return [
        text(step["pool"]),
        str(step["round"] + 1),
        f"{step['added']:,}",
        *map(text, values),
        f"{step['n']:,}",
    ]


def kept(path: Sequence[Record]) -> tuple[int, int]:
    """Plans that were predicted to lower the loss and did, and all that were predicted to."""
    promised = [step for step in path if step["predicted"] < 0]
    return sum(measured(step) < 0 for step in promised), len(promised)


def by_size(path: Sequence[Record]) -> Figure | None:
    """Of the plans predicted to lower the loss, the share that did, by how many directions they add at once."""
    bins = {label: kept(steps) for label, steps in _binned(path) if kept(steps)[1]}
    if len(bins) < 2 or sum(n for _, n in bins.values()) < MANY:
        return None
    shares = [did / n for did, n in bins.values()]
    bars = {
        "type": "bar",
        "x": list(range(len(bins))),
        "y": shares,
        "marker": {"color": AFTER, "line": {"width": 0}},
        "text": [number(share, "share") for share in shares],
        "textposition": "outside",
        "cliponaxis": False,
        "textfont": {"size": 12, "color": INK},
        "hoverinfo": "skip",
    }
    names = [f"{label}<br>n = {n:,}" for label, (_, n) in bins.items()]
    layout = new_layout(
        380,
        bargap=0.35,
        xaxis=new_axis(
            "directions added at once", tickvals=list(range(len(bins))), ticktext=names, showgrid=False
        )
        | {"tickangle": 0, "range": [-0.6, len(bins) - 0.4]},
        yaxis=new_axis("", range=[0, 1.08], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1]),
    )
    layout["margin"] |= {"b": 60, "l": 46}
    rows = [[label, f"{did:,}", f"{n:,}", number(did / n, "share")] for label, (did, n) in bins.items()]
    head = ("directions added", "kept", "promised", "share")
    return Figure("How many lowered the loss", [bars], layout, head, rows, "of the plans predicted to")


def _binned(path: Sequence[Record]) -> Iterable[tuple[str, list[Record]]]:
    for low, high in pairwise((0, *_UP_TO, math.inf)):
        first = low + 1
        label = (
            f"{first:,}"
            if first == high
            else f"{first:,}{DASH}{high:,}"
            if high < math.inf
            else f"{first:,}+"
        )
        yield label, [step for step in path if low < step["added"] <= high]
