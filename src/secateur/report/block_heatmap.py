"""Linearity inside the blocks, as maps of numbered cells: parts and matrices by block, heads by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secateur.core.place import ATTENTIONS, Place
from secateur.report.chart import SEQUENTIAL, Figure, cell_height, new_axis, new_layout, some
from secateur.report.markup import text

Record = Mapping[str, Any]
Cells = dict[tuple[int, str], Record]  # block and column → row of the record
MOST = 12  # columns whose cells have room for their number


def inside_maps(models: Sequence[Record]) -> list[Figure]:
    """Of every model in which heads or matrices were read, and every stack: what they and its parts score, held out and
    without outlier tokens."""
    return [
        figure
        for model in models
        for stack in model["norms"]
        for figure in _of_stack(model, stack, model["name"] if len(models) > 1 else "")
    ]


def _of_stack(model: Record, stack: str, name: str) -> Iterator[Figure]:
    places = [(Place.parse(row["site"]), row) for row in model["rows"] if row["added"]]
    mine = [(place, row) for place, row in places if place.stack == stack and place.kind]
    if not any(place.is_matrix or place.head is not None for place, _ in mine):
        return
    begin = " ".join(word for word in (name, stack.rstrip(".")) if word)
    begin += ": " if begin else ""
    kinds: Cells = {(place.block, place.kind): row for place, row in mine if place.head is None}
    matrices = " and matrices" if any(place.is_matrix for place, _ in mine) else ""
    yield _map(f"{begin}parts{matrices}", "", kinds)
    for kind in ATTENTIONS:
        heads = {(p.block, str(p.head)): row for p, row in mine if p.head is not None and p.kind == kind}
        if heads:
            yield _map(f"{begin}heads of {kind}", "head", heads)


def _map(title: str, axis: str, cells: Cells) -> Figure:
    """Color from 0 to 1; below 0, which held-out scores of noise are, as 0."""
    columns = list(dict.fromkeys(column for _, column in cells))
    blocks = range(1 + max(block for block, _ in cells))
    found = [[cells.get((block, column)) for column in columns] for block in blocks]
    z = [[None if row is None else _usual(row)[1] for row in line] for line in found]
    hover = [["" if row is None else _hover(row) for row in line] for line in found]
    rows = [
        [text(row["site"]), *(f"{score:.4f}" for score in (*reversed(_usual(row)), *reversed(row["added"])))]
        for row in cells.values()
    ]
    height = cell_height(len(blocks), 330)
    return Figure(
        title,
        [_heat(z, hover)],
        _sheet(blocks, columns, axis, height),
        ("site", "held out", "in-sample", "held out, all tokens", "in-sample, all tokens"),
        rows,
    )


def _usual(row: Record) -> Sequence[float]:
    """In-sample and held out, without outlier tokens where what is left varies."""
    return (row["without_outliers"] or row)["added"] or row["added"]


def _hover(row: Record) -> str:
    in_sample, held_out = _usual(row)
    said = f"<b>{text(row['site'])}</b><br>held out {held_out:.4f}<br>in-sample {in_sample:.4f}"
    return said if not row["outliers"] else f"{said}<br>with outlier tokens {row['added'][1]:.4f}, held out"


def _heat(z: list[list[float | None]], hover: list[list[str]]) -> dict[str, Any]:
    numbered = {"texttemplate": "%{z:.2f}", "textfont": {"size": 11}} if len(z[0]) <= MOST else {}
    return {
        "type": "heatmap",
        "z": z,
        "hovertext": hover,
        "hovertemplate": "%{hovertext}<extra></extra>",
        "hoverongaps": False,
        "zmin": 0.0,
        "zmax": 1.0,
        "colorscale": SEQUENTIAL,
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        **numbered,
    }


def _sheet(blocks: Sequence[int], columns: Sequence[str], axis: str, height: float) -> dict[str, Any]:
    plain = {"showgrid": False, "showline": False, "tickangle": 0, "ticks": ""}
    shown = some(len(columns), MOST)
    names = {"tickvals": shown, "ticktext": [columns[at] for at in shown]}
    return new_layout(
        int(60 + height * len(blocks)),
        xaxis=new_axis(axis, range=[-0.6, len(columns) - 0.4], **names, **plain),
        yaxis=new_axis("block", range=[-0.6, len(blocks) - 0.4], tickvals=some(len(blocks), 16), **plain),
    )
