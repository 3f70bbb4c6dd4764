"""A cut model is taught by the model that it was cut from, and compared to both.

First what stands for blocks that are gone, by the streams there; then everything, by the probabilities too. The test
split is never learned, and opened only where a ledger is given to write that down in.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.checkpoint.folder import Folder
from secateur.checkpoint.plans import read_plan
from secateur.core.distributed import is_main
from secateur.core.ledger import Ledger
from secateur.core.progress import Progress
from secateur.core.writing import writing
from secateur.hf.load import Loaded
from secateur.hf.running import check_runs
from secateur.options import Options
from secateur.report.write import write_heal_report
from secateur.session import Session, early_session, read_model, ready_session
from secateur.tasks.splits import PROOF, TRAINING
from secateur.training.depths import Depth, depths
from secateur.training.distill import Distillation
from secateur.training.distributed import by_main
from secateur.training.heal_measures import measured, proved, select_scores, side_scores, texts, watched
from secateur.training.heal_options import STAGES, Healing, Teacher, command_line, heal_command
from secateur.training.heal_record import (
    card,
    curves_of,
    heal_record,
    sentence,
    sentence_of_test,
    stage_record,
)
from secateur.training.state import Tuned, made_once, place_of, taught, versions_used, written
from secateur.training.teacher import blank_teacher, teacher_of, trained_by
from secateur.training.trainable_parameters import TrainableParameters
from secateur.training.tuning import Tuning

LOG = logging.getLogger("secateur")


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
    """`secateur.heal` of what was looked at already."""
    command = heal_command(options, tuning, healing, teacher.given)

    def make() -> dict[str, Any]:
        return _healed(options, tuning, healing, teacher, command, folder, progress)

    return made_once(folder, command, "heal.json", make, card, device=options.device, overwrite=overwrite)


def _healed(
    options: Options,
    tuning: Tuning,
    healing: Healing,
    teacher: Teacher,
    command: dict[str, Any],
    folder: Folder,
    progress: Progress,
) -> dict[str, Any]:
    """Measures both models, trains stage by stage, writes to staging, measures what was written."""
    plan, opens = read_plan(Path(options.model)), healing.ledger is not None
    early = early_session(options, needs=PROOF if opens else TRAINING)
    known = depths(plan, blank_teacher(plan, teacher, options).anatomy, early.loaded.anatomy)
    plans = {stage: trained_by(stage, known, early.loaded, tuning) for stage in STAGES[healing.stage]}
    original = teacher_of(plan, teacher, options)
    session = ready_session(early, read_model(options), progress)
    check_runs(original, session.first_rows())
    curves = curves_of(Path(options.model), session.task)
    with Ledger.open(healing.ledger) if opens and is_main() else nullcontext() as journal:
        sides = watched(session)
        three = {
            "teacher": measured(session.on(session.task, original), sides, test=opens),
            "unhealed": measured(session, sides, test=opens),
        }
        stages = [
            _stage(stage, known, stake, original, session, tuning, healing, command, folder)
            for stage, stake in plans.items()
        ]
        made = session.on(session.task, written(session, folder.staging))
        three["healed"] = measured(made, sides, test=opens)
        record = heal_record(session, original, made.loaded, plan, tuning, stages) | {
            "scores": select_scores(session, three),
            "sides": side_scores(session, sides, three),
            "samples": texts(session, three),
            "depth": curves,
            "test": proved(made, plan, three, journal) if journal else None,
            "command": command_line(command),
            "provenance": {"command": command, "versions": versions_used()},
        }
    record["sentence"] = sentence(record)
    if record["test"]:
        record["test"]["sentence"] = sentence_of_test(record["test"])
    _warn(record)
    with writing(folder.staging):
        by_main(lambda: write_heal_report(record, folder.staging / "report.html"))
    return record


def _stage(
    stage: str,
    known: list[Depth],
    stake: TrainableParameters,
    original: Loaded,
    session: Session,
    tuning: Tuning,
    healing: Healing,
    command: dict[str, Any],
    folder: Folder,
) -> dict[str, Any]:
    """Trains the session's model in place; says how."""
    watched = [depth for depth in known if depth.replaced] if stage == "layers" else known
    towards = {"hidden": healing.hidden, "temperature": healing.temperature} if stage == "end" else {}
    place = place_of(session, command, folder) / stage
    objective = Distillation(original, watched, **towards)
    start, learning = _copies(session.loaded, stake.changed), stake.count(session.loaded.model)
    trained = taught(session, tuning, stake, place, folder, objective=objective)
    if tuning.chooses and not trained.lowered:
        session.loaded.model.load_state_dict(start, strict=False)
        trained = replace(trained, best=0)
    return stage_record(stage, trained, learning, stake.to_json(), len(watched))


def _copies(loaded: Loaded, names: Collection[str]) -> dict[str, Tensor]:
    """To go back to, where no epoch is better."""
    return {name: p.detach().clone() for name, p in loaded.model.named_parameters() if name in names}


def _warn(record: Mapping[str, Any]) -> None:
    row = next(row for row in record["scores"] if row["metric"] in ("loss", "text_loss"))
    if row["healed"]["value"] >= row["unhealed"]["value"]:
        LOG.warning(
            "healing did not lower the loss on select (%.4f unhealed, %.4f healed): try another --lr or more --epochs.",
            row["unhealed"]["value"],
            row["healed"]["value"],
        )
