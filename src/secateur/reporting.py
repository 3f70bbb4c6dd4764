"""The report of a finished run: its three records, with the sections of the method that searched. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.core.finite import finite
from secateur.core.reading import read_json
from secateur.core.records.analysis import AnalysisRecord
from secateur.core.records.plan import PlanRecord
from secateur.core.records.probe import ComponentsRecord
from secateur.core.records.verdict import VerdictRecord
from secateur.core.writing import write_text
from secateur.errors import SecateurError
from secateur.methods.registry import methods
from secateur.probing.component_sections import component_sections
from secateur.report.chart import Figure
from secateur.report.frame import PageSection
from secateur.report.pruned_units import dropped
from secateur.report.run_page import frequency, run_page
from secateur.report.sections import old_sections, tried

VERSION = 1
AGAIN = "Write it again with `secateur prune`."
REQUIRED = ("verdict", "sentence", "metric", "unit", "before", "after")

Json = Mapping[str, Any]


def write_run_report(folder: str | Path, out_html: str | Path) -> Path:
    """Write the page of a run: of `verdict.json`, `plan.json` and, where there is one, `analysis.json`.

    Raises: `SecateurError` for records that are missing or broken, `OutputError` for a page that cannot be written.
    """
    folder, out = Path(folder), Path(out_html)
    check_folder(folder)
    verdict, plan = _read_object(folder / "verdict.json"), _read_object(folder / "plan.json")
    analysis = _read_object(folder / "analysis.json") if (folder / "analysis.json").exists() else {}
    write_text(out, render(verdict, plan, analysis), "folder")
    return out


def check_folder(folder: Path) -> None:
    """Raise `SecateurError` where there is no such folder."""
    if not os.path.isdir(folder):
        raise SecateurError(
            f"{folder} is no folder. A report needs one that `secateur prune` or `heal` wrote."
        )


def _read_object(path: Path) -> dict[str, Any]:
    if not os.path.exists(path):
        raise SecateurError(
            f"{path} is missing. A report needs the folder that `secateur prune` or `heal` wrote."
        )
    content = read_json(path, SecateurError, AGAIN)
    if not isinstance(content, dict):
        raise SecateurError(f"{path} holds no record but {content!r:.40}. {AGAIN}")
    return content


def render(verdict: Json, plan: Json, analysis: Json) -> str:
    """Return the page of a run, from the content of its three files; it loads nothing from anywhere.

    Blocks of `analysis` that are absent or empty leave their section out.

    Raises: `SecateurError` where the records are of another version or do not belong together.
    """
    _check(verdict, plan)
    run = VerdictRecord.from_values(verdict, "verdict.json", SecateurError, AGAIN)
    analyses = AnalysisRecord.from_values(analysis, "analysis.json", SecateurError, AGAIN)
    old, figures = old_sections(finite(verdict), finite(plan), finite(analysis))
    return run_page(
        run,
        PlanRecord.from_values(plan, "plan.json", SecateurError, AGAIN),
        analyses,
        [*method_sections(run, analyses), *old],
        tried(verdict, analysis),
        figures,
    )


def run_figures(verdict: Json, plan: Json, analysis: Json) -> dict[str, Figure]:
    """Return the figures of the page that `render` gives, by their ids. Raises: as `render`."""
    _check(verdict, plan)
    run = VerdictRecord.from_values(verdict, "verdict.json", SecateurError, AGAIN)
    analyses = AnalysisRecord.from_values(analysis, "analysis.json", SecateurError, AGAIN)
    _, figures = old_sections(finite(verdict), finite(plan), finite(analysis))
    for section in (*method_sections(run, analyses), frequency(analyses.frequency or ())):
        figures |= section.figures()
    return figures


def method_sections(verdict: VerdictRecord, analysis: AnalysisRecord) -> Sequence[PageSection]:
    """Return the sections of the method of a run; none where its package is not installed here."""
    method = methods().get(verdict.search.method)
    sections = [] if method is None else list(method.sections(verdict, analysis))
    if not sections and analysis.extra_keys.get("components"):
        read = ComponentsRecord.from_values(
            analysis.extra_keys["components"], "analysis.json", SecateurError, AGAIN
        )
        sections = component_sections(read, dropped(verdict))
    return sections


def _check(verdict: Json, plan: Json) -> None:
    version = verdict.get("version")
    if version != VERSION:
        raise SecateurError(f"a verdict of version {version!r}; this secateur reads version {VERSION}.")
    missing = [name for name in REQUIRED if verdict.get(name) is None]
    if missing:
        raise SecateurError(f"verdict.json lacks {', '.join(missing)}. {AGAIN}")
    of_plan, of_verdict = plan.get("model"), (verdict.get("model") or {}).get("fingerprint")
    if of_plan and of_verdict and of_plan != of_verdict:
        raise SecateurError(
            f"plan.json is for model {of_plan}, verdict.json for {of_verdict}: they are not of one run."
        )
