"""Types of what LASER writes into analysis.json and verdict.json, and of its readings. No torch."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.analysis import BaseRecord
from secateur.core.records.record import Number, Record
from secateur.core.records.verdict import ChoiceRecord

MOST_ANSWERS = 8  # different answers that a record lists, so many as a card of the report has lines


class TruncationRecord(Record):
    """One matrix cut to one rank."""

    site: str = Field(description="the matrix, such as `b2.gate`")
    matrix: str = Field(description="its kind, such as `gate`")
    block: int = Field(description="its block")
    rank: int = Field(description="components kept")
    full_rank: int = Field(description="components it has")
    kept: Number = Field(description="rank / full rank")

    @property
    def key(self) -> tuple[str, int]:
        """The matrix and the rank, which name the truncation."""
        return self.site, self.rank


class SweptTruncation(TruncationRecord):
    """A truncation that was judged on `select`, and how the model did with it."""

    accuracy: float | None = Field(description="null for text")
    loss: Number = Field(description="nats per token")
    n: int = Field(description="examples it was judged on")
    complete: bool = Field(description="all of `select`; false where it left the race early")


class ScreenedTruncation(TruncationRecord):
    """A candidate, and how gradients predict the loss to change with it."""

    score: Number = Field(description="predicted change of the loss, nats; low is good")


class CurveRecord(Record):
    """Loss and accuracy of the model against the rank of one matrix."""

    site: str = Field(description="the matrix")
    matrix: str = Field(description="its kind")
    block: int = Field(description="its block")
    removed: list[Number] = Field(description="% of components removed, ascending from 0")
    loss: list[Number] = Field(description="nats per token, at each")
    accuracy: list[float | None] = Field(default=[], description="at each; nulls for text")


class SpectrumRecord(Record):
    """Singular values of one matrix, and how many of its components are kept."""

    values: list[Number] = Field(description="singular values, descending")
    kept: int = Field(description="components kept, or that the nearest miss would keep")


class TailRecord(Record):
    """Answers of the model with only some components of one matrix."""

    site: str = Field(description="the matrix")
    rank: int = Field(description="components in use")
    kind: str = Field(description="`full`: all; `top`: the largest; `tail`: the smallest")
    answers: list[tuple[str, int]] = Field(
        description="most frequent first tokens, or labels, answered with their counts, at most 8"
    )
    cosine: Number = Field(description="mean cosine similarity of answered and right token; null of labels")
    accuracy: Number = Field(description="share of right answers")
    n: int = Field(description="examples")


class LaserAnalysis(Record):
    """The part of analysis.json that the report shows. A key that is missing leaves its section out."""

    base: BaseRecord | None = Field(default=None, description="the original on `select`")
    sweep: list[SweptTruncation] = Field(
        default=[], description="every single edit that was judged, on `select`"
    )
    curves: list[CurveRecord] = Field(
        default=[],
        description="loss against rank of the matrices that were cut, or of the nearest miss, on at most 128 examples of `select`, 256 for a full report",
    )
    spectrum: dict[str, SpectrumRecord] = Field(
        default={}, description="singular values of the same matrices, by site"
    )
    tail: list[TailRecord] = Field(
        default=[],
        description="what the parts of each cut matrix answer, on `select` (only: laser, not for text; empty where nothing was cut, and for a quick report)",
    )
    screen: list[ScreenedTruncation] = Field(
        default=[], description="every candidate's predicted change (only: laser, not with `--exhaustive`)"
    )


class LaserSearchRecord(Record):
    """The course of the search: `search` in verdict.json."""

    method: str = Field(description="`laser`")
    exhaustive: bool = Field(description="no screen, no race")
    proposed: int = Field(description="candidates in the grid")
    screened_out: int = Field(description="left out by the screen")
    raced_out: int = Field(description="left the race early")
    rungs: list[tuple[int, int]] = Field(
        description="plans and examples of each round of the race, the original among the plans"
    )
    composed: bool = Field(description="the plan has several edits")
    choice: ChoiceRecord = Field(description="what `select` says of the best single cut")


class MatrixSpectrum(Record):
    """A row of `probe --what spectrum`: how the singular values of a matrix fall, and the best truncation of it."""

    site: str = Field(description="the matrix")
    shape: tuple[int, int] = Field(description="its rows and columns")
    largest: Number = Field(description="its largest singular value")
    stable_rank: Number = Field(description="sum of squares of the singular values over the largest square")
    rank_of_90_percent: int = Field(description="components that hold 90 % of the squared norm")
    best_rank: int = Field(description="rank of the truncation with the lowest predicted change of the loss")
    predicted_change: Number = Field(description="that change, nats; negative where cutting helps")
    values: list[Number] = Field(description="singular values, descending")
