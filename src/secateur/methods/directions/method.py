"""Removal of singular directions as a method of `prune`: its options, and where its search is. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.core.config import option, options_of
from secateur.core.plan import WITH_MEAN, proved_as
from secateur.errors import SecateurError, UnknownName
from secateur.methods.forecasting import Habits
from secateur.methods.method import Method, own_part
from secateur.methods.options import GainConfig, StepConfig, max_loss_option
from secateur.options import matrices_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from secateur.core.plan import Plan
    from secateur.core.records.analysis import AnalysisRecord
    from secateur.core.records.record import Record
    from secateur.core.records.verdict import VerdictRecord
    from secateur.methods.forecasting import DryRun
    from secateur.methods.method import Proposal
    from secateur.report.cuts import LookedAt
    from secateur.report.frame import PageSection
    from secateur.session import Session

PROTOCOLS = ("search", "removal", "threshold", "paper")
LISTENING = {  # protocols that an option is for, if not for all
    "max_loss": ("removal",),
    "step": ("removal",),
    "target": ("removal", "paper"),
    "overall": ("paper",),
    "weakest": ("removal", "threshold", "paper"),
    "rescore": ("search", "removal"),
    "exhaustive": ("search",),
    "dynamic": ("search",),
}


@dataclass(frozen=True)
class DirectionsConfig(GainConfig, StepConfig):
    """The options of `--method directions`."""

    max_loss: float | None = max_loss_option("none, search for gain")
    protocol: str | None = option(
        None,
        "search (what helps most, by true evaluations), removal (as many as --max-loss allows), threshold (as many as "
        "the prediction allows), paper (a fixed --target of each matrix, 10% by default). "
        "[default: search, or removal with --max-loss or --target]",
        "NAME",
    )
    per_head: bool = option(
        False, "Each head's rows (of o: columns) have their own directions.", flags="--per-head"
    )
    overall: bool = option(
        False, "Protocol paper: the share of all in one list, not of each matrix.", flags="--overall"
    )
    dynamic: bool = option(
        True,
        "Also choose which kinds of matrices and which matrices, not only how many directions.",
        flags="--dynamic/--no-dynamic",
    )
    weakest: bool | None = option(
        None,
        "Those with the least effect go first, or those that hurt most. [default: signed; protocol removal: weakest]",
        flags="--weakest/--signed",
    )
    second_order: bool = option(False, "Add the Fisher term to the predicted change.", flags="--second-order")
    whitened: bool = option(
        False, "Directions of W C^½, C the second moment of what W reads.", flags="--whitened"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise UnknownName(f"unknown protocol {self.protocol!r}; it is one of {', '.join(PROTOCOLS)}.")
        for named in options_of(self):
            protocols = LISTENING.get(named.name, PROTOCOLS)
            value = vars(self)[named.name]
            if value != named.default and self.chosen_protocol not in protocols:
                flag = named.words(value)[0]
                raise SecateurError(
                    f"{flag} is for --protocol {' and '.join(protocols)}, not {self.chosen_protocol}."
                )

    @property
    def chosen_protocol(self) -> str:
        """The protocol that the user named; else `removal` where a bound is set, and `search` where none is."""
        if self.protocol is not None:
            return self.protocol
        return "search" if self.target is None and self.max_loss is None else "removal"


class RemoveSingularDirections(Method):
    """Removal of singular directions that hurt; their mean effect is folded into biases."""

    name = "directions"
    summary = "singular directions that hurt, folded into biases"
    Config = DirectionsConfig
    goals = ("better", "smaller")
    habits = Habits(surviving=0.5, gains={"least": 0, "expected": 1, "most": math.inf})  # see docs/scale.md
    readings = ("directions",)

    def check(self, session: Session) -> None:
        """Raise `UnknownName` for matrices and layers, `SecateurError` where zeros cannot stand for directions."""
        from secateur.methods.directions.search import check

        check(session)

    def kinds(self, session: Session) -> Collection[str]:
        """Return the kinds of the matrices, and the fold of means."""
        return {WITH_MEAN, *map(proved_as, matrices_of(session.loaded.anatomy, session.options))}

    def search(self, session: Session) -> Proposal:
        """Read effects on `probe`, choose directions and their number on `select`."""
        from secateur.methods.directions.readings import DirectionsReader
        from secateur.methods.directions.search import run

        judge, sites = session.judge(), matrices_of(session.loaded.anatomy, session.options)
        return run(session, judge, DirectionsReader(session, judge, sites))

    def dry_search(self, session: Session, dry: DryRun) -> None:
        """Search with drawn readings."""
        from secateur.methods.directions.readings import DryDirectionReadings
        from secateur.methods.directions.search import run

        run(session, session.judge(), DryDirectionReadings(session, dry))

    def record_types(self) -> tuple[type[Record], type[Record]]:
        """Return the types of its parts of verdict.json and analysis.json."""
        from secateur.methods.directions.records import DirectionsAnalysis, DirectionsSearchRecord

        return DirectionsSearchRecord, DirectionsAnalysis

    def sections(self, verdict: VerdictRecord, analysis: AnalysisRecord) -> Sequence[PageSection]:
        """Return what each direction is worth, how good predictions were, how far it went, what directions say."""
        from secateur.methods.directions.records import DirectionsAnalysis
        from secateur.methods.directions.report import sections

        return sections(own_part(analysis, DirectionsAnalysis).directions)

    def looked_at(self, verdict: VerdictRecord, analysis: AnalysisRecord) -> LookedAt:
        """Return the matrices whose directions were read, and how many of them were removed."""
        from secateur.methods.directions.records import DirectionsAnalysis
        from secateur.methods.directions.report import looked_at

        return looked_at(own_part(analysis, DirectionsAnalysis).directions)

    def check_reading(self, name: str, session: Session, split: str) -> None:
        """Raise `UnknownName` for matrices and layers that the model does not have, `SecateurError` as `check` does."""
        from secateur.methods.directions.search import check_read

        check_read(session)

    def read(self, name: str, session: Session, split: str, plan: Plan) -> Sequence[Record]:
        """Return the predicted change of the loss without each direction, by matrix or head."""
        from secateur.methods.directions.probe import read_directions

        return read_directions(session, split, plan)

    def reading_sections(self, name: str, rows: Sequence[Record]) -> Sequence[PageSection]:
        """Return the harm in each matrix, and the effects along the spectra of those that hurt most."""
        from secateur.methods.directions.records import DirectionsReading
        from secateur.methods.directions.report import reading_sections

        return reading_sections([row for row in rows if isinstance(row, DirectionsReading)])
