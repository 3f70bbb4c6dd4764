"""The section about depth: every form at every depth, where replacing loses to dropping, and samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from secateur.report.chart import ACCENT, AFTER, BEFORE, INK, Figure, counted_layout, level, line, marks
from secateur.report.depth_order import order
from secateur.report.frame import Figures, Record, Section, place, section, worst_allowed
from secateur.report.markup import capital, change, interval, key, known, metric_name, number, table, text

COLORS = {"fold": AFTER, "linear": "#6f9fbc", "drop": BEFORE}
HEALED = {"fold": "#7d3209", "linear": ACCENT, "drop": "#d98b52"}
WORDS = {
    "fold": "folded into the network before",
    "linear": "a linear map in their place",
    "drop": "dropped",
}


def depth(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """The metric at every depth, the loss beside it where that is not the metric, and the samples."""
    record = analysis.get("depth")
    if not record:
        return ""
    found = [*curves(record), *(_side(record, name, unit) for name, unit in record["side_units"].items())]
    return section(
        "depth",
        "Without whole blocks",
        "The same blocks gone in the same order, by what stands for them; judged on the selection split.",
        f"<p>{_chosen(record)} {replacing(record)}</p>",
        _fell_back(record),
        forms_key(record),
        place("depth", found, figures, layout="pair"),
        samples(record),
    )


def is_text(record: Record) -> bool:
    return record["metric"] == "text_loss"


def curves(record: Record, healed: Sequence[Record] = ()) -> list[Figure]:
    """The metric; beside it the loss, or of text, where the metric is the loss, the perplexity. `healed` are points
    with their form, drawn as curves of their own."""
    title, unit = metric_name(record["metric"]), record["metric_unit"]
    found = [curve(record, title, "value", unit, _bound(record), healed)]
    if is_text(record):
        bound = _bound(record)
        limit = None if bound is None else math.exp(bound)
        told = with_perplexity(record)
        found.append(curve(told, "Perplexity", "perplexity", "perplexity", limit, healed))
    elif record["metric"] != "loss":
        found.append(curve(record, "Loss", "loss", "nats/token", None, healed))
    return found


def with_perplexity(record: Record) -> Record:
    """The same with exp(metric) at every point."""
    return _with_field(record, "perplexity", lambda p: math.exp(p["value"]) if known(p["value"]) else None)


def _with_field(record: Record, name: str, value: Any) -> Record:
    told = [{**one, "points": [p | {name: value(p)} for p in one["points"]]} for one in record["series"]]
    return {**record, "series": told}


def forms_key(record: Record, *more: tuple[str, str]) -> str:
    forms = [one["form"] for one in record["series"]]
    bound = [("line base", "bound")] if _bound(record) is not None else []
    return key(*((f"line {form}", WORDS[form]) for form in forms), *bound, *more)


def _bound(record: Record) -> float | None:
    return worst_allowed(record, record["series"][0]["points"][0]["value"])


def _chosen(record: Record) -> str:
    count, of = record["series"][0]["points"][record["chosen"]]["blocks_removed"], record["num_blocks"]
    if not count:
        return "Chosen: no block may go within the bound."
    return f"Chosen: {count} of {of} blocks gone, {WORDS[record['form']]}."


def _fell_back(record: Record) -> str:
    """At which depths of which form runs are dropped, because a map does no better on `select`; and on how many tokens
    maps were fitted."""
    items = [
        f"<li>{point['blocks_removed']} gone, {WORDS[one['form']]}: {', '.join(map(_run, point['fell_back']))}</li>"
        for one in record["series"]
        for point in one["points"]
        if point.get("fell_back")  # records of an earlier day have none
    ]
    if "fit_tokens" not in record or all(one["form"] == "drop" for one in record["series"]):
        return ""
    tokens, d = record["fit_tokens"], record["d_model"]
    told = f"<p>Maps were fitted to {tokens:,} tokens of probe, {tokens / d:.1f} for each of {d:,} dimensions.</p>"
    if not items:
        return told
    return (
        f"{told}<p>Dropped instead, because on select, which no map was fitted to, the map does no better:</p>"
        f"<ul>{''.join(items)}</ul>"
    )


def _run(one: Record) -> str:
    first, last = one["blocks"][0], one["blocks"][-1]
    name = f"b{first}" if first == last else f"b{first} to b{last}"
    return f"{name} ({number(one['fitted'], 'nats')} nats with the map, {number(one['dropped'], 'nats')} without)"


def replacing(record: Record) -> str:
    """Where what stands for blocks does worse than dropping them: the worst such depth of each form, and how many."""
    compared = [
        (one["form"], point)
        for one in record["series"]
        for point in one["points"]
        if known((point.get("over_drop") or {}).get("value"))
    ]
    if not compared:
        return ""
    losing = {form: [p for f, p in compared if f == form and _worse(record, p) > 0] for form, _ in compared}
    said = [_losing(record, form, points) for form, points in losing.items() if points]
    return " ".join(said) or "Replacing does no worse than dropping at any depth."


def _worse(record: Record, point: Record) -> float:
    """How much worse than a drop of the same blocks."""
    value = point["over_drop"]["value"]
    return -value if record["higher_is_better"] else value


def _losing(record: Record, form: str, points: Sequence[Record]) -> str:
    worst, unit = max(points, key=lambda p: _worse(record, p)), record["metric_unit"]
    gap = worst["over_drop"]
    sure = " (not beyond chance)" if gap["ci"] and gap["ci"][0] <= 0 <= gap["ci"][1] else ""
    depths = ", ".join(str(p["blocks_removed"]) for p in points)
    where = f"with {depths} blocks gone" if depths != "1" else "with 1 block gone"
    at = f"at {worst['blocks_removed']} " if len(points) > 1 else ""
    ends = f" [{interval(gap['ci'], unit, signed=True)}]" if gap["ci"] else ""
    what = "Folding them loses" if form == "fold" else "A linear map loses"
    size = text(f"{change(gap['value'], unit)}{ends}")
    metric = text(metric_name(record["metric"]).lower())
    return f"<b>{what} to dropping</b> {where}: {at}{metric} {size} against the drop{sure}."


def _side(record: Record, name: str, unit: str) -> Figure:
    told = _with_field(record, name, lambda point: point["sides"].get(name))
    return curve(told, f"{capital(name)}, on the side", name, unit, None)


def curve(
    record: Record,
    title: str,
    field: str,
    unit: str,
    limit: float | None,
    healed: Sequence[Record] = (),
) -> Figure:
    """A field of every point over the number of blocks gone, a line for each form; what was chosen filled, or in its
    place healed cuts, a line for each form of theirs."""
    lines, values, rows = [], [limit] if limit is not None else [], []
    for words, style, series in [*_forms(record), *_healed(record, healed)]:
        points = [(p["blocks_removed"], p[field]) for p in series if known(p[field])]
        values += [y for _, y in points]
        rows += [[words, str(x), text(number(y, unit))] for x, y in points]
        hover = [f"<b>{words}</b><br>{x} blocks gone<br>{text(number(y, unit))}" for x, y in points]
        lines.append(line(points, hover, *style))
    best = record["series"][0]["points"][record["chosen"]]
    if known(best[field]) and not healed:
        at = [(best["blocks_removed"], best[field])]
        lines.append(marks(at, symbol="circle", size=12, color=ACCENT, line={"width": 2, "color": INK}))
    layout = counted_layout(record["num_blocks"], "blocks gone", values, unit)
    layout["shapes"] = [level(limit)] if limit is not None else []
    note = {"share": "%", "perplexity": "exp(loss)"}.get(unit, unit)
    return Figure(title, lines, layout, ("form", "blocks gone", title), rows, note)


Curve = tuple[str, tuple[str, str], Sequence[Record]]  # words, color and dash, points


def _forms(record: Record) -> Iterator[Curve]:
    for one in record["series"]:
        form = one["form"]
        yield WORDS[form], (COLORS[form], "dot" if form == "drop" else "solid"), one["points"]


def _healed(record: Record, points: Sequence[Record]) -> Iterator[Curve]:
    """From the original, of which nothing is gone that could be healed."""
    original = record["series"][0]["points"][0]
    for form in dict.fromkeys(point["form"] for point in points):
        own = sorted((p for p in points if p["form"] == form), key=lambda p: p["blocks_removed"])
        yield f"{WORDS[form]}, healed", (HEALED[form], "dot" if form == "drop" else "solid"), [original, *own]


def samples(record: Record) -> str:
    """A piece of text at each depth in each form, beside the loss: a good loss can hide garbage."""
    if not any(point["sample"] for one in record["series"] for point in one["points"]):
        return ""
    original = record["series"][0]["points"][0]
    rows = [_sample(record, "the original", original)]
    deepest = max(len(one["points"]) for one in record["series"])
    for depth_ in range(1, deepest):
        rows += [
            _sample(record, WORDS[one["form"]], one["points"][depth_])
            for one in record["series"]
            if depth_ < len(one["points"])
        ]
    head = ("gone", "in their place", "perplexity" if is_text(record) else "on select", "what the model says")
    said = f"<p>Greedily after <q>{text(record['prompt'])}</q>:</p>"
    return f'{said}<div class="texts">{table(head, rows)}</div>'


def _sample(record: Record, form: str, point: Record) -> list[str]:
    value = number(point["value"], record["metric_unit"])
    if is_text(record) and known(point["value"]):
        value = number(math.exp(point["value"]), "perplexity")
    return [str(point["blocks_removed"]), form, text(value), f"<q>{text(point['sample'])}</q>"]


SECTIONS: tuple[Section, ...] = (depth, order)
