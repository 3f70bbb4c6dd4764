"""The verbs that train, for Python and the command line alike: options are checked before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.checkpoint.folder import Folder
from secateur.core.distributed import world
from secateur.core.ledger import check_ledger
from secateur.core.machine import check_device
from secateur.core.origin import origin_of
from secateur.core.progress import Progress, silent
from secateur.errors import ModelError, TrainingError, UnknownName
from secateur.hf.size import Size
from secateur.inputs import inputs, inputs_of, kept_of
from secateur.training.options import (
    FINETUNE_DEFAULTS,
    HEAL_DEFAULTS,
    TRAIN_DEFAULTS,
    Healing,
    Recipe,
    Teacher,
    Tuning,
    check_stage,
    names_of,
    options_of,
    splits_of,
)

if TYPE_CHECKING:
    from secateur.training.state import Tuned


def finetune(
    model: str,
    task: str,
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
    **options: Any,
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
    chosen = options_of(model, task, options)
    folder = Folder.at(out, reads=inputs_of(chosen), keeps=kept_of(chosen))
    from secateur.training.finetune import finetune

    return finetune(chosen, tuning, folder, overwrite=overwrite, progress=progress)


def heal(
    cut: str | Path,
    task: str,
    out: str | Path,
    *,
    teacher: str | None = None,
    stage: str = Healing.stage,
    temperature: float = Healing.temperature,
    hidden: float = Healing.hidden,
    side: Sequence[str] = (),
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
    **options: Any,
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
    healing = Healing(stage, temperature, hidden, tuple(side), None if ledger is None else str(ledger))
    check_stage(healing, tuning)
    chosen = replace(options_of(str(cut), task, options), side=healing.side)
    reads = inputs_of(chosen)
    taught_by = Teacher(
        origin_of(Path(cut), TrainingError, "Give a folder that prune or apply wrote."), teacher
    )
    folder = Folder.at(out, reads=[*reads, *_place_of(taught_by)], keeps=[ledger, *kept_of(chosen)])
    if ledger is not None:
        check_ledger(Path(ledger))
    from secateur.training.heal import heal

    return heal(chosen, tuning, healing, taught_by, folder, overwrite=overwrite, progress=progress)


def _place_of(teacher: Teacher) -> list[Path]:
    """Raises `ModelError` where it is no longer where it was."""
    try:
        return inputs([teacher.name])
    except UnknownName as error:
        raise ModelError(
            f"the teacher cannot be loaded: {error} Say with --teacher where it is now."
        ) from error


def train(
    text: str,
    tokenizer: str,
    out: str | Path,
    *,
    steps: int = Recipe.steps,
    save_steps: Sequence[int] = (),
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
    **size: Any,
) -> Tuned:
    """Train a Mistral with random weights on a text file and write it to `out`, and to `out/step-N` after N steps.

    `text` is FILE or text:FILE (.txt, or .jsonl with one document a line); `tokenizer` a folder that has one; `size`
    gives layers, d_model, heads, kv_heads, d_ff and context. `regulariser` is none, cosine or mse, as
    `LinearityRegulariser`. Resumes as `finetune`. Source of the recipe: Razzhigaev et al. 2024 (arXiv 2405.12250).
    Raises any `SecateurError`; then `out` is untouched.
    """
    file, chosen = text.removeprefix("text:"), tuple(sorted(set(save_steps)))
    recipe = Recipe(file, tokenizer, Size(**size), steps, chosen, regulariser, weight, seqlen, seed)
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
