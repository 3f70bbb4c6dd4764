"""Figures of a healed cut: both losses epoch by epoch, and the curves of a depth cut with healed cuts drawn on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from secateur.methods.depth.records import DepthRecord
from secateur.methods.depth.report import WORDS, HealedPoint, curves, forms_key
from secateur.report.chart import (
    ACCENT,
    AFTER,
    BEFORE,
    INK,
    MUTED,
    Figure,
    Trace,
    level,
    line,
    loss_axis,
    marks,
    new_axis,
    new_layout,
)
from secateur.report.frame import FigureGroup, PageSection
from secateur.report.markup import MISSING, key, known, number, table, text
from secateur.training.records.finetune import EpochRecord
from secateur.training.records.heal import HealRecord, HealStageRecord

STAGES = {"layers": "what stands for blocks", "end": "everything"}

# ------------------------------------------------------------------------------------------------------- epoch by epoch


class LossPoint(NamedTuple):
    """Losses after `step` steps, counted over all stages."""

    stage: HealStageRecord
    step: int
    losses: EpochRecord


def epochs_section(record: HealRecord) -> PageSection:
    """Return both losses over the steps of all stages, one after the other; what each stage kept is filled."""
    points = list(_loss_points(record))
    traces: list[Trace] = []
    for name, losses, color, dash in (
        ("learned", [p.losses.train_loss for p in points], BEFORE, "dash"),
        ("select", [p.losses.select_loss for p in points], AFTER, "solid"),
    ):
        for stage in record.stages:
            shown = [
                (p.step, p.losses.epoch, loss)
                for p, loss in zip(points, losses, strict=True)
                if p.stage is stage and known(loss)
            ]
            hover = [
                f"<b>{name}</b>, {stage.stage}, epoch {epoch:g}<br>{loss:.4f}" for _, epoch, loss in shown
            ]
            traces.append(line([(step, loss) for step, _, loss in shown], hover, color, dash))
    kept = [(p.step, p.losses.select_loss) for p in points if p.losses.kept]
    traces.append(marks(kept, symbol="circle", size=12, color=ACCENT, line={"width": 2, "color": INK}))
    rows = [
        [
            p.stage.stage,
            f"{p.losses.epoch:g}",
            str(p.losses.step),
            text(number(p.losses.train_loss, "nats/token")),
            text(number(p.losses.select_loss, "nats/token")),
            "kept" if p.losses.kept else "",
        ]
        for p in points
    ]
    head = ("stage", "epoch", "step", "learned", "select", "")
    figure = Figure("Loss", traces, _epochs_layout(record, points), head, rows, "nats/token")
    legend = key(
        ("line base", "the original, on the validation split"),
        ("line learned", "on what is learned"),
        ("line fold", "on the validation split"),
        ("dot chosen", "kept"),
    )
    stages = "; ".join(f"{stage.stage}: {STAGES[stage.stage]}" for stage in record.stages)
    lead = f"As training saw it, before the first step and after each epoch ({stages})."
    return PageSection("epochs", "Epoch by epoch", lead, (legend, FigureGroup((figure,))))


def _loss_points(record: HealRecord) -> Iterator[LossPoint]:
    start = 0
    for stage in record.stages:
        for row in stage.epochs:
            yield LossPoint(stage, start + row.step, row)
        start += stage.epochs[-1].step


def _epochs_layout(record: HealRecord, points: Sequence[LossPoint]) -> Trace:
    """Return the layout: the original's loss as a level, and a line with its name where each stage begins."""
    original = record.loss_score.teacher.value
    losses = [loss for p in points for loss in (p.losses.train_loss, p.losses.select_loss) if known(loss)]
    starts = [next(p.step for p in points if p.stage is stage) for stage in record.stages]
    rule = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"color": MUTED, "width": 1}}
    label = {
        "y": 1.0,
        "yref": "paper",
        "yanchor": "bottom",
        "xanchor": "left",
        "showarrow": False,
        "font": {"size": 12, "color": MUTED},
    }
    untitled = loss_axis([*losses, original], "") | {"title": {"text": ""}}
    return new_layout(320, {"l": 52, "t": 28}, xaxis=new_axis("steps"), yaxis=untitled) | {
        "shapes": [*({**rule, "x0": x, "x1": x} for x in starts[1:]), level(original)],
        "annotations": [
            {**label, "x": x, "text": stage.stage} for x, stage in zip(starts, record.stages, strict=True)
        ],
    }


# ------------------------------------------------------------------------------------------------------ depth by depth


def depth_section(record: HealRecord, also: Sequence[HealRecord] = ()) -> PageSection:
    """Return the curves of the depth cut with healed cuts on them.

    Empty where the cut is no depth cut, or was judged on another task than it was healed on.
    """
    body: tuple[str | FigureGroup, ...] = ()
    if record.depth:
        depths = [healed.depth for healed in (record, *also) if healed.depth]
        depth = max(depths, key=lambda depth: len(depth.order))  # the deepest
        points = list(_healed_points(depth.metric, (record, *also)))
        forms = dict.fromkeys(point.form for point in points)
        legend = key(*((f"line healed {form}", f"{WORDS[form]}, healed") for form in forms))
        figures = FigureGroup(tuple(curves(depth, points)), layout="pair")
        body = (forms_key(depth), legend, figures, _depth_table(depth, points)) if points else ()
    lead = (
        "The cut's own curves on the validation split, with what became of it by healing. More healed cuts of the "
        "same original: <code>secateur report OUT --also FOLDER</code>."
    )
    return PageSection("depth", "Without whole blocks, healed", lead, body)


def check_depth(depth: DepthRecord) -> None:
    """Draw what will be drawn of a cut's own curves, to no page. Raises: what drawing broken records raises."""
    curves(depth)
    forms_key(depth)
    _depth_table(depth, ())


def _healed_points(metric: str, records: Sequence[HealRecord]) -> Iterator[HealedPoint]:
    """Yield the point of every healed cut that has one form for all its blocks, and this metric."""
    for record in records:
        value = next((row.healed.value for row in record.scores if row.metric == metric), None)
        if record.gone.form is not None and value is not None:
            loss = record.loss_score.healed.value
            yield HealedPoint(record.gone.form, tuple(record.gone.blocks), value, loss, record.tokens)


def _depth_table(depth: DepthRecord, points: Sequence[HealedPoint]) -> str:
    """Return a table of the depths that were healed: each form unhealed, and healed."""

    def shown(value: float | None) -> str:
        if value is None:
            return MISSING
        if depth.metric == "text_loss":
            return text(number(math.exp(value), "perplexity"))
        return text(number(value, depth.metric_unit))

    unhealed = [
        {point.blocks_removed: point.value for point in reversed(series.points)} for series in depth.series
    ]
    rows = [
        [
            str(len(point.blocks)),
            text(", ".join(f"b{block}" for block in point.blocks)),
            *(shown(values.get(len(point.blocks))) for values in unhealed),
            f"<b>{shown(point.value)}</b>, {WORDS[point.form]}",
            f"{point.tokens:,}",
        ]
        for point in sorted(points, key=lambda point: (len(point.blocks), point.form))
    ]
    head = ("gone", "which", *(WORDS[series.form] for series in depth.series), "healed", "tokens read")
    note = "perplexity" if depth.metric == "text_loss" else "on the validation split"
    return f'<p class="note">{note}:</p>' + table(head, rows, source="heal.json")
