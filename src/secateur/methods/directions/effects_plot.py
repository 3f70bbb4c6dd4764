"""Figures of the effects of singular directions: harm by matrix, effects along the spectrum, predicted and measured.

An effect is the predicted change of the loss when one direction alone is removed, in nats: below zero the model does
better without it. Effects are heavy-tailed, so axes and colors follow square roots; hover and tables carry the value
itself. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from scipy.stats import rankdata

from secateur.core.site import in_order
from secateur.methods.directions.records import DirectionsStep, MatrixDirections
from secateur.report.chart import (
    ACCENT,
    AFTER,
    EDGE,
    INK,
    MUTED,
    SEQUENTIAL,
    Figure,
    Trace,
    cell_height,
    depth_color,
    level,
    marks,
    new_axis,
    new_layout,
    root_axis,
    signed_root,
    some,
)
from secateur.report.cuts import NUMBERED
from secateur.report.markup import DASH, MINUS, number, signed, text

MOST, FEWEST = 12, 6  # panels: all matrices that lost something fit, and the page still names what was spared
ENOUGH = 3  # plans without which there is no order to speak of
MANY = 20  # plans from which shares by their number of directions are shown
BINS = (1, 4, 16, 64, 256)  # directions added at once: ends of the bins


# ------------------------------------------------------------------------------------------------------ harm by matrix


def harm_map(matrices: Sequence[MatrixDirections]) -> Figure:
    """Return kinds of matrices × blocks: how far the loss is predicted to fall if all directions that hurt go.

    The numbers count directions that were removed. Heads are added up.
    """
    cells: dict[tuple[str, int], list[MatrixDirections]] = {}
    for matrix in matrices:
        cells.setdefault((matrix.matrix, matrix.block), []).append(matrix)
    kinds = {matrix.matrix for matrix in matrices}
    names = list(reversed(in_order(kinds)))
    blocks = 1 + max(block for _, block in cells)
    most = max(_harm(pieces) for pieces in cells.values()) or 1.0
    plain = {"showgrid": False, "showline": False, "ticks": ""}
    frame = {"line": {"color": ACCENT, "width": 2}, "fillcolor": "rgba(0,0,0,0)"}
    layout = new_layout(
        int(62 + cell_height(len(names), 240) * len(names)),
        xaxis=new_axis("layer", range=[-0.5, blocks - 0.5], tickvals=some(blocks, 16), tickangle=0, **plain),
        yaxis=new_axis("", tickvals=list(range(len(names))), ticktext=list(map(text, names)), **plain),
        shapes=[
            {"type": "rect", "x0": x - 0.48, "x1": x + 0.48, "y0": y - 0.46, "y1": y + 0.46, **frame}
            for x, y in ((block, names.index(name)) for (name, block), own in cells.items() if _removed(own))
        ],
    )
    head = ("matrix", "directions", "harmful", "harm, nats", "removed")
    rows = [_map_row(pieces) for pieces in cells.values()]
    note = f"predicted fall of the loss if all that hurts went; largest {most:.3g} nats"
    return Figure("Harm in each matrix", [_heat(cells, names, blocks, most)], layout, head, rows, note)


def _harm(pieces: Iterable[MatrixDirections]) -> float:
    return sum(piece.harm for piece in pieces)


def _removed(pieces: Iterable[MatrixDirections]) -> int:
    return sum(len(piece.removed) for piece in pieces)


def _map_row(pieces: Sequence[MatrixDirections]) -> list[str]:
    counts = (sum(piece.of for piece in pieces), sum(piece.harmful for piece in pieces))
    return [
        text(pieces[0].site),
        *(f"{n:,}" for n in counts),
        f"{_harm(pieces):.4g}",
        f"{_removed(pieces):,}",
    ]


def _heat(
    cells: Mapping[tuple[str, int], Sequence[MatrixDirections]], names: list[str], blocks: int, most: float
) -> Trace:
    z: list[list[float | None]] = [[None] * blocks for _ in names]
    labels, hover = ([[""] * blocks for _ in names] for _ in range(2))
    for (name, block), pieces in cells.items():
        y, gone = names.index(name), _removed(pieces)
        z[y][block] = signed_root(_harm(pieces))
        labels[y][block] = f"{MINUS}{gone}" if gone and blocks <= NUMBERED else ""
        site, of, harmful, harm, _ = _map_row(pieces)
        hover[y][block] = (
            f"<b>{site}</b><br>{harmful} of {of} directions are predicted to hurt,<br>"
            f"by {harm} nats together; {gone:,} removed"
        )
    return {
        "type": "heatmap",
        "z": z,
        "colorscale": SEQUENTIAL,
        "zmin": 0.0,
        "zmax": signed_root(most),
        "showscale": False,
        "text": labels,
        "texttemplate": "%{text}",
        "hovertext": hover,
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


# --------------------------------------------------------------------------------------------- effects along a spectrum


def worth_showing(matrices: Sequence[MatrixDirections]) -> list[MatrixDirections]:
    """Return those that lost directions and, up to `FEWEST` in all, those that hurt most; in the model's order."""
    ranked = sorted(matrices, key=lambda piece: (not piece.removed, -piece.harm))
    num_cut = sum(bool(piece.removed) for piece in matrices)
    shown = ranked[: min(MOST, max(FEWEST, num_cut))]
    order = in_order({piece.matrix for piece in shown})
    return sorted(shown, key=lambda piece: (piece.block, order.index(piece.matrix), piece.head or 0))


def effect_panels(shown: Sequence[MatrixDirections]) -> list[Figure]:
    """Return a panel for each matrix or head, on one scale of effects.

    A stroke is a direction, the removed in orange; the gray line is their singular values.
    """
    effects = [value for piece in shown for value in piece.effect]
    return [_effect_panel(piece, root_axis(effects, "")) for piece in shown]


Point = tuple[int, float, float]  # number of the direction, singular value, effect


def _effect_panel(piece: MatrixDirections, axis: Trace) -> Figure:
    gone, count = set(piece.removed), piece.of
    points = list(zip(piece.index, piece.sigma, piece.effect, strict=True))
    stays = [point for point in points if point[0] not in gone]
    goes = [point for point in points if point[0] in gone]
    width = max(0.85, count / 170)  # of a direction: a stroke of a panel's width is to be seen
    sigma = {
        "type": "scatter",
        "mode": "lines",
        "x": [i for i, _, _ in points],
        "y": [s for _, s, _ in points],
        "yaxis": "y2",
        "line": {"color": MUTED, "width": 1},
        "opacity": 0.5,
        "hoverinfo": "skip",
    }
    data = [sigma, _strokes(stays, AFTER, "stays", width), _strokes(goes, ACCENT, "removed", width)]
    top = max(piece.sigma, default=1.0)
    layout = new_layout(
        206,
        {"l": 52},
        barmode="overlay",
        bargap=0,
        xaxis=new_axis(
            "direction, largest singular value first", range=[-0.02 * count - 1, 1.02 * count], nticks=6
        )
        | {"showgrid": False},
        yaxis=dict(axis) | {"zeroline": True, "zerolinecolor": EDGE},
        yaxis2={"overlaying": "y", "range": [0, 1.06 * top], "visible": False, "fixedrange": True},
    )
    change = sum(effect for _, _, effect in goes)
    note = f"{len(gone):,} of {count:,} removed, {signed(change)} nats predicted" if gone else "all stay"
    rows = [[str(i), f"{s:.4g}", signed(e), "removed" if i in gone else "stays"] for i, s, e in points]
    return Figure(piece.name, data, layout, ("direction", "singular value", "effect, nats", ""), rows, note)


def _strokes(points: Sequence[Point], color: str, word: str, width: float) -> Trace:
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


# ----------------------------------------------------------------------------------------------- predicted and measured


def spearman(path: Sequence[DirectionsStep]) -> float | None:
    """Return the rank correlation of predicted and measured changes, ties at their mean ranks.

    None where either is the same throughout.
    """
    columns = ([step.predicted for step in path], [step.measured for step in path])
    ranks = [rankdata(column) for column in columns]
    if any(len(set(column)) < 2 for column in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def kept_promises(path: Sequence[DirectionsStep]) -> tuple[int, int]:
    """Return how many plans lowered the loss as predicted, and how many were predicted to lower it."""
    promised = [step for step in path if step.predicted < 0]
    return sum(step.measured < 0 for step in promised), len(promised)


def calibration_scatter(path: Sequence[DirectionsStep], chosen: Sequence[DirectionsStep]) -> Figure:
    """Return predicted against measured changes on root axes, by round.

    Orange was chosen; on the line the truth is as predicted.
    """
    rounds = 1 + max(step.round for step in path)
    x, y = [step.predicted for step in path], [step.measured for step in path]
    low, high = max(min(x), min(y)), min(max(x), max(y))
    ends = {"x0": signed_root(low), "y0": signed_root(low), "x1": signed_root(high), "y1": signed_root(high)}
    identity = {"type": "line", **ends, "line": {"color": INK, "width": 1.3}, "layer": "below"}
    layout = new_layout(
        380,
        {"l": 52},
        xaxis=root_axis(x, "predicted change of loss, nats"),
        yaxis=root_axis(y, ""),
        shapes=[level(0.0), *([identity] if low < high else [])],
    )
    taken = [(signed_root(step.predicted), signed_root(step.measured)) for step in chosen]
    rings = marks(taken, symbol="circle", size=11, color=ACCENT, line={"width": 2, "color": INK})
    data = [_step_dots([s for s in path if s.round == n], depth_color(n, rounds)) for n in range(rounds)]
    head = ("plan", "round", "directions added", "predicted, nats", "measured, nats", "examples")
    rows = [
        [
            text(step.pool),
            str(step.round + 1),
            f"{step.added:,}",
            signed(step.predicted),
            signed(step.measured),
            f"{step.n:,}",
        ]
        for step in path
    ]
    title = "Measured change of loss, nats"
    return Figure(title, [*data, rings], layout, head, rows, "square-root axes")


def _step_dots(steps: Sequence[DirectionsStep], color: str) -> Trace:
    points = [(signed_root(step.predicted), signed_root(step.measured)) for step in steps]
    symbols = ["circle" if step.complete else "circle-open" for step in steps]
    hover = [
        f"<b>{text(step.pool)}</b>, {step.added:,} more, round {step.round + 1}<br>"
        f"predicted {signed(step.predicted)}<br>measured {signed(step.measured)} nats<br>"
        f"{step.n:,} examples{'' if step.complete else ', then dropped from the race'}"
        for step in steps
    ]
    trace = marks(points, size=6, color=color, opacity=0.75, symbol=symbols)
    del trace["hoverinfo"]
    return trace | {"text": hover, "hovertemplate": "%{text}<extra></extra>"}


def shares_by_size(path: Sequence[DirectionsStep]) -> Figure | None:
    """Return the share of plans that lowered the loss as predicted, by how many directions they add at once.

    None for too few plans.
    """
    bins = {label: kept_promises(steps) for label, steps in _binned(path) if kept_promises(steps)[1]}
    if len(bins) < 2 or sum(n for _, n in bins.values()) < MANY:
        return None
    shares = [kept / n for kept, n in bins.values()]
    bars = {
        "type": "bar",
        "x": list(range(len(bins))),
        "y": shares,
        "marker": {"color": AFTER, "line": {"width": 0}},
        "text": [number(share, "share") for share in shares],
        "textposition": "outside",
        "cliponaxis": False,
        "textfont": {"size": 12, "color": INK},
        "hoverinfo": "skip",
    }
    names = [f"{label}<br>n = {n:,}" for label, (_, n) in bins.items()]
    layout = new_layout(
        380,
        {"b": 60, "l": 46},
        bargap=0.35,
        xaxis=new_axis(
            "directions added at once", tickvals=list(range(len(bins))), ticktext=names, showgrid=False
        )
        | {"tickangle": 0, "range": [-0.6, len(bins) - 0.4]},
        yaxis=new_axis("", range=[0, 1.08], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1]),
    )
    rows = [[label, f"{kept:,}", f"{n:,}", number(kept / n, "share")] for label, (kept, n) in bins.items()]
    head = ("directions added", "kept", "promised", "share")
    return Figure("How many lowered the loss", [bars], layout, head, rows, "of the plans predicted to")


def _binned(path: Sequence[DirectionsStep]) -> Iterable[tuple[str, list[DirectionsStep]]]:
    for low, high in pairwise((0, *BINS, math.inf)):
        first = int(low) + 1
        label = f"{first:,}+" if high == math.inf else f"{first:,}{DASH}{high:,}"
        if first == high:
            label = f"{first:,}"
        yield label, [step for step in path if low < step.added <= high]
