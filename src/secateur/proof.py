"""From a chosen plan to a staged checkpoint folder with its verdict, analyses, card and report."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from secateur import __version__, records, verify
from secateur.checkpoint.card import model_card
from secateur.checkpoint.folder import write_json, writing
from secateur.checkpoint.save import Form, save_and_reload
from secateur.core.noninferiority import NOT_WORSE, bound_text
from secateur.core.plan import Plan, Truncate
from secateur.core.readings import Readings
from secateur.errors import PlanError, SecateurError
from secateur.hf.load import Loaded
from secateur.judge.evaluator import Judge
from secateur.probes.answers import split_answers
from secateur.reports import write_report
from secateur.search.laser import Race, grid
from secateur.session import Session
from secateur.tasks.load import load_side

SIDE_EXAMPLES = 200
SHOWN_EXAMPLES = 256


@dataclass(frozen=True)
class Found:
    """The outcome of a search: the plan, and how it was come by."""

    plan: Plan
    candidates: tuple[Truncate, ...]
    readings: Readings | None
    race: Race
    tried: int
    evaluations: int


def cut_and_verify(session: Session, found: Found, staging: Path) -> dict[str, Any]:
    """Writes the cut model to `staging`, reads it back, measures both on `test` and the sides, writes the records.

    The verdict is about what was written: the second model is the one that the stock classes load from disk.
    Returns the content of `verdict.json`.
    """
    with session.timed("verify"):
        judge, sides = session.judge(), side_effects(session)
        before = _witness(session, sides)
        trivial = verify.alternatives(judge, session.options.seed)
        analysis = _analyze(session, judge, found)
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
        )
    verdict = numbers | {"alternatives": trivial} | _describe(session, found, written)
    verdict["sentence"] = sentence(verdict)
    analysis |= _compared(session, sides, before, after)
    _write_records(session, found.plan, verdict, analysis, staging)
    return verdict


def _write_and_read(session: Session, judge: Judge, plan: Plan, staging: Path) -> Loaded:
    select = session.task.split("select")[:4]
    rows = [context + answer for e in select for context, answer in session.encoded[e].pairs[:1]]
    return save_and_reload(
        session.loaded,
        plan,
        staging,
        rows=rows,
        form=Form(session.options.zeroed, session.options.factorize),
        decompose=judge.spectra,
        trust_remote_code=session.options.trust_remote_code,
    )


def _witness(session: Session, sides: Sequence[verify.Side]) -> verify.Witness:
    return verify.witness(session.judge(), [session.on(side.task).judge() for side in sides], sides)


def side_effects(session: Session) -> list[verify.Side]:
    """What else is watched: the other phrasings of the test questions where the task has them, and the tasks of
    `--side`, else what the embedded model brings along, else plain English."""
    given = session.options.side
    specs = (
        list(given)
        or _own_sides(session.options.model)
        or [f"text:{resources.files('secateur.tasks') / 'passages.jsonl'}"]
    )
    context = session.loaded.anatomy.context
    seqlen = min(session.options.seqlen, context) if context else session.options.seqlen
    phrasings = verify.paraphrase_task(session.task, "test")
    sides = (
        []
        if phrasings is None
        else [verify.Side("other phrasings", session.on(phrasings).task, phrasings=True)]
    )
    for spec in specs:
        task = load_side(spec, tokenizer=session.loaded.tokenizer, seqlen=seqlen, limit=SIDE_EXAMPLES)
        name = Path(spec.removeprefix("text:")).stem.removeprefix("text_").replace("_", " ")
        sides.append(verify.Side(name, session.on(task).task, continuations=task.kind == "text"))
    return sides


def _own_sides(model: str) -> list[str]:
    if not model.startswith("builtin:"):
        return []
    folder = resources.files("secateur.models") / model.removeprefix("builtin:")
    files = sorted(Path(str(folder)).glob("side/*"))
    return [f"text:{f}" if f.name.startswith("text_") else str(f) for f in files]


# ------------------------------------------------------------------------------------------------------- what it says


def _describe(session: Session, found: Found, written: Loaded) -> dict[str, Any]:
    """The part of `verdict.json` that says what was done to what, with which versions."""
    loaded, task, options = session.loaded, session.task, session.options
    raced_out = len(found.race.dropped_after)
    return {
        "candidates_tried": found.tried,
        "evaluations": found.evaluations,
        "search": {
            "method": options.method,
            "exhaustive": options.exhaustive,
            "proposed": len(found.candidates),
            "screened_out": len(found.candidates) + 1 - len(found.race.standing),
            "raced_out": raced_out,
            "rungs": [list(rung) for rung in found.race.rungs],
            "composed": len(found.plan.edits) > 1,
        },
        "cut": [_cut(session, edit) for edit in found.plan.edits],
        "parameters": {
            "before": loaded.anatomy.num_parameters,
            "after": written.anatomy.num_parameters,
            "factorized": loaded.anatomy.num_parameters - _saved_when_factorized(session, found.plan),
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
        "versions": versions(),
        "seconds": session.seconds,
        "command": options.command_line(),
    }


def _cut(session: Session, edit: Truncate) -> dict[str, Any]:
    shape = session.loaded.anatomy.matrix(edit.matrix).shape
    return {
        "site": str(edit.matrix),
        "edit": str(edit),
        "shape": list(shape),
        "rank": edit.rank,
        "full_rank": min(shape),
    }


def _saved_when_factorized(session: Session, plan: Plan) -> int:
    """Parameters that storing two factors would save: m·n − r(m + n), where that is positive."""
    shapes = [(edit.rank, *session.loaded.anatomy.matrix(edit.matrix).shape) for edit in plan.edits]
    return sum(max(0, m * n - rank * (m + n)) for rank, m, n in shapes)


def read_plan(path: Path) -> Plan:
    """The plan in a file, or in a checkpoint folder. Raises `PlanError`."""
    file = path / "plan.json" if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"{file}: cannot be read as a plan ({error}).") from error
    if not isinstance(data, dict):
        raise PlanError(
            f"{file}: not a plan but a JSON {type(data).__name__}. Give the plan.json of a checkpoint."
        )
    try:
        return Plan.from_json(data)
    except SecateurError as error:
        raise PlanError(f"{file}: {error}") from error


def versions() -> dict[str, str]:
    """What computed the numbers: secateur, Python and the libraries that decide them."""
    names = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "scipy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"secateur": __version__, "python": platform.python_version()} | found


def sentence(verdict: Mapping[str, Any]) -> str:
    """The verdict in one plain sentence."""
    scale, unit = (100, " %") if verdict["unit"] == "share" else (1, f" {verdict['unit']}")
    digits, step = (".1f", " points") if verdict["unit"] == "share" else (".3f", "")
    before, after, difference = (
        verdict[which]["value"] * scale for which in ("before", "after", "difference")
    )
    metric, n = verdict["metric"].replace("_", " "), verdict["n"]
    if not verdict["cut"]:
        return (
            f"No cut did better on the selection split, so the model is unchanged: {metric} {before:{digits}}{unit} "
            f"on {n} test examples."
        )
    low, high = (end * scale for end in verdict["difference"]["ci"])
    p = verdict["p_value"]
    opened = verdict["openings"]
    test = verdict["test"] + (f", p corrected for {opened} openings of this split" if opened > 1 else "")
    margin = verdict.get("non_inferiority")
    bound = f"; {bound_text(margin)}" if margin else ""
    fine = verdict["verdict"] == "improves" or verdict["verdict"].startswith(NOT_WORSE)
    kept = "" if fine else " The checkpoint holds the cut model all the same."
    return (
        f"On {n} test examples that nothing was chosen by, {metric} went from {before:{digits}}{unit} to "
        f"{after:{digits}}{unit}: {difference:+{digits}}{step} [{low:+{digits}}, {high:+{digits}}], "
        f"p {'< 1e-12' if p < 1e-12 else f'= {p:.2g}'} ({test}){bound}.{kept}"
    )


def _write_records(session: Session, plan: Plan, verdict: dict, analysis: dict, staging: Path) -> None:
    provenance = {
        "command": session.options.command(),
        "command_line": verdict["command"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": verdict["task"]["hash"],
        "seed": session.options.seed,
        "versions": verdict["versions"],
    }
    record = plan.to_json() | {"provenance": provenance}
    write_json(staging / "plan.json", record)
    write_json(staging / "verdict.json", verdict)
    write_json(staging / "analysis.json", analysis)
    with writing(staging):
        (staging / "README.md").write_text(model_card(verdict, record), encoding="utf-8")
        write_report(staging, staging / "report.html")


# --------------------------------------------------------------------------------------------------------- analyses


def _analyze(session: Session, judge: Judge, found: Found) -> dict[str, Any]:
    """What the report shows of the search and of the matrices that were cut; all of it on `select`.

    Curves and component answers are for looking at, so they read at most SHOWN_EXAMPLES, those a race read first.
    """
    select = session.shuffled("select")
    full_ranks = {site: min(matrix.shape) for site, matrix in session.loaded.anatomy.matrices.items()}
    base = judge([session.empty], select)[session.empty]
    shown = found.plan.edits or _runner_up(session, found)
    chosen = {edit.matrix: session.loaded.anatomy.matrix(edit.matrix).shape for edit in shown}
    ranks = [
        session.empty + edit for edit in grid(chosen, session.options.fractions, session.options.small_ranks)
    ]
    some = select[:SHOWN_EXAMPLES]
    curves = judge([session.empty, *ranks], some, "curves")
    base_there = curves.pop(session.empty)
    analysis = {
        "base": records.base_record(base),
        "sweep": records.sweep_records(found.race.standing, full_ranks, len(select)),
        "curves": records.curve_records(curves, full_ranks, base_there),
        "spectrum": {str(edit.matrix): _spectrum(session, judge, edit) for edit in shown},
    }
    if found.readings is not None:
        analysis["screen"] = records.screen_records(found.readings, found.candidates, full_ranks)
    if session.task.kind != "text":
        analysis["tail"] = split_answers(judge, found.plan, some)
    return analysis


def _runner_up(session: Session, found: Found) -> tuple[Truncate, ...]:
    """Where nothing was cut, the cut that came nearest is shown."""
    cuts = [plan for plan in found.race.standing if plan.edits]
    best = max(
        cuts,
        key=lambda plan: (len(found.race.standing[plan]), session.objective.key(found.race.standing[plan])),
    )
    return best.edits


def _spectrum(session: Session, judge: Judge, edit: Truncate) -> dict[str, Any]:
    matrix = session.loaded.anatomy.matrix(edit.matrix)
    weight = session.loaded.model.get_parameter(matrix.weight).detach()
    return {"values": judge.spectra(matrix, weight).sigma.double().tolist(), "kept": edit.rank}


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
