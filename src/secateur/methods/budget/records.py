"""Types of what this method writes into analysis.json and verdict.json. No torch."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.analysis import BaseRecord
from secateur.core.records.record import Number, Record

KIND_NAMES = {
    "heads": "heads or KV groups",
    "neurons": "groups of neurons",
    "experts": "experts of mixtures",
    "attentions": "whole attentions",
    "ffns": "feed-forward networks",
    "blocks": "blocks dropped",
    "folds": "runs of blocks folded",
    "maps": "runs of blocks as linear maps",
    "matrices": "matrices of lower rank",
}
MOVE_NAMES = KIND_NAMES | {
    "even": "the same share of the neurons of every network",
    "mixed": "several kinds together",
}


class BudgetSearchRecord(Record):
    """The search under a budget, in verdict.json."""

    method: str = Field(description="`budget`")
    proposed: int = Field(description="different plans that were judged, the original not counted")
    kinds: list[str] = Field(description="the kinds of edits that competed")
    forward_passes: Number = Field(
        description="cost of the search, in forward passes of the whole model over `select`; a screen counts with its backward pass"
    )


class MoveRecord(Record):
    """Edits that went in one step, by one kind, or by several where that was cheaper."""

    kind: str = Field(
        description="`heads`, …, as in `--kinds`; `even`: the same share of the neurons of every network; `mixed`: several kinds together"
    )
    edits: list[str] = Field(description="in words")
    by_kind: dict[str, int] = Field(description="how many candidates of each kind; neurons go in groups")
    predicted: Number = Field(description="expected rise of the loss by the screen on `probe`, nats")
    measured: Number = Field(description="measured rise on the first examples of `select`, nats")


class LatencyTable(Record):
    """Shares of a generation's time that parts of a model take on the machine that was measured."""

    block: Number = Field(description="a block")
    attention: Number = Field(description="an attention")
    network: Number = Field(description="a feed-forward network")
    half_of_groups: Number = Field(description="share of an attention's time that half of its KV groups take")
    half_of_neurons: Number = Field(description="share of a network's time that half of its neurons take")


class LatencyRecord(Record):
    """The time of a generation with the plan that was taken, beside the original's, both measured in turn."""

    prompt: int = Field(description="tokens that are read")
    new: int = Field(description="tokens that are written after them, with a cache")
    table: LatencyTable = Field(description="what was measured before the search")
    corrections: list[Number] = Field(
        description="measured savings by those that the table predicted, each time a plan that was to meet the budget was measured"
    )
    predicted: Number = Field(description="share of the original's time, by the table and the corrections")
    measured: Number = Field(description="the same, measured on the whole model")


class BudgetPoint(Record):
    """A point of the front."""

    parameters: Number = Field(description="fraction kept")
    kv_bytes: Number = Field(description="fraction of the KV cache's bytes a token kept")
    latency: Number | None = Field(
        default=None, description="predicted fraction of a generation's time kept (only: with `--latency`)"
    )
    value: Number = Field(description="the metric on `select`")
    loss: Number = Field(description="nats per token on `select`")
    predicted: Number = Field(description="sum of what its moves were predicted to cost, nats")
    edits: str = Field(description="the plan in words")


class BudgetRecord(Record):
    """Loss against budget, and the moves that led to the last point."""

    targets: dict[str, Number] = Field(
        description="shares to keep, by `params`, `kv_bytes`, `latency`; empty where only the loss bounds"
    )
    max_loss: float | None = Field(description="how much worse than the original, in the metric's unit")
    measured_on: int = Field(description="examples of `select` that moves were measured on")
    points: list[BudgetPoint] = Field(
        description="from the original on, each smaller than the one before; one that a smaller point betters is left out"
    )
    chosen: int = Field(description="index of the point that was verified")
    moves: list[MoveRecord] = Field(description="of the chosen point, in order")
    swaps: int = Field(description="moves that were given back for others in the end")
    latency: LatencyRecord | None = Field(
        default=None, description="the time, by the table and measured (only: with `--latency`)"
    )


class BudgetAnalysis(Record):
    """The part of analysis.json about the budget."""

    base: BaseRecord | None = Field(default=None, description="the original on `select`")
    budget: BudgetRecord | None = Field(default=None, description="the front, drawn on `select`")
