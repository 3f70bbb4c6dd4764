"""Where a training keeps its state and its result, and what it is given: room, samples, precision. Knows no verb."""

from __future__ import annotations

import copy
import importlib.metadata
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from secateur.checkpoint.folder import Folder, write_json
from secateur.checkpoint.save import reload, save
from secateur.core.distributed import is_main
from secateur.core.writing import FULL, no_space, system_error, write_text, writing
from secateur.errors import OutputError
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import Loaded, quiet
from secateur.records import versions
from secateur.session import Session, digest
from secateur.training.answers import Sample
from secateur.training.checkpoints import newest_checkpoint
from secateur.training.contexts import fixed_workspace
from secateur.training.distributed import any_of, by_main, from_main, join
from secateur.training.trainable_parameters import TrainableParameters
from secateur.training.trainer import Trained, TrainingDiverged, train
from secateur.training.tuning import Tuning

BYTES_KEPT = (
    3 * 12
)  # a parameter in float32 with AdamW's two moments; the best, the newest, and the next being written


@dataclass(frozen=True)
class Tuned:
    """Where the checkpoint is, and what the JSON beside its weights says. `already`: it was there before."""

    out: Path
    record: dict[str, Any]
    already: bool = False


def made_once(
    folder: Folder,
    command: Mapping[str, Any],
    name: str,
    make: Callable[[], dict[str, Any]],
    card: Callable[[Mapping[str, Any]], str],
    *,
    device: str,
    overwrite: bool,
) -> Tuned:
    """What `command` leaves at `folder`: made now, or found there.

    `make` writes the weights to staging and gives their record, which is written as `name`, and by `card` as README.md.
    Of several processes all call `make`, and the main one alone writes. Raises what `make` and `join` raise, and
    `OutputError`; then nothing is published."""
    join(device)
    with ExitStack() as stack:
        stack.enter_context(fixed_workspace())
        claim = folder.claimed(command, overwrite=overwrite)
        already = from_main(lambda: stack.enter_context(claim))
        if already:
            record = folder.record(name)
            if record is None:
                raise OutputError(f"{folder.out / name} is damaged. --overwrite makes it again.")
        else:
            by_main(lambda: folder.note(name.removesuffix(".json"), command))
            record = make()
            by_main(lambda: _publish(folder, name, record, card(record)))
        by_main(lambda: forget(folder))
    return Tuned(folder.out, record, already)


def _publish(folder: Folder, name: str, record: Mapping[str, Any], card: str) -> None:
    write_json(folder.staging / name, record)
    write_text(folder.staging / "README.md", card)
    folder.publish()


def judged(session: Session, examples: list[int]) -> np.ndarray:
    """The outcomes of the model as it stands, one row for each example."""
    return session.judge()([session.empty], examples, "evaluate")[session.empty]


def versions_used() -> dict[str, str]:
    """Of the packages that the numbers come from."""
    return versions() | {"accelerate": importlib.metadata.version("accelerate")}


def written(session: Session, staging: Path) -> Loaded:
    """The session's model saved and read back, by all processes before any goes on: the main one will move it away.
    Raises `OutputError` where what is read is not what was saved."""
    loaded = session.loaded
    by_main(lambda: save(loaded.model, loaded.tokenizer, loaded.copied, staging))
    found = reload(staging, loaded, trust_remote_code=session.options.trust_remote_code)
    if any_of(found.fingerprint != fingerprint(loaded.model)):
        raise OutputError(
            f"the checkpoint in {staging} does not hold the weights that were trained. It was not published; "
            "please report this with the model's name."
        )
    return found


@contextmanager
def in_float32(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """`model` with parameters in float32 or wider; afterwards their dtypes and its config are its own again. Buffers
    are left alone: rotary frequencies are float32 in a model of any dtype, and must not be rounded on the way back."""
    kept, dtypes = copy.deepcopy(model.config), {name: p.dtype for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    yield model
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    model.config = kept


@contextmanager
def kept_at(place: Path, folder: Folder) -> Iterator[None]:
    """What a training leaves at `place` when it is stopped; nothing when it went astray.

    Raises `OutputError` where the disk is, or becomes, full."""
    try:
        with quiet(), _storing(place):
            yield
    except TrainingDiverged:  # in all processes at once
        by_main(lambda: forget(folder))
        raise
    finally:
        for empty in (place, place.parent) if is_main() else ():
            with suppress(OSError):  # only where nothing was saved yet
                empty.rmdir()


def taught(
    session: Session, tuning: Tuning, stake: TrainableParameters, place: Path, folder: Folder, **towards: Any
) -> Trained:
    """Trains the session's model in place on the splits of `tuning`, in float32 or wider; its dtype and its config are
    its own again after. `place` keeps the state; `towards` is the objective, where that is not the answers."""
    learned = [number for name in tuning.split for number in session.task.split(name)]
    with in_float32(session.loaded.model) as model, kept_at(place, folder):
        check_room(folder.run, stake.count(model))
        return train(
            model,
            samples_of(session, learned),
            samples_of(session, session.task.split("select")),
            tuning,
            seed=session.options.seed,
            folder=place,
            progress=session.progress,
            stake=stake,
            **towards,
        )


def samples_of(session: Session, examples: Iterable[int]) -> list[Sample]:
    """The right answer after its question; of a chunk of text all tokens but the first."""
    pairs = (session.encoded[number].gold_alone.pairs[0] for number in examples)
    return [(context + answer, len(context)) for context, answer in pairs]


def place_of(session: Session, command: dict[str, Any], folder: Folder) -> Path:
    """Where this very training keeps its state; that of another is removed. Moved elsewhere it starts anew."""
    return own_place(folder, [command, session.scope, versions_used(), str(folder.run.resolve())])


def own_place(folder: Folder, identity: list[Any]) -> Path:
    """A folder of the run for what has this identity alone; those of others are removed."""
    place = folder.run / f"train-{digest(identity)}"
    by_main(lambda: _only(place))
    return place


def _only(place: Path) -> None:
    for other in place.parent.glob("train-*"):
        if other != place:
            shutil.rmtree(other)
    with writing(place):
        place.mkdir(exist_ok=True)


def forget(folder: Folder) -> None:
    """Removes the state of every training for this output."""
    for place in folder.run.glob("train-*"):
        shutil.rmtree(place)


def check_room(place: Path, parameters: int) -> None:
    """Raises `OutputError` where the state of a training of so many parameters has no room."""
    need = parameters * BYTES_KEPT
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
    return (
        system_error(error) in FULL or "PytorchStreamWriter" in str(error) or "inline_container" in str(error)
    )
