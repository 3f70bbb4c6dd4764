"""The section about training: both losses epoch by epoch, over all stages of a healing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secateur.report.chart import (
    ACCENT,
    AFTER,
    BEFORE,
    INK,
    MUTED,
    Figure,
    level,
    line,
    loss_axis,
    marks,
    new_axis,
    new_layout,
)
from secateur.report.frame import Figures, place, section
from secateur.report.markup import key, known, number, text

Record = Mapping[str, Any]
STAGES = {"layers": "what stands for blocks", "end": "everything"}
LINES = {"learned": ("train_loss", BEFORE, "dash"), "select": ("select_loss", AFTER, "solid")}


def kept_loss(stage: Record) -> float:
    """The loss on select of the weights that a stage ended with."""
    return next(row["select_loss"] for row in stage["epochs"] if row["kept"])


def epochs(record: Record, figures: Figures) -> str:
    """Both losses over the steps of all stages, one after the other; what each stage kept, filled."""
    points = list(_points(record))
    data, rows = [], []
    for name, field, color, dash in (
        ("learned", "train_loss", BEFORE, "dash"),
        ("select", "select_loss", AFTER, "solid"),
    ):
        for stage in record["stages"]:
            own = [(x, row) for s, x, row in points if s is stage and known(row[field])]
            hover = [
                f"<b>{name}</b>, {stage['stage']}, epoch {row['epoch']:g}<br>{row[field]:.4f}"
                for _, row in own
            ]
            data.append(line([(x, row[field]) for x, row in own], hover, color, dash))
    kept = [(x, row["select_loss"]) for _, x, row in points if row["kept"]]
    data.append(marks(kept, symbol="circle", size=12, color=ACCENT, line={"width": 2, "color": INK}))
    for stage, _, row in points:
        cells = (stage["stage"], f"{row['epoch']:g}", str(row["step"]))
        losses = (number(row[field], "nats/token") for field in ("train_loss", "select_loss"))
        rows.append([*cells, *map(text, losses), "kept" if row["kept"] else ""])
    head = ("stage", "epoch", "step", "learned", "select", "")
    figure = Figure("Loss", data, _layout(record, points), head, rows, "nats/token")
    legend = key(
        ("line base", "the original, on select"),
        ("line learned", "on what is learned"),
        ("line fold", "on select"),
        ("dot chosen", "kept"),
    )
    stages = "; ".join(f"{stage['stage']}: {STAGES[stage['stage']]}" for stage in record["stages"])
    lead = f"As training saw it, before the first step and after each epoch ({stages})."
    return section("epochs", "Epoch by epoch", lead, legend, place("epochs", [figure], figures))


def _points(record: Record) -> Iterator[tuple[Record, int, Record]]:
    """Stage, step counted over all stages, and row."""
    start = 0
    for stage in record["stages"]:
        for row in stage["epochs"]:
            yield stage, start + row["step"], row
        start += stage["epochs"][-1]["step"]


def _layout(record: Record, points: Sequence[tuple[Record, int, Record]]) -> dict[str, Any]:
    teacher = next(row for row in record["scores"] if row["metric"] in ("loss", "text_loss"))["teacher"][
        "value"
    ]
    losses = [
        row[field] for _, _, row in points for field in ("train_loss", "select_loss") if known(row[field])
    ]
    starts = [next(x for s, x, _ in points if s is stage) for stage in record["stages"]]
    between = [
        {
            "type": "line",
            "x0": x,
            "x1": x,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": MUTED, "width": 1},
        }
        for x in starts[1:]
    ]
    said = [
        {
            "x": x,
            "y": 1.0,
            "yref": "paper",
            "yanchor": "bottom",
            "xanchor": "left",
            "showarrow": False,
            "text": stage["stage"],
            "font": {"size": 12, "color": MUTED},
        }
        for x, stage in zip(starts, record["stages"], strict=True)
    ]
    layout = new_layout(320, xaxis=new_axis("steps"), yaxis=loss_axis([*losses, teacher], ""))
    layout["yaxis"]["title"] = {"text": ""}
    return layout | {
        "shapes": [*between, level(teacher)],
        "annotations": said,
        "margin": {"l": 52, "r": 14, "t": 28, "b": 44},
    }
