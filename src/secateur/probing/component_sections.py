"""Sections about what heads, networks, blocks and neurons are worth, and what heads do; of a run's page and a probe's.

Knows no torch.
"""

from __future__ import annotations

from secateur.core.records.probe import (
    ComponentsRecord,
    OverlapRecord,
    ReadingRecord,
    RemovalCheckRecord,
)
from secateur.probing.component_figures import (
    LARGE,
    SMALL,
    Values,
    amount,
    concentration,
    correlations,
    overlap_scatter,
    part_bars,
    unit_map,
    values_of,
)
from secateur.report.chart import Figure
from secateur.report.frame import FigureGroup, PageSection
from secateur.report.markup import capital, change, key, known, text
from secateur.report.pruned_units import Dropped

BESIDE = 8  # readings whose correlations fit beside the large map
PARTS = {"ffns": "Feed-forward networks", "attentions": "Attentions", "blocks": "Whole blocks"}
NOTHING = Dropped()


def component_sections(record: ComponentsRecord, gone: Dropped = NOTHING) -> list[PageSection]:
    """Return a section for each thing that was read, empty where it was not.

    Args:
        gone: What was cut, which is marked in the figures.
    """
    return [
        importance(record, gone),
        parts(record, gone),
        neurons(record),
        experts(record, gone),
        induction(record, gone),
    ]


# -------------------------------------------------------------------------------------------------- importance of heads


def importance(record: ComponentsRecord, gone: Dropped) -> PageSection:
    """Return head importance: the mean over readings large, each reading small, and how far the readings agree."""
    lead = (
        "How strongly the loss hangs on each head, in {}: the mean of |output × gradient|. "
        "Each map has its own scale, by square roots, since a few heads outweigh all others."
    )
    heads = record.heads
    mean = values_of(heads.mean if heads else None)
    if heads is None or not mean:
        return PageSection("importance", "Which heads matter", "", ())
    readings, overlap = heads.readings, heads.overlap
    alone = "".join(reading.name for reading in readings)
    title = f"Mean of {len(readings)} readings" if len(readings) > 1 else alone
    first = [_map(title, mean, heads.unit, gone, most=LARGE)]
    agreement = [correlations("Do the readings agree?", overlap)] if overlap else []
    beside = len(readings) <= BESIDE
    maps = [
        _map(reading.name, values_of(reading.values), heads.unit, gone, examples_read(reading))
        for reading in readings
    ]
    body = (
        scale_legend(gone),
        FigureGroup(tuple(first + (agreement if beside else [])), "duo"),
        FigureGroup(tuple(maps) if len(readings) > 1 else (), "multiples words", "readings"),
        FigureGroup(() if beside else tuple(agreement), name="agreement"),
    )
    lead = lead.format(text(heads.unit)) + (f" {agreement_words(overlap)}" if overlap else "")
    lead += "".join(
        f" {text(words)}" for reading in readings for words in check_words(reading.name, reading.check)
    )
    return PageSection("importance", "Which heads matter", lead, body)


def check_words(name: str, check: RemovalCheckRecord | None, kind: str = "heads") -> list[str]:
    """Return how far the orders of heads, or of another kind, agree with what taking some of them out really does."""
    if check is None:
        return []
    found = [
        f"{agreement.rho:.2f} [{agreement.ci[0]:.2f}, {agreement.ci[1]:.2f}] with the {name.replace('_', ' ')}"
        for name, agreement in check.agreement.items()
        if agreement.rho is not None and agreement.ci
    ]
    if not found:
        return []
    return [
        f"{name}: {check.n} {kind} from all over the order were taken out, one at a time, on {check.examples:,} "
        f"examples; the rank correlation of the rise of the loss is {', '.join(found)}."
    ]


def _map(title: str, values: Values, unit: str, gone: Dropped, read: str = "", most: int = SMALL) -> Figure:
    note = ", ".join([*([read] if read else []), f"largest {amount(max(values.values()), unit)}"])
    return unit_map(title, values, gone, unit=unit, word="importance", note=note, most=most)


def examples_read(reading: ReadingRecord) -> str:
    """Return in words how many examples were read, and of how many where not all fitted the context."""
    n, of = reading.n, reading.of
    return "" if not n else f"n = {n:,}" if of in (None, n) else f"n = {n:,} of {of:,}"


def agreement_words(overlap: OverlapRecord) -> str:
    """Return the lowest and the highest correlation between two different readings, in words."""
    pairs = [v for i, row in enumerate(overlap.rho) for j, v in enumerate(row) if i < j and known(v)]
    low, high = (text(change(end, "rho")) for end in (min(pairs, default=None), max(pairs, default=None)))
    if len(overlap.names) == 2:
        return f"Rank correlation between the two readings: {low}."
    return f"Rank correlations between readings: {low} to {high}."


def scale_legend(gone: Dropped) -> str:
    """Return the legend of the maps: a strip from nothing to the largest, with its quarter in the middle."""
    ends = "<span>0</span><span>a quarter</span><span>the map’s largest</span>"
    strip = f'<div class="scale root"><i></i><div>{ends}</div></div>'
    return f'<div class="bar-row">{strip}{key(("cross", "cut")) if gone.sites else ""}</div>'


# ----------------------------------------------------------------------------------------- blocks, neurons and behavior


def parts(record: ComponentsRecord, gone: Dropped) -> PageSection:
    """Return feed-forward networks, attentions and blocks, by what the model loses without one."""
    kinds = record.kinds
    measured = {name: kinds[name] for name in PARTS if name in kinds and values_of(kinds[name].mean)}
    means = [values_of(item.mean) for item in measured.values()]
    lead = "What is lost when one part alone is taken out and everything else stays."
    if any(len(item.readings) > 1 for item in measured.values()):
        lead += " Bars are means over readings, dots the readings."
    if any(value < 0 for mean in means for value in mean.values()):
        lead += " Below zero, the model does better without it."
    cut = any(site in gone for mean in means for site in mean)
    legend = key(("square", "stays"), ("square accent", "cut")) if cut else ""
    figures = tuple(part_bars(PARTS[name], item, gone) for name, item in measured.items())
    body = (legend, FigureGroup(figures, "multiples words"))
    return PageSection("parts", "What each block is worth", lead, body)


def neurons(record: ComponentsRecord) -> PageSection:
    """Return how few neurons of the feed-forward networks hold how much of their importance."""
    lead = "The steeper a curve rises, the fewer neurons its block needs; a straight line means that all are alike."
    title, found = "How few neurons do the work", record.neurons
    mean = values_of(found.mean if found else None)
    if found is None or not mean:
        return PageSection("neurons", title, lead, ())
    body = (key(("depth", "first block to last")), FigureGroup((concentration(mean, found.unit),), "duo"))
    return PageSection("neurons", title, lead, body)


def experts(record: ComponentsRecord, gone: Dropped) -> PageSection:
    """Return how much of their weight routers give to each expert of a mixture, by reading."""
    lead = (
        "The share of its router's weights that each expert gets, on each map by square roots; it says how much an "
        "expert is used, not what is lost without it."
    )
    read = [] if record.experts is None else record.experts.readings
    figures = [
        unit_map(
            reading.name,
            values,
            gone,
            unit="share",
            word="router mass",
            note=examples_read(reading),
            part="expert",
        )
        for reading in read
        if (values := values_of(reading.values))
    ]
    lead += "".join(
        f" {text(words)}" for reading in read for words in check_words(reading.name, reading.check, "experts")
    )
    body = (scale_legend(gone) if figures else "", FigureGroup(tuple(figures), "multiples words"))
    return PageSection("experts", "Which experts are used", lead, body)


def induction(record: ComponentsRecord, gone: Dropped) -> PageSection:
    """Return what heads do (prefix matching and copying), and how far that goes with their importance."""
    scores = {
        "prefix matching": values_of(record.prefix_matching),
        "copying": values_of(record.copying),
        "copying beyond the sink": values_of(record.copying_beyond_sink),
        "attention sink": values_of(record.attention_sink),
    }
    figures = [
        unit_map(
            capital(name), values, gone, unit="score", word=name, note=f"largest {max(values.values()):.2f}"
        )
        for name, values in scores.items()
        if values
    ]
    heads = record.heads
    if heads and values_of(heads.mean) and scores["prefix matching"]:
        figures.append(overlap_scatter(values_of(heads.mean), scores["prefix matching"], heads.unit, gone))
    lead = (
        "Prefix matching: how much a head looks at what followed the same token before. Copying: how far it raises "
        "the token it looks at most; beyond the sink, only where that is neither the first position nor the "
        "token itself. Attention sink: the share of positions where it is. All run from 0 to 1, in color by square "
        "roots, and say what a head does, not what it is worth."
    )
    words = overlap_words(record.induction_overlap) if figures else ""
    body = (words, FigureGroup(tuple(figures), "multiples words"))
    return PageSection("induction", "Heads that look back and copy", lead, body)


def overlap_words(overlap: OverlapRecord | None) -> str:
    """Return the correlations of importance with each score in one sentence."""
    if not overlap:
        return ""
    pairs = [
        f"{text(name)} {text(change(value, 'rho'))}"
        for name, value in zip(overlap.names[1:], overlap.rho[0][1:], strict=True)
        if known(value)
    ]
    words = f"Rank correlation with importance over {overlap.n:,} heads: {' and '.join(pairs)}."
    return f'<p class="aside">{words}</p>' if pairs else ""
