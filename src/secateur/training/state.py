"""State and result of a training on disk, and what it is given: room, samples, precision. Knows no verb."""

from __future__ import annotations

import copy
import importlib.metadata
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from transformers import PreTrainedModel

from secateur.checkpoint.folder import Folder, write_json
from secateur.checkpoint.save import reload, save
from secateur.core.distributed import is_main
from secateur.core.records.record import Record
from secateur.core.writing import FULL, no_space, system_error, write_text, writing
from secateur.errors import OutputError
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import Loaded, quiet
from secateur.records import versions
from secateur.session import Session, digest
from secateur.training.answers import Sample
from secateur.training.checkpoints import newest_checkpoint
from secateur.training.contexts import deterministic_workspace
from secateur.training.distributed import any_process, from_main, join, on_main
from secateur.training.options import Tuning
from secateur.training.trainable_parameters import TrainableParameters
from secateur.training.trainer import Objective, Trained, TrainingDiverged, answer_loss, train

# A parameter in float32 with AdamW's two moments has 12 bytes, and three states are kept: the best, the newest, and
# the next while it is written.
BYTES_KEPT = 3 * 12
RecordT = TypeVar("RecordT", bound=Record)


@dataclass(frozen=True)
class Tuned:
    """A checkpoint that was trained.

    Args:
        out: Its folder.
        record: The JSON record beside its weights.
        already: Whether it was there before, so that nothing was trained.
    """

    out: Path
    record: dict[str, JsonValue]
    already: bool = False


def run_once(
    folder: Folder,
    command: Record,
    name: str,
    make: Callable[[], RecordT],
    card: Callable[[RecordT], str],
    *,
    device: str,
    overwrite: bool,
) -> Tuned:
    """Return the result of `command` at `folder`: made now, or found there.

    Args:
        name: The file for the record, such as `heal.json`.
        make: Write the weights to the folder's staging and return their record. All processes call it; the main one
            alone writes.
        card: Return the text of README.md for a record.

    Raises: what `make` and `join` raise, and `OutputError`; then nothing is published.
    """
    join(device)
    identity = command.to_json()
    with ExitStack() as stack:
        stack.enter_context(deterministic_workspace())
        claim = folder.claimed(identity, overwrite=overwrite)
        already = from_main(lambda: stack.enter_context(claim))
        if already:
            found = folder.record(name)
            if found is None:
                raise OutputError(f"{folder.out / name} is damaged. --overwrite makes it again.")
            values = found
        else:
            on_main(lambda: folder.note(name.removesuffix(".json"), identity))
            record = make()
            values = record.to_json()
            on_main(lambda: _publish(folder, name, values, card(record)))
        on_main(lambda: forget(folder))
    return Tuned(folder.out, values, already)


def _publish(folder: Folder, name: str, values: dict[str, JsonValue], card: str) -> None:
    write_json(folder.staging / name, values)
    write_text(folder.staging / "README.md", card)
    folder.publish()


def outcomes_of(session: Session, examples: Sequence[int]) -> np.ndarray:
    """Return the OUTCOME rows of the session's model as it is, one for each example."""
    return session.judge()([session.empty], list(examples), "evaluate")[session.empty]


def versions_used() -> dict[str, str]:
    """Return the versions of the packages that the numbers come from."""
    return versions() | {"accelerate": importlib.metadata.version("accelerate")}


def save_and_reload(session: Session, staging: Path) -> Loaded:
    """Save the session's model, and return it as read back by each process before any goes on.

    All wait, because the main process will move the folder away. Raises: `OutputError` where what is read is not what
    was saved.
    """
    loaded = session.loaded
    on_main(lambda: save(loaded.model, loaded.tokenizer, loaded.copied, staging))
    reloaded = reload(staging, loaded, trust_remote_code=session.options.trust_remote_code)
    if any_process(reloaded.fingerprint != fingerprint(loaded.model)):
        raise OutputError(
            f"the checkpoint in {staging} does not hold the weights that were trained. It was not published; "
            "please report this with the model's name."
        )
    return reloaded


@contextmanager
def in_float32(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Give `model` parameters in float32 or wider; afterwards put their dtypes and its config back.

    Buffers stay as they are: rotary frequencies are float32 in a model of any dtype, and must not be rounded on the
    way back.
    """
    config, dtypes = copy.deepcopy(model.config), {name: p.dtype for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    yield model
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    model.config = config


@contextmanager
def training_state(place: Path, folder: Folder) -> Iterator[None]:
    """Keep the state at `place` where a training is stopped, and remove it where its loss is not finite.

    Raises: `OutputError` where the disk is, or becomes, full.
    """
    try:
        with quiet(), _full_disk_errors(place):
            yield
    except TrainingDiverged:  # in all processes at once
        on_main(lambda: forget(folder))
        raise
    finally:
        for empty in (place, place.parent) if is_main() else ():
            with suppress(OSError):  # only where nothing was saved yet
                empty.rmdir()


@contextmanager
def _full_disk_errors(place: Path) -> Iterator[None]:
    """Raise `OutputError` for a full disk, and remove what was half written, so that the rest can be continued from."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch says only that its writer failed; safetensors has the errno in its message
        of_torch = "PytorchStreamWriter" in str(error) or "inline_container" in str(error)
        if system_error(error) not in FULL and not of_torch:
            raise
        newest_checkpoint(place)
        raise no_space(place) from error


def train_session(
    session: Session,
    tuning: Tuning,
    trainable: TrainableParameters,
    place: Path,
    folder: Folder,
    objective: Objective = answer_loss,
) -> Trained:
    """Train the session's model in place on the splits of `tuning`, in float32 or wider; then put its dtype back.

    Args:
        place: Keeps the state that a killed training continues from.
    """
    learned = [number for name in tuning.split for number in session.task.split(name)]
    with in_float32(session.loaded.model) as model, training_state(place, folder):
        check_room(folder.run, trainable.count(model))
        return train(
            model,
            samples_of(session, learned),
            samples_of(session, session.task.split("select")),
            tuning,
            seed=session.options.seed,
            folder=place,
            progress=session.progress,
            objective=objective,
            trainable=trainable,
        )


def samples_of(session: Session, examples: Iterable[int]) -> list[Sample]:
    """Return each question with its right answer to learn; of a chunk of text all tokens but the first."""
    pairs = (session.encoded[number].gold_alone.pairs[0] for number in examples)
    return [(context + answer, len(context)) for context, answer in pairs]


def session_state_folder(session: Session, command: Record, folder: Folder) -> Path:
    """Return the folder for the state of this very training; those of others are removed.

    A run that is moved elsewhere starts anew.
    """
    identity = [command.to_json(), session.scope, versions_used(), str(folder.run.resolve())]
    return state_folder(folder, identity)


def state_folder(folder: Folder, identity: Sequence[object]) -> Path:
    """Make the folder in which a training keeps its state, remove those of other trainings of this run, and return it.

    Args:
        identity: A JSON value that names the training.
    """
    place = folder.run / f"train-{digest(identity)}"

    def make_alone() -> None:
        for path in place.parent.glob("train-*"):
            if path != place:
                shutil.rmtree(path)
        with writing(place):
            place.mkdir(exist_ok=True)

    on_main(make_alone)
    return place


def forget(folder: Folder) -> None:
    """Remove the state of every training for this output."""
    for place in folder.run.glob("train-*"):
        shutil.rmtree(place)


def check_room(place: Path, parameters: int) -> None:
    """Raise `OutputError` where the disk has no room for the state of a training of so many parameters."""
    need = parameters * BYTES_KEPT
    free = shutil.disk_usage(place).free + sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
    if free < need:
        raise OutputError(
            f"{place} needs up to {need / 1e9:.3f} GB while training goes on, and its disk has {free / 1e9:.3f} GB "
            "free. Free some and run the same command again, or give another -o."
        )
