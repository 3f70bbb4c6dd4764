"""The curves of a depth cut with healed cuts drawn on them: drop, what stands for blocks, and the same healed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secateur.methods.depth.records import DepthRecord
from secateur.methods.depth.report import WORDS, HealedPoint, curves, forms_key
from secateur.report.frame import Figures, place, section
from secateur.report.markup import MISSING, key, number, table, text

Record = Mapping[str, Any]


def healed_depth(record: Record, also: Sequence[Record], figures: Figures) -> str:
    """Nothing where the cut is no depth cut, or was judged on another task than it was healed on."""
    told = [one["depth"] for one in (record, *also) if one["depth"]]
    if not record["depth"]:
        return ""
    depth = max(told, key=lambda one: len(one["order"]))
    points = list(_points(depth["metric"], (record, *also)))
    if not points:
        return ""
    forms = list(dict.fromkeys(point["form"] for point in points))
    legend = key(*((f"line healed {form}", f"{WORDS[form]}, healed") for form in forms))
    lead = "The cut's own curves on select, with what became of it by healing."
    return section(
        "depth",
        "Without whole blocks, healed",
        f"{lead} More healed cuts of the same original: <code>secateur report OUT --also FOLDER</code>.",
        forms_key(DepthRecord.model_validate(depth)),
        legend,
        place("depth", _curves(depth, points), figures, layout="pair"),
        _beside(depth, points),
    )


def check_depth(depth: Record) -> None:
    """Draws what of a cut's own curves will be drawn, to no page. Raises what broken records raise."""
    _curves(depth, ())
    forms_key(DepthRecord.model_validate(depth))
    _beside(depth, ())


def _points(metric: str, records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """As the points of a form are, of every healed cut with one form for all its blocks."""
    for record in records:
        rows = {row["metric"]: row for row in record["scores"]}
        if record["gone"]["form"] is None or metric not in rows:
            continue
        loss = rows.get("loss") or rows["text_loss"]
        value = rows[metric]["healed"]["value"]
        yield {
            "form": record["gone"]["form"],
            "blocks": record["gone"]["blocks"],
            "blocks_removed": len(record["gone"]["blocks"]),
            "value": value,
            "loss": loss["healed"]["value"],
            "perplexity": math.exp(value) if metric == "text_loss" else None,
            "tokens": record["tokens"],
        }


def _beside(depth: Record, points: Sequence[Record]) -> str:
    """At every depth that was healed: each form, and each healed."""
    forms = [one["form"] for one in depth["series"]]
    rows = [
        [
            str(point["blocks_removed"]),
            text(", ".join(f"b{block}" for block in point["blocks"])),
            *(_value(depth, _at(depth, form, point["blocks_removed"])) for form in forms),
            f"<b>{_value(depth, point)}</b>, {WORDS[point['form']]}",
            f"{point['tokens']:,}",
        ]
        for point in sorted(points, key=lambda p: (p["blocks_removed"], p["form"]))
    ]
    head = ("gone", "which", *(WORDS[form] for form in forms), "healed", "tokens read")
    note = "perplexity" if depth["metric"] == "text_loss" else "on select"
    return f'<p class="note">{note}:</p>' + table(head, rows, source="heal.json")


def _at(depth: Record, form: str, count: int) -> Record | None:
    series = next(one for one in depth["series"] if one["form"] == form)
    return next((p for p in series["points"] if p["blocks_removed"] == count), None)


def _value(depth: Record, point: Record | None) -> str:
    if point is None:
        return MISSING
    if depth["metric"] == "text_loss":
        return text(number(math.exp(point["value"]), "perplexity"))
    return text(number(point["value"], depth["metric_unit"]))


def _curves(depth: Record, points: Sequence[Record]) -> list[Any]:
    healed = [HealedPoint(p["form"], p["blocks_removed"], p["value"], p["loss"]) for p in points]
    return curves(DepthRecord.model_validate(depth), healed)
