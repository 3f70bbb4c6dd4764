"""Records of dropped attentions in analysis.json and verdict.json. No torch."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.analysis import BaseRecord
from secateur.core.records.record import Number, Record


class AttentionSearchRecord(Record):
    """The course of dropping attentions."""

    method: str = Field(description="`attention`")
    proposed: int = Field(description="different plans that were judged, the original not counted")
    order: list[int] = Field(description="the blocks whose attentions went, in order")


class AttentionPoint(Record):
    """One depth of the search: so many attentions are gone."""

    attentions_removed: int = Field(description="how many are gone")
    block: int | None = Field(description="the block whose attention went last; null: none did")
    value: Number = Field(description="the metric on `select`")
    loss: Number = Field(description="nats per token on `select`")


class AttentionAnalysis(Record):
    """The part of analysis.json about dropped attentions."""

    base: BaseRecord = Field(description="the original on `select`")
    attentions: list[AttentionPoint] = Field(description="every depth, from the original on")
