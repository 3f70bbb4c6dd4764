"""One budget in which every kind of edit competes, as a method of `prune`: its options, and where its search is.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.core.config import option, share, words_of
from secateur.core.plan import proved_kinds
from secateur.core.ranges import real, whole
from secateur.errors import SecateurError, UnknownName, nearest
from secateur.methods.method import Method
from secateur.methods.options import BoundConfig, params_option

if TYPE_CHECKING:
    from secateur.core.records.analysis import AnalysisRecord
    from secateur.core.records.record import Record
    from secateur.core.records.verdict import VerdictRecord
    from secateur.methods.forecasting import DryRun
    from secateur.methods.method import Proposal
    from secateur.options import Options
    from secateur.report.frame import PageSection
    from secateur.session import Session

KINDS = ("heads", "neurons", "experts", "attentions", "ffns", "blocks", "folds", "maps", "matrices")
EVERY_KIND: tuple[str, ...] = ("all",)
PROMPT, NEW = 256, 32  # tokens


@dataclass(frozen=True)
class BudgetConfig(BoundConfig):
    """The options of `--method budget`."""

    params: float | None = params_option()
    kv_bytes: float | None = option(
        real(None, 0, 1, above=True, below=True, such="0.5, the share of the KV cache to keep"),
        "Go on until this share of the KV cache's bytes a token is left.",
        "SHARE",
        read=share,
    )
    latency: float | None = option(
        real(None, 0, 1, above=True, below=True, such="0.8, the share of the time to keep"),
        "Go on until a generation takes this share of its time, measured here.",
        "SHARE",
        read=share,
    )
    prompt: int = option(whole(PROMPT), "Time prompts of so many tokens, with --latency.", "TOKENS")
    new: int = option(whole(NEW), "Time so many new tokens after a prompt, with --latency.", "TOKENS")
    kinds: tuple[str, ...] = option(
        EVERY_KIND,
        f"Which kinds of edits compete: {','.join(KINDS)}, or all.",
        "NAMES",
        read=lambda flag, text: tuple(words_of(text)),
        typed=",".join,
        default_text="all",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latency is None and (self.prompt, self.new) != (PROMPT, NEW):
            raise SecateurError(
                "--prompt and --new say what is timed for --latency: give that too, such as 80%."
            )
        for kind in self.kinds or ("",):
            if kind not in (*KINDS, *EVERY_KIND):
                raise UnknownName(f"unknown kind of edit {kind!r}.{nearest(kind, KINDS)}")

    @property
    def competing(self) -> tuple[str, ...]:
        """Return the kinds that compete, in the order of `KINDS`."""
        return tuple(kind for kind in KINDS if kind in self.kinds or "all" in self.kinds)

    @property
    def factorize(self) -> bool:
        """Return True where matrices may be stored as two factors."""
        return "matrices" in self.competing

    @property
    def targets(self) -> Mapping[str, float]:
        """Return the shares to keep, by what they are of."""
        asked = {"params": self.params, "kv_bytes": self.kv_bytes, "latency": self.latency}
        return {name: value for name, value in asked.items() if value is not None}

    def check_beside(self, common: Options) -> None:
        """Raise `SecateurError` for `--zeroed`, which saves nothing."""
        if common.zeroed:
            raise SecateurError("--zeroed saves nothing, so there is no budget to keep to. Leave it out.")


class Budget(Method):
    """Edits of every kind compete: those go that cost the least measured loss for what they save."""

    name = "budget"
    summary = "edits of every kind compete for one budget, by measured loss"
    Config = BudgetConfig

    def check(self, session: Session) -> None:
        """Raise `UnknownName` for layers, `PlanError` where nothing can go, `SecateurError` for a far budget."""
        from secateur.methods.budget.search import check

        check(session)

    def kinds(self, session: Session) -> Collection[str]:
        """Return the kinds that compete."""
        competing, parts = session.config(BudgetConfig).competing, session.loaded.anatomy
        return proved_kinds(competing, parts.matrix_kinds, parts.foldable)

    def search(self, session: Session) -> Proposal:
        """Price edits on `probe`, take the best measured on `select`."""
        from secateur.methods.budget.readings import EditReader
        from secateur.methods.budget.search import run

        judge = session.judge()
        return run(session, judge, EditReader(session, judge))

    def dry_search(self, session: Session, dry: DryRun) -> None:
        """Search with drawn readings."""
        from secateur.methods.budget.readings import DryEditReadings
        from secateur.methods.budget.search import run

        run(session, session.judge(), DryEditReadings(session, dry))

    def record_types(self) -> tuple[type[Record], type[Record]]:
        """Return the types of its parts of verdict.json and analysis.json."""
        from secateur.methods.budget.records import BudgetAnalysis, BudgetSearchRecord

        return BudgetSearchRecord, BudgetAnalysis

    def sections(self, verdict: VerdictRecord, analysis: AnalysisRecord) -> Sequence[PageSection]:
        """Return loss against budget, and what was cut by kind."""
        from secateur.methods.budget.records import BudgetAnalysis
        from secateur.methods.budget.report import sections
        from secateur.methods.method import own_part

        return sections(verdict, own_part(analysis, BudgetAnalysis))
