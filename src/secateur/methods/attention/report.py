"""Records of dropped attentions in analysis.json and verdict.json, and their section of the page. No torch."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.analysis import BaseRecord
from secateur.core.records.record import Number, Record
from secateur.core.records.verdict import VerdictRecord
from secateur.core.score import metric_name
from secateur.core.site import Site
from secateur.report.frame import PageSection
from secateur.report.markup import capital, number, table, text


class AttentionSearchRecord(Record):
    """The course of dropping attentions."""

    method: str = Field(description="`attention`")
    proposed: int = Field(description="different plans that were judged, the original not counted")
    order: list[int] = Field(description="the blocks whose attentions went, in order")


class AttentionPoint(Record):
    """One depth of the search: so many attentions are gone."""

    attentions_removed: int = Field(description="how many are gone")
    block: int | None = Field(description="the block whose attention went last; null: none did")
    site: str | None = Field(default=None, description="the attention that went last")
    value: Number = Field(description="the metric on `select`")
    loss: Number = Field(description="nats per token on `select`")


class AttentionAnalysis(Record):
    """The part of analysis.json about dropped attentions."""

    base: BaseRecord = Field(description="the original on `select`")
    attentions: list[AttentionPoint] = Field(description="every depth, from the original on")


def _gone(point: AttentionPoint) -> str:
    if point.block is None:
        return "none"
    site = None if point.site is None else Site.parse(point.site)
    return site.words if site is not None and site.stack else f"attention of block {point.block}"


def sections(verdict: VerdictRecord, analysis: AttentionAnalysis) -> list[PageSection]:
    """Return the metric and the loss on the validation split after each attention that went."""
    head = ("gone", "last to go", text(capital(metric_name(verdict.metric))), "loss")
    rows = [
        (
            str(point.attentions_removed),
            _gone(point),
            number(point.value, verdict.unit),
            number(point.loss, "nats"),
        )
        for point in analysis.attentions
    ]
    lead = "Attentions go one after another, the one without which the loss is lowest first."
    return [PageSection("attentions", "Which attentions can go", lead, (table(head, rows),))]
