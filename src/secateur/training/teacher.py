"""By whom a cut model is healed, and where: its plan, the model that plan is for, the parameters at stake."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur.checkpoint.plans import read_plan
from secateur.core.plan import Plan
from secateur.errors import ModelError, TrainingError, UnknownName
from secateur.hf.load import Loaded, load_model
from secateur.options import Options
from secateur.training.depths import Depth, named
from secateur.training.stake import Stake, stake_of
from secateur.training.tuning import Tuning


def origin_of(cut: Path) -> tuple[Plan, Mapping[str, Any]]:
    """The plan that a folder was cut by, and the command that says from what. Raises `TrainingError`, `PlanError`."""
    try:
        origin = json.loads((cut / "plan.json").read_text(encoding="utf-8"))["provenance"]["command"]
        found = {name: origin[name] for name in ("model", "revision", "dtype")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{cut} is no folder that secateur prune or apply wrote: its plan.json would say what was cut, and from "
            "what. Give such a folder."
        ) from error
    return read_plan(cut), found


def teacher_of(plan: Plan, origin: Mapping[str, Any], given: str | None, options: Options) -> Loaded:
    """The model that `plan` is for, in the precision it was cut in. Raises `ModelError` where another is found."""
    how = {"device": options.device, "trust_remote_code": options.trust_remote_code}
    revision = origin["revision"] if given is None else None
    name = given or origin["model"]
    try:
        found = load_model(name, revision=revision, dtype=origin["dtype"], **how)
    except UnknownName as error:
        raise ModelError(
            f"the teacher cannot be loaded: {error} Say with --teacher where it is now."
        ) from error
    if found.fingerprint != plan.model:
        raise ModelError(
            f"{name} is not the model that {options.model} was cut from: fingerprint {found.fingerprint}, where "
            f"plan.json has {plan.model}. Give that model with --teacher."
        )
    return found


def trained_by(stage: str, known: list[Depth], loaded: Loaded, tuning: Tuning) -> Stake:
    """What a stage trains; adapters only in end. Raises `TrainingError` where nothing stands for a block."""
    replaced = tuple(path for depth in known for path in depth.replaced)
    if stage == "end":
        return stake_of(loaded, tuning, replaced)
    if not replaced:
        raise TrainingError(
            "in this cut nothing stands for a block that is gone, so there is nothing for the stage layers. Give "
            "--stage end."
        )
    names = [name for name, _ in loaded.model.named_parameters()]
    return Stake(frozenset(named(replaced, names)))
