"""Types of what `secateur plan-cost --json` prints."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.record import Number, Record
from secateur.core.records.verdict import AnswerRecord, BaselineRecord


class FloorsRecord(Record):
    """Floors."""

    chance: float | None = Field(description="as in Baseline")
    majority: AnswerRecord | None = Field(description="as there")


class StageCountRecord(Record):
    """StageCount."""

    seconds: float | None = Field(
        None,
        description="time; null where there is no machine (`--no-calibrate`) (only: of stages, with a machine)",
    )
    plans: Number | None = Field(None, description="that are judged (only: not of loading)")
    evaluations: Number | None = Field(None, description="plan × example (only: not of loading)")
    flops: Number | None = Field(None, description="multiplications and additions (only: not of loading)")
    svds: Number | None = Field(None, description="decompositions (only: not of loading)")
    gradients: Number | None = Field(
        None, description="examples that are read with gradients (only: not of loading)"
    )


class StageCostRecord(Record):
    """StageCost."""

    stage: str = Field(description="as progress bars call it")
    counts: dict[str, StageCountRecord] = Field(
        description="by case: `least`, the least that a search can take; `expected`; `most`"
    )


class CostBytesRecord(Record):
    """CostBytes."""

    weights: int = Field(description="of the model in its dtype")
    spectra: int = Field(description="of all decompositions")
    spectra_kept: int = Field(description="of those that are kept at once")
    activations: int = Field(description="kept at the lowest block edited, so that blocks below run once")
    logits: int = Field(description="of the tokens whose logits are read at once")


class ForecastRecord(Record):
    """PlanCost."""

    model: str = Field(description="MODEL as it was given")
    task: str = Field(description="name of the task; of several, joined")
    method: str = Field(description="`--method`")
    parameters: int = Field(description="of the model")
    examples: dict[str, int] = Field(description="by split: `probe`, `select`, `test`")
    tokens: int = Field(description="of select, in the batches of the evaluator, padding included")
    devices: int = Field(description="`--devices`")
    workers: int = Field(description="models side by side on them")
    stages: list[StageCostRecord] = Field(description="in the order in which they come")
    total: StageCostRecord = Field(description="their sum; `stage` is `all`")
    bytes: CostBytesRecord = Field(description="what is held at once")
    assumptions: list[str] = Field(description="what the numbers rest on")
    floors: FloorsRecord = Field(description="what takes no model")
    baseline: BaselineRecord | None = Field(
        description="the model on the first 64 examples of `select`; null where no weights were read"
    )
