"""The section about several tasks that were searched together: each by itself, on all of its own test split."""

from __future__ import annotations

from collections.abc import Iterator

from secateur.report import interval_plot as forest
from secateur.report import tables
from secateur.report.frame import Figures, Record, section
from secateur.report.markup import key, metric_name

_TITLES = {"share": "Share of questions", "nats/token": "Loss"}


def members(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """A row a task in the metric that decides, and in accuracy where that is another; nothing for one task alone."""
    rows = [forest.dumbbell(row, name, note) for name, note, row in _measured(verdict)]
    items = [{"name": name} | row for name, _, row in _measured(verdict)]
    folded = f'<details class="numbers"><summary>numbers</summary>{tables.measures(items, "name")}</details>'
    legend = key(("dot before", "original"), ("dot after", "cut"), ("bar95", "95&nbsp;% interval"))
    lead = (
        "What decides is the mean over equally many examples of each task; here each is measured on all of its own "
        "test examples, p corrected for their number."
    )
    body = forest.panels(rows, _TITLES)
    return section("tasks", "Task by task", lead, *([legend, body, folded] if rows else []))


def _measured(verdict: Record) -> Iterator[tuple[str, str, Record]]:
    for row in verdict.get("tasks") or ():
        size = f"n = {row['n']:,}"
        yield row["name"], f"{metric_name(row['metric'])}, {size}", row
        for other in row["secondary"]:
            if other["metric"] == "accuracy":
                yield row["name"], f"accuracy, {size}, p not corrected", other
