"""LASER's sections of the report: the sweep, curves, spectra, answers of components, the screen. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from scipy.stats import spearmanr

from secateur.core.records.analysis import BaseRecord, FrequencyBin, ParaphrasesRecord
from secateur.core.records.record import Record
from secateur.core.records.verdict import VerdictRecord
from secateur.core.site import in_order
from secateur.methods.laser.records import (
    MOST_ANSWERS,
    CurveRecord,
    LaserAnalysis,
    MatrixSpectrum,
    ScreenedTruncation,
    SpectrumRecord,
    TailRecord,
)
from secateur.methods.laser.sweep_plot import by_matrix, color_limit, improvement, metric_of, sweep_maps
from secateur.report.chart import (
    ACCENT,
    AFTER,
    DIVERGING,
    EDGE,
    INK,
    TRACK,
    Figure,
    Trace,
    cell_height,
    depth_color,
    level,
    loss_axis,
    marks,
    new_axis,
    new_layout,
    signed_root,
    some,
)
from secateur.report.cuts import LookedAt
from secateur.report.frame import FigureGroup, PageSection
from secateur.report.markup import MISSING, change, key, known, number, signed, text
from secateur.report.pruned_units import site_of
from secateur.report.run_page import frequency, paraphrases

MOST_SPECTRA = 4  # of a reading of all matrices that are drawn
AGREES, AGREES_PARTLY = 0.6, 0.3  # rank correlations from which an order agrees with another
FEWEST_SCREENED = 3  # points without which the screen's order cannot be seen


def sections(verdict: VerdictRecord, analysis: LaserAnalysis) -> list[PageSection]:
    """Return the sections in the order of the page. Those without records have an empty body."""
    chosen = {
        (item.site, item.rank): 100 * (1 - item.rank / item.full_rank)
        for item in verdict.cut
        if item.kind != "remove_directions" and item.rank is not None and item.full_rank
    }
    is_cut, marked = (
        bool(chosen),
        set(chosen) or {(site, item.kept) for site, item in analysis.spectrum.items()},
    )
    return [
        sweep_section(verdict, analysis, marked),
        curves_section(analysis, {site: removed for (site, _), removed in chosen.items()}),
        spectrum_section(analysis.spectrum, is_cut=is_cut),
        tail_section(analysis.tail),
        screen_section(analysis, marked, is_cut=is_cut),
    ]


def looked_at(analysis: LaserAnalysis) -> LookedAt:
    """Return the matrices that were swept, screened or drawn as a curve, for the map of the model."""
    run = {*(row.site for row in analysis.sweep), *(curve.site for curve in analysis.curves)}
    screened = {row.site for row in analysis.screen} - run
    tried, aside = (frozenset(filter(None, map(site_of, names))) for names in (run, screened))
    return LookedAt(tried, screened=aside)


# ------------------------------------------------------------------------------------------------- readings of `probe`


def reading_sections(rows: Sequence[Record]) -> list[PageSection]:
    """Return the figures of the rows of a reading, by their type."""
    curves = [row for row in rows if isinstance(row, CurveRecord)]
    answers = [row for row in rows if isinstance(row, TailRecord)]
    bins = [row for row in rows if isinstance(row, FrequencyBin)]
    phrasings = next((row for row in rows if isinstance(row, ParaphrasesRecord)), None)
    return [
        spectra_section([row for row in rows if isinstance(row, MatrixSpectrum)]),
        curves_section(LaserAnalysis(curves=curves), {}),
        tail_section(answers),
        frequency(bins),
        paraphrases(phrasings),
    ]


def spectra_section(rows: Sequence[MatrixSpectrum]) -> PageSection:
    """Return how far the loss is predicted to fall with the best truncation of each matrix, and the first spectra."""
    lead = (
        "Every matrix cut to the rank that gradients predict to be best: blue where the loss is predicted to fall, "
        "orange where it rises. Below, the singular values of those that promise most; in blue what that rank keeps."
    )
    if not rows:
        return PageSection("spectra", "What truncation is predicted to do", lead, ())
    first = sorted(rows, key=lambda row: (row.predicted_change, row.site))[:MOST_SPECTRA]
    spectra = tuple(spectrum(row.site, row.values, row.best_rank) for row in first)
    body = (FigureGroup((_predicted_map(rows),)), FigureGroup(spectra, "pair", "spectrum"))
    return PageSection("spectra", "What truncation is predicted to do", lead, body)


def _predicted_map(rows: Sequence[MatrixSpectrum]) -> Figure:
    """Return kinds of matrices × layers, colored by the predicted change of the loss, by square roots."""
    ordered = sorted(rows, key=lambda row: -row.predicted_change)  # of a block's experts the best is drawn
    cells = {(site.label, site.block): row for row in ordered if (site := site_of(row.site)) is not None}
    names = list(reversed(in_order({label for label, _ in cells})))
    layers = 1 + max(block for _, block in cells)
    found = [[cells.get((name, block)) for block in range(layers)] for name in names]
    most = max(abs(row.predicted_change) for row in rows) or 1.0
    heat: Trace = {
        "type": "heatmap",
        "z": [
            [None if row is None else -signed_root(row.predicted_change) for row in line] for line in found
        ],
        "hovertext": [
            [
                ""
                if row is None
                else f"<b>{text(row.site)}</b><br>rank {row.best_rank}: {signed(row.predicted_change)} nats"
                for row in line
            ]
            for line in found
        ],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "colorscale": DIVERGING,
        "zmin": -signed_root(most),
        "zmax": signed_root(most),
        "showscale": False,
        "hoverongaps": False,
        "xgap": 2,
        "ygap": 2,
    }
    plain = {"showgrid": False, "showline": False, "ticks": ""}
    layout = new_layout(
        int(62 + cell_height(len(names), 240) * len(names)),
        xaxis=new_axis("layer", range=[-0.5, layers - 0.5], tickvals=some(layers, 16), tickangle=0, **plain),
        yaxis=new_axis("", tickvals=list(range(len(names))), ticktext=names, **plain),
    )
    return Figure("Predicted change of the loss", [heat], layout, note=f"at most {most:.3g} nats")


# ------------------------------------------------------------------------------------------------------------ the sweep


def sweep_section(
    verdict: VerdictRecord, analysis: LaserAnalysis, chosen: set[tuple[str, int]]
) -> PageSection:
    """Return the heat maps with their color scales.

    Args:
        chosen: Matrix and rank of the cuts that were taken; where none was, of the one that came nearest.
    """
    frame = "what was chosen" if verdict.cut else "the best that was tried, which is not shown to gain"
    lead = (
        "Each cell is one matrix cut to one rank, judged on the validation split: blue is better than the "
        f"original, orange worse. The frame marks {frame}, a stroke what left the race early, "
        "a dot what the search did not judge; layers of which it judged nothing are left out. 0&nbsp;% of the "
        "components is the matrix set to zero."
    )
    section = PageSection("sweep", "Every cut that was tried", lead, ())
    base, limits = analysis.base, {}
    if base is None:
        return section
    for metric in ("accuracy", "loss") if verdict.metric.startswith("accuracy") else ("loss", "accuracy"):
        changes = [improvement(row, base, metric) for row in analysis.sweep]
        measured = [change for change in changes if known(change)]
        if measured:
            limits[metric] = color_limit(measured)
    if not limits:
        return section
    scales = "".join(
        _color_scale(metric, base, limit, shown=not place)
        for place, (metric, limit) in enumerate(limits.items())
    )
    maps = sweep_maps(analysis.sweep, base, limits, chosen, analysis.screen)
    bar = f'<div class="bar-row">{_metric_buttons(list(limits))}{scales}</div>'
    return replace(section, body=(bar, FigureGroup(tuple(maps), "multiples")))


def _metric_buttons(metrics: Sequence[str]) -> str:
    if len(metrics) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" data-metric="{metric}" aria-pressed="{str(not place).lower()}">{metric}</button>'
        for place, metric in enumerate(metrics)
    )
    return f'<div class="toggle" id="metric" role="group" aria-label="color by">{buttons}</div>'


def _color_scale(metric: str, base: BaseRecord, limit: float, *, shown: bool) -> str:
    """Return the legend of the heat maps: a strip from worse over the original to better."""
    unit = "share" if metric == "accuracy" else "nats"
    worse, better = (-limit, limit) if unit == "share" else (limit, -limit)
    ends = (
        f"{change(worse, unit)} or worse",
        f"original {number(metric_of(base, metric), unit)}",
        change(better, unit),
    )
    words = "".join(f"<span>{text(end)}</span>" for end in ends)
    hidden = "" if shown else " hidden"
    return f'<div class="scale" data-metric="{metric}"{hidden}><i></i><div>{words}</div></div>'


# ----------------------------------------------------------------------------------------------------------- the curves


def curves_section(analysis: LaserAnalysis, chosen: Mapping[str, float]) -> PageSection:
    """Return a panel for each kind of matrix, a line for each block, on one loss axis.

    Args:
        chosen: By the site of a cut, the percentage of components that it removes.

    Source: LASER, arXiv 2312.13558, Fig. 2.
    """
    rows, base_loss = analysis.curves, analysis.base.loss if analysis.base else None
    losses = [loss for row in rows for loss in row.loss if known(loss)]
    panels: list[Figure] = []
    if losses:
        axis = loss_axis(losses + ([base_loss] if known(base_loss) else []))
        blocks = 1 + max(row.block for row in rows)
        panels = [
            _curve_panel(name, group, base_loss, chosen, blocks, axis)
            for name, group in by_matrix(rows).items()
        ]
    cut = [("line accent", "the matrix that was cut")] if chosen else []
    legend = key(("depth", "first block to last"), *cut, ("line base", "original"))
    lead = (
        "Loss as components are removed, smallest singular values first; below the dotted line is a gain. "
        "Judged after the search, which did not choose among these points."
    )
    body = (legend, FigureGroup(tuple(panels), "multiples")) if panels else ()
    return PageSection("curves", "How much can go", lead, body)


def _curve_panel(
    name: str,
    rows: list[CurveRecord],
    base_loss: float | None,
    chosen: Mapping[str, float],
    blocks: int,
    axis: Trace,
) -> Figure:
    cut = [row for row in rows if row.site in chosen]
    lines = [_curve(row, depth_color(row.block, blocks), 1.6) for row in rows if row.site not in chosen]
    lines += [_curve(row, ACCENT, 2.8) for row in cut]
    for row in cut:  # a ring at the rank that was chosen, where the curve has it
        points = zip(row.removed, row.loss, strict=True)
        near = [(x, y) for x, y in points if known(y) and abs(x - chosen[row.site]) < 0.05]
        lines.append(marks(near, symbol="circle-open", size=15, color=INK, line={"width": 2}))
    layout = new_layout(
        240,
        xaxis=new_axis("% of components removed", range=[-3, 103], tickvals=[0, 25, 50, 75, 100]),
        yaxis=dict(axis),
        shapes=[level(base_loss)] if known(base_loss) else [],
    )
    cells = [
        [text(row.site), f"{removed:.4g}{chr(160)}%", number(loss, "nats"), number(accuracy, "share")]
        for row in rows
        for removed, loss, accuracy in _points(row)
    ]
    return Figure(name, lines, layout, ("site", "removed", "loss", "accuracy"), cells)


def _points(row: CurveRecord) -> list[tuple[float, float, float | None]]:
    return list(zip(row.removed, row.loss, row.accuracy or [None] * len(row.loss), strict=True))


def _curve(row: CurveRecord, color: str, width: float) -> Trace:
    hover = [
        f"<b>{text(row.site)}</b><br>{removed:.4g} % removed<br>loss {number(loss, 'nats')}"
        + (f"<br>accuracy {number(accuracy, 'share')}" if known(accuracy) else "")
        for removed, loss, accuracy in _points(row)
    ]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(row.removed),
        "y": list(row.loss),
        "text": hover,
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": color, "width": width},
        "marker": {"size": 3 + width, "color": color},
    }


# ------------------------------------------------------------------------------------------------ spectra and the tail


def spectrum_section(spectra: Mapping[str, SpectrumRecord], *, is_cut: bool) -> PageSection:
    """Return the singular values of each matrix that was cut, or of the one whose cut was the best that was tried."""
    lead = "Singular values of the matrix that was cut: in blue what stays, in gray what went."
    if not is_cut:
        lead = (
            "Nothing was cut. Singular values of the matrix of the best cut that was tried: in blue what it would "
            "keep, in gray what it would remove."
        )
    drawn = tuple(spectrum(site, item.values, item.kept) for site, item in spectra.items())
    return PageSection("spectrum", "Inside the matrix", lead, (FigureGroup(drawn),))


def spectrum(site: str, values: Sequence[float], kept: int, side: str = "top") -> Figure:
    """Return bars of singular values, the kept ones colored.

    Args:
        kept: How many are kept: the largest, or the smallest where `side` is "tail".
    """
    ordered = sorted(values, reverse=True)
    count = len(ordered)
    keeps = [(i < kept) if side == "top" else (i >= count - kept) for i in range(count)]
    words = ["kept" if keep else "removed" for keep in keeps]
    total = sum(v * v for v in ordered) or 1.0
    energy = sum(v * v for v, keep in zip(ordered, keeps, strict=True) if keep) / total
    bars: Trace = {
        "type": "bar",
        "x": list(range(1, count + 1)),
        "y": ordered,
        "marker": {"color": [AFTER if keep else TRACK for keep in keeps], "line": {"width": 0}},
        "text": [f"component {i + 1}: {v:.4g}<br>{words[i]}" for i, v in enumerate(ordered)],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }
    layout = new_layout(
        270,
        bargap=0.25 if count <= 128 else 0,
        xaxis=new_axis("component, largest first", showgrid=False, nticks=8, range=[0, count + 1]),
        yaxis=new_axis("singular value", rangemode="tozero", nticks=6),
    )
    title = f"{site}: {kept:,} of {count:,} components kept, with {100 * energy:.1f} % of the squared norm"
    cells = [[str(i + 1), f"{v:.5g}", words[i]] for i, v in enumerate(ordered)]
    return Figure(title, [bars], layout, ("component", "singular value", ""), cells)


TAIL_WORDS = {  # by kind: title of a card, what the components are to the cut
    "full": ("The whole matrix", ", as trained"),
    "top": ("Only the {rank} largest components", ", what stays"),
    "tail": ("Only the {rank} smallest components", ", what was removed"),
}


def tail_section(rows: Sequence[TailRecord]) -> PageSection:
    """Return what the model answers with the whole matrix, its top, its tail: counts, cosine, accuracy."""
    lead = (
        "The model's most frequent answers with the whole matrix, with the components that stay, and with "
        "only those that were removed. Cosine: how near the answer's vector lies to the right one's."
    )
    most = max((count for row in rows for _, count in row.answers), default=1)
    cards = f'<div class="cards">{"".join(_tail_card(row, most) for row in rows)}</div>' if rows else ""
    return PageSection("tail", "What the removed part says", lead, (cards,))


def _tail_card(row: TailRecord, most: int) -> str:
    title, note = TAIL_WORDS.get(row.kind, ("Rank {rank}", ""))
    bars = "".join(
        f'<div class="bar"><code>{text(answer.strip()) or "<em>nothing</em>"}</code>'
        f'<span><i style="width:{100 * count / most:.1f}%"></i></span>'
        f"<small>{count:,}</small></div>"
        for answer, count in row.answers[:MOST_ANSWERS]
    )
    cosine = f"{row.cosine:.2f}" if known(row.cosine) else MISSING
    facts = (("cosine to the right answer", cosine), ("accuracy", number(row.accuracy, "share")))
    values = "".join(f"<div><b>{text(value)}</b><small>{name}</small></div>" for name, value in facts)
    head = f"<h3>{text(title.format(rank=f'{row.rank:,}'))}<small>{text(row.site + note)}</small></h3>"
    return f'<div class="card">{head}{bars}<div class="facts">{values}</div></div>'


# ----------------------------------------------------------------------------------------------------------- the screen


def screen_section(analysis: LaserAnalysis, chosen: set[tuple[str, int]], *, is_cut: bool) -> PageSection:
    """Return the measured change of the loss against the place in the screen's order, and in words if they agree."""
    point = "the chosen cut" if is_cut else "the best cut that was tried"
    lead = (
        "Candidates in the order that gradients predicted, against the loss then measured: a good screen has "
        f"its lowest points at the left. The orange point is {point}; the strokes below left the race early."
    )
    order, points = _screened(analysis)
    if len(points) < FEWEST_SCREENED:
        return PageSection("screen", "Was the shortcut right?", lead, ())
    body = (_screen_words(order, points), FigureGroup((_screen_figure(analysis, order, points, chosen),)))
    return PageSection("screen", "Was the shortcut right?", lead, body)


Screened = tuple[
    int, ScreenedTruncation, float
]  # place in the screen's order, candidate, measured change of the loss


def _screened(analysis: LaserAnalysis) -> tuple[list[ScreenedTruncation], list[Screened]]:
    """Return the candidates in the screen's order, and those of them that were judged to the end."""
    base_loss = analysis.base.loss if analysis.base else None
    order = sorted((row for row in analysis.screen if known(row.score)), key=lambda row: row.score)
    losses = {row.key: row.loss for row in analysis.sweep if row.complete and known(row.loss)}
    if not known(base_loss):
        return order, []
    return order, [
        (place, row, losses[row.key] - base_loss)
        for place, row in enumerate(order, start=1)
        if row.key in losses
    ]


def _screen_words(order: Sequence[ScreenedTruncation], points: Sequence[Screened]) -> str:
    """Return in words how far the predicted order agrees with the measured one, by Spearman's rank correlation."""
    predicted, measured = ([point[column] for point in points] for column in (0, 2))
    rho = float(spearmanr(predicted, measured).statistic) if len(set(measured)) > 1 else 0.0
    answer = "Yes, by and large" if rho >= AGREES else "Only in part" if rho >= AGREES_PARTLY else "No"
    place, row, delta = min(points, key=lambda point: point[2])
    return (
        f"<p><b>{answer}.</b> Over the {len(points):,} cuts that were judged to the end, predicted and measured "
        f"order have a rank correlation of {number(rho, '')} (1: the same order, 0: unrelated). The lowest measured "
        f"loss, {change(delta, 'nats')} nats with {text(row.site)} at rank {row.rank}, was predicted at place "
        f"{place:,} of {len(order):,}. What the screen set aside was not measured.</p>"
    )


def _screen_figure(
    analysis: LaserAnalysis,
    order: Sequence[ScreenedTruncation],
    points: Sequence[Screened],
    chosen: set[tuple[str, int]],
) -> Figure:
    low, high = (end([0.0, *(delta for _, _, delta in points)]) for end in (min, max))
    floor = low - 0.12 * (high - low)
    ended, raced = {row.key for _, row, _ in points}, {row.key for row in analysis.sweep}
    rug = [(n, floor) for n, row in enumerate(order, start=1) if row.key in raced - ended]
    last = max(n for n, row in enumerate(order, start=1) if row.key in raced)
    strokes = marks(rug, symbol="line-ns-open", size=8, color=EDGE, line={"width": 1})
    layout = new_layout(
        290,
        xaxis=new_axis("place in the screen's order (1: predicted best)", showgrid=False, nticks=8)
        | {"range": [-0.01 * last, 1.01 * last + 1]},
        yaxis=new_axis("measured change of loss, nats", nticks=6),
        shapes=[level(0.0)],
    )
    cells = [
        [text(row.site), str(row.rank), str(place), change(row.score, "nats"), change(delta, "nats")]
        for place, row, delta in points
    ]
    head = ("site", "rank", "place", "predicted", "measured")
    note = f"the first {last:,} of {len(order):,}" if last < len(order) else ""
    return Figure(
        "Predicted and measured", [strokes, _screen_dots(points, chosen)], layout, head, cells, note
    )


def _screen_dots(points: Sequence[Screened], chosen: set[tuple[str, int]]) -> Trace:
    hits = [row.key in chosen for _, row, _ in points]
    hover = [
        f"<b>{text(row.site)}</b>, rank {row.rank}<br>place {place} in the screen's order<br>"
        f"predicted {change(row.score, 'nats')}<br>measured {change(delta, 'nats')} nats"
        for place, row, delta in points
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [place for place, _, _ in points],
        "y": [delta for _, _, delta in points],
        "text": hover,
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": [ACCENT if hit else AFTER for hit in hits],
            "size": [14 if hit else 7 for hit in hits],
            "opacity": 0.85,
        },
    }
