"""Describe in words how the unchanged model does on a task: its score beside chance and the most frequent right answer.

Works on the record of `evaluation/baseline.py`; knows nothing of models or tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.core.score import METRICS


def warning(found: Mapping[str, Any]) -> str | None:
    """Return a warning where the score is not shown to be above chance and majority; None elsewhere."""
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


def floors_text(found: Mapping[str, Any]) -> str:
    """Return `chance (50.0 %) or always ' no' (58.3 %)`; empty where the task has neither."""
    floors = [f"chance ({_percent(found['chance'])})"] if found["chance"] is not None else []
    if found["majority"]:
        floors.append(f"always {found['majority']['answer']!r} ({_percent(found['majority']['share'])})")
    return " or ".join(floors)


def baseline_text(found: Mapping[str, Any]) -> str:
    """Return one line: the deciding metric, the score, and the floors it is compared with."""
    beside = [f"on {found['n']} examples of {found['split']}"]
    if found["accuracy_norm"] is not None:
        beside.append(f"accuracy_norm, per character, {_percent(found['accuracy_norm'])}")
    shares = METRICS[found["metric"]].unit == "share"
    if shares and (floors := floors_text(found)):
        beside.append(f"{floors} without a model")
    if found["given"] and found["given"]["share"] >= 0.5:
        beside.append(f"it answers {found['given']['answer']!r} to {_percent(found['given']['share'])}")
    return f"{decides_text(found)}; {_score(found)} {'; '.join(beside)}"


_BY = {
    "accuracy": ", by the likeliest answer as a whole",
    "accuracy_norm": ", by the likeliest choice per character",
}


def decides_text(found: Mapping[str, Any]) -> str:
    """Return `accuracy decides, by the likeliest answer as a whole`."""
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
