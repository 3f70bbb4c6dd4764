"""The sections of the page: which figures and tables each has, and the line that says what it shows."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.core.baseline import floors_text
from secateur.core.score import few_groups
from secateur.report import cuts, tables
from secateur.report import interval_plot as forest
from secateur.report.components import importance, induction, neurons, parts
from secateur.report.depth import SECTIONS as DEPTH
from secateur.report.directions import SECTIONS as DIRECTIONS
from secateur.report.figures import curves, frequency, screen, spectrum
from secateur.report.frame import Figures, Record, Section, place, section
from secateur.report.gains import gains
from secateur.report.markup import change, interval, key, known, metric_name, number, p_value, text
from secateur.report.members import members
from secateur.report.pruning import pruning
from secateur.report.sweep import color_limit, improvements, sweep

SIGNS = {"improves": ("better", "▲"), "not worse": ("better", "✓"), "worse": ("worse", "▼")}  # else neither


def _cuts(verdict: Record) -> list[Record]:
    """What was truncated: other kinds of cut have no place in a grid of ranks."""
    items = verdict.get("cut") or ()
    return [item for item in items if known(item.get("rank")) and not cuts.removes_directions(item)]


def _chosen(verdict: Record) -> set[tuple[str, int]]:
    return {(item["site"], item["rank"]) for item in _cuts(verdict)}


def hero(verdict: Record) -> str:
    kind, sign = SIGNS.get(verdict["verdict"].partition(" by ")[0], ("neutral", "○"))
    unit, gap = verdict["unit"], verdict.get("difference") or {}
    model, task = verdict.get("model") or {}, verdict.get("task") or {}
    none = few_groups(verdict["groups"]) if "groups" in verdict else ""
    cells = [
        _big(
            side, number(verdict[side]["value"], unit), text(interval(verdict[side].get("ci"), unit) or none)
        )
        for side in ("before", "after")
    ]
    ends = interval(gap.get("ci"), unit, signed=True) or none
    cells.append(_big("change", change(gap.get("value"), unit, name_unit=False), text(ends)))
    who = f"{text(model.get('name', ''))} <span>on</span> {text(task.get('name', ''))}"
    direction = "higher is better" if verdict.get("higher_is_better", True) else "lower is better"
    unit_words = "share of questions" if unit == "share" else text(unit)
    small = f"<small>{unit_words}, {direction}; intervals are 95&nbsp;%</small>"
    what = f"{text(metric_name(verdict['metric']))} {small}"
    return (
        f'<header class="{kind}"><p class="who">{who}</p>'
        f'<h1><span class="sign" aria-hidden="true">{sign}</span>{text(verdict["verdict"])}</h1>'
        f'<p class="sentence">{text(verdict["sentence"])}</p>'
        f'<h2 class="what">{what}</h2><div class="big">{"".join(cells)}</div>{_how_sure(verdict)}</header>'
    )


def _big(kind: str, value: str, note: str) -> str:
    return f'<div class="{kind}"><small>{kind}</small><b>{text(value)}</b><span>{note}</span></div>'


def _how_sure(verdict: Record) -> str:
    parts = [p_value(verdict.get("p_value")), text(verdict.get("test", ""))]
    if verdict.get("n"):
        groups = verdict.get("groups") or verdict["n"]
        clusters = f" in {groups:,} groups" if groups != verdict["n"] else ""
        parts.append(f"{verdict['n']:,} test examples{clusters}, untouched until the end")
    if (verdict.get("candidates_tried") or 0) > 1:
        parts.append(f"chosen among {verdict['candidates_tried']:,} candidates")
    if (verdict.get("openings") or 1) > 1:
        before = p_value(verdict.get("p_value_unadjusted"))
        parts.append(f"test split opened {verdict['openings']} times, corrected for (uncorrected {before})")
    start = verdict.get("baseline") or {}
    if start and (floors := floors_text(start)):
        parts.append(f"without a model: {text(floors)}")
    said = f'<p class="sure">{" · ".join(part for part in parts if part)}</p>'
    return said + (f'<p class="warning">{text(start["warning"])}</p>' if start.get("warning") else "")


_TITLES = {"share": "Share of questions", "nats/token": "Loss", "perplexity": "Perplexity"}


def _legend(verdict: Record) -> str:
    simpler = any(item.get("applicable") for item in verdict.get("alternatives") or ())
    other = [("dot alternative", "a simpler change, for comparison")] if simpler else []
    return key(("dot before", "original"), ("dot after", "cut"), *other, ("bar95", "95&nbsp;% interval"))


def _compared(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    body = forest.panels(forest.main_rows(verdict), _TITLES)
    items = [verdict, *(verdict.get("secondary") or ())]
    folded = (
        f'<details class="numbers"><summary>numbers</summary>{tables.measures(items, "metric")}</details>'
    )
    lead = "Held-out test examples, before and after the cut, beside what a trivial change would have done."
    return section(
        "compared",
        "Before and after",
        lead,
        _legend(verdict),
        body,
        cuts.simpler(verdict),
        cuts.not_applicable(verdict),
        folded,
    )


def _guards(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    if not verdict.get("guards"):
        return ""
    fired = sum(bool(item["fired"]) for item in verdict["guards"])
    lead = (
        "Known ways for a gain to be hollow, checked."
        if not fired
        else "Known ways for a gain to be hollow: look closer."
    )
    return section("guards", "Can the gain be trusted?", lead, cuts.guards(verdict))


def _cut(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    drawn, said = cuts.model_map(verdict, analysis), cuts.cut_list(verdict, analysis)
    body = f'<div class="beside"><div>{drawn}</div><div>{said}</div></div>' if drawn else said
    whole = any(item.get("kind") == "drop" for item in verdict.get("cut") or ())
    lead = f"The model block by block, {'part by part' if whole else 'matrix by matrix'}."
    return section("cut", "What was cut", lead, body, cuts.funnel(verdict))


def _sweep(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    rows, base = analysis.get("sweep") or (), analysis.get("base") or {}
    metrics = [m for m in ("accuracy", "loss") if known(base.get(m)) and any(known(r.get(m)) for r in rows)]
    if not metrics:
        return ""
    if not str(verdict["metric"]).startswith("accuracy"):
        metrics.reverse()
    boxes = place(
        "sweep",
        sweep(rows, base, metrics, _chosen(verdict), analysis.get("screen") or ()),
        figures,
        layout="multiples",
    )
    scales = "".join(
        _scale(m, base, color_limit(improvements(rows, base, m)), m == metrics[0]) for m in metrics
    )
    lead = (
        "Each cell is one matrix cut to one rank, judged on the selection split: blue is better than the "
        "original, orange worse. The frame marks what was chosen, a stroke what left the race early, "
        "a dot what was not run."
    )
    return section(
        "sweep",
        "Every cut that was tried",
        lead,
        f'<div class="bar-row">{_toggle(metrics)}{scales}</div>',
        boxes,
    )


def _toggle(metrics: Sequence[str]) -> str:
    if len(metrics) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" data-metric="{m}" aria-pressed="{str(m == metrics[0]).lower()}">{m}</button>'
        for m in metrics
    )
    return f'<div class="toggle" id="metric" role="group" aria-label="color by">{buttons}</div>'


def _scale(metric: str, base: Record, limit: float, shown: bool) -> str:
    """The legend of the heat maps: a strip from worse over the base to better."""
    unit = "share" if metric == "accuracy" else "nats"
    worse, better = (
        (change(-limit, unit), change(limit, unit))
        if unit == "share"
        else (change(limit, unit), change(-limit, unit))
    )
    middle = f"original {number(base[metric], unit)}"
    ends = f"<span>{text(worse)} or worse</span><span>{text(middle)}</span><span>{text(better)}</span>"
    hidden = "" if shown else " hidden"
    return f'<div class="scale" data-metric="{metric}"{hidden}><i></i><div>{ends}</div></div>'


def _curves(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    chosen = {c["site"]: 100 * (1 - c["rank"] / c["full_rank"]) for c in _cuts(verdict) if c.get("full_rank")}
    found = curves(analysis.get("curves") or (), (analysis.get("base") or {}).get("loss"), chosen)
    boxes = place("curves", found, figures, layout="multiples")
    if not boxes:
        return ""
    legend = key(
        ("depth", "first block to last"),
        ("line accent", "the matrix that was cut"),
        ("line base", "original"),
    )
    lead = "Loss as components are removed, smallest singular values first; below the dotted line is a gain."
    return section("curves", "How much can go", lead, legend, boxes)


def _spectrum(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    found = analysis.get("spectrum") or {}
    drawn = [
        spectrum(site, item["values"], item["kept"], item.get("side", "top")) for site, item in found.items()
    ]
    lead = "Singular values of the matrix that was cut: in blue what stays, in gray what went."
    return section("spectrum", "Inside the matrix", lead, place("spectrum", drawn, figures))


def _frequency(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    boxes = place("frequency", frequency(analysis.get("frequency") or ()), figures)
    lead = (
        "Accuracy before and after, by how often the training text held the fact; bars: 95&nbsp;% intervals."
    )
    legend = key(("dot before", "original"), ("dot after", "cut")) if boxes else ""
    return section("frequency", "Which facts came back", lead, legend, boxes)


def _paraphrases(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    found = analysis.get("paraphrases") or {}
    body = forest.panels(forest.paraphrase_rows(found), {"share": "Share of facts"}) if found.get("n") else ""
    lead = "Asked in other words: whether a fact is known or only one way of asking for it."
    return section("paraphrases", "Other words, same fact", lead, body)


def _tail(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    rows = analysis.get("tail") or ()
    lead = (
        "The model's most frequent answers with the whole matrix, with the components that stay, and with "
        "only those that were removed. Cosine: how near the answer's vector lies to the right one's."
    )
    return section("tail", "What the removed part says", lead, tables.tail(rows) if rows else "")


def _changed(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    rows = analysis.get("changed") or ()
    lead = "Questions answered differently after the cut."
    return section("changed", "Answers that changed", lead, tables.changed(rows) if rows else "")


def _effects(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    body = forest.panels(forest.effect_rows(verdict), _TITLES)
    items = verdict.get("side_effects") or ()
    folded = (
        f'<details class="numbers"><summary>numbers</summary>{tables.measures(items, "name")}</details>'
        if items
        else ""
    )
    lead = "What the same cut did where nobody was aiming."
    return section("effects", "What it cost elsewhere", lead, body, folded)


def _screen(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    base = analysis.get("base") or {}
    found = screen(analysis.get("screen") or (), analysis.get("sweep") or (), base, _chosen(verdict))
    lead = (
        "Candidates in the order that gradients predicted, against the loss then measured: a good screen has "
        "its lowest points at the left. The orange point is the chosen cut; the strokes below were not run "
        "to the end."
    )
    return section("screen", "Was the shortcut right?", lead, place("screen", found, figures))


def _provenance(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    return f"<footer>{tables.provenance(verdict, plan)}</footer>"


SECTIONS: tuple[Section, ...] = (
    _compared,
    members,
    _guards,
    _cut,
    gains,
    _effects,
    pruning,
    *DIRECTIONS,
    *DEPTH,
    importance,
    parts,
    neurons,
    induction,
    _sweep,
    _curves,
    _spectrum,
    _frequency,
    _paraphrases,
    _tail,
    _changed,
    _screen,
    _provenance,
)
