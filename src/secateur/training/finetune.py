"""`secateur.finetune`: all weights of a model trained on a task's answers, written as a checkpoint like any other.

The test split is never touched: whatever is pruned before or after can still be proven on it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.checkpoint.folder import Folder
from secateur.core.progress import Progress, silent
from secateur.session import Session, open_session
from secateur.training.record import card, epoch_records, score_records, trained_on
from secateur.training.stake import stake_of
from secateur.training.state import (
    Tuned,
    judged,
    made_once,
    place_of,
    taught,
    versions_used,
    written,
)
from secateur.training.trainer import Trained
from secateur.training.tuning import Tuning, command_line, command_of, names_of, options_of, splits_of

LOG = logging.getLogger("secateur")


def finetune(
    model: str,
    task: str,
    out: str | Path,
    *,
    split: str | tuple[str, ...] = "probe",
    overwrite: bool = False,
    progress: Progress = silent,
    epochs: int = 3,
    lr: float = 5e-5,
    batch_size: int = 8,
    weight_decay: float = 0.0,
    warmup: float = 0.0,
    max_steps: int | None = None,
    bf16: bool = False,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_targets: str | Sequence[str] = "all",
    **options: Any,
) -> Tuned:
    """Train all parameters of `model` on the answers of `task`, in float32, and write it to `out` in its own dtype.

    With `lora` adapters of that rank are trained instead, and merged: see `Tuning`.
    `split` is probe, select or both; without select in it the epoch with the lowest loss there is kept. `options` are
    those of `prune` that say what model and task are: limit, shots, seed, dtype, ... Killed at any moment and called
    again it goes on where it was and ends with the same weights. Raises any `SecateurError`; then `out` is untouched.
    """
    adapters = (lora, lora_alpha, names_of(lora_targets))
    tuning = Tuning(
        splits_of(split), epochs, lr, batch_size, weight_decay, warmup, max_steps, bf16, *adapters
    )
    chosen = options_of(model, task, options)
    command = json.loads(json.dumps(command_of(chosen, tuning)))
    folder = Folder.at(out, reads=model)

    def make() -> dict[str, Any]:
        return _tuned(open_session(chosen, None, progress), tuning, command, folder)

    return made_once(folder, command, "finetune.json", make, card, device=chosen.device, overwrite=overwrite)


def _tuned(session: Session, tuning: Tuning, command: dict[str, Any], folder: Folder) -> dict[str, Any]:
    """Measures, trains, writes to staging, measures what was written."""
    loaded, task, seed = session.loaded, session.task, session.options.seed
    select = list(task.split("select"))
    stake, before = stake_of(loaded, tuning), judged(session, select)
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
