"""What the unchanged model can do on a task, beside what takes no model: chance, and the most frequent answer.

An accuracy says little by itself: 58 % of yes-or-no questions may be what a model gets that always says no.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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
    return found | {"warning": _warning(found)}


def _modal(answers: Sequence[str]) -> dict[str, Any]:
    answer, count = Counter(answers).most_common(1)[0]
    return {"answer": answer, "share": count / len(answers)}


def _warning(found: Mapping[str, Any]) -> str | None:
    if found["metric"] not in ("accuracy", "accuracy_norm") or found["ci"] is None:
        return None
    low, high = found["ci"]
    floor = max(found["chance"] or 0.0, (found["majority"] or {"share": 0.0})["share"])
    if low > floor:
        return None
    if found["chance"] is None:
        none = "the model gets none of these right; try --chat, --shots, or another prompt."
        return None if found["value"] > 0 else none
    if high < found["chance"] and (found["accuracy_norm"] or 0.0) > found["chance"]:
        return (
            f"{_score(found)} is below chance, {_percent(found['accuracy_norm'])} by accuracy_norm is not: the choices "
            "differ in length, and --objective accuracy_norm, which divides by it, is probably what you mean."
        )
    return (
        f"{_score(found)} is not shown to be above {floors_text(found)}: the model may not do this task at all; try "
        "--chat, --shots, or another prompt."
    )


# ------------------------------------------------------------------------------------------------------------ in words


def floors_text(found: Mapping[str, Any]) -> str:
    """`chance (50.0 %) or always ' no' (58.3 %)`; empty where there are none."""
    told = [f"chance ({_percent(found['chance'])})"] if found["chance"] is not None else []
    if found["majority"]:
        told.append(f"always {found['majority']['answer']!r} ({_percent(found['majority']['share'])})")
    return " or ".join(told)


def baseline_text(found: Mapping[str, Any]) -> str:
    """One line: the score, and what it is to be held against."""
    beside = [f"on {found['n']} examples of {found['split']}"]
    if found["accuracy_norm"] is not None:
        beside.append(f"accuracy_norm, per character, {_percent(found['accuracy_norm'])}")
    if floors := floors_text(found):
        beside.append(f"{floors} without a model")
    if found["given"] and found["given"]["share"] >= 0.5:
        beside.append(f"it answers {found['given']['answer']!r} to {_percent(found['given']['share'])}")
    return f"{decides_text(found)}; {_score(found)} {'; '.join(beside)}"


_BY = {
    "accuracy": ", by the likeliest answer as a whole",
    "accuracy_norm": ", by the likeliest choice per character",
}


def decides_text(found: Mapping[str, Any]) -> str:
    """`accuracy decides, by the likeliest answer as a whole`."""
    return f"{found['metric'].replace('_', ' ')} decides{_BY.get(found['metric'], '')}"


def _score(found: Mapping[str, Any]) -> str:
    name = found["metric"].replace("_", " ")
    if METRICS[found["metric"]].unit != "share":
        ends = f" [{found['ci'][0]:.3f}, {found['ci'][1]:.3f}]" if found["ci"] else ""
        return f"{name} {found['value']:.3f} {METRICS[found['metric']].unit}{ends}"
    ends = f" [{100 * found['ci'][0]:.1f}, {100 * found['ci'][1]:.1f}]" if found["ci"] else ""
    return f"{name} {_percent(found['value'])}{ends}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
