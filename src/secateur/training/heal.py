"""`secateur.heal`: a cut model is taught by the model that it was cut from, and compared to both.

First what stands for blocks that are gone, by the streams there; then everything, by the probabilities too. The test
split is never touched.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.checkpoint.folder import Folder
from secateur.core.progress import Progress, silent
from secateur.errors import TrainingError, UnknownName, nearest
from secateur.hf.load import Loaded
from secateur.session import Options, Session, open_session
from secateur.training.depths import Depth, depths
from secateur.training.distill import Distillation
from secateur.training.heal_record import card, heal_record, stage_record
from secateur.training.state import (
    Tuned,
    check_room,
    in_float32,
    judged,
    kept_at,
    made_once,
    place_of,
    samples_of,
    versions_used,
    written,
)
from secateur.training.teacher import origin_of, teacher_of, trained_by
from secateur.training.trainer import train
from secateur.training.tuning import Tuning, command_of, options_of, splits_of

LOG = logging.getLogger("secateur")
STAGES = {"layers": ("layers",), "end": ("end",), "both": ("layers", "end")}


@dataclass(frozen=True)
class Healing:
    """What is healed: `stage` is layers, end or both; `temperature` and `hidden` (the weight of the streams' error
    beside the divergence) are for end. Raises: `UnknownName`, `TrainingError` for numbers that mean nothing."""

    stage: str = "both"
    temperature: float = 1.0
    hidden: float = 1.0

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise UnknownName(f"unknown stage {self.stage!r}.{nearest(self.stage, STAGES)}")
        if not 0 < self.temperature < math.inf:
            raise TrainingError(f"--temperature {self.temperature}: above 0, such as 1 or 2.")
        if not 0 <= self.hidden < math.inf:
            raise TrainingError(f"--hidden {self.hidden}: give 0 or more.")


def heal(
    cut: str | Path,
    task: str,
    out: str | Path,
    *,
    teacher: str | None = None,
    stage: str = "both",
    temperature: float = 1.0,
    hidden: float = 1.0,
    split: str | tuple[str, ...] = "probe",
    overwrite: bool = False,
    progress: Progress = silent,
    epochs: int = 3,
    lr: float = 1e-4,
    batch_size: int = 8,
    weight_decay: float = 0.0,
    warmup: float = 0.0,
    max_steps: int | None = None,
    bf16: bool = False,
    **options: Any,
) -> Tuned:
    """Distill into `cut`, a folder that `prune` or `apply` wrote, what its original computes on `task`.

    `teacher` is that original, by default where its plan.json says; both give the same fingerprint or it is refused.
    `epochs` and `max_steps` are those of each stage; one that does not lower the loss on select leaves the weights as
    they were. Otherwise as `finetune`: splits, resuming, precision, options.
    Raises any `SecateurError`; then `out` is untouched.
    """
    tuning = Tuning(splits_of(split), epochs, lr, batch_size, weight_decay, warmup, max_steps, bf16)
    healing, chosen = Healing(stage, temperature, hidden), options_of(str(cut), task, options)
    command = json.loads(json.dumps(_command(chosen, tuning, healing, teacher)))
    folder = Folder.at(out, reads=str(cut))

    def make() -> dict[str, Any]:
        return _healed(chosen, tuning, healing, teacher, command, folder, progress)

    return made_once(folder, command, "heal.json", make, card, overwrite=overwrite)


def _command(options: Options, tuning: Tuning, healing: Healing, teacher: str | None) -> dict[str, Any]:
    plain = command_of(options, tuning)
    cut = plain.pop("finetune")
    return {"heal": cut, "teacher": teacher} | asdict(healing) | plain


def command_line(command: Mapping[str, Any]) -> str:
    """`secateur heal ...` as one would type it to get this again, without -o. What has its default is left out."""
    plain = _command(Options(model="", task=""), Tuning(lr=1e-4), Healing(), None)
    words = ["secateur", "heal", command["heal"], "--task", command["task"]]
    for name, value in command.items():
        if name not in ("heal", "task") and value != plain[name]:
            flag = "--" + name.replace("_", "-")
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def _healed(
    options: Options,
    tuning: Tuning,
    healing: Healing,
    teacher: str | None,
    command: dict[str, Any],
    folder: Folder,
    progress: Progress,
) -> dict[str, Any]:
    """Measures both models, trains stage by stage, writes to staging, measures what was written."""
    plan, origin = origin_of(Path(options.model))
    original = teacher_of(plan, origin, teacher, options)
    session = open_session(options, None, progress)
    loaded, task, select = session.loaded, session.task, list(session.task.split("select"))
    known = depths(plan, original.anatomy, loaded.anatomy)
    plans = {stage: trained_by(stage, known, loaded) for stage in STAGES[healing.stage]}
    outcomes = {"teacher": judged(session.on(task, original), select), "unhealed": judged(session, select)}
    stages = [
        _stage(stage, known, names, original, session, tuning, healing, command, folder)
        for stage, names in plans.items()
    ]
    made = written(session, folder.staging)
    outcomes["healed"] = judged(session.on(task, made), select)
    record = heal_record(session, original, made, tuning, stages, outcomes)
    _warn(record)
    return record | {
        "command": command_line(command),
        "provenance": {"command": command, "versions": versions_used()},
    }


def _stage(
    stage: str,
    known: list[Depth],
    names: set[str],
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
    learned = [number for name in tuning.split for number in session.task.split(name)]
    started, start = time.perf_counter(), _copies(session.loaded, names)
    with in_float32(session.loaded.model) as model, kept_at(place, folder):
        check_room(place.parent, model)
        trained = train(
            model,
            samples_of(session, learned),
            samples_of(session, session.task.split("select")),
            tuning,
            seed=session.options.seed,
            folder=place,
            progress=session.progress,
            objective=Distillation(original, watched, **towards),
            trainable=names,
        )
    losses = {row["step"]: row["select_loss"] for row in trained.history}
    if tuning.chooses and losses[trained.best] >= losses[0]:
        session.loaded.model.load_state_dict(start, strict=False)
        trained = replace(trained, best=0)
    count = sum(tensor.numel() for tensor in start.values())
    return stage_record(stage, trained, count, len(watched), time.perf_counter() - started)


def _copies(loaded: Loaded, names: set[str]) -> dict[str, Tensor]:
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
