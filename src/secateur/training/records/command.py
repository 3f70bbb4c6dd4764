"""Types of `provenance.command` in finetune.json, heal.json and train.json: the options that identify a training.

Two trainings with equal commands give the same checkpoint. Options that change speed alone are not in it.
"""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.record import Record

Real = int | float  # as it was given: 6 stays 6, in the file and in the line of the command


class TrainingCommandRecord(Record):
    """Hold the options that `finetune` and `heal` share. Keys of adapters and processes are there only where used."""

    task: str = Field(description="the task")
    revision: str | None = Field(description="of the model, as it was asked for")
    test_task: str | None = Field(description="where the test split is from")
    seed: int = Field(description="of the order of examples and of dropout")
    split_seed: int = Field(description="of the splits")
    limit: int | None = Field(description="at most so many examples of each source")
    shots: int = Field(description="solved examples before every prompt")
    seqlen: int = Field(description="tokens per chunk of text")
    chat: bool = Field(description="prompts in the chat template")
    allow_small: bool = Field(description="small splits allowed")
    skip_long: bool = Field(description="examples that do not fit left out")
    dtype: str = Field(description="as it was asked for")
    trust_remote_code: bool = Field(description="code of the model run")
    split: str = Field(description="`probe`, `select` or `probe,select`")
    epochs: int = Field(description="how often every example is learned, where `max_steps` is null")
    lr: Real = Field(description="learning rate at its peak")
    batch_size: int = Field(description="examples per step of one process")
    weight_decay: Real = Field(description="AdamW's")
    warmup: Real = Field(description="share of the steps in which the rate rises")
    max_steps: int | None = Field(description="how many steps")
    bf16: bool = Field(description="mixed precision")
    lora: int | None = Field(None, description="rank of adapters (only: `--lora`)")
    lora_alpha: Real | None = Field(
        None, description="as it was asked for; null: twice the rank (only: `--lora`)"
    )
    lora_targets: str = Field("all", description="the matrices, as they were asked for (only: `--lora`)")
    processes: int | None = Field(None, description="how many trained together (only: more than one)")


class FinetuneCommandRecord(TrainingCommandRecord):
    """Identify a fine-tuning by its options."""

    finetune: str = Field(description="the model")


class HealCommandRecord(TrainingCommandRecord):
    """Identify a healing by its options."""

    heal: str = Field(description="the cut model")
    teacher: str | None = Field(description="`--teacher`")
    stage: str = Field(description="`layers`, `end` or `both`")
    temperature: Real = Field(description="of both models' probabilities")
    hidden: Real = Field(description="weight of the streams' error beside the divergence")
    side: list[str] = Field(description="tasks to watch; none given: plain English")
    ledger: str | None = Field(
        description="where the opening of test is written down; null: test was not opened"
    )


class TrainCommandRecord(Record):
    """Identify a training from random weights by its options."""

    train: str = Field(description="the text file")
    tokenizer: str = Field(description="`--tokenizer`")
    steps: int = Field(description="`--steps`")
    save_steps: list[int] = Field(description="`--save-steps`")
    regulariser: str = Field(description="`--regulariser`")
    weight: Real = Field(description="`--weight`")
    seqlen: int = Field(description="`--seqlen`")
    seed: int = Field(description="`--seed`")
    layers: int = Field(description="`--layers`")
    d_model: int = Field(description="`--d-model`")
    heads: int = Field(description="`--heads`")
    kv_heads: int | None = Field(description="`--kv-heads`")
    d_ff: int | None = Field(description="`--d-ff`")
    context: int = Field(description="`--context`")
    lr: Real = Field(description="`--lr`")
    batch_size: int = Field(description="`--batch-size`")
    weight_decay: Real = Field(description="`--weight-decay`")
    warmup: Real = Field(description="`--warmup`")
    bf16: bool = Field(description="`--bf16`")
