"""Types of what depth pruning writes into analysis.json and verdict.json. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from secateur.core.records.analysis import BaseRecord
from secateur.core.records.record import Number, Record
from secateur.core.records.verdict import FellBackRecord, IntervalRecord


def run_name(blocks: Sequence[int]) -> str:
    """Return the name of a run of blocks: `b3`, or `b3 to b5`."""
    return f"b{blocks[0]}" if len(blocks) == 1 else f"b{blocks[0]} to b{blocks[-1]}"


class DepthSearchRecord(Record):
    """The search of blocks, in verdict.json."""

    method: str = Field(description="`depth`")
    by: str = Field(description="what blocks go by: `loss`, `linearity` or `cosine`")
    form: str = Field(description="`fold`, `linear` or `drop`")
    proposed: int = Field(description="different plans that were judged, the original not counted")
    order: list[int] = Field(description="the blocks in the order in which they went")
    fell_back: list[FellBackRecord] = Field(
        description="the runs of blocks of the plan that are dropped although the form asked for is another"
    )


class BlockStep(Record):
    """A block that went, and what all blocks that were left measured then."""

    block: int = Field(description="its number in the original")
    measured: dict[str, Number] = Field(
        description="of every block that might have gone then: the loss on `probe` without it, or 1 − its linearity (with the residual, in-sample, without outlier tokens) or cosine; the lowest goes"
    )


class OtherOrderPoint(Record):
    """A depth that another order reaches."""

    blocks_removed: int = Field(description="how many are gone")
    value: Number = Field(description="the metric on `select`")
    loss: Number = Field(description="nats per token on `select`")


class OtherOrderRecord(Record):
    """The order in which another measure would have taken blocks."""

    by: str = Field(description="`linearity` or `cosine`")
    blocks: list[int] = Field(description="in the order in which they would have gone")
    points: list[OtherOrderPoint] = Field(description="from the original on")


class DepthPointRecord(Record):
    """A depth in one form."""

    blocks_removed: int = Field(description="how many are gone")
    parameters: Number = Field(description="fraction kept")
    value: Number = Field(description="the metric on `select`")
    loss: Number = Field(description="nats per token on `select`")
    over_drop: IntervalRecord | None = Field(
        default=None,
        description="the metric minus that of dropping the same blocks, paired; null for the original, for `drop`, and where a value is not finite",
    )
    sides: dict[str, Number] = Field(description="each side's metric, by its name")
    sample: str = Field(description="what the model says greedily after the prompt")
    fell_back: list[FellBackRecord] = Field(
        default=[], description="the runs that are dropped at this depth although the form is another"
    )


class FormCurve(Record):
    """One form at every depth."""

    form: str = Field(description="`fold`, `linear` or `drop`")
    points: list[DepthPointRecord] = Field(description="from the original on")


class DepthRecord(Record):
    """Every form at every depth, and what each choice went by."""

    by: str = Field(description="as in DepthSearch")
    form: str = Field(description="the one asked for")
    contiguous: bool = Field(description="one run only")
    rank: int | None = Field(description="of the maps of the form `linear`; null: full")
    blocks: int | None = Field(description="how many were asked for")
    max_loss: float | None = Field(
        description="how much worse than the original a depth may be, in the metric's unit"
    )
    metric: str = Field(description="what decides, as in the verdict")
    metric_unit: str = Field(description="`share` or `nats/token`")
    higher_is_better: bool = Field(description="direction of the metric")
    num_blocks: int = Field(description="of the original")
    encoder_blocks: int = Field(
        default=0, description="of these, those of an encoder, which come first in an encoder-decoder"
    )
    d_model: int | None = Field(default=None, description="width of its stream")
    fit_tokens: int | None = Field(
        default=None, description="tokens of `probe`, which maps are fitted to and linearity is read on"
    )
    side_units: dict[str, str] = Field(description="unit of each side, by its name")
    prompt: str = Field(description="what the samples go on from")
    order: list[BlockStep] = Field(description="the blocks in the order in which they went")
    other_orders: list[OtherOrderRecord] = Field(
        default=[],
        description="the form asked for where blocks go by linearity or cosine instead, as deep as what was chosen",
    )
    series: list[FormCurve] = Field(description="the form asked for first; `fold` only where a model can")
    chosen: int = Field(description="index of the depth that was verified")


class DepthAnalysis(Record):
    """The search as the report shows it, in analysis.json."""

    base: BaseRecord | None = Field(default=None, description="the original on `select`")
    depth: DepthRecord | None = Field(
        default=None, description="every form at every depth, on `select`, and what each choice went by"
    )
