"""Types of what a row of `make results` found: the JSON files of benchmarks/results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from scipy.stats import rankdata

from secateur.core.records.record import Record
from secateur.core.records.verdict import AlternativeRecord, IntervalRecord


class CutFigures(Record):
    """A cut that was chosen for gain, judged on test questions that nothing was chosen by."""

    kind: Literal["cut"] = "cut"
    data: str = Field(description="name of the data set")
    shots: int = Field(description="solved examples before every question")
    chosen_by: int = Field(description="examples of the validation split")
    tested: int = Field(description="examples of the test split")
    metric: str
    unit: str
    before: IntervalRecord
    after: IntervalRecord
    difference: IntervalRecord = Field(description="after − before, paired")
    p_value: float
    verdict: str
    loss: IntervalRecord | None = Field(description="change of the log-loss, nats; below 0 is better")
    edits: list[str] = Field(
        description="what was cut; empty where no candidate was better on validation data"
    )
    tried: int = Field(description="candidates judged on the validation split")
    proposed: int = Field(description="candidates of the grid")
    shown: bool = Field(description="the validation split alone shows the gain, paid for all that were tried")
    majority: float | None = Field(description="share of the most frequent right answer; null without one")
    chance: float | None
    alternatives: list[AlternativeRecord] = Field(description="what could be had without a cut")
    guards: list[str] = Field(description="known ways for a gain to be hollow that were met")
    text_ratio: IntervalRecord | None = Field(description="perplexity of plain English, after / before")


class BlockLinearity(Record):
    """Held-out linearity scores of one block, over all tokens and without outlier tokens."""

    block: int
    stream: float = Field(description="with the residual")
    stream_without: float = Field(description="the same without outlier tokens")
    added: float = Field(description="what the block adds")
    added_without: float
    outliers: int = Field(description="outlier tokens")


class LinearityFigures(Record):
    """The linearity of every block on plain text."""

    kind: Literal["linearity"] = "linearity"
    data: str
    tokens: int
    blocks: list[BlockLinearity]


class DepthPoint(Record):
    """So many blocks gone in one form."""

    blocks: int
    parameters: float = Field(description="fraction kept")
    loss: float = Field(description="nats a token")
    over_drop: IntervalRecord | None = Field(description="loss less that of dropping the same blocks, paired")
    sample: str = Field(description="greedy text")


class DepthForm(Record):
    """One form at every depth."""

    form: str
    order: list[int] = Field(description="blocks in the order in which they went")
    points: list[DepthPoint]


class DepthFigures(Record):
    """Blocks that go one after another by cosine."""

    kind: Literal["depth"] = "depth"
    data: str
    fit_tokens: int = Field(description="tokens that maps were fitted to, and cosine was read on")
    chunks: int = Field(description="chunks that losses are on; nothing was fitted to or ordered by them")
    seqlen: int
    prompt: str
    forms: list[DepthForm]
    deepest: list[CutFigures] = Field(description="the last depth of each form on test")


class HeadReading(Record):
    """The importance of every head on one task at one number of shots."""

    task: str
    shots: int
    examples: int
    by_depth: float = Field(description="rank correlation of importance with the block number")


class OverlapFigures(Record):
    """Agreement of two readings on the order of heads."""

    left: int = Field(description="index of a reading")
    right: int
    rho: float
    partial: float = Field(description="the same with the block number held fixed")


class ImportanceFigures(Record):
    """Published importance of heads over tasks and shots."""

    kind: Literal["importance"] = "importance"
    readings: list[HeadReading]
    overlaps: list[OverlapFigures]
    mean: dict[str, float] = Field(description="mean over readings of a head's share of all importance")


class InductionFigures(Record):
    """Prefix matching of every head, on random tokens that repeat."""

    kind: Literal["induction"] = "induction"
    seeds: int = Field(description="sequences of random tokens")
    prefix_matching: dict[str, float]


class RemovalPoint(Record):
    """So much gone."""

    removed: float = Field(description="share of the heads, or of the networks")
    parameters: float
    value: float = Field(description="the metric on the validation split")
    loss: float


class RemovalFigures(Record):
    """Heads or networks that go step by step, read again after each step."""

    kind: Literal["removal"] = "removal"
    part: str
    points: list[RemovalPoint]
    ends: CutFigures = Field(description="the last point on test")


Figures = Annotated[
    CutFigures | LinearityFigures | DepthFigures | ImportanceFigures | InductionFigures | RemovalFigures,
    Field(discriminator="kind"),
]


class RowRecord(Record):
    """One experiment as it was run once."""

    name: str
    figures: Figures
    seed: int
    seconds: float = Field(description="processor time of one thread")
    resumed: bool = Field(description="went on after a kill: `seconds` are those of the last process")
    date: str
    machine: str
    versions: dict[str, str]


def partial_rank_correlation(left: Sequence[float], right: Sequence[float], fixed: Sequence[float]) -> float:
    """Return Spearman's correlation of two readings with a third held fixed.

    It is the correlation of what is left of both ranks when a straight line through the ranks of `fixed` is taken off.
    """
    ranks = np.array([rankdata(values) for values in (left, right, fixed)])
    a, b, c = ranks - ranks.mean(axis=1, keepdims=True)
    a, b = (side - c * (side @ c) / (c @ c) for side in (a, b))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
