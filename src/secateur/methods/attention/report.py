"""The section of the page about dropped attentions. No torch."""

from __future__ import annotations

from secateur.core.records.verdict import VerdictRecord
from secateur.core.score import metric_name
from secateur.methods.attention.records import AttentionAnalysis
from secateur.report.frame import PageSection
from secateur.report.markup import capital, number, table, text


def sections(verdict: VerdictRecord, analysis: AttentionAnalysis) -> list[PageSection]:
    """Return the metric and the loss on the validation split after each attention that went."""
    head = ("gone", "last to go", text(capital(metric_name(verdict.metric))), "loss")
    rows = [
        (
            str(point.attentions_removed),
            "none" if point.block is None else f"attention of block {point.block}",
            number(point.value, verdict.unit),
            number(point.loss, "nats"),
        )
        for point in analysis.attentions
    ]
    lead = "Attentions go one after another, the one without which the loss is lowest first."
    return [PageSection("attentions", "Which attentions can go", lead, (table(head, rows),))]
