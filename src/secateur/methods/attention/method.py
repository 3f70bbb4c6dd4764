"""Whole attentions dropped by measured loss, as a method of `prune`: its options, and where its search is. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.core.config import option
from secateur.core.plan import DROPPED
from secateur.core.ranges import whole
from secateur.errors import PlanError, SecateurError
from secateur.methods.method import Method
from secateur.methods.options import BoundConfig

if TYPE_CHECKING:
    from secateur.core.records.analysis import AnalysisRecord
    from secateur.core.records.record import Record
    from secateur.core.records.verdict import VerdictRecord
    from secateur.methods.method import Proposal
    from secateur.report.frame import PageSection
    from secateur.session import Session


@dataclass(frozen=True)
class AttentionConfig(BoundConfig):
    """The options of `--method attention`."""

    attentions: int | None = option(
        whole(None),
        "Drop this many attentions, at most so many with --max-loss. [default: as --max-loss allows]",
        "N",
    )


class Attention(Method):
    """Drop whole attentions one at a time, each time the one whose removal raises the loss least."""

    name = "attention"
    summary = "whole attentions, by measured loss"
    Config = AttentionConfig

    def check(self, session: Session) -> None:
        """Raise `PlanError` where no attention can go, `SecateurError` where fewer can than are asked for."""
        from secateur.methods.attention.search import attentions_of

        number, can = session.config(AttentionConfig).attentions, len(attentions_of(session))
        if not can:
            raise PlanError("no attention of these blocks can go: earlier cuts took all.")
        if number is not None and number > can:
            raise SecateurError(
                f"--attentions {number}: only {can} of these blocks have an attention that can be dropped. Give 1 to "
                f"{can}."
            )

    def kinds(self, session: Session) -> Collection[str]:
        """Return attentions."""
        return {DROPPED["attn", ""]}

    def search(self, session: Session) -> Proposal:
        """Choose the order on `probe` and how many on `select`."""
        from secateur.methods.attention.search import run

        return run(session, session.judge())

    def record_types(self) -> tuple[type[Record], type[Record]]:
        """Return the types of its parts of verdict.json and analysis.json."""
        from secateur.methods.attention.report import AttentionAnalysis, AttentionSearchRecord

        return AttentionSearchRecord, AttentionAnalysis

    def sections(self, verdict: VerdictRecord, analysis: AnalysisRecord) -> Sequence[PageSection]:
        """Return what was lost with each attention that went."""
        from secateur.methods.attention.report import AttentionAnalysis, sections
        from secateur.methods.method import own_part

        return sections(verdict, own_part(analysis, AttentionAnalysis))
