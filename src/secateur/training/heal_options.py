"""How a cut is healed: what the user may choose, checked before anything is loaded, and the command it makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from secateur.core.origin import Origin
from secateur.core.ranges import check_ranges, real
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
    temperature: float = real(1.0, 0, above=True, such="1 or 2")
    hidden: float = real(1.0)
    side: tuple[str, ...] = ()
    ledger: str | None = None

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise UnknownName(f"unknown stage {self.stage!r}.{nearest(self.stage, STAGES)}")
        check_ranges(self, TrainingError)
        if self.ledger == "":
            raise TrainingError("--ledger is empty: give a file, or leave it out.")


@dataclass(frozen=True)
class Teacher:
    """The model that a cut was made from: by the words of its plan.json, or by the name `given` where it is now."""

    origin: Origin
    given: str | None = None

    @property
    def name(self) -> str:
        return self.origin.model if self.given is None else self.given

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of `load_model`, in the precision it was cut in."""
        revision = self.origin.revision if self.given is None else None
        return {"name": self.name, "revision": revision, "dtype": self.origin.dtype}


def check_stage(healing: Healing, tuning: Tuning) -> None:
    """Raises `TrainingError` for adapters in a stage that has none."""
    if tuning.lora is not None and healing.stage == "layers":
        raise TrainingError(
            "--lora is for the stage end: what stands for blocks is always trained whole. Leave it out."
        )


def heal_command(options: Options, tuning: Tuning, healing: Healing, teacher: str | None) -> dict[str, Any]:
    """Returns what identifies a healing: two with equal commands give the same checkpoint and the same record."""
    plain = command_of(options, tuning)
    cut = plain.pop("finetune")
    return json.loads(json.dumps({"heal": cut, "teacher": teacher} | asdict(healing) | plain))


def command_line(command: Mapping[str, Any]) -> str:
    """`secateur heal ...` as one would type it to get this again, without -o. What has its default is left out."""
    plain = heal_command(Options(model="", task=""), Tuning(lr=1e-4), Healing(), None) | NO_LORA
    words = [*started(command), "heal", command["heal"], "--task", command["task"]]
    return typed(words, command, plain)
