"""The report of a finished run: its records, with the sections of the method that searched. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from secateur.core.reading import read_json
from secateur.core.records.analysis import AnalysisRecord
from secateur.core.records.comparison import ComparedRun, ComparisonRecord
from secateur.core.records.plan import PlanRecord
from secateur.core.records.verdict import BeforeAfter, VerdictRecord
from secateur.core.writing import write_text
from secateur.errors import SecateurError
from secateur.methods.registry import methods
from secateur.report.chart import Figure
from secateur.report.frame import PageSection
from secateur.report.run_page import comparison_page, frequency, run_page

VERSION = 1
AGAIN = "Write it again with `secateur prune`."
REQUIRED = ("verdict", "sentence", "metric", "unit", "before", "after")

Json = Mapping[str, object]


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


def compare_runs(folders: Sequence[str | Path], out_html: str | Path) -> ComparisonRecord:
    """Write the page that compares several runs, and return its numbers.

    Raises: `SecateurError` for records that are missing or broken, `OutputError` for a page that cannot be written.
    """
    names = _short_names([Path(folder) for folder in folders])
    runs = []
    for folder, name in zip(map(Path, folders), names, strict=True):
        check_folder(folder)
        verdict, _ = _records(_read_object(folder / "verdict.json"), {}, {})
        runs.append(_compared(verdict, name))
    write_text(Path(out_html), comparison_page(runs), "folder")
    return ComparisonRecord(runs=runs, report=str(out_html))


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Return the names of folders, with as many of their parents as tell them apart. Raises: `SecateurError`."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, 1 + max(map(len, parts))):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(str(folder) for folder, part in zip(folders, parts, strict=True) if parts.count(part) > 1)
    raise SecateurError(f"{twice} is given twice. Give different folders to compare.")


def _compared(verdict: VerdictRecord, name: str) -> ComparedRun:
    gains = verdict.gains
    decode = gains.decode if gains else None
    return ComparedRun(
        run=name,
        model=verdict.model.name,
        task=verdict.task.name,
        method=verdict.search.method,
        verdict=verdict.verdict,
        holds=verdict.handed_over.holds,
        cut=verdict.cut_summary or "nothing",
        before=verdict.before,
        after=verdict.after,
        parameters=BeforeAfter(before=verdict.parameters.before, after=verdict.parameters.after),
        bytes_on_disk=gains.bytes_on_disk if gains else None,
        speedup=decode.speedup if decode else None,
        side_effects=verdict.side_effects,
    )


def check_folder(folder: Path) -> None:
    """Raise `SecateurError` where there is no such folder."""
    if not os.path.isdir(folder):
        raise SecateurError(
            f"{folder} is no folder. A report needs one that `secateur prune` or `heal` wrote."
        )


def _read_object(path: Path) -> Json:
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

    Blocks of `analysis` that are absent or empty leave their section out; so does a method that is not installed here.

    Raises: `SecateurError` where the records are of another version or do not belong together.
    """
    run, analyses = _records(verdict, plan, analysis)
    cut = PlanRecord.from_values(plan, "plan.json", SecateurError, AGAIN)
    method = methods().get(run.search.method)
    if method is None:
        return run_page(run, cut, analyses, ())
    return run_page(run, cut, analyses, method.sections(run, analyses), method.looked_at(run, analyses))


def run_figures(verdict: Json, plan: Json, analysis: Json) -> dict[str, Figure]:
    """Return the figures of the page that `render` gives, by their ids. Raises: as `render`."""
    run, analyses = _records(verdict, plan, analysis)
    method = methods().get(run.search.method)
    sections: Sequence[PageSection] = () if method is None else method.sections(run, analyses)
    figures: dict[str, Figure] = {}
    for section in (*sections, frequency(analyses.frequency or ())):
        figures |= section.figures()
    return figures


def _records(verdict: Json, plan: Json, analysis: Json) -> tuple[VerdictRecord, AnalysisRecord]:
    """Return two of the files of a run. Raises: `SecateurError` for another version, and for files of two runs."""
    version = verdict.get("version")
    if version != VERSION:
        raise SecateurError(f"a verdict of version {version!r}; this secateur reads version {VERSION}.")
    missing = [name for name in REQUIRED if verdict.get(name) is None]
    if missing:
        raise SecateurError(f"verdict.json lacks {', '.join(missing)}. {AGAIN}")
    model = verdict.get("model")
    of_plan, of_verdict = plan.get("model"), model.get("fingerprint") if isinstance(model, Mapping) else None
    if of_plan and of_verdict and of_plan != of_verdict:
        raise SecateurError(
            f"plan.json is for model {of_plan}, verdict.json for {of_verdict}: they are not of one run."
        )
    return (
        VerdictRecord.from_values(verdict, "verdict.json", SecateurError, AGAIN),
        AnalysisRecord.from_values(analysis, "analysis.json", SecateurError, AGAIN),
    )
