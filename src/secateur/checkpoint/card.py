"""The model card: what was cut from what, what it gained and cost, how to load it. Written from the records alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(verdict: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """README.md of a checkpoint, with the hub's front matter."""
    model, task = verdict["model"], verdict["task"]
    base = f"base_model: {model['name']}\n" if model.get("hub") else ""
    edits = "\n".join(
        f"- `{cut['site']}`: {cut['edit']} (full rank {cut['full_rank']})" for cut in verdict["cut"]
    )
    return f"""---
library_name: transformers
{base}tags:
- secateur
- pruning
- {verdict["search"]["method"]}
---

# {model["name"].rstrip("/").split("/")[-1]}, cut for {task["name"]}

**{verdict["verdict"]}** — {verdict["sentence"]}

| on held-out test examples (n = {verdict["n"]}) | before | after |
|---|---|---|
{_rows(verdict)}

## What was cut

{edits or "Nothing: no cut did better on the selection split."}

The result has the shapes of the original ({verdict["parameters"]["after"]:,} parameters) and loads with stock
transformers: `AutoModelForCausalLM.from_pretrained(FOLDER)`.

## What it cost elsewhere

{_effects(verdict)}

## How it was made

`{verdict["command"]}`

Model fingerprint `{model["fingerprint"]}`, task hash `{task["hash"]}`, seed {verdict["seed"]}, split seed {verdict["split_seed"]},
{verdict["candidates_tried"]} candidates tried. `plan.json` holds the cut, `verdict.json` every number, `report.html` the pictures.
"""


def _rows(verdict: Mapping[str, Any]) -> str:
    lines = [verdict, *verdict["secondary"]]
    return "\n".join(
        f"| {row['metric']} ({row['unit']}) | {_value(row['before'])} | {_value(row['after'])} |"
        for row in lines
    )


def _value(score: Mapping[str, Any]) -> str:
    low_high = score.get("ci")
    return f"{score['value']:.4g}" + (f" [{low_high[0]:.4g}, {low_high[1]:.4g}]" if low_high else "")


def _effects(verdict: Mapping[str, Any]) -> str:
    lines = [
        f"- {e['name']} ({e['unit']}): {_value(e['before'])} → {_value(e['after'])}"
        for e in verdict["side_effects"]
    ]
    lines += [f"- guard fired: {g['name']} ({g['detail']})" for g in verdict["guards"] if g["fired"]]
    return "\n".join(lines) or "No side effect was measured."
