"""`secateur.finetune`: all weights of a model trained on a task's answers, written as a checkpoint like any other.

The test split is never touched: whatever is pruned before or after can still be proven on it.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from secateur.checkpoint.folder import FULL, Folder, no_space, write_json, writing
from secateur.checkpoint.save import reload, save
from secateur.core.progress import Progress, silent
from secateur.errors import OutputError
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import quiet
from secateur.records import versions
from secateur.session import Session, digest, open_session
from secateur.training.answers import Sample
from secateur.training.record import card, epoch_records, score_records, trained_on
from secateur.training.trainer import Astray, Trained, newest_checkpoint, train
from secateur.training.tuning import Tuning, command_line, command_of, options_of, splits_of

LOG = logging.getLogger("secateur")
BYTES_KEPT = (
    3 * 12
)  # a parameter in float32 with AdamW's two moments; the best, the newest, and the next being written


@dataclass(frozen=True)
class Tuned:
    """Where the checkpoint is, and what its finetune.json says. `already`: it was there before."""

    out: Path
    record: dict[str, Any]
    already: bool = False


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
    **options: Any,
) -> Tuned:
    """Train all parameters of `model` on the answers of `task`, in float32, and write it to `out` in its own dtype.

    `split` is probe, select or both; without select in it the epoch with the lowest loss there is kept. `options` are
    those of `prune` that say what model and task are: limit, shots, seed, dtype, ... Killed at any moment and called
    again it goes on where it was and ends with the same weights. Raises any `SecateurError`; then `out` is untouched.
    """
    tuning = Tuning(splits_of(split), epochs, lr, batch_size, weight_decay, warmup, max_steps, bf16)
    chosen = options_of(model, task, options)
    command = json.loads(json.dumps(command_of(chosen, tuning)))
    folder = Folder.at(out, reads=model)
    with folder.claimed():
        if folder.finished(command, overwrite=overwrite):
            _forget(folder)
            return Tuned(folder.out, json.loads((folder.out / "finetune.json").read_text()), already=True)
        record = _tuned(open_session(chosen, None, progress), tuning, command, folder)
        write_json(folder.staging / "finetune.json", record)
        with writing(folder.staging):
            (folder.staging / "README.md").write_text(card(record), encoding="utf-8")
        folder.publish()
        _forget(folder)
    return Tuned(folder.out, record)


def _tuned(session: Session, tuning: Tuning, command: dict[str, Any], folder: Folder) -> dict[str, Any]:
    """Measures, trains, writes to staging, measures what was written."""
    loaded, task, seed = session.loaded, session.task, session.options.seed
    select = list(task.split("select"))
    before = _judged(session, select)
    trained = _train(session, tuning, command, folder)
    save(loaded.model, loaded.tokenizer, folder.staging)
    written = reload(folder.staging, loaded, trust_remote_code=session.options.trust_remote_code)
    if written.fingerprint != fingerprint(loaded.model):
        raise OutputError(
            f"the checkpoint in {folder.staging} does not hold the weights that were trained. It was not published; "
            "please report this with the model's name."
        )
    after = _judged(session.on(task, written), select)
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
        "fingerprint": written.fingerprint,
        "task": {"name": task.name, "kind": task.kind, "hash": task.hash},
        "trained_on": trained_on(task, tuning),
        "scores": score_records(task, before, after, task.groups(select), seed),
        "epochs": epoch_records(trained),
        "dtype": str(written.model.dtype).removeprefix("torch."),
        "command": command_line(command),
        "provenance": {"command": command, "versions": _versions()},
    }


def _judged(session: Session, examples: list[int]) -> np.ndarray:
    return session.judge()([session.empty], examples, "evaluate")[session.empty]


def _train(session: Session, tuning: Tuning, command: dict[str, Any], folder: Folder) -> Trained:
    """Trains `session.loaded.model` in place, in float32 or wider; its dtype and its config are its own again after."""
    model, kept = session.loaded.model, copy.deepcopy(session.loaded.model.config)
    dtype, place = model.dtype, _place(session, command, folder)
    model.to(torch.promote_types(dtype, torch.float32))
    learned = [number for name in tuning.split for number in session.task.split(name)]
    try:
        _check_room(place, sum(p.numel() for p in model.parameters()) * BYTES_KEPT)
        with quiet(), _storing(place):
            trained = train(
                model,
                _samples(session, learned),
                _samples(session, session.task.split("select")),
                tuning,
                seed=session.options.seed,
                folder=place,
                progress=session.progress,
            )
    except Astray:
        _forget(folder)
        raise
    finally:
        with suppress(OSError):  # only where nothing was saved yet
            place.rmdir()
    model.to(dtype)
    model.config = kept
    return trained


def _samples(session: Session, examples: Any) -> list[Sample]:
    """The right answer after its question; of a chunk of text all tokens but the first."""
    pairs = (session.encoded[number].gold_alone.pairs[0] for number in examples)
    return [(context + answer, len(context)) for context, answer in pairs]


def _place(session: Session, command: dict[str, Any], folder: Folder) -> Path:
    """Where this very training keeps its state; that of another is removed. Moved elsewhere it starts anew."""
    key = digest([command, session.scope, _versions(), str(folder.run.resolve())])
    place = folder.run / f"train-{key}"
    for other in folder.run.glob("train-*"):
        if other != place:
            shutil.rmtree(other)
    with writing(place):
        place.mkdir(exist_ok=True)
    return place


def _forget(folder: Folder) -> None:
    for place in folder.run.glob("train-*"):
        shutil.rmtree(place)


def _check_room(place: Path, need: int) -> None:
    free = shutil.disk_usage(place).free + sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
    if free < need:
        raise OutputError(
            f"{place} needs up to {need / 1e9:.3f} GB while training goes on, and its disk has {free / 1e9:.3f} GB "
            "free. Free some and run the same command again, or give another -o."
        )


@contextmanager
def _storing(place: Path) -> Iterator[None]:
    """A full disk in our words: libraries tell it in theirs. What was half written is removed, to go on from before."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _is_full(error):
            raise
        newest_checkpoint(place)
        raise no_space(place) from error


def _is_full(error: Exception) -> bool:
    """torch says only that its writer failed; safetensors has the errno in its message."""
    if isinstance(error, OSError):
        return error.errno in FULL
    found = re.search(r"\bos error (\d+)|\bcode: (\d+)", str(error))
    if isinstance(error, SafetensorError):
        return found is not None and int(found[1] or found[2]) in FULL
    return "PytorchStreamWriter" in str(error) or "inline_container" in str(error)


def _warn(trained: Trained, tuning: Tuning) -> None:
    losses = {row["step"]: row["select_loss"] for row in trained.history}
    if tuning.chooses and losses[trained.best] >= losses[0]:
        LOG.warning(
            "no epoch has a lower loss on select than the original (%.4f): the best, which is written, has %.4f. Try "
            "another --lr or more --epochs.",
            losses[0],
            losses[trained.best],
        )


def _versions() -> dict[str, str]:
    return versions() | {"accelerate": importlib.metadata.version("accelerate")}
