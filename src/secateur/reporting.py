"""The report of a finished run: its records, with what the method that searched has to show. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.methods.registry import methods
from secateur.report.write import render, write_report


def render_run(verdict: Mapping[str, Any], plan: Mapping[str, Any], analysis: Mapping[str, Any]) -> str:
    """Return the page of a run; the arguments are those of `report.render`.

    What the method shows is left out where its package is not installed here.
    """
    return render(verdict, plan, analysis, method_named=methods().get)


def write_run_report(folder: str | Path, out_html: str | Path, also: Sequence[str | Path] = ()) -> Path:
    """Write the page of what `folder` holds; the arguments are those of `report.write_report`."""
    return write_report(folder, out_html, also, method_named=methods().get)
