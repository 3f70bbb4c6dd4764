"""Types of train.json."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.record import Number, Record
from secateur.training.records.command import Real, TrainCommandRecord


class SizeRecord(Record):
    """Hold the shapes of the model."""

    layers: int = Field(description="blocks")
    d_model: int = Field(description="width of the stream")
    heads: int = Field(description="query heads")
    kv_heads: int | None = Field(description="key/value heads; null: as many")
    d_ff: int | None = Field(
        description="neurons of a network; null: 8/3 of `d_model`, up to a multiple of 8"
    )
    context: int = Field(description="positions")


class RecipeRecord(Record):
    """Say what was trained, on what and how."""

    text: str = Field(description="the file")
    tokenizer: str = Field(description="the folder it is from")
    size: SizeRecord = Field(description="the model's shapes")
    steps: int = Field(description="how many")
    save_steps: list[int] = Field(description="after which the model was kept")
    regulariser: str = Field(description="`none`, `cosine` or `mse`")
    weight: Real = Field(description="the regulariser's")
    seqlen: int = Field(description="tokens per chunk")
    seed: int = Field(description="of the weights, the order, and what is held out")


class ChunksRecord(Record):
    """Count the chunks of text."""

    learned: int = Field(description="chunks that were trained on")
    held_out: int = Field(description="chunks that were not")


class HeldOutLossRecord(Record):
    """Hold the loss on the chunks that were held out, after one step."""

    step: int = Field(description="steps done")
    held_out_loss: Number = Field(
        description="mean nats per token of what was held out, without dropout and regulariser"
    )


class TrainProvenanceRecord(Record):
    """Say by which options and with which versions a model was trained."""

    command: TrainCommandRecord = Field(
        description="the options of the run; the same command on a finished OUT is recognized by them"
    )
    versions: dict[str, str] = Field(
        description="secateur, Python and the libraries that computed the numbers"
    )


class TrainRecord(Record):
    """Hold everything that train.json says."""

    recipe: RecipeRecord = Field(description="what was trained, on what and how")
    parameters: int = Field(description="how many the model has")
    fingerprint: str = Field(description="of the weights as written")
    sequences: ChunksRecord = Field(description="how many chunks were `learned` and `held_out`")
    losses: list[HeldOutLossRecord] = Field(
        description="at the first step, the last, and those of `save_steps`"
    )
    tokens: int = Field(description="tokens read in training, each as often as it was")
    seconds: Number = Field(
        description="wall clock of the training, over all sittings; what was lost by a kill and done again counts once"
    )
    command: str = Field(description="the command as a line, without `-o`")
    provenance: TrainProvenanceRecord = Field(description="what makes the run recognizable")
