"""Pages of `secateur probe`: of a model's parts, and of linearity. One self-contained HTML file each; no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur.core.baseline import split_words
from secateur.core.place import ATTENTIONS, ReadableSite
from secateur.core.readings import PARTS
from secateur.core.records.probe import (
    ImportanceRecord,
    LinearityRecord,
    ProbeRecord,
    ProfileRecord,
    RowsRecord,
    TransitionRecord,
    TransitionWithoutOutliers,
)
from secateur.core.writing import write_text
from secateur.errors import SecateurError
from secateur.probing.component_sections import component_sections
from secateur.report.chart import (
    AFTER,
    SEQUENTIAL,
    Figure,
    Trace,
    cell_height,
    depth_color,
    new_axis,
    new_layout,
    some,
)
from secateur.report.frame import FigureGroup, PageSection
from secateur.report.markup import MISSING, known, table, text
from secateur.report.page import assemble
from secateur.report.tables import folded_facts, joined

NAMED = 5  # positions and texts of outlier tokens in a cell
MOST = 12  # columns of a map whose cells have room for their number
LEAD = (
    "1 − the share of the variance that the best linear map of what enters leaves unexplained. Solid: of a map fitted "
    "to other sequences; dashed: fitted to the same tokens, as in the paper, where noise scores d/n."
)
INSIDE = (
    "How far what a part or a head adds to a token depends linearly on that token alone; and how linear what a matrix "
    "makes of the stream is, for the norm between. Fitted to other sequences."
)

Scores = TransitionRecord | TransitionWithoutOutliers
Points = list[tuple[float, float]]
Value = Callable[[Scores], float | None]
Pair = Callable[[Scores], Sequence[float] | None]  # in-sample, held out


def write_probe_report(record: ProbeRecord | LinearityRecord, path: str | Path) -> Path:
    """Write the page of a probe's record.

    Raises: `SecateurError` for a record without a reading, `OutputError` for a page that cannot be written.
    """
    write_text(Path(path), render_probe(record), "folder")
    return Path(path)


def render_probe(record: ProbeRecord | LinearityRecord) -> str:
    """Return one self-contained HTML page from the content of `probe.json`.

    Raises: `SecateurError` where the record holds no reading.
    """
    if isinstance(record, LinearityRecord):
        return assemble(f"linearity: {record.model}", linearity_parts(record))
    sections = component_sections(record.components)
    if not any(sections):
        raise SecateurError("probe.json holds no reading. Write it again with `secateur probe`.")
    hero = probe_hero(record.model, record.what, record.tasks, record.split)
    footer = _footer(record.model, record.what, record.tasks, record.versions)
    return assemble(f"probe: {record.model}", [hero, *sections, footer])


def write_rows_report(record: RowsRecord, sections: Sequence[PageSection], path: Path) -> Path:
    """Write the page of a reading that gives rows: its figures, then all rows. Raises: `OutputError`."""
    tasks = [record.task] if record.task else []
    hero = probe_hero(record.model, [record.what], tasks, record.split)
    footer = _footer(record.model, [record.what], tasks, None)
    page = assemble(f"probe: {record.model}", [hero, *sections, rows_section(record), footer])
    write_text(path, page, "folder")
    return path


def probe_figures(record: ProbeRecord | LinearityRecord) -> dict[str, Figure]:
    """Return the figures of the page that `render_probe` gives, by their ids."""
    parts: Sequence[str | PageSection] = (
        linearity_parts(record)
        if isinstance(record, LinearityRecord)
        else component_sections(record.components)
    )
    figures: dict[str, Figure] = {}
    for section in parts:
        figures |= section.figures() if isinstance(section, PageSection) else {}
    return figures


def rows_section(record: RowsRecord) -> PageSection:
    """Return a table of all rows, without columns of long lists, which probe.json has."""
    first = record.rows[0] if record.rows else {}
    columns = [name for name, value in first.items() if not isinstance(value, list | dict)]
    rows = [[_cell(row.get(name)) for name in columns] for row in record.rows]
    body = table([name.replace("_", " ") for name in columns], rows, source="probe.json") if rows else ""
    return PageSection("rows", "In numbers", "All that was read; longer lists are in probe.json.", (body,))


def _cell(value: object) -> str:
    """Return HTML; of the two ends of an interval `[0.1, 0.2]`."""
    if isinstance(value, list):
        return f"[{', '.join(map(_cell, value))}]"
    return MISSING if value is None else f"{value:.4g}" if isinstance(value, float) else text(value)


def probe_hero(model: str, what: Sequence[str], tasks: Sequence[str], split: str | None) -> str:
    """Return the head of the page: the model, what was read, on what."""
    names = {
        "ffns": "feed-forward networks",
        "spectrum": "singular values",
        "directions": "singular directions",
        "curves": "loss against rank",
        "tail": "answers of the removed components",
        "frequency": "accuracy by frequency of the facts",
    }
    read = f"Readings of {_listed([names.get(name, name) for name in what])}" if what else "Readings"
    on = f", on {_listed(tasks)}" if tasks else ""
    on += f" ({text(split_words(split))})" if tasks and split else ""
    return (
        f'<header class="neutral probe"><p class="who">secateur probe</p><h1>{text(model)}</h1>'
        f'<p class="sentence">{read}{on}. Nothing was cut.</p></header>'
    )


def _footer(model: str, what: Sequence[str], tasks: Sequence[str], versions: Mapping[str, str] | None) -> str:
    """Return where the numbers come from, as one folded block."""
    facts = {
        "model": text(model),
        "read": joined(*what),
        "tasks": joined(*tasks),
        "versions": joined(*(f"{name} {value}" for name, value in (versions or {}).items())),
    }
    return f"<footer>{folded_facts(facts)}</footer>"


def _listed(words: Sequence[str]) -> str:
    """Return `a, b and c`, escaped."""
    shown = [text(word) for word in words]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


# ------------------------------------------------------------------------------------------------------------- rankings


@dataclass(frozen=True)
class Ranking:
    """The parts of a model in the order of one reading: a title, the columns' names, and a row of HTML cells a part."""

    title: str
    head: Sequence[str]
    rows: list[list[str]]


def rankings(record: RowsRecord | ProbeRecord | LinearityRecord) -> list[Ranking]:
    """Return what was read: parts by importance, blocks from the most linear one; other rows keep their order."""
    if isinstance(record, RowsRecord):
        return [_rows_ranking(record)]
    if isinstance(record, LinearityRecord):
        return [_linear_ranking(model) for model in record.models]
    found = [_kind_ranking(name, kind) for name, kind in record.components.kinds.items()]
    read = record.components
    columns = {"prefix matching": read.prefix_matching, "copying": read.copying}
    scores = {name: values for name, values in columns.items() if values}
    if first := next(iter(scores.values()), None):
        order = sorted(first, key=lambda site: (-first[site], site))
        cells = [[text(site), *(_cell(values[site]) for values in scores.values())] for site in order]
        found.append(Ranking("what heads do, 0 to 1", ("site", *scores), cells))
    return found


def _rows_ranking(record: RowsRecord) -> Ranking:
    """Return the rows, of a model's parts by their first number, falling; long lists are left out."""
    rows, first = record.rows, record.rows[0] if record.rows else {}
    columns = [
        name for name, value in first.items() if not isinstance(value, list | dict) or name.endswith("_ci")
    ]
    number = next((name for name, value in first.items() if isinstance(value, float)), None)
    if record.what in PARTS and number is not None:
        values = [row.get(number) for row in rows]
        size = [-value if isinstance(value, float) else math.inf for value in values]
        rows = [rows[at] for at in sorted(range(len(rows)), key=size.__getitem__)]
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    head = [name.replace("_ci", " 95 %").replace("_", " ") for name in columns]
    return Ranking(record.what, head, cells)


def _kind_ranking(name: str, kind: ImportanceRecord) -> Ranking:
    """Return the mean of every part, most important first, and of a single reading its interval where it has one."""
    alone = kind.readings[0].intervals if len(kind.readings) == 1 else None
    rows = []
    for site in sorted(kind.mean, key=lambda site: (-kind.mean[site], site)):
        more = [_cell(alone.get(site))] if alone else []
        more += [_cell(reading.values.get(site)) for reading in kind.readings if len(kind.readings) > 1]
        rows.append([text(site), _cell(kind.mean[site]), *more])
    names = [reading.name for reading in kind.readings] if len(kind.readings) > 1 else []
    head = ("site", "importance", *(["95 %"] if alone else []), *names)
    return Ranking(f"{name}, {kind.unit}", head, rows)


def _linear_ranking(model: ProfileRecord) -> Ranking:
    """Return the scores of every place on tokens that no map was fitted to, without outlier tokens."""
    rows = []
    for row in model.rows:
        scores = row.without_outliers or row
        stream, added = (pair[1] if pair else None for pair in (scores.stream, scores.added))
        first = next((score for score in (stream, added) if known(score)), -math.inf)
        trust = "yes" if scores.trusted else "no"
        rows.append((first, [text(row.site), _cell(stream), _cell(added), _cell(scores.cosine), trust]))
    cells = [cells for _, cells in sorted(rows, key=lambda row: -row[0])]
    head = ("site", "with the residual", "what it adds", "cosine", "to be trusted")
    return Ranking(f"linearity of {model.name}, held out, 1 is linear", head, cells)


# ------------------------------------------------------------------------------------------------------------ linearity


def linearity_parts(record: LinearityRecord) -> list[str | PageSection]:
    """Return the page of `--what linearity`: curves over the blocks of every model or checkpoint, maps inside them."""
    models = record.models
    more = f" and {len(models) - 1} more" if len(models) > 1 else ""
    model, what, tasks = f"{record.model}{more}", ["linearity"], [record.task]
    maps = block_maps(models)
    return [
        probe_hero(model, what, tasks, record.split),
        PageSection("linearity", "How linear the blocks are", LEAD, (FigureGroup(score_curves(models)),)),
        outlier_section(record),
        # Many maps stand side by side, to be compared.
        PageSection(
            "inside",
            "Inside the blocks",
            INSIDE,
            (FigureGroup(tuple(maps), "multiples" if len(maps) > 2 else "wide"),),
        ),
        PageSection("shape", "What passes between blocks", "", (FigureGroup(shape_curves(models)),)),
        note_section(models),
        _footer(record.model, what, tasks, record.versions),
    ]


def outlier_section(record: LinearityRecord) -> PageSection:
    """Return which tokens are outliers, place by place; empty where there are none."""
    lead = (
        f"Tokens of more than {record.outlier_norm:g} times the median norm in what enters, leaves or is added. In "
        "sums of squares they may outweigh all others together; then a score over all tokens is about them, and blocks "
        "are to be compared by the scores without them."
    )
    rows = []
    for model in record.models:
        for row in model.rows:
            if (found := row.outliers) is None:
                continue
            positions = [f"{p.position} ({p.count:,} of {p.of:,})" for p in found.positions[:NAMED]]
            tokens = [f"<q>{text(t.text)}</q> ({t.count:,} of {t.of:,})" for t in found.tokens[:NAMED]]
            size = [f"{found.count:,} of {row.num_tokens:,}", f"{found.largest:.0f} medians"]
            decide = "yes" if found.matter else "no"
            names = [text(model.name), text(row.site)]
            rows.append([*names, *size, ", ".join(positions), ", ".join(tokens), decide])
    head = ("model", "place", "outliers", "longest", "positions", "tokens", "decide the scores")
    body = table(head, rows, source="probe.json") if rows else ""
    return PageSection("outliers", "Outlier tokens", lead, (body,))


def note_section(models: Sequence[ProfileRecord]) -> PageSection:
    """Return what stands against a score, block by block; empty where nothing does."""
    notes = [
        f"<li><b>{text(model.name)}</b> {text(row.site)}{words}: {text(scores.reason)}</li>"
        for model in models
        for row in model.rows
        for words, scores in (("", row), (", without outlier tokens", row.without_outliers))
        if scores and scores.reason
    ]
    body = f"<ul>{''.join(notes)}</ul>" if notes else ""
    return PageSection("notes", "What stands against a score", "", (body,))


# --------------------------------------------------------------------------------------------------------------- curves


def score_curves(models: Sequence[ProfileRecord]) -> tuple[Figure, ...]:
    """Return for either score, over all tokens and without outliers, curves held out (solid) and in-sample (dashed)."""
    figures = []
    scores: list[tuple[str, Pair]] = [
        ("With the residual", lambda row: row.stream),
        ("What a block adds", lambda row: row.added),
    ]
    for title, score in scores:
        for words, without in _views(models):
            data, rows = [], []
            for side, at in (("held out", 1), ("in-sample", 0)):

                def value(row: Scores, at: int = at, score: Pair = score) -> float | None:
                    pair = score(row)
                    return pair[at] if pair else None

                for label, color, points in _curves(models, value, without):
                    data.append(_line(label, side, color, points))
                    rows += [[text(label), side, f"b{x:.0f}", f"{y:.4f}"] for x, y in points]
            if data:
                head = ("model", "map", "block", "score")
                figures.append(Figure(title + words, data, _layout("score", data), head, rows))
    return tuple(figures)


def shape_curves(models: Sequence[ProfileRecord]) -> tuple[Figure, ...]:
    """Return curves of what describes the cloud of vectors between blocks, over all tokens and without outliers."""
    figures = []
    shapes: list[tuple[str, Value]] = [
        ("Cosine similarity of what enters and what leaves", lambda row: row.cosine),
        ("Intrinsic dimension of what enters", lambda row: row.intrinsic_dimension),
        ("Anisotropy of what enters", lambda row: row.anisotropy),
    ]
    for name, value in shapes:
        for words, without in _views(models):
            title, curves = name + words, list(_curves(models, value, without))
            data = [_line(label, "", color, points) for label, color, points in curves]
            rows = [[text(label), f"b{x:.0f}", f"{y:.4g}"] for label, _, points in curves for x, y in points]
            if data:
                figures.append(Figure(title, data, _layout("", data), ("model", "block", title), rows))
    return tuple(figures)


def _views(models: Sequence[ProfileRecord]) -> list[tuple[str, bool]]:
    """Return words for a title, and whether scores are without outlier tokens: both views where there are outliers."""
    outliers = any(row.without_outliers for model in models for row in model.rows)
    return [("", False), *([(", without outlier tokens", True)] if outliers else [])]


def _curves(
    models: Sequence[ProfileRecord], value: Value, without: bool
) -> Iterator[tuple[str, str, Points]]:
    """Yield name, color and points of every stack of every model that has a value at a block.

    Colors go from pale to dark in the order in which models were given, as training goes on.
    """
    for number, model in enumerate(models):
        color = AFTER if len(models) == 1 else depth_color(number, len(models))
        for stack in model.norms:
            points = []
            for row in model.rows:
                inner = row.site.removeprefix(stack)
                if not row.site.startswith(f"{stack}b") or "." in inner:
                    continue  # a part, or a block of another stack
                y = value((row.without_outliers or row) if without else row)
                if known(y):
                    points.append((float(inner.removeprefix("b")), y))
            if points:
                yield " ".join(word for word in (model.name, stack.rstrip(".")) if word), color, points


def _line(label: str, side: str, color: str, points: Points) -> Trace:
    """Return a curve. The legend has each model once, by its solid line."""
    solid = side != "in-sample"
    width = 2.4 if solid else 1.2
    name = ", ".join(word for word in (text(label), side) if word)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": text(label),
        "showlegend": solid,
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "text": [f"<b>{name}</b>, block {x:.0f}<br>{y:.4g}" for x, y in points],
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": color, "width": width, "dash": "solid" if solid else "dash"},
        "marker": {"size": 4 + width, "color": color},
    }


def _layout(unit: str, data: Sequence[Trace]) -> Trace:
    several = len({trace["name"] for trace in data}) > 1
    places = [x for trace in data if isinstance(trace["x"], list) for x in trace["x"]]
    return new_layout(
        320,
        {"l": 54, "t": 34},
        xaxis=new_axis("layer", tickvals=some(1 + int(max(places)), 16)),
        yaxis=new_axis(unit, nticks=6),
        showlegend=several,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )


# ------------------------------------------------------------------------------------------------------- maps of blocks


def block_maps(models: Sequence[ProfileRecord]) -> list[Figure]:
    """Draw a map of each stack in which heads or matrices were read: a row a block, a numbered cell a part.

    A cell shows the linearity on held-out tokens, without outlier tokens.
    """
    figures = []
    for model in models:
        places = [(ReadableSite.parse(row.site), row) for row in model.rows if row.added]
        for stack in model.norms:
            inner = [(place, row) for place, row in places if place.stack == stack and place.kind]
            if not any(place.is_matrix or place.head is not None for place, _ in inner):
                continue
            begin = " ".join(
                word for word in (model.name if len(models) > 1 else "", stack.rstrip(".")) if word
            )
            begin += ": " if begin else ""
            wholes = {(place.block, place.kind): row for place, row in inner if place.head is None}
            matrices = " and matrices" if any(place.is_matrix for place, _ in inner) else ""
            figures.append(_block_map(f"{begin}parts{matrices}", "", wholes))
            for kind in ATTENTIONS:
                heads = {
                    (place.block, str(place.head)): row
                    for place, row in inner
                    if place.head is not None and place.kind == kind
                }
                if heads:
                    figures.append(_block_map(f"{begin}heads of {kind}", "head", heads))
    return figures


def _block_map(title: str, axis: str, cells: dict[tuple[int, str], TransitionRecord]) -> Figure:
    """Return a map of scores by block and column, colored from 0 to 1; held-out scores of noise lie below 0."""
    columns = list(dict.fromkeys(column for _, column in cells))
    blocks = range(1 + max(block for block, _ in cells))
    lines = [[cells.get((block, column)) for column in columns] for block in blocks]
    numbered = {"texttemplate": "%{z:.2f}", "textfont": {"size": 11}} if len(columns) <= MOST else {}
    heat = {
        "type": "heatmap",
        "z": [[None if row is None else _usual(row)[1] for row in line] for line in lines],
        "hovertext": [["" if row is None else _hover(row) for row in line] for line in lines],
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
    plain = {"showgrid": False, "showline": False, "tickangle": 0, "ticks": ""}
    shown = some(len(columns), MOST)
    names = {"tickvals": shown, "ticktext": [columns[at] for at in shown]}
    layout = new_layout(
        int(60 + cell_height(len(blocks), 330) * len(blocks)),
        xaxis=new_axis(axis, range=[-0.6, len(columns) - 0.4], **names, **plain),
        yaxis=new_axis("layer", range=[-0.6, len(blocks) - 0.4], tickvals=some(len(blocks), 16), **plain),
    )
    rows = [
        [text(row.site), *(f"{score:.4f}" for score in (*reversed(_usual(row)), *reversed(row.added or [])))]
        for row in cells.values()
    ]
    head = ("site", "held out", "in-sample", "held out, all tokens", "in-sample, all tokens")
    return Figure(title, [heat], layout, head, rows)


def _usual(row: TransitionRecord) -> Sequence[float]:
    """Return in-sample and held-out score, without outlier tokens where what is left varies."""
    return (row.without_outliers or row).added or row.added or []


def _hover(row: TransitionRecord) -> str:
    in_sample, held_out = _usual(row)
    words = f"<b>{text(row.site)}</b><br>held out {held_out:.4f}<br>in-sample {in_sample:.4f}"
    if not row.outliers or not row.added:
        return words
    return f"{words}<br>with outlier tokens {row.added[1]:.4f}, held out"
