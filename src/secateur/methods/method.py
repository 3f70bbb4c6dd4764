"""The interface of a method of `prune`, and what a search gives back. Imports no torch.

A method is a class with a name, a configuration and a search. All that the command line, Python, the pipeline, the
report and the forecast need of it is here, so a method may live in one file of another package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from secateur.core.config import Config
from secateur.core.plan import Plan
from secateur.core.records.record import Record
from secateur.search.race import Choice

if TYPE_CHECKING:
    from secateur.core.records.analysis import AnalysisRecord
    from secateur.core.records.verdict import VerdictRecord
    from secateur.evaluation.evaluator import Evaluator
    from secateur.report.frame import PageSection
    from secateur.session import Session


@dataclass(frozen=True)
class Proposal:
    """The plan that a search proposes, and how it was found.

    `search` and `analysis` are records for verdict.json and analysis.json. `tried` counts plans, `evaluations` plans
    times examples. With a `margin` the verdict is about not being worse by more than that, in the metric's unit,
    rather than about being better. `best` is the best plan that was tried for gain, whether or not it was taken.
    """

    plan: Plan
    tried: int
    evaluations: int
    search: Record | dict[str, Any]
    analysis: Record | dict[str, Any] = field(default_factory=dict)
    margin: float | None = None
    best: Plan | None = None


class Method(ABC):
    """A way to find what a model does not need.

    `name` is what `--method` says, `summary` a phrase for `--help`, `Config` a frozen dataclass of options.
    """

    name: str
    summary: str
    Config: ClassVar[type[Config]] = Config

    @abstractmethod
    def check(self, session: Session) -> None:
        """Raise `SecateurError` for what cannot be searched, seen on a model without weights."""

    @abstractmethod
    def search(self, session: Session) -> Proposal:
        """Return the plan that is proposed. The test split is not touched."""

    def sections(self, verdict: VerdictRecord, analysis: AnalysisRecord) -> Sequence[PageSection]:
        """Return what the report shows of this method; `analysis.more` holds the keys that it wrote."""
        return ()


def taken(session: Session, choice: Choice) -> Plan:
    """Return the best plan where `select` shows that it gains; with --keep-unproven also where its mean is better."""
    kept = session.options.config.keep_unproven and choice.better
    return choice.best if choice.shown or kept else session.empty


class CountingJudge:
    """A judge that counts what a search asks, whether or not the ledger knew it."""

    def __init__(self, judge: Evaluator) -> None:
        self._judge = judge
        self._seen: dict[Plan, int] = {}

    def __call__(self, plans: Sequence[Plan], examples: Sequence[int], stage: str) -> dict[Plan, np.ndarray]:
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
