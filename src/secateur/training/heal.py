"""`heal`: a cut model taught by the model that it was cut from, and compared to both.

First the parameters that replaced removed blocks, by the hidden states there; then all, by the probabilities too. The
test split is never trained on, and opened only where a ledger is given to note that in.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from secateur.checkpoint.folder import Folder
from secateur.checkpoint.plans import read_plan
from secateur.core.distributed import is_main
from secateur.core.ledger import Ledger
from secateur.core.plan import Plan
from secateur.core.progress import Progress
from secateur.core.reading import as_written, read_json
from secateur.core.site import Site
from secateur.core.writing import writing
from secateur.errors import ModelError, PlanError, TrainingError, UnknownName
from secateur.evaluation.measurement import SideTask
from secateur.hf.blank import blank_model
from secateur.hf.load import Loaded, load_model
from secateur.hf.running import check_runs
from secateur.methods.depth.records import DepthRecord
from secateur.options import Options
from secateur.session import Session, early_session, read_model, ready_session
from secateur.surgery.operations import resolve_early
from secateur.tasks.example import Task
from secateur.tasks.splits import PROOF, TRAINING
from secateur.training.cards import healing_card, healing_sentence
from secateur.training.commands import command_line, heal_command
from secateur.training.distributed import on_main
from secateur.training.measures import (
    HealMeasurement,
    ModelTrio,
    dtype_name,
    epoch_records,
    identity_record,
    measure,
    model_record,
    select_scores,
    side_scores,
    splits_record,
    task_record,
    test_record,
    texts,
    watched_tasks,
)
from secateur.training.objectives import DepthPair, Distillation, depth_pairs
from secateur.training.options import STAGES, Healing, Teacher, Tuning
from secateur.training.records.command import HealCommandRecord
from secateur.training.records.heal import (
    HealedTestRecord,
    HealProvenanceRecord,
    HealRecord,
    HealStageRecord,
    JudgedRecord,
    RemovedBlocksRecord,
)
from secateur.training.report.heal_figures import check_depth
from secateur.training.report.heal_page import write_heal_report
from secateur.training.state import (
    Tuned,
    run_once,
    save_and_reload,
    session_state_folder,
    train_session,
    versions_used,
)
from secateur.training.trainable_parameters import (
    TrainableParameters,
    parameters_under,
    trainable_parameters_of,
)

LOG = logging.getLogger("secateur")


@dataclass(frozen=True)
class HealJob:
    """Everything that was asked for, with the command that identifies it and the places that it writes to."""

    options: Options
    tuning: Tuning
    healing: Healing
    teacher: Teacher
    command: HealCommandRecord
    folder: Folder


def heal(
    options: Options,
    tuning: Tuning,
    healing: Healing,
    teacher: Teacher,
    folder: Folder,
    *,
    overwrite: bool,
    progress: Progress,
) -> Tuned:
    """Heal a cut as `secateur.heal` does, with options that were checked already."""
    command = heal_command(options, tuning, healing, teacher.given)
    job = HealJob(options, tuning, healing, teacher, command, folder)

    def make() -> HealRecord:
        return _healed(job, progress)

    return run_once(
        folder, command, "heal.json", make, healing_card, device=options.device, overwrite=overwrite
    )


def _healed(job: HealJob, progress: Progress) -> HealRecord:
    """Measure both models, train stage by stage, write to staging, measure what was written, and return the record."""
    options, folder, tuning = job.options, job.folder, job.tuning
    plan, opens = read_plan(Path(options.model)), job.healing.ledger is not None
    early = early_session(options, needs=PROOF if opens else TRAINING)
    early.loaded.anatomy.check_causal("heal, which teaches texts token by token,")
    pairs = depth_pairs(plan, blank_teacher(plan, job).anatomy, early.loaded.anatomy)
    trainable = {
        stage: stage_parameters(stage, pairs, early.loaded, tuning) for stage in STAGES[job.healing.stage]
    }
    original = load_teacher(plan, job)
    session = ready_session(early, read_model(options), progress)
    check_runs(original, session.first_rows())
    curves = depth_curves(Path(options.model), session.task)
    with Ledger.open(job.healing.ledger) if job.healing.ledger and is_main() else nullcontext() as ledger:
        sides = watched_tasks(session)
        teacher = measure(session.on(session.task, original), sides, test=opens)
        unhealed = measure(session, sides, test=opens)
        stages = [
            run_stage(stage, pairs, which, original, session, job) for stage, which in trainable.items()
        ]
        healed = session.on(session.task, save_and_reload(session, folder.staging))
        three = ModelTrio(teacher, unhealed, measure(healed, sides, test=opens))
        test = test_record(healed, plan, three, ledger) if ledger else None
    record = _record(job, session, original, healed.loaded, plan, stages, curves, three, sides, test)
    loss = record.loss_score
    if loss.healed.value >= loss.unhealed.value:
        LOG.warning(
            "healing did not lower the loss on the validation split (%.4f unhealed, %.4f healed): try "
            "another --lr or more --epochs.",
            loss.unhealed.value,
            loss.healed.value,
        )
    with writing(folder.staging):
        on_main(lambda: write_heal_report(record, folder.staging / "report.html"))
    return record


def _record(
    job: HealJob,
    session: Session,
    original: Loaded,
    healed: Loaded,
    plan: Plan,
    stages: list[HealStageRecord],
    curves: DepthRecord | None,
    three: ModelTrio[HealMeasurement],
    sides: list[SideTask],
    test: HealedTestRecord | None,
) -> HealRecord:
    """Return heal.json; `session` has the cut model, which training changed in place."""
    tokens, seconds = sum(stage.tokens for stage in stages), sum(stage.seconds for stage in stages)
    scores, of_sides = select_scores(session, three), side_scores(session, sides, three)
    return HealRecord(
        cut=model_record(session.loaded),
        teacher=identity_record(original),
        fingerprint=healed.fingerprint,
        gone=RemovedBlocksRecord(blocks=sorted(site.block for site in plan.blocks_gone), form=form_of(plan)),
        task=task_record(session.task),
        trained_on=splits_record(session.task, job.tuning),
        stages=stages,
        tokens=tokens,
        seconds=seconds,
        dtype=dtype_name(healed),
        scores=scores,
        sides=of_sides,
        samples=texts(session, three),
        depth=curves,
        test=test,
        command=command_line(job.command),
        provenance=HealProvenanceRecord(command=job.command, versions=versions_used()),
        sentence=healing_sentence(scores, of_sides, tokens, seconds),
    )


# --------------------------------------------------------------------------------------------------------- the teacher


def blank_teacher(plan: Plan, job: HealJob) -> Loaded:
    """Return the model that `plan` is for, without its weights. Raises: `ModelError` where another one is found."""
    device, trust = job.options.device, job.options.trust_remote_code
    blank = blank_model(**job.teacher.location, device=device, trust_remote_code=trust)
    try:
        resolve_early(plan, blank.anatomy)
    except (PlanError, UnknownName) as error:
        raise _another_model(job, str(error)) from error
    return blank


def load_teacher(plan: Plan, job: HealJob) -> Loaded:
    """Return the model that `plan` is for. Raises: `ModelError` where another one is found."""
    device, trust = job.options.device, job.options.trust_remote_code
    loaded = load_model(**job.teacher.location, device=device, trust_remote_code=trust)
    if loaded.fingerprint != plan.model:
        raise _another_model(job, f"fingerprint {loaded.fingerprint}, where plan.json has {plan.model}.")
    return loaded


def _another_model(job: HealJob, why: str) -> ModelError:
    return ModelError(
        f"{job.teacher.name} is not the model that {job.options.model} was cut from: {why} Give that model with "
        "--teacher."
    )


# ---------------------------------------------------------------------------------------------------------- the stages


def stage_parameters(
    stage: str, pairs: list[DepthPair], loaded: Loaded, tuning: Tuning
) -> TrainableParameters:
    """Return what a stage trains; adapters are for `end` alone.

    Raises: `TrainingError` for the stage `layers` where nothing replaced a removed block.
    """
    replacements = tuple(path for pair in pairs for path in pair.replacements)
    if stage == "end":
        return trainable_parameters_of(loaded, tuning, replacements)
    if not replacements:
        raise TrainingError(
            "in this cut nothing stands for a block that is gone, so there is nothing for the stage layers. Give "
            "--stage end."
        )
    names = [name for name, _ in loaded.model.named_parameters()]
    return TrainableParameters(parameters_under(replacements, names))


def run_stage(
    stage: str,
    pairs: list[DepthPair],
    trainable: TrainableParameters,
    original: Loaded,
    session: Session,
    job: HealJob,
) -> HealStageRecord:
    """Train the session's model in place and return the record; where no epoch is better, put its weights back."""
    if stage == "layers":
        compared = [pair for pair in pairs if pair.replacements]
        objective = Distillation(original, compared)
    else:
        compared = pairs
        objective = Distillation(original, compared, job.healing.hidden, job.healing.temperature)
    model, place = session.loaded.model, session_state_folder(session, job.command, job.folder) / stage
    count = trainable.count(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if name in trainable.changed}
    trained = train_session(session, job.tuning, trainable, place, job.folder, objective)
    if job.tuning.chooses and not trained.improved:
        model.load_state_dict(start, strict=False)
        trained = replace(trained, best=0)
    return HealStageRecord(
        stage=stage,
        trained_parameters=count,
        lora=trainable.adapters(),
        depths=len(compared),
        tokens=trained.tokens,
        seconds=trained.seconds,
        epochs=epoch_records(trained),
    )


# ------------------------------------------------------------------------------------------------------------- the cut


def form_of(plan: Plan) -> str | None:
    """Return what replaces the removed blocks: `fold`, `linear` or `drop`; None for no block, or several forms."""
    blocks = [site for site in plan.dropped if site == Site(site.block)]
    forms: set[str] = {edit.form for edit in plan.linearized} | ({"drop"} if blocks else set())
    return forms.pop() if len(forms) == 1 else None


def depth_curves(cut: Path, task: Task) -> DepthRecord | None:
    """Return `depth` of a cut's own analysis.json; None where it is no depth cut, or was judged on another task.

    Raises: `TrainingError` for records that cannot be read or drawn.
    """
    files = cut / "verdict.json", cut / "analysis.json"
    if not all(file.exists() for file in files):
        return None
    advice = "Remove verdict.json and analysis.json, or cut again."
    judged = JudgedRecord.read(files[0], TrainingError, advice)
    analysis = read_json(files[1], TrainingError, advice)
    with as_written(cut, TrainingError, advice):
        depth = analysis.get("depth") if judged.task.hash == task.hash else None
        if not depth:
            return None
        record = DepthRecord.model_validate(depth)
        check_depth(record)  # now, because the page is drawn after the training
        return record
