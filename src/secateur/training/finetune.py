"""All weights of a model trained on a task's answers, written as a checkpoint like any other.

The test split is never touched: whatever is pruned before or after can still be proven on it.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from secateur.checkpoint.folder import Folder
from secateur.core.progress import Progress
from secateur.options import Options
from secateur.session import Session, open_session
from secateur.tasks.splits import TRAINING
from secateur.training.record import card, epoch_records, score_records, trained_on
from secateur.training.state import Tuned, judged, made_once, place_of, taught, versions_used, written
from secateur.training.trainable_parameters import trainable_parameters_of
from secateur.training.trainer import Trained
from secateur.training.tuning import Tuning, command_line, command_of

LOG = logging.getLogger("secateur")


def finetune(
    options: Options, tuning: Tuning, folder: Folder, *, overwrite: bool, progress: Progress
) -> Tuned:
    """`secateur.finetune` of what was looked at already."""
    command = json.loads(json.dumps(command_of(options, tuning)))

    def check(early: Session) -> None:
        trainable_parameters_of(early.loaded, tuning)

    def make() -> dict[str, Any]:
        return _tuned(open_session(options, None, progress, check, TRAINING), tuning, command, folder)

    return made_once(folder, command, "finetune.json", make, card, device=options.device, overwrite=overwrite)


def _tuned(session: Session, tuning: Tuning, command: dict[str, Any], folder: Folder) -> dict[str, Any]:
    """Measures, trains, writes to staging, measures what was written."""
    loaded, task, seed = session.loaded, session.task, session.options.seed
    select = list(task.split("select"))
    stake, before = trainable_parameters_of(loaded, tuning), judged(session, select)
    learned = stake.count(loaded.model)
    trained = taught(session, tuning, stake, place_of(session, command, folder), folder)
    made = written(session, folder.staging)
    after = judged(session.on(task, made), select)
    _warn(trained, tuning)
    return {
        "model": {
            "name": loaded.name,
            "hub": loaded.revision is not None,
            "revision": loaded.revision,
            "architecture": loaded.anatomy.architecture,
            "carved": loaded.anatomy.carved,
            "parameters": loaded.anatomy.num_parameters,
            "fingerprint": loaded.fingerprint,
        },
        "fingerprint": made.fingerprint,
        "task": {"name": task.name, "kind": task.kind, "hash": task.hash},
        "trained_on": trained_on(task, tuning),
        "trained_parameters": learned,
        "lora": stake.to_json(),
        "scores": score_records(task, before, after, task.groups(select), seed),
        "epochs": epoch_records(trained),
        "dtype": str(made.model.dtype).removeprefix("torch."),
        "command": command_line(command),
        "provenance": {"command": command, "versions": versions_used()},
    }


def _warn(trained: Trained, tuning: Tuning) -> None:
    if tuning.chooses and not trained.lowered:
        LOG.warning(
            "no epoch has a lower loss on select than the original (%.4f): the best, which is written, has %.4f. Try "
            "another --lr or more --epochs.",
            trained.losses[0],
            trained.losses[trained.best],
        )
