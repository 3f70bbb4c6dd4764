"""Results as Python shows them: a line, a little HTML for a notebook, figures. Imports no torch.

`Result` is what `prune` and `apply` give, `Verdict` what verdict.json holds, `ProbeResult` what `probe` gives. The last
two are dictionaries of plain data.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.checkpoint.plans import read_plan
from secateur.core.plan import Plan
from secateur.core.reading import read_json
from secateur.core.records.probe import LinearityRecord, ProbeRecord, RowsRecord
from secateur.core.records.verdict import VerdictRecord
from secateur.core.score import metric_name
from secateur.errors import OutputError, UnknownName, nearest
from secateur.probing.report import Ranking, probe_figures, rankings
from secateur.report.chart import Figure
from secateur.report.interval_plot import intervals_figure
from secateur.report.markup import table, text
from secateur.report.overview import hero_lines
from secateur.report.run_page import compared_rows, effect_rows, member_rows
from secateur.report.tables import measure_table
from secateur.reporting import run_figures

if TYPE_CHECKING:
    import plotly.graph_objects as go

AGAIN = "Give --overwrite to make it again."
TITLE_ROOM = 48  # pixels above a figure
TOP = 10  # rows of a ranking that a notebook shows


class Verdict(dict[str, Any]):
    """The content of verdict.json. Its keys: docs/records.md. A notebook shows it as a table of what was measured."""

    def __repr__(self) -> str:
        word, change, cut = hero_lines(self.record)
        return f"Verdict({word}: {change}; {cut})"

    def _repr_html_(self) -> str:
        """Return the sentence and every measurement before and after as HTML, which Jupyter shows."""
        record = self.record
        decides = (metric_name(record.metric), record)
        beside = [(metric_name(one.metric), one) for one in record.secondary]
        effects = [(one.name, one) for one in record.side_effects]
        return f"<div><b>{text(record.sentence)}</b>{measure_table([decides, *beside, *effects])}</div>"

    @property
    def record(self) -> VerdictRecord:
        """Return the same with types. Raises: `OutputError` for a verdict that another version wrote."""
        return VerdictRecord.from_values(self, "verdict.json", OutputError, AGAIN)


class ProbeResult(dict[str, Any]):
    """Show the top of every ranking that `probe` read in a notebook; a dictionary, with the keys of docs/records.md."""

    def __repr__(self) -> str:
        counts = "; ".join(f"{one.title}: {len(one.rows):,} rows" for one in self._rankings)
        return f"ProbeResult({self._read_on}; {counts})"

    def _repr_html_(self) -> str:
        """Return what was read on what, and the first rows of every ranking as HTML, which Jupyter shows."""
        tables = [
            f"<p>{text(one.title)}</p>{table(one.head, one.rows, source='the dictionary', most=TOP)}"
            for one in self._rankings
            if one.rows
        ]
        return f"<div><b>{text(self._read_on)}</b>{''.join(tables)}</div>"

    def plot(self, name: str) -> go.Figure:
        """Return a figure of the page that `out=` writes, by its name, which is one of `figures`.

        Raises: `UnknownName` where there is none of this name.
        """
        return _named(self.figures, name, "this reading")

    @property
    def figures(self) -> Mapping[str, Figure]:
        """Return the figures by their names, such as `importance-0`; of a reading that gives `rows` there are none,
        and `out=` writes its page."""
        return {} if isinstance(self._record, RowsRecord) else probe_figures(self._record)

    @property
    def _record(self) -> RowsRecord | ProbeRecord | LinearityRecord:
        kind = LinearityRecord if "models" in self else ProbeRecord if "components" in self else RowsRecord
        return kind.model_validate(self)

    @property
    def _rankings(self) -> list[Ranking]:
        return rankings(self._record)

    @property
    def _read_on(self) -> str:
        record = self._record
        what = ", ".join(record.what) if isinstance(record, ProbeRecord) else record.what
        tasks = record.tasks if isinstance(record, ProbeRecord) else [record.task] if record.task else []
        on = f" on {', '.join(tasks)}, split {record.split}" if tasks else ""
        return f"{what} of {record.model}{on}"


@dataclass(frozen=True, repr=False)
class Result:
    """The result of `prune` and `apply`.

    Attributes:
        out: The folder of the checkpoint.
        verdict: The content of verdict.json; None where nothing was verified (`apply`).
        already: The checkpoint was there before, and nothing was done.
    """

    out: Path
    verdict: Verdict | None
    plan: Plan
    already: bool = False

    def __repr__(self) -> str:
        if self.verdict is None:
            return f"Result(not verified: {self.plan}, in {self.out})"
        word, change, cut = hero_lines(self._record)
        return f"Result({word}: {change}; {cut}; in {self.out})"

    def _repr_html_(self) -> str:
        """Return the verdict in a few lines of HTML, which Jupyter shows."""
        lines = hero_lines(self._record) if self.verdict else ("not verified", "", str(self.plan))
        sentence = self.verdict["sentence"] if self.verdict else "Nothing was measured."
        word, *rest = (text(line) for line in lines)
        below = "<br>".join(
            line for line in (text(sentence), *rest, f"<code>{text(self.out)}</code>") if line
        )
        return f"<div><b>{word}</b><br>{below}</div>"

    # --------------------------------------------------------------------------------------------------- figures

    def plot_intervals(self) -> go.Figure:
        """Return every metric on the test split, before and after, with 95 % intervals, and changes without a cut."""
        return _drawn(intervals_figure(compared_rows(self._record)))

    def plot_effects(self) -> go.Figure:
        """Return what the cut did elsewhere, before and after, with 95 % intervals."""
        return _drawn(intervals_figure(effect_rows(self._record)))

    def plot_tasks(self) -> go.Figure:
        """Return each of several tasks, before and after, with 95 % intervals."""
        return _drawn(intervals_figure(member_rows(self._record)))

    def plot_frequency(self) -> go.Figure:
        """Return accuracy before and after, by how often the training text held the fact."""
        return self.plot("frequency")

    def plot(self, name: str) -> go.Figure:
        """Return a figure of the report by its name, which is one of `figures`; `sweep` is `sweep-0`.

        Raises: `UnknownName` where this report has none of this name.
        """
        return _named(self.figures, name, f"the report of {self.out}")

    @cached_property
    def figures(self) -> Mapping[str, Figure]:
        """Return the figures of the report by their names, such as `sweep-0`: what only the method of this run has
        to show is among them. Their traces, layouts and numbers are plain values; `plot` draws one."""
        self._record  # noqa: B018  raises where nothing was verified
        analysis = self.out / "analysis.json"
        found = read_json(analysis, OutputError, AGAIN) if os.path.exists(analysis) else {}
        return run_figures(self.verdict or {}, read_json(self.out / "plan.json", OutputError, AGAIN), found)

    @cached_property
    def _record(self) -> VerdictRecord:
        if self.verdict is None:
            raise OutputError(f"nothing was verified in {self.out}: a verdict is what `prune` gives.")
        return VerdictRecord.from_values(self.verdict, self.out / "verdict.json", OutputError, AGAIN)


def _named(figures: Mapping[str, Figure], name: str, place: str) -> go.Figure:
    """Return one of the figures of `place`; `sweep` is `sweep-0`. Raises: `UnknownName`."""
    name = name if name in figures else f"{name}-0" if f"{name}-0" in figures else name
    if name not in figures:
        raise UnknownName(f"{place} has no figure {name!r}.{nearest(name, figures)}")
    return _drawn(figures[name])


def _drawn(figure: Figure) -> go.Figure:
    """Return a figure of plotly's, with room for the title that a page prints above it."""
    import plotly.graph_objects as go

    drawn = go.Figure(figure.data, figure.layout)
    if figure.title:
        drawn.update_layout(title_text=figure.title, margin_t=TITLE_ROOM, height=figure.height + TITLE_ROOM)
    return drawn


def read_result(out: Path) -> Result:
    """Return the result that a finished folder holds. Raises: `OutputError`, `PlanError` where it is damaged."""
    file = out / "verdict.json"
    return Result(out, read_verdict(file) if file.exists() else None, read_plan(out), already=True)


def read_verdict(file: Path) -> Verdict:
    """Return the content of verdict.json. Raises: `OutputError` for a file that is no verdict."""
    found = read_json(file, OutputError, AGAIN)
    if not isinstance(found, dict) or not isinstance(found.get("verdict"), str):
        raise OutputError(f"{file} is damaged: it holds no verdict. {AGAIN}")
    return Verdict(found)
