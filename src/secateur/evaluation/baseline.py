"""What the unchanged model can do on a task, beside what takes no model: chance, and the most frequent answer.

An accuracy says little by itself: 58 % of yes-or-no questions may be what a model gets that always says no.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.core.baseline import warning
from secateur.core.comparison import compare
from secateur.core.score import METRICS, Metric
from secateur.tasks.example import Task


def floors(task: Task) -> dict[str, Any]:
    """What takes no model, read on the `select` split; None where there is no such thing. `chance` is the mean of
    1 / choices; `majority` the most frequent right answer and its share, where all questions have the same choices."""
    asked = task.of(task.split("select"))
    if task.kinds != {"choice"} or not asked:
        return {"chance": None, "majority": None}
    chance = float(np.mean([1 / len(example.choices) for example in asked]))
    if len({frozenset(example.choices) for example in asked}) > 1:
        return {"chance": chance, "majority": None}
    return {"chance": chance, "majority": _modal([example.choices[example.gold] for example in asked])}


def baseline(
    task: Task, split: str, examples: Sequence[int], outcomes: np.ndarray, metric: Metric, seed: int
) -> dict[str, Any]:
    """The score of a model on some examples of a split in the metric that decides, beside its floors.

    `outcomes`: its OUTCOME rows on `examples`. `given`: its most frequent choice and the share of questions it is given
    to. `warning`: a sentence where the score is not shown to be above the floors, else None.
    """
    score = compare(metric, outcomes, outcomes, task.groups(examples), seed=seed).before
    found = {"split": split, "metric": metric.name, "n": score.n}
    found |= {"value": score.value, "ci": score.ci and list(score.ci)} | floors(task)
    given = None
    if task.kinds == {"choice"}:
        chosen = zip(task.of(examples), outcomes["predicted"].tolist(), strict=True)
        given = _modal([example.choices[number] for example, number in chosen])
    other = METRICS["accuracy_norm"].mean(outcomes) if metric.name == "accuracy" else np.nan
    found |= {"given": given, "accuracy_norm": None if np.isnan(other) else other}
    return found | {"warning": warning(found)}


def _modal(answers: Sequence[str]) -> dict[str, Any]:
    answer, count = Counter(answers).most_common(1)[0]
    return {"answer": answer, "share": count / len(answers)}
