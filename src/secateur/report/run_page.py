"""The page of a run of `prune`: the sections that every method has, with those of its method between them; and the
page that compares several: a table, their metrics as intervals, and what each cost elsewhere.

Takes typed records; knows no method, no model, no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from secateur.core.records.analysis import AnalysisRecord, FrequencyBin, ParaphrasesRecord
from secateur.core.records.comparison import ComparedRun
from secateur.core.records.plan import PlanRecord
from secateur.core.records.verdict import AlternativeRecord, BeforeAfter, IntervalRecord, VerdictRecord
from secateur.core.score import metric_name
from secateur.report import tables
from secateur.report.chart import AFTER, BEFORE, TRACK, Figure, Trace, new_axis, new_layout
from secateur.report.cuts import LookedAt, cut_section
from secateur.report.frame import FigureGroup, PageSection
from secateur.report.gains import gains_section, size
from secateur.report.interval_plot import Compared, Dumbbell, dumbbell, panels
from secateur.report.markup import capital, change, interval, key, known, number, table, text
from secateur.report.overview import hero, share_of, short_name, sign_of
from secateur.report.page import assemble
from secateur.report.templating import fragment

UNITS = {"share": "Share of questions", "nats/token": "Loss", "perplexity": "Perplexity"}
BIGRAMS = " (share of distinct bigrams)"
SHIFT = 0.08  # of a bin: keeps the two intervals of a bin apart


def run_page(
    verdict: VerdictRecord,
    plan: PlanRecord,
    analysis: AnalysisRecord,
    method_sections: Sequence[PageSection],
    looked_at: LookedAt | None = None,
) -> str:
    """Return the page of a run, which loads nothing from anywhere.

    Args:
        method_sections: What only its method has to show, in order.
        looked_at: What the search looked at, for the map of the model.
    """
    parts: list[str | PageSection] = [
        hero(verdict, analysis.changed or ()),
        compared(verdict),
        members(verdict),
        guards(verdict),
        cut_section(verdict, looked_at or LookedAt()),
        gains_section(verdict),
        effects(verdict),
        *method_sections,
        frequency(analysis.frequency or ()),
        paraphrases(analysis.paraphrases),
        changed(analysis),
        f"<footer>{tables.provenance(verdict, plan)}</footer>",
    ]
    return assemble(f"{verdict.verdict}: {verdict.model.name}", parts)


def compared_rows(verdict: VerdictRecord) -> list[Dumbbell]:
    """Return a row for each metric, before and after, and for each change that needs no cut."""
    rows = [
        dumbbell(verdict, metric_name(verdict.metric), "decides the verdict", p=verdict.p_value),
        *(dumbbell(item, metric_name(item.metric), "reported beside it") for item in verdict.secondary),
    ]
    rows += [
        Dumbbell(
            item.name,
            item.detail,
            verdict.unit,
            alternative=IntervalRecord(value=item.value, ci=item.ci),
            higher_is_better=verdict.higher_is_better,
        )
        for item in without_cut(verdict)
    ]
    return rows


def without_cut(verdict: VerdictRecord) -> list[AlternativeRecord]:
    """Return the changes without a cut that were measured."""
    return [item for item in verdict.alternatives if item.applicable and known(item.value)]


def compared(verdict: VerdictRecord) -> PageSection:
    """Return the metrics before and after, beside changes that need no cut."""
    tried, rows = without_cut(verdict), compared_rows(verdict)
    simpler = [("dot alternative", "a simpler change, for comparison")] if tried else []
    after = [("dot after", "cut")] if verdict.cut else []
    legend = key(("dot before", "original"), *after, *simpler, ("bar95", "95&nbsp;% interval"))
    if not verdict.cut:
        rows = [replace(row, after=None, difference=None, p=None) for row in rows]
    alternatives = fragment(
        "run",
        "alternatives",
        unit=verdict.unit,
        tried=[
            (item, beside_cut(verdict, item.value))
            for item in tried
            if item.value is not None and known(verdict.after.value)
        ],
        others=[item for item in verdict.alternatives if not item.applicable],
    )
    measured: list[tuple[str, Compared]] = [(metric_name(verdict.metric), verdict)]
    measured += [(metric_name(item.metric), item) for item in verdict.secondary]
    title, lead, numbers = "Before and after", "Held-out test examples, before and after the cut", measured
    if not verdict.cut:
        title, lead, numbers = "The unchanged model on test", "Held-out test examples; nothing was cut", []
    if tried:
        lead += ", beside what a trivial change would have done"
    titles = UNITS | {"share": capital(share_of(verdict.metric))}
    body = (legend, panels(rows, titles), alternatives, tables.measures(numbers))
    return PageSection("compared", title, f"{lead}.", body)


def beside_cut(verdict: VerdictRecord, value: float) -> str:
    """Return in words how a change that needs no cut compares with the cut."""
    after = verdict.after
    if after.ci and after.ci[0] <= value <= after.ci[1]:
        return "as much as the cut, within its interval"
    gain = value - after.value if verdict.higher_is_better else after.value - value
    return "more than the cut" if gain > 0 else "less than the cut"


def member_rows(verdict: VerdictRecord) -> list[Dumbbell]:
    """Return a row for each of several tasks, in the metric that decides, and in accuracy where that is another."""
    rows = []
    for task in verdict.tasks:
        size = f"n = {task.n:,}"
        rows.append(dumbbell(task, task.name, f"{metric_name(task.metric)}, {size}", p=task.p_value))
        rows += [
            dumbbell(other, task.name, f"accuracy, {size}, p not corrected")
            for other in task.secondary
            if other.metric == "accuracy"
        ]
    return rows


def members(verdict: VerdictRecord) -> PageSection:
    """Return each of several tasks by itself, before and after."""
    rows = member_rows(verdict)
    measured: list[tuple[str, Compared]] = []
    for task in verdict.tasks:
        measured.append((task.name, task))
        measured += [(task.name, other) for other in task.secondary if other.metric == "accuracy"]
    legend = key(("dot before", "original"), ("dot after", "cut"), ("bar95", "95&nbsp;% interval"))
    lead = (
        "What decides is the mean over equally many examples of each task; here each is measured on all of its own "
        "test examples, p corrected for their number."
    )
    body = (legend, panels(rows, UNITS), tables.measures(measured)) if rows else ()
    return PageSection("tasks", "Task by task", lead, body)


def guards(verdict: VerdictRecord) -> PageSection:
    """Return the guards, each as a sentence."""
    fired = any(guard.fired for guard in verdict.guards)
    kind = "gain" if verdict.gained else "result"
    title = f"Can the {kind} be trusted?"
    lead = f"Known ways for a {kind} to be hollow" + (": look closer." if fired else ", checked.")
    body = fragment("run", "guards", guards=verdict.guards) if verdict.guards else ""
    return PageSection("guards", title, lead, (body,))


def effect_rows(verdict: VerdictRecord) -> list[Dumbbell]:
    """Return a row for everything else that was watched."""
    return [dumbbell(item, item.name, f"n = {item.n:,}" if item.n else "") for item in verdict.side_effects]


def effects(verdict: VerdictRecord) -> PageSection:
    """Return what the cut did to everything else that was watched."""
    if not verdict.cut:
        return PageSection("effects", "Elsewhere", "", (_unchanged_sides(verdict),))
    rows = effect_rows(verdict)
    measured = tables.measures([(item.name, item) for item in verdict.side_effects])
    lead = "What the same cut did where nobody was aiming."
    return PageSection("effects", "What it cost elsewhere", lead, (panels(rows, UNITS), measured))


def _unchanged_sides(verdict: VerdictRecord) -> str:
    """Return in one sentence what else was watched of a model that nothing was cut of."""
    seen = [(item.name, item.unit, item.before) for item in verdict.side_effects if item.before]
    values = "; ".join(
        f"{text(name)}: {number(score.value, unit)}{BIGRAMS if unit.startswith('distinct') else ''}"
        for name, unit, score in seen
    )
    return f"<p>Nothing was cut, so nothing else changed: {values}.</p>" if values else ""


# ----------------------------------------------------------------------------------- comparisons of the two models


def frequency(bins: Sequence[FrequencyBin]) -> PageSection:
    """Return accuracy before and after, by how often the training text held the fact (LASER, Fig. 3)."""
    legend = key(("dot before", "original"), ("dot after", "cut")) if bins else ""
    lead = (
        "Accuracy before and after, by how often the training text held the fact; bars: 95&nbsp;% intervals."
    )
    figures = FigureGroup((frequency_figure(bins),) if bins else ())
    return PageSection("frequency", "Which facts came back", lead, (legend, figures))


def frequency_figure(bins: Sequence[FrequencyBin]) -> Figure:
    """Return two dots with their intervals for each bin, joined."""
    joined: Trace = {
        "type": "scatter",
        "mode": "lines",
        "x": [x for place in range(len(bins)) for x in (place - SHIFT, place + SHIFT, None)],
        "y": [y for row in bins for y in (row.before, row.after, None)],
        "line": {"color": TRACK, "width": 5},
        "hoverinfo": "skip",
    }
    axis = new_axis(
        "times the fact occurs in the training text",
        tickvals=list(range(len(bins))),
        ticktext=[f"{text(row.bin)}<br>n = {row.n}" for row in bins],
        showgrid=False,
        range=[-0.6, len(bins) - 0.4],
        tickangle=0,
    )
    shares = new_axis("accuracy", range=[-0.02, 1.05], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1])
    layout = new_layout(330, {"b": 66, "l": 52}, xaxis=axis, yaxis=shares)
    sides = [
        ("before", [(row.before, row.before_ci) for row in bins], BEFORE, -SHIFT),
        ("after", [(row.after, row.after_ci) for row in bins], AFTER, SHIFT),
    ]
    data = [joined]
    for side, values, color, shift in sides:
        hover = [
            f"<b>{text(row.bin)}</b>, {side}: {number(value, 'share')}"
            for row, (value, _) in zip(bins, values, strict=True)
        ]
        data.append(_dots(values, hover, color, shift))
    rows = [
        [
            text(row.bin),
            str(row.n),
            *(number(row.before, "share"), interval(row.before_ci, "share")),
            *(number(row.after, "share"), interval(row.after_ci, "share")),
        ]
        for row in bins
    ]
    head = ("times seen", "facts", "before", "interval", "after", "interval")
    return Figure("", data, layout, head, rows)


def _dots(
    values: Sequence[tuple[float, Sequence[float] | None]], hover: Sequence[str], color: str, shift: float
) -> Trace:
    """Return one side of the bins: dots, with intervals where all bins have one."""
    trace: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [place + shift for place in range(len(values))],
        "y": [value for value, _ in values],
        "text": list(hover),
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"size": 12, "color": color},
    }
    bounded = [(value, ci) for value, ci in values if ci and known(value)]
    if len(bounded) == len(values):
        trace["error_y"] = {
            "type": "data",
            "array": [ci[1] - value for value, ci in bounded],
            "arrayminus": [value - ci[0] for value, ci in bounded],
            "symmetric": False,
            "color": color,
            "thickness": 1.5,
            "width": 0,
        }
    return trace


def paraphrases(found: ParaphrasesRecord | None) -> PageSection:
    """Return how robust answers are over paraphrases: all phrasings of a fact right, and the mean over phrasings."""
    rows = []
    if found is not None and found.n:
        sides = (
            (f"all {found.per_fact:g} phrasings right", found.all_right_before, found.all_right_after),
            ("one phrasing right, mean", found.mean_before, found.mean_after),
        )
        rows = [
            Dumbbell(
                label,
                f"{found.n:,} facts",
                "share",
                IntervalRecord(value=before, ci=None),
                IntervalRecord(value=after, ci=None),
            )
            for label, before, after in sides
            if known(before) and known(after)
        ]
    lead = "Asked in other words: whether a fact is known or only one way of asking for it."
    return PageSection(
        "paraphrases", "Other words, same fact", lead, (panels(rows, {"share": "Share of facts"}),)
    )


def changed(analysis: AnalysisRecord) -> PageSection:
    """Return the examples whose answer changed."""
    examples = analysis.changed or ()
    body = tables.changed(examples) if examples else ""
    return PageSection(
        "changed", "Answers that changed", "Questions answered differently after the cut.", (body,)
    )


# ------------------------------------------------------------------------------------------------------- several runs

HEAD = ("run", "verdict", "metric", "before", "after", "parameters", "on disk", "decoding")


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """Return one self-contained page of several runs."""
    legend = key(("dot before", "original"), ("dot after", "cut"), ("bar95", "95&nbsp;% interval"))
    rows = [_row(run) for run in runs]
    deciding = [
        Dumbbell(run.run, f"{run.task}, n = {run.after.n:,}", run.after.unit, run.before, run.after,
                 higher_is_better=run.after.higher_is_better)
        for run in runs
    ]  # fmt: skip
    elsewhere = [
        Dumbbell(side.name, f"{run.run}, n = {side.n:,}", side.unit, side.before, side.after,
                 higher_is_better=side.higher_is_better)
        for name in dict.fromkeys(side.name for run in runs for side in run.side_effects)
        for run in runs
        for side in run.side_effects
        if side.name == name
    ]  # fmt: skip
    header = (
        f'<header class="neutral probe"><p class="who">secateur report</p><h1>{len(runs)} runs compared</h1>'
        '<p class="sentence">Each was measured on test examples that nothing was chosen by; intervals are 95&nbsp;%. '
        "Intervals of two runs on the same examples may overlap although one is better.</p>"
        f'<div class="runs">{table(HEAD, rows, source="--json")}</div></header>'
    )
    parts: list[str | PageSection] = [
        header,
        PageSection("compared", "Before and after", "", (legend, panels(deciding, UNITS))),
        PageSection(
            "effects",
            "What it cost elsewhere",
            "What the same cuts did where nobody was aiming.",
            (panels(elsewhere, UNITS),),
        ),
    ]
    return assemble(f"{len(runs)} runs compared", parts)


def _row(run: ComparedRun) -> list[str]:
    kind, sign = sign_of(run.verdict)
    where = f"{text(short_name(run.model))} on {text(run.task)}"
    aside = "" if run.holds == "cut" else "<br><small>the checkpoint holds the original</small>"
    scores = [
        f"{number(score.value, score.unit)}<br><small>{text(interval(score.ci, score.unit))}</small>"
        for score in (run.before, run.after)
    ]
    speed = f"{run.speedup:.2f}&nbsp;×" if known(run.speedup) else "not timed"
    return [
        f"<b>{text(run.run)}</b><br><small>{where}<br>{text(run.method)}: {text(run.cut)}</small>",
        f'<span class="verdict {kind}">{sign} {text(run.verdict)}</span>{aside}',
        f"{text(metric_name(run.after.metric))}<br><small>n = {run.after.n:,}</small>",
        *scores,
        _sized(run.parameters, ""),
        _sized(run.bytes_on_disk, "B") if run.bytes_on_disk else "",
        speed,
    ]


def _sized(pair: BeforeAfter, unit: str) -> str:
    share = pair.after / pair.before - 1 if known(pair.before) and known(pair.after) and pair.before else 0.0
    words = "unchanged" if not share else change(share, "share", name_unit=False) + "\u00a0%"
    return f"{text(size(pair.after, unit))}<br><small>{words}</small>"
