"""The model card: what was cut from what, what it gained and cost, how to load it. Written from the records alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from secateur.checkpoint.loadability import Loads
from secateur.core.baseline import baseline_text
from secateur.core.comparison import WORSE
from secateur.core.loading import evidence_text
from secateur.core.noninferiority import bound_text
from secateur.core.plan import Plan
from secateur.core.score import few_groups


def model_card(verdict: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """README.md of a checkpoint, with the hub's front matter."""
    model, task = verdict["model"], verdict["task"]
    cut = verdict["handed_over"]["holds"] == "cut"
    warning = (
        "> **WORSE THAN THE ORIGINAL.** Do not use it in its place.\n\n" if cut and worse(verdict) else ""
    )
    title = f"cut for {task['name']}" if cut else f"unchanged: no cut for {task['name']} is shown to help"
    return f"""{_front_matter(model["name"], model["hub"], verdict["search"]["method"])}
# {_short(model["name"])}, {title}

{warning}**{verdict["verdict"]}** — {verdict["sentence"]}

| on held-out test examples (n = {verdict["n"]}) | before | after |
|---|---|---|
{_rows(verdict)}

## What was cut

{_what_was_cut(verdict, Plan.from_json(plan))}

## How to load it

{loads_markdown(verdict["loads"])}

{_by_task(verdict)}## What it cost elsewhere

{_effects(verdict)}

## How far to trust it

{_trust(verdict)}

## How it was made

`{verdict["command"]}`

Model fingerprint `{model["fingerprint"]}`, task hash `{task["hash"]}`, seed {verdict["seed"]},
split seed {verdict["split_seed"]}, {verdict["candidates_tried"]} candidates tried. `plan.json` holds the cut,
`verdict.json` every number, `report.html` the pictures.
"""


def worse(verdict: Mapping[str, Any]) -> bool:
    """Whether the cut was shown to be worse than the original, by more than any margin allows."""
    return verdict["verdict"] == WORSE


def _what_was_cut(verdict: Mapping[str, Any], plan: Plan) -> str:
    saved, aside = verdict["parameters"], verdict["handed_over"]
    edits = "\n".join(f"- {words}" for words in plan.descriptions)
    if edits:
        counted = f"{saved['before']:,} parameters before, {saved['after']:,} stored now"
        return f"{edits}\n\nIn all {verdict['cut_summary']}; {counted}."
    if not aside["unproven"]:
        return "Nothing."
    return f"Nothing in this checkpoint. Tried and set aside, in `{aside['unproven']}`: {aside['edits']}."


def loads_markdown(loads: Mapping[str, Any]) -> str:
    """The list of places, from the record of `Loads`."""
    lines = []
    for one in loads["where"]:
        known = evidence_text(one)
        how = f"`{one['how']}`" + (f", {known}" if known else "") if one["loads"] else f"no, {one['how']}"
        lines.append(f"- {one['place']}: {how}")
    why = [f"\nNot a stock checkpoint, because {loads['why']}."] if loads["why"] else []
    return "\n".join([*lines, *why])


def _trust(verdict: Mapping[str, Any]) -> str:
    lines = [
        f"- p = {verdict['p_value']:.2g} ({verdict['test']}); test split opened {verdict['openings']} time(s)"
    ]
    lines.append(f"- at the start: {baseline_text(verdict['baseline'])}")
    if verdict["before"]["ci"] is None:
        lines.append(f"- {few_groups(verdict['groups'])}")
    if margin := verdict.get("non_inferiority"):
        lines.append(f"- {margin['method']}: {bound_text(margin)}")
    lines += [f"- {guard['name']}: {guard['detail']}" for guard in verdict["guards"]]
    for other in verdict["alternatives"]:
        if other["applicable"]:
            lines.append(f"- instead of cutting, {other['name']} ({other['detail']}): {_value(other)}")
    return "\n".join(lines)


def unverified_card(model: str, hub: bool, plan: Plan, loads: Loads, made: Mapping[str, Any]) -> str:
    """README.md of a checkpoint that `apply` wrote: what was cut, and that nobody has measured what it did. `made` is
    what `stream` tells."""
    edits = "\n".join(f"- {words}" for words in plan.descriptions)
    return f"""{_front_matter(model, hub, "apply")}
# {_short(model)}, cut by hand

**Nothing was verified.** `secateur eval FOLDER --task TASK` measures what this model can do.

## What was cut

{edits or "Nothing: the plan is empty."}

Model fingerprint `{plan.model}`. `plan.json` holds the cut.

{_made(made)}

## How to load it

{loads_markdown(loads.to_json())}
"""


_CHECKED = {
    "logits": "The files were read back and compute what the cut model in memory computes.",
    "digests": "The files were read back and hold, bit for bit, what was written; nothing was computed with them.",
}


def _made(made: Mapping[str, Any]) -> str:
    """Which matrices were not decomposed exactly, and what the files were held to."""
    told = [_randomized(one) for one in made["svd"] if one["svd"] == "randomized"]
    return "\n".join([*told, *([""] if told else []), _CHECKED[made["check"]]])


def _randomized(told: Mapping[str, Any]) -> str:
    excess = told["excess"]
    more = "how much more is not bounded" if excess == inf else f"at most {excess:.2g} of that more"
    return (
        f"- {told['matrix']}, rank {told['rank']}: by the randomized method, seeded. It leaves "
        f"{told['residual']:.4f} of the matrix's norm; {more} than the exact decomposition would."
    )


def _front_matter(model: str, hub: bool, method: str) -> str:
    base = f"base_model: {model}\n" if hub else ""
    return f"---\nlibrary_name: transformers\n{base}tags:\n- secateur\n- pruning\n- {method}\n---\n"


def _short(model: str) -> str:
    return model.rstrip("/").split("/")[-1]


def _rows(verdict: Mapping[str, Any]) -> str:
    lines = [verdict, *verdict["secondary"]]
    return "\n".join(
        f"| {row['metric']} ({row['unit']}) | {_value(row['before'])} | {_value(row['after'])} |"
        for row in lines
    )


def _value(score: Mapping[str, Any]) -> str:
    low_high = score.get("ci")
    return f"{score['value']:.4g}" + (f" [{low_high[0]:.4g}, {low_high[1]:.4g}]" if low_high else "")


def _by_task(verdict: Mapping[str, Any]) -> str:
    """Each of several tasks by itself; nothing for one."""
    lines = [
        f"| {row['name']} (n = {row['n']}) | {row['metric']} | {_value(row['before'])} | {_value(row['after'])} | "
        f"{row['p_value']:.2g} |"
        for row in verdict["tasks"]
    ]
    head = "## Task by task\n\n| all test examples of | metric | before | after | p |\n|---|---|---|---|---|"
    return "\n".join([head, *lines, "", ""]) if lines else ""


def _effects(verdict: Mapping[str, Any]) -> str:
    lines = [
        f"- {e['name']} ({e['unit']}): {_value(e['before'])} → {_value(e['after'])}"
        for e in verdict["side_effects"]
    ]
    return "\n".join(lines) or "No side effect was measured."
