"""Looks at a test split, as the ledger counts them: what they cost a p-value, and which margin was named first."""

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
class Count:
    """A p-value corrected by Holm for the `openings` of its test split, itself included; `earlier` is the first look at
    the same claim, or at all metrics of the same plan, that came before."""

    p_value: float
    openings: int
    earlier: Opening | None

    def named_late(self, margin: float | None) -> bool:
        """Whether `margin` was named after the split was opened."""
        return margin is not None and self.earlier is not None and self.earlier.margin != margin


def opening(
    scope: str, plan: Plan, metric: str, p_value: float = 1.0, margin: float | None = None
) -> Opening:
    """A look that happens now."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Opening(scope, plan, metric, margin, p_value, now)


def look(scope: str, plan: Plan) -> Opening:
    """A look at all metrics that tests nothing: p = 1."""
    return opening(scope + EVAL, plan, "")


def record(ledger: Ledger, task: Task, opened: Opening) -> None:
    """Write down that the test split of `task` was opened."""
    ledger.record_opening(task.split_hash("test"), task.group_digests("test"), opened)


def count(ledger: Ledger, task: Task, opened: Opening) -> Count:
    """Write down an opening of the test split of `task`, and correct its p-value for all openings in the ledger.

    These are of this split and of every split that shares enough with it, of a joint task of those of its members too.

    A claim (a plan in one metric) counts once however often it is looked at; what is corrected is the p-value given.
    """
    record(ledger, task, opened)
    splits = [task, *(alone(task, member) for member in task.members)]
    looks = ledger.openings(*(one.split_hash("test") for one in splits))
    p_values = {one.claim: one.p_value for one in looks} | {opened.claim: opened.p_value}
    adjusted = dict(zip(p_values, holm([*p_values.values()]), strict=True))
    return Count(adjusted[opened.claim], len(p_values), _earlier(looks, opened))


def _earlier(looks: list[Opening], opened: Opening) -> Opening | None:
    """The first look at the plan in this metric or in all; None where that is this one."""
    scopes, metrics = (opened.scope, opened.scope + EVAL), (opened.metric, "")
    same = (one for one in looks if one.plan == opened.plan and one.scope in scopes and one.metric in metrics)
    first = next(same)
    return None if first == opened else first
