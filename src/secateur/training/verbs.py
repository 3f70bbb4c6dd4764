"""The verbs that train, for Python and the command line alike: options are checked before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from secateur.checkpoint.folder import Folder
from secateur.core import config
from secateur.core.distributed import world
from secateur.core.ledger import check_ledger
from secateur.core.machine import check_device
from secateur.core.origin import origin_of
from secateur.core.progress import Progress, silent
from secateur.errors import ModelError, TrainingError, UnknownName
from secateur.given import OneTask, Tasks, task_word, task_words
from secateur.hf.size import Size
from secateur.inputs import inputs, inputs_of, kept_of
from secateur.keywords import TrainingOptions
from secateur.options import Options
from secateur.signatures import verb
from secateur.training.options import (
    FINETUNE_DEFAULTS,
    HEAL_DEFAULTS,
    TASK_OPTIONS,
    TRAIN_DEFAULTS,
    Healing,
    Recipe,
    Teacher,
    Tuning,
    check_stage,
    names_of,
    splits_of,
    steps_of,
    task_options_of,
)

if TYPE_CHECKING:
    from secateur.training.state import Tuned

READ = tuple(one for one in config.options_of(Options) if one.name in TASK_OPTIONS)


@verb(READ)
def finetune(
    model: str | Path,
    task: OneTask,
    out: str | Path,
    *,
    split: str | tuple[str, ...] = "probe",
    overwrite: bool = False,
    progress: Progress = silent,
    epochs: int = FINETUNE_DEFAULTS.epochs,
    lr: float = FINETUNE_DEFAULTS.lr,
    batch_size: int = FINETUNE_DEFAULTS.batch_size,
    weight_decay: float = FINETUNE_DEFAULTS.weight_decay,
    warmup: float = FINETUNE_DEFAULTS.warmup,
    max_steps: int | None = None,
    bf16: bool = False,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_targets: str | Sequence[str] = "all",
    **options: Unpack[TrainingOptions],
) -> Tuned:
    """Train all parameters of `model` on the answers of `task`, in float32, and write it to `out` in its own dtype.

    Killed at any moment and called again it continues, and ends with the same weights.

    Args:
        model: A checkpoint folder, a name on the hub or `builtin:NAME`.
        task: The task, as for `prune`.
        out: The folder for the checkpoint.
        split: `probe`, `select` or both; without select the epoch with the lowest loss there is kept.
        overwrite: Replace what secateur wrote to `out` before.
        progress: Called with a stage's name, what is done and what there is to do.
        lora: Rank of adapters that are trained instead of all parameters, and merged.
        options: Options of `prune` that say what model and task are: limit, shots, seed, dtype, ...

    The other arguments are those of `Tuning`.

    Raises: any `SecateurError`; then `out` is untouched.
    """
    adapters = (lora, lora_alpha, names_of(lora_targets))
    tuning = Tuning(
        splits_of(split), epochs, lr, batch_size, weight_decay, warmup, max_steps, bf16, *adapters
    )
    chosen = task_options_of(str(model), task_word(task), _tested(options))
    folder = Folder.at(out, reads=inputs_of(chosen), keeps=kept_of(chosen))
    from secateur.training.train import finetune

    return finetune(chosen, tuning, folder, overwrite=overwrite, progress=progress)


@verb(READ)
def heal(
    cut: str | Path,
    task: OneTask,
    out: str | Path,
    *,
    teacher: str | None = None,
    stage: str = Healing.stage,
    temperature: float = Healing.temperature,
    hidden: float = Healing.hidden,
    side: Tasks = (),
    ledger: str | Path | None = None,
    split: str | tuple[str, ...] = "probe",
    overwrite: bool = False,
    progress: Progress = silent,
    epochs: int = HEAL_DEFAULTS.epochs,
    lr: float = HEAL_DEFAULTS.lr,
    batch_size: int = HEAL_DEFAULTS.batch_size,
    weight_decay: float = HEAL_DEFAULTS.weight_decay,
    warmup: float = HEAL_DEFAULTS.warmup,
    max_steps: int | None = None,
    bf16: bool = False,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_targets: str | Sequence[str] = "all",
    **options: Unpack[TrainingOptions],
) -> Tuned:
    """Teach a cut model what its original computes on `task`, by distillation.

    A stage that does not lower the loss on select leaves the weights as they were. Splits, precision and options are
    those of `finetune`, and a healing that was killed continues as that does.

    Args:
        cut: A folder that `prune` or `apply` wrote.
        task: The task, as for `prune`.
        out: The folder for the checkpoint.
        teacher: The original; None: where plan.json says. It is refused where its fingerprint is another.
        side: Tasks to watch.
        ledger: Notes that test is opened, once, to compare the healed model to the original; None: it is not opened.
        epochs: Passes over the splits in each stage, as `max_steps` is the steps of each.
        lora: Rank of adapters in the stage `end`; what replaces blocks is trained whole beside them.
        options: Options of `prune` that say what model and task are: limit, shots, seed, dtype, ...

    The other arguments are those of `Healing` and `Tuning`.

    Raises: any `SecateurError`; then `out` is untouched.
    """
    adapters = (lora, lora_alpha, names_of(lora_targets))
    tuning = Tuning(
        splits_of(split), epochs, lr, batch_size, weight_decay, warmup, max_steps, bf16, *adapters
    )
    healing = Healing(
        stage, temperature, hidden, tuple(task_words(side)), None if ledger is None else str(ledger)
    )
    check_stage(healing, tuning)
    chosen = replace(task_options_of(str(cut), task_word(task), _tested(options)), side=healing.side)
    reads = inputs_of(chosen)
    taught_by = Teacher(
        origin_of(Path(cut), TrainingError, "Give a folder that prune or apply wrote."), teacher
    )
    folder = Folder.at(out, reads=[*reads, *_teacher_files(taught_by)], keeps=[ledger, *kept_of(chosen)])
    if ledger is not None:
        check_ledger(Path(ledger))
    from secateur.training.heal import heal

    return heal(chosen, tuning, healing, taught_by, folder, overwrite=overwrite, progress=progress)


def _tested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the task of the test split as a word. Raises: `TaskError` for anything but a task."""
    given = dict(options)
    if given.get("test_task") is not None:
        given["test_task"] = task_word(given["test_task"])
    return given


def _teacher_files(teacher: Teacher) -> list[Path]:
    """Return the folder that the teacher is read from. Raises: `ModelError` where there is no such model any more."""
    try:
        return inputs([teacher.name])
    except UnknownName as error:
        raise ModelError(
            f"the teacher cannot be loaded: {error} Say with --teacher where it is now."
        ) from error


@verb()
def train(
    text: str,
    tokenizer: str,
    out: str | Path,
    *,
    steps: int = Recipe.steps,
    save_steps: str | Sequence[int] = (),
    regulariser: str = Recipe.regulariser,
    weight: float = Recipe.weight,
    seqlen: int = Recipe.seqlen,
    seed: int = 0,
    lr: float = TRAIN_DEFAULTS.lr,
    batch_size: int = TRAIN_DEFAULTS.batch_size,
    weight_decay: float = TRAIN_DEFAULTS.weight_decay,
    warmup: float = TRAIN_DEFAULTS.warmup,
    bf16: bool = False,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
    layers: int = Size.layers,
    d_model: int = Size.d_model,
    heads: int = Size.heads,
    kv_heads: int | None = None,
    d_ff: int | None = None,
    context: int = Size.context,
) -> Tuned:
    """Train a Mistral from random weights on a text file, and write it to `out`.

    Killed at any moment and called again it continues, as `finetune` does.

    Args:
        text: FILE or text:FILE: .txt, or .jsonl with one document a line.
        tokenizer: A folder with a tokenizer.
        out: The folder for the checkpoint.
        save_steps: Write a checkpoint to `out/step-N` after each of these steps too; 0: the untrained model.
        regulariser: `none`, or the `kind` of a `LinearityRegulariser`.
        weight: The regulariser's.

    The other arguments are those of `Recipe`, `Tuning` and, for the shapes, `Size`.

    Raises: any `SecateurError`; then `out` is untouched.

    Source: Razzhigaev et al. 2024 (arXiv 2405.12250) for the recipe.
    """
    file, chosen = text.removeprefix("text:"), steps_of(save_steps)
    size = Size(layers, d_model, heads, kv_heads, d_ff, context)
    recipe = Recipe(file, tokenizer, size, steps, chosen, regulariser, weight, seqlen, seed)
    tuning = Tuning(("select",), 1, lr, batch_size, weight_decay, warmup, steps, bf16)
    check_device(device)
    if world() > 1:
        raise TrainingError(
            f"train works in one process, and {world()} were launched. Start it as secateur train."
        )
    if not os.path.isdir(tokenizer):
        raise UnknownName(
            f"--tokenizer {tokenizer}: there is no such folder. Give one with a tokenizer in it."
        )
    folder = Folder.at(out, reads=[*inputs(tasks=[f"text:{file}"]), tokenizer])
    from secateur.training.train import train

    return train(recipe, tuning, folder, device=device, overwrite=overwrite, progress=progress)
