"""Report files: the records of a run or a healed cut in, one self-contained HTML page out. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from secateur.core.finite import finite
from secateur.core.reading import read_json
from secateur.core.records.analysis import AnalysisRecord
from secateur.core.records.plan import PlanRecord
from secateur.core.records.verdict import VerdictRecord
from secateur.core.writing import write_text
from secateur.errors import SecateurError
from secateur.report.cuts import Tried
from secateur.report.frame import PageSection
from secateur.report.healing import healing_page
from secateur.report.page import assemble
from secateur.report.run_page import run_page

VERSION = 1
REQUIRED = ("verdict", "sentence", "metric", "unit", "before", "after")
AGAIN = "Write it again with `secateur prune`."

Json = Mapping[str, Any]


class MethodView(Protocol):
    """What the page of a run shows of the method that searched."""

    def sections(self, verdict: VerdictRecord, analysis: AnalysisRecord) -> Sequence[PageSection]:
        """Return the sections that only this method has."""

    def tried(self, verdict: VerdictRecord, analysis: AnalysisRecord) -> Tried:
        """Return what the search looked at, for the map of the model."""


def render(
    verdict: Json, plan: Json, analysis: Json, *, method_named: Callable[[str], MethodView | None] | None = None
) -> str:
    """Return the page of a run, from the content of its three files; it loads nothing from anywhere.

    Blocks of `analysis` that are absent or empty leave their section out.

    Args:
        method_named: Gives a method by its name, or None for one that is not known here.

    Raises: `SecateurError` where the records are of another version or do not belong together.
    """
    _check(verdict, plan)
    verdict_record = VerdictRecord.from_json(verdict, "verdict.json", SecateurError, AGAIN)
    plan_record = PlanRecord.from_json(plan, "plan.json", SecateurError, AGAIN)
    analysis_record = AnalysisRecord.from_json(analysis, "analysis.json", SecateurError, AGAIN)
    method = method_named(verdict_record.search.method) if method_named else None
    if method is None:
        return run_page(verdict_record, plan_record, analysis_record, ())
    sections = method.sections(verdict_record, analysis_record)
    tried = method.tried(verdict_record, analysis_record)
    return run_page(verdict_record, plan_record, analysis_record, sections, tried)


def render_heal(record: Json, also: Sequence[Json] = ()) -> str:
    """One self-contained HTML page from `heal.json`: what healing brought back, at what cost; `also` are the records of
    other healed cuts of the same original, for the curves over depth.

    Raises: `SecateurError` where they are of another original or task.
    """
    origins = {(one["teacher"]["fingerprint"], one["task"]["hash"]) for one in (record, *also)}
    if len(origins) > 1:
        raise SecateurError(
            "these healed cuts are not of one original on one task, so their curves cannot be drawn together. Heal "
            "them with the same --task, --limit, --seqlen and --split-seed."
        )
    record, figures = finite(record), {}
    sections = healing_page(record, [finite(other) for other in also], figures)
    return assemble(f"healed: {record['cut']['name']}", sections, figures)


def write_report(
    folder: str | Path,
    out_html: str | Path,
    also: Sequence[str | Path] = (),
    *,
    method_named: Callable[[str], MethodView | None] | None = None,
) -> Path:
    """Write the page of what `folder` holds: `heal.json`, with those of the folders `also` beside it, or
    `verdict.json`, `plan.json` and, where there is one, `analysis.json`.

    Raises: `SecateurError` for records that are missing, broken, or not of one original, `OutputError` for a page that
    cannot be written.
    """
    folder, out = Path(folder), Path(out_html)
    if not os.path.isdir(folder):
        raise SecateurError(
            f"{folder} is no folder. A report needs one that `secateur prune` or `heal` wrote."
        )
    if (folder / "heal.json").exists():
        others = [_read(Path(other) / "heal.json") for other in also]
        return write_heal_report(_read(folder / "heal.json"), out, others)
    if also:
        raise SecateurError(f"{folder} holds no heal.json: --also is for what secateur heal wrote.")
    has_analysis = (folder / "analysis.json").exists()
    analysis = _read(folder / "analysis.json") if has_analysis else {}
    page = render(
        _read(folder / "verdict.json"), _read(folder / "plan.json"), analysis, method_named=method_named
    )
    return _written(page, out)


def write_heal_report(record: Json, path: str | Path, also: Sequence[Json] = ()) -> Path:
    """Writes the page of a healed cut.

    Raises: `SecateurError` as `render_heal`, `OutputError` for a page that cannot be written.
    """
    return _written(render_heal(record, also), Path(path))


def _written(page: str, out: Path) -> Path:
    write_text(out, page, "folder")
    return out


def _read(path: Path) -> dict[str, Any]:
    if not os.path.exists(path):
        raise SecateurError(
            f"{path} is missing. A report needs the folder that `secateur prune` or `heal` wrote."
        )
    found = read_json(path, SecateurError, "Write it again with `secateur prune`.")
    if not isinstance(found, dict):
        raise SecateurError(
            f"{path} holds no record but {found!r:.40}. Write it again with `secateur prune`."
        )
    return found


def _check(verdict: Json, plan: Json) -> None:
    found = verdict.get("version")
    if found != VERSION:
        raise SecateurError(f"a verdict of version {found!r}; this secateur reads version {VERSION}.")
    missing = [name for name in REQUIRED if verdict.get(name) is None]
    if missing:
        raise SecateurError(f"verdict.json lacks {', '.join(missing)}. Write it again with `secateur prune`.")
    of_plan, of_verdict = plan.get("model"), (verdict.get("model") or {}).get("fingerprint")
    if of_plan and of_verdict and of_plan != of_verdict:
        raise SecateurError(
            f"plan.json is for model {of_plan}, verdict.json for {of_verdict}: they are not of one run."
        )
