"""The section about how far pruning can go: curves of every order of removal, and the point that was chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from secateur.report.frame import Figures, Record, place, section, worst_allowed
from secateur.report.markup import capital, key, metric_name, number, text
from secateur.report.orders import Quantity, aim, chosen, noun, panels, removed

WIDE = 300  # pixels of the panels that decide; the others are smaller


def pruning(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """The curves of a pruning run, the chosen point on each."""
    record = analysis.get("pruning") or {}
    if not record.get("series"):
        return ""
    name = noun(record)
    main = place("pruning", panels(record, [*_deciding(record)]), figures, layout="pair")
    more = place("left", panels(record, _elsewhere(record)), figures, layout="multiples words")
    lead = f"Each step removes more {name}; what is left is judged on the selection split."
    title = "How much of the model can go" if name == "parameters" else f"How many {name} can go"
    return section(
        "pruning", title, lead, _chosen_words(record), _snapped(record), _legend(record), main, more
    )


def _deciding(record: Record) -> list[Quantity]:
    """The metric with its bound, and the loss beside it where that is not the metric."""
    metric, unit = record["metric"], record["metric_unit"]
    found = [Quantity(metric_name(metric), unit, _field("value"), _bound(record), WIDE)]
    if metric not in ("loss", "text_loss"):
        found.append(Quantity("Loss", "nats/token", _field("loss"), height=WIDE))
    return found


def _bound(record: Record) -> float | None:
    """Where the metric may go at worst: the original's value, `max_loss` worse."""
    start = next((p["value"] for s in record["series"] for p in s["points"] if removed(record, p) == 0), None)
    return worst_allowed(record, start)


def _elsewhere(record: Record) -> list[Quantity]:
    """What happens to the side tasks, and how much of what the heads did is left where some of it went."""
    points = [point for series in record["series"] for point in series["points"]]
    names = list(dict.fromkeys(name for point in points for name in point.get("sides") or ()))
    units = record.get("side_units") or {}
    found = [Quantity(capital(name), str(units.get(name, "")), _side(name)) for name in names]
    note = "share of what all heads had"
    scores = (("prefix_matching", "Prefix matching left"), ("copying", "Copying left"))
    moved = [
        (name, title) for name, title in scores if any(point.get(name) not in (None, 1) for point in points)
    ]
    return found + [Quantity(title, "share", _field(name), note=note) for name, title in moved]


def _side(name: str) -> Callable[[Record], Any]:
    return lambda point: (point.get("sides") or {}).get(name)


def _field(name: str) -> Callable[[Record], Any]:
    return lambda point: point.get(name)


def _legend(record: Record) -> str:
    orders = {series["order"] for series in record["series"]}
    seeds = sum(series["order"] == "random" for series in record["series"])
    band = f"random order: median, lowest to highest of {seeds}" if seeds > 1 else "random order"
    items = [("line rescored", "scored again at each step")] if "re-scored" in orders else []
    items += [("line once", "ranks read once")] if "ranks once" in orders else []
    items += [("band", band)] if seeds else []
    items += [("dot chosen", "chosen")] if record.get("chosen") else []
    items += [("line base", "bound")] if _bound(record) is not None else []
    items += [("aim", "target")] if aim(record) else []
    return key(*items)


def _chosen_words(record: Record) -> str:
    """What the chosen point costs, beside random order at the same share."""
    point = chosen(record)
    if point is None:
        return '<p class="aside">No point stayed within the bound, so nothing was chosen.</p>'
    share, unit, metric = removed(record, point), record["metric_unit"], metric_name(record["metric"])
    value = f"{metric[:1].lower()}{metric[1:]} {number(point.get('value'), unit)}"
    said = f"Chosen: {share:.1f} % of {noun(record)} removed, {value}{_random_words(record, share)}."
    return f'<p class="aside">{text(said)}</p>'


def _random_words(record: Record, share: float) -> str:
    value = Quantity("", "", _field("value"))
    random = [value.points(record, series) for series in record["series"] if series["order"] == "random"]
    reach = [points for points in random if points and points[0][0] <= share <= points[-1][0]]
    if not reach:
        return ""
    at = [np.interp(share, [x for x, _, _ in points], [y for _, y, _ in points]) for points in reach]
    low, high = (number(float(end(at)), record["metric_unit"]) for end in (min, max))
    return f"; in random order {low}" + (f" to {high}" if len(at) > 1 else "")


def _snapped(record: Record) -> str:
    said = record.get("snapped")
    return f'<p class="note">Shares are snapped to {text(said)}.</p>' if said else ""
