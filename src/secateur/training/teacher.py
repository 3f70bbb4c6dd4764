"""By whom a cut model is healed, and where: its plan, the model that plan is for, the parameters at stake."""

from __future__ import annotations

from typing import Any

from secateur.core.plan import Plan
from secateur.errors import ModelError, PlanError, TrainingError, UnknownName
from secateur.hf.blank import blank_model
from secateur.hf.load import Loaded, load_model
from secateur.options import Options
from secateur.surgery.operations import resolve_early
from secateur.training.depths import Depth, named
from secateur.training.heal_options import Teacher
from secateur.training.trainable_parameters import TrainableParameters, trainable_parameters_of
from secateur.training.tuning import Tuning


def blank_teacher(plan: Plan, teacher: Teacher, options: Options) -> Loaded:
    """The model that `plan` is for, without its weights. Raises `ModelError` where another is found."""
    found = blank_model(**teacher.loading, **_machine(options))
    try:
        resolve_early(plan, found.anatomy)
    except (PlanError, UnknownName) as error:
        raise ModelError(_another(teacher, options, str(error))) from error
    return found


def teacher_of(plan: Plan, teacher: Teacher, options: Options) -> Loaded:
    """The model that `plan` is for. Raises `ModelError` where another is found."""
    found = load_model(**teacher.loading, **_machine(options))
    if found.fingerprint != plan.model:
        differs = f"fingerprint {found.fingerprint}, where plan.json has {plan.model}."
        raise ModelError(_another(teacher, options, differs))
    return found


def _another(teacher: Teacher, options: Options, why: str) -> str:
    return f"{teacher.name} is not the model that {options.model} was cut from: {why} Give that model with --teacher."


def _machine(options: Options) -> dict[str, Any]:
    return {"device": options.device, "trust_remote_code": options.trust_remote_code}


def trained_by(stage: str, known: list[Depth], loaded: Loaded, tuning: Tuning) -> TrainableParameters:
    """What a stage trains; adapters only in end. Raises `TrainingError` where nothing stands for a block."""
    replaced = tuple(path for depth in known for path in depth.replaced)
    if stage == "end":
        return trainable_parameters_of(loaded, tuning, replaced)
    if not replaced:
        raise TrainingError(
            "in this cut nothing stands for a block that is gone, so there is nothing for the stage layers. Give "
            "--stage end."
        )
    names = [name for name, _ in loaded.model.named_parameters()]
    return TrainableParameters(frozenset(named(replaced, names)))
