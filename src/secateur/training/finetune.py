"""`finetune`: a model trained on a task's answers, written as a checkpoint like any other.

The test split is never touched: whatever is pruned before or after can still be proven on it.
"""

from __future__ import annotations

import logging

from secateur.checkpoint.folder import Folder
from secateur.core.progress import Progress
from secateur.options import Options
from secateur.session import Session, open_session
from secateur.tasks.splits import TRAINING
from secateur.training.cards import finetuning_card
from secateur.training.commands import command_line, finetune_command
from secateur.training.measures import (
    dtype_name,
    epoch_records,
    metric_changes,
    model_record,
    splits_record,
    task_record,
)
from secateur.training.options import Tuning
from secateur.training.records.command import FinetuneCommandRecord
from secateur.training.records.finetune import FinetuneProvenanceRecord, FinetuneRecord
from secateur.training.state import (
    Tuned,
    outcomes_of,
    run_once,
    save_and_reload,
    session_state_folder,
    train_session,
    versions_used,
)
from secateur.training.trainable_parameters import trainable_parameters_of

LOG = logging.getLogger("secateur")


def finetune(
    options: Options, tuning: Tuning, folder: Folder, *, overwrite: bool, progress: Progress
) -> Tuned:
    """Fine-tune a model as `secateur.finetune` does, with options that were checked already."""
    command = finetune_command(options, tuning)

    def check(early: Session) -> None:
        trainable_parameters_of(early.loaded, tuning)

    def make() -> FinetuneRecord:
        return _finetuned(open_session(options, None, progress, check, TRAINING), tuning, command, folder)

    return run_once(
        folder, command, "finetune.json", make, finetuning_card, device=options.device, overwrite=overwrite
    )


def _finetuned(
    session: Session, tuning: Tuning, command: FinetuneCommandRecord, folder: Folder
) -> FinetuneRecord:
    """Measure, train, write to the folder's staging, measure what was written, and return the record."""
    loaded, task = session.loaded, session.task
    select = task.split("select")
    trainable, before = trainable_parameters_of(loaded, tuning), outcomes_of(session, select)
    count = trainable.count(loaded.model)
    place = session_state_folder(session, command, folder)
    trained = train_session(session, tuning, trainable, place, folder)
    written = save_and_reload(session, folder.staging)
    after = outcomes_of(session.on(task, written), select)
    if tuning.chooses and not trained.improved:
        LOG.warning(
            "no epoch has a lower loss on select than the original (%.4f): the best, which is written, has %.4f. Try "
            "another --lr or more --epochs.",
            trained.losses[0],
            trained.losses[trained.best],
        )
    return FinetuneRecord(
        model=model_record(loaded),
        fingerprint=written.fingerprint,
        task=task_record(task),
        trained_on=splits_record(task, tuning),
        trained_parameters=count,
        lora=trainable.adapters(),
        scores=metric_changes(task, before, after, task.groups(select), session.options.seed),
        epochs=epoch_records(trained),
        dtype=dtype_name(written),
        command=command_line(command),
        provenance=FinetuneProvenanceRecord(command=command, versions=versions_used()),
    )
