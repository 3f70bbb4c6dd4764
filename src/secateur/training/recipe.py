"""What `secateur train` is told, and what it leaves beside the weights: train.json's command and the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secateur.core.ranges import SEED, check_ranges, real, whole
from secateur.errors import TrainingError, UnknownName, nearest
from secateur.hf.size import Size
from secateur.training.tuning import Tuning, typed

REGULARISERS = ("cosine", "mse")


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what and how. `save_steps`: checkpoints after so many steps, 0 the untrained model.

    Raises: `TrainingError` for a step outside the run and sequences longer than the context, `UnknownName`."""

    text: str
    tokenizer: str
    size: Size
    steps: int = whole(1000)
    save_steps: tuple[int, ...] = whole((), 0)
    regulariser: str = "none"
    weight: float = real(0.5)
    seqlen: int = whole(256, 2)
    seed: int = whole(0, 0, SEED)

    def __post_init__(self) -> None:
        known = ("none", *REGULARISERS)
        if self.regulariser not in known:
            raise UnknownName(f"unknown regulariser {self.regulariser!r}.{nearest(self.regulariser, known)}")
        check_ranges(self, TrainingError)
        for step in self.save_steps:
            if not 0 <= step <= self.steps:
                raise TrainingError(f"--save-steps {step}: from 0 to the last of the {self.steps} steps.")
        if self.seqlen > self.size.context:
            raise TrainingError(f"--seqlen {self.seqlen} is more than the --context of {self.size.context}.")


def command_of(recipe: Recipe, tuning: Tuning) -> dict[str, Any]:
    told = asdict(recipe)
    size, file = told.pop("size"), told.pop("text")
    kept = ("lr", "batch_size", "weight_decay", "warmup", "bf16")
    return {"train": file} | told | size | {name: vars(tuning)[name] for name in kept}


def command_line(command: Mapping[str, Any]) -> str:
    """`secateur train ...` as one would type it to get this again, without -o. What has its default is left out."""
    like = Tuning(("select",), 1, 1e-3, 16, 0.1, 0.05)
    plain = json.loads(json.dumps(command_of(Recipe("", "", Size()), like)))
    return typed(["secateur", "train", command["train"]], command, plain)


def card(record: Mapping[str, Any]) -> str:
    recipe, size = record["recipe"], record["recipe"]["size"]
    extra = "no regulariser"
    if recipe["regulariser"] != "none":
        extra = f"the {recipe['regulariser']} regulariser at weight {recipe['weight']:g}"
    rows = "\n".join(f"| {row['step']} | {row['held_out_loss']:.4f} |" for row in record["losses"])
    return f"""---
library_name: transformers
tags:
- secateur
---
# A Mistral of {record["parameters"]:,} parameters, from nothing

{size["layers"]} blocks of width {size["d_model"]}, trained for {recipe["steps"]} steps on {record["tokens"]:,} tokens
of {Path(recipe["text"]).name}, with {extra}. {record["sequences"]["held_out"]} of its chunks were held out.

| step | loss on what was held out, nats a token |
|---|---|
{rows}

## How it was made

`{record["command"]}`

Fingerprint `{record["fingerprint"]}`. `train.json` holds every number.
"""
