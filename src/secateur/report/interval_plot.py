"""An interval plot: before and after on one track, as plain HTML, which prints, narrows and needs no script.

Positions are percentages of the track's width; every row carries its numbers as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from secateur.core.records.verdict import MemberRecord, SecondaryRecord, SideEffect, VerdictRecord
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
    groups: dict[tuple[str, bool], list[Dumbbell]] = {}
    for row in rows:
        groups.setdefault((row.unit, row.higher_is_better), []).append(row)
    return "".join(
        panel(titles.get(unit, "Measured in " + unit), group) for (unit, _), group in groups.items()
    )


def panel(title: str, rows: Sequence[Dumbbell]) -> str:
    """Return all rows of one unit on a common scale; nothing where nothing was measured."""
    ends = [end for row in rows for end in row.ends]
    if not ends:
        return ""
    unit = rows[0].unit
    scale = scale_of(min(ends), max(ends), unit)
    better = "higher is better" if rows[0].higher_is_better else "lower is better"
    body = "".join(_row(row, scale) for row in rows if row.marks)
    words = [f"{100 * t:.4g}" if unit == "share" else f"{t:,.4g}" for t in scale]
    axis = "".join(
        f'<span style="left:{_percent(t, scale):.2f}%">{word}</span>'
        for t, word in zip(scale, words, strict=True)
    )
    head = f"<h3>{text(title)} <small>{text(unit_name(unit))}, {better}</small></h3>"
    foot = f'<div class="row axis"><div></div><div class="track">{axis}</div><div></div></div>'
    return f'<div class="forest">{head}{body}{foot}</div>'


def scale_of(low: float, high: float, unit: str) -> list[float]:
    """Return tick positions. Shares show 0 to 100 % unless all lies within a fifth of it; dots need no zero."""
    if unit == "share" and high - low > 0.2:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    pad = 0.15 * max(high - low, 0.02 * abs(high))
    marks = ticks(low - pad, high + pad)
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
    before, after = (number(side.value if side else None, row.unit) for side in (row.before, row.after))
    line = f"{text(before)} → <b>{text(after)}</b>"
    gap = [text(change(row.difference.value, row.unit))] if row.difference else []
    gap += [p_value(row.p)] if known(row.p) else []
    return f'<div class="values"><span>{line}</span><small>{", ".join(gap)}</small></div>'
