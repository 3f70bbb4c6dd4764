"""What singular directions are worth: a map of the harm in each matrix, and effects along the spectrum of some.

An effect is what the loss is predicted to do when one direction alone goes, in nats: below zero the model does better
without it. Effects are heavy-tailed, so axes and colors follow square roots; hover and tables carry the value itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from secateur.core.site import MATRICES
from secateur.report.chart import (
    ACCENT,
    AFTER,
    MUTED,
    SEQUENTIAL,
    Figure,
    by_matrix,
    cell_height,
    new_axis,
    new_layout,
    root_axis,
    signed_root,
    some,
)
from secateur.report.cuts import NUMBERED
from secateur.report.markup import MINUS, signed, text

MOST, FEWEST = 12, 6  # panels: all matrices that lost something fit, and the page still says what was spared
Record = Mapping[str, Any]


def name_of(one: Record) -> str:
    """`b2.o`, or `b2.o, head 3` where each head has its own directions."""
    return str(one["site"]) + ("" if one.get("head") is None else f", head {one['head']}")


def harm_map(matrices: Sequence[Record]) -> Figure:
    """Matrix types × blocks: how far the loss would fall, by the prediction, if all that hurts went; numbers: how
    many directions did go. Heads are added up."""
    cells: dict[tuple[str, int], list[Record]] = {}
    for one in matrices:
        cells.setdefault((str(one["matrix"]), one["block"]), []).append(one)
    names = list(by_matrix(matrices))[::-1]
    blocks = 1 + max(block for _, block in cells)
    most = max(_harm(own) for own in cells.values()) or 1.0
    height = cell_height(len(names), 240)
    plain = {"showgrid": False, "showline": False, "ticks": ""}
    layout = new_layout(
        int(62 + height * len(names)),
        xaxis=new_axis("block", range=[-0.5, blocks - 0.5], tickvals=some(blocks, 16), tickangle=0, **plain),
        yaxis=new_axis("", tickvals=list(range(len(names))), ticktext=list(map(text, names)), **plain),
        shapes=[_frame(block, names.index(name)) for (name, block), own in cells.items() if _removed(own)],
    )
    head = ("matrix", "directions", "harmful", "harm, nats", "removed")
    rows = [_map_row(own) for own in cells.values()]
    note = f"predicted fall of the loss if all that hurts went; largest {most:.3g} nats"
    return Figure("Harm in each matrix", [_heat(cells, names, blocks, most)], layout, head, rows, note)


def _harm(own: Iterable[Record]) -> float:
    return sum(one["harm"] for one in own)


def _removed(own: Iterable[Record]) -> int:
    return sum(len(one["removed"]) for one in own)


def _map_row(own: Sequence[Record]) -> list[str]:
    counts = (sum(one["of"] for one in own), sum(one["harmful"] for one in own))
    return [text(own[0]["site"]), *(f"{n:,}" for n in counts), f"{_harm(own):.4g}", f"{_removed(own):,}"]


def _heat(
    cells: Mapping[tuple[str, int], Sequence[Record]], names: list[str], blocks: int, most: float
) -> dict:
    z: list[list[float | None]] = [[None] * blocks for _ in names]
    said, hover = ([[""] * blocks for _ in names] for _ in range(2))
    for (name, block), own in cells.items():
        y, gone = names.index(name), _removed(own)
        z[y][block] = signed_root(_harm(own))
        said[y][block] = f"{MINUS}{gone}" if gone and blocks <= NUMBERED else ""
        site, of, harmful, harm, _ = _map_row(own)
        hover[y][block] = (
            f"<b>{site}</b><br>{harmful} of {of} directions are predicted to hurt,<br>"
            f"by {harm} nats together; {gone:,} removed"
        )
    look = {"colorscale": SEQUENTIAL, "zmin": 0.0, "zmax": signed_root(most), "showscale": False}
    words = {"text": said, "texttemplate": "%{text}", "hovertext": hover}
    gaps = {"xgap": 2, "ygap": 2, "hoverongaps": False, "hovertemplate": "%{hovertext}<extra></extra>"}
    return {"type": "heatmap", "z": z} | look | words | gaps


def _frame(x: int, y: int) -> dict[str, Any]:
    corners = {"x0": x - 0.48, "x1": x + 0.48, "y0": y - 0.46, "y1": y + 0.46}
    return {"type": "rect", **corners, "line": {"color": ACCENT, "width": 2}, "fillcolor": "rgba(0,0,0,0)"}


def worth_showing(matrices: Sequence[Record]) -> list[Record]:
    """Those that lost directions and, up to `FEWEST` in all, those that hurt most; in the model's order."""
    ranked = sorted(matrices, key=lambda one: (not one["removed"], -one["harm"]))
    cut = sum(bool(one["removed"]) for one in matrices)
    shown = ranked[: min(MOST, max(FEWEST, cut))]
    order = {name: place for place, name in enumerate(MATRICES)}
    return sorted(shown, key=lambda one: (one["block"], order.get(one["matrix"], 9), one.get("head") or 0))


def spectra(shown: Sequence[Record]) -> list[Figure]:
    """A panel for each matrix or head, on one scale of effects: a stroke for each direction, the removed in orange;
    the gray line is their singular values."""
    effects = [value for one in shown for value in one["effect"]]
    return [_panel(one, root_axis(effects, "")) for one in shown]


def _panel(one: Record, axis: dict[str, Any]) -> Figure:
    gone, count = set(one["removed"]), one["of"]
    points = list(zip(one["index"], one["sigma"], one["effect"], strict=True))
    stays = [point for point in points if point[0] not in gone]
    goes = [point for point in points if point[0] in gone]
    width = max(0.85, count / 170)  # of a direction: a stroke of a panel's width is to be seen
    data = [
        _sigma(points),
        *(_strokes(*side, width) for side in ((stays, AFTER, "stays"), (goes, ACCENT, "removed"))),
    ]
    top = max(one["sigma"], default=1.0)
    layout = new_layout(
        206,
        barmode="overlay",
        bargap=0,
        xaxis=new_axis(
            "direction, largest singular value first", range=[-0.02 * count - 1, 1.02 * count], nticks=6
        )
        | {"showgrid": False},
        yaxis=dict(axis) | {"zeroline": True, "zerolinecolor": "#b9b5aa"},
        yaxis2={"overlaying": "y", "range": [0, 1.06 * top], "visible": False, "fixedrange": True},
    )
    layout["margin"] |= {"l": 52}
    change_of = sum(effect for _, _, effect in goes)
    said = f"{len(gone):,} of {count:,} removed, {signed(change_of)} nats predicted" if gone else "all stay"
    rows = [[str(i), f"{s:.4g}", signed(e), "removed" if i in gone else "stays"] for i, s, e in points]
    return Figure(name_of(one), data, layout, ("direction", "singular value", "effect, nats", ""), rows, said)


def _sigma(points: Sequence[tuple[int, float, float]]) -> dict[str, Any]:
    where = {"x": [i for i, _, _ in points], "y": [s for _, s, _ in points], "yaxis": "y2"}
    look = {"line": {"color": MUTED, "width": 1}, "opacity": 0.5, "hoverinfo": "skip"}
    return {"type": "scatter", "mode": "lines", **where, **look}


def _strokes(
    points: Sequence[tuple[int, float, float]], color: str, word: str, width: float
) -> dict[str, Any]:
    hover = [
        f"<b>direction {i}</b>, {word}<br>{signed(e)} nats<br>singular value {s:.4g}" for i, s, e in points
    ]
    return {
        "type": "bar",
        "x": [i for i, _, _ in points],
        "y": [signed_root(e) for _, _, e in points],
        "width": width,
        "text": hover,
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": color, "line": {"width": 0}},
    }
