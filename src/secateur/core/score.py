"""Outcomes per example, and the one number with its interval that is computed from them.

Outcomes are a numpy structured array, one row an example, because paired tests need every example and a search
compares thousands of plans. A metric names one column and which way is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pydantic import JsonValue

OUTCOME = np.dtype(
    [
        ("example", np.int64),  # index into Task.examples
        # nats per answer token: mean of −log p over the tokens of the gold answer. Of logged play −log p of an action,
        # or the squared error of one that is made of numbers; of an episode minus its return
        ("loss", np.float64),
        ("correct", np.float64),  # 1 / 0; nan where the task has no accuracy (text)
        ("correct_norm", np.float64),  # the same by log-likelihood per character; nan without choices
        (
            "choice_loss",
            np.float64,
        ),  # nats: −log of the gold choice's share of all choices' likelihood; nan without
        ("rank", np.int64),  # how many tokens are likelier than the first gold token; 0 is top-1
        (
            "predicted",
            np.int64,
        ),  # index of the chosen choice; first greedy token without choices; −1 for text
        ("tokens", np.int64),  # scored tokens of the gold answer
    ]
)


@dataclass(frozen=True)
class Metric:
    """A rule that turns outcomes into one number. `weighted` averages over tokens instead of examples.

    `column` is one of `OUTCOME`, `topK`, or with a minus before it the negative of a column.
    """

    name: str
    column: str
    unit: str
    higher_is_better: bool
    weighted: bool = False

    def values(self, outcomes: np.ndarray) -> np.ndarray:
        """Return one number per example (n,), in the metric's own direction."""
        if self.column.startswith("top"):
            hits: np.ndarray = (outcomes["rank"] < int(self.column[3:])).astype(np.float64)
            return hits
        column: np.ndarray = outcomes[self.column.removeprefix("-")]
        return -column if self.column.startswith("-") else column

    def mean(self, outcomes: np.ndarray) -> float:
        """Return the mean over examples, or over tokens where the metric is weighted."""
        weights = outcomes["tokens"] if self.weighted else None
        return float(np.average(self.values(outcomes), weights=weights))

    def gain(self, after: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Return paired differences of each example (n,), positive where `after` is better."""
        assert np.array_equal(after["example"], before["example"]), (
            "paired outcomes must be of the same examples"
        )
        difference: np.ndarray = self.values(after) - self.values(before)
        gain: np.ndarray = difference if self.higher_is_better else -difference
        return gain

    def contributions(self, after: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Return each example's contribution to the gain (n,): its paired difference times its weight.

        Scaled so that the plain mean is the gain of the metric's mean. Searches choose by these, as verdicts decide by
        the mean.
        """
        gain = self.gain(after, before)
        return gain * (before["tokens"] / before["tokens"].mean()) if self.weighted else gain


def loss_or_worst(outcomes: np.ndarray, name: str = "loss") -> float:
    """Return the mean loss; infinite where it is nan, so that the smallest of several is always a number."""
    loss = METRICS[name].mean(outcomes)
    return math.inf if math.isnan(loss) else loss


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "correct", "share", True),
        Metric("accuracy_norm", "correct_norm", "share", True),
        Metric("choice_loss", "choice_loss", "nats", False),
        Metric("loss", "loss", "nats/token", False),
        Metric("text_loss", "loss", "nats/token", False, weighted=True),
        Metric("top5", "top5", "share", True),
        Metric("top10", "top10", "share", True),
        Metric("action_loss", "loss", "nats/action", False, weighted=True),
        Metric("action_error", "loss", "squared error", False, weighted=True),
        Metric("return", "-loss", "reward", True),
        Metric("cost", "loss", "reward", False),
        Metric("success", "correct", "share", True),
    )
}
LOSSES: Mapping[str, str] = {
    "text": "text_loss",
    "trajectories": "action_loss",
    "continuous": "action_error",
    "episodes": "cost",
}
"""Kinds of tasks without answers → the metric in which less is better."""
PRIMARY: Mapping[str, str] = {**LOSSES, "episodes": "return"}
"""And the one that decides."""
OF_ANSWERS = frozenset({"accuracy", "accuracy_norm", "choice_loss", "loss", "top5", "top10"})


@dataclass(frozen=True)
class Score:
    """A mean with its interval.

    `ci` is 95 %, None where there are too few groups; `n` counts examples, `groups` the groups that were resampled.
    """

    metric: str
    value: float
    ci: tuple[float, float] | None
    n: int
    groups: int
    unit: str
    higher_is_better: bool

    def to_json(self) -> dict[str, JsonValue]:
        """Return plain values by field."""
        return {
            "metric": self.metric,
            "value": self.value,
            "ci": self.ci and list(self.ci),
            "n": self.n,
            "groups": self.groups,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
        }


def few_groups(groups: int) -> str:
    """Return the reason why there is no interval."""
    return f"too few groups for an interval: {groups}"


def metric_name(metric: str) -> str:
    """Return the metric in a reader's words."""
    names = {
        "accuracy": "Accuracy",
        "accuracy_norm": "Accuracy, length-normalized",
        "choice_loss": "Log-loss among the choices",
        "loss": "Log-loss of the right answer",
        "text_loss": "Loss on the text",
        "action_loss": "Log-loss of the logged actions",
        "action_error": "Squared error of the logged actions",
        "return": "Return",
        "cost": "Return, negated",
        "success": "Episodes that succeed",
    }
    return names.get(metric) or (f"Right answer in the top {metric[3:]}" if metric[:3] == "top" else metric)
