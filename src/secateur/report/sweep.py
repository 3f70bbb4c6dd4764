"""The sweep as heat maps: block against kept fraction, one for each matrix type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.report.chart import (
    DIVERGING,
    INK,
    Figure,
    Row,
    by_matrix,
    cell_height,
    marks,
    new_axis,
    new_layout,
    some,
)
from secateur.report.markup import known, number, text


def color_limit(deltas: Sequence[float]) -> float:
    """How far from the base the color scale reaches, in the metric's unit.

    The largest gain or the median loss, whichever is larger: a matrix that breaks the model when it is zeroed
    must not bleach the differences that a reader came for. Worse cells saturate; the legend says "or worse".
    """
    gains, losses = [d for d in deltas if d > 0], [-d for d in deltas if d < 0]
    limit = max(max(gains, default=0.0), float(np.median(losses)) if losses else 0.0)
    return limit or max((abs(d) for d in deltas), default=0.0) or 1e-9


def improvements(rows: Iterable[Row], base: Row, metric: str) -> list[float]:
    """Change against the base, positive where better, of every row that has the metric."""
    sign = 1.0 if metric == "accuracy" else -1.0
    return [sign * (row[metric] - base[metric]) for row in rows if known(row.get(metric))]


@dataclass(frozen=True)
class _Grid:
    """Where a row of the sweep lies: column by kept fraction, line by block."""

    columns: tuple[float, ...]
    blocks: int

    def at(self, row: Row) -> tuple[int, int]:
        return self.columns.index(round(row["kept"], 9)), row["block"]


def sweep(
    rows: Sequence[Row],
    base: Row,
    metrics: Sequence[str],
    chosen: set[tuple[str, int]],
    candidates: Sequence[Row] = (),
) -> list[Figure]:
    """A heat map for each matrix type: block against kept fraction, colored by the change against the base.

    `candidates` are all that were proposed: their fractions are columns even where none of them was run.
    """
    limits = {metric: color_limit(improvements(rows, base, metric)) for metric in metrics}
    blocks = 1 + max((row["block"] for row in (*rows, *candidates)), default=0)
    proposed = by_matrix([*rows, *candidates])
    grids = {name: _Grid(_fractions(group), blocks) for name, group in proposed.items()}
    return [
        _heat_map(name, group, base, limits, grids[name], chosen) for name, group in by_matrix(rows).items()
    ]


def _fractions(rows: Iterable[Row]) -> tuple[float, ...]:
    return tuple(sorted({round(row["kept"], 9) for row in rows}))


def _heat_map(
    name: str,
    rows: list[Row],
    base: Row,
    limits: Mapping[str, float],
    grid: _Grid,
    chosen: set[tuple[str, int]],
) -> Figure:
    views = [(m, limit, complete) for m, limit in limits.items() for complete in (True, False)]
    first = next(iter(limits))
    cells = [_cells(rows, base, m, limit, done, grid) | {"visible": m == first} for m, limit, done in views]
    data = [_untried(rows, grid), *cells, _raced_out(rows, grid)]
    frames = [_frame(*grid.at(row)) for row in rows if (row["site"], row["rank"]) in chosen]
    head = ("site", "rank", "kept", "accuracy", "loss", "examples", "judged")
    return Figure(name, data, _sheet(grid, frames), head, [_sweep_numbers(row) for row in rows])


def _sheet(grid: _Grid, frames: list[dict[str, Any]]) -> dict[str, Any]:
    count, blocks = len(grid.columns), grid.blocks
    shown = some(count, 12)
    labels = {"tickvals": shown, "ticktext": [_percent(grid.columns[i]) for i in shown]}
    plain = {"showgrid": False, "showline": False, "tickangle": 0, "ticks": ""}
    return new_layout(
        int(62 + cell_height(blocks) * blocks),
        xaxis=new_axis("% of components kept", range=[-0.6, count - 0.4], **labels, **plain),
        yaxis=new_axis("block", range=[-0.6, blocks - 0.4], tickvals=some(blocks, 16), **plain),
        shapes=frames,
    )


def _cells(
    rows: Iterable[Row], base: Row, metric: str, limit: float, complete: bool, grid: _Grid
) -> dict[str, Any]:
    """One layer of the heat map; raced-out cells are a layer of their own because they are paler."""
    z: list[list[float | None]] = [[None] * len(grid.columns) for _ in range(grid.blocks)]
    hover = [[""] * len(grid.columns) for _ in range(grid.blocks)]
    for row in rows:
        if bool(row["complete"]) == complete and known(row.get(metric)):
            x, y = grid.at(row)
            z[y][x], hover[y][x] = improvements([row], base, metric)[0], _sweep_hover(row)
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


def _sweep_hover(row: Row) -> str:
    lines = [
        f"<b>{text(row['site'])}</b>, rank {text(row['rank'])} of {text(row['full_rank'])}",
        f"kept {100 * row['kept']:.3g} %",
        f"accuracy {number(row.get('accuracy'), 'share')}",
        f"loss {number(row.get('loss'), 'nats')}",
        f"{text(row['n'])} examples" + ("" if row["complete"] else ", then dropped from the race"),
    ]
    return "<br>".join(lines)


def _sweep_numbers(row: Row) -> list[str]:
    values = [
        number(row["kept"], "share"),
        number(row.get("accuracy"), "share"),
        number(row.get("loss"), "nats"),
    ]
    end = [text(row["n"]), "to the end" if row["complete"] else "raced out"]
    return [text(row["site"]), text(row["rank"]), *values, *end]


def _raced_out(rows: Iterable[Row], grid: _Grid) -> dict[str, Any]:
    """The hatch: a stroke in each cell that was dropped early."""
    points = [grid.at(row) for row in rows if not row["complete"]]
    return marks(points, symbol="line-ne-open", size=9, color="rgba(43,47,54,.5)", line={"width": 1})


def _untried(rows: Iterable[Row], grid: _Grid) -> dict[str, Any]:
    tried = {grid.at(row) for row in rows}
    cells = [(x, y) for x in range(len(grid.columns)) for y in range(grid.blocks)]
    return marks([cell for cell in cells if cell not in tried], symbol="circle", size=2.5, color="#c9c5ba")


def _frame(x: int, y: int) -> dict[str, Any]:
    corners = {"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
    return {"type": "rect", **corners, "line": {"color": INK, "width": 2.5}, "fillcolor": "rgba(0,0,0,0)"}


def _percent(share: float) -> str:
    """A short tick label: three characters at most wherever that is exact enough."""
    value = 100 * share
    return (
        f"{value:.0f}"
        if value >= 9.95 or value == 0
        else f"{value:.1f}".removesuffix(".0")
        if value >= 0.1
        else f"{value:.2g}"
    )
