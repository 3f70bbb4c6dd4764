"""Sections about what heads and blocks are worth, and what the heads do; of a run's page and of a probe's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secateur.report.chart import Figure
from secateur.report.frame import Figures, Record, place, section
from secateur.report.grids import LARGE, SMALL, amount, correlations, unit_map, values_of
from secateur.report.markup import capital, change, key, known, text
from secateur.report.neurons import concentration
from secateur.report.parts import overlap_scatter, part_bars
from secateur.report.pruned_units import Dropped, dropped_in

BESIDE = 8  # readings whose correlations fit beside the large map

_PARTS = {"ffns": "Feed-forward networks", "attentions": "Attentions", "blocks": "Whole blocks"}


def importance(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """Head importance: the mean over readings large, each reading small, and how far the readings agree."""
    record = (analysis.get("components") or {}).get("heads") or {}
    mean = values_of(record.get("mean"))
    if not mean:
        return ""
    gone, readings, overlap = dropped_in(verdict), record.get("readings") or (), record.get("overlap")
    first = [_map(_mean_title(readings), mean, record["unit"], gone, most=LARGE)]
    agreement = [correlations("Do the readings agree?", overlap)] if overlap else []
    beside = len(readings) <= BESIDE
    body = place("importance", first + (agreement if beside else []), figures, layout="duo")
    if len(readings) > 1:
        maps = [_reading(reading, record["unit"], gone) for reading in readings]
        body += place("readings", maps, figures, layout="multiples words")
    if not beside:
        body += place("agreement", agreement, figures)
    return section("importance", "Which heads matter", _importance_lead(record, overlap), _scale(gone), body)


def _importance_lead(record: Record, overlap: Record | None) -> str:
    lead = (
        f"How strongly the loss hangs on each head, in {text(record['unit'])}: the mean of |output × gradient|. "
        "Each map has its own scale, by square roots, since a few heads outweigh all others."
    )
    return lead + (f" {_agreement(overlap)}" if overlap else "")


def _agreement(overlap: Record) -> str:
    low, high = (text(change(end, "rho")) for end in _ends(overlap))
    if len(overlap["names"]) == 2:
        return f"Rank correlation between the two readings: {low}."
    return f"Rank correlations between readings: {low} to {high}."


def _ends(overlap: Record) -> tuple[float | None, float | None]:
    """The lowest and highest correlation between two different readings."""
    pairs = [v for i, row in enumerate(overlap["rho"]) for j, v in enumerate(row) if i < j and known(v)]
    return min(pairs, default=None), max(pairs, default=None)


def _mean_title(readings: Sequence[Record]) -> str:
    return (
        f"Mean of {len(readings)} readings"
        if len(readings) > 1
        else "".join(str(r["name"]) for r in readings)
    )


def _map(title: str, values: Mapping, unit: str, gone: Dropped, read: str = "", most: int = SMALL) -> Figure:
    note = ", ".join([*([read] if read else []), f"largest {amount(max(values.values()), unit)}"])
    return unit_map(title, values, gone, unit=unit, word="importance", note=note, most=most)


def _reading(reading: Record, unit: str, gone: Dropped) -> Figure:
    return _map(str(reading["name"]), values_of(reading["values"]), unit, gone, _read(reading))


def _read(reading: Record) -> str:
    """How many examples were read, and of how many where not all fitted the context."""
    n, of = reading.get("n"), reading.get("of")
    return "" if not n else f"n = {n:,}" if of in (None, n) else f"n = {n:,} of {of:,}"


def _scale(gone: Dropped) -> str:
    """The legend of the maps: a strip from nothing to the largest, with its quarter in the middle."""
    ends = "<span>0</span><span>a quarter</span><span>the map’s largest</span>"
    strip = f'<div class="scale root"><i></i><div>{ends}</div></div>'
    return f'<div class="bar-row">{strip}{key(("cross", "cut")) if gone.sites else ""}</div>'


def parts(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """Feed-forward networks, attentions and blocks, by what the model loses without one."""
    record, gone = analysis.get("components") or {}, dropped_in(verdict)
    measured = {name: record[name] for name in _PARTS if values_of((record.get(name) or {}).get("mean"))}
    found = [part_bars(_PARTS[name], item, gone) for name, item in measured.items()]
    several = any(len(item.get("readings") or ()) > 1 for item in measured.values())
    lead = "What is lost when one part alone is taken out and everything else stays."
    if several:
        lead += " Bars are means over readings, dots the readings."
    if any(value < 0 for item in measured.values() for value in values_of(item["mean"]).values()):
        lead += " Below zero, the model does better without it."
    cut = (("square accent", "cut"),) if any(site in gone for site in _sites(measured)) else ()
    legend = key(("square", "stays"), *cut) if cut else ""
    return section(
        "parts",
        "What each block is worth",
        lead,
        legend if found else "",
        place("parts", found, figures, layout="multiples words"),
    )


def _sites(measured: Mapping[str, Record]) -> list:
    return [site for item in measured.values() for site in values_of(item["mean"])]


def neurons(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """Neurons of the feed-forward networks: how few of them hold how much."""
    record = (analysis.get("components") or {}).get("neurons") or {}
    mean = values_of(record.get("mean"))
    found = [concentration(mean, record["unit"])] if mean else []
    lead = "The steeper a curve rises, the fewer neurons its block needs; a straight line means that all are alike."
    legend = key(("depth", "first block to last")) if found else ""
    boxes = place("neurons", found, figures, layout="duo")
    return section("neurons", "How few neurons do the work", lead, legend, boxes)


def induction(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """What the heads do: prefix matching and copying, and how far that goes with importance."""
    record, gone = analysis.get("components") or {}, dropped_in(verdict)
    scores = {
        "prefix matching": values_of(record.get("prefix_matching")),
        "copying": values_of(record.get("copying")),
    }
    found = [
        unit_map(
            capital(name), values, gone, unit="score", word=name, note=f"largest {max(values.values()):.2f}"
        )
        for name, values in scores.items()
        if values
    ]
    heads = record.get("heads") or {}
    mean, overlap = values_of(heads.get("mean")), record.get("induction_overlap")
    if mean and scores["prefix matching"]:
        found.append(
            overlap_scatter(mean, scores["prefix matching"], heads["unit"], gone, "square-root axes")
        )
    lead = (
        "Prefix matching: how much a head looks at what followed the same token before. Copying: how far it raises "
        "the token it looks at. Both run from 0 to 1, in color by square roots, and say what a head does, not what it "
        "is worth."
    )
    boxes = place("induction", found, figures, layout="multiples words")
    return section(
        "induction", "Heads that look back and copy", lead, _overlap_words(overlap) if boxes else "", boxes
    )


def _overlap_words(overlap: Record | None) -> str:
    """The correlations in one sentence, importance against each score."""
    if not overlap:
        return ""
    said = [
        f"{text(name)} {text(change(value, 'rho'))}"
        for name, value in zip(overlap["names"][1:], overlap["rho"][0][1:], strict=True)
        if known(value)
    ]
    words = f"Rank correlation with importance over {overlap['n']:,} heads: {' and '.join(said)}."
    return f'<p class="aside">{words}</p>' if said else ""


def probe_hero(record: Record) -> str:
    """The head of a probe's page: the model, what was read, on what."""
    tasks = [text(name) for name in record.get("tasks") or ()]
    what = [text(_READ.get(name, name)) for name in record.get("what") or ()]
    said = f"Readings of {_listed(what)}" if what else "Readings"
    on = f", on {_listed(tasks)}" if tasks else ""
    on += f" (split {text(record['split'])})" if tasks and record.get("split") else ""
    return (
        f'<header class="neutral probe"><p class="who">secateur probe</p><h1>{text(record.get("model", ""))}</h1>'
        f'<p class="sentence">{said}{on}. Nothing was cut.</p></header>'
    )


_READ = {"ffns": "feed-forward networks"}


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
