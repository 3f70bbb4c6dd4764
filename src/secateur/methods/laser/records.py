"""Types of what this method writes into analysis.json and verdict.json. No torch."""

from __future__ import annotations

from pydantic import Field, JsonValue

from secateur.core.records.analysis import BaseRecord
from secateur.core.records.record import Number, Record
from secateur.core.records.verdict import ChoiceRecord


class SweptTruncation(Record):
    """Swept."""

    site: str = Field(description="the matrix, such as `b2.gate`")
    matrix: str = Field(description="its kind, such as `gate`")
    block: int = Field(description="its block")
    rank: int = Field(description="components kept")
    full_rank: int = Field(description="components it has")
    kept: Number = Field(description="rank / full rank")
    accuracy: float | None = Field(description="null for text")
    loss: Number = Field(description="nats per token")
    n: int = Field(description="examples it was judged on")
    complete: bool = Field(description="all of `select`; false where it left the race early")


class ScreenedTruncation(Record):
    """Screened."""

    site: str = Field(description="the matrix")
    matrix: str = Field(description="its kind")
    block: int = Field(description="its block")
    rank: int = Field(description="components kept")
    full_rank: int = Field(description="components it has")
    kept: Number = Field(description="rank / full rank")
    score: Number = Field(description="predicted change of the loss, nats; low is good")


class CurveRecord(Record):
    """Curve."""

    site: str = Field(description="the matrix")
    matrix: str = Field(description="its kind")
    block: int = Field(description="its block")
    removed: list[Number] = Field(description="% of components removed, ascending from 0")
    loss: list[Number] = Field(description="nats per token, at each")
    accuracy: list[float | None] = Field(description="at each; nulls for text")


class SpectrumRecord(Record):
    """Spectrum."""

    values: list[Number] = Field(description="singular values, descending")
    kept: int = Field(description="components kept, or that the nearest miss would keep")


class TailRecord(Record):
    """Tail."""

    site: str = Field(description="the matrix")
    rank: int = Field(description="components in use")
    kind: str = Field(description="`full`: all; `top`: the largest; `tail`: the smallest")
    answers: list[list[JsonValue]] = Field(
        description="most frequent first tokens answered with their counts, at most 8"
    )
    cosine: Number = Field(description="mean cosine similarity of answered and right token")
    accuracy: Number = Field(description="share of right answers")
    n: int = Field(description="examples")


class LaserAnalysis(Record):
    """Keep what the report shows of the search, in analysis.json."""

    base: BaseRecord = Field(description="the original on `select`")
    sweep: list[SweptTruncation] = Field(description="every single edit that was judged, on `select`")
    screen: list[ScreenedTruncation] | None = Field(
        None, description="every candidate's predicted change (only: laser, not with `--exhaustive`)"
    )
    curves: list[CurveRecord] = Field(
        description="loss against rank of the matrices that were cut, or of the nearest miss, on at most 256 examples of `select`"
    )
    spectrum: dict[str, SpectrumRecord] = Field(description="singular values of the same matrices, by site")
    tail: list[TailRecord] | None = Field(
        None,
        description="what the parts of each cut matrix answer, on `select` (only: laser, not for text; empty where nothing was cut)",
    )


class LaserSearchRecord(Record):
    """Say how LASER searched, in verdict.json."""

    method: str = Field(description="`laser`")
    exhaustive: bool = Field(description="no screen, no race")
    proposed: int = Field(description="candidates in the grid")
    screened_out: int = Field(description="left out by the screen")
    raced_out: int = Field(description="left the race early")
    rungs: list[list[int]] = Field(
        description="plans and examples of each round of the race, the original among the plans"
    )
    composed: bool = Field(description="the plan has several edits")
    choice: ChoiceRecord = Field(description="what `select` says of the best single cut")
