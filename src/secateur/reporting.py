"""The report of a finished run: its records, with the sections of the method that searched. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secateur.core.records.analysis import AnalysisRecord
from secateur.core.records.verdict import VerdictRecord
from secateur.methods.registry import methods
from secateur.report.frame import PageSection
from secateur.report.write import write_report


def write_run_report(folder: str | Path, out_html: str | Path, also: Sequence[str | Path] = ()) -> Path:
    """Write the page of what `folder` holds; the arguments are those of `report.write_report`."""
    return write_report(folder, out_html, also, sections_of=method_sections)


def method_sections(verdict: VerdictRecord, analysis: AnalysisRecord) -> Sequence[PageSection]:
    """Return the sections of the method of a run; none where its package is not installed here."""
    method = methods().get(verdict.search.method)
    return () if method is None else method.sections(verdict, analysis)
