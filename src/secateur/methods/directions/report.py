"""Sections about singular directions: what each is worth, how good predictions were, how far it went, what they say.

No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.core.score import metric_name
from secateur.core.site import Site
from secateur.methods.directions.effects_plot import (
    ENOUGH,
    calibration_scatter,
    effect_panels,
    harm_map,
    kept_promises,
    shares_by_size,
    spearman,
    worth_showing,
)
from secateur.methods.directions.records import (
    DirectionsReading,
    DirectionsRecord,
    DirectionsStep,
    DirectionWords,
    MatrixDirections,
    Tokens,
)
from secateur.report.chart import (
    ACCENT,
    AFTER,
    BEFORE,
    INK,
    Figure,
    Trace,
    level,
    marks,
    new_axis,
    new_layout,
    value_axis,
)
from secateur.report.cuts import NUMBERED, LookedAt
from secateur.report.frame import FigureGroup, PageSection
from secateur.report.markup import MINUS, change, key, known, number, signed, table, text
from secateur.report.pruned_units import site_of


def sections(record: DirectionsRecord | None) -> list[PageSection]:
    """Return the sections in the order of the page; none of an analysis without directions."""
    if record is None:
        return []
    return [
        effects_section(record),
        predictions_section(record),
        trajectory_section(record),
        words_section(record),
    ]


def reading_sections(rows: Sequence[DirectionsReading]) -> list[PageSection]:
    """Return what `probe --what directions` read: the harm in each matrix, and effects along the worst spectra."""
    pieces = []
    for row in rows:
        site = Site.parse(row.values.site)
        pieces.append(
            MatrixDirections(
                site=row.values.site,
                matrix=site.label,
                block=site.block,
                head=row.values.head,
                of=row.of,
                harmful=row.harmful,
                harm=-row.their_sum,
                index=list(range(row.of)),
                sigma=row.values.sigma,
                effect=row.values.effect,
                removed=[],
            )
        )
    lead = (
        "What the loss is predicted to do when one singular direction alone goes and its mean effect stays as a bias. "
        "Darker: more to gain if all directions that hurt went."
    )
    shown = worth_showing(pieces)
    body = (
        FigureGroup((harm_map(pieces),)),
        FigureGroup(tuple(effect_panels(shown)), "multiples", "effects"),
    )
    return [PageSection("harm", "Which directions hurt", lead, body)]


def looked_at(record: DirectionsRecord | None) -> LookedAt:
    """Return the matrices whose directions were read, and how many of them were removed, for the map of the model."""
    if record is None:
        return LookedAt()
    removed: dict[str, tuple[int, int]] = {}
    for piece in record.matrices:
        gone, of = removed.get(piece.site, (0, 0))
        removed[piece.site] = gone + len(piece.removed), of + piece.of
    return LookedAt(frozenset(site for name in removed if (site := site_of(name)) is not None), removed)


# -------------------------------------------------------------------------------------------------------------- effects


def effects_section(record: DirectionsRecord) -> PageSection:
    """Return the map of all matrices, and effects along the spectrum of those that were cut or matter most."""
    order = "second order" if record.second_order else "first order"
    what = "whitened singular direction" if record.whitened else "singular direction"
    heads = " (attention heads have their own)" if record.per_head else ""
    lead = (
        f"What the loss is predicted to do, to {order}, when one {what}{heads} alone is removed and its mean effect "
        f"stays as a bias; in nats, read on {record.n:,} examples. Below zero the model does better without it."
    )
    section = PageSection("directions", "What each direction is worth", lead, ())
    matrices = [piece for piece in record.matrices if piece.index]
    if not matrices:
        return section
    shown = worth_showing(matrices)
    cut = any(piece.removed for piece in matrices)
    ends = "<span>no harm</span><span>a quarter</span><span>the most harm</span>"
    strip = f'<div class="scale root"><i></i><div>{ends}</div></div>'
    few = max(piece.block for piece in matrices) < NUMBERED
    none_said = (
        "None of the removed directions writes to the stream by linear maps, so none can be read as tokens."
    )
    return PageSection(
        section.name,
        section.title,
        lead,
        (
            f'<div class="bar-row">{strip}{key(("frame", "directions removed")) if cut else ""}</div>',
            FigureGroup((harm_map(matrices),), "duo words" if few else "wide", "harm"),
            _which_are_shown(matrices, shown),
            key(
                ("square", "stays"),
                ("square accent", "removed"),
                ("thin", "singular values, on a scale of their own"),
            ),
            FigureGroup(tuple(effect_panels(shown)), "multiples words"),
            f'<p class="note">{none_said}</p>' if cut and not record.words else "",
        ),
    )


def _which_are_shown(matrices: Sequence[MatrixDirections], shown: Sequence[MatrixDirections]) -> str:
    """Return the sentence that says by what the panels were chosen; nothing where all matrices have one."""
    if len(shown) == len(matrices):
        return ""
    cut, all_cut = (sum(bool(piece.removed) for piece in pieces) for pieces in (shown, matrices))
    unit = "heads and matrices" if any(piece.head is not None for piece in matrices) else "matrices"
    most = f"the {cut:,} of {all_cut:,} {unit} with removed directions that hurt most"
    spared = f"{'all' if cut > 1 else ''} {cut:,} {unit} with removed directions"
    words = most if cut < all_cut else spared if cut else ""
    rest = len(shown) - cut
    words += f"{' and ' if words else ''}the {rest:,} that hurt most of the others" if rest else ""
    return f'<p class="note">Below: {words.strip()}. The map has them all.</p>'


# ---------------------------------------------------------------------------------------------------------- predictions


def predictions_section(record: DirectionsRecord) -> PageSection:
    """Return predicted against measured changes, and how often promises were kept; a sentence for a plan or two."""
    lead = (
        "The sum of the predicted effects of all directions that a plan adds, against what the loss then did on the "
        "validation split."
    )
    path = record.path
    if not path:
        body: tuple[str | FigureGroup, ...] = ()
    elif len(path) < ENOUGH:
        body = tuple(
            f"<p>{step.added:,} directions at once: predicted {signed(step.predicted)} nats, measured "
            f"{signed(step.measured)} nats per token on {step.n:,} examples.</p>"
            for step in path
        )
    else:
        shares = shares_by_size(path)
        figures = (calibration_scatter(path, record.chosen), *([shares] if shares else []))
        body = (_agreement(path), _scatter_key(record), FigureGroup(figures, "duo"))
    return PageSection("predictions", "Was the prediction right?", lead, body)


def _agreement(path: Sequence[DirectionsStep]) -> str:
    """Return in words how well predictions agree with measurements."""
    rho, (kept, promised) = spearman(path), kept_promises(path)
    sentences = [f"Spearman’s rank correlation over {len(path):,} plans: {change(rho, 'rho')}."]
    if promised:
        share = number(kept / promised, "share")
        sentences.append(f"Of {promised:,} that were predicted to lower the loss, {kept:,} did ({share}).")
    if rho is not None and rho < 0 and promised:
        sentences.append("Larger promises were kept less, which is why every plan is judged.")
    return f'<p class="aside">{text(" ".join(sentences))}</p>'


def _scatter_key(record: DirectionsRecord) -> str:
    items = []
    if len({step.round for step in record.path}) > 1:
        items.append(("depth", f"first to last of the {'steps' if _by_steps(record) else 'rounds'}"))
    if not all(step.complete for step in record.path):
        items.append(("dot open", "left the race early"))
    if record.chosen:
        items.append(("dot chosen", "taken"))
    return key(*items, ("line truth", "as predicted"), ("line base", "no change"))


def _by_steps(record: DirectionsRecord) -> bool:
    return record.protocol == "removal"


# ----------------------------------------------------------------------------------------------------------- trajectory


@dataclass(frozen=True)
class TrajectoryPoint:
    """A plan on the way from the original.

    Args:
        removed: Directions that it lacks.
        value: The metric with it.
        name: What it adds to the plan before.
        taken: Whether it leads to the plan that was chosen.
    """

    removed: int
    value: float
    loss: float
    name: str
    taken: bool


def trajectory(record: DirectionsRecord) -> list[TrajectoryPoint]:
    """Return the original, then each round that a search took, or each step of a removal; nothing without any."""
    taken = {(step.round, step.removed) for step in record.chosen}
    steps = record.path if _by_steps(record) else record.chosen
    if not steps:
        return []
    points = [TrajectoryPoint(0, steps[0].value_before, steps[0].loss_before, "original", True)]
    for step in steps:
        name = f"{step.pool} {MINUS}{step.added:,}"
        was_taken = (step.round, step.removed) in taken
        points.append(TrajectoryPoint(step.removed, step.value, step.loss, name, was_taken))
    return points


def trajectory_section(record: DirectionsRecord) -> PageSection:
    """Return the metric and the loss along the way to the plan; nothing for a way of fewer than two steps."""
    lead = (
        "Each step removes more directions; what is left is judged on the validation split."
        if _by_steps(record)
        else "Each round takes the directions that help most, after those that the rounds before took; judged on the "
        "validation split."
    )
    points = trajectory(record)
    if len(points) < 3:
        return PageSection("removal", "How far it went", lead, ())
    limit = worst_allowed(record, points[0].value)
    figures = [_trajectory_panel(record, points, limit, loss=False)]
    if record.metric not in ("loss", "text_loss"):
        figures.append(_trajectory_panel(record, points, None, loss=True))
    last = [point for point in points if point.taken][-1]
    name = metric_name(record.metric)
    value = f"{name[:1].lower()}{name[1:]} {number(last.value, record.metric_unit)}"
    what = f"{last.removed:,} of {record.total:,} directions" if last.removed else "nothing"
    body = (
        f'<p class="aside">{text(f"Chosen: {what} removed, {value}.")}</p>',
        key(("dot chosen", "chosen"), *((("line base", "bound"),) if limit is not None else ())),
        FigureGroup(tuple(figures), "pair", "walk"),
    )
    return PageSection("removal", "How far it went", lead, body)


def worst_allowed(record: DirectionsRecord, start: float) -> float | None:
    """Return the worst value that the metric may have, from that of the original; None where no bound was given."""
    if record.max_loss is None or not known(start):
        return None
    return start - record.max_loss if record.higher_is_better else start + record.max_loss


def _trajectory_panel(
    record: DirectionsRecord, points: Sequence[TrajectoryPoint], limit: float | None, *, loss: bool
) -> Figure:
    title, unit = ("Loss", "nats/token") if loss else (metric_name(record.metric), record.metric_unit)
    values = [point.loss if loss else point.value for point in points]
    x = [point.removed for point in points] if _by_steps(record) else list(range(len(points)))
    last = max(place for place, point in enumerate(points) if point.taken)
    words = [text(number(value, unit)) for value in values]
    line: Trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": values,
        "text": [
            f"<b>{text(point.name)}</b><br>{point.removed:,} directions removed<br>{value}"
            for point, value in zip(points, words, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": BEFORE, "width": 2},
        "marker": {"size": 8, "color": [AFTER if point.taken else BEFORE for point in points]},
    }
    ring = {"symbol": "circle", "size": 12, "color": ACCENT, "line": {"width": 2, "color": INK}}
    layout = new_layout(
        300,
        {"l": 52, "b": 60},
        xaxis=_trajectory_axis(record, points),
        yaxis=value_axis([*values, *([limit] if limit is not None else [])], unit),
        shapes=[level(limit)] if limit is not None else [],
    )
    rows = [
        [text(point.name), f"{point.removed:,}", value, "taken" if point.taken else ""]
        for point, value in zip(points, words, strict=True)
    ]
    return Figure(
        title,
        [line, marks([(x[last], values[last])], **ring)],
        layout,
        ("", "directions removed", title, ""),
        rows,
        "%" if unit == "share" else unit,
    )


def _trajectory_axis(record: DirectionsRecord, points: Sequence[TrajectoryPoint]) -> Trace:
    """Return an axis by the number of directions removed, or by round."""
    if _by_steps(record):
        most = points[-1].removed
        return new_axis("directions removed", range=[-0.03 * most, 1.04 * most], nticks=7)
    names = [f"{text(p.name)}<br>{p.removed:,} in all" if p.removed else "original" for p in points]
    axis = new_axis("", tickvals=list(range(len(points))), ticktext=names, showgrid=False)
    return axis | {"range": [-0.4, len(points) - 0.6], "tickangle": 0}


# ---------------------------------------------------------------------------------------------------------------- words


def words_section(record: DirectionsRecord) -> PageSection:
    """Return the tokens that the removed directions raise and lower, the most harmful directions first."""
    lead = (
        "Tokens that a removed direction raises most where it points one way, and where it points the other, read "
        "through the unembedding. The sign of a singular direction is arbitrary, and only directions of o, down and "
        "(through o) v reach the stream by linear maps, so only these have words."
    )
    matrices = {piece.site: piece for piece in record.matrices}
    rows = [_words_row(item, matrices.get(item.site)) for item in record.words]
    head = ("direction", "predicted, nats", "one way", "the other way")
    body = f'<div class="said">{table(head, rows)}</div>' if rows else ""
    return PageSection("words", "What the removed directions say", lead, (body,))


def _words_row(item: DirectionWords, piece: MatrixDirections | None) -> list[str]:
    """Return a row of the table; `piece` is the matrix, or the last of its heads, which all have as many directions."""
    head, direction = None, item.direction
    if piece is not None and piece.head is not None:
        head, direction = divmod(item.direction, piece.of)
    name = item.site if head is None else f"{item.site}, head {head}"
    return [
        text(f"{name}, direction {direction}"),
        text(signed(item.effect)),
        _tokens(item.more),
        _tokens(item.less),
    ]


def _tokens(tokens: Tokens) -> str:
    """Return tokens without the space they begin with; white space alone as Python writes it."""
    return " ".join(
        f'<code title="logit {value:+.2f}">{text(token.strip() or repr(token))}</code>'
        for token, value in tokens
    )
