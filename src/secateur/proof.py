"""Prove a plan: write the checkpoint, read it back, measure it, and write verdict, analyses, card and report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, assert_never

from secateur.checkpoint.card import model_card
from secateur.checkpoint.folder import UNPROVEN, write_json
from secateur.checkpoint.loadability import where_it_loads
from secateur.checkpoint.plans import write_plan
from secateur.checkpoint.save import save_and_reload
from secateur.core.comparison import IMPROVES
from secateur.core.plan import Drop, Edit, Linearize, Plan, RemoveDirections, Truncate, kinds_of
from secateur.core.records.analysis import AnalysisRecord
from secateur.core.records.plan import ProvenanceRecord
from secateur.core.records.verdict import (
    AlternativeRecord,
    BaselineRecord,
    CutRecord,
    DecisionRecord,
    GainsRecord,
    HandedOverRecord,
    LoadsRecord,
    ModelRecord,
    ParametersRecord,
    ProvedRecord,
    SearchRecord,
    TaskRecord,
    VerdictRecord,
    WrittenRecord,
)
from secateur.core.writing import write_text, writing
from secateur.evaluation.baseline import alternatives
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.measurement import Measurement, SideTask, measure_model
from secateur.evaluation.verdict import decide
from secateur.gains.record import gains
from secateur.hf.anatomy import Anatomy
from secateur.hf.files import stated_license
from secateur.hf.load import Loaded
from secateur.methods.method import Proposal
from secateur.options import Options
from secateur.probes.proved import proof_of
from secateur.records import (
    changed_examples,
    cut_summary,
    frequency_bins,
    num_parts,
    paraphrase_record,
    sentence,
    versions,
)
from secateur.reporting import write_run_report
from secateur.session import Session
from secateur.side_tasks import side_effects
from secateur.surgery.shape import ranks_left, shape_of
from secateur.tasks.example import Task

LOG = logging.getLogger("secateur")


def cut_and_verify(
    session: Session, proposal: Proposal, baseline: BaselineRecord, staging: Path
) -> dict[str, Any]:
    """Write the cut model to `staging`, read it back, measure both models on `test`, write the records.

    The verdict is about the cut model as it was read back from disk. Where a cut for gain is not shown to gain, the
    unchanged model takes its place in `staging`, and the plan lies in `unproven/`.

    Args:
        baseline: The baseline record: what the unchanged model can do on `select`.

    Returns: the content of `verdict.json`.
    """
    assert session.ledger is not None, "openings of test are counted"
    structure = proof_of(session.loaded, kinds_of(proposal.plan.edits))
    with session.timed("verify"):
        judge, sides = session.judge(), side_effects(session)
        before = _measure(session, sides)
        trivial = alternatives(judge, session.options.seed)
        written, loads = _write_and_read(session, judge, proposal.plan, staging)
        after = _measure(session.on(session.task, written), sides)
        decision = decide(
            judge,
            before,
            after,
            proposal.plan,
            sides,
            session.objective.metric,
            ledger=session.ledger,
            scope=session.scope,
            seed=session.options.seed,
            margin=proposal.margin,
        )
        savings = gains(session.loaded, written, staging)
        parameters = _parameters(session, proposal.plan, written)
        written_plan = plan_to_write(proposal, decision.verdict, keep=session.options.config.keep_unproven)
        if written_plan != proposal.plan:
            written, loads = _write_and_read(session, judge, written_plan, staging)
    verdict = _verdict(
        session,
        proposal,
        decision,
        trivial=trivial,
        baseline=baseline,
        savings=savings,
        parameters=parameters,
        handed_over=_handed_over(proposal, written_plan),
        loads=loads,
        written=written,
        structure=structure,
    )
    method_analysis = {} if proposal.analysis is None else proposal.analysis.to_json()
    analysis = method_analysis | _compared(session, sides, before, after)
    _write_records(session, proposal, written_plan, verdict, analysis, staging)
    return verdict.to_json()


def plan_to_write(proposal: Proposal, verdict: str, *, keep: bool) -> Plan:
    """Return the plan of the checkpoint: the cut, but for gain only one that is shown to gain, unless `keep`."""
    proven = proposal.margin is not None or verdict == IMPROVES or keep
    return proposal.plan if proven else Plan(proposal.plan.model)


def _handed_over(proposal: Proposal, written_plan: Plan) -> HandedOverRecord:
    unproven = _unproven_plan(proposal, written_plan)
    return HandedOverRecord(
        holds="cut" if written_plan.edits else "original",
        unproven=None if unproven is None else f"{UNPROVEN}/plan.json",
        edits=None if unproven is None else str(unproven),
    )


def _unproven_plan(proposal: Proposal, written_plan: Plan) -> Plan | None:
    """Return the best plan for gain, where the checkpoint does not hold it."""
    best = proposal.plan if proposal.plan.edits else proposal.best
    return None if best is None or not best.edits or best == written_plan else best


def _write_and_read(
    session: Session, judge: Evaluator, plan: Plan, staging: Path
) -> tuple[Loaded, LoadsRecord]:
    """Write the checkpoint of `plan`; return the model as read back, and where it loads."""
    loads = where_it_loads(plan, session.loaded, session.options.written_as, read_back=True)
    anatomy = session.loaded.anatomy
    if loads.form == "carved" and not anatomy.carved:
        LOG.warning(
            "no stock checkpoint, because %s: it loads with trust_remote_code=True or secateur.load, not in vLLM or "
            "GGUF converters.%s",
            loads.why,
            "" if anatomy.num_encoder else " --portable asks for one.",
        )
    select = session.task.split("select")[:4]
    rows = [session.encoded[e].whole(0) for e in select]
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


def _measure(session: Session, sides: Sequence[SideTask]) -> Measurement:
    return measure_model(session.judge(), [session.on(side.task).judge() for side in sides], sides)


# -------------------------------------------------------------------------------------------------------- the records


def _verdict(
    session: Session,
    proposal: Proposal,
    decision: DecisionRecord,
    *,
    trivial: list[AlternativeRecord],
    baseline: BaselineRecord,
    savings: GainsRecord,
    parameters: ParametersRecord,
    handed_over: HandedOverRecord,
    loads: LoadsRecord,
    written: Loaded,
    structure: ProvedRecord,
) -> VerdictRecord:
    """Return the record: decision and evidence, what was done to what, the versions, and the sentence that sums up."""
    loaded, options = session.loaded, session.options
    verdict = VerdictRecord(
        **decision.to_json(),
        sentence="",
        alternatives=trivial,
        baseline=baseline,
        handed_over=handed_over,
        candidates_tried=proposal.tried,
        evaluations=proposal.evaluations,
        search=SearchRecord.model_validate(proposal.search.to_json()),
        cut=[cut_record(edit, loaded.anatomy) for edit in proposal.plan.edits],
        cut_summary=cut_summary(proposal.plan, num_parts(loaded.anatomy.widths)),
        parameters=parameters,
        gains=savings,
        loads=loads,
        model=model_record(options, loaded),
        written=WrittenRecord(fingerprint=written.fingerprint),
        task=_task_record(session.task),
        seed=options.seed,
        split_seed=options.split_seed,
        versions=versions(),
        structure=structure,
        seconds=dict(session.seconds),
        command=options.command_line(),
    )
    return verdict.model_copy(update={"sentence": sentence(verdict)})


def _task_record(task: Task) -> TaskRecord:
    splits = {name: len(examples) for name, examples in task.splits.items()}
    return TaskRecord(name=task.name, kind=task.kind, hash=task.hash, splits=splits)


def _parameters(session: Session, plan: Plan, written: Loaded) -> ParametersRecord:
    anatomy = session.loaded.anatomy
    return ParametersRecord(
        before=anatomy.num_parameters,
        after=written.anatomy.num_parameters,
        factorized=shape_of(plan, anatomy, factorize=True).num_parameters(anatomy),
    )


def model_record(options: Options, loaded: Loaded) -> ModelRecord:
    """Return the record of the original model."""
    anatomy = loaded.anatomy
    return ModelRecord(
        name=options.model,
        revision=options.revision,
        hub=loaded.revision is not None,
        **({} if loaded.gguf is None else {"gguf": loaded.gguf}),
        fingerprint=loaded.fingerprint,
        family=anatomy.family,
        architecture=anatomy.architecture,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        num_blocks=anatomy.num_blocks,
        encoder_blocks=anatomy.num_encoder,
        num_heads=anatomy.num_heads,
        num_kv_heads=anatomy.num_kv_heads,
        without_heads=sorted(anatomy.mixers),
        matrices=list(anatomy.matrix_kinds),
        license=None if loaded.source is None else stated_license(Path(loaded.source)),
    )


def cut_record(edit: Edit, anatomy: Anatomy) -> CutRecord:
    """Return the record of one edit; of a matrix with its shape, and the rank that is left of it."""
    named = {"site": str(edit.site), "edit": str(edit), "kind": edit.kind}
    match edit:
        case Drop():
            return CutRecord(**named)
        case Linearize():
            return CutRecord(**named, blocks=list(edit.blocks))
        case Truncate() | RemoveDirections():
            shape = anatomy.matrix(edit.matrix).shape
            rank = ranks_left(Plan("", (edit,)), anatomy)[edit.matrix]
            return CutRecord(**named, shape=list(shape), rank=rank, full_rank=min(shape))
        case _:
            assert_never(edit)


def _write_records(
    session: Session,
    proposal: Proposal,
    written_plan: Plan,
    verdict: VerdictRecord,
    analysis: Mapping[str, object],
    staging: Path,
) -> None:
    read_from = {} if verdict.model.gguf is None else {"gguf": verdict.model.gguf}
    provenance = ProvenanceRecord(
        command=session.options.command(),
        command_line=verdict.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task=verdict.task.hash,
        seed=session.options.seed,
        versions=verdict.versions,
        structure=verdict.structure,
        **read_from,
    )
    write_plan(written_plan, provenance, staging)
    if (unproven := _unproven_plan(proposal, written_plan)) is not None:
        with writing(staging):
            (staging / UNPROVEN).mkdir()
        untested = provenance.model_copy(update={"verified": bool(proposal.plan.edits)})
        write_plan(unproven, untested, staging / UNPROVEN)
    write_json(staging / "verdict.json", verdict.to_json())
    write_json(staging / "analysis.json", analysis)
    write_text(staging / "README.md", model_card(verdict, written_plan))
    with writing(staging):
        write_run_report(staging, staging / "report.html")


# --------------------------------------------------------------------------------------------------------- analyses


def _compared(
    session: Session, sides: Sequence[SideTask], before: Measurement, after: Measurement
) -> dict[str, Any]:
    """Return the analyses that need both models: facts by frequency, paraphrases, examples that changed."""
    task = session.task
    if not task.answers:
        return {}
    blocks: dict[str, Any] = {
        "frequency": frequency_bins(task, task.split("test"), before.test, after.test),
        "changed": changed_examples(task, before.test, after.test, before.labels, after.labels),
    }
    for side, was, now in zip(sides, before.side_outcomes, after.side_outcomes, strict=True):
        if side.phrasings:
            blocks["paraphrases"] = paraphrase_record(side.task, was, now)
    return AnalysisRecord(**blocks).to_json()
