"""Write and read plans: `plan.json`, and the tensors fitted for its edits beside it as `tensors/DIGEST.safetensors`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from secateur.checkpoint.folder import write_json
from secateur.core.fitted import Fitted
from secateur.core.plan import Plan
from secateur.core.reading import check_file, read_json
from secateur.core.records.plan import PlanRecord, ProvenanceRecord
from secateur.core.writing import writing
from secateur.errors import PlanError, SecateurError

TENSORS = "tensors"
_DIGEST = re.compile("[0-9a-f]{32}")


def write_plan(plan: Plan, provenance: ProvenanceRecord, folder: Path) -> PlanRecord:
    """Write a plan and its fitted tensors into `folder`; return the content of `plan.json`.

    Raises: `OutputError`.
    """
    record = PlanRecord.model_validate(plan.to_json() | {"provenance": provenance})
    write_json(folder / "plan.json", record.to_json())
    with writing(folder):
        for fitted in plan.fitted:
            assert fitted.arrays is not None, "a plan that was carried out has its tensors"
            (folder / TENSORS).mkdir(exist_ok=True)
            save_file(dict(fitted.arrays), _file(folder, fitted))
            _file(folder, fitted).chmod(
                (folder / "plan.json").stat().st_mode
            )  # else only its owner could read it
    return record


def read_plan(path: Path) -> Plan:
    """Return the plan in a file, or in a checkpoint folder, with its fitted tensors. Raises: `PlanError`."""
    file = path / "plan.json" if os.path.isdir(path) else path
    data = read_json(file, PlanError, "Give a plan.json, or a checkpoint that has one.")
    if not isinstance(data, dict):
        raise PlanError(
            f"{file}: not a plan but a JSON {type(data).__name__}. Give the plan.json of a checkpoint."
        )
    try:
        plan = Plan.from_json(data)
    except SecateurError as error:
        raise PlanError(f"{file}: {error}") from error
    return plan.with_fitted({named.digest: _read(file.parent, named) for named in plan.fitted})


def _file(folder: Path, fitted: Fitted) -> Path:
    return folder / TENSORS / f"{fitted.digest}.safetensors"


def _read(folder: Path, named: Fitted) -> Fitted:
    """Return the tensors of one digest.

    Raises: `PlanError` where they are missing, damaged, or not those that the plan was made with.
    """
    file = _file(folder, named)
    if not _DIGEST.fullmatch(named.digest):
        raise PlanError(f"{named.digest!r:.80} is no digest of fitted tensors.")
    if file.exists():
        check_file(file, PlanError)
    try:
        fitted = Fitted.of(load_file(file))
    except (OSError, SafetensorError) as error:
        raise PlanError(
            f"{file}: what was fitted for this plan cannot be read ({error}). Copy tensors/ along with plan.json."
        ) from error
    if fitted != named:
        raise PlanError(f"{file}: its content is not what the plan was made with (damaged?). Copy it again.")
    return fitted
