"""What healing leaves beside the weights: heal.json and the model card. Always the healed beside the unhealed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.core.plan import Plan
from secateur.core.reading import as_written, read_json
from secateur.core.site import Site
from secateur.errors import TrainingError
from secateur.hf.load import Loaded
from secateur.report.epochs import kept_loss
from secateur.report.healed_depth import check_depth
from secateur.session import Session
from secateur.tasks.example import Task
from secateur.training.heal_measures import SIDES
from secateur.training.record import epoch_records, how_remote, trained_on, with_ends
from secateur.training.trainer import Trained
from secateur.training.tuning import Tuning


def heal_record(
    session: Session,
    teacher: Loaded,
    made: Loaded,
    plan: Plan,
    tuning: Tuning,
    stages: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """heal.json without what was measured, and its command."""
    task, loaded = session.task, session.loaded
    return {
        "cut": _model(loaded) | {"carved": loaded.anatomy.carved},
        "teacher": _model(teacher),
        "fingerprint": made.fingerprint,
        "gone": {"blocks": sorted(plan.blocks_gone), "form": form_of(plan)},
        "task": {"name": task.name, "kind": task.kind, "hash": task.hash},
        "trained_on": trained_on(task, tuning),
        "stages": list(stages),
        "tokens": sum(stage["tokens"] for stage in stages),
        "seconds": sum(stage["seconds"] for stage in stages),
        "dtype": str(made.model.dtype).removeprefix("torch."),
    }


def stage_record(
    stage: str,
    trained: Trained,
    parameters: int,
    lora: Mapping[str, Any] | None,
    depths: int,
) -> dict[str, Any]:
    """One stage: what was trained, at how many depths streams were compared, what it took, and epoch by epoch."""
    return {
        "stage": stage,
        "trained_parameters": parameters,
        "lora": lora,
        "depths": depths,
        "tokens": trained.tokens,
        "seconds": trained.seconds,
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


def form_of(plan: Plan) -> str | None:
    """What stands for the blocks that are gone; None where none are, or not one form for all."""
    blocks = [site for site in plan.dropped if site == Site(site.block)]
    forms = {edit.form for edit in plan.linearized} | ({"drop"} if blocks else set())
    return forms.pop() if len(forms) == 1 else None


def curves_of(cut: Path, task: Task) -> dict[str, Any] | None:
    """`depth` of a cut's own analysis.json; None where it is no such cut, or its curves are of another task.

    Raises `TrainingError` for records that cannot be read."""
    files = [cut / "verdict.json", cut / "analysis.json"]
    if not all(file.exists() for file in files):
        return None
    mend = "Remove verdict.json and analysis.json, or cut again."
    verdict, analysis = (read_json(file, TrainingError, mend) for file in files)
    with as_written(cut, TrainingError, mend):
        depth = analysis.get("depth") if verdict["task"]["hash"] == task.hash else None
        if depth:
            check_depth(depth)  # now, for the page is drawn after the training
        return depth


def sentence(record: Mapping[str, Any]) -> str:
    """What came back and at what cost, in plain words: of the first metric that the cut is shown to have lost; and what
    got worse elsewhere."""
    worse = [
        f" Worse for it: {row['name']}, {row['metric'].replace('_', ' ')} {_change(row['gain'], row['unit'])}."
        for row in record["sides"]
        if (ci := row["gain"]["ci"]) and (ci[1] < 0 if row["higher_is_better"] else ci[0] > 0)
    ]
    return _brought_back(record) + "".join(worse)


def _brought_back(record: Mapping[str, Any]) -> str:
    scores, cost = record["scores"], f"{record['tokens']:,} tokens read in {record['seconds']:.0f} s."
    row = next((row for row in scores if row["recovered"]), None)
    if row is None:
        return (
            f"On select the cut is not shown to have cost any {scores[0]['metric'].replace('_', ' ')}; {cost}"
        )
    lost = _amount(abs(row["teacher"]["value"] - row["unhealed"]["value"]), row["unit"])
    back = row["recovered"]
    low, high = (f"{100 * end:.0f}" for end in back["ci"])
    return (
        f"The cut cost {lost} of {row['metric'].replace('_', ' ')} on select; healing brought back "
        f"{100 * back['value']:.0f} % [{low}, {high}] of that: {cost}"
    )


def sentence_of_test(test: Mapping[str, Any]) -> str:
    """What test says, in plain words."""
    row = test["scores"][0]
    gap, gain = (_change(row[name], row["unit"]) for name in ("gap", "gain"))
    return (
        f"On {test['n']} test examples that nothing was chosen by, the healed model against the original: "
        f"{test['verdict']}, {gap}; against the unhealed {gain}."
    )


def _change(gap: Mapping[str, Any], unit: str) -> str:
    ends = ", ".join(_plain(end, unit) for end in gap["ci"] or ())
    return _amount(gap["value"], unit, "+") + (f" [{ends}]" if ends else " (no interval: too few groups)")


def _amount(value: float, unit: str, sign: str = "") -> str:
    return _plain(value, unit, sign) + (" points" if unit == "share" else f" {unit}")


def _plain(value: float, unit: str, sign: str = "+") -> str:
    return f"{100 * value:{sign}.1f}" if unit == "share" else f"{value:{sign}.3f}"


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

{" ".join([record["sentence"], *([record["test"]["sentence"]] if record["test"] else [])])}

| | teacher | cut, unhealed | healed | of what was lost came back |
|---|---|---|---|---|
{_score_rows(record)}

| stage | parameters trained | depths compared | tokens | seconds | loss on select before | after |
|---|---|---|---|---|---|---|
{_stage_rows(record)}

A token counts as often as it was read. Intervals are 95 %.

## How to load it

`AutoModelForCausalLM.from_pretrained(FOLDER)`{how_remote(cut)}

## How it was made

`{record["command"]}`

Fingerprint `{teacher["fingerprint"]}` of the teacher, `{cut["fingerprint"]}` cut, `{record["fingerprint"]}` healed;
task hash `{record["task"]["hash"]}`. `heal.json` holds every number.
"""


def _score_rows(record: Mapping[str, Any]) -> str:
    test = record["test"]["scores"] if record["test"] else []
    rows = [("on select", row) for row in record["scores"]] + [("on test", row) for row in test]
    rows += [(f"on {row['name']}, on the side", row) for row in record["sides"]]
    return "\n".join(
        f"| {row['metric']} {where} ({row['unit']}) | "
        + " | ".join([*(with_ends(row[side]) for side in SIDES), _share(row["recovered"])])
        + " |"
        for where, row in rows
    )


def _share(back: Mapping[str, Any] | None) -> str:
    return (
        ""
        if back is None
        else f"{100 * back['value']:.0f} % [{', '.join(f'{100 * e:.0f}' for e in back['ci'])}]"
    )


def _stage_rows(record: Mapping[str, Any]) -> str:
    return "\n".join(
        f"| {stage['stage']} | {stage['trained_parameters']:,} | {stage['depths']} | {stage['tokens']:,} | "
        f"{stage['seconds']:.1f} | {stage['epochs'][0]['select_loss']:.4f} | {kept_loss(stage):.4f} |"
        for stage in record["stages"]
    )
