"""Follow a search plan by plan, as it judges them: by a callback, or a tracker of experiments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from secateur.core.plan import Plan
from secateur.core.score import METRICS, Metric


@dataclass(frozen=True)
class Judgment:
    """A plan as a search judged it.

    Attributes:
        step: Counts judgments from 0. A run that goes on after a kill counts from 0 again, what it knows included, so
            that the same search has the same steps.
        stage: The part of the search, such as `race`.
        plan: The plan in words; `nothing cut` is the unchanged model.
        metric: The name of the metric that decides.
        value: Its mean.
        loss: The mean loss of the right answer, nats a token; nan where the model gave no numbers.
        n: The examples that both are means over. A race judges on few of them first.
    """

    step: int
    stage: str
    plan: str
    metric: str
    value: float
    loss: float
    n: int


Log = Callable[[Judgment], None]
OpenLog = Callable[
    [str, Mapping[str, object]], AbstractContextManager[Log]
]  # from a run's name and its command


@dataclass
class SearchLog:
    """Numbers the judgments of one search, each (stage, plan, number of examples) once, and tells of them.

    Attributes:
        tell: Is called with each judgment.
        metric: The metric that decides.
    """

    tell: Log
    metric: Metric
    _told: set[tuple[str, Plan, int]] = field(default_factory=set)

    def add(self, stage: str, judged: Mapping[Plan, np.ndarray]) -> None:
        """Tell of plans by their OUTCOME rows."""
        for plan, outcomes in judged.items():
            key = (stage, plan, len(outcomes))
            if key in self._told or not len(outcomes):
                continue
            step, value, loss = len(self._told), self.metric.mean(outcomes), METRICS["loss"].mean(outcomes)
            self._told.add(key)
            self.tell(Judgment(step, stage, str(plan), self.metric.name, value, loss, len(outcomes)))
