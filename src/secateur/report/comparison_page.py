"""The page that compares runs: a table, their metrics as intervals, and what each cost elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.core.records.comparison import ComparedRun
from secateur.core.records.verdict import BeforeAfter
from secateur.core.score import metric_name
from secateur.report.frame import PageSection
from secateur.report.gains import size
from secateur.report.interval_plot import Dumbbell, panels
from secateur.report.markup import change, interval, key, known, number, table, text
from secateur.report.overview import short_name, sign_of
from secateur.report.page import assemble

UNITS = {"share": "Share of questions", "nats/token": "Loss", "perplexity": "Perplexity"}
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
