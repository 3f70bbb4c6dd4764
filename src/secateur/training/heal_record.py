"""What healing leaves beside the weights: heal.json and the model card. Always the healed beside the unhealed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur.core.comparison import compare
from secateur.core.score import METRICS
from secateur.hf.load import Loaded
from secateur.session import Session
from secateur.training.record import SHOWN, epoch_records, trained_on
from secateur.training.trainer import Trained
from secateur.training.tuning import Tuning

Outcomes = Mapping[str, np.ndarray]  # teacher, unhealed, healed


def heal_record(
    session: Session,
    teacher: Loaded,
    made: Loaded,
    tuning: Tuning,
    stages: Sequence[Mapping[str, Any]],
    outcomes: Outcomes,
) -> dict[str, Any]:
    """heal.json without its command."""
    task, loaded = session.task, session.loaded
    groups = task.groups(list(task.split("select")))
    return {
        "cut": _model(loaded) | {"carved": loaded.anatomy.carved},
        "teacher": _model(teacher),
        "fingerprint": made.fingerprint,
        "task": {"name": task.name, "kind": task.kind, "hash": task.hash},
        "trained_on": trained_on(task, tuning),
        "scores": [_scores(name, outcomes, groups, session.options.seed) for name in SHOWN[task.kind]],
        "stages": list(stages),
        "tokens": sum(stage["tokens"] for stage in stages),
        "seconds": sum(stage["seconds"] for stage in stages),
        "dtype": str(made.model.dtype).removeprefix("torch."),
    }


def stage_record(
    stage: str, trained: Trained, parameters: int, depths: int, seconds: float
) -> dict[str, Any]:
    """One stage: what was trained, at how many depths streams were compared, what it took, and epoch by epoch."""
    return {
        "stage": stage,
        "trained_parameters": parameters,
        "depths": depths,
        "tokens": trained.tokens,
        "seconds": seconds,
        "epochs": epoch_records(trained),
    }


def _model(loaded: Loaded) -> dict[str, Any]:
    return {
        "name": loaded.name,
        "hub": loaded.revision is not None,
        "revision": loaded.revision,
        "architecture": loaded.anatomy.architecture,
        "parameters": loaded.anatomy.num_parameters,
        "fingerprint": loaded.fingerprint,
    }


def _scores(name: str, outcomes: Outcomes, groups: np.ndarray, seed: int) -> dict[str, Any]:
    """A metric of all three, with how far the healed is from the unhealed and from the teacher."""
    healed = outcomes["healed"]
    found = {
        side: compare(METRICS[name], outcomes[side], healed, groups, seed=seed).to_json()
        for side in ("teacher", "unhealed")
    }
    return {
        "metric": name,
        "unit": found["teacher"]["before"]["unit"],
        "teacher": found["teacher"]["before"],
        "unhealed": found["unhealed"]["before"],
        "healed": found["unhealed"]["after"],
        "gain": found["unhealed"]["difference"],
        "gap": found["teacher"]["difference"],
    }


def card(record: Mapping[str, Any]) -> str:
    """README.md of a healed checkpoint, written from its record alone."""
    cut, teacher, learned = record["cut"], record["teacher"], record["trained_on"]
    base = f"base_model: {teacher['name']}\n" if teacher["hub"] else ""
    short = cut["name"].rstrip("/").split("/")[-1]
    return f"""---
library_name: transformers
{base}tags:
- secateur
- distilled
---
# {short}, healed on {record["task"]["name"]}

A cut model ({cut["parameters"]:,} parameters), taught by the model that it was cut from
({teacher["parameters"]:,}) on {learned["examples"]} examples ({" and ".join(learned["splits"])}); nothing of the test
split was learned. The epoch of each stage was chosen by: {learned["chosen_by"]}.

| on select (n = {learned["select_examples"]}) | teacher | cut, unhealed | healed |
|---|---|---|---|
{_score_rows(record)}

| stage | parameters trained | depths compared | tokens | seconds | loss on select before | after |
|---|---|---|---|---|---|---|
{_stage_rows(record)}

A token counts as often as it was read. Intervals are 95 %.

## How to load it

`AutoModelForCausalLM.from_pretrained(FOLDER)`{_remote(cut)}

## How it was made

`{record["command"]}`

Fingerprint `{teacher["fingerprint"]}` of the teacher, `{cut["fingerprint"]}` cut, `{record["fingerprint"]}` healed;
task hash `{record["task"]["hash"]}`. `heal.json` holds every number.
"""


def _score_rows(record: Mapping[str, Any]) -> str:
    return "\n".join(
        f"| {row['metric']} ({row['unit']}) | " + " | ".join(map(_value, (row[s] for s in SIDES))) + " |"
        for row in record["scores"]
    )


SIDES = ("teacher", "unhealed", "healed")


def _value(score: Mapping[str, Any]) -> str:
    return f"{score['value']:.4g} [{score['ci'][0]:.4g}, {score['ci'][1]:.4g}]"


def _stage_rows(record: Mapping[str, Any]) -> str:
    return "\n".join(
        f"| {stage['stage']} | {stage['trained_parameters']:,} | {stage['depths']} | {stage['tokens']:,} | "
        f"{stage['seconds']:.1f} | {stage['epochs'][0]['select_loss']:.4f} | {kept_loss(stage):.4f} |"
        for stage in record["stages"]
    )


def kept_loss(stage: Mapping[str, Any]) -> float:
    """The loss on select of the weights that a stage ended with."""
    return next(row["select_loss"] for row in stage["epochs"] if row["kept"])


def _remote(cut: Mapping[str, Any]) -> str:
    return ", with `trust_remote_code=True`: its shapes are no stock class's." if cut["carved"] else ""
