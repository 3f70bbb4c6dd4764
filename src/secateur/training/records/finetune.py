"""Types of finetune.json."""

from __future__ import annotations

from pydantic import Field, JsonValue

from secateur.core.records.record import Number, Record
from secateur.core.records.verdict import IntervalRecord, ScoreRecord


class AdaptersRecord(Record):
    """Adapters."""

    rank: int = Field(description="of each")
    alpha: Number = Field(description="what they add was scaled by `alpha` / `rank`")
    layers: int = Field(description="how many linear layers had one")


class LearnedTask(Record):
    """Learned."""

    name: str = Field(description="the task")
    kind: str = Field(description="`choice`, `generation` or `text`")
    hash: str = Field(description="of content and splits")


class TrainingRecord(Record):
    """Training."""

    splits: list[JsonValue] = Field(description="`probe`, `select` or both")
    examples: int = Field(description="how many were learned")
    examples_per_step: int = Field(description="`--batch-size` times the number of processes")
    select_examples: int = Field(description="how many `select` has")
    chosen_by: str = Field(description="`loss on select`, or `last epoch` where `select` was learned too")


class MeasuredRecord(Record):
    """Measured."""

    metric: str = Field(description="its name")
    unit: str = Field(description="`share` or `nats/token`")
    before: ScoreRecord = Field(description="of the model as it was")
    after: ScoreRecord = Field(description="of the checkpoint as written")
    difference: IntervalRecord = Field(description="after − before")


class EpochRecord(Record):
    """Epoch."""

    epoch: Number = Field(description="passes over what is learned")
    step: int = Field(description="steps done")
    train_loss: Number = Field(description="mean nats per answer token of what is learned, without dropout")
    select_loss: Number = Field(description="the same of `select`")
    kept: bool = Field(description="whether these are the weights that were written")


class TunedModel(Record):
    """Tuned."""

    name: str = Field(description="as it was given")
    hub: bool = Field(description="whether it came from the hub")
    revision: str | None = Field(description="its commit there")
    architecture: str = Field(description="its class")
    carved: bool = Field(description="whether its shapes are no stock class's")
    parameters: int = Field(description="how many it has")
    fingerprint: str = Field(description="of its weights")


class TuningRecord(Record):
    """Tuning."""

    finetune: str = Field(description="the model")
    task: str = Field(description="the task")
    test_task: str | None = Field(description="where the test split is from")
    split: str = Field(description="`probe`, `select` or `probe,select`")
    epochs: int = Field(description="how often every example is learned, where `max_steps` is null")
    max_steps: int | None = Field(description="how many steps")
    batch_size: int = Field(description="examples per step")
    lr: Number = Field(description="learning rate at its peak")
    weight_decay: Number = Field(description="AdamW's")
    warmup: Number = Field(description="share of the steps in which the rate rises")
    bf16: bool = Field(description="mixed precision")
    lora: int | None = Field(None, description="rank of adapters (only: `--lora`)")
    lora_alpha: float | None = Field(
        None, description="as it was asked for; null: twice the rank (only: `--lora`)"
    )
    lora_targets: str | None = Field(
        None, description="the matrices, as they were asked for (only: `--lora`)"
    )
    revision: str | None = Field(description="of the model, as it was asked for")
    seed: int = Field(description="of the order of examples and of dropout")
    split_seed: int = Field(description="of the splits")
    limit: int | None = Field(description="at most so many examples of each source")
    shots: int = Field(description="solved examples before every prompt")
    seqlen: int = Field(description="tokens per chunk of text")
    chat: bool = Field(description="prompts in the chat template")
    allow_small: bool = Field(description="small splits allowed")
    skip_long: bool = Field(description="examples that do not fit left out")
    trust_remote_code: bool = Field(description="code of the model run")
    dtype: str = Field(description="as it was asked for")


class OriginRecord(Record):
    """Origin."""

    command: TuningRecord = Field(
        description="the options of the run; the same command on a finished OUT is recognized by them"
    )
    versions: dict[str, str] = Field(
        description="secateur, Python and the libraries that computed the numbers"
    )


class FinetuneRecord(Record):
    """Finetuning."""

    model: TunedModel = Field(description="the model that was trained")
    fingerprint: str = Field(description="of the weights as written")
    task: LearnedTask = Field(description="the task")
    trained_on: TrainingRecord = Field(description="what was learned, and how the epoch was chosen")
    trained_parameters: int = Field(description="how many numbers were learned")
    lora: AdaptersRecord | None = Field(description="the adapters that were trained and merged; null: none")
    scores: list[MeasuredRecord] = Field(
        description="every metric of the task on `select`, before, and after as written"
    )
    epochs: list[EpochRecord] = Field(
        description="losses in the precision of training, from the untrained model (epoch 0) on"
    )
    dtype: str = Field(description="of the weights as written")
    command: str = Field(description="the command as a line, without `-o`")
    provenance: OriginRecord = Field(description="what makes the run recognizable")
