"""Types of train.json."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.record import Number, Record


class SizeRecord(Record):
    """Size."""

    layers: int = Field(description="blocks")
    d_model: int = Field(description="width of the stream")
    heads: int = Field(description="query heads")
    kv_heads: int | None = Field(description="key/value heads; null: as many")
    d_ff: int | None = Field(
        description="neurons of a network; null: 8/3 of `d_model`, up to a multiple of 8"
    )
    context: int = Field(description="positions")


class RecipeRecord(Record):
    """Recipe."""

    text: str = Field(description="the file")
    tokenizer: str = Field(description="the folder it is from")
    size: SizeRecord = Field(description="the model's shapes")
    steps: int = Field(description="how many")
    save_steps: list[int] = Field(description="after which the model was kept")
    regulariser: str = Field(description="`none`, `cosine` or `mse`")
    weight: Number = Field(description="the regulariser's")
    seqlen: int = Field(description="tokens per chunk")
    seed: int = Field(description="of the weights, the order, and what is held out")


class HeldOutRecord(Record):
    """HeldOut."""

    step: int = Field(description="steps done")
    held_out_loss: Number = Field(
        description="mean nats per token of what was held out, without dropout and regulariser"
    )


class TrainCommandRecord(Record):
    """TrainCommand."""

    train: str = Field(description="the text file")
    tokenizer: str = Field(description="`--tokenizer`")
    steps: int = Field(description="`--steps`")
    save_steps: list[int] = Field(description="`--save-steps`")
    regulariser: str = Field(description="`--regulariser`")
    weight: Number = Field(description="`--weight`")
    seqlen: int = Field(description="`--seqlen`")
    seed: int = Field(description="`--seed`")
    layers: int = Field(description="`--layers`")
    d_model: int = Field(description="`--d-model`")
    heads: int = Field(description="`--heads`")
    kv_heads: int | None = Field(description="`--kv-heads`")
    d_ff: int | None = Field(description="`--d-ff`")
    context: int = Field(description="`--context`")
    lr: Number = Field(description="`--lr`")
    batch_size: int = Field(description="`--batch-size`")
    weight_decay: Number = Field(description="`--weight-decay`")
    warmup: Number = Field(description="`--warmup`")
    bf16: bool = Field(description="`--bf16`")


class TrainOriginRecord(Record):
    """TrainOrigin."""

    command: TrainCommandRecord = Field(
        description="the options of the run; the same command on a finished OUT is recognized by them"
    )
    versions: dict[str, str] = Field(
        description="secateur, Python and the libraries that computed the numbers"
    )


class TrainRecord(Record):
    """Pretraining."""

    recipe: RecipeRecord = Field(description="what was trained, on what and how")
    parameters: int = Field(description="how many the model has")
    fingerprint: str = Field(description="of the weights as written")
    sequences: dict[str, int] = Field(description="how many chunks were `learned` and `held_out`")
    losses: list[HeldOutRecord] = Field(description="at the first step, the last, and those of `save_steps`")
    tokens: int = Field(description="tokens read in training, each as often as it was")
    seconds: Number = Field(
        description="wall clock of the training, over all sittings; what was lost by a kill and done again counts once"
    )
    command: str = Field(description="the command as a line, without `-o`")
    provenance: TrainOriginRecord = Field(description="what makes the run recognizable")
