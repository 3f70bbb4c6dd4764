"""Removal of heads, feed-forward networks and experts as methods of `prune`: their options, and the way to
search and report.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.core.config import option
from secateur.core.plan import Drop, kinds_of
from secateur.core.ranges import whole
from secateur.methods.method import Method
from secateur.methods.options import StepConfig, params_option

if TYPE_CHECKING:
    from collections.abc import Collection

    from secateur.core.records.analysis import AnalysisRecord
    from secateur.core.records.record import Record
    from secateur.core.records.verdict import VerdictRecord
    from secateur.methods.forecasting import DryRun
    from secateur.methods.method import Proposal
    from secateur.report.frame import PageSection
    from secateur.session import Session


@dataclass(frozen=True)
class ComponentsConfig(StepConfig):
    """The options of `--method heads`, `ffns`, `components` and `experts`."""

    params: float | None = params_option()
    random_orders: int = option(
        whole(3, 0, 1000), "Random removal orders that are measured for comparison.", "N"
    )
    vote: int = option(
        whole(1, 1, 32),
        "Rank parts by so many pieces of probe, and combine the ranks.",
        "N",
    )
    portable: bool = option(
        False,
        "Only what a stock class can hold: the same number of heads and neurons everywhere, as it is of experts.",
        flags="--portable",
    )


class Components(Method):
    """Remove heads, feed-forward networks, both, or experts, step by step as far as the task allows."""

    Config = ComponentsConfig

    def __init__(self, name: str, summary: str) -> None:
        self.name, self.summary = name, summary

    def check(self, session: Session) -> None:
        """Raise `UnknownName` for layers, `PlanError` for parts the model has none of, `SecateurError` for a goal."""
        from secateur.methods.components.search import check

        check(session)

    def kinds(self, session: Session) -> Collection[str]:
        """Return the kinds of the parts that may go."""
        from secateur.methods.components.search import groups_of

        return kinds_of(Drop(site) for group in groups_of(session) for site in group.sites)

    def search(self, session: Session) -> Proposal:
        """Read importance on `probe`, choose how far to go on `select`."""
        from secateur.methods.components.search import search

        return search(session)

    def dry_search(self, session: Session, dry: DryRun) -> None:
        """Search with drawn readings."""
        from secateur.methods.components.readings import DryRemovalReadings
        from secateur.methods.components.search import groups_of, run

        judge = session.judge()
        run(session, judge, DryRemovalReadings(session, judge, groups_of(session), dry))

    def record_types(self) -> tuple[type[Record], type[Record]]:
        """Return the types of its parts of verdict.json and analysis.json."""
        from secateur.methods.components.records import ComponentsAnalysis, RemovalSearchRecord

        return RemovalSearchRecord, ComponentsAnalysis

    def sections(self, verdict: VerdictRecord, analysis: AnalysisRecord) -> list[PageSection]:
        """Return the curves of every order of removal, and what the parts are worth."""
        from secateur.methods.components.report import sections

        return sections(verdict, analysis)
