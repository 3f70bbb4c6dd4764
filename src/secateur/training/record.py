"""What a fine-tuning leaves beside the weights: finetune.json and the model card. Knows records, no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from secateur.core.comparison import compare
from secateur.core.distributed import world
from secateur.core.score import METRICS
from secateur.tasks.example import Task
from secateur.training.trainer import Trained
from secateur.training.tuning import Tuning

SHOWN = {
    "text": ("text_loss",),
    "choice": ("accuracy", "accuracy_norm", "loss"),
    "generation": ("accuracy", "loss"),
}


def score_records(
    task: Task, before: np.ndarray, after: np.ndarray, groups: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """Every metric of the task on select, of the model as it was and as it is written."""
    return [_measured(name, before, after, groups, seed) for name in SHOWN[task.kind]]


def _measured(
    name: str, before: np.ndarray, after: np.ndarray, groups: np.ndarray, seed: int
) -> dict[str, Any]:
    found = compare(METRICS[name], before, after, groups, seed=seed).to_json()
    kept = {key: found[key] for key in ("before", "after", "difference")}
    return {"metric": name, "unit": found["before"]["unit"]} | kept


def epoch_records(trained: Trained) -> list[dict[str, Any]]:
    """The losses as training saw them; `kept` marks the weights that were written."""
    return [dict(row) | {"kept": row["step"] == trained.best} for row in trained.history]


def trained_on(task: Task, tuning: Tuning) -> dict[str, Any]:
    """Says which examples were learned, how many (not all where `max_steps` ends the first epoch), and how the epoch
    was chosen."""
    every = sum(len(task.split(name)) for name in tuning.split)
    most = every if tuning.max_steps is None else tuning.max_steps * tuning.batch_size * world()
    return {
        "splits": list(tuning.split),
        "examples": min(every, most),
        "select_examples": len(task.split("select")),
        "examples_per_step": tuning.batch_size * world(),
        "chosen_by": "loss on select" if tuning.chooses else "last epoch",
    }


def card(record: Mapping[str, Any]) -> str:
    """README.md of a fine-tuned checkpoint, written from its record alone."""
    model, task, learned = record["model"], record["task"], record["trained_on"]
    base = f"base_model: {model['name']}\n" if model["hub"] else ""
    short = model["name"].rstrip("/").split("/")[-1]
    return f"""---
library_name: transformers
{base}tags:
- secateur
- fine-tuned
---
# {short}, fine-tuned on {task["name"]}

{_stake(record)} were trained on the answers of {learned["examples"]} examples ({" and ".join(learned["splits"])}); no
other text, and nothing of the test split, was learned. {_caution(learned)}

| on select (n = {learned["select_examples"]}) | before | after |
|---|---|---|
{_rows(record)}

| epoch | step | loss on what is learned | loss on select | |
|---|---|---|---|---|
{_epochs(record)}

Losses are nats per answer token, without dropout, in the precision of training.

## How to load it

`AutoModelForCausalLM.from_pretrained(FOLDER)`{how_remote(model)}

## How it was made

`{record["command"]}`

Fingerprint `{model["fingerprint"]}` before, `{record["fingerprint"]}` after; task hash `{task["hash"]}`.
`finetune.json` holds every number.
"""


def _stake(record: Mapping[str, Any]) -> str:
    return (
        f"{adapters(record['lora'])} {record['trained_parameters']:,} parameters in all,"
        if record["lora"]
        else "All parameters"
    )


def adapters(lora: Mapping[str, Any]) -> str:
    """In words; `lora` as `Stake.to_json` gives it."""
    return f"Low-rank adapters of rank {lora['rank']} of {lora['layers']} linear layers, merged at the end,"


def _caution(learned: Mapping[str, Any]) -> str:
    if learned["chosen_by"] == "last epoch":
        return "Select was learned too: its numbers below say nothing about new examples."
    return "The epoch was chosen by its loss on select, so the numbers below are a little too good."


def _rows(record: Mapping[str, Any]) -> str:
    return "\n".join(
        f"| {row['metric']} ({row['unit']}) | {with_ends(row['before'])} | {with_ends(row['after'])} |"
        for row in record["scores"]
    )


def with_ends(score: Mapping[str, Any]) -> str:
    """A value and the ends of its interval."""
    return f"{score['value']:.4g} [{score['ci'][0]:.4g}, {score['ci'][1]:.4g}]"


def _epochs(record: Mapping[str, Any]) -> str:
    return "\n".join(
        f"| {row['epoch']:g} | {row['step']} | {row['train_loss']:.4f} | {row['select_loss']:.4f} | "
        f"{'written' if row['kept'] else ''} |"
        for row in record["epochs"]
    )


def how_remote(model: Mapping[str, Any]) -> str:
    """What loading needs where the model has shapes of its own."""
    return ", with `trust_remote_code=True`: its shapes are no stock class's." if model["carved"] else ""
