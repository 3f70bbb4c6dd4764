"""The Hugging Face Trainer on answers: the loss of their tokens alone, measured on whole splits after every epoch, kept
on disk so that a killed run goes on as if nothing had happened. Knows token ids; no task, no checkpoint folder of ours.

Its own state is read back by torch with `weights_only`, and lies in a folder that nobody else writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerState

from secateur.core.distributed import is_main, rank, world
from secateur.core.progress import Progress, silent
from secateur.errors import TrainingError
from secateur.hf.rope import rope_switches
from secateur.training.answers import Sample, answer_losses, batches, collate
from secateur.training.arguments import arguments
from secateur.training.checkpoints import (
    complete,
    newest_checkpoint,
    read_trained,
    save_trained,
    seconds_until,
)
from secateur.training.contexts import Clock, held_back, own_randomness, within_memory
from secateur.training.distributed import added, any_of, from_main, share
from secateur.training.trainable_parameters import TrainableParameters, everything
from secateur.training.tuning import Tuning


class TrainingDiverged(TrainingError):
    """A loss that is not finite: the same command would come to the same step again."""


@dataclass(frozen=True)
class Trained:
    """`history`: epoch, step and the mean loss (nats per answer token) on what is trained on and on select, from the
    untrained model on. `best` is the step whose weights the model has now, `tokens` what was read in training, each
    as often as it was, `seconds` the wall clock of that; both over all sittings."""

    history: tuple[dict[str, float], ...]
    best: int
    tokens: int
    seconds: float = field(compare=False)

    @property
    def losses(self) -> dict[int, float]:
        """The loss on select by step; 0 is the untrained model."""
        return {int(row["step"]): row["select_loss"] for row in self.history}

    @property
    def lowered(self) -> bool:
        """Whether the loss on select is lower at the best step than it was."""
        return self.losses[self.best] < self.losses[0]


Objective = Callable[[Any, Mapping[str, Tensor]], Tensor]  # model and batch to what is to become small


def answer_loss(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The mean over the answer tokens of a batch; of several processes weighted, so that their mean is that of all."""
    losses = answer_losses(model(input_ids=inputs["input_ids"]).logits, inputs["labels"])
    return losses.mean() * share(len(losses))


class AnswerTrainer(Trainer):
    """Learns answers, or by another objective; the losses that it reports are always those of the answers."""

    progress: Progress = staticmethod(silent)
    objective: Objective = staticmethod(answer_loss)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *unused: Any, **ignored: Any) -> Tensor:
        return self.objective(model, inputs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        read_trained(self.model, Path(resume_from_checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        if self.args.should_save:
            save_trained(self.model, Path(output_dir))

    def _load_best_model(self) -> None:
        """Whoever trains reads it, also where nothing was left to do."""

    def _track_num_input_tokens(self, inputs: Mapping[str, Tensor]) -> None:
        """Without padding, which the Trainer could only tell by an attention mask."""
        self.state.num_input_tokens_seen += int(added(int(inputs["real"].sum()))[0])

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        refuse_nonfinite(added(float(loss))[0] / world(), self.state.global_step + 1, self.args)
        return loss

    def evaluate(self, *unused: Any, **ignored: Any) -> dict[str, float]:
        """The exact mean over whole splits, which does not depend on how they fall into batches."""
        measured = {
            "eval_train_loss": self.mean_loss(self.train_dataset),
            "eval_select_loss": self.mean_loss(self.eval_dataset),
        }
        refuse_nonfinite(sum(measured.values()), self.state.global_step, self.args)
        self.log(dict(measured))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, measured)
        return measured

    def mean_loss(self, samples: Sequence[Sample]) -> float:
        """Nats per answer token of all samples, as the model stands; each process reads its share of them."""
        self.model.eval()
        planned = batches(samples, self.args.per_device_eval_batch_size, rope_switches(self.model.config))
        total, tokens = 0.0, 0
        for number, rows in list(enumerate(planned, start=1))[rank() :: world()]:
            batch = {n: t.to(self.args.device) for n, t in collate(rows).items()}
            with torch.no_grad(), self.accelerator.autocast():
                losses = answer_losses(self.model(input_ids=batch["input_ids"]).logits, batch["labels"])
            total, tokens = total + float(losses.double().sum()), tokens + len(losses)
            self.progress("losses", min(number + world() - 1, len(planned)), len(planned))
        total, tokens = added(total, tokens)
        return total / tokens


def refuse_nonfinite(loss: float, step: int, args: TrainingArguments) -> None:
    """Raises `TrainingDiverged` for a loss from which no weights can be learned."""
    if not math.isfinite(loss):
        precision = " or leave out --bf16" if args.bf16 else ""
        raise TrainingDiverged(
            f"the loss is {loss} at step {step}: training with --lr {args.learning_rate} went astray. Give a smaller "
            f"--lr, more --warmup{precision}; nothing was written."
        )


class EpochWatcher(TrainerCallback):
    """Says how far training is, marks what is whole on disk, and stops there when asked to."""

    def __init__(self, progress: Progress, asked_to_stop: Callable[[], bool], clock: Clock) -> None:
        self._progress, self._asked_to_stop, self._clock = progress, asked_to_stop, clock

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._progress("train", state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._progress("train", state.global_step, state.max_steps)
        last = (
            state.epoch == int(state.epoch) or state.global_step >= state.max_steps
        )  # saved after its evaluation
        control.should_save |= any_of(self._asked_to_stop()) and not last

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        stop = any_of(self._asked_to_stop())  # when all have answered, all have saved what is theirs
        if is_main():
            complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", self._clock.seconds())
        if stop:
            raise KeyboardInterrupt


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
    stake: TrainableParameters | None = None,
) -> Trained:
    """Trains `model` in place, all parameters or what is at `stake`; `folder` keeps what a killed run goes on from.

    Afterwards the model has the weights of the epoch with the lowest loss on select, or of the last one where select
    itself was learned. Raises `TrainingDiverged`, and `TrainingError` where memory does not suffice.
    """
    taken = (stake or everything(model)).taken(model, seed)
    checkpoint = from_main(lambda: newest_checkpoint(folder))
    clock, memory = Clock(seconds_until(checkpoint)), within_memory(tuning.batch_size)
    with own_randomness(model.device), held_back() as asked_to_stop, memory, taken:
        watch = EpochWatcher(progress, asked_to_stop, clock)
        trainer = _trainer(model, learned, select, tuning, seed, folder, watch)
        trainer.progress, trainer.objective = progress, objective
        start = {"epoch": 0, "step": 0} | _losses(trainer.evaluate())
        state = finish(trainer, checkpoint)
        if any_of(asked_to_stop()):
            raise KeyboardInterrupt
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        best = state.best_global_step if tuning.chooses else state.global_step
        read_trained(model, folder / f"checkpoint-{best}")
    model.eval().requires_grad_(False)
    history = (start, *_history(state.log_history))
    return Trained(history, best, state.num_input_tokens_seen, clock.seconds())


def finish(trainer: AnswerTrainer, checkpoint: str | None) -> TrainerState:
    """The state after the last step. The Trainer itself would do one more where the last step did not end an epoch."""
    if checkpoint is not None:
        state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
        if state.global_step >= state.max_steps:
            return state
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer.state


def _history(log: Sequence[Mapping[str, float]]) -> Iterator[dict[str, float]]:
    for said in log:
        if "eval_select_loss" in said and said["step"]:
            yield {"epoch": said["epoch"], "step": said["step"]} | _losses(said)


def _losses(said: Mapping[str, float]) -> dict[str, float]:
    return {"train_loss": said["eval_train_loss"], "select_loss": said["eval_select_loss"]}


def _trainer(
    model: PreTrainedModel,
    learned: Sequence[Sample],
    select: Sequence[Sample],
    tuning: Tuning,
    seed: int,
    folder: Path,
    watch: EpochWatcher,
) -> AnswerTrainer:
    trainer = AnswerTrainer(
        model=model,
        args=arguments(tuning, seed, folder, model.device),
        data_collator=collate,
        train_dataset=list(learned),
        eval_dataset=list(select),
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)  # which the Trainer puts on stdout in place of its own bars
    return trainer
