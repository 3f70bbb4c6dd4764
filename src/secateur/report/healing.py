"""The page of a healed cut: teacher, unhealed and healed in one look, what healing cost, epoch by epoch, and texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.core.records.verdict import IntervalRecord
from secateur.report import tables
from secateur.report.epochs import STAGES, epochs, kept_loss
from secateur.report.frame import Figures, section
from secateur.report.healed_depth import healed_depth
from secateur.report.interval_plot import Dumbbell, panels
from secateur.report.markup import change, interval, key, metric_name, number, table, text

Record = Mapping[str, Any]
NAMES = {"teacher": "the original", "unhealed": "cut, unhealed", "healed": "healed"}


def healing_page(record: Record, also: Sequence[Record], figures: Figures) -> list[str]:
    """The sections of the page, from heal.json and those of other healed cuts."""
    return [
        hero(record),
        measures(record),
        cost(record),
        epochs(record, figures),
        healed_depth(record, also, figures),
        texts(record),
        f"<footer>{tables.heal_provenance(record)}</footer>",
    ]


def hero(record: Record) -> str:
    row = next((row for row in record["scores"] if row["recovered"]), record["scores"][0])
    back = row["recovered"]
    kind, sign, word = "neutral", "○", "no loss to heal"
    if back:
        low, high = back["ci"]
        kind, sign = ("better", "▲") if low > 0 else ("worse", "▼") if high < 0 else ("neutral", "○")
        word = f"{100 * back['value']:.0f} % came back" if back["value"] > 0 else "nothing came back"
    unit = row["unit"]
    cells = "".join(
        f'<div class="{side}"><small>{NAMES[side]}</small><b>{text(number(row[side]["value"], unit))}</b>'
        f"<span>{text(interval(row[side]['ci'], unit))}</span></div>"
        for side in NAMES
    )
    direction = "higher is better" if row["higher_is_better"] else "lower is better"
    unit_words = "share of questions" if unit == "share" else text(unit)
    small = f"<small>on select, {unit_words}, {direction}; intervals are 95&nbsp;%</small>"
    who = f"{text(record['cut']['name'])} <span>healed on</span> {text(record['task']['name'])}"
    return (
        f'<header class="{kind}"><p class="who">{who}</p>'
        f'<h1><span class="sign" aria-hidden="true">{sign}</span>{word}</h1>'
        f"{_sentences(record)}"
        f'<h2 class="what">{text(metric_name(row["metric"]))} {small}</h2>'
        f'<div class="big">{cells}</div>{_how_sure(record)}</header>'
    )


def _sentences(record: Record) -> str:
    """What came back, and what test says, a paragraph each."""
    said = [record["sentence"], *([record["test"]["sentence"]] if record["test"] else [])]
    return "".join(f'<p class="sentence">{text(one)}</p>' for one in said)


def _how_sure(record: Record) -> str:
    learned, test = record["trained_on"], record["test"]
    said = [
        f"{learned['select_examples']:,} select examples, never learned",
        "the epoch was chosen by their loss",
    ]
    if learned["chosen_by"] == "last epoch":
        said = ["select was learned too: its numbers say nothing about new examples"]
    said.append(_openings(test))
    return f'<p class="sure">{" · ".join(said)}</p>'


def _openings(test: Record | None) -> str:
    if test is None:
        return "test was not opened"
    many = f"{test['openings']} times, corrected for" if test["openings"] > 1 else "once"
    return f"{test['n']:,} test examples, opened {many}"


def measures(record: Record) -> str:
    """All metrics of all three: on select, on test where it was opened, and of what was watched on the side."""
    rows = [
        _dumbbell(row, metric_name(row["metric"]), f"select, n = {_n(record)}") for row in record["scores"]
    ]
    if record["test"]:
        n = f"test, n = {record['test']['n']:,}"
        rows += [_dumbbell(row, metric_name(row["metric"]), n) for row in record["test"]["scores"]]
    sides = [_dumbbell(row, row["name"], f"n = {row['n']:,}") for row in record["sides"]]
    legend = key(
        ("dot alternative", "the original"),
        ("dot before", "cut"),
        ("dot after", "healed"),
        ("bar95", "95&nbsp;% interval"),
    )
    folded = f'<details class="numbers"><summary>numbers</summary>{_numbers(record)}</details>'
    lead = "What healing brought back, and what it did to tasks that it was not for."
    drawn = panels(rows, _TITLES) + panels(sides, _SIDE_TITLES)
    return section("measured", "Original, cut, healed", lead, legend, drawn, _word(record), folded)


_TITLES = {"share": "Share of questions", "nats/token": "Loss"}
_SIDE_TITLES = {unit: f"{title}, on the side" for unit, title in _TITLES.items()}  # on a scale of its own


def _n(record: Record) -> str:
    return f"{record['trained_on']['select_examples']:,}"


def _dumbbell(row: Record, label: str, note: str) -> Dumbbell:
    sides = [IntervalRecord.model_validate(row[side]) for side in ("unhealed", "healed", "teacher")]
    better, gain = row["higher_is_better"], IntervalRecord.model_validate(row["gain"])
    if row["metric"] == "text_loss":
        ends = [number(math.exp(row[side]["value"]), "perplexity") for side in NAMES]
        note += f"; perplexity {', '.join(ends)}"
    return Dumbbell(label, note, row["unit"], *sides, difference=gain, higher_is_better=better)


def _word(record: Record) -> str:
    """The verdict on test, with its guards that fired."""
    test = record["test"]
    if not test:
        return '<p class="note">With --ledger FILE the healed model is compared to the original on test, once.</p>'
    fired = "".join(f" {text(guard['detail'])}." for guard in test["guards"] if guard["fired"])
    return f"<p>On test, healed against the original: <b>{text(test['verdict'])}</b>.{fired}</p>"


def _numbers(record: Record) -> str:
    test = record["test"]["scores"] if record["test"] else ()
    rows = [("select", row) for row in record["scores"]] + [("test", row) for row in test]
    rows += [(row["name"], row) for row in record["sides"]]
    head = ("", "of", *NAMES.values(), "healed − cut", "healed − original", "of the loss came back")
    return table(head, [_cells(where, row) for where, row in rows], source="heal.json")


def _cells(where: str, row: Record) -> list[str]:
    unit, back = row["unit"], row["recovered"]
    values = [f"{number(row[s]['value'], unit)} [{interval(row[s]['ci'], unit)}]" for s in NAMES]
    gaps = [
        f"{change(row[g]['value'], unit)} [{interval(row[g]['ci'], unit, signed=True)}]"
        for g in ("gain", "gap")
    ]
    share = f"{number(back['value'], 'share')} [{interval(back['ci'], 'share')}]" if back else ""
    return [text(cell) for cell in (metric_name(row["metric"]), where, *values, *gaps, share)]


def cost(record: Record) -> str:
    """Tokens, time and parameters, stage by stage."""
    rows = [
        [
            STAGES[stage["stage"]],
            f"{stage['trained_parameters']:,}",
            f"{stage['depths']:,}",
            f"{stage['tokens']:,}",
            f"{stage['seconds']:,.1f}",
            f"{stage['epochs'][0]['select_loss']:.4f} → {kept_loss(stage):.4f}",
        ]
        for stage in record["stages"]
    ]
    total = ["together", "", "", f"{record['tokens']:,}", f"{record['seconds']:,.1f}", ""]
    head = ("what was trained", "parameters", "depths compared", "tokens read", "seconds", "loss on select")
    parameters, teacher = record["cut"]["parameters"], record["teacher"]["parameters"]
    lead = (
        f"Taught on {record['trained_on']['examples']:,} examples of {text(record['task']['name'])}; a token counts as "
        f"often as it was read. The healed model has {parameters:,} parameters, the original {teacher:,}."
    )
    return section("cost", "What healing cost", lead, table(head, [*rows, total], source="heal.json"))


def texts(record: Record) -> str:
    """What each wrote after the same beginnings."""
    rows = [
        [
            f"<q>{text(one['prompt'])}</q>" if side == "teacher" else "",
            NAMES[side],
            f"<q>{text(one[side])}</q>",
        ]
        for one in record["samples"]
        for side in NAMES
    ]
    if not any(one[side] for one in record["samples"] for side in NAMES):
        return ""
    shown = (
        f'<div class="texts">{table(("after", "", "what the model says"), rows, source="heal.json")}</div>'
    )
    lead = "Greedily, each model from the same beginnings: a good loss can hide garbage."
    return section("texts", "What they say", lead, shown)
