"""The report of a finished run: its records, with the sections of the method that searched. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.core.records.analysis import AnalysisRecord
from secateur.core.records.verdict import VerdictRecord
from secateur.methods.registry import methods
from secateur.report import write
from secateur.report.chart import Figure
from secateur.report.frame import PageSection


def write_run_report(folder: str | Path, out_html: str | Path) -> Path:
    """Write the page of the run in `folder`; the arguments are those of `report.write_report`."""
    return write.write_report(folder, out_html, sections_of=method_sections)


def run_figures(
    verdict: Mapping[str, Any], plan: Mapping[str, Any], analysis: Mapping[str, Any]
) -> dict[str, Figure]:
    """Return the figures of the page of a run by their ids, from the content of its three files."""
    return write.run_figures(verdict, plan, analysis, sections_of=method_sections)


def method_sections(verdict: VerdictRecord, analysis: AnalysisRecord) -> Sequence[PageSection]:
    """Return the sections of the method of a run; none where its package is not installed here."""
    method = methods().get(verdict.search.method)
    return () if method is None else method.sections(verdict, analysis)
