"""Before and after on one track: a forest plot as plain HTML, which prints, narrows and needs no script.

Positions are percentages of the track's width; every row carries its numbers as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.report.markup import (
    capital,
    change,
    interval,
    known,
    metric_name,
    number,
    p_value,
    text,
    ticks,
    unit_name,
)

Measured = Mapping[str, Any]


@dataclass(frozen=True)
class Dumbbell:
    """One row: a measurement before and after the cut, one alternative to it (`before` None), or all three."""

    label: str
    note: str
    unit: str
    before: Measured | None = None
    after: Measured | None = None
    alternative: Measured | None = None
    difference: Measured | None = None
    p: float | None = None
    higher_is_better: bool = True

    @property
    def marks(self) -> list[tuple[str, Measured]]:
        sides = (("before", self.before), ("after", self.after), ("alternative", self.alternative))
        return [(side, score) for side, score in sides if score is not None and known(score.get("value"))]

    @property
    def ends(self) -> list[float]:
        return [x for _, score in self.marks for x in (score["value"], *(score.get("ci") or ())) if known(x)]


def panel(title: str, rows: Sequence[Dumbbell]) -> str:
    """All rows of one unit on a common scale; empty where nothing was measured."""
    ends = [end for row in rows for end in row.ends]
    if not ends:
        return ""
    scale = _scale(min(ends), max(ends), rows[0].unit)
    better = "higher is better" if rows[0].higher_is_better else "lower is better"
    body = "".join(_row(row, scale) for row in rows if row.marks)
    axis = "".join(f'<span style="left:{_at(t, scale):.2f}%">{_tick(t, rows[0].unit)}</span>' for t in scale)
    head = f"<h3>{text(title)} <small>{text(unit_name(rows[0].unit))}, {better}</small></h3>"
    foot = f'<div class="row axis"><div></div><div class="track">{axis}</div><div></div></div>'
    return f'<div class="forest">{head}{body}{foot}</div>'


def panels(rows: Sequence[Dumbbell], titles: Mapping[str, str]) -> str:
    """One panel for each unit and direction, in order of appearance; `titles` names units in words."""
    groups: dict[tuple[str, bool], list[Dumbbell]] = {}
    for row in rows:
        groups.setdefault((row.unit, row.higher_is_better), []).append(row)
    return "".join(
        panel(titles.get(unit, "Measured in " + unit), group) for (unit, _), group in groups.items()
    )


def _scale(low: float, high: float, unit: str) -> list[float]:
    """Tick positions. Shares show 0 to 100 % unless all happens in a fifth of it; dots need no zero."""
    if unit == "share" and high - low > 0.2:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    pad = 0.15 * max(high - low, 0.02 * abs(high))
    marks = ticks(low - pad, high + pad)
    return [t for t in marks if 0 <= t <= 1] if unit == "share" else marks


def _at(value: float, scale: Sequence[float]) -> float:
    return 100 * (value - scale[0]) / (scale[-1] - scale[0])


def _tick(value: float, unit: str) -> str:
    return f"{100 * value:.4g}" if unit == "share" else f"{value:,.4g}"


def _row(row: Dumbbell, scale: Sequence[float]) -> str:
    lines = "".join(f'<i class="tick" style="left:{_at(t, scale):.2f}%"></i>' for t in scale)
    marks = "".join(_mark(side, score, row.unit, scale) for side, score in row.marks)
    label = f'<div class="label">{text(capital(row.label))}<small>{text(row.note)}</small></div>'
    track = f'<div class="track">{lines}{_join(row, scale)}{marks}</div>'
    three = " three" if row.alternative is not None and row.before is not None else ""
    return f'<div class="row{three}">{label}{track}{_figures(row)}</div>'


def _join(row: Dumbbell, scale: Sequence[float]) -> str:
    if len(row.marks) < 2:
        return ""
    at = [_at(score["value"], scale) for _, score in row.marks]
    low, high = min(at), max(at)
    return f'<i class="join" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'


def _mark(side: str, score: Measured, unit: str, scale: Sequence[float]) -> str:
    bar, hover = "", f"{side}: {number(score['value'], unit)}"
    if score.get("ci") and all(known(end) for end in score["ci"]):
        low, high = (_at(end, scale) for end in score["ci"])
        bar = f'<i class="ci {side}" style="left:{low:.2f}%;width:{max(0.0, high - low):.2f}%"></i>'
        hover += f" (95 %: {interval(score['ci'], unit)})"
    dot = f'<b class="dot {side}" style="left:{_at(score["value"], scale):.2f}%" title="{text(hover)}"></b>'
    return bar + dot


def _figures(row: Dumbbell) -> str:
    if row.alternative is not None and row.before is None:
        value, extra = (
            number(row.alternative["value"], row.unit),
            interval(row.alternative.get("ci"), row.unit),
        )
        return f'<div class="values"><b>{text(value)}</b><small>{text(extra)}</small></div>'
    before, after = (number((side or {}).get("value"), row.unit) for side in (row.before, row.after))
    line = f"{text(before)} → <b>{text(after)}</b>"
    gap = [text(change(row.difference["value"], row.unit))] if row.difference else []
    gap += [p_value(row.p)] if known(row.p) else []
    return f'<div class="values"><span>{line}</span><small>{", ".join(gap)}</small></div>'


def dumbbell(item: Mapping[str, Any], label: str, note: str) -> Dumbbell:
    """A row from a block of `verdict.json` that has before, after, difference and p_value."""
    return Dumbbell(
        label,
        note,
        item.get("unit", "share"),
        item.get("before"),
        item.get("after"),
        difference=item.get("difference"),
        p=item.get("p_value"),
        higher_is_better=item.get("higher_is_better", True),
    )


def main_rows(verdict: Mapping[str, Any]) -> list[Dumbbell]:
    """The metric that decides, the others, then what a trivial change would have done."""
    rows = [dumbbell(verdict, metric_name(verdict["metric"]), "decides the verdict")]
    rows += [
        dumbbell(item, metric_name(item["metric"]), "reported beside it")
        for item in verdict.get("secondary") or ()
    ]
    tried = [
        item
        for item in verdict.get("alternatives") or ()
        if item.get("applicable") and known(item.get("value"))
    ]
    rows += [
        Dumbbell(
            item["name"],
            item.get("detail", ""),
            verdict["unit"],
            alternative=item,
            higher_is_better=verdict.get("higher_is_better", True),
        )
        for item in tried
    ]
    return rows


def effect_rows(verdict: Mapping[str, Any]) -> list[Dumbbell]:
    """What the cut did elsewhere."""
    effects = verdict.get("side_effects") or ()
    return [dumbbell(e, e["name"], f"n = {e['n']:,}" if e.get("n") else "") for e in effects]


def paraphrase_rows(found: Mapping[str, Any]) -> list[Dumbbell]:
    """Robustness over paraphrases: all of a fact's phrasings right, and the mean over phrasings."""
    rows = [
        ("all", f"all {found.get('per_fact', 0):g} phrasings right", "all_right"),
        ("mean", "one phrasing right, mean", "mean"),
    ]
    return [
        Dumbbell(
            label,
            f"{found['n']:,} facts",
            "share",
            {"value": found[f"{key}_before"]},
            {"value": found[f"{key}_after"]},
        )
        for _, label, key in rows
        if known(found.get(f"{key}_before")) and known(found.get(f"{key}_after"))
    ]
