"""The first screen of a run's page: verdict, what was cut, what it cost, and three answers that changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from secateur.core.baseline import floors_text, split_words
from secateur.core.records.analysis import ChangedExample
from secateur.core.records.verdict import BaselineRecord, SideEffect, SpeedRecord, VerdictRecord
from secateur.core.score import METRICS, few_groups, metric_name
from secateur.core.site import in_words
from secateur.report.gains import short, unchanged_size
from secateur.report.markup import change, factor, interval, known, number, p_value, text
from secateur.report.pruned_units import by_block, dropped
from secateur.report.templating import fragment

SIGNS = {"improves": ("better", "▲"), "not worse": ("better", "✓"), "worse": ("worse", "▼")}  # else neither
MOST_EDITS, MOST_SIDES, MOST_ANSWERS = 5, 4, 3  # on the first screen; the sections below have all
LONGEST = 170  # characters of a prompt or an answer on the first screen
ARROW = "\u00a0→ "


def share_of(metric: str) -> str:
    """Return in words what a metric in shares is a share of."""
    return "share of episodes" if metric in ("return", "success") else "share of questions"


@dataclass(frozen=True)
class CostLine:
    """One line of what a cut cost or saved: its name, before and after, the change, and what it was measured on."""

    name: str
    values: str
    change: str = ""
    note: str = ""
    worse: bool = False


def sign_of(word: str) -> tuple[str, str]:
    """Return the CSS class and the sign of a verdict's word."""
    return SIGNS.get(word.partition(" by ")[0], ("neutral", "○"))


def short_name(model: str) -> str:
    """Return the last part of a path; a name of the hub, `user/name`, as it is."""
    return (
        model
        if model.count("/") < 2 and not model.startswith((".", "/"))
        else model.rstrip("/").split("/")[-1]
    )


def hero(verdict: VerdictRecord, changed: Sequence[ChangedExample] = ()) -> str:
    """Return the head of the page: the word, the sentence, before and after, and what that took.

    Args:
        changed: Examples whose answer changed; a few of them are shown.
    """
    kind, sign = sign_of(verdict.verdict)
    unit, too_few = verdict.unit, few_groups(verdict.groups)
    cells = [
        (name, number(side.value, unit), interval(side.ci, unit) or too_few)
        for name, side in (("before", verdict.before), ("after", verdict.after))
    ]
    gap = verdict.difference
    ends = interval(gap.ci, unit, signed=True) or too_few
    cells.append(("change", change(gap.value, unit, name_unit=False), ends))
    if not verdict.cut:
        cells = [("unchanged", *cells[0][1:])]
    return fragment(
        "run",
        "hero",
        kind=kind,
        sign=sign,
        verdict=verdict,
        model=short_name(verdict.model.name),
        metric=metric_name(verdict.metric),
        unit_words=share_of(verdict.metric) if unit == "share" else unit,
        direction="higher is better" if verdict.higher_is_better else "lower is better",
        cells=cells,
        start=start_text(verdict.baseline) if verdict.baseline else "",
        sure=how_sure(verdict),
        warning=verdict.baseline.warning if verdict.baseline else None,
        cuts=cut_words(verdict)[:MOST_EDITS],
        more_cuts=max(0, len(cut_words(verdict)) - MOST_EDITS),
        costs=costs(verdict),
        unchanged=unchanged_size(verdict),
        answers=[(KINDS[example.kind], shortened(example)) for example in telling(changed)],
        num_changed=len(changed),
    )


def start_text(record: BaselineRecord) -> str:
    """Return how the unchanged model did before the search, beside what needs no model."""
    score = f"{metric_name(record.metric).lower()} {number(record.value, METRICS[record.metric].unit)}"
    floors = floors_text(record)
    beside = f"; without any model, {floors}" if floors else ""
    return f"Before the search: {score} on {record.n:,} examples of the {split_words(record.split)}{beside}."


def how_sure(verdict: VerdictRecord) -> list[Markup]:
    """Return what the word rests on: p-value and test, examples, candidates, openings."""
    parts = [p_value(verdict.p_value), text(verdict.test)] if verdict.cut else []
    if verdict.n:
        clusters = f" in {verdict.groups:,} groups" if verdict.groups != verdict.n else ""
        parts.append(f"{verdict.n:,} test examples{clusters}, untouched until the end")
    if verdict.candidates_tried > 1:
        words = "chosen among {:,} candidates" if verdict.cut else "{:,} candidates were tried"
        parts.append(words.format(verdict.candidates_tried))
    if verdict.openings > 1:
        before = p_value(verdict.p_value_unadjusted)
        parts.append(f"test split opened {verdict.openings} times, corrected for (uncorrected {before})")
    return [Markup(part) for part in parts if part]


def hero_lines(verdict: VerdictRecord) -> tuple[str, str, str]:
    """Return in plain words the verdict, its metric before and after, and what was cut."""
    before, after = (number(side.value, verdict.unit) for side in (verdict.before, verdict.after))
    ends = interval(verdict.difference.ci, verdict.unit, signed=True)
    change_ends = f" (change {ends})" if ends else ""
    words = [f"{words} ({address})" if address else words for words, address in cut_words(verdict)]
    cut = "; ".join(words[:3]) + ("; ..." if len(words) > 3 else "")
    set_aside = "" if verdict.handed_over.holds == "cut" or not cut else ", set aside"
    line = f"{verdict.metric} {before} → {after}{change_ends}".replace("\u00a0", " ")
    return verdict.verdict, line, f"{cut}{set_aside}" if cut else "nothing cut"


# ----------------------------------------------------------------------------------------------- what was cut, and cost


def cut_words(verdict: VerdictRecord) -> list[tuple[str, str]]:
    """Return each edit in words with its address; where parts were dropped a line that counts them, then layers."""
    if any(item.kind == "drop" for item in verdict.cut):
        layers = [(f"{block.words}: {words}", str(block)) for block, words in by_block(dropped(verdict))]
        inside = [(in_words(item.edit), item.site) for item in verdict.cut if item.kind != "drop"]
        return [(verdict.cut_summary, ""), *layers, *inside]
    lines = []
    for item in verdict.cut:
        place = in_words(item.site)
        if item.kind == "truncate" and item.full_rank:
            lines.append((f"{place}: {item.rank:,} of {item.full_rank:,} components kept", item.site))
        else:
            lines.append((in_words(item.edit), item.site))
    return lines


def costs(verdict: VerdictRecord) -> list[CostLine]:
    """Return what the cut cost or saved: sizes, speeds, then the side tasks, those that lost most first."""
    if not verdict.cut:
        return []
    sizes = verdict.parameters
    lines = [_sized("Parameters", "", sizes.before, sizes.after)]
    if gains := verdict.gains:
        if gains.bytes_on_disk is not None:
            lines.append(_sized("On disk", "B", gains.bytes_on_disk.before, gains.bytes_on_disk.after))
        speeds = (("Prefill", gains.prefill), ("Decoding", gains.decode))
        lines += [_timed(name, speed) for name, speed in speeds if speed is not None]
        if gains.prefill is None and gains.kv_bytes_per_token is not None:  # what has no cache is never timed
            lines.append(CostLine("Speed", "not timed", note="to time it: secateur bench OUT"))
    sides = sorted(verdict.side_effects, key=_lost, reverse=True)
    return lines + [line for side in sides[:MOST_SIDES] if (line := _side(side)) is not None]


def _sized(name: str, unit: str, before: float, after: float) -> CostLine:
    if not known(before) or not known(after) or not before:
        return CostLine(name, short(after, unit))
    if before == after:
        return CostLine(name, short(before, unit), "unchanged")
    values = short(before, unit) + ARROW + short(after, unit)
    return CostLine(name, values, change(after / before - 1, "share", name_unit=False) + "\u00a0%")


def _timed(name: str, speed: SpeedRecord) -> CostLine:
    rates = [f"{rate:,.0f}" if known(rate) else "" for rate in (speed.before, speed.after)]
    values = rates[0] + ARROW + rates[1]
    return CostLine(name, values, factor(speed.speedup) if known(speed.speedup) else "", "tokens a second")


def _lost(side: SideEffect) -> float:
    """Return how much worse a side task became, as a share of what it was; 0 where that is not known."""
    if side.before is None or side.after is None or not known(side.before.value) or not side.before.value:
        return 0.0
    share = (side.after.value - side.before.value) / abs(side.before.value)
    return (-share if side.higher_is_better else share) if known(share) else 0.0


def _side(side: SideEffect) -> CostLine | None:
    if side.before is None or side.after is None:
        return None
    before, after = (number(score.value, side.unit) for score in (side.before, side.after))
    moved = ""
    if side.difference is not None:
        moved = change(side.difference.value, side.unit)
    elif side.ratio is not None and known(side.ratio.value):
        moved = factor(side.ratio.value)
    return CostLine(
        side.name, before + ARROW + after, moved, side.counted if side.n else "", side.shown_worse
    )


# ------------------------------------------------------------------------------------------------------ three answers

KINDS = {
    "recovered": ("recovered", "wrong → right"),
    "lost": ("lost", "right → wrong"),
    "changed": ("changed", "wrong → wrong"),
}


def telling(changed: Sequence[ChangedExample]) -> list[ChangedExample]:
    """Return a few examples that changed, at least one of each direction where there is one, short prompts first."""
    by_kind = {
        kind: sorted((example for example in changed if example.kind == kind), key=lambda e: len(e.prompt))
        for kind in KINDS
    }
    firsts = [examples[0] for kind in ("recovered", "lost") if (examples := by_kind[kind])]
    rest: Iterable[ChangedExample] = (e for kind in KINDS for e in by_kind[kind] if e not in firsts)
    shown = [*firsts, *rest][:MOST_ANSWERS]
    return sorted(shown, key=lambda example: list(KINDS).index(example.kind))


def shortened(example: ChangedExample) -> ChangedExample:
    """Return the example with the end of a long prompt, where the question stands, and the beginning of answers."""
    prompt = example.prompt.strip()
    answers = {"answer": example.answer, "before": example.before, "after": example.after}
    cut = {
        name: said.strip()[:LONGEST] + ("…" if len(said.strip()) > LONGEST else "")
        for name, said in answers.items()
    }
    return example.model_copy(
        update={**cut, "prompt": ("…" if len(prompt) > LONGEST else "") + prompt[-LONGEST:]}
    )
