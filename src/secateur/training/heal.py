"""`secateur.heal`: a cut model is taught by the model that it was cut from, and compared to both.

First what stands for blocks that are gone, by the streams there; then everything, by the probabilities too. The test
split is never learned, and opened only where a ledger is given to write that down in.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.checkpoint.folder import Folder
from secateur.core.launched import is_main
from secateur.core.ledger import Ledger
from secateur.core.progress import Progress, silent
from secateur.core.writing import writing
from secateur.hf.load import Loaded
from secateur.options import Options
from secateur.reports import write_heal_report
from secateur.session import Session, open_session
from secateur.training.depths import Depth, depths
from secateur.training.distill import Distillation
from secateur.training.heal_measures import measured, proved, select_scores, side_scores, texts, watched
from secateur.training.heal_options import STAGES, Healing, command_line, heal_command
from secateur.training.heal_record import (
    card,
    curves_of,
    heal_record,
    sentence,
    sentence_of_test,
    stage_record,
)
from secateur.training.stake import Stake
from secateur.training.state import (
    Tuned,
    made_once,
    place_of,
    taught,
    versions_used,
    written,
)
from secateur.training.teacher import origin_of, teacher_of, trained_by
from secateur.training.together import by_main
from secateur.training.tuning import Tuning, names_of, options_of, splits_of

LOG = logging.getLogger("secateur")


def heal(
    cut: str | Path,
    task: str,
    out: str | Path,
    *,
    teacher: str | None = None,
    stage: str = "both",
    temperature: float = 1.0,
    hidden: float = 1.0,
    side: Sequence[str] = (),
    ledger: str | Path | None = None,
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
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_targets: str | Sequence[str] = "all",
    **options: Any,
) -> Tuned:
    """Distill into `cut`, a folder that `prune` or `apply` wrote, what its original computes on `task`.

    `teacher` is that original, by default where its plan.json says; both give the same fingerprint or it is refused.
    `epochs` and `max_steps` are those of each stage; one that does not lower the loss on select leaves the weights as
    they were. `side` are tasks to watch. With a `ledger` the healed model is compared to the original on test, once,
    and that file notes the opening. `lora` is for the stage end, where what stands for blocks is trained whole beside
    the adapters. Otherwise as `finetune`: splits, resuming, precision, options.
    Raises any `SecateurError`; then `out` is untouched.
    """
    adapters = (lora, lora_alpha, names_of(lora_targets))
    tuning = Tuning(
        splits_of(split), epochs, lr, batch_size, weight_decay, warmup, max_steps, bf16, *adapters
    )
    healing = Healing(stage, temperature, hidden, tuple(side), None if ledger is None else str(ledger))
    chosen = replace(options_of(str(cut), task, options), side=healing.side)
    command = heal_command(chosen, tuning, healing, teacher)
    folder = Folder.at(out, reads=str(cut))

    def make() -> dict[str, Any]:
        return _healed(chosen, tuning, healing, teacher, command, folder, progress)

    return made_once(folder, command, "heal.json", make, card, device=chosen.device, overwrite=overwrite)


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
    session, opens = open_session(options, None, progress), healing.ledger is not None
    known = depths(plan, original.anatomy, session.loaded.anatomy)
    curves = curves_of(Path(options.model), session.task)
    plans = {stage: trained_by(stage, known, session.loaded, tuning) for stage in STAGES[healing.stage]}
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
    stake: Stake,
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
