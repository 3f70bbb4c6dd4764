"""From a chosen plan to a staged checkpoint folder with its verdict, analyses, card and report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from secateur import records, verify
from secateur.checkpoint.card import model_card
from secateur.checkpoint.folder import write_json
from secateur.checkpoint.plans import write_plan
from secateur.checkpoint.save import save_and_reload
from secateur.checkpoint.tiers import where_it_loads
from secateur.core.comparison import ALPHA
from secateur.core.noninferiority import NOT_WORSE, bound_text
from secateur.core.plan import Drop, Edit, Linearize, Plan
from secateur.core.writing import write_text, writing
from secateur.gains.record import gains
from secateur.hf.load import Loaded
from secateur.judge.evaluator import Judge
from secateur.methods.found import Found
from secateur.reports import write_report
from secateur.session import Session
from secateur.sides import side_effects
from secateur.surgery.shape import ranks_left, shape_of

LOG = logging.getLogger("secateur")


def cut_and_verify(session: Session, found: Found, staging: Path) -> dict[str, Any]:
    """Writes the cut model to `staging`, reads it back, measures both on `test` and the sides, writes the records.

    The verdict is about what was written: the second model is the one that the stock classes load from disk.
    Returns the content of `verdict.json`.
    """
    with session.timed("verify"):
        judge, sides = session.judge(), side_effects(session)
        before = _witness(session, sides)
        trivial = verify.alternatives(judge, session.options.seed)
        written = _write_and_read(session, judge, found.plan, staging)
        after = _witness(session.on(session.task, written), sides)
        numbers = verify.decide(
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
        )
        saved = gains(session.loaded, written, staging)
    verdict = numbers | {"alternatives": trivial, "gains": saved} | _describe(session, found, written)
    verdict["sentence"] = sentence(verdict)
    analysis = found.analysis | _compared(session, sides, before, after)
    _write_records(session, found.plan, verdict, analysis, staging)
    return verdict


def _write_and_read(session: Session, judge: Judge, plan: Plan, staging: Path) -> Loaded:
    loads = where_it_loads(plan, session.loaded.anatomy, session.options.written_as)
    if loads.form == "carved" and not session.loaded.anatomy.carved:
        LOG.warning(
            "no stock checkpoint, because %s: it loads with trust_remote_code=True or secateur.load, not in vLLM or "
            "GGUF converters. --portable asks for one.",
            loads.why,
        )
    select = session.task.split("select")[:4]
    rows = [context + answer for e in select for context, answer in session.encoded[e].pairs[:1]]
    return save_and_reload(
        session.loaded,
        plan,
        staging,
        rows=rows,
        form=session.options.written_as,
        decompose=judge.spectra,
        trust_remote_code=session.options.trust_remote_code,
    )


def _witness(session: Session, sides: Sequence[verify.Side]) -> verify.Witness:
    return verify.witness(session.judge(), [session.on(side.task).judge() for side in sides], sides)


# ------------------------------------------------------------------------------------------------------- what it says


def _describe(session: Session, found: Found, written: Loaded) -> dict[str, Any]:
    """The part of `verdict.json` that says what was done to what, with which versions."""
    loaded, task, options = session.loaded, session.task, session.options
    anatomy, form = loaded.anatomy, session.options.written_as
    return {
        "candidates_tried": found.tried,
        "evaluations": found.evaluations,
        "search": found.search,
        "cut": [_cut(session, edit) for edit in found.plan.edits],
        "cut_summary": records.cut_summary(found.plan, records.counted(anatomy.widths)),
        "loads": where_it_loads(found.plan, anatomy, form).to_json(),
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
        "written": {"fingerprint": written.fingerprint},
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


def sentence(verdict: Mapping[str, Any]) -> str:
    """The verdict in one plain sentence."""
    scale, unit = (100, " %") if verdict["unit"] == "share" else (1, f" {verdict['unit']}")
    digits, step = (".1f", " points") if verdict["unit"] == "share" else (".3f", "")
    before, after, difference = (
        verdict[which]["value"] * scale for which in ("before", "after", "difference")
    )
    metric, n = verdict["metric"].replace("_", " "), f"{verdict['n']} test examples{_each_of(verdict)}"
    if not verdict["cut"]:
        search = verdict["search"]
        free = search.get("protocol", search["method"]) in ("laser", "search", "threshold", "paper")
        why = "No cut did better" if free else "Nothing could go within the bound"
        return (
            f"{why} on the selection split, so the model is unchanged: {metric} {before:{digits}}{unit} "
            f"on {n}."
        )
    low, high = (end * scale for end in verdict["difference"]["ci"])
    p = verdict["p_value"]
    opened = verdict["openings"]
    test = verdict["test"] + (f", p corrected for {opened} openings of this split" if opened > 1 else "")
    margin = verdict.get("non_inferiority")
    bound = f"; {bound_text(margin)}" if margin else ""
    fine = verdict["verdict"] == "improves" or verdict["verdict"].startswith(NOT_WORSE)
    kept = "" if fine else " The checkpoint holds the cut model all the same."
    on = f"On {n}{',' if verdict['tasks'] else ''} that nothing was chosen by"
    return (
        f"{on}, {metric} went from {before:{digits}}{unit} to "
        f"{after:{digits}}{unit}: {difference:+{digits}}{step} [{low:+{digits}}, {high:+{digits}}], "
        f"p {'< 1e-12' if p < 1e-12 else f'= {p:.2g}'} ({test}){bound}.{_task_by_task(verdict)}{kept}"
    )


def _each_of(verdict: Mapping[str, Any]) -> str:
    """`, as many of facts as of recall` where there are several tasks."""
    names = [row["name"] for row in verdict["tasks"]]
    return f", as many of {' as of '.join(names)}" if names else ""


def _task_by_task(verdict: Mapping[str, Any]) -> str:
    """Which of several tasks got better and which worse, on all of their own test examples."""
    if not verdict["tasks"]:
        return ""
    told = []
    for row in verdict["tasks"]:
        scale, unit, digits = (100, " %", ".1f") if row["unit"] == "share" else (1, "", ".3f")
        was, now = (f"{row[which]['value'] * scale:{digits}}" for which in ("before", "after"))
        shown = "no difference shown" if row["p_value"] >= ALPHA else "better" if row["gained"] else "worse"
        told.append(f"{row['name']} {was} → {now}{unit} ({shown})")
    return f" Task by task: {', '.join(told)}."


def _write_records(session: Session, plan: Plan, verdict: dict, analysis: dict, staging: Path) -> None:
    provenance = {
        "command": session.options.command(),
        "command_line": verdict["command"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": verdict["task"]["hash"],
        "seed": session.options.seed,
        "versions": verdict["versions"],
    }
    record = write_plan(plan, provenance, staging)
    write_json(staging / "verdict.json", verdict)
    write_json(staging / "analysis.json", analysis)
    write_text(staging / "README.md", model_card(verdict, record))
    with writing(staging):
        write_report(staging, staging / "report.html")


# --------------------------------------------------------------------------------------------------------- analyses


def _compared(
    session: Session, sides: Sequence[verify.Side], before: verify.Witness, after: verify.Witness
) -> dict[str, Any]:
    """The analyses that need both models: facts by frequency, paraphrases, examples that changed."""
    task = session.task
    if task.kind == "text":
        return {}
    found: dict[str, Any] = {
        "frequency": records.frequency_records(task, task.split("test"), before.test, after.test),
        "changed": records.changed_records(task, before.test, after.test, before.labels, after.labels),
    }
    for side, was, now in zip(sides, before.sides, after.sides, strict=True):
        if side.phrasings:
            found["paraphrases"] = records.paraphrase_record(side.task, was, now)
    return found
