"""Guard against constant predictors: accuracy that a model reaches by giving one answer nearly always.

Knows labels, nothing of models or tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from secateur.core.comparison import ALPHA
from secateur.core.stats import group_sums, paired_z

if TYPE_CHECKING:
    from pydantic import JsonValue

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
    return bool(paired_z(change) > stats.norm.ppf(1 - ALPHA / 2))


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
