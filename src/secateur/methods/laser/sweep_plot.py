"""The sweep as heat maps: block against kept fraction, one for each kind of matrix. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from secateur.core.records.analysis import BaseRecord
from secateur.core.site import in_order
from secateur.methods.laser.records import CurveRecord, SweptTruncation, TruncationRecord
from secateur.report.chart import (
    DIVERGING,
    EDGE,
    INK,
    Figure,
    Trace,
    cell_height,
    marks,
    new_axis,
    new_layout,
    some,
)
from secateur.report.markup import known, number, text

OfMatrix = TypeVar("OfMatrix", TruncationRecord, SweptTruncation, CurveRecord)
Score = SweptTruncation | BaseRecord


def by_matrix(rows: Iterable[OfMatrix]) -> dict[str, list[OfMatrix]]:
    """Return rows by the kind of their matrix, in the model's order; unknown kinds come last."""
    groups: dict[str, list[OfMatrix]] = {}
    for row in rows:
        groups.setdefault(row.matrix, []).append(row)
    return {name: groups[name] for name in in_order(groups)}


def metric_of(score: Score, metric: str) -> float | None:
    """Return the accuracy or the loss; None where it was not measured."""
    value = score.accuracy if metric == "accuracy" else score.loss
    return value if known(value) else None


def improvement(score: Score, base: BaseRecord, metric: str) -> float | None:
    """Return the change against the original, positive where better; None where it was not measured."""
    value, before = metric_of(score, metric), metric_of(base, metric)
    if value is None or before is None:
        return None
    return value - before if metric == "accuracy" else before - value


def color_limit(changes: Sequence[float]) -> float:
    """Return how far from the original the color scale reaches, in the metric's unit.

    The largest gain or the median loss, whichever is larger: a matrix that breaks the model when it is zeroed
    must not bleach the differences that a reader came for. Worse cells saturate; the legend says "or worse".
    """
    gains, losses = [d for d in changes if d > 0], [-d for d in changes if d < 0]
    limit = max(max(gains, default=0.0), float(np.median(losses)) if losses else 0.0)
    return limit or max((abs(d) for d in changes), default=0.0) or 1e-9


@dataclass(frozen=True)
class _Layout:
    """The place of a truncation in a heat map: column by kept fraction, line by block, of those with a judged cut."""

    columns: tuple[float, ...]
    blocks: tuple[int, ...]

    def at(self, row: TruncationRecord) -> tuple[int, int]:
        """Return column and line of a truncation."""
        return self.columns.index(round(row.kept, 9)), self.blocks.index(row.block)


def sweep_maps(
    rows: Sequence[SweptTruncation],
    base: BaseRecord,
    limits: Mapping[str, float],
    chosen: set[tuple[str, int]],
    candidates: Sequence[TruncationRecord] = (),
) -> list[Figure]:
    """Return a heat map for each kind of matrix, colored by the change against the original.

    Args:
        limits: By metric, how far its color scale reaches; the first metric is visible.
        chosen: Matrix and rank of the cuts that were taken.
        candidates: All that were proposed: their fractions are columns even where none of them was run.
    """
    columns = {
        name: tuple(sorted({round(row.kept, 9) for row in group}))
        for name, group in by_matrix([*rows, *candidates]).items()
    }
    maps = []
    for name, group in by_matrix(rows).items():
        layout = _Layout(columns[name], tuple(sorted({row.block for row in group})))
        maps.append(_heat_map(name, group, base, limits, layout, chosen))
    return maps


def _heat_map(
    name: str,
    rows: list[SweptTruncation],
    base: BaseRecord,
    limits: Mapping[str, float],
    layout: _Layout,
    chosen: set[tuple[str, int]],
) -> Figure:
    count, blocks, first = len(layout.columns), len(layout.blocks), next(iter(limits))
    every, judged = rows, _shown(rows, layout, chosen)
    rows = list(judged.values())
    cells = [
        _cells(rows, base, metric, limit, complete, layout) | {"visible": metric == first}
        for metric, limit in limits.items()
        for complete in (True, False)
    ]
    missing = [
        place for place in ((x, y) for x in range(count) for y in range(blocks)) if place not in judged
    ]
    untried = marks(missing, symbol="circle", size=2.5, color=EDGE)
    dropped = [layout.at(row) for row in rows if not row.complete]
    hatch = marks(dropped, symbol="line-ne-open", size=9, color="rgba(43,47,54,0.5)", line={"width": 1})
    shown = some(count, 12)
    labels = {"tickvals": shown, "ticktext": [_percent(layout.columns[i]) for i in shown]}
    lines = some(blocks, 16)
    layers = {"tickvals": lines, "ticktext": [str(layout.blocks[i]) for i in lines]}
    plain = {"showgrid": False, "showline": False, "tickangle": 0, "ticks": ""}
    frame = {"line": {"color": INK, "width": 2.5}, "fillcolor": "rgba(0,0,0,0)"}
    sheet = new_layout(
        int(62 + cell_height(blocks) * blocks),
        xaxis=new_axis("% of components kept", range=[-0.6, count - 0.4], **labels, **plain),
        yaxis=new_axis("layer", range=[-0.6, blocks - 0.4], **layers, **plain),
        shapes=[
            {"type": "rect", "x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5, **frame}
            for x, y in (layout.at(row) for row in rows if row.key in chosen)
        ],
    )
    head = ("site", "rank", "kept", "accuracy", "loss", "examples", "judged")
    note = "the best of the experts in each place" if len(rows) < len(every) else ""
    numbers = [_numbers(row) for row in every]
    return Figure(name, [untried, *cells, hatch], sheet, head, numbers, note=note)


def _shown(
    rows: Iterable[SweptTruncation], layout: _Layout, chosen: set[tuple[str, int]]
) -> dict[tuple[int, int], SweptTruncation]:
    """Return the truncation to draw in each place: of several experts the chosen one, or the best that ran longest."""

    def rank(row: SweptTruncation) -> tuple[bool, bool, float]:
        return row.key in chosen, row.complete, -row.loss

    return {layout.at(row): row for row in sorted(rows, key=rank)}


def _cells(
    rows: Iterable[SweptTruncation],
    base: BaseRecord,
    metric: str,
    limit: float,
    complete: bool,
    layout: _Layout,
) -> Trace:
    """Return one layer of the heat map; raced-out cells are a layer of their own because they are paler."""
    z: list[list[float | None]] = [[None] * len(layout.columns) for _ in layout.blocks]
    hover = [[""] * len(layout.columns) for _ in layout.blocks]
    for row in rows:
        change = improvement(row, base, metric)
        if row.complete == complete and change is not None:
            x, y = layout.at(row)
            z[y][x], hover[y][x] = change, _hover(row)
    return {
        "type": "heatmap",
        "z": z,
        "text": hover,
        "hovertemplate": "%{text}<extra></extra>",
        "hoverongaps": False,
        "zmin": -limit,
        "zmax": limit,
        "colorscale": DIVERGING,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "opacity": 1.0 if complete else 0.5,
        "meta": metric,
    }


def _hover(row: SweptTruncation) -> str:
    lines = [
        f"<b>{text(row.site)}</b>, rank {row.rank} of {row.full_rank}",
        f"kept {100 * row.kept:.3g} %",
        f"accuracy {number(row.accuracy, 'share')}",
        f"loss {number(row.loss, 'nats')}",
        f"{row.n} examples" + ("" if row.complete else ", then dropped from the race"),
    ]
    return "<br>".join(lines)


def _numbers(row: SweptTruncation) -> list[str]:
    values = [number(row.kept, "share"), number(row.accuracy, "share"), number(row.loss, "nats")]
    return [
        text(row.site),
        str(row.rank),
        *values,
        str(row.n),
        "to the end" if row.complete else "raced out",
    ]


def _percent(share: float) -> str:
    """Return a short tick label: three characters at most wherever that is exact enough."""
    value = 100 * share
    if value >= 9.95 or value == 0:
        return f"{value:.0f}"
    return f"{value:.1f}".removesuffix(".0") if value >= 0.1 else f"{value:.2g}"
