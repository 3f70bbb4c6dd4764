"""The primitives of every figure: colors, axes, and `Figure` itself, a plain plotly.js dictionary with its table.

Imports no plotly: the tests validate the dictionaries against plotly's own schema.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from secateur.report.colors import PALETTE

INK, MUTED, RULE, EDGE, PAPER, ON = (PALETTE[n][0] for n in ("ink", "muted", "rule", "edge", "paper", "on"))
BEFORE, AFTER, ACCENT, ALT = (PALETTE[n][0] for n in ("before", "after", "accent", "alt"))
LINEAR, BROWN, TAN, TRACK = (PALETTE[n][0] for n in ("linear", "brown", "tan", "track"))
DEPTH = (PALETTE["shallow"][0], PALETTE["deep"][0])
DIVERGING = [[i / 4, PALETTE[n][0]] for i, n in enumerate(("low2", "low1", "zero", "high1", "high2"))]
SEQUENTIAL = [[i / 4, PALETTE[f"seq{i}"][0]] for i in range(5)]

Trace = dict[str, object]  # as plotly.js has it: any JSON


@dataclass(frozen=True)
class Figure:
    """One plotly figure: traces, layout, the same numbers as a table (escaped cells), a note beside the title.

    `source` is the file that has what does not fit into the table.
    """

    title: str
    data: list[Trace]
    layout: Trace
    head: tuple[str, ...] = ()
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""
    source: str = "analysis.json"

    @property
    def height(self) -> int:
        height = self.layout["height"]
        assert isinstance(height, int)
        return height


def new_layout(height: int, margin: Mapping[str, int] = MappingProxyType({}), **more: object) -> Trace:
    """Return a layout; sides that `margin` leaves out are as wide as in every chart."""
    return {
        "height": height,
        "margin": {"l": 46, "r": 14, "t": 10, "b": 44, **margin},
        "paper_bgcolor": PAPER,  # a saved picture is legible on any background
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "inherit", "size": 12, "color": INK},
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": ON,
            "bordercolor": EDGE,
            "font": {"color": INK, "size": 13},
            "align": "left",
        },
    } | more


def new_axis(title: str, **more: object) -> Trace:
    return {
        "title": {"text": title, "font": {"size": 12, "color": MUTED}, "standoff": 8},
        "zeroline": False,
        "gridcolor": RULE,
        "linecolor": RULE,
        "tickfont": {"size": 11, "color": MUTED},
    } | more


def marks(points: Sequence[tuple[float, float]], **marker: object) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "marker": marker,
        "hoverinfo": "skip",
    }


def line(points: Sequence[tuple[float, float]], hover: Sequence[str], color: str, dash: str) -> Trace:
    """Return points joined by a line; `hover` is escaped."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "text": list(hover),
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": color, "width": 2, "dash": dash},
        "marker": {"size": 7, "color": color},
    }


def some(count: int, most: int) -> list[int]:
    """Return at most `most` evenly spaced indices, the first always among them."""
    return list(range(0, count, max(1, math.ceil(count / most))))


def cell_height(lines: int, most: int = 560) -> float:
    """Return the pixels of a line of a heat map: readable in shallow models, at most `most` in all in deep ones."""
    return min(34.0, max(9.0 * most / 560, most / lines))


def level(value: float) -> Trace:
    where = {"x0": 0, "x1": 1, "xref": "paper", "y0": value, "y1": value}
    return {"type": "line", **where, "line": {"color": MUTED, "width": 1.3, "dash": "dot"}}


def loss_axis(losses: Sequence[float], title: str = "loss, nats") -> Trace:
    """Return a linear axis, or a logarithmic one where the worst loss would flatten everything else."""
    low, high = min(losses), max(losses)
    if low > 0 and high / low > 5:
        at = [m * 10.0**e for e in range(-4, 6) for m in (1, 2, 5) if low * 0.7 <= m * 10.0**e <= high * 1.4]
        span = [math.log10(low) - 0.06, math.log10(high) + 0.06]
        return new_axis(
            f"{title} (log scale)",
            type="log",
            tickvals=at,
            ticktext=[f"{m:g}" for m in at],
            range=span,
        )
    pad = 0.06 * max(high - low, 1e-3)
    start = (
        low - pad if low < 0 else max(0.0, low - pad)
    )  # a loss has no values below 0, and no room for them
    return new_axis(title, range=[start, high + pad], nticks=6)


def value_axis(values: Sequence[float], unit: str) -> Trace:
    """Return the axis of a metric: shares in percent, else a loss, its unit beside the title."""
    if unit != "share":
        return loss_axis(values, "") | {"title": {"text": ""}}
    low, high = min(values), max(values)
    pad = 0.06 * max(high - low, 0.02)
    form = ".0%" if high - low > 0.05 else ".1%"
    return new_axis("", tickformat=form, nticks=6, range=[low - pad, high + pad])


def counted_layout(count: int, title: str, values: Sequence[float], unit: str) -> Trace:
    """Return the layout of a metric over whole numbers up to `count`, such as blocks, with a tick for each of a few."""
    axis = new_axis(title, dtick=1) if count <= 16 else new_axis(title, nticks=9)
    return new_layout(300, {"l": 52}, xaxis=axis, yaxis=value_axis(values, unit))


def signed_root(value: float) -> float:
    """Return the square root with the sign of `value`: effects span orders of magnitude, and both signs matter."""
    return math.copysign(math.sqrt(abs(value)), value)


def root_axis(values: Iterable[float], title: str, **more: object) -> Trace:
    """Return an axis for `signed_root` of `values`, with round ticks about evenly spaced, zero among them."""
    ends = [0.0, *values]
    low, high = signed_root(min(ends)), signed_root(max(ends))
    span = (high - low) or 1e-6
    at = sorted({0.0, *(-t for t in _root_ticks(-low, span)), *_root_ticks(high, span)})
    labels = {
        "tickvals": [signed_root(v) for v in at],
        "ticktext": [f"{v:g}".replace("-", "\u2212") for v in at],
    }
    return new_axis(title, range=[low - 0.06 * span, high + 0.06 * span], **labels, **more)


def _root_ticks(reach: float, span: float) -> list[float]:
    """Return round values from the square of `reach` down, whose roots keep a sixth of `span` apart, also from 0."""
    rounds = (m * 10.0**e for e in range(4, -9, -1) for m in (5, 2, 1))
    found: list[float] = []
    for value in (value for value in rounds if math.sqrt(value) <= reach):
        above = math.sqrt(found[-1]) if found else math.inf
        if min(above - math.sqrt(value), math.sqrt(value)) >= span / 6:
            found.append(value)
    return found


def depth_color(block: int, blocks: int) -> str:
    """Return a color from pale for the first block to dark for the last."""
    share = block / max(1, blocks - 1)
    ends = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in DEPTH]
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(*ends, strict=True))
