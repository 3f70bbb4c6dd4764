"""From a chosen plan to a staged checkpoint folder with its verdict, analyses, card and report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from secateur import records
from secateur.checkpoint.card import model_card
from secateur.checkpoint.folder import UNPROVEN, write_json
from secateur.checkpoint.loadability import Loads, where_it_loads
from secateur.checkpoint.plans import write_plan
from secateur.checkpoint.save import save_and_reload
from secateur.core.comparison import IMPROVES
from secateur.core.plan import Drop, Edit, Linearize, Plan
from secateur.core.records.verdict import VerdictRecord
from secateur.core.writing import write_text, writing
from secateur.evaluation.baseline import alternatives
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.measurement import Measurement, SideTask, measure_model
from secateur.evaluation.sentence import sentence
from secateur.evaluation.verdict import decide
from secateur.gains.record import gains
from secateur.hf.load import Loaded
from secateur.methods.method import Proposal
from secateur.report import write_report
from secateur.session import Session
from secateur.side_tasks import side_effects
from secateur.surgery.shape import ranks_left, shape_of

LOG = logging.getLogger("secateur")


def cut_and_verify(
    session: Session, found: Proposal, start: Mapping[str, Any], staging: Path
) -> dict[str, Any]:
    """Writes the cut model to `staging`, reads it back, measures both on `test` and the sides, writes the records.

    The verdict is about the cut model as it was read back from disk. Where a cut for gain is not shown to gain, the
    unchanged model takes its place in `staging`, and the plan lies in `unproven/`. `start` is what the unchanged model
    can do on `select`. Returns what is in `verdict.json`.
    """
    with session.timed("verify"):
        judge, sides = session.judge(), side_effects(session)
        before = _witness(session, sides)
        trivial = [record.to_json() for record in alternatives(judge, session.options.seed)]
        written, loads = _write_and_read(session, judge, found.plan, staging)
        after = _witness(session.on(session.task, written), sides)
        numbers = decide(
            judge,
            before,
            after,
            found.plan,
            sides,
            session.objective.metric,
            ledger=session.ledger,
            scope=session.scope,
            seed=session.options.seed,
            margin=found.margin,
        ).to_json()
        saved = gains(session.loaded, written, staging)
        held = held_plan(found, numbers["verdict"], keep=session.options.config.keep_unproven)
        about = _describe(session, found, written) | {"handed_over": _handed_over(found, held)}
        if held != found.plan:
            written, loads = _write_and_read(session, judge, held, staging)
        about |= {"loads": loads.to_json(), "written": {"fingerprint": written.fingerprint}}
    verdict = numbers | {"alternatives": trivial, "gains": saved, "baseline": dict(start)} | about
    verdict["sentence"] = sentence(VerdictRecord.model_validate(verdict | {"sentence": ""}))
    analysis = found.analysis | _compared(session, sides, before, after)
    _write_records(session, found, held, verdict, analysis, staging)
    return verdict


def held_plan(found: Proposal, word: str, *, keep: bool) -> Plan:
    """What the checkpoint holds in the end: the cut, but for gain only one that is shown to gain, unless it is to be
    kept all the same."""
    proven = found.margin is not None or word == IMPROVES or keep
    return found.plan if proven else Plan(found.plan.model)


def _handed_over(found: Proposal, held: Plan) -> dict[str, Any]:
    """What OUT holds, `cut` or `original`, and where in it a plan lies that was not carried out."""
    aside = _set_aside(found, held)
    plan = f"{UNPROVEN}/plan.json" if aside is not None else None
    return {"holds": "cut" if held.edits else "original", "unproven": plan, "edits": aside and str(aside)}


def _set_aside(found: Proposal, held: Plan) -> Plan | None:
    """The plan that was found for gain, where the checkpoint does not hold it."""
    best = found.plan if found.plan.edits else found.best
    return None if best is None or not best.edits or best == held else best


def _write_and_read(session: Session, judge: Evaluator, plan: Plan, staging: Path) -> tuple[Loaded, Loads]:
    """Writes the checkpoint of `plan`; returns the model as read back, and where it loads."""
    loads = where_it_loads(plan, session.loaded, session.options.written_as, read_back=True)
    if loads.form == "carved" and not session.loaded.anatomy.carved:
        LOG.warning(
            "no stock checkpoint, because %s: it loads with trust_remote_code=True or secateur.load, not in vLLM or "
            "GGUF converters. --portable asks for one.",
            loads.why,
        )
    select = session.task.split("select")[:4]
    rows = [context + answer for e in select for context, answer in session.encoded[e].pairs[:1]]
    written = save_and_reload(
        session.loaded,
        plan,
        staging,
        rows=rows,
        form=session.options.written_as,
        decompose=judge.spectra,
        trust_remote_code=session.options.trust_remote_code,
    )
    return written, loads


def _witness(session: Session, sides: Sequence[SideTask]) -> Measurement:
    return measure_model(session.judge(), [session.on(side.task).judge() for side in sides], sides)


# ------------------------------------------------------------------------------------------------------- what it says


def _describe(session: Session, found: Proposal, written: Loaded) -> dict[str, Any]:
    """The part of `verdict.json` that says what was done to what, with which versions."""
    loaded, task, options = session.loaded, session.task, session.options
    anatomy = loaded.anatomy
    return {
        "candidates_tried": found.tried,
        "evaluations": found.evaluations,
        "search": found.search,
        "cut": [_cut(session, edit) for edit in found.plan.edits],
        "cut_summary": records.cut_summary(found.plan, records.counted(anatomy.widths)),
        "parameters": {
            "before": anatomy.num_parameters,
            "after": written.anatomy.num_parameters,
            "factorized": shape_of(found.plan, anatomy, factorize=True).num_parameters(anatomy),
        },
        "model": {
            "name": options.model,
            "revision": options.revision,
            "hub": loaded.revision is not None,
            "fingerprint": loaded.fingerprint,
            "family": loaded.anatomy.family,
            "architecture": loaded.anatomy.architecture,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "num_blocks": loaded.anatomy.num_blocks,
            "num_heads": loaded.anatomy.num_heads,
            "num_kv_heads": loaded.anatomy.num_kv_heads,
            "matrices": list(loaded.anatomy.matrix_kinds),
        },
        "task": {
            "name": task.name,
            "kind": task.kind,
            "hash": task.hash,
            "splits": {name: len(indices) for name, indices in task.splits.items()},
        },
        "seed": options.seed,
        "split_seed": options.split_seed,
        "versions": records.versions(),
        "seconds": session.seconds,
        "command": options.command_line(),
    }


def _cut(session: Session, edit: Edit) -> dict[str, Any]:
    told: dict[str, Any] = {"site": str(edit.site), "edit": str(edit), "kind": edit.kind}
    if isinstance(edit, Linearize):
        return told | {"blocks": list(edit.blocks)}
    if isinstance(edit, Drop):
        return told
    anatomy = session.loaded.anatomy
    shape, ranks = (
        anatomy.matrix(edit.matrix).shape,
        ranks_left(Plan(session.loaded.fingerprint, (edit,)), anatomy),
    )
    return told | {"shape": list(shape), "rank": ranks[edit.matrix], "full_rank": min(shape)}


def _write_records(
    session: Session, found: Proposal, held: Plan, verdict: dict, analysis: dict, staging: Path
) -> None:
    provenance = {
        "command": session.options.command(),
        "command_line": verdict["command"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": verdict["task"]["hash"],
        "seed": session.options.seed,
        "versions": verdict["versions"],
    }
    record = write_plan(held, provenance, staging)
    if (aside := _set_aside(found, held)) is not None:
        with writing(staging):
            (staging / UNPROVEN).mkdir()
        write_plan(aside, provenance | {"verified": bool(found.plan.edits)}, staging / UNPROVEN)
    write_json(staging / "verdict.json", verdict)
    write_json(staging / "analysis.json", analysis)
    write_text(staging / "README.md", model_card(verdict, record))
    with writing(staging):
        write_report(staging, staging / "report.html")


# --------------------------------------------------------------------------------------------------------- analyses


def _compared(
    session: Session, sides: Sequence[SideTask], before: Measurement, after: Measurement
) -> dict[str, Any]:
    """The analyses that need both models: facts by frequency, paraphrases, examples that changed."""
    task = session.task
    if task.kind == "text":
        return {}
    found: dict[str, Any] = {
        "frequency": records.frequency_records(task, task.split("test"), before.test, after.test),
        "changed": records.changed_records(task, before.test, after.test, before.labels, after.labels),
    }
    for side, was, now in zip(sides, before.side_outcomes, after.side_outcomes, strict=True):
        if side.phrasings:
            found["paraphrases"] = records.paraphrase_record(side.task, was, now)
    return found
