"""The section about the order in which blocks go: what each measured, and what other measures would have chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from secateur.report.chart import ACCENT, AFTER, INK, Figure, counted_layout, line, marks
from secateur.report.frame import Figures, Record, place, section
from secateur.report.markup import capital, key, known, metric_name, number, text

MEASURES = {
    "loss": "loss on probe without it, nats/token",
    "linearity": "1 − linearity, without outlier tokens",
    "cosine": "1 − cosine",
}
ORDERS = {"loss": (AFTER, "solid"), "linearity": (ACCENT, "dash"), "cosine": ("#7a6a1d", "dashdot")}


def order(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """What every block measured when each choice was made, and what other measures would have chosen."""
    record = analysis.get("depth")
    if not record or not record["order"]:
        return ""
    others = record.get("other_orders") or ()
    found = [_steps(record)]
    if any(len(other["points"]) > 2 for other in others):  # the original and one more are no curve
        found.append(_orders(record, others))
    return section(
        "order",
        "Which block goes next",
        f"What each block that was left measured at each step ({MEASURES[record['by']]}); the lowest went.",
        _orders_words(record, others),
        place("order", found, figures, layout="pair"),
    )


def _steps(record: Record) -> Figure:
    lines, rows, values = [], [], []
    last = max(1, len(record["order"]) - 1)
    for number_, step in enumerate(record["order"]):
        measured = sorted((int(block), value) for block, value in step["measured"].items())
        values += [value for _, value in measured]
        rows += [
            [str(number_ + 1), f"b{b}", f"{v:.4g}", "went" if b == step["block"] else ""] for b, v in measured
        ]
        hover = [f"<b>step {number_ + 1}, b{b}</b><br>{v:.4g}" for b, v in measured]
        lines.append(line(measured, hover, AFTER, "solid") | {"opacity": 1 - 0.75 * number_ / last})
    went = [(step["block"], step["measured"][str(step["block"])]) for step in record["order"]]
    lines.append(marks(went, symbol="circle", size=11, color=ACCENT, line={"width": 2, "color": INK}))
    layout = counted_layout(record["num_blocks"], "block", values, "nats/token")
    note = "first step darkest; filled: what went"
    head = ("step", "block", "measured", "")
    return Figure(capital(MEASURES[record["by"]]), lines, layout, head, rows, note)


def _as_orders(record: Record, others: Sequence[Record]) -> Iterator[tuple[str, list[int], Sequence[Record]]]:
    """Measure, blocks and points of the order asked for, as deep as the others go, and of those."""
    most = max((len(other["points"]) for other in others), default=0)
    went = [step["block"] for step in record["order"]][: max(0, most - 1)]
    yield record["by"], went, record["series"][0]["points"][:most]
    for other in others:
        yield other["by"], other["blocks"], other["points"]


def _orders(record: Record, others: Sequence[Record]) -> Figure:
    lines, rows, values, unit = [], [], [], record["metric_unit"]
    for by, blocks, points in _as_orders(record, others):
        at = [(p["blocks_removed"], p["value"]) for p in points if known(p["value"])]
        values += [y for _, y in at]
        gone = [", ".join(f"b{b}" for b in blocks[:x]) for x, _ in at]
        hover = [
            f"<b>by {by}</b><br>{x} blocks gone: {said or 'none'}<br>{text(number(y, unit))}"
            for (x, y), said in zip(at, gone, strict=True)
        ]
        rows += [[by, str(x), said, text(number(y, unit))] for (x, y), said in zip(at, gone, strict=True)]
        lines.append(line(at, hover, *ORDERS[by]))
    title = f"{metric_name(record['metric'])} by each order"
    head = ("by", "blocks gone", "which", "on select")
    note = "%" if unit == "share" else unit
    return Figure(
        title, lines, counted_layout(record["num_blocks"], "blocks gone", values, unit), head, rows, note
    )


def _orders_words(record: Record, others: Sequence[Record]) -> str:
    """Every order in words, and what it costs where it ends; the colors of the figure are its legend."""
    if not any(other["blocks"] for other in others):
        return ""
    items = []
    for by, blocks, points in _as_orders(record, others):
        value = number(points[-1]["value"], record["metric_unit"])
        items.append((f"line by {by}", f"by {by}: {', '.join(f'b{b}' for b in blocks)} → {text(value)}"))
    return key(*items)
