"""`train`: a Mistral from random weights on any text, with or without the regulariser, kept after chosen steps.
`finetune`: a model trained on a task's answers, written as a checkpoint like any other.

Of `train`'s text a tenth is held out for the losses that are reported. `finetune` never touches the test split:
whatever is pruned before or after can still be proven on it. Nothing here is a verdict.
"""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from secateur.checkpoint.folder import Folder, copy_folder
from secateur.checkpoint.save import save
from secateur.core.progress import Progress
from secateur.errors import TaskError
from secateur.hf.blank import fresh_mistral, tokenizer_in
from secateur.hf.fingerprint import fingerprint
from secateur.hf.placement import torch_device
from secateur.options import Options
from secateur.session import Session, open_session
from secateur.tasks.example import Example
from secateur.tasks.splits import TRAINING
from secateur.tasks.text import read_text
from secateur.training.answers import Sample, collate
from secateur.training.cards import finetuning_card, pretraining_card
from secateur.training.checkpoints import newest_checkpoint, read_trained, seconds_until
from secateur.training.commands import command_line, finetune_command, train_command
from secateur.training.contexts import (
    Clock,
    deferred_interrupt,
    deliver_interrupt,
    isolated_randomness,
    memory_errors,
)
from secateur.training.measures import (
    dtype_name,
    epoch_records,
    metric_changes,
    model_record,
    splits_record,
    task_record,
)
from secateur.training.objectives import LinearityRegulariser
from secateur.training.options import Recipe, Tuning
from secateur.training.records.command import FinetuneCommandRecord, TrainCommandRecord
from secateur.training.records.finetune import FinetuneProvenanceRecord, FinetuneRecord
from secateur.training.records.train import (
    ChunksRecord,
    HeldOutLossRecord,
    RecipeRecord,
    TrainProvenanceRecord,
    TrainRecord,
)
from secateur.training.state import (
    Tuned,
    check_room,
    outcomes_of,
    run_once,
    save_and_reload,
    session_state_folder,
    state_folder,
    train_session,
    training_state,
    versions_used,
)
from secateur.training.trainable_parameters import trainable_parameters_of
from secateur.training.trainer import (
    AnswerTrainer,
    CheckpointCallback,
    Objective,
    answer_loss,
    check_loss,
    run_to_the_end,
    training_arguments,
)

HELD_OUT = 10  # one group of chunks in so many
STATE_EVERY = 200  # steps between states that a killed run continues from


def train(
    recipe: Recipe, tuning: Tuning, folder: Folder, *, device: str, overwrite: bool, progress: Progress
) -> Tuned:
    """Train a model as `secateur.train` does, with options that were checked already."""
    command = train_command(recipe, tuning)
    torch_device(device)

    def make() -> TrainRecord:
        return _trained(recipe, tuning, device, command, folder, progress)

    return run_once(folder, command, "train.json", make, pretraining_card, device=device, overwrite=overwrite)


def _trained(
    recipe: Recipe,
    tuning: Tuning,
    device: str,
    command: TrainCommandRecord,
    folder: Folder,
    progress: Progress,
) -> TrainRecord:
    """Train, write the checkpoints to the folder's staging, and return the record."""
    progress("load", 0, 1)
    tokenizer = tokenizer_in(recipe.tokenizer)
    learned, held_out = _split(read_text(Path(recipe.text), tokenizer, recipe.seqlen).examples, recipe.seed)
    place = state_folder(folder, [command.to_json(), str(folder.run.resolve()), versions_used()])
    with training_state(place, folder):
        check_room(place, recipe.size.num_parameters(len(tokenizer)))
        model = fresh_mistral(recipe.size, tokenizer, recipe.seed)
        model.to(torch_device(device))  # type: ignore[arg-type]  # Transformers' decorator loses the signature
        regulariser = None
        if recipe.regulariser != "none":
            regulariser = LinearityRegulariser(model, recipe.weight, recipe.regulariser)
        run = run_steps(model, tokenizer, learned, held_out, recipe, tuning, regulariser, place, progress)
    if regulariser is not None:
        regulariser.remove()
    save(model, tokenizer, {}, folder.staging)
    for step in recipe.save_steps:
        copy_folder(place / f"step-{step}", folder.staging / f"step-{step}")
    return TrainRecord(
        recipe=RecipeRecord.model_validate(asdict(recipe)),
        parameters=sum(p.numel() for p in model.parameters()),
        fingerprint=fingerprint(model),
        sequences=ChunksRecord(learned=len(learned), held_out=len(held_out)),
        losses=list(run.losses),
        tokens=run.tokens,
        seconds=run.seconds,
        command=command_line(command),
        provenance=TrainProvenanceRecord(command=command, versions=versions_used()),
    )


def _split(examples: Sequence[Example], seed: int) -> tuple[list[Sample], list[Sample]]:
    """Return what is trained on and what is held out, whole groups.

    Raises: `TaskError` where there is one group only.
    """
    groups = sorted({example.group for example in examples})
    if len(groups) < 2:
        raise TaskError(
            f"the text has {len(examples)} chunks, too few to hold some out: give a longer one, or a smaller --seqlen."
        )
    random.Random(seed).shuffle(groups)
    out = set(groups[: max(1, len(groups) // HELD_OUT)])
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    for example in examples:
        assert example.tokens is not None
        parts[example.group in out].append((example.tokens, 1))
    return parts


class PretrainingTrainer(AnswerTrainer):
    """Train for a number of steps, and measure the held-out loss when a callback asks for it."""

    def log_held_out_loss(self, step: int) -> None:
        """Log the held-out loss, nats per token, in the state that a resumed run reads."""
        loss = self.mean_loss(cast(list[Sample], self.eval_dataset))
        check_loss(loss, step, self.args)
        self.log({"held_out_loss": loss})


class _StepCallback(TrainerCallback):
    """Write the model after chosen steps, and log the held-out loss there, at the start and at the end."""

    def __init__(self, steps: Sequence[int], last: int, write: Callable[[int], None]) -> None:
        self._steps, self._last, self._write = set(steps), last, write
        self.trainer: PretrainingTrainer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: object
    ) -> None:
        if state.global_step == 0:
            self._keep(0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: object
    ) -> None:
        self._keep(state.global_step)

    def _keep(self, step: int) -> None:
        if step in self._steps:
            self._write(step)
        if step in self._steps | {0, self._last}:
            assert self.trainer is not None
            self.trainer.log_held_out_loss(step)


@dataclass(frozen=True)
class StepRun:
    """Held-out losses by step; tokens read and wall-clock seconds, both over all sittings."""

    losses: tuple[HeldOutLossRecord, ...]
    tokens: int
    seconds: float


def run_steps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    learned: Sequence[Sample],
    held_out: Sequence[Sample],
    recipe: Recipe,
    tuning: Tuning,
    regulariser: LinearityRegulariser | None,
    place: Path,
    progress: Progress,
) -> StepRun:
    """Train `model` in place; `place` keeps the state and the checkpoints `step-N`.

    Raises: `TrainingDiverged` for a loss that is not finite, `TrainingError` where memory does not suffice.
    """

    def write(step: int) -> None:
        half = place / "half"
        save(model, tokenizer, {}, half)
        shutil.rmtree(place / f"step-{step}", ignore_errors=True)
        half.rename(place / f"step-{step}")

    keeper = _StepCallback(recipe.save_steps, recipe.steps, write)
    by_steps = {"eval_strategy": "no", "save_strategy": "steps", "save_steps": STATE_EVERY}
    checkpoint = newest_checkpoint(place)
    clock, memory = Clock(seconds_until(checkpoint)), memory_errors(tuning.batch_size)
    with isolated_randomness(model.device), deferred_interrupt() as interrupted, memory:
        trainer = PretrainingTrainer(
            model=model,
            args=training_arguments(tuning, recipe.seed, place, model.device, **by_steps),
            data_collator=collate,
            train_dataset=list(learned),
            eval_dataset=list(held_out),
            callbacks=[keeper, CheckpointCallback(progress, interrupted, clock)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.objective, keeper.trainer = _objective(regulariser), trainer
        state = run_to_the_end(trainer, checkpoint)
        if interrupted():
            deliver_interrupt()
    read_trained(model, place / f"checkpoint-{state.global_step}")
    model.eval().requires_grad_(False)
    losses = (
        HeldOutLossRecord.model_validate(entry) for entry in state.log_history if "held_out_loss" in entry
    )
    return StepRun(tuple(losses), state.num_input_tokens_seen, clock.seconds())


def _objective(regulariser: LinearityRegulariser | None) -> Objective:
    """Return the loss of the answers, plus the regulariser where there is one."""
    if regulariser is None:
        return answer_loss
    return lambda model, inputs: answer_loss(model, inputs) + regulariser.loss(inputs["real"])


# ------------------------------------------------------------------------------------------------------ finetune


LOG = logging.getLogger("secateur")


def finetune(
    options: Options, tuning: Tuning, folder: Folder, *, overwrite: bool, progress: Progress
) -> Tuned:
    """Fine-tune a model as `secateur.finetune` does, with options that were checked already."""
    command = finetune_command(options, tuning)

    def check(early: Session) -> None:
        early.loaded.anatomy.check_causal("finetune, which teaches answers that follow,")
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
            "no epoch has a lower loss on the validation split than the original (%.4f): the best, which is written, "
            "has %.4f. Try another --lr or more --epochs.",
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
