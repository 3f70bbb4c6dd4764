"""Describe in words how the unchanged model does on a task: its score beside chance and the most frequent right answer.

Works on the record of `evaluation/baseline.py`; knows nothing of models or tasks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from secateur.core.score import METRICS

if TYPE_CHECKING:
    from secateur.core.records.verdict import AnswerRecord, BaselineRecord


class Floored(Protocol):
    """A record of what needs no model: chance, and the most frequent right answer."""

    @property
    def chance(self) -> float | None: ...
    @property
    def majority(self) -> AnswerRecord | None: ...


def warning(record: BaselineRecord) -> str | None:
    """Return a warning where the score is not shown to be above chance and majority; None elsewhere."""
    if record.metric not in ("accuracy", "accuracy_norm") or record.ci is None:
        return None
    low, high = record.ci
    floor = max(record.chance or 0.0, record.majority.share if record.majority else 0.0)
    if low > floor:
        return None
    if record.chance is None:
        none = "the model gets none of these right; try --chat, --shots, or another prompt."
        return None if record.value > 0 else none
    norm = record.accuracy_norm
    if high < record.chance and norm is not None and norm > record.chance:
        return (
            f"{_score(record)} is below chance, {_percent(norm)} by accuracy_norm is not: the choices "
            "differ in length, and --objective accuracy_norm, which divides by it, is probably what you mean."
        )
    ways = "try --chat, --shots, or another prompt"
    if record.labelled:
        ways = "see that its labels mean what those of the rows do"
    return (
        f"{_score(record)} is not shown to be above {floors_text(record)}: the model may not do this task at all; "
        f"{ways}."
    )


def split_words(split: str) -> str:
    """Return what a split of a task is called elsewhere: `validation split` for `select`."""
    return {"probe": "calibration split", "select": "validation split", "test": "test split"}.get(
        split, split
    )


def floors_text(record: Floored) -> str:
    """Return `chance (50.0 %) or always ' no' (58.3 %)`; empty where the task has neither."""
    floors = [f"chance ({_percent(record.chance)})"] if record.chance is not None else []
    if record.majority:
        floors.append(f"always {record.majority.answer!r} ({_percent(record.majority.share)})")
    return " or ".join(floors)


def baseline_text(record: BaselineRecord) -> str:
    """Return sentences: the score beside what needs no model, what decides, and what so many examples can show."""
    shares, decides = METRICS[record.metric].unit == "share", decides_text(record)
    score = f"{_score(record)} on {record.n} examples of the {split_words(record.split)}"
    if shares and (floors := floors_text(record)):
        score += f"; without a model {floors}"
    decides = decides[0].upper() + decides[1:]
    if record.accuracy_norm is not None:
        decides += f"; per character (accuracy_norm) it is {_percent(record.accuracy_norm)}"
    sentences = [score, decides]
    if record.given and record.given.share >= 0.5:
        sentences.append(f"The model answers {record.given.answer!r} to {_percent(record.given.share)}")
    if shares:
        gain = 100 * resolved(record.n)
        sentences.append(
            f"{record.n} examples show a change from {gain:.1f} points on, where a cut changes one answer in ten"
        )
    return "".join(f"{sentence}. " for sentence in sentences).rstrip()


def no_room(record: BaselineRecord) -> str | None:
    """Return a warning where so many examples cannot show even the largest gain that is possible; None elsewhere."""
    gain, room = resolved(record.n), 1 - record.value
    if METRICS[record.metric].unit != "share" or room >= gain:
        return None
    return (
        f"no gain can be expected to show here: {_percent(record.value)} are right, {100 * room:.1f} points are left, "
        f"and {record.n} examples show gains from {100 * gain:.1f} points on. Give more or harder ones, or make the "
        "model smaller (--goal smaller), which needs no gain."
    )


def resolved(n: int) -> float:
    """Return the gain in accuracy that n examples show four times in five, where one answer in ten changes.

    Source: power of McNemar's test, (z₀.₉₇₅ + z₀.₈) √(discordance / n) (Connor 1987, Biometrics 43:207, to first
    order).
    """
    return (1.96 + 0.84) * math.sqrt(0.1 / n)


FOUND = ", by the answer that is found in the text that the model writes"
_BY = {
    "accuracy": ", by the likeliest answer as a whole",
    "accuracy_norm": ", by the likeliest choice per character",
}


def decides_text(record: BaselineRecord) -> str:
    """Return `accuracy decides, by the likeliest answer as a whole`."""
    by = FOUND if record.extracted and record.metric == "accuracy" else _BY.get(record.metric, "")
    return f"{record.metric.replace('_', ' ')} decides{by}"


def _score(record: BaselineRecord) -> str:
    name = record.metric.replace("_", " ")
    if METRICS[record.metric].unit != "share":
        ends = f" [{record.ci[0]:.3f}, {record.ci[1]:.3f}]" if record.ci else ""
        return f"{name} {record.value:.3f} {METRICS[record.metric].unit}{ends}"
    ends = f" [{100 * record.ci[0]:.1f}, {100 * record.ci[1]:.1f}]" if record.ci else ""
    return f"{name} {_percent(record.value)}{ends}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
