"""Depth pruning as a method of `prune`: its options, and the way to its search and report. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.core.config import option
from secateur.core.plan import DROPPED, MAPS
from secateur.core.ranges import whole
from secateur.errors import SecateurError
from secateur.methods.method import Method
from secateur.methods.options import BoundConfig

if TYPE_CHECKING:
    from collections.abc import Collection

    from secateur.core.records.analysis import AnalysisRecord
    from secateur.core.records.record import Record
    from secateur.core.records.verdict import VerdictRecord
    from secateur.methods.forecasting import DryRun
    from secateur.methods.method import Proposal
    from secateur.options import Options
    from secateur.report.cuts import LookedAt
    from secateur.report.frame import PageSection
    from secateur.session import Session

BY = ("loss", "linearity", "cosine")  # what blocks go by
BLOCKS = DROPPED["", ""]
FORMS = ("fold", "linear", "drop")  # what replaces them


@dataclass(frozen=True)
class DepthConfig(BoundConfig):
    """The options of `--method depth`."""

    blocks: int | None = option(whole(None), "Remove this many blocks. [default: as --max-loss allows]", "N")
    by: str = option("loss", "Which go first: by measured loss, linearity, or cosine.", "NAME", choices=BY)
    form: str = option(
        "fold",
        "fold (a linear map in the network before them, no new parameters), linear (a map of its own), or drop.",
        "NAME",
        choices=FORMS,
    )
    contiguous: bool = option(False, "One run of blocks.", flags="--contiguous")
    rank: int | None = option(
        whole(None), "With --form linear: each map is the identity plus a matrix of rank R.", "R"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None and self.form != "linear":
            raise SecateurError(f"--rank {self.rank} is for --form linear. Leave it out, or give that form.")

    def check_beside(self, common: Options) -> None:
        """Raise `SecateurError` for `--zeroed`: zeros cannot stand for a block."""
        if common.zeroed:
            raise SecateurError(
                "--zeroed keeps the original's shapes, and a block is more than its weights, so --method depth cannot "
                "leave zeros in its place. Leave it out."
            )


class Depth(Method):
    """Remove whole blocks; a linear map replaces them, or is folded into the network before them."""

    name = "depth"
    summary = "whole blocks, folded or linear"
    Config = DepthConfig
    goals = ("smaller", "faster")

    def check(self, session: Session) -> None:
        """Raise `UnknownName` for layers, `PlanError` for blocks that cannot go, `SecateurError` for sizes."""
        from secateur.methods.depth.search import check

        check(session)

    def kinds(self, session: Session) -> Collection[str]:
        """Return blocks, and the form of their maps."""
        form = session.config(DepthConfig).form
        return {BLOCKS, MAPS.get(form, BLOCKS)}

    def search(self, session: Session) -> Proposal:
        """Choose the order on `probe` and the depth on `select`."""
        from secateur.methods.depth.search import search

        return search(session)

    def dry_search(self, session: Session, dry: DryRun) -> None:
        """Search with drawn readings."""
        from secateur.methods.depth.readings import DryDepthReadings
        from secateur.methods.depth.search import run

        run(session, session.judge(), DryDepthReadings(session, dry))

    def record_types(self) -> tuple[type[Record], type[Record]]:
        """Return the types of its parts of verdict.json and analysis.json."""
        from secateur.methods.depth.records import DepthAnalysis, DepthSearchRecord

        return DepthSearchRecord, DepthAnalysis

    def sections(self, verdict: VerdictRecord, analysis: AnalysisRecord) -> list[PageSection]:
        """Return every form at every depth, and the order in which blocks went."""
        from secateur.methods.depth.report import sections

        return sections(verdict, analysis)

    def looked_at(self, verdict: VerdictRecord, analysis: AnalysisRecord) -> LookedAt:
        """Return the matrices of all blocks that were measured."""
        from secateur.methods.depth.report import looked_at

        return looked_at(verdict, analysis)
