"""LASER as a method of `prune`: its options, and where its search and its report are. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.core.config import option
from secateur.core.plan import proved_as
from secateur.core.ranges import real, whole
from secateur.errors import SecateurError
from secateur.methods.forecasting import Habits
from secateur.methods.method import Method, own_part
from secateur.methods.options import GainConfig
from secateur.options import matrices_of

if TYPE_CHECKING:
    from secateur.core.plan import Plan
    from secateur.core.records.analysis import AnalysisRecord
    from secateur.core.records.record import Record
    from secateur.core.records.verdict import VerdictRecord
    from secateur.methods.forecasting import DryRun
    from secateur.methods.method import Proposal
    from secateur.report.cuts import LookedAt
    from secateur.report.frame import PageSection
    from secateur.session import Session

PAPER_FRACTIONS = (0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.01, 0.005)
# on small matrices the fractions never reach them, and rank 1 won in our trials
SMALL_RANKS = (0, 1, 2, 3, 5)


def _read_grid(flag: str, name: str) -> tuple[int, ...]:
    """Return the small ranks of the grid of this name. Raises: `SecateurError` for an unknown one."""
    if name not in ("full", "paper"):
        raise SecateurError(f"{flag} {name!r}: write full or paper.")
    return () if name == "paper" else SMALL_RANKS


@dataclass(frozen=True)
class LaserConfig(GainConfig):
    """The options of `--method laser`."""

    fractions: tuple[float, ...] = option(
        real(PAPER_FRACTIONS, 0, 1),
        "Ranks to try, as shares of the full rank.",
        python_only=True,
        typed=lambda _: None,
    )
    small_ranks: tuple[int, ...] = option(
        whole(SMALL_RANKS, 0),
        "Ranks to try: full, or paper (LASER's fractions without the small ranks).",
        "NAME",
        flags="--grid",
        read=_read_grid,
        typed=lambda ranks: None if ranks else "paper",  # others can be given in Python alone
        default_text="full",
    )
    compose: bool = option(True, "Also compose several cuts greedily.", flags="--compose/--no-compose")


class Laser(Method):
    """Low-rank truncation of single matrices, and several composed."""

    name = "laser"
    summary = "low-rank truncation of single matrices, and several composed"
    Config = LaserConfig
    goals = ("better",)
    habits = Habits(surviving=0.55, gains={"least": 0, "expected": 2, "most": math.inf})  # see docs/scale.md
    readings = ("spectrum", "curves", "tail", "frequency", "paraphrases")

    def check(self, session: Session) -> None:
        """Raise `UnknownName` for matrices or layers that the model does not have."""
        matrices_of(session.loaded.anatomy, session.options)

    def kinds(self, session: Session) -> Collection[str]:
        """Return the kinds of the matrices."""
        return set(map(proved_as, matrices_of(session.loaded.anatomy, session.options)))

    def search(self, session: Session) -> Proposal:
        """Screen by gradients, race on `select`, compose."""
        from secateur.methods.laser.readings import LaserReader
        from secateur.methods.laser.search import run

        judge = session.judge()
        return run(session, judge, LaserReader(session, judge))

    def dry_search(self, session: Session, dry: DryRun) -> None:
        """Search with drawn readings."""
        from secateur.methods.laser.readings import DryLaserReadings
        from secateur.methods.laser.search import run

        run(session, session.judge(), DryLaserReadings(session, dry))

    def record_types(self) -> tuple[type[Record], type[Record]]:
        """Return the types of its parts of verdict.json and analysis.json."""
        from secateur.methods.laser.records import LaserAnalysis, LaserSearchRecord

        return LaserSearchRecord, LaserAnalysis

    def sections(self, verdict: VerdictRecord, analysis: AnalysisRecord) -> Sequence[PageSection]:
        """Return the sweep, curves, spectra, answers of components, and how good the screen was."""
        from secateur.methods.laser.records import LaserAnalysis
        from secateur.methods.laser.report import sections

        return sections(verdict, own_part(analysis, LaserAnalysis))

    def looked_at(self, verdict: VerdictRecord, analysis: AnalysisRecord) -> LookedAt:
        """Return the matrices that were swept, screened or drawn as a curve."""
        from secateur.methods.laser.records import LaserAnalysis
        from secateur.methods.laser.report import looked_at

        return looked_at(own_part(analysis, LaserAnalysis))

    def check_reading(self, name: str, session: Session, split: str) -> None:
        """Raise `TaskError` where the task lacks what is read, `UnknownName` for matrices and layers."""
        from secateur.methods.laser.probe import check_reading

        self.check(session)
        check_reading(name, session, split)

    def read(self, name: str, session: Session, split: str, plan: Plan) -> Sequence[Record]:
        """Return the rows of a reading: singular values, or one of the four analyses of the paper."""
        from secateur.methods.laser.probe import READINGS

        return READINGS[name](session, split, plan)

    def reading_sections(self, name: str, rows: Sequence[Record]) -> Sequence[PageSection]:
        """Return the figures of a reading."""
        from secateur.methods.laser.report import reading_sections

        return reading_sections(rows)
