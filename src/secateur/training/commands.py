"""The command that identifies a training, and the line that one would type to get it again. Imports no torch.

Two trainings with equal commands give the same checkpoint: a command is compared to that of a finished folder, and
names the state that a killed training continues from.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict

from pydantic import JsonValue

from secateur.core.distributed import world
from secateur.hf.size import Size
from secateur.options import SPEED_ONLY, Options
from secateur.training.options import (
    FINETUNE_DEFAULTS,
    HEAL_DEFAULTS,
    TASK_OPTIONS,
    TRAIN_DEFAULTS,
    Healing,
    Recipe,
    Tuning,
)
from secateur.training.records.command import (
    FinetuneCommandRecord,
    HealCommandRecord,
    TrainCommandRecord,
    TrainingCommandRecord,
)

TYPED_FIRST = ("finetune", "heal", "train", "task", "processes")  # what a line begins with
Command = FinetuneCommandRecord | HealCommandRecord | TrainCommandRecord


def finetune_command(options: Options, tuning: Tuning) -> FinetuneCommandRecord:
    """Return what identifies a fine-tuning."""
    return FinetuneCommandRecord.model_validate({"finetune": options.model} | _shared(options, tuning))


def heal_command(
    options: Options, tuning: Tuning, healing: Healing, teacher: str | None
) -> HealCommandRecord:
    """Return what identifies a healing; `teacher` is the place that the user gave for it, if any."""
    own = {"heal": options.model, "teacher": teacher} | asdict(healing)
    return HealCommandRecord.model_validate(own | _shared(options, tuning))


def train_command(recipe: Recipe, tuning: Tuning) -> TrainCommandRecord:
    """Return what identifies a training from random weights."""
    own = asdict(recipe)
    size, file = own.pop("size"), own.pop("text")
    shared = {name: vars(tuning)[name] for name in ("lr", "batch_size", "weight_decay", "warmup", "bf16")}
    return TrainCommandRecord.model_validate({"train": file} | own | size | shared)


def _shared(options: Options, tuning: Tuning) -> dict[str, object]:
    """Return the options of task and tuning; those of adapters and of several processes only where there are any."""
    of_task = {name: vars(options)[name] for name in TASK_OPTIONS if name not in SPEED_ONLY}
    of_tuning = asdict(tuning) | {name: ",".join(vars(tuning)[name]) for name in ("split", "lora_targets")}
    kept = {name: value for name, value in of_tuning.items() if tuning.lora or not name.startswith("lora")}
    processes = {"processes": world()} if world() > 1 else {}
    return {"task": options.task} | of_task | kept | processes


def command_line(command: Command) -> str:
    """Return the line that one would type to get this training again, without `-o` and without defaults."""
    words = ["secateur"]
    if isinstance(command, TrainingCommandRecord) and command.processes:
        words = ["torchrun", "--nproc-per-node", str(command.processes), "-m", "secateur"]
    match command:
        case FinetuneCommandRecord():
            words += ["finetune", command.finetune, "--task", command.task]
            default: Command = finetune_command(Options("", ""), FINETUNE_DEFAULTS)
        case HealCommandRecord():
            words += ["heal", command.heal, "--task", command.task]
            default = heal_command(Options("", ""), HEAL_DEFAULTS, Healing(), None)
        case _:
            words += ["train", command.train]
            default = train_command(Recipe("", "", Size()), TRAIN_DEFAULTS)
    values, usual = command.to_json(), default.model_dump()
    own = type(command).__annotations__  # options of the verb alone are typed before those that it shares
    for name in (*own, *(name for name in values if name not in own)):
        if name not in TYPED_FIRST and values[name] != usual[name]:
            words += _typed(name, values[name])
    return shlex.join(words)


def _typed(name: str, value: JsonValue) -> list[str]:
    """Return an option as it is typed: numbers with commas between them; texts, which may have commas, one by one."""
    flag = "--" + name.replace("_", "-")
    if value is True:
        return [flag]
    many = value if isinstance(value, list) else [value]
    if all(isinstance(item, int) for item in many):
        return [flag, ",".join(map(str, many))]
    return [word for item in many for word in (flag, str(item))]
