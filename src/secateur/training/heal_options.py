"""How a cut is healed: what the user may choose, checked before anything is loaded, and the command it makes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from secateur.errors import TrainingError, UnknownName, nearest
from secateur.options import Options
from secateur.training.tuning import NO_LORA, Tuning, command_of, started, typed

STAGES = {"layers": ("layers",), "end": ("end",), "both": ("layers", "end")}


@dataclass(frozen=True)
class Healing:
    """What is healed: `stage` is layers, end or both; `temperature` and `hidden` (the weight of the streams' error
    beside the divergence) are for end. `side` are tasks to watch, `ledger` the file in which an opening of test is
    written down; None: test is not opened. Raises: `UnknownName`, `TrainingError` for numbers that mean nothing."""

    stage: str = "both"
    temperature: float = 1.0
    hidden: float = 1.0
    side: tuple[str, ...] = ()
    ledger: str | None = None

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise UnknownName(f"unknown stage {self.stage!r}.{nearest(self.stage, STAGES)}")
        if not 0 < self.temperature < math.inf:
            raise TrainingError(f"--temperature {self.temperature}: above 0, such as 1 or 2.")
        if not 0 <= self.hidden < math.inf:
            raise TrainingError(f"--hidden {self.hidden}: give 0 or more.")


def heal_command(options: Options, tuning: Tuning, healing: Healing, teacher: str | None) -> dict[str, Any]:
    """What identifies a healing: two with equal commands give the same checkpoint and the same record.

    Raises `TrainingError` for adapters in a stage that has none."""
    plain = command_of(options, tuning)
    cut = plain.pop("finetune")
    if tuning.lora is not None and healing.stage == "layers":
        raise TrainingError(
            "--lora is for the stage end: what stands for blocks is always trained whole. Leave it out."
        )
    return json.loads(json.dumps({"heal": cut, "teacher": teacher} | asdict(healing) | plain))


def command_line(command: Mapping[str, Any]) -> str:
    """`secateur heal ...` as one would type it to get this again, without -o. What has its default is left out."""
    plain = heal_command(Options(model="", task=""), Tuning(lr=1e-4), Healing(), None) | NO_LORA
    words = [*started(command), "heal", command["heal"], "--task", command["task"]]
    return typed(words, command, plain)
