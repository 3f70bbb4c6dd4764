"""Sections of a run that removed heads, networks or experts: curves of every order of removal, what parts are worth.

A figure for each quantity, against the share that is removed: a line for each order, a band for random ones. Knows no
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from secateur.core.records.analysis import AnalysisRecord
from secateur.core.records.verdict import VerdictRecord
from secateur.core.score import metric_name
from secateur.methods.components.records import ComponentsAnalysis, PointRecord, PruningRecord, SeriesRecord
from secateur.methods.method import own_part
from secateur.probing.component_sections import component_sections
from secateur.report.chart import (
    ACCENT,
    AFTER,
    ALT,
    BEFORE,
    INK,
    MUTED,
    Figure,
    Trace,
    level,
    marks,
    new_axis,
    new_layout,
    value_axis,
)
from secateur.report.frame import FigureGroup, PageSection, worst_allowed
from secateur.report.markup import capital, key, known, number, text
from secateur.report.pruned_units import dropped

WIDE = 300  # pixels of the panels that decide; the others are smaller
LOOKS = {  # color, width, dash
    "voted": (ACCENT, 2.8, "solid"),
    "re-scored": (AFTER, 2.8, "solid"),
    "ranks once": (ALT, 2.0, "dash"),
}
# By what is removed: its name in words, and on an axis.
NOUNS = {
    "heads": ("heads", "heads"),
    "ffns": ("feed-forward networks", "FFNs"),
    "components": ("parameters", "parameters"),
    "experts": ("experts", "experts"),
}


def sections(verdict: VerdictRecord, analysis: AnalysisRecord) -> list[PageSection]:
    """Return how far removal went, then what was read of the parts."""
    found = own_part(analysis, ComponentsAnalysis)
    parts = component_sections(found.components, dropped(verdict)) if found.components else []
    return [*([pruning_section(found.pruning)] if found.pruning else []), *parts]


@dataclass(frozen=True)
class CurvePoint:
    """A point of one order where a quantity was measured.

    Args:
        removed: Percent of the parts that is gone.
    """

    removed: float
    value: float
    record: PointRecord


@dataclass(frozen=True)
class PanelQuantity:
    """The quantity of one panel.

    Args:
        read: Gives its value at a point, None where it was not measured.
        bound: The worst value that the choice allowed.
        note: Words in place of the unit.
    """

    title: str
    unit: str
    read: Callable[[PointRecord], float | None]
    bound: float | None = None
    height: int = 236
    note: str = ""

    def points(self, record: PruningRecord, series: SeriesRecord) -> list[CurvePoint]:
        """Return the points where it was measured, in order of the share removed."""
        found = [
            CurvePoint(removed(record, point), value, point)
            for point in series.points
            if known(value := self.read(point))
        ]
        return sorted(found, key=lambda point: point.removed)


def removed(record: PruningRecord, point: PointRecord) -> float:
    """Return the percentage of heads, networks, parameters or experts that is gone at a point."""
    shares = {
        "heads": point.heads_removed,
        "ffns": point.ffns_removed,
        "components": 1 - point.parameters,
        "experts": point.experts_removed,
    }
    return 100 * shares[record.what]


# ---------------------------------------------------------------------------------------------------------- the section


def pruning_section(record: PruningRecord) -> PageSection:
    """Return the curves of every order, with the chosen point on each."""
    if not record.series:
        return PageSection("pruning", "", "", ())
    name = NOUNS[record.what][0]
    title = "How much of the model can go" if name == "parameters" else f"How many {name} can go"
    snapped = f'<p class="note">Shares are snapped to {text(record.snapped)}.</p>' if record.snapped else ""
    body = (
        chosen_words(record),
        snapped,
        legend(record),
        FigureGroup(tuple(panels(record, deciding_quantities(record))), "pair"),
        FigureGroup(tuple(panels(record, side_quantities(record))), "multiples words", "left"),
    )
    lead = f"Each step removes more {name}; what is left is judged on the validation split."
    return PageSection("pruning", title, lead, body)


def deciding_quantities(record: PruningRecord) -> list[PanelQuantity]:
    """Return the metric with its bound, and the loss beside it where that is not the metric."""
    name = metric_name(record.metric)
    found = [PanelQuantity(name, record.metric_unit, lambda point: point.value, _bound(record), WIDE)]
    if record.metric not in ("loss", "text_loss"):
        found.append(PanelQuantity("Loss", "nats/token", lambda point: point.loss, height=WIDE))
    return found


def _bound(record: PruningRecord) -> float | None:
    """Return the worst value that the choice allowed."""
    points = (point for series in record.series for point in series.points)
    start = next((point.value for point in points if removed(record, point) == 0), None)
    return worst_allowed(start, record.max_loss, higher_is_better=record.higher_is_better)


def side_quantities(record: PruningRecord) -> list[PanelQuantity]:
    """Return the side tasks, and how much of what the heads did is left where some of it went."""
    points = [point for series in record.series for point in series.points]
    names = dict.fromkeys(name for point in points for name in point.sides or {})
    found = [
        PanelQuantity(capital(name), (record.side_units or {}).get(name, ""), side_value(name))
        for name in names
    ]
    scores: list[tuple[str, Callable[[PointRecord], float | None]]] = [
        ("Prefix matching left", lambda point: point.prefix_matching),
        ("Copying left", lambda point: point.copying),
    ]
    note = "share of what all heads had"
    for title, read in scores:
        values = [value for point in points if (value := read(point)) is not None]
        if any(known(value) and value != 1 for value in values):
            found.append(PanelQuantity(title, "share", read, note=note))
    return found


def side_value(name: str) -> Callable[[PointRecord], float | None]:
    """Return a function that reads the metric of a side task at a point."""
    return lambda point: (point.sides or {}).get(name)


def legend(record: PruningRecord) -> str:
    """Return the legend of the panels: orders, band, chosen point, bound and target, as far as there are such."""
    orders = {series.order for series in record.series}
    seeds = sum(series.order == "random" for series in record.series)
    band = f"random order: median, lowest to highest of {seeds}" if seeds > 1 else "random order"
    items = [("line voted", "several readings together")] if "voted" in orders else []
    items += [("line rescored", "scored again at each step")] if "re-scored" in orders else []
    items += [("line once", "ranks read once")] if "ranks once" in orders else []
    items += [("band", band)] if seeds else []
    items += [("dot chosen", "chosen")] if record.chosen else []
    items += [("line base", "bound")] if _bound(record) is not None else []
    items += [("aim", "target")] if target_line(record) else []
    return key(*items)


def chosen_point(record: PruningRecord) -> PointRecord | None:
    """Return the point that was chosen, or None where none held the bound."""
    if not record.chosen:
        return None
    series = next(series for series in record.series if series.order == record.chosen.order)
    return series.points[record.chosen.point]


def chosen_words(record: PruningRecord) -> str:
    """Return what the chosen point costs, beside random order at the same share."""
    point = chosen_point(record)
    if point is None:
        return '<p class="aside">No point stayed within the bound, so nothing was chosen.</p>'
    share, unit, metric = removed(record, point), record.metric_unit, metric_name(record.metric)
    value = f"{metric[:1].lower()}{metric[1:]} {number(point.value, unit)}"
    quantity = PanelQuantity("", "", lambda point: point.value)
    random = [quantity.points(record, series) for series in record.series if series.order == "random"]
    reaching = [points for points in random if points and points[0].removed <= share <= points[-1].removed]
    beside = ""
    if reaching:
        at = [np.interp(share, [p.removed for p in points], [p.value for p in points]) for points in reaching]
        low, high = (number(float(end), unit) for end in (min(at), max(at)))
        beside = f"; in random order {low}" + (f" to {high}" if len(at) > 1 else "")
    words = f"Chosen: {share:.1f} % of {NOUNS[record.what][0]} removed, {value}{beside}.{_voted(record)}"
    return f'<p class="aside">{text(words)}</p>'


def _voted(record: PruningRecord) -> str:
    """Return what ranks of several readings gave beside those of one."""
    vote = record.vote
    if vote is None:
        return ""
    bounds = "" if vote.ci is None else " [{:+.3g}, {:+.3g}]".format(*vote.ci)
    benefit = "better" if vote.shown else "no benefit is shown"
    return (
        f" Ranks were those of {vote.readings} readings together; by one reading it is "
        f"{number(vote.single, record.metric_unit)} at that size, a difference of {vote.difference:+.3g}{bounds}: "
        f"{benefit}."
    )


# ----------------------------------------------------------------------------------------------------------- the panels


def panels(record: PruningRecord, quantities: Sequence[PanelQuantity]) -> list[Figure]:
    """Return a figure for each quantity that was measured anywhere."""
    figures = []
    for quantity in quantities:
        lines = [(series, quantity.points(record, series)) for series in record.series]
        if any(points for _, points in lines):
            figures.append(panel(record, quantity, [line for line in lines if line[1]]))
    return figures


def panel(
    record: PruningRecord, quantity: PanelQuantity, lines: Sequence[tuple[SeriesRecord, list[CurvePoint]]]
) -> Figure:
    """Return the figure of one quantity: a line for each order, the random band, the chosen point."""
    unit, bound = quantity.unit, quantity.bound
    random = [points for series, points in lines if series.order == "random"]
    data = random_band(random, unit) if random else []
    data += [order_line(series.order, points, unit) for series, points in lines if series.order != "random"]
    best = chosen_point(record)
    if best is not None and known(value := quantity.read(best)):
        at = [(removed(record, best), value)]
        data.append(marks(at, symbol="circle", size=12, color=ACCENT, line={"width": 2, "color": INK}))
    values = [point.value for _, points in lines for point in points]
    axis = value_axis(values + ([bound] if bound is not None else []), unit)
    shapes = ([level(bound)] if bound is not None else []) + target_line(record)
    most = max(removed(record, point) for series in record.series for point in series.points)
    words = f"% of {NOUNS[record.what][1]} removed"
    shares = new_axis(words, range=[-0.03 * most, 1.04 * most], nticks=7)
    layout = new_layout(quantity.height, {"l": 46}, xaxis=shares, yaxis=axis, shapes=shapes)
    head = ("order", "removed", quantity.title, "judged on")
    rows = [
        [
            text(series.order + (f", seed {series.seed}" if series.seed is not None else "")),
            f"{point.removed:.1f} %",
            text(number(point.value, unit)),
            "all of the validation split" if point.record.complete else "a part of it",
        ]
        for series, points in lines
        for point in points
    ]
    notes = (
        quantity.note or ("%" if unit == "share" else unit),
        "log scale" if axis.get("type") == "log" else "",
    )
    return Figure(quantity.title, data, layout, head, rows, ", ".join(note for note in notes if note))


def target_line(record: PruningRecord) -> list[Trace]:
    """Return an upright line at the target: the share to remove, or what `params` leaves to remove."""
    share = record.target
    if known(record.params) and record.what == "components":
        share = 1 - record.params
    if not known(share):
        return []
    place = {"x0": 100 * share, "x1": 100 * share, "y0": 0, "y1": 1, "yref": "paper"}
    return [{"type": "line", **place, "line": {"color": MUTED, "width": 1, "dash": "dash"}, "layer": "below"}]


def order_line(order: str, points: Sequence[CurvePoint], unit: str) -> Trace:
    """Return the curve of one order; points that were judged on a part of the split are hollow."""
    color, width, dash = LOOKS.get(order, (MUTED, 1.6, "dot"))
    hover = []
    for point in points:
        left = point.record.parameters
        words = [f"<b>{text(order)}</b>, {point.removed:.1f} % removed", text(number(point.value, unit))]
        words += [f"{100 * left:.1f} % of the parameters left"] if known(left) else []
        hover.append("<br>".join(words + ([] if point.record.complete else ["on a part of the split"])))
    symbols = ["circle" if point.record.complete else "circle-open" for point in points]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": text(order),
        "x": [point.removed for point in points],
        "y": [point.value for point in points],
        "text": hover,
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": color, "width": width, "dash": dash},
        "marker": {"size": 5 + width / 2, "color": color, "symbol": symbols},
    }


def random_band(random: Sequence[Sequence[CurvePoint]], unit: str) -> list[Trace]:
    """Return lowest to highest of the random orders as an area, and their median as a line."""
    grid, low, middle, high = spread(
        [[(point.removed, point.value) for point in points] for points in random]
    )
    hover = [
        f"<b>random order</b>, {x:.1f} % removed<br>median {text(number(m, unit))}<br>"
        f"{text(number(a, unit))} to {text(number(b, unit))} over {len(random)}"
        for x, a, m, b in zip(grid, low, middle, high, strict=True)
    ]
    edge: Trace = {"type": "scatter", "mode": "lines", "x": grid, "line": {"width": 0}, "hoverinfo": "skip"}
    line: Trace = {
        "type": "scatter",
        "mode": "lines",
        "x": grid,
        "y": middle,
        "text": hover,
        "name": "random",
    }
    return [
        edge | {"y": low},
        edge | {"y": high, "fill": "tonexty", "fillcolor": "rgba(139,144,153,0.24)"},
        line | {"line": {"color": BEFORE, "width": 1.8}, "hovertemplate": "%{text}<extra></extra>"},
    ]


def spread(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[list[float], ...]:
    """Return positions, lowest, median and highest of several curves, each read between its points on straight lines.

    Positions are those of all the curves' points, where every curve reaches.
    """
    start, end = max(points[0][0] for points in curves), min(points[-1][0] for points in curves)
    grid = sorted({x for points in curves for x, _ in points if start <= x <= end})
    at = np.array([np.interp(grid, [x for x, _ in points], [y for _, y in points]) for points in curves])
    return grid, at.min(axis=0).tolist(), np.median(at, axis=0).tolist(), at.max(axis=0).tolist()
