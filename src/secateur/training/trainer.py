"""The Hugging Face Trainer on answers: the loss of their tokens alone, measured on whole splits after every epoch.

A killed training continues as if it had not been killed. Knows token ids; no task, and no checkpoint folder of
`secateur.checkpoint`. The Trainer's own state is read back by torch with `weights_only`, from a folder that nobody
else writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerControl, TrainerState

from secateur.core.distributed import is_main, rank, world
from secateur.core.progress import Progress, silent
from secateur.errors import TrainingError
from secateur.hf.rope import rope_switches
from secateur.training.answers import Sample, answer_losses, batches, collate
from secateur.training.checkpoints import (
    mark_complete,
    newest_checkpoint,
    read_trained,
    save_trained,
    seconds_until,
)
from secateur.training.contexts import (
    Clock,
    deferred_interrupt,
    deliver_interrupt,
    isolated_randomness,
    memory_errors,
)
from secateur.training.distributed import any_process, from_main, mean_scale, sum_over_processes
from secateur.training.options import Tuning
from secateur.training.trainable_parameters import TrainableParameters, all_parameters


class TrainingDiverged(TrainingError):
    """Report a loss that is not finite: the same command would come to the same step again."""


@dataclass(frozen=True)
class EpochLosses:
    """Mean losses after one epoch, nats per answer token, without dropout."""

    epoch: float
    step: int
    train_loss: float
    select_loss: float


@dataclass(frozen=True)
class Trained:
    """The outcome of a training.

    Args:
        history: Losses from the untrained model (epoch 0) on.
        best: The step whose weights the model has now.
        tokens: Tokens that were read in training, each as often as it was, over all sittings.
        seconds: Wall clock of the training, over all sittings.
    """

    history: tuple[EpochLosses, ...]
    best: int
    tokens: int
    seconds: float = field(compare=False)

    @property
    def losses(self) -> dict[int, float]:
        """Return the loss on select by step; step 0 is the untrained model."""
        return {row.step: row.select_loss for row in self.history}

    @property
    def improved(self) -> bool:
        """Return whether the loss on select is lower at the best step than before training."""
        return self.losses[self.best] < self.losses[0]


Objective = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]  # from the model and a batch to the loss


def answer_loss(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the mean loss over the answer tokens of a batch, times `mean_scale`."""
    losses = answer_losses(model(input_ids=inputs["input_ids"]).logits, inputs["labels"])
    return losses.mean() * mean_scale(len(losses))


class AnswerTrainer(Trainer):
    """Train on answers, or by another objective; the losses that it reports are always those of the answers."""

    progress: Progress = staticmethod(silent)
    objective: Objective = staticmethod(answer_loss)

    @property
    def network(self) -> PreTrainedModel:
        """Return the model without any wrapper of several processes; the Trainer's own attribute may be None."""
        assert isinstance(self.model, PreTrainedModel)
        return self.model

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], *unused: object, **ignored: object
    ) -> Tensor:
        """Return the objective for one batch."""
        return self.objective(model, inputs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        read_trained(self.network, Path(resume_from_checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        assert output_dir is not None
        if self.args.should_save:
            save_trained(self.network, Path(output_dir))

    def _load_best_model(self) -> None:
        """Leave the weights alone: `train` reads the best ones, also where no step was left to do."""

    def _track_num_input_tokens(self, inputs: Mapping[str, Tensor]) -> None:
        """Count tokens without padding, which the Trainer could only tell by an attention mask."""
        self.state.num_input_tokens_seen += int(sum_over_processes(int(inputs["real"].sum()))[0])

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Do one step. Raises: `TrainingDiverged` for a loss that is not finite."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        check_loss(sum_over_processes(float(loss))[0] / world(), self.state.global_step + 1, self.args)
        return loss

    def evaluate(self, *unused: object, **ignored: object) -> dict[str, float]:
        """Return the exact mean losses over whole splits, which do not depend on how examples fall into batches."""
        measured = {
            "eval_train_loss": self.mean_loss(cast(list[Sample], self.train_dataset)),
            "eval_select_loss": self.mean_loss(cast(list[Sample], self.eval_dataset)),
        }
        check_loss(sum(measured.values()), self.state.global_step, self.args)
        self.log(dict(measured))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, measured)
        return measured

    def mean_loss(self, samples: Sequence[Sample]) -> float:
        """Return nats per answer token of all samples for the model as it is; each process reads its share of them."""
        self.network.eval()
        planned = batches(samples, self.args.per_device_eval_batch_size, rope_switches(self.network.config))
        total, tokens = 0.0, 0.0
        for number, rows in list(enumerate(planned, start=1))[rank() :: world()]:
            batch = {n: t.to(self.args.device) for n, t in collate(rows).items()}
            with torch.no_grad(), self.accelerator.autocast():
                losses = answer_losses(self.network(input_ids=batch["input_ids"]).logits, batch["labels"])
            total, tokens = total + float(losses.double().sum()), tokens + len(losses)
            self.progress("losses", min(number + world() - 1, len(planned)), len(planned))
        total, tokens = sum_over_processes(total, tokens)
        return total / tokens


def check_loss(loss: float, step: int, args: TrainingArguments) -> None:
    """Raise `TrainingDiverged` for a loss that is not finite."""
    if not math.isfinite(loss):
        precision = " or leave out --bf16" if args.bf16 else ""
        raise TrainingDiverged(
            f"the loss is {loss} at step {step}: training with --lr {args.learning_rate} went astray. Give a smaller "
            f"--lr, more --warmup{precision}; nothing was written."
        )


class CheckpointCallback(TrainerCallback):
    """Report progress, mark checkpoints as complete, and stop after one when Ctrl-C was pressed."""

    def __init__(self, progress: Progress, interrupted: Callable[[], bool], clock: Clock) -> None:
        self._progress, self._interrupted, self._clock = progress, interrupted, clock

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: object
    ) -> None:
        """Report the step that training starts from."""
        self._progress("train", state.global_step, state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: object
    ) -> None:
        """Report the step, and have it saved where Ctrl-C was pressed."""
        self._progress("train", state.global_step, state.max_steps)
        # the last step of an epoch is saved anyway, after its evaluation
        last = state.epoch == int(state.epoch or 0) or state.global_step >= state.max_steps
        control.should_save |= any_process(self._interrupted()) and not last

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: object
    ) -> None:
        """Mark the checkpoint. Raises: `KeyboardInterrupt` where Ctrl-C was pressed."""
        stop = any_process(self._interrupted())  # when all have answered, all have saved their part
        if is_main():
            mark_complete(
                Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", self._clock.seconds()
            )
        if stop:
            deliver_interrupt()


def train(
    model: PreTrainedModel,
    learned: Sequence[Sample],
    select: Sequence[Sample],
    tuning: Tuning,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
    objective: Objective = answer_loss,
    trainable: TrainableParameters | None = None,
) -> Trained:
    """Train `model` in place.

    Afterwards it has the weights of the epoch with the lowest loss on select, or of the last epoch where select itself
    was trained on.

    Args:
        learned: Samples to train on.
        select: Samples that the epoch is chosen by.
        seed: Seed of the order of samples, of dropout and of adapters.
        folder: Keeps the state that a killed training continues from.
        trainable: The parameters to train; None: all.

    Raises: `TrainingDiverged` for a loss that is not finite, `TrainingError` where memory does not suffice.
    """
    enabled = (trainable or all_parameters(model)).enabled(model, seed)
    checkpoint = from_main(lambda: newest_checkpoint(folder))
    clock, memory = Clock(seconds_until(checkpoint)), memory_errors(tuning.batch_size)
    with isolated_randomness(model.device), deferred_interrupt() as interrupted, memory, enabled:
        trainer = AnswerTrainer(
            model=model,
            args=training_arguments(tuning, seed, folder, model.device),
            data_collator=collate,
            train_dataset=list(learned),
            eval_dataset=list(select),
            callbacks=[CheckpointCallback(progress, interrupted, clock)],
        )
        trainer.remove_callback(PrinterCallback)  # the Trainer adds it in place of its own progress bars
        trainer.progress, trainer.objective = progress, objective
        untrained = trainer.evaluate()
        start = EpochLosses(0, 0, untrained["eval_train_loss"], untrained["eval_select_loss"])
        state = run_to_the_end(trainer, checkpoint)
        if any_process(interrupted()):
            deliver_interrupt()
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        best = state.global_step
        if tuning.chooses:
            assert state.best_global_step is not None
            best = state.best_global_step
        read_trained(model, folder / f"checkpoint-{best}")
    model.eval().requires_grad_(False)
    history = (start, *_history(state.log_history))
    return Trained(history, best, state.num_input_tokens_seen, clock.seconds())


def run_to_the_end(trainer: AnswerTrainer, checkpoint: str | None) -> TrainerState:
    """Train to the last step, from a checkpoint where there is one, and return the state.

    Differs: the Trainer itself would do one step more where the last step did not end an epoch.
    """
    if checkpoint is not None:
        state: TrainerState = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
        if state.global_step >= state.max_steps:
            return state
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer.state


def _history(log: Sequence[Mapping[str, float]]) -> Iterator[EpochLosses]:
    """Yield the losses after each epoch from the Trainer's log."""
    for entry in log:
        if "eval_select_loss" in entry and entry["step"]:
            losses = entry["eval_train_loss"], entry["eval_select_loss"]
            yield EpochLosses(entry["epoch"], int(entry["step"]), *losses)


def training_arguments(
    tuning: Tuning, seed: int, folder: Path, device: torch.device, **changes: Any
) -> TrainingArguments:
    """Return the Trainer's arguments for a tuning; `changes` replace some of them.

    Raises: `TrainingError` where the machine lacks what is asked for.
    """
    if device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
        raise TrainingError(
            f"--device {device}: training takes the first one. Set CUDA_VISIBLE_DEVICES and give cuda."
        )
    given: dict[str, str | bool] = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    if tuning.chooses:
        given |= {"load_best_model_at_end": True, "metric_for_best_model": "select_loss"}
        given["greater_is_better"] = False
    try:
        args = TrainingArguments(
            output_dir=str(folder.resolve()),
            num_train_epochs=tuning.epochs,
            max_steps=tuning.max_steps or -1,
            learning_rate=tuning.lr,
            per_device_train_batch_size=tuning.batch_size,
            per_device_eval_batch_size=tuning.batch_size,
            weight_decay=tuning.weight_decay,
            warmup_steps=tuning.warmup,
            bf16=tuning.bf16,
            seed=seed,
            use_cpu=device.type == "cpu",
            include_num_input_tokens_seen="all",
            save_total_limit=2,  # the newest complete one stays while the next is written
            logging_strategy="no",
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,  # every trained parameter has a part in every loss
            dataloader_pin_memory=device.type == "cuda",
            **(given | changes),
        )
    except ValueError as error:
        raise TrainingError(f"this machine cannot train so: {error}") from error
    args._n_gpu = min(args.n_gpu, 1)  # else several GPUs would share each batch, unasked
    return args
