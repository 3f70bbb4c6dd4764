"""The interface of a method of `prune`, and what a search gives back. Imports no torch.

A method is a class with a name, a configuration and a search. All that the command line, Python, the pipeline, the
report and the forecast need of it is here (its words for the forecast in `forecasting`), so a method may live in one
file of another package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from secateur.core.config import Config
from secateur.errors import SecateurError
from secateur.methods.forecasting import Habits
from secateur.methods.options import GainConfig

if TYPE_CHECKING:
    import numpy as np

    from secateur.core.plan import Plan
    from secateur.core.records.analysis import AnalysisRecord
    from secateur.core.records.record import Record
    from secateur.core.records.verdict import VerdictRecord
    from secateur.methods.forecasting import DryRun
    from secateur.report.cuts import LookedAt
    from secateur.report.frame import PageSection
    from secateur.search.race import Choice, Judge
    from secateur.session import Session


@dataclass(frozen=True)
class Proposal:
    """The plan that a search proposes, and how it was found.

    Args:
        tried: Plans that were judged.
        evaluations: Plans times examples.
        search: How the search went, for verdict.json.
        analysis: What the report shows of it, for analysis.json.
        margin: With a margin the verdict is about not being worse by more than that, in the metric's unit, rather
            than about being better.
        best: The best plan that was tried for gain, whether or not it was taken.
    """

    plan: Plan
    tried: int
    evaluations: int
    search: Record
    analysis: Record | None = None
    margin: float | None = None
    best: Plan | None = None


class Method(ABC):
    """A way to find what a model does not need.

    Attributes:
        name: What `--method` says.
        summary: A phrase for `--help`.
        Config: A frozen dataclass of options.
        goals: What `--goal` may say beside it: `better`, `smaller`, `faster`.
        readings: What `probe --what` reads by this method, if anything.
        habits: How its search decides, for a forecast.
    """

    name: str
    summary: str
    Config: ClassVar[type[Config]] = Config
    goals: tuple[str, ...] = ("smaller", "faster")
    readings: tuple[str, ...] = ()
    habits: Habits = Habits()

    @abstractmethod
    def check(self, session: Session) -> None:
        """Raise `SecateurError` for what cannot be searched, seen on a model without weights."""

    def kinds(self, session: Session) -> Collection[str]:
        """Return the kinds of edit that a search may propose, in the words of `core.plan.kinds_of`.

        They are proved before the search, and those of the plan before it is cut; without them the latter only.
        """
        return ()

    @abstractmethod
    def search(self, session: Session) -> Proposal:
        """Return the plan that is proposed. The test split is not touched."""

    def dry_search(self, session: Session, dry: DryRun) -> None:
        """Search as `search` does, without a model: the judges of `session` draw outcomes, readings are noted in `dry`.

        A method whose search only judges plans has nothing to add.
        """
        self.search(session)

    def sections(self, verdict: VerdictRecord, analysis: AnalysisRecord) -> Sequence[PageSection]:
        """Return what the report shows of this method; `analysis.extra_keys` holds the keys that it wrote."""
        return ()

    def record_types(self) -> tuple[type[Record], type[Record]]:
        """Return the types of what a search writes into verdict.json and analysis.json, for the documents."""
        from secateur.core.records.analysis import AnalysisRecord
        from secateur.core.records.verdict import SearchRecord

        return SearchRecord, AnalysisRecord

    def looked_at(self, verdict: VerdictRecord, analysis: AnalysisRecord) -> LookedAt:
        """Return what the search looked at, for the report's map of the model."""
        from secateur.report.cuts import LookedAt

        return LookedAt()

    def check_reading(self, name: str, session: Session, split: str) -> None:
        """Raise `SecateurError` for what cannot be read, seen on a model without weights."""
        self.check(session)

    def read(self, name: str, session: Session, split: str, plan: Plan) -> Sequence[Record]:
        """Return the rows of one of the `readings` of the model that `plan` leaves.

        Args:
            split: `probe` or `select`.
        """
        raise AssertionError(f"{self.name} has no reading {name}")

    def reading_sections(self, name: str, rows: Sequence[Record]) -> Sequence[PageSection]:
        """Return what the page of a reading draws above the table of its rows, of which there is one at least."""
        return ()


R = TypeVar("R", bound="Record")


def own_part(analysis: AnalysisRecord, kind: type[R]) -> R:
    """Return the part of analysis.json that a method wrote, as its own record.

    Args:
        kind: Type of that record, which ignores all other keys.

    Raises: `SecateurError` where a key is of another type.
    """
    known = {name: value for name, value in analysis.extra_keys.items() if value is not None} | {
        "base": analysis.base
    }
    return kind.from_values(known, "analysis.json", SecateurError, "Write it again with `secateur prune`.")


def taken(session: Session, choice: Choice) -> Plan:
    """Return the best plan where `select` shows that it gains; with --keep-unproven also where its mean is better."""
    keep_unproven = session.config(GainConfig).keep_unproven
    return choice.best if choice.shown or (keep_unproven and choice.better) else session.empty


class CountingJudge:
    """A judge that counts what a search asks, whether or not the ledger knew it."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._seen: dict[Plan, int] = {}

    def __call__(
        self, plans: Sequence[Plan], examples: Sequence[int], stage: str
    ) -> Mapping[Plan, np.ndarray]:
        self._seen |= {plan: max(len(examples), self._seen.get(plan, 0)) for plan in plans}
        return self._judge(plans, examples, stage)

    @property
    def tried(self) -> int:
        """The number of plans that cut something."""
        return sum(bool(plan.edits) for plan in self._seen)

    @property
    def evaluations(self) -> int:
        """The number of plans times examples."""
        return sum(self._seen.values())
