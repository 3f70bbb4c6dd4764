"""Count openings of a test split in the ledger: how they correct a p-value, and which margin was named first."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from secateur.core.ledger import Ledger, Opening
from secateur.core.plan import Plan
from secateur.core.stats import holm
from secateur.tasks.example import Task
from secateur.tasks.joint import alone

EVAL = " eval"  # ends the scope of a look without a test, which must not stand in for a verdict's p-value


@dataclass(frozen=True)
class CountedOpening:
    """An opening after it was counted.

    Attributes:
        p_value: Corrected by Holm for the `openings` of its test split, itself included.
        earlier: The first opening for the same claim, or for all metrics of the same plan, that came before.
    """

    p_value: float
    openings: int
    earlier: Opening | None

    def named_late(self, margin: float | None) -> bool:
        """Return whether `margin` was named after the split was opened."""
        return margin is not None and self.earlier is not None and self.earlier.margin != margin


def opening(
    scope: str, plan: Plan, metric: str, p_value: float = 1.0, margin: float | None = None
) -> Opening:
    """Return an opening that happens now."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Opening(scope, plan, metric, margin, p_value, now)


def untested_opening(scope: str, plan: Plan) -> Opening:
    """Return an opening for all metrics that tests nothing: p = 1."""
    return opening(scope + EVAL, plan, "")


def record_opening(ledger: Ledger, task: Task, opened: Opening) -> None:
    """Write down that the test split of `task` was opened."""
    ledger.record_opening(task.split_hash("test"), task.group_digests("test"), opened)


def count_opening(ledger: Ledger, task: Task, opened: Opening) -> CountedOpening:
    """Write down an opening of the test split of `task`, and correct its p-value for all openings in the ledger.

    These are openings of this split and of every split that shares enough with it; of a joint task, openings of its
    members' splits too. A claim (a plan in one metric) counts once however often it is looked at; what is corrected is
    the p-value given.
    """
    record_opening(ledger, task, opened)
    splits = [task, *(alone(task, member) for member in task.members)]
    openings = ledger.openings(*(split.split_hash("test") for split in splits))
    p_values = {each.claim: each.p_value for each in openings} | {opened.claim: opened.p_value}
    adjusted = dict(zip(p_values, holm([*p_values.values()]), strict=True))
    # the first opening of the plan, in this metric or in all; None where that is this one
    scopes, metrics = (opened.scope, opened.scope + EVAL), (opened.metric, "")
    first = next(o for o in openings if o.plan == opened.plan and o.scope in scopes and o.metric in metrics)
    return CountedOpening(adjusted[opened.claim], len(p_values), None if first == opened else first)
