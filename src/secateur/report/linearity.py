"""The page of linearity: a curve over the blocks for every model or checkpoint, held out solid, in-sample dashed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from secateur.report.block_heatmap import inside_maps
from secateur.report.chart import AFTER, Figure, depth_color, new_axis, new_layout, some
from secateur.report.components import probe_hero
from secateur.report.frame import Figures, place, section
from secateur.report.markup import known, table, text
from secateur.report.tables import probe_provenance

Record = Mapping[str, Any]
Points = list[tuple[float, float]]
SIDES = {"held out": 1, "in-sample": 0}  # its place in a score
INSIDE = (
    "How far what a part or a head adds to a token depends linearly on that token alone; and how linear what a matrix "
    "makes of the stream is, for the norm between. Fitted to other sequences."
)


LEAD = (
    "1 − the share of the variance that the best linear map of what enters leaves unexplained. Solid: of a map fitted "
    "to other sequences; dashed: fitted to the same tokens, as in the paper, where noise scores d/n."
)
NAMED = 5  # positions and texts of outlier tokens in a cell
SHAPES = {
    "cosine": "Cosine similarity of what enters and what leaves",
    "intrinsic_dimension": "Intrinsic dimension of what enters",
    "anisotropy": "Anisotropy of what enters",
}
KINDS = {"stream": "With the residual", "added": "What a block adds"}


def linearity_page(record: Record, figures: Figures) -> list[str]:
    """The sections of the page, from probe.json of `--what linearity`."""
    models = record["models"]
    views = _views(models)
    scores = [
        _scores(models, name, title + words, view) for name, title in KINDS.items() for words, view in views
    ]
    shapes = [
        _values(models, name, title + words, view) for name, title in SHAPES.items() for words, view in views
    ]
    maps = inside_maps(models)
    told = dict(record) | {"what": ["linearity"], "tasks": [record["task"]]}
    more = f" and {len(models) - 1} more" if len(models) > 1 else ""
    return [
        probe_hero(told | {"model": f"{record['model']}{more}"}),
        section("linearity", "How linear the blocks are", LEAD, _placed("linearity", scores, figures)),
        _outliers(record),
        section(
            "inside", "Inside the blocks", INSIDE, place("inside", maps, figures, layout=_layout_of(maps))
        ),
        section("shape", "What passes between blocks", "", _placed("shape", shapes, figures)),
        _notes(models),
        f"<footer>{probe_provenance(told)}</footer>",
    ]


def _placed(name: str, found: Sequence[Figure | None], figures: Figures) -> str:
    return place(name, [figure for figure in found if figure], figures)


View = Callable[[Record], Record]


def _views(models: Sequence[Record]) -> list[tuple[str, View]]:
    """Every row over all tokens; and where outlier tokens pass anywhere, also without them."""
    views: list[tuple[str, View]] = [("", lambda row: row)]
    if any(row["without_outliers"] for model in models for row in model["rows"]):
        views.append((", without outlier tokens", lambda row: row["without_outliers"] or row))
    return views


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


def _scores(models: Sequence[Record], name: str, title: str, view: View) -> Figure | None:
    data, rows = [], []
    for side, at in SIDES.items():
        for label, color, points in _curves(models, lambda row, at=at: (view(row)[name] or (None, None))[at]):
            data.append(_line(label, side, color, points))
            rows += [[text(label), side, f"b{x:.0f}", f"{y:.4f}"] for x, y in points]
    head = ("model", "map", "block", "score")
    return Figure(title, data, _layout("score", data), head, rows) if data else None


def _values(models: Sequence[Record], name: str, title: str, view: View) -> Figure | None:
    curves = list(_curves(models, lambda row: view(row)[name]))
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


def _outliers(record: Record) -> str:
    """Which tokens are outliers, place by place; nothing where there are none."""
    models, times = record["models"], record["outlier_norm"]
    lead = (
        f"Tokens of more than {times:g} times the median norm in what enters, leaves or is added. In sums of squares "
        "they may outweigh all others together; then a score over all tokens is about them, and blocks are to be "
        "compared by the scores without them."
    )
    rows = [
        [text(model["name"]), text(row["site"]), *_named(row), "yes" if row["outliers"]["matter"] else "no"]
        for model in models
        for row in model["rows"]
        if row["outliers"]
    ]
    head = ("model", "place", "outliers", "longest", "positions", "tokens", "decide the scores")
    return section("outliers", "Outlier tokens", lead, table(head, rows, source="probe.json")) if rows else ""


def _named(row: Record) -> list[str]:
    found = row["outliers"]
    positions = [f"{p['position']} ({p['count']:,} of {p['of']:,})" for p in found["positions"][:NAMED]]
    tokens = [f"<q>{text(t['text'])}</q> ({t['count']:,} of {t['of']:,})" for t in found["tokens"][:NAMED]]
    count = f"{found['count']:,} of {row['num_tokens']:,}"
    return [count, f"{found['largest']:.0f} medians", ", ".join(positions), ", ".join(tokens)]


def _notes(models: Sequence[Record]) -> str:
    """What stands against a score, block by block."""
    said = [
        f"<li><b>{text(model['name'])}</b> {text(row['site'])}{words}: {text(read['reason'])}</li>"
        for model in models
        for row in model["rows"]
        for words, read in (("", row), (", without outlier tokens", row["without_outliers"]))
        if read and read["reason"]
    ]
    return section("notes", "What stands against a score", "", f"<ul>{''.join(said)}</ul>") if said else ""
