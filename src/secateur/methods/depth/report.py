"""Sections of a depth cut: every form at every depth, where a map loses to dropping, samples, and the order of blocks.

The curves are drawn with healed cuts on the page of `heal`, too. Knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from secateur.core.records.analysis import AnalysisRecord
from secateur.core.records.verdict import FellBackRecord, IntervalRecord, VerdictRecord
from secateur.core.score import metric_name
from secateur.core.site import CROSS_MATRICES, block_at
from secateur.methods.depth.records import (
    DepthAnalysis,
    DepthPointRecord,
    DepthRecord,
    OtherOrderPoint,
    run_name,
)
from secateur.methods.method import own_part
from secateur.report.chart import (
    ACCENT,
    AFTER,
    ALT,
    BEFORE,
    BROWN,
    INK,
    LINEAR,
    TAN,
    Figure,
    Trace,
    counted_layout,
    level,
    line,
    marks,
)
from secateur.report.cuts import LookedAt
from secateur.report.frame import FigureGroup, PageSection, worst_allowed
from secateur.report.markup import capital, change, interval, key, known, number, table, text

COLORS = {"fold": AFTER, "linear": LINEAR, "drop": BEFORE}
HEALED = {"fold": BROWN, "linear": ACCENT, "drop": TAN}
WORDS = {
    "fold": "folded into the network before",
    "linear": "a linear map in their place",
    "drop": "dropped",
}
MEASURES = {
    "loss": "loss on probe without it, nats/token",
    "linearity": "1 − linearity, without outlier tokens",
    "cosine": "1 − cosine",
}
ORDERS = {"loss": (AFTER, "solid"), "linearity": (ACCENT, "dash"), "cosine": (ALT, "dashdot")}


@dataclass(frozen=True)
class HealedPoint:
    """A healed cut on the curves over depth.

    Args:
        form: What replaces all of its removed blocks.
        blocks: The removed blocks.
        value: The metric of the curves, on select.
        loss: The loss on select, nats per token.
        tokens: Tokens that were read in training.
    """

    form: str
    blocks: tuple[int, ...]
    value: float
    loss: float
    tokens: int

    @property
    def blocks_removed(self) -> int:
        """Return how many blocks are gone."""
        return len(self.blocks)


CurvePoint = DepthPointRecord | HealedPoint


class Quantity(NamedTuple):
    """A number that every point of a curve has, or does not have."""

    title: str
    unit: str
    read: Callable[[CurvePoint], float | None]
    bound: float | None = None


def sections(verdict: VerdictRecord, analysis: AnalysisRecord) -> list[PageSection]:
    """Return every form at every depth, and the order in which blocks went."""
    depth = own_part(analysis, DepthAnalysis).depth
    return [depth_section(depth), order_section(depth)] if depth else []


def looked_at(verdict: VerdictRecord, analysis: AnalysisRecord) -> LookedAt:
    """Return the matrices of all blocks that were measured, for the map of the model."""
    depth = own_part(analysis, DepthAnalysis).depth
    blocks = {int(block) for step in (depth.order if depth else ()) for block in step.measured}
    wholes = [block_at(block, verdict.model.encoder_blocks) for block in blocks]
    kinds = verdict.model.matrices
    return LookedAt(
        frozenset(
            whole.beside(kind)
            for whole in wholes
            for kind in kinds
            if whole.stack != "enc" or kind not in CROSS_MATRICES
        )
    )


# ------------------------------------------------------------------------------------------------------------ the forms


def depth_section(record: DepthRecord) -> PageSection:
    """Return the metric at every depth, the loss beside it where that is not the metric, side tasks and samples."""
    sides = [
        curve(record, Quantity(f"{capital(name)}, on the side", unit, side_value(name)))
        for name, unit in record.side_units.items()
    ]
    count, blocks = record.series[0].points[record.chosen].blocks_removed, record.num_blocks
    chosen = "no block may go within the bound."
    if count:
        chosen = f"{count} of {blocks} blocks gone, {WORDS[record.form]}."
    body = (
        f"<p>Chosen: {chosen} {replacing(record)}</p>",
        fit_words(record),
        forms_key(record),
        FigureGroup((*curves(record), *sides), "pair"),
        samples(record),
    )
    lead = "The same blocks gone in the same order, by what stands for them; judged on the validation split."
    return PageSection("depth", "Without whole blocks", lead, body)


def side_value(name: str) -> Callable[[CurvePoint], float | None]:
    """Return a function that reads the metric of a side task at a point; healed cuts have none."""
    return lambda point: point.sides.get(name) if isinstance(point, DepthPointRecord) else None


def curves(record: DepthRecord, healed: Sequence[HealedPoint] = ()) -> list[Figure]:
    """Return the metric over depth; beside it the loss, or where the metric is the loss of text the perplexity.

    Args:
        healed: Healed cuts, drawn as curves of their own in place of the chosen depth.
    """
    bound = _bound(record)
    metric = Quantity(metric_name(record.metric), record.metric_unit, lambda point: point.value, bound)
    quantities = [metric]
    if record.metric == "text_loss":
        limit = None if bound is None else math.exp(bound)
        quantities.append(
            Quantity(
                "Perplexity",
                "perplexity",
                lambda point: math.exp(point.value) if known(point.value) else None,
                limit,
            )
        )
    elif record.metric != "loss":
        quantities.append(Quantity("Loss", "nats/token", lambda point: point.loss))
    return [curve(record, quantity, healed) for quantity in quantities]


def curve(record: DepthRecord, quantity: Quantity, healed: Sequence[HealedPoint] = ()) -> Figure:
    """Return a quantity over the number of blocks gone, a line for each form; the chosen depth is filled."""
    unit, limit = quantity.unit, quantity.bound
    values = [limit] if limit is not None else []
    lines, rows = [], []
    for words, style, series in curve_lines(record, healed):
        points = [(point.blocks_removed, y) for point in series if known(y := quantity.read(point))]
        values += [y for _, y in points]
        rows += [[words, str(x), text(number(y, unit))] for x, y in points]
        hover = [f"<b>{words}</b><br>{x} blocks gone<br>{text(number(y, unit))}" for x, y in points]
        lines.append(line(points, hover, *style))
    best = record.series[0].points[record.chosen]
    if known(value := quantity.read(best)) and not healed:
        at = [(best.blocks_removed, value)]
        lines.append(marks(at, symbol="circle", size=12, color=ACCENT, line={"width": 2, "color": INK}))
    layout = counted_layout(record.num_blocks, "blocks gone", values, unit)
    layout["shapes"] = [level(limit)] if limit is not None else []
    note = {"share": "%", "perplexity": "exp(loss)"}.get(unit, unit)
    return Figure(quantity.title, lines, layout, ("form", "blocks gone", quantity.title), rows, note)


def curve_lines(
    record: DepthRecord, healed: Sequence[HealedPoint]
) -> Iterator[tuple[str, tuple[str, str], Sequence[CurvePoint]]]:
    """Yield words, color with dash, and points of every form, then of every form that was healed.

    A healed curve begins at the original, which has no removed block that could be healed.
    """
    dashes = {"drop": "dot"}
    for series in record.series:
        yield WORDS[series.form], (COLORS[series.form], dashes.get(series.form, "solid")), series.points
    original = record.series[0].points[0]
    for form in dict.fromkeys(point.form for point in healed):
        points = sorted((p for p in healed if p.form == form), key=lambda p: p.blocks_removed)
        yield f"{WORDS[form]}, healed", (HEALED[form], dashes.get(form, "solid")), [original, *points]


def forms_key(record: DepthRecord) -> str:
    """Return the legend of the curves."""
    bound = [("line base", "bound")] if _bound(record) is not None else []
    return key(*((f"line {series.form}", WORDS[series.form]) for series in record.series), *bound)


def _bound(record: DepthRecord) -> float | None:
    start = record.series[0].points[0].value
    return worst_allowed(start, record.max_loss, higher_is_better=record.higher_is_better)


def fit_words(record: DepthRecord) -> str:
    """Return how many tokens maps were fitted to, and the runs that are dropped because a map does no better."""
    if record.fit_tokens is None or record.d_model is None:
        return ""  # a record of an earlier day
    if all(series.form == "drop" for series in record.series):
        return ""
    tokens, d = record.fit_tokens, record.d_model
    read = f"{tokens:,} tokens of the calibration split, {tokens / d:.1f} for each of {d:,} dimensions"
    words = f"<p>Maps were fitted to {read}.</p>"
    items = [
        f"<li>{point.blocks_removed} gone, {WORDS[series.form]}: {', '.join(map(_run, point.fell_back))}</li>"
        for series in record.series
        for point in series.points
        if point.fell_back
    ]
    if not items:
        return words
    return (
        f"{words}<p>Dropped instead, because on the validation split, which no map was fitted to, the map does no "
        "better:</p>"
        f"<ul>{''.join(items)}</ul>"
    )


def _run(run: FellBackRecord) -> str:
    with_map, without_map = number(run.fitted, "nats"), number(run.dropped, "nats")
    return f"{run_name(run.blocks)} ({with_map} nats with the map, {without_map} without)"


def replacing(record: DepthRecord) -> str:
    """Return where maps do worse than dropping the same blocks: for each form all such depths, and the worst."""
    losing: dict[str, list[tuple[int, IntervalRecord]]] = {}
    for series in record.series:
        for point in series.points:
            if point.over_drop and known(point.over_drop.value):
                worse = losing.setdefault(series.form, [])
                if _loss(record, point.over_drop) > 0:
                    worse.append((point.blocks_removed, point.over_drop))
    if not losing:
        return ""
    sentences = [losing_words(record, form, worse) for form, worse in losing.items() if worse]
    return " ".join(sentences) or "Replacing does no worse than dropping at any depth."


def _loss(record: DepthRecord, over_drop: IntervalRecord) -> float:
    """Return how much worse a map is than a drop of the same blocks."""
    return -over_drop.value if record.higher_is_better else over_drop.value


def losing_words(record: DepthRecord, form: str, worse: Sequence[tuple[int, IntervalRecord]]) -> str:
    """Return in words at which depths a form does worse than dropping, and by how much at the worst."""
    depth, gap = max(worse, key=lambda item: _loss(record, item[1]))
    unit = record.metric_unit
    sure = " (not beyond chance)" if gap.ci and gap.ci[0] <= 0 <= gap.ci[1] else ""
    depths = ", ".join(str(removed) for removed, _ in worse)
    where = f"with {depths} blocks gone" if depths != "1" else "with 1 block gone"
    at = f"at {depth} " if len(worse) > 1 else ""
    ends = f" [{interval(gap.ci, unit, signed=True)}]" if gap.ci else ""
    what = "Folding them loses" if form == "fold" else "A linear map loses"
    size = text(f"{change(gap.value, unit)}{ends}")
    metric = text(metric_name(record.metric).lower())
    return f"<b>{what} to dropping</b> {where}: {at}{metric} {size} against the drop{sure}."


def samples(record: DepthRecord) -> str:
    """Return a piece of text at each depth in each form, beside the loss: a good loss can hide garbage."""
    if not any(point.sample for series in record.series for point in series.points):
        return ""
    is_text = record.metric == "text_loss"
    forms = [("the original", record.series[0].points[0])]
    for depth in range(1, max(len(series.points) for series in record.series)):
        forms += [
            (WORDS[series.form], series.points[depth])
            for series in record.series
            if depth < len(series.points)
        ]
    rows = []
    for words, point in forms:
        value = number(point.value, record.metric_unit)
        if is_text and known(point.value):
            value = number(math.exp(point.value), "perplexity")
        rows.append([str(point.blocks_removed), words, text(value), f"<q>{text(point.sample)}</q>"])
    head = (
        "gone",
        "in their place",
        "perplexity" if is_text else "on the validation split",
        "what the model says",
    )
    return f'<p>Greedily after <q>{text(record.prompt)}</q>:</p><div class="texts">{table(head, rows)}</div>'


# ------------------------------------------------------------------------------------------------------------ the order


def order_section(record: DepthRecord) -> PageSection:
    """Return what every block measured when each choice was made, and what other measures would have chosen."""
    lead = f"What each block that was left measured at each step ({MEASURES[record.by]}); the lowest went."
    title = "Which block goes next"
    if not record.order:
        return PageSection("order", title, lead, ())
    figures = [steps_figure(record)]
    if any(len(order.points) > 2 for order in record.other_orders):  # the original and one more are no curve
        figures.append(orders_figure(record))
    words = ""
    if any(order.blocks for order in record.other_orders):
        words = key(
            *(
                (
                    f"line by {by}",
                    f"by {by}: {', '.join(str(block_at(b, record.encoder_blocks)) for b in blocks)} → "
                    f"{text(number(points[-1].value, record.metric_unit))}",
                )
                for by, blocks, points in all_orders(record)
            )
        )
    return PageSection("order", title, lead, (words, FigureGroup(tuple(figures), "pair")))


def steps_figure(record: DepthRecord) -> Figure:
    """Return what every block measured at each step, a line for each."""

    def named(block: int) -> str:
        return str(block_at(block, record.encoder_blocks))

    lines: list[Trace] = []
    rows, values = [], []
    last = max(1, len(record.order) - 1)
    for number_, step in enumerate(record.order):
        measured = sorted((int(block), value) for block, value in step.measured.items())
        values += [value for _, value in measured]
        rows += [
            [str(number_ + 1), named(b), f"{v:.4g}", "went" if b == step.block else ""] for b, v in measured
        ]
        hover = [f"<b>step {number_ + 1}, {named(b)}</b><br>{v:.4g}" for b, v in measured]
        lines.append(line(measured, hover, AFTER, "solid") | {"opacity": 1 - 0.75 * number_ / last})
    went = [(step.block, step.measured[str(step.block)]) for step in record.order]
    lines.append(marks(went, symbol="circle", size=11, color=ACCENT, line={"width": 2, "color": INK}))
    layout = counted_layout(record.num_blocks, "block", values, "nats/token")
    note = "first step darkest; filled: what went"
    head = ("step", "block", "measured", "")
    return Figure(capital(MEASURES[record.by]), lines, layout, head, rows, note)


def all_orders(
    record: DepthRecord,
) -> Iterator[tuple[str, Sequence[int], Sequence[DepthPointRecord | OtherOrderPoint]]]:
    """Yield measure, blocks and points of the order that was asked for, as deep as the others go, and of the others."""
    most = max((len(order.points) for order in record.other_orders), default=0)
    went = [step.block for step in record.order][: max(0, most - 1)]
    yield record.by, went, record.series[0].points[:most]
    for order in record.other_orders:
        yield order.by, order.blocks, order.points


def orders_figure(record: DepthRecord) -> Figure:
    """Return the metric over depth in every order, a line for each."""
    lines, rows, values, unit = [], [], [], record.metric_unit
    for by, blocks, points in all_orders(record):
        at = [(point.blocks_removed, point.value) for point in points if known(point.value)]
        values += [y for _, y in at]
        gone = [", ".join(str(block_at(b, record.encoder_blocks)) for b in blocks[:x]) for x, _ in at]
        hover = [
            f"<b>by {by}</b><br>{x} blocks gone: {names or 'none'}<br>{text(number(y, unit))}"
            for (x, y), names in zip(at, gone, strict=True)
        ]
        rows += [[by, str(x), names, text(number(y, unit))] for (x, y), names in zip(at, gone, strict=True)]
        lines.append(line(at, hover, *ORDERS[by]))
    layout = counted_layout(record.num_blocks, "blocks gone", values, unit)
    head = ("by", "blocks gone", "which", "on the validation split")
    title = f"{metric_name(record.metric)} by each order"
    return Figure(title, lines, layout, head, rows, "%" if unit == "share" else unit)
