"""The page of a healed cut: original, cut and healed side by side, what healing cost, losses by epoch, and texts."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from secateur.core.score import metric_name
from secateur.core.writing import write_text
from secateur.errors import SecateurError
from secateur.report.frame import PageSection
from secateur.report.interval_plot import Dumbbell, panels
from secateur.report.markup import change, folded, interval, key, number, table, text
from secateur.report.page import assemble
from secateur.report.tables import folded_facts, joined
from secateur.training.records.heal import HealedScoreRecord, HealedTestRecord, HealRecord
from secateur.training.report.heal_figures import STAGES, depth_section, epochs_section

NAMES = {"teacher": "the original", "unhealed": "cut, unhealed", "healed": "healed"}
TITLES = {"share": "Share of questions", "nats/token": "Loss"}  # of panels, by unit
AGAIN = "Write it again with `secateur heal`."


def write_report_of(folder: Path, out: Path, also: Sequence[str | Path] = ()) -> Path:
    """Write the page of the healed cut in `folder`, with those in the folders `also` on its curves over depth.

    Raises: `SecateurError` for records that are missing, broken, or not of one original; `OutputError` for a page that
    cannot be written.
    """
    record, *others = (_read(Path(place) / "heal.json") for place in (folder, *also))
    return write_heal_report(record, out, others)


def _read(path: Path) -> HealRecord:
    if not os.path.exists(path):
        raise SecateurError(
            f"{path} is missing. A report needs the folder that `secateur prune` or `heal` wrote."
        )
    return HealRecord.read(path, SecateurError, AGAIN)


def write_heal_report(record: HealRecord, path: Path, also: Sequence[HealRecord] = ()) -> Path:
    """Write the page of a healed cut. Raises: as `render_heal`; `OutputError` for a page that cannot be written."""
    write_text(path, render_heal(record, also), "folder")
    return path


def render_heal(record: HealRecord, also: Sequence[HealRecord] = ()) -> str:
    """Return the page of a healed cut as HTML that loads nothing from anywhere.

    Args:
        record: What heal.json holds.
        also: The same of other healed cuts of the same original, for the curves over depth.

    Raises: `SecateurError` where they are of another original or task.
    """
    origins = {(one.teacher.fingerprint, one.task.hash) for one in (record, *also)}
    if len(origins) > 1:
        raise SecateurError(
            "these healed cuts are not of one original on one task, so their curves cannot be drawn together. Heal "
            "them with the same --task, --limit, --seqlen and --split-seed."
        )
    return assemble(f"healed: {record.cut.name}", heal_sections(record, also))


def heal_sections(record: HealRecord, also: Sequence[HealRecord] = ()) -> list[str | PageSection]:
    """Return the parts of the page, in order."""
    return [
        hero(record),
        scores_section(record),
        cost_section(record),
        epochs_section(record),
        depth_section(record, also),
        texts_section(record),
        f"<footer>{_provenance(record)}</footer>",
    ]


def hero(record: HealRecord) -> str:
    """Return the head of the page: how much came back, in one word, with the numbers of the three models."""
    row = next((row for row in record.scores if row.recovered), record.scores[0])
    kind, sign, word = "neutral", "○", "no loss to heal"
    if row.recovered:
        low, high = row.recovered.ci or (0.0, 0.0)
        kind, sign = ("better", "▲") if low > 0 else ("worse", "▼") if high < 0 else ("neutral", "○")
        back = row.recovered.value
        word = f"{100 * back:.0f} % came back" if back > 0 else "nothing came back"
    cells = "".join(
        f'<div class="{which}"><small>{NAMES[which]}</small><b>{text(number(score.value, row.unit))}</b>'
        f"<span>{text(interval(score.ci, row.unit))}</span></div>"
        for which, score in row.three.items()
    )
    direction = "higher is better" if row.higher_is_better else "lower is better"
    unit_words = "share of questions" if row.unit == "share" else text(row.unit)
    small = f"<small>on the validation split, {unit_words}, {direction}; intervals are 95&nbsp;%</small>"
    who = f"{text(record.cut.name)} <span>healed on</span> {text(record.task.name)}"
    sentences = "".join(f'<p class="sentence">{text(sentence)}</p>' for sentence in record.sentences)
    return (
        f'<header class="{kind}"><p class="who">{who}</p>'
        f'<h1><span class="sign" aria-hidden="true">{sign}</span>{word}</h1>'
        f"{sentences}"
        f'<h2 class="what">{text(metric_name(row.metric))} {small}</h2>'
        f'<div class="big">{cells}</div>{_evidence(record)}</header>'
    )


def _evidence(record: HealRecord) -> str:
    """Return on how many examples the numbers stand, and how often test was opened."""
    learned, test = record.trained_on, record.test
    facts = [
        f"{learned.select_examples:,} select examples, never learned",
        "the epoch was chosen by their loss",
    ]
    if learned.select_was_trained_on:
        facts = ["select was learned too: its numbers say nothing about new examples"]
    if test is None:
        facts.append("test was not opened")
    else:
        many = f"{test.openings} times, corrected for" if test.openings > 1 else "once"
        facts.append(f"{test.n:,} test examples, opened {many}")
    return f'<p class="sure">{" · ".join(facts)}</p>'


def scores_section(record: HealRecord) -> PageSection:
    """Return all metrics of the three models: on select, on test where it was opened, and of the side tasks."""
    n = f"select, n = {record.trained_on.select_examples:,}"
    rows = [_dumbbell(row, metric_name(row.metric), n) for row in record.scores]
    if record.test:
        n = f"test, n = {record.test.n:,}"
        rows += [_dumbbell(row, metric_name(row.metric), n) for row in record.test.scores]
    sides = [_dumbbell(row, row.name, f"n = {row.n:,}") for row in record.sides]
    # side tasks have panels, and so scales, of their own
    drawn = panels(rows, TITLES) + panels(
        sides, {unit: f"{title}, on the side" for unit, title in TITLES.items()}
    )
    legend = key(
        ("dot alternative", "the original"),
        ("dot before", "cut"),
        ("dot after", "healed"),
        ("bar95", "95&nbsp;% interval"),
    )
    head = ("", "of", *NAMES.values(), "healed − cut", "healed − original", "of the loss came back")
    cells = table(head, _score_rows(record), source="heal.json")
    lead = "What healing brought back, and what it did to tasks that it was not for."
    body = (legend, drawn, _verdict(record.test), folded(cells))
    return PageSection("measured", "Original, cut, healed", lead, body)


def _dumbbell(row: HealedScoreRecord, label: str, note: str) -> Dumbbell:
    if row.metric == "text_loss":
        perplexities = [number(math.exp(score.value), "perplexity") for score in row.three.values()]
        note += f"; perplexity {', '.join(perplexities)}"
    return Dumbbell(
        label,
        note,
        row.unit,
        row.unhealed,
        row.healed,
        row.teacher,
        difference=row.gain,
        higher_is_better=row.higher_is_better,
    )


def _verdict(test: HealedTestRecord | None) -> str:
    """Return the verdict on test, with its guards that fired."""
    if not test:
        return '<p class="note">With --ledger FILE the healed model is compared to the original on test, once.</p>'
    fired = "".join(f" {text(guard.detail)}." for guard in test.guards if guard.fired)
    return f"<p>On test, healed against the original: <b>{text(test.verdict)}</b>.{fired}</p>"


def _score_rows(record: HealRecord) -> Iterator[list[str]]:
    """Yield the table's rows: each metric with intervals, differences and the share that came back."""
    measured = [("select", row) for row in record.scores] + [("test", row) for row in record.test_scores]
    for where, row in [*measured, *((side.name, side) for side in record.sides)]:
        unit, back = row.unit, row.recovered
        values = [f"{number(score.value, unit)} [{interval(score.ci, unit)}]" for score in row.three.values()]
        changes = [
            f"{change(difference.value, unit)} [{interval(difference.ci, unit, signed=True)}]"
            for difference in (row.gain, row.gap)
        ]
        share = f"{number(back.value, 'share')} [{interval(back.ci, 'share')}]" if back else ""
        yield [text(cell) for cell in (metric_name(row.metric), where, *values, *changes, share)]


def cost_section(record: HealRecord) -> PageSection:
    """Return tokens, time and parameters, stage by stage."""
    rows = [
        [
            STAGES[stage.stage],
            f"{stage.trained_parameters:,}",
            f"{stage.depths:,}",
            f"{stage.tokens:,}",
            f"{stage.seconds:,.1f}",
            f"{stage.epochs[0].select_loss:.4f} → {stage.kept_loss:.4f}",
        ]
        for stage in record.stages
    ]
    total = ["together", "", "", f"{record.tokens:,}", f"{record.seconds:,.1f}", ""]
    head = (
        "what was trained",
        "parameters",
        "depths compared",
        "tokens read",
        "seconds",
        "loss, validation split",
    )
    lead = (
        f"Taught on {record.trained_on.examples:,} examples of {text(record.task.name)}; a token counts as often as it "
        f"was read. The healed model has {record.cut.parameters:,} parameters, the original "
        f"{record.teacher.parameters:,}."
    )
    return PageSection("cost", "What healing cost", lead, (table(head, [*rows, total], source="heal.json"),))


def texts_section(record: HealRecord) -> PageSection:
    """Return what each model wrote after the same beginnings; empty where none wrote anything."""
    rows = [
        [
            f"<q>{text(sample.prompt)}</q>" if which == "teacher" else "",
            NAMES[which],
            f"<q>{text(written)}</q>",
        ]
        for sample in record.samples
        for which, written in sample.three.items()
    ]
    shown = (
        f'<div class="texts">{table(("after", "", "what the model says"), rows, source="heal.json")}</div>'
    )
    lead = "Greedily, each model from the same beginnings: a good loss can hide garbage."
    wrote = any(written for sample in record.samples for written in sample.three.values())
    return PageSection("texts", "What they say", lead, (shown,) if wrote else ())


def _provenance(record: HealRecord) -> str:
    """Return where the numbers come from, down to the hashes, as one folded block."""
    cut, teacher, task = record.cut, record.teacher, record.task
    return folded_facts(
        {
            "command": f"<code>{text(record.command)}</code>",
            "cut": joined(cut.name, cut.architecture),
            "fingerprint": f"<code>{text(cut.fingerprint)}</code>",
            "original": joined(teacher.name, teacher.architecture),
            "its fingerprint": f"<code>{text(teacher.fingerprint)}</code>",
            "healed": f"<code>{text(record.fingerprint)}</code>",
            "task": joined(task.name, task.kind),
            "task hash": f"<code>{text(task.hash)}</code>",
            "learned": joined(*record.trained_on.splits),
            "versions": joined(*(f"{name} {v}" for name, v in record.provenance.versions.items())),
        }
    )
