"""An interval plot: before and after on one track, as plain HTML, which prints, narrows and needs no script; for
notebooks also as a figure.

Positions are percentages of the track's width; every row carries its numbers as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from secateur.core.records.verdict import MemberRecord, SecondaryRecord, SideEffect, VerdictRecord
from secateur.report.chart import AFTER, BEFORE, INK, RULE, Figure, Trace, new_axis, new_layout
from secateur.report.markup import (
    capital,
    change,
    interval,
    known,
    number,
    p_value,
    text,
    ticks,
    unit_name,
)


class Measured(Protocol):
    """A value with its 95 % interval, or None in place of one."""

    @property
    def value(self) -> float: ...
    @property
    def ci(self) -> Sequence[float] | None: ...


Compared = VerdictRecord | MemberRecord | SecondaryRecord | SideEffect


@dataclass(frozen=True)
class Dumbbell:
    """One row: a measurement before and after the cut, one alternative to it (`before` None), or all three.

    Args:
        unit: `share`, `nats/token`, …; rows of one unit and direction share a panel.
        p: The p-value of the difference; None: it was not tested.
    """

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
        """Return what is known of before, after and alternative, with these names."""
        sides = (("before", self.before), ("after", self.after), ("alternative", self.alternative))
        return [(side, score) for side, score in sides if score is not None and known(score.value)]

    @property
    def ends(self) -> list[float]:
        """Return all positions that the panel has to show."""
        return [x for _, score in self.marks for x in (score.value, *(score.ci or ())) if known(x)]


def dumbbell(
    record: VerdictRecord | MemberRecord | SecondaryRecord | SideEffect,
    label: str,
    note: str,
    *,
    p: float | None = None,
) -> Dumbbell:
    """Return a row from a record of a metric before and after."""
    return Dumbbell(
        label,
        note,
        record.unit,
        record.before,
        record.after,
        difference=record.difference,
        p=p,
        higher_is_better=record.higher_is_better,
    )


def panels(rows: Sequence[Dumbbell], titles: Mapping[str, str]) -> str:
    """Return a panel for each unit and direction, in order of appearance.

    Args:
        titles: Units in words.
    """
    return "".join(
        panel(titles.get(unit, "Measured in " + unit), group) for (unit, _), group in grouped(rows).items()
    )


def grouped(rows: Sequence[Dumbbell]) -> dict[tuple[str, bool], list[Dumbbell]]:
    """Return rows by unit and direction, in order of appearance."""
    groups: dict[tuple[str, bool], list[Dumbbell]] = {}
    for row in rows:
        groups.setdefault((row.unit, row.higher_is_better), []).append(row)
    return groups


def panel(title: str, rows: Sequence[Dumbbell]) -> str:
    """Return all rows of one unit on a common scale; nothing where nothing was measured."""
    ends = [end for row in rows for end in row.ends]
    if not ends:
        return ""
    unit = rows[0].unit
    scale = scale_of(min(ends), max(ends), unit)
    better = "higher is better" if rows[0].higher_is_better else "lower is better"
    body = "".join(_row(row, scale) for row in rows if row.marks)
    words = [_tick(100 * t if unit == "share" else t) for t in scale]
    axis = "".join(
        f'<span style="left:{_percent(t, scale):.2f}%">{word}</span>'
        for t, word in zip(scale, words, strict=True)
    )
    head = f"<h3>{text(title)} <small>{text(unit_name(unit))}, {better}</small></h3>"
    foot = f'<div class="row axis"><div></div><div class="track">{axis}</div><div></div></div>'
    return f'<div class="forest">{head}{body}{foot}</div>'


def _tick(value: float) -> str:
    """Return `0.25`, `100`, `200k`: never in powers of ten."""
    return f"{value / 1000:,.4g}k" if abs(value) >= 10_000 else f"{value:,.4g}"


def scale_of(low: float, high: float, unit: str) -> list[float]:
    """Return tick positions. Shares show 0 to 100 % unless all lies within a fifth of it; dots need no zero.

    A scale of values that are not negative, such as a log-loss, does not begin below 0.
    """
    if (unit == "share" and high - low > 0.2) or unit.startswith("distinct"):
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    pad = 0.15 * max(high - low, 0.02 * abs(high)) or 0.5  # where all is 0
    marks = ticks(low - pad if low < 0 else max(0.0, low - pad), high + pad)
    return [t for t in marks if 0 <= t <= 1] if unit == "share" else marks


def _percent(value: float, scale: Sequence[float]) -> float:
    return 100 * (value - scale[0]) / (scale[-1] - scale[0])


def _row(row: Dumbbell, scale: Sequence[float]) -> str:
    track = "".join(f'<i class="tick" style="left:{_percent(t, scale):.2f}%"></i>' for t in scale)
    if len(row.marks) > 1:
        positions = [_percent(score.value, scale) for _, score in row.marks]
        low, high = min(positions), max(positions)
        track += f'<i class="join" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
    track += "".join(_mark(side, score, row.unit, scale) for side, score in row.marks)
    label = f'<div class="label">{text(capital(row.label))}<small>{text(row.note)}</small></div>'
    three = " three" if row.alternative is not None and row.before is not None else ""
    return f'<div class="row{three}">{label}<div class="track">{track}</div>{_values(row)}</div>'


def _mark(side: str, score: Measured, unit: str, scale: Sequence[float]) -> str:
    """Return a dot with its interval as a bar behind it."""
    bar, hover = "", f"{side}: {number(score.value, unit)}"
    if score.ci and all(known(end) for end in score.ci):
        low, high = (_percent(end, scale) for end in score.ci)
        bar = f'<i class="ci {side}" style="left:{low:.2f}%;width:{max(0.0, high - low):.2f}%"></i>'
        hover += f" (95 %: {interval(score.ci, unit)})"
    left = _percent(score.value, scale)
    return f'{bar}<b class="dot {side}" style="left:{left:.2f}%" title="{text(hover)}"></b>'


def _values(row: Dumbbell) -> str:
    """Return the numbers of a row as text."""
    if row.alternative is not None and row.before is None:
        value, ends = number(row.alternative.value, row.unit), interval(row.alternative.ci, row.unit)
        return f'<div class="values"><b>{text(value)}</b><small>{text(ends)}</small></div>'
    if row.before is not None and row.after is None:
        value, ends = number(row.before.value, row.unit), interval(row.before.ci, row.unit)
        return f'<div class="values"><b>{text(value)}</b><small>{text(ends)}</small></div>'
    before, after = (number(side.value if side else None, row.unit) for side in (row.before, row.after))
    line = f"{text(before)} → <b>{text(after)}</b>"
    gap = [text(change(row.difference.value, row.unit))] if row.difference else []
    gap += [p_value(row.p)] if known(row.p) else []
    return f'<div class="values"><span>{line}</span><small>{", ".join(gap)}</small></div>'


# ------------------------------------------------------------------------------------------------------- as a figure

ROW, AXIS = 44, 70  # pixels of a row, and of a panel's scale with its title
COLORS = {"before": BEFORE, "after": AFTER, "alternative": INK}


def intervals_figure(rows: Sequence[Dumbbell]) -> Figure:
    """Return the same plot as a figure: below each other a panel for each unit and direction, a line for each row."""
    groups = [(key, [row for row in group if row.marks]) for key, group in grouped(rows).items()]
    groups = [(key, group) for key, group in groups if group]
    sizes = [AXIS + ROW * len(group) for _, group in groups]
    whole = max(sum(sizes), 1)
    margin, legend = (
        {"l": 240, "r": 24, "t": 34, "b": 8},
        {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    )
    layout = new_layout(max(whole + 40, 180), margin=margin, showlegend=True, legend=legend)
    traces: list[Trace] = []
    top = 1.0
    for panel_number, ((unit, higher), group) in enumerate(groups, start=1):
        bottom = top - sizes[panel_number - 1] / whole
        low = bottom + (AXIS - 10) / whole
        words = f"{unit_name(unit)}, {'higher' if higher else 'lower'} is better"
        axis = {"anchor": f"y{panel_number}", "tickformat": ".0%" if unit == "share" else ""}
        layout[f"xaxis{panel_number}"] = new_axis(words, **axis)
        names = [f"{text(capital(row.label))}<br><sup>{text(row.note)}</sup>" for row in group]
        axis_ticks = {"tickvals": list(range(len(group))), "ticktext": names, "gridcolor": RULE}
        span = {
            "range": [len(group) - 0.5, -0.5],
            "domain": [max(low, 0.0), top],
            "anchor": f"x{panel_number}",
        }
        layout[f"yaxis{panel_number}"] = new_axis("", **axis_ticks, **span)
        traces += [
            _points(group, side, unit) | {"xaxis": f"x{panel_number}", "yaxis": f"y{panel_number}"}
            for side in COLORS
        ]
        top = bottom
    drawn = [trace for trace in traces if trace["x"]]
    first = {trace["name"]: trace for trace in reversed(drawn)}
    return Figure("", [trace | {"showlegend": trace is first[trace["name"]]} for trace in drawn], layout)


def _points(rows: Sequence[Dumbbell], side: str, unit: str) -> Trace:
    """Return the dots of one side in a panel, with intervals where there are any."""
    marks = [(place, score) for place, row in enumerate(rows) for name, score in row.marks if name == side]
    ends = [
        (score.value, score.ci if score.ci and all(known(end) for end in score.ci) else None)
        for _, score in marks
    ]
    hover = [
        f"{side}: {number(value, unit)}" + (f"<br>95 %: {interval(ci, unit)}" if ci else "")
        for value, ci in ends
    ]
    shift = {"before": 0.1, "after": -0.1, "alternative": 0.0}[side]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": side,
        "legendgroup": side,
        "x": [value for value, _ in ends],
        "y": [place + shift for place, _ in marks],
        "text": hover,
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"size": 11, "color": COLORS[side]},
        "error_x": {
            "type": "data",
            "array": [ci[1] - value if ci else 0.0 for value, ci in ends],
            "arrayminus": [value - ci[0] if ci else 0.0 for value, ci in ends],
            "symmetric": False,
            "color": COLORS[side],
            "thickness": 1.5,
            "width": 0,
        },
    }
