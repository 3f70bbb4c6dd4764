"""The section of the page about the budget: loss against size, and what went in each move. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from secateur.core.records.verdict import VerdictRecord
from secateur.core.score import metric_name
from secateur.core.site import in_words
from secateur.methods.budget.records import (
    KIND_NAMES,
    MOVE_NAMES,
    BudgetAnalysis,
    BudgetPoint,
    BudgetRecord,
    MoveRecord,
)
from secateur.report.chart import (
    ACCENT,
    AFTER,
    INK,
    Figure,
    level,
    line,
    marks,
    new_axis,
    new_layout,
    value_axis,
)
from secateur.report.frame import FigureGroup, PageSection, worst_allowed
from secateur.report.markup import known, number, signed, table, text

MOST_EDITS = 4  # of a move that are named
_NEURONS = re.compile(r"without neurons? \d+(, \d+)*")


def sections(verdict: VerdictRecord, analysis: BudgetAnalysis) -> list[PageSection]:
    """Return the front, and the moves to the chosen point."""
    record = analysis.budget
    if record is None:
        return []
    n = analysis.base.n if analysis.base else 0
    lead = (
        f"Edits of all kinds competed for one budget. Each point is a plan, drawn on the {n} examples of the "
        "validation split that the search chose by, so the curve flatters itself; the verdict is about the filled "
        "point alone, on the test split."
    )
    body = (FigureGroup((front_figure(verdict, record),)), _time(record), _kinds(record), _moves(record))
    return [PageSection("budget", "How much goes for how little", lead, body)]


def front_figure(verdict: VerdictRecord, record: BudgetRecord) -> Figure:
    """Return the metric against what is kept of the first thing that is counted."""
    axis_name, kept = _counted(record)
    unit, bound = (
        verdict.unit,
        worst_allowed(record.points[0].value, record.max_loss, higher_is_better=verdict.higher_is_better),
    )
    shown = [point for point in record.points if known(point.value)]
    at = [(kept(point), point.value) for point in shown]
    hover = [
        f"<b>{x:.1%}</b><br>{text(number(y, unit))}<br>{text(p.edits[:300])}"
        for (x, y), p in zip(at, shown, strict=True)
    ]
    chosen = record.points[record.chosen]
    traces = [line(at, hover, AFTER, "solid")]
    filled = (kept(chosen), chosen.value)
    traces.append(marks([filled], symbol="circle", size=12, color=ACCENT, line={"width": 2, "color": INK}))
    values = [y for _, y in at] + ([] if bound is None else [bound])
    axis = new_axis(axis_name, tickformat=".0%", autorange="reversed")
    more = {} if bound is None else {"shapes": [level(bound)]}
    layout = new_layout(320, {"l": 52}, xaxis=axis, yaxis=value_axis(values, unit), **more)
    rows = [
        [
            f"{p.parameters:.1%}",
            f"{p.kv_bytes:.1%}",
            *([] if p.latency is None else [f"{p.latency:.1%}"]),
            text(number(p.value, unit)),
            text(number(p.loss, "nats")),
            signed(p.predicted),
        ]
        for p in record.points
    ]
    timed = () if record.latency is None else ("time, predicted",)
    head = ("parameters", "KV cache", *timed, metric_name(verdict.metric), "loss", "predicted rise")
    return Figure(
        f"{metric_name(verdict.metric)} on the validation split",
        traces,
        layout,
        head,
        rows,
        "filled: what was verified",
    )


def _counted(record: BudgetRecord) -> tuple[str, Callable[[BudgetPoint], float]]:
    """Return the name of what the front is drawn against, the first thing that was to be met, and a point's share."""
    if record.latency is not None:
        return "time kept, predicted", lambda point: 1.0 if point.latency is None else point.latency
    if list(record.targets) == ["kv_bytes"]:
        return "KV cache kept", lambda point: point.kv_bytes
    return "parameters kept", lambda point: point.parameters


def _time(record: BudgetRecord) -> str:
    """Return what a generation takes with the plan that was taken, by the table and as it was measured."""
    took = record.latency
    if took is None:
        return ""
    parts = took.table
    return (
        f"<p>Time of a prompt of {took.prompt} tokens and {took.new} tokens after it: predicted "
        f"{took.predicted:.1%} of the original's, measured {took.measured:.1%} on the whole model. A block takes "
        f"{parts.block:.1%} of it here, an attention {parts.attention:.1%} and a feed-forward network "
        f"{parts.network:.1%}; what parts save was added up.</p>"
    )


def _kinds(record: BudgetRecord) -> str:
    """Return how much of each kind went."""
    counts: Counter[str] = Counter()
    for move in record.moves:
        counts.update(move.by_kind)
    rows = [(text(name), str(counts[kind])) for kind, name in KIND_NAMES.items() if counts[kind]]
    return table(("kind", "taken"), rows) if rows else "<p>Nothing could go within the bound.</p>"


def _moves(record: BudgetRecord) -> str:
    """Return every move with what it was predicted to cost, and what it cost."""
    rows = [
        (
            str(n),
            text(MOVE_NAMES[move.kind]),
            text(_what_went(move)),
            signed(move.predicted),
            signed(move.measured),
        )
        for n, move in enumerate(record.moves, start=1)
    ]
    if not rows:
        return ""
    given = (
        f" In the end {record.swaps} of them came in for others that were given back." if record.swaps else ""
    )
    told = (
        "<p>Rises of the loss in nats, predicted on the calibration split and measured on "
        f"{record.measured_on} examples of the validation split.{given} analysis.json has every edit.</p>"
    )
    return told + table(("move", "by", "what went", "predicted", "measured"), rows)


def _what_went(move: MoveRecord) -> str:
    """Return the first edits of a move in words, neurons by their number, and how many more there are."""
    first = [
        in_words(_NEURONS.sub(lambda found: f"without {found[0].count(',') + 1} neurons", edit))
        for edit in move.edits[:MOST_EDITS]
    ]
    more = len(move.edits) - len(first)
    return "; ".join(first) + (f"; and {more} more" if more else "")
