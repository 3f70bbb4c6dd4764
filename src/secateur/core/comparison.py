"""Compare two sets of outcomes of the same examples: choose the test and the interval that fit, and word the result.

At the end a guard against constant predictors: accuracy that a model reaches by giving one answer nearly always.
Knows outcomes (arrays) and labels, nothing of models or tasks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from secateur.core.score import Metric, Score
from secateur.core.stats import (
    DRAWS,
    FEWEST_GROUPS,
    LEVEL,
    Interval,
    effective_n,
    group_sums,
    mcnemar,
    paired_z,
    resample,
    sign_flip,
    tango,
    tango_counts,
    wilson,
)
from secateur.errors import SecateurError

if TYPE_CHECKING:
    from pydantic import JsonValue

ALPHA = 0.05
Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
IMPROVES, WORSE, NO_DIFFERENCE = "improves", "worse", "no difference shown"  # and `NonInferiority.word`


@dataclass(frozen=True)
class Comparison:
    """Two models compared on the same examples.

    `difference` is after − before in the metric's own direction, so a loss that falls has a negative one; `gained` says
    whether that is an improvement. Intervals are 95 %, None where there are too few groups for one.
    """

    before: Score
    after: Score
    difference: float
    difference_ci: Interval | None
    p_value: float
    test: str
    num_better: int
    num_worse: int

    @property
    def gained(self) -> bool:
        """Return True where the difference goes in the direction in which the metric improves."""
        return self.difference > 0 if self.before.higher_is_better else self.difference < 0

    def measured(self) -> dict[str, JsonValue]:
        """Return both scores and their difference (after − before, in the metric's own unit), without the test."""
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "difference": {"value": self.difference, "ci": self.difference_ci and list(self.difference_ci)},
            "gained": self.gained,
        }

    def to_json(self) -> dict[str, JsonValue]:
        """Return `measured()` with the p-value and the name of the test."""
        return self.measured() | {"p_value": self.p_value, "test": self.test}


def compare(
    metric: Metric, before: np.ndarray, after: np.ndarray, groups: np.ndarray, *, seed: int
) -> Comparison:
    """Compare two models on the same examples, with the test that fits the metric and the groups.

    0/1 metric, every example its own group: exact McNemar, Wilson, Tango. 0/1 metric, larger groups: sign
    flips by group, Wilson and Tango at the effective sample size. Loss: paired bootstrap, clustered by group,
    token-weighted where the metric is. With fewer than 10 groups no interval, and the exact sign flips for p.

    Args:
        before: OUTCOME array (n,) of the first model.
        after: OUTCOME array (n,) of the second model, of the same examples.
        groups: labels (n,); examples with one label were sampled together.

    Raises: `SecateurError` for values that are not finite.
    """
    gain = metric.gain(after, before)
    x, y = finite_values(metric, before, "before"), finite_values(metric, after, "after")
    num_groups = int(np.unique(groups).size)
    weights = before["tokens"] if metric.weighted else None
    intervals: Sequence[Interval | None]
    if num_groups < FEWEST_GROUPS:
        differences = (y - x) * (1 if weights is None else weights)
        intervals, test = [None] * 3, "sign-flip permutation by group"
        p = sign_flip(differences, groups, seed=seed)
    elif metric.unit != "share":
        intervals, p, test = _by_bootstrap(x, y, groups, weights, seed)
    elif num_groups == len(x):
        intervals = [wilson(x.sum(), x.size), wilson(y.sum(), y.size), tango(x, y)]
        p, test = mcnemar(x, y), "exact McNemar"
    else:
        intervals, p, test = _by_groups(x, y, groups, seed)

    def score(outcomes: np.ndarray, ci: Interval | None) -> Score:
        mean, unit = metric.mean(outcomes), metric.unit
        return Score(metric.name, mean, ci, len(x), num_groups, unit, metric.higher_is_better)

    return Comparison(
        score(before, intervals[0]),
        score(after, intervals[1]),
        difference=float(np.average(y - x, weights=weights)),
        difference_ci=intervals[2],
        p_value=p,
        test=test,
        num_better=int((gain > 0).sum()),
        num_worse=int((gain < 0).sum()),
    )


# intervals of before, after and after − before; p; the test in words
_Tested = tuple[Sequence[Interval | None], float, str]


def _by_groups(x: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int) -> _Tested:
    """Return Wilson's and Tango's intervals at the effective sample size of the groups."""
    sizes = [effective_n(values, groups) for values in (x, y, y - x)]
    gained, lost, n = float((y > x).mean()), float((y < x).mean()), sizes[2]
    intervals = [wilson(values.mean() * size, size) for values, size in zip((x, y), sizes[:2], strict=True)]
    intervals.append(tango_counts(gained * n, lost * n, n))
    return intervals, sign_flip(y - x, groups, seed=seed), "sign-flip permutation by group"


def _by_bootstrap(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, weights: np.ndarray | None, seed: int
) -> _Tested:
    drawn = resample([x, y, y - x], groups, weights, DRAWS, seed)
    clustered = "" if drawn.num_groups == len(x) else ", by group"
    intervals = [
        drawn.positive_interval(0, LEVEL),
        drawn.positive_interval(1, LEVEL),
        drawn.interval(2, LEVEL),
    ]
    return intervals, drawn.p_value(2), f"paired bootstrap{clustered}"


def finite_values(metric: Metric, outcomes: np.ndarray, when: str) -> np.ndarray:
    """Return the metric's value of each example. Raises: `SecateurError` where one is not finite, or there are none."""
    values = metric.values(outcomes)
    bad = int((~np.isfinite(values)).sum())
    if bad or not len(values):
        raise SecateurError(
            f"{metric.name} {when} the cut: {bad} of {len(values)} values are not finite, so nothing can be "
            "compared. Choose a metric this task has; if the loss is not finite, try a wider dtype."
        )
    return values


def verdict_word(
    p_value: float, gained: bool, guard_fired: bool, not_worse: str | None = None, harmed: bool = False
) -> str:
    """Return the word of the verdict: `improves`, `worse`, `not_worse`, or `no difference shown`.

    `improves` needs p < .05 in the right direction and a guard that did not fire; `worse` needs p < .05 in the
    wrong direction.

    Args:
        not_worse: the word for a loss that was shown to lie within a margin; None where that was not shown. It goes
            before `worse`, since a loss may be significant and still lie within the margin, and after `improves`, which
            says more.
        harmed: of several tasks, one got worse by more than any margin; that is `worse`, whatever their mean does.

    "No gain" contains "worse by more than the margin", so testing both, each at its level, needs no correction for
    two tests: closed testing (Marcus, Peritz, Gabriel 1976; Morikawa, Yoshida 1995, J. Biopharm. Stat. 5:297).
    """
    significant = p_value < ALPHA
    if harmed:
        return WORSE
    if significant and gained and not guard_fired:
        return IMPROVES
    if not_worse:
        return not_worse
    return WORSE if significant and not gained else NO_DIFFERENCE


def recovered(
    metric: Metric, original: np.ndarray, cut: np.ndarray, healed: np.ndarray, groups: np.ndarray
) -> tuple[float, Interval] | None:
    """Return the share of the metric's loss from `original` to `cut` that `healed` regained, and its 95 % interval.

    1 is all of it, above 1 more, below 0 means that more was lost. None where the cut is not shown to have lost
    anything, which fewer than FEWEST_GROUPS groups never show.

    Args:
        original, cut, healed: OUTCOME arrays (n,) of the same examples.
        groups: labels (n,); examples with one label were sampled together.

    Source: Fieller 1954 (J. R. Stat. Soc. B 16:175), by the linearized variances of means over groups.
    """
    if np.unique(groups).size < FEWEST_GROUPS:
        return None
    weights = cut["tokens"].astype(float) if metric.weighted else np.ones(len(cut))
    back, lost = metric.gain(healed, cut), metric.gain(original, cut)
    y, x = np.average(back, weights=weights), np.average(lost, weights=weights)
    sums = np.stack([group_sums(weights * (v - m), groups) for v, m in ((back, y), (lost, x))])
    (yy, xy), (_, xx) = sums @ sums.T / weights.sum() ** 2
    a = x * x - Z * Z * xx
    if x <= 0 or a <= 0:
        return None
    middle, rest = x * y - Z * Z * xy, y * y - Z * Z * yy
    spread = math.sqrt(max(0.0, middle * middle - a * rest))
    return float(y / x), (float((middle - spread) / a), float((middle + spread) / a))


# ------------------------------------------------------------------------------------------- constant predictors


OVER_ANSWERED = 0.5  # of the way from an answer's share among the gold answers to "always"


@dataclass(frozen=True)
class ConstantPredictor:
    """The result of the guard. Shares and accuracies are in 0..1.

    `answer` is the one given most often after the cut, `answer_*` its share of the answers. `applicable` is
    False where no two examples share a gold answer: a constant answer could be right once at most, and the
    guard cannot fire. `constant_before`: the original, too, over-answered its own most frequent answer.
    """

    applicable: bool
    fired: bool
    answer: str
    answer_gold: float
    answer_before: float
    answer_after: float
    majority_baseline: float
    modal_share_before: float
    modal_share_after: float
    balanced_before: float
    balanced_after: float
    constant_before: bool
    detail: str

    @property
    def hollow(self) -> bool:
        """Return True where it fired and the cut lost balanced accuracy that the original had.

        Then "no worse than before" would be true of accuracy alone. False where the original was a constant predictor
        as well and told the answers apart no better.
        """
        return self.fired and not (self.constant_before and self.balanced_before <= self.balanced_after)

    def to_json(self) -> dict[str, JsonValue]:
        """Return plain values by field."""
        return asdict(self)


def balanced_accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the mean over gold answers of the share of their examples that are right.

    A constant answer gets 1/answers.
    """
    classes = np.unique(np.asarray(gold), return_inverse=True)[1]
    right = np.asarray(gold) == np.asarray(predicted)
    return float((np.bincount(classes, weights=right) / np.bincount(classes)).mean())


def constant_predictor(
    gold: Sequence[str], before: Sequence[str], after: Sequence[str], groups: np.ndarray | None = None
) -> ConstantPredictor:
    """Return whether the model after the cut scores by giving one answer too often.

    It fires when both hold for the answer a given most often after the cut:
    1. a is over-answered, and more than before: its share lies at least half of the way from its share among
       the gold answers to "always", and above its share before the cut;
    2. balanced accuracy does not rise: its paired rise is below 1.96 standard errors (of the hypothesis that
       each group's contribution might as well have the other sign).

    So it fires on a collapse to the majority answer (LASER's 56.2 % cells) and on a switch from one constant
    to another (37.1 % to its complement), whatever p says. It does not fire where the model stops answering
    "the", where 95 % of the gold answers are alike and the model answers so, and where one answer grows but
    tells the classes apart.

    Args:
        gold: the right labels (n,).
        before: the original's labels (n,).
        after: the cut model's labels (n,).
        groups: labels (n,); examples with one label were sampled together. None: every example alone.
    """
    right, old, new = (np.asarray(labels) for labels in (gold, before, after))
    assert right.shape == old.shape == new.shape
    assert right.size > 0
    answer = _modal(new)[0]
    shares = [float((labels == answer).mean()) for labels in (right, old, new)]
    applicable = _modal(right)[1] > 1
    constant = _over_answered(right, new)
    collapsed = constant and shares[2] > shares[1]
    fired = applicable and collapsed and not _balanced_rises(right, old, new, groups)
    return ConstantPredictor(
        applicable=applicable,
        fired=fired,
        answer=str(answer),
        answer_gold=shares[0],
        answer_before=shares[1],
        answer_after=shares[2],
        majority_baseline=_modal(right)[1] / right.size,
        modal_share_before=_modal(old)[1] / right.size,
        modal_share_after=_modal(new)[1] / right.size,
        balanced_before=balanced_accuracy(gold, before),
        balanced_after=balanced_accuracy(gold, after),
        constant_before=_over_answered(right, old),
        detail=_reason(applicable, constant, collapsed, fired, str(answer), shares),
    )


def _over_answered(gold: np.ndarray, answers: np.ndarray) -> bool:
    """Return True where the most frequent answer lies at least half of the way from its gold share to "always"."""
    share, answered = (float((labels == _modal(answers)[0]).mean()) for labels in (gold, answers))
    return share < 1 and (answered - share) / (1 - share) >= OVER_ANSWERED


def _modal(labels: np.ndarray) -> tuple[object, int]:
    """Return the most frequent label and its count; the first to occur where several tie."""
    most: tuple[object, int] = Counter(labels.tolist()).most_common(1)[0]
    return most


def _balanced_rises(
    gold: np.ndarray, before: np.ndarray, after: np.ndarray, groups: np.ndarray | None
) -> bool:
    classes = np.unique(gold, return_inverse=True)[1]
    sizes = np.bincount(classes)
    change = (after == gold).astype(np.float64) - (before == gold)
    change /= sizes.size * sizes[classes]  # sums to the rise of balanced accuracy
    change = change if groups is None else group_sums(change, groups)
    return bool(paired_z(change) > NormalDist().inv_cdf(1 - ALPHA / 2))


def _reason(
    applicable: bool, constant: bool, collapsed: bool, fired: bool, answer: str, shares: list[float]
) -> str:
    if not applicable:
        return "not applicable: no two examples share a gold answer"
    gold, before, after = (f"{100 * share:.1f} %" for share in shares)
    shown = f"{answer!r} is given to {after} of the examples (before {before}, right for {gold})"
    if fired:
        return f"{shown}, and balanced accuracy does not rise: a constant answer would explain the score"
    if collapsed:
        return f"{shown}, but balanced accuracy rises with it"
    if constant:
        return f"{shown}: the model says little else, as it did before the cut"
    return f"{shown}: no constant answer"
