"""The page of linearity: a curve over the blocks for every model or checkpoint, held out solid, in-sample dashed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from secateur.reports.chart import AFTER, Figure, depth_color, new_axis, new_layout, some
from secateur.reports.components import probe_hero
from secateur.reports.frame import Figures, place, section
from secateur.reports.inside import inside_maps
from secateur.reports.markup import known, text
from secateur.reports.tables import probe_provenance

Record = Mapping[str, Any]
Points = list[tuple[float, float]]
SIDES = {"held out": 1, "in-sample": 0}  # its place in a score
INSIDE = (
    "How far what a part or a head adds to a token depends linearly on that token alone; and how linear what a matrix "
    "makes of the stream is, for the norm between. Fitted to other sequences."
)


def linearity_page(record: Record, figures: Figures) -> list[str]:
    """The sections of the page, from probe.json of `--what linearity`."""
    models = record["models"]
    scores = [
        found
        for name, title in (("stream", "With the residual"), ("added", "Without: what a block adds"))
        if (found := _scores(models, name, title))
    ]
    shapes = [
        found
        for name, title in (
            ("cosine", "Cosine similarity of what enters and what leaves"),
            ("intrinsic_dimension", "Intrinsic dimension of what enters"),
            ("anisotropy", "Anisotropy of what enters"),
        )
        if (found := _values(models, name, title))
    ]
    lead = (
        "1 − the share of the variance that the best linear map of what enters leaves unexplained. Solid: of a map "
        "fitted to other sequences; dashed: fitted to the same tokens, as in the paper, where noise scores d/n."
    )
    maps = inside_maps(models)
    told = dict(record) | {"what": ["linearity"], "tasks": [record["task"]]}
    more = f" and {len(models) - 1} more" if len(models) > 1 else ""
    return [
        probe_hero(told | {"model": f"{record['model']}{more}"}),
        section("linearity", "How linear the blocks are", lead, place("linearity", scores, figures)),
        section(
            "inside", "Inside the blocks", INSIDE, place("inside", maps, figures, layout=_layout_of(maps))
        ),
        section("shape", "What passes between blocks", "", place("shape", shapes, figures)),
        _notes(models),
        f"<footer>{probe_provenance(told)}</footer>",
    ]


def _layout_of(maps: Sequence[Figure]) -> str:
    """Side by side, to be compared, where there are many."""
    return "multiples" if len(maps) > 2 else "wide"


def _colors(models: Sequence[Record]) -> list[str]:
    """From pale to dark in the order they were given, as training goes on."""
    return [AFTER] if len(models) == 1 else [depth_color(n, len(models)) for n in range(len(models))]


def _curves(models: Sequence[Record], value: Callable[[Record], Any]) -> Iterator[tuple[str, str, Points]]:
    """Name, color and points of every model's every stack that has a value."""
    for model, color in zip(models, _colors(models), strict=True):
        for stack in model["norms"]:
            rows = [row for row in model["rows"] if _is_block(row["site"], stack)]
            points = [
                (float(row["site"].rpartition("b")[2]), value(row)) for row in rows if known(value(row))
            ]
            if points:
                name = " ".join(word for word in (model["name"], stack.rstrip(".")) if word)
                yield name, color, points


def _is_block(site: str, stack: str) -> bool:
    return site.startswith(f"{stack}b") and "." not in site.removeprefix(stack)


def _scores(models: Sequence[Record], name: str, title: str) -> Figure | None:
    data, rows = [], []
    for side, at in SIDES.items():
        for label, color, points in _curves(models, lambda row, at=at: row[name] and row[name][at]):
            data.append(_line(label, side, color, points))
            rows += [[text(label), side, f"b{x:.0f}", f"{y:.4f}"] for x, y in points]
    head = ("model", "map", "block", "score")
    return Figure(title, data, _layout("score", data), head, rows) if data else None


def _values(models: Sequence[Record], name: str, title: str) -> Figure | None:
    curves = list(_curves(models, lambda row: row[name]))
    data = [_line(label, "", color, points) for label, color, points in curves]
    rows = [[text(label), f"b{x:.0f}", f"{y:.4g}"] for label, _, points in curves for x, y in points]
    return Figure(title, data, _layout("", data), ("model", "block", title), rows) if data else None


def _line(label: str, side: str, color: str, points: Points) -> dict[str, Any]:
    """The legend has each model once, by its solid line."""
    solid = side != "in-sample"
    width = 2.4 if solid else 1.2
    said = ", ".join(word for word in (text(label), side) if word)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": text(label),
        "showlegend": solid,
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "text": [f"<b>{said}</b>, block {x:.0f}<br>{y:.4g}" for x, y in points],
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": color, "width": width, "dash": "solid" if solid else "dash"},
        "marker": {"size": 4 + width, "color": color},
    }


def _layout(unit: str, data: Sequence[Record]) -> dict[str, Any]:
    several = len({trace["name"] for trace in data}) > 1
    legend = {"showlegend": several, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"}}
    blocks = 1 + int(max(x for trace in data for x in trace["x"]))
    axes = {"xaxis": new_axis("block", tickvals=some(blocks, 16)), "yaxis": new_axis(unit, nticks=6)}
    return new_layout(320, **axes, **legend) | {"margin": {"l": 54, "r": 14, "t": 34, "b": 44}}


def _notes(models: Sequence[Record]) -> str:
    """What stands against a score, block by block."""
    said = [
        f"<li><b>{text(model['name'])}</b> {text(row['site'])}: {text(row['reason'])}</li>"
        for model in models
        for row in model["rows"]
        if row["reason"]
    ]
    return section("notes", "What stands against a score", "", f"<ul>{''.join(said)}</ul>") if said else ""
