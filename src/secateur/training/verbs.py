"""The verbs that train, for Python and the command line alike: what is asked is looked at before torch is imported."""

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
from secateur.training.heal_options import Healing, Teacher, check_stage
from secateur.training.recipe import Recipe
from secateur.training.tuning import OF_TASK, Tuning, names_of, options_of, splits_of

if TYPE_CHECKING:
    from secateur.training.state import Tuned

READ = tuple(one for one in config.options_of(Options) if one.name in OF_TASK)


@verb(READ)
def finetune(
    model: str | Path,
    task: OneTask,
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
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_targets: str | Sequence[str] = "all",
    **options: Unpack[TrainingOptions],
) -> Tuned:
    """Train all parameters of `model` on the answers of `task`, in float32, and write it to `out` in its own dtype.

    With `lora` adapters of that rank are trained instead, and merged: see `Tuning`.
    `split` is probe, select or both; without select in it the epoch with the lowest loss there is kept. `options` are
    those of `prune` that say what model and task are: limit, shots, seed, dtype, ... Killed at any moment and called
    again it goes on where it was and ends with the same weights. Raises any `SecateurError`; then `out` is untouched.
    """
    adapters = (lora, lora_alpha, names_of(lora_targets))
    tuning = Tuning(
        splits_of(split), epochs, lr, batch_size, weight_decay, warmup, max_steps, bf16, *adapters
    )
    chosen = options_of(str(model), task_word(task), _tested(options))
    folder = Folder.at(out, reads=inputs_of(chosen), keeps=kept_of(chosen))
    from secateur.training.finetune import finetune

    return finetune(chosen, tuning, folder, overwrite=overwrite, progress=progress)


@verb(READ)
def heal(
    cut: str | Path,
    task: OneTask,
    out: str | Path,
    *,
    teacher: str | None = None,
    stage: str = "both",
    temperature: float = 1.0,
    hidden: float = 1.0,
    side: Tasks = (),
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
    **options: Unpack[TrainingOptions],
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
    healing = Healing(
        stage, temperature, hidden, tuple(task_words(side)), None if ledger is None else str(ledger)
    )
    check_stage(healing, tuning)
    chosen = replace(options_of(str(cut), task_word(task), _tested(options)), side=healing.side)
    reads = inputs_of(chosen)
    taught_by = Teacher(
        origin_of(Path(cut), TrainingError, "Give a folder that prune or apply wrote."), teacher
    )
    folder = Folder.at(out, reads=[*reads, *_place_of(taught_by)], keeps=[ledger, *kept_of(chosen)])
    if ledger is not None:
        check_ledger(Path(ledger))
    from secateur.training.heal import heal

    return heal(chosen, tuning, healing, taught_by, folder, overwrite=overwrite, progress=progress)


def _tested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the task of the test split as a word. Raises: `TaskError` for what is no task."""
    given = dict(options)
    if given.get("test_task") is not None:
        given["test_task"] = task_word(given["test_task"])
    return given


def _place_of(teacher: Teacher) -> list[Path]:
    """Raises `ModelError` where it is no longer where it was."""
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
    steps: int = 1000,
    save_steps: Sequence[int] = (),
    regulariser: str = "none",
    weight: float = 0.5,
    seqlen: int = 256,
    seed: int = 0,
    lr: float = 1e-3,
    batch_size: int = 16,
    weight_decay: float = 0.1,
    warmup: float = 0.05,
    bf16: bool = False,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
    layers: int = 4,
    d_model: int = 128,
    heads: int = 4,
    kv_heads: int | None = None,
    d_ff: int | None = None,
    context: int = 512,
) -> Tuned:
    """Train a Mistral with random weights on a text file and write it to `out`, and to `out/step-N` after N steps.

    `text` is FILE or text:FILE (.txt, or .jsonl with one document a line); `tokenizer` a folder that has one; layers,
    d_model, heads, kv_heads, d_ff and context are the shapes, see `Size`. `regulariser` is none, cosine or mse, as
    `LinearityRegulariser`. Resumes as `finetune`. Source of the recipe: Razzhigaev et al. 2024 (arXiv 2405.12250).
    Raises any `SecateurError`; then `out` is untouched.
    """
    file, chosen = text.removeprefix("text:"), tuple(sorted(set(save_steps)))
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
    from secateur.training.pretrain import train

    return train(recipe, tuning, folder, device=device, overwrite=overwrite, progress=progress)
