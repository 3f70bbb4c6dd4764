"""How unevenly importance lies among the neurons of each block, as curves: thousands of cells would show nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.report.chart import Figure, depth_color, new_axis, new_layout
from secateur.report.grids import Values, amount
from secateur.report.markup import text

POINTS = 60  # of a curve: as many as its width can show
SHOWN = (1, 10, 50)  # percent of the neurons, in the table


def concentration(values: Values, unit: str) -> Figure:
    """For each block, the share of its importance that the most important x % of its neurons hold."""
    by_block: dict[int, list[float]] = {}
    for site, value in values.items():
        by_block.setdefault(site.block, []).append(value)
    blocks = 1 + max(by_block)
    curves = {block: cumulated(found) for block, found in sorted(by_block.items())}
    data = [_line(block, curve, depth_color(block, blocks)) for block, curve in curves.items()]
    percent = {"range": [-2, 102], "tickvals": [0, 25, 50, 75, 100]}
    layout = new_layout(
        300,
        xaxis=new_axis("% of the block’s neurons, most important first", **percent),
        yaxis=new_axis("% of its importance", **percent),
    )
    layout["margin"] |= {"l": 54}
    head = ("block", "neurons", "largest", *(f"in the top {share} %" for share in SHOWN))
    rows = [_row(block, by_block[block], curve, unit) for block, curve in curves.items()]
    return Figure("Neurons", data, layout, head, rows, f"importance in {unit}")


def cumulated(values: list[float]) -> np.ndarray:
    """Entry k: the percentage of the sum that the k largest hold; zeros where all are zero."""
    ordered = np.sort(np.asarray(values))[::-1]
    return np.concatenate([[0.0], 100 * np.cumsum(ordered) / (ordered.sum() or 1.0)])


def _line(block: int, curve: np.ndarray, color: str) -> dict[str, Any]:
    count = len(curve) - 1
    at = np.unique(np.linspace(0, count, min(POINTS, count) + 1).round().astype(int))
    share, held = 100 * at / count, curve[at]
    hover = [f"<b>b{block}.mlp</b><br>top {x:.3g} %: {y:.1f} %" for x, y in zip(share, held, strict=True)]
    line = {"type": "scatter", "mode": "lines", "x": share.tolist(), "y": held.tolist(), "text": hover}
    return line | {"line": {"color": color, "width": 2}, "hovertemplate": "%{text}<extra></extra>"}


def _row(block: int, values: list[float], curve: np.ndarray, unit: str) -> list[str]:
    places = np.arange(len(curve)) * 100 / (len(curve) - 1)
    held = [f"{np.interp(share, places, curve):.1f} %" for share in SHOWN]
    return [f"b{block}", f"{len(values):,}", text(amount(max(values), unit)), *held]
