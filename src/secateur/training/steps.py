"""A training by steps: what is written after chosen ones, and the loss on text that is held out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from secateur.checkpoint.save import save
from secateur.core.progress import Progress
from secateur.training.answers import Sample, collate
from secateur.training.arguments import arguments
from secateur.training.checkpoints import newest_checkpoint, read_trained, seconds_until
from secateur.training.contexts import Clock, held_back, own_randomness, within_memory
from secateur.training.recipe import Recipe
from secateur.training.regulariser import LinearityRegulariser
from secateur.training.trainer import (
    AnswerTrainer,
    EpochWatcher,
    Objective,
    answer_loss,
    finish,
    refuse_nonfinite,
)
from secateur.training.tuning import Tuning

STATE_EVERY = 200  # steps between states that a killed run goes on from


class PretrainingTrainer(AnswerTrainer):
    """Learns by steps, and hears its callbacks for the losses it has to tell."""

    def tell(self, step: int) -> None:
        """Notes the loss on what is held out, nats a token, in the state that a resumed run reads."""
        loss = self.mean_loss(self.eval_dataset)
        refuse_nonfinite(loss, step, self.args)
        self.log({"held_out_loss": loss})


class _Keeper(TrainerCallback):
    """Writes the model after chosen steps, whole or not at all, and tells the loss there and at the end."""

    def __init__(self, steps: Sequence[int], last: int, write: Callable[[int], None]) -> None:
        self._steps, self._last, self._write = set(steps), last, write
        self.trainer: PretrainingTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == 0:
            self._keep(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._keep(state.global_step)

    def _keep(self, step: int) -> None:
        if step in self._steps:
            self._write(step)
        if step in self._steps | {0, self._last}:
            assert self.trainer is not None
            self.trainer.tell(step)


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    learned: Sequence[Sample],
    held_out: Sequence[Sample],
    recipe: Recipe,
    tuning: Tuning,
    regulariser: LinearityRegulariser | None,
    place: Path,
    progress: Progress,
) -> tuple[list[dict[str, float]], int, float]:
    """Trains `model` in place; gives the held-out losses by step, the tokens read and the seconds that took, both over
    all sittings. Raises `Astray`, and `TrainingError` where memory does not suffice."""

    def write(step: int) -> None:
        half = place / "half"
        save(model, tokenizer, {}, half)
        shutil.rmtree(place / f"step-{step}", ignore_errors=True)
        half.rename(place / f"step-{step}")

    keeper = _Keeper(recipe.save_steps, recipe.steps, write)
    how = {"eval_strategy": "no", "save_strategy": "steps", "save_steps": STATE_EVERY}
    checkpoint = newest_checkpoint(place)
    clock, memory = Clock(seconds_until(checkpoint)), within_memory(tuning.batch_size)
    with own_randomness(model.device), held_back() as asked_to_stop, memory:
        trainer = PretrainingTrainer(
            model=model,
            args=arguments(tuning, recipe.seed, place, model.device, **how),
            data_collator=collate,
            train_dataset=list(learned),
            eval_dataset=list(held_out),
            callbacks=[keeper, EpochWatcher(progress, asked_to_stop, clock)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.objective, keeper.trainer = _objective(regulariser), trainer
        state = finish(trainer, checkpoint)
        if asked_to_stop():
            raise KeyboardInterrupt
    read_trained(model, place / f"checkpoint-{state.global_step}")
    model.eval().requires_grad_(False)
    losses = [
        {"step": said["step"], "held_out_loss": said["held_out_loss"]}
        for said in state.log_history
        if "held_out_loss" in said
    ]
    return losses, state.num_input_tokens_seen, clock.seconds()


def _objective(regulariser: LinearityRegulariser | None) -> Objective:
    if regulariser is None:
        return answer_loss
    return lambda model, inputs: answer_loss(model, inputs) + regulariser.loss(inputs["real"])
