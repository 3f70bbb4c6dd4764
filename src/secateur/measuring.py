"""Models measured on one split of a task, as they are or as if cut: `eval`, and the analyses of `probe`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from secateur.checkpoint.folder import write_json
from secateur.core.comparison import compare
from secateur.core.ledger import Ledger
from secateur.core.plan import Plan, PlanOrEdits, plan_of
from secateur.core.progress import Progress
from secateur.core.records.probe import RowsRecord
from secateur.core.score import METRICS
from secateur.core.stats import exponential, exponential_interval
from secateur.evaluation.baseline import baseline
from secateur.evaluation.openings import record_opening, untested_opening
from secateur.methods.registry import method_reading
from secateur.options import Options
from secateur.probing.report import write_rows_report
from secateur.session import Session, open_session
from secateur.surgery.operations import resolve, resolve_early
from secateur.tasks.splits import MIN_GROUPS


def evaluate(
    options: Options, split: str, asked: PlanOrEdits, *, ledger: str | Path | None, progress: Progress
) -> dict[str, Any]:
    """Measure all metrics on one split, with intervals, of the model without what is `asked` to be removed."""

    def check(early: Session) -> None:
        resolve_early(asked, early.loaded.anatomy)

    session = open_session(options, None, progress, check, needs={split: MIN_GROUPS})
    chosen = plan_for(session, asked)
    with Ledger.open(ledger) if ledger is not None else nullcontext() as journal:
        session = replace(session, ledger=journal)
        examples = session.task.split(split)
        outcomes = session.judge()([chosen], examples, "evaluate")[chosen]
        if journal is not None and split == "test":
            record_opening(journal, session.task, untested_opening(session.scope, chosen))
    groups = session.task.groups(examples)
    names = {"text": ["text_loss"], "choice": ["accuracy", "accuracy_norm", "choice_loss", "loss"]}
    metrics = names.get(session.task.kind, ["accuracy", "loss", "top5", "top10"])
    seed = session.options.seed
    scores = [compare(METRICS[m], outcomes, outcomes, groups, seed=seed).after.to_json() for m in metrics]
    if session.task.kind == "text":
        scores.append(_perplexity(scores[0]))
    start = baseline(session.task, split, examples, outcomes, session.objective.metric, seed).to_json()
    head = {"model": options.model, "task": session.task.name, "split": split, "plan": str(chosen)}
    return head | {"scores": scores, "baseline": start}


def _perplexity(loss: dict[str, Any]) -> dict[str, Any]:
    shown = {"metric": "perplexity", "unit": "perplexity"}
    return loss | shown | {"value": float(exponential(loss["value"])), "ci": exponential_interval(loss["ci"])}


def plan_for(session: Session, asked: PlanOrEdits) -> Plan:
    """Return the plan for this session's model.

    Raises: `PlanError` where it is for another model, `UnknownName` for its sites.
    """
    chosen = plan_of(asked, session.loaded.fingerprint)
    resolve(chosen, session.loaded.anatomy, session.loaded.fingerprint)
    return chosen


def analyze(
    what: str,
    options: Options,
    split: str,
    asked: PlanOrEdits,
    progress: Progress,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Return the rows of one reading that a method of `prune` brings: of matrices, or of what edits do.

    Args:
        out: Folder for probe.json, which holds the same, and its page probe.html.
    """
    method = method_reading(what)

    def check(early: Session) -> None:
        resolve_early(asked, early.loaded.anatomy)
        method.check_reading(what, early, split)

    session = open_session(options, None, progress, check, needs={split: 1})
    rows = method.read(what, session, split, plan_for(session, asked))
    record = RowsRecord(
        what=what,
        model=options.model,
        task=session.task.name,
        split=split,
        rows=[row.model_dump(mode="json", exclude_unset=True) for row in rows],
    )
    if out is None:
        return record.to_json()
    sections = method.reading_sections(what, rows) if rows else ()
    write_json(Path(out) / "probe.json", record.to_json())
    page = write_rows_report(record, sections, Path(out) / "probe.html")
    return record.to_json() | {"written": [str(Path(out) / "probe.json"), str(page)]}
