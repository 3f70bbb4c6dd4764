"""The Trainer's arguments: what a tuning means to it. Knows no model and no data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from secateur.errors import TrainingError
from secateur.training.tuning import Tuning


def arguments(
    tuning: Tuning, seed: int, folder: Path, device: torch.device, **others: Any
) -> TrainingArguments:
    """The Trainer's own, with `others` in place. Raises `TrainingError` where the machine lacks what is asked for."""
    if device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
        raise TrainingError(
            f"--device {device}: training takes the first one. Set CUDA_VISIBLE_DEVICES and give cuda."
        )
    by_epoch = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "select_loss",
        "greater_is_better": False,
    }
    given = by_epoch | (best if tuning.chooses else {}) | others
    try:
        made = TrainingArguments(
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
            save_total_limit=2,  # the newest whole one stays while the next is written
            logging_strategy="no",
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,  # what is trained has a part in every loss
            dataloader_pin_memory=device.type == "cuda",
            **given,
        )
    except ValueError as error:
        raise TrainingError(f"this machine cannot train so: {error}") from error
    made._n_gpu = min(made.n_gpu, 1)  # else several of them would share each batch, unasked
    return made
