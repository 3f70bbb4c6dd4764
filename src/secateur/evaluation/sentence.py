"""The verdict in one plain sentence, and what the checkpoint holds. From the record alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.core.comparison import ALPHA, IMPROVES, WORSE
from secateur.core.noninferiority import NOT_WORSE, bound_text, margin_text
from secateur.core.score import few_groups


def sentence(verdict: Mapping[str, Any]) -> str:
    """The verdict in one plain sentence."""
    scale, unit = (100, " %") if verdict["unit"] == "share" else (1, f" {verdict['unit']}")
    digits, step = (".1f", " points") if verdict["unit"] == "share" else (".3f", "")
    before, after, difference = (
        verdict[which]["value"] * scale for which in ("before", "after", "difference")
    )
    metric, n = verdict["metric"].replace("_", " "), f"{verdict['n']} test examples{_each_of(verdict)}"
    if not verdict["cut"]:
        return (
            f"{_why_nothing(verdict)}, so the model is unchanged: {metric} {before:{digits}}{unit} on {n}."
            f"{_where(verdict)}"
        )
    ci = verdict["difference"]["ci"]
    ends = ", ".join(f"{end * scale:+{digits}}" for end in ci) if ci else few_groups(verdict["groups"])
    p = verdict["p_value"]
    opened = verdict["openings"]
    test = verdict["test"] + (f", p corrected for {opened} openings of this split" if opened > 1 else "")
    margin = verdict.get("non_inferiority")
    bound = f"; {bound_text(margin)}" if margin else ""
    on = f"On {n}{',' if verdict['tasks'] else ''} that nothing was chosen by"
    return (
        f"{on}, {metric} went from {before:{digits}}{unit} to "
        f"{after:{digits}}{unit}: {difference:+{digits}}{step} [{ends}], "
        f"p {'< 1e-12' if p < 1e-12 else f'= {p:.2g}'} ({test}){bound}.{_task_by_task(verdict)}{_where(verdict)}"
    )


def _why_nothing(verdict: Mapping[str, Any]) -> str:
    """Why the search took nothing."""
    choice = verdict["search"].get("choice")
    if choice is None:
        gainless = verdict["search"].get("protocol") in ("threshold", "paper")
        return (
            "No direction is predicted to hurt"
            if gainless
            else "Nothing could go within the bound (--max-loss)"
        )
    if not choice["better"]:
        return f"None of {choice['tried']} cuts did better on the selection split"
    return (
        f"The selection split does not show that a cut helps (the best of {choice['tried']}: "
        f"p = {choice['p_value']:.2g}, corrected for all of them)"
    )


def _where(verdict: Mapping[str, Any]) -> str:
    """What the checkpoint holds, where that is not what one would expect from the word."""
    handed = verdict["handed_over"]
    if handed["unproven"]:
        which = "the cut plan" if verdict["cut"] else "the best plan that was tried"
        also = "" if verdict["cut"] else " (not measured on test)"
        return (
            f" The checkpoint holds the unchanged model; {which} lies in {handed['unproven']}{also}, and "
            "--keep-unproven writes the cut model."
        )
    fine = verdict["verdict"] == IMPROVES or verdict["verdict"].startswith(NOT_WORSE)
    if fine or handed["holds"] == "original":
        return ""
    margin = verdict.get("non_inferiority")
    if verdict["verdict"] == WORSE and margin:
        return f" THE CHECKPOINT HOLDS THE CUT MODEL, worse than the margin of {_margin(margin)} allows."
    return f" The checkpoint holds the cut model all the same{_unshown(verdict)}."


def _unshown(verdict: Mapping[str, Any]) -> str:
    """Says that not even the selection split showed a gain, where the cut was kept on request."""
    choice = verdict["search"].get("choice")
    if choice is None or choice["shown"]:
        return ""
    return f", though the selection split did not show a gain either (p = {choice['p_value']:.2g})"


def _margin(found: Mapping[str, Any]) -> str:
    return margin_text(found["margin"] if found["decides"] is None else found["decides"], found["unit"])


def _each_of(verdict: Mapping[str, Any]) -> str:
    """`, as many of facts as of recall` where there are several tasks."""
    names = [row["name"] for row in verdict["tasks"]]
    return f", as many of {' as of '.join(names)}" if names else ""


def _task_by_task(verdict: Mapping[str, Any]) -> str:
    """Which of several tasks got better and which worse, on all of their own test examples."""
    if not verdict["tasks"]:
        return ""
    told = []
    for row in verdict["tasks"]:
        scale, unit, digits = (100, " %", ".1f") if row["unit"] == "share" else (1, "", ".3f")
        was, now = (f"{row[which]['value'] * scale:{digits}}" for which in ("before", "after"))
        shown = "no difference shown" if row["p_value"] >= ALPHA else "better" if row["gained"] else "worse"
        told.append(f"{row['name']} {was} → {now}{unit} ({shown})")
    return f" Task by task: {', '.join(told)}."
