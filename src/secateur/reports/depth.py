"""The sections about depth: every form at every depth, what each block would have cost, and samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.reports.chart import (
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
from secateur.reports.frame import Figures, Record, Section, place, section
from secateur.reports.markup import key, known, metric_name, number, table, text

COLORS = {"fold": AFTER, "linear": "#6f9fbc", "drop": BEFORE}
WORDS = {
    "fold": "folded into the network before",
    "linear": "a linear map in their place",
    "drop": "dropped",
}
MEASURES = {
    "loss": "loss on probe without it, nats/token",
    "linearity": "1 − linearity",
    "cosine": "1 − cosine",
}


def depth(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """The metric at every depth, the loss beside it where that is not the metric, and the samples."""
    record = analysis.get("depth")
    if not record:
        return ""
    title, unit = metric_name(record["metric"]), record["metric_unit"]
    found = [_curves(record, title, "value", unit, _bound(record))]
    if record["metric"] not in ("loss", "text_loss"):
        found.append(_curves(record, "Loss", "loss", "nats/token", None))
    found += [_side(record, name, unit) for name, unit in record["side_units"].items()]
    legend = key(*((f"line {form}", WORDS[form]) for form in (one["form"] for one in record["series"])))
    return section(
        "depth",
        "Without whole blocks",
        "The same blocks gone in the same order, by what stands for them; judged on the selection split.",
        f"<p>{_chosen(record)}</p>",
        legend,
        place("depth", found, figures, layout="pair"),
        _samples(record),
    )


def order(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """What every block measured when each choice was made."""
    record = analysis.get("depth")
    if not record or not record["order"]:
        return ""
    return section(
        "order",
        "Which block goes next",
        f"What each block that was left measured at each step ({MEASURES[record['by']]}); the lowest went.",
        place("order", [_steps(record)], figures),
    )


def _bound(record: Record) -> float | None:
    if not known(record["max_loss"]):
        return None
    start = record["series"][0]["points"][0]["value"]
    return start - record["max_loss"] if record["higher_is_better"] else start + record["max_loss"]


def _chosen(record: Record) -> str:
    count, of = record["series"][0]["points"][record["chosen"]]["blocks_removed"], record["num_blocks"]
    if not count:
        return "Chosen: no block may go within the bound."
    return f"Chosen: {count} of {of} blocks gone, {WORDS[record['form']]}."


def _side(record: Record, name: str, unit: str) -> Figure:
    told = {
        **record,
        "series": [
            {**one, "points": [p | {name: p["sides"].get(name)} for p in one["points"]]}
            for one in record["series"]
        ],
    }
    return _curves(told, f"{name}, on the side", name, unit, None)


def _curves(record: Record, title: str, field: str, unit: str, limit: float | None) -> Figure:
    lines, values, rows = [], [limit] if limit is not None else [], []
    for one in record["series"]:
        points = [p for p in one["points"] if known(p[field])]
        values += [p[field] for p in points]
        rows += [[WORDS[one["form"]], str(p["blocks_removed"]), text(number(p[field], unit))] for p in points]
        lines.append(_line(one["form"], points, field, unit))
    best = record["series"][0]["points"][record["chosen"]]
    if known(best[field]):
        at = [(best["blocks_removed"], best[field])]
        lines.append(marks(at, symbol="circle", size=12, color=ACCENT, line={"width": 2, "color": INK}))
    layout = new_layout(
        300,
        xaxis=_counted("blocks gone", record),
        yaxis=value_axis(values, unit),
        shapes=[level(limit)] if limit is not None else [],
    )
    layout["margin"] |= {"l": 52}
    return Figure(
        title, lines, layout, ("form", "blocks gone", title), rows, "%" if unit == "share" else text(unit)
    )


def _counted(title: str, record: Record) -> dict[str, Any]:
    """Whole numbers, each where there are few."""
    return new_axis(title, dtick=1) if record["num_blocks"] <= 16 else new_axis(title, nticks=9)


def _line(form: str, points: Sequence[Record], field: str, unit: str) -> dict[str, Any]:
    hover = [
        f"<b>{WORDS[form]}</b><br>{p['blocks_removed']} blocks gone<br>{text(number(p[field], unit))}"
        for p in points
    ]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [p["blocks_removed"] for p in points],
        "y": [p[field] for p in points],
        "text": hover,
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": COLORS[form], "width": 2, "dash": "dot" if form == "drop" else "solid"},
        "marker": {"size": 7, "color": COLORS[form]},
    }


def _steps(record: Record) -> Figure:
    lines, rows, values = [], [], []
    last = max(1, len(record["order"]) - 1)
    for number_, step in enumerate(record["order"]):
        measured = sorted((int(block), value) for block, value in step["measured"].items())
        values += [value for _, value in measured]
        rows += [
            [str(number_ + 1), f"b{b}", f"{v:.4g}", "went" if b == step["block"] else ""] for b, v in measured
        ]
        lines.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [b for b, _ in measured],
                "y": [v for _, v in measured],
                "text": [f"<b>step {number_ + 1}, b{b}</b><br>{v:.4g}" for b, v in measured],
                "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": AFTER, "width": 2},
                "marker": {"size": 6, "color": AFTER},
                "opacity": 1 - 0.75 * number_ / last,
            }
        )
    went = [(step["block"], step["measured"][str(step["block"])]) for step in record["order"]]
    lines.append(marks(went, symbol="circle", size=11, color=ACCENT, line={"width": 2, "color": INK}))
    layout = new_layout(300, xaxis=_counted("block", record), yaxis=value_axis(values, "nats/token"))
    layout["margin"] |= {"l": 52}
    note = "first step darkest; filled: what went"
    return Figure(
        MEASURES[record["by"]].capitalize(), lines, layout, ("step", "block", "measured", ""), rows, note
    )


def _samples(record: Record) -> str:
    """A piece of text at each depth, in the form asked for: a good loss can hide garbage."""
    points = record["series"][0]["points"]
    if not any(point["sample"] for point in points):
        return ""
    rows = [[str(p["blocks_removed"]), f"<q>{text(p['sample'])}</q>"] for p in points]
    said = f"<p>Greedily after <q>{text(record['prompt'])}</q>:</p>"
    return said + table(("blocks gone", "what the model says"), rows)


SECTIONS: tuple[Section, ...] = (depth, order)
