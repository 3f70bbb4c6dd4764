"""What every method gives back, and a judge that keeps count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateur.core.plan import Plan
from secateur.evaluation.evaluator import Evaluator
from secateur.search.race import Choice
from secateur.session import Session


@dataclass(frozen=True)
class Proposal:
    """The plan and how it was come by. `search` and `analysis` are records for verdict.json and analysis.json.

    `tried` counts plans, `evaluations` plans times examples. With a `margin` the verdict is about not being worse by
    more than that, in the metric's unit, rather than about being better. `best` is the best plan that was tried for
    gain, whether or not it was taken.
    """

    plan: Plan
    tried: int
    evaluations: int
    search: dict[str, Any]
    analysis: dict[str, Any] = field(default_factory=dict)
    margin: float | None = None
    best: Plan | None = None


def taken(session: Session, choice: Choice) -> Plan:
    """The best plan where `select` shows that it gains; with --keep-unproven also where its mean is better."""
    kept = session.options.keep_unproven and choice.better
    return choice.best if choice.shown or kept else session.empty


class CountingJudge:
    """A judge that keeps count of what a search asked, whether or not the ledger knew it."""

    def __init__(self, judge: Evaluator) -> None:
        self._judge = judge
        self._seen: dict[Plan, int] = {}

    def __call__(self, plans: Sequence[Plan], examples: Sequence[int], stage: str) -> dict[Plan, np.ndarray]:
        self._seen |= {plan: max(len(examples), self._seen.get(plan, 0)) for plan in plans}
        return self._judge(plans, examples, stage)

    @property
    def tried(self) -> int:
        """Plans that cut something."""
        return sum(bool(plan.edits) for plan in self._seen)

    @property
    def evaluations(self) -> int:
        return sum(self._seen.values())
