"""Types of finetune.json, and those that heal.json shares with it."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.record import Number, Record
from secateur.core.records.verdict import GgufRecord, IntervalRecord, ScoreRecord
from secateur.training.records.command import FinetuneCommandRecord


class AdaptersRecord(Record):
    """Describe the low-rank adapters that were trained."""

    rank: int = Field(description="of each")
    alpha: Number = Field(description="what they add was scaled by `alpha` / `rank`")
    layers: int = Field(description="how many linear layers had one")


class TrainedTaskRecord(Record):
    """Name the task whose answers were trained on."""

    name: str = Field(description="the task")
    kind: str = Field(description="`choice`, `generation` or `text`")
    hash: str = Field(description="of content and splits")


class TrainingSplitsRecord(Record):
    """Say which examples were trained on, and how the epoch was chosen."""

    splits: list[str] = Field(description="`probe`, `select` or both")
    examples: int = Field(description="how many were learned")
    select_examples: int = Field(description="how many `select` has")
    examples_per_step: int = Field(description="`--batch-size` times the number of processes")
    chosen_by: str = Field(description="`loss on select`, or `last epoch` where `select` was learned too")

    @property
    def select_was_trained_on(self) -> bool:
        """Return whether nothing was held out to choose the epoch by."""
        return self.chosen_by == "last epoch"


class MetricChangeRecord(Record):
    """Compare one metric on `select` before and after a fine-tuning."""

    metric: str = Field(description="its name")
    unit: str = Field(description="`share` or `nats/token`")
    before: ScoreRecord = Field(description="of the model as it was")
    after: ScoreRecord = Field(description="of the checkpoint as written")
    difference: IntervalRecord = Field(description="after − before")


class EpochRecord(Record):
    """Hold the losses after one epoch."""

    epoch: Number = Field(description="passes over what is learned")
    step: int = Field(description="steps done")
    train_loss: Number = Field(description="mean nats per answer token of what is learned, without dropout")
    select_loss: Number = Field(description="the same of `select`")
    kept: bool = Field(description="whether these are the weights that were written")


class ModelIdentityRecord(Record):
    """Identify a model and its weights."""

    name: str = Field(description="as it was given")
    hub: bool = Field(description="whether it came from the hub")
    revision: str | None = Field(description="its commit there")
    architecture: str = Field(description="its class")
    parameters: int = Field(description="how many it has")
    fingerprint: str = Field(description="of its weights")
    gguf: GgufRecord | None = Field(
        default=None, description="the GGUF file that it was read from (only: GGUF)"
    )


class TrainedModelRecord(ModelIdentityRecord):
    """Identify the model that was trained, as it was before."""

    carved: bool = Field(description="whether its shapes are no stock class's")


class FinetuneProvenanceRecord(Record):
    """Say by which options and with which versions a model was fine-tuned."""

    command: FinetuneCommandRecord = Field(
        description="the options of the run; the same command on a finished OUT is recognized by them"
    )
    versions: dict[str, str] = Field(
        description="secateur, Python and the libraries that computed the numbers"
    )


class FinetuneRecord(Record):
    """Hold everything that finetune.json says."""

    model: TrainedModelRecord = Field(description="the model that was trained")
    fingerprint: str = Field(description="of the weights as written")
    task: TrainedTaskRecord = Field(description="the task")
    trained_on: TrainingSplitsRecord = Field(description="what was learned, and how the epoch was chosen")
    trained_parameters: int = Field(description="how many numbers were learned")
    lora: AdaptersRecord | None = Field(description="the adapters that were trained and merged; null: none")
    scores: list[MetricChangeRecord] = Field(
        description="every metric of the task on `select`, before, and after as written"
    )
    epochs: list[EpochRecord] = Field(
        description="losses in the precision of training, from the untrained model (epoch 0) on"
    )
    dtype: str = Field(description="of the weights as written")
    command: str = Field(description="the command as a line, without `-o`")
    provenance: FinetuneProvenanceRecord = Field(description="what makes the run recognizable")
