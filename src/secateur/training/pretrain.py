"""A Mistral from nothing on any text, with or without the regulariser, kept at chosen steps.

A tenth of the text is held out for the losses that are reported. Nothing here is a verdict: take another text for one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secateur.checkpoint.folder import Folder, copy_folder
from secateur.checkpoint.save import save
from secateur.core.progress import Progress
from secateur.errors import TaskError
from secateur.hf.fingerprint import fingerprint
from secateur.hf.fresh import fresh_mistral, tokenizer_in
from secateur.hf.placement import torch_device
from secateur.tasks.example import Example
from secateur.tasks.text import read_text
from secateur.training.answers import Sample
from secateur.training.recipe import Recipe, card, command_line, command_of
from secateur.training.regulariser import LinearityRegulariser
from secateur.training.state import Tuned, check_room, kept_at, made_once, own_place, versions_used
from secateur.training.steps import run
from secateur.training.tuning import Tuning

HELD_OUT = 10  # one group of chunks in so many


def train(
    recipe: Recipe, tuning: Tuning, folder: Folder, *, device: str, overwrite: bool, progress: Progress
) -> Tuned:
    """`secateur.train` of what was looked at already."""
    command = json.loads(json.dumps(command_of(recipe, tuning)))
    torch_device(device)

    def make() -> dict[str, Any]:
        return _trained(recipe, tuning, device, command, folder, progress)

    return made_once(folder, command, "train.json", make, card, device=device, overwrite=overwrite)


def _trained(
    recipe: Recipe,
    tuning: Tuning,
    device: str,
    command: dict[str, Any],
    folder: Folder,
    progress: Progress,
) -> dict[str, Any]:
    progress("load", 0, 1)
    tokenizer = tokenizer_in(recipe.tokenizer)
    learned, held_out = _split(read_text(Path(recipe.text), tokenizer, recipe.seqlen).examples, recipe.seed)
    place = own_place(folder, [command, str(folder.run.resolve()), versions_used()])
    with kept_at(place, folder):
        check_room(place, recipe.size.num_parameters(len(tokenizer)))
        model = fresh_mistral(recipe.size, tokenizer, recipe.seed).to(torch_device(device))
        regulariser = None
        if recipe.regulariser != "none":
            regulariser = LinearityRegulariser(model, recipe.weight, recipe.regulariser)
        losses, tokens, seconds = run(
            model, tokenizer, learned, held_out, recipe, tuning, regulariser, place, progress
        )
    if regulariser is not None:
        regulariser.remove()
    save(model, tokenizer, {}, folder.staging)
    for step in recipe.save_steps:
        copy_folder(place / f"step-{step}", folder.staging / f"step-{step}")
    return {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "fingerprint": fingerprint(model),
        "sequences": {"learned": len(learned), "held_out": len(held_out)},
        "losses": losses,
        "tokens": tokens,
        "seconds": seconds,
        "command": command_line(command),
        "provenance": {"command": command, "versions": versions_used()},
    }


def _split(examples: Sequence[Example], seed: int) -> tuple[list[Sample], list[Sample]]:
    """What is learned and what is held out, whole groups. Raises `TaskError` where there is one group only."""
    groups = sorted({example.group for example in examples})
    if len(groups) < 2:
        raise TaskError(
            f"the text has {len(examples)} chunks, too few to hold some out: give a longer one, or a smaller --seqlen."
        )
    random.Random(seed).shuffle(groups)
    out = set(groups[: max(1, len(groups) // HELD_OUT)])
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    for example in examples:
        assert example.tokens is not None
        parts[example.group in out].append((example.tokens, 1))
    return parts
