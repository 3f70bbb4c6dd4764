"""Print records as tables. Text from data is printed as plain text, never as markup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from secateur.cli.terminal import Terminal, terminal
from secateur.core.baseline import baseline_text, decides_text, floors_text, split_words
from secateur.core.comparison import WORSE
from secateur.core.records.comparison import TransferRecord
from secateur.core.records.task_check import LengthsRecord, TaskCheckRecord
from secateur.core.records.verdict import (
    AlternativeRecord,
    BaselineRecord,
    DecisionRecord,
    GainsRecord,
    IntervalRecord,
    MemberRecord,
    ScoreRecord,
    SecondaryRecord,
    SideEffect,
    VerdictRecord,
)
from secateur.core.score import few_groups, metric_name
from secateur.core.site import in_words

WIDE = 110  # columns of a terminal that has room for layers in words
MEASURED = ("measured", "before", "after", "change [95 %]")  # columns
COLUMN_WORDS = {"n": "examples", "loss": "loss, nats", "choice_loss": "loss among choices"}
WORD_STYLE = {
    "improves": "bold green",
    "not worse": "bold green",  # by more than a margin
    "worse": "bold red",
    "no difference shown": "bold yellow",
}


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    whole: Sequence[str] = (),
) -> Table:
    """Return a table with numbers to the right and text to the left; columns in `whole` are never broken over lines."""
    made = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    rows = [list(row) for row in rows]
    for number, name in enumerate(columns):
        cells = [row[number] for row in rows]
        numeric = bool(rows) and all(isinstance(cell, int | float) or cell is None for cell in cells)
        lines = [line for cell in cells for line in show(cell).split("\n")]
        width = max(map(len, lines), default=0) if numeric or name in whole else None
        made.add_column(
            Text(name),
            justify="right" if numeric else "left",
            overflow="fold",
            min_width=width,
            no_wrap=name in whole,
        )
    for row in rows:
        made.add_row(*(Text(show(cell)) for cell in row))
    return made


def show(cell: object) -> str:
    """Return a number with four significant digits, nothing for None."""
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)


def with_interval(
    score: ScoreRecord | IntervalRecord | AlternativeRecord | Mapping[str, object], unit: str
) -> str:
    """Return `54.0 % [49.2, 58.7]`, or in the metric's own unit; says so where there were too few groups.

    Args:
        score: A record; plain JSON of one is read as one.
    """
    if isinstance(score, Mapping):
        score = (ScoreRecord if "groups" in score else IntervalRecord).model_validate(score)
    value = 0.0 if score.value is None else score.value
    scale, digits = (100, ".1f") if unit == "share" else (1, ".1f" if abs(value) >= 100 else ".3f")
    if score.ci:
        return f"{_in_unit(value, unit)} [{score.ci[0] * scale:{digits}}, {score.ci[1] * scale:{digits}}]"
    grouped = not isinstance(score, IntervalRecord) and score.groups is not None
    return _in_unit(value, unit) + (" [too few groups]" if grouped else "")


def _in_unit(value: float, unit: str) -> str:
    """Return `54.0 %`, or a number of nats, or a perplexity."""
    if unit == "share":
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"


def print_verdict(console: Terminal, verdict: VerdictRecord) -> None:
    """Print the end of `prune`: word, numbers, what was cut, what it cost elsewhere, what would have been free."""
    console.print()
    console.print(_word_and_sentence(verdict))
    console.print()
    rows = _tested(verdict)
    for task in verdict.tasks:
        shown: list[MemberRecord | SecondaryRecord] = [
            task,
            *(other for other in task.secondary if other.metric == "accuracy"),
        ]
        on = f"all {task.n:,} test examples of {task.name}"
        rows += [_row(f"{_measured(row)} on {on}", row) for row in shown]
    rows += [
        _row(f"{effect.name}, {effect.counted}" if effect.n else effect.name, effect)
        for effect in verdict.side_effects
    ]
    console.print(table(MEASURED, rows, whole=MEASURED[-1:]))
    console.print()
    cuts = [
        (in_words(cut.site), cut.site, f"{cut.shape[0]} × {cut.shape[1]}", cut.rank, cut.full_rank)
        for cut in verdict.cut
        if cut.kind == "truncate" and cut.shape
    ]
    if cuts:
        console.print(table(("cut", "address", "shape", "rank kept", "of"), cuts))
        console.print()
    if verdict.cut and verdict.gains and verdict.handed_over.holds == "cut":
        console.print(table(("size", "before", "after"), _sizes(verdict.gains), whole=("before", "after")))
        console.print()
    for note, fired in _notes(verdict):
        console.print(Text("· " + note, style="bold red" if fired else "dim"))


def print_places(console: Terminal, verdict: VerdictRecord, out: Path) -> None:
    """Print the last lines: where the checkpoint is and what it holds, where the report is."""
    console.print()
    handed_over, held, style = verdict.handed_over, "", ""
    if handed_over.holds != "cut":
        held = "the unchanged model"
    elif verdict.verdict == WORSE:
        held, style = "the cut model, WORSE than the original", "bold red"
    console.print(Text(f"checkpoint  {out}" + (f"  ({held})" if held else ""), style=style), soft_wrap=True)
    if handed_over.unproven:
        console.print(Text(f"cut plan    {out / handed_over.unproven}  (not carried out)"), soft_wrap=True)
    console.print(Text(f"report      {out / 'report.html'}"), soft_wrap=True)


def print_transfer(found: Mapping[str, object]) -> None:
    """Print the word, the numbers before and after, and what stands beside them."""
    record, console = TransferRecord.model_validate(found), terminal()
    where = f"{record.plan}: on {record.task}, in {record.model}"
    console.print(
        Text.assemble((record.verdict, WORD_STYLE[record.verdict.partition(" by ")[0]]), "  ", where)
    )
    console.print(table(MEASURED, _tested(record), whole=MEASURED[-1:]))
    if record.sibling:
        maps = (
            f"fitted anew: {', '.join(record.refitted)}"
            if record.refitted
            else "with nothing to be fitted anew"
        )
        console.print(
            Text(f"· The plan was made for other weights ({record.made_for}); {maps}.", style="dim")
        )
    if record.openings > 1:
        console.print(Text(f"· p is corrected for {record.openings} openings of this split.", style="dim"))
    for guard in record.guards:
        if guard.fired:
            console.print(Text(f"· {guard.name}: {guard.detail}", style="bold red"))


def print_each(console: Terminal, verdicts: Sequence[tuple[VerdictRecord, Path]]) -> None:
    """Print the end of `prune --each`: word, sentence and folder of every task."""
    for verdict, out in verdicts:
        console.print()
        console.print(Text.assemble((verdict.task.name, "bold"), ": ", _word_and_sentence(verdict)))
        console.print(Text(f"checkpoint  {out}"), soft_wrap=True)


def _word_and_sentence(verdict: VerdictRecord) -> Text:
    word = verdict.verdict
    return Text.assemble((word, WORD_STYLE[word.partition(" by ")[0]]), "  ", verdict.sentence)


def _sizes(gains: GainsRecord) -> list[tuple[str, str, str]]:
    """Return the sizes as stored."""
    sizes = (
        ("parameters", gains.parameters),
        ("bytes on disk", gains.bytes_on_disk),
        ("KV cache, bytes/token", gains.kv_bytes_per_token),
    )
    return [(name, f"{pair.before:,.0f}", f"{pair.after:,.0f}") for name, pair in sizes if pair is not None]


def _notes(verdict: VerdictRecord) -> Iterator[tuple[str, bool]]:
    """Yield everything that stands beside the word, as lines; and whether it is a warning."""
    if verdict.baseline:
        yield f"at the start: {baseline_text(verdict.baseline)}", bool(verdict.baseline.warning)
    if verdict.before.ci is None:
        yield few_groups(verdict.groups), True
    for guard in verdict.guards:
        yield f"{guard.name}: {guard.detail}", guard.fired
    for other in verdict.alternatives:
        if other.applicable and other.value is not None:
            value = with_interval(other, "share")
            yield f"instead of cutting, {other.name}: {other.detail} → {value}", False
    if verdict.cut:
        yield f"taken out: {verdict.cut_summary}", False
        if verdict.loads:
            first = next(place for place in verdict.loads.where if place.loads)
            why = f"; no stock checkpoint, because {verdict.loads.why}" if verdict.loads.why else ""
            yield f"loads by {first.how}{why}", False
    search = verdict.search
    lost = (
        ""
        if search.raced_out is None
        else f" ({search.screened_out or 0} were screened out, {search.raced_out} dropped in the race)"
    )
    times = (
        "once" if verdict.openings == 1 else f"{verdict.openings} times, which the p-value is corrected for"
    )
    size = verdict.task.splits.get("select")
    on = "the validation split" if size is None else f"the {size:,} examples of the validation split"
    yield (
        f"{verdict.candidates_tried:,} plans were tried on {on}, from {search.proposed:,} proposals{lost}: "
        f"{verdict.evaluations:,} evaluations of one plan on one example. The test split was opened {times}.",
        False,
    )


def _measured(row: DecisionRecord | SecondaryRecord | MemberRecord) -> str:
    """Return the metric with its unit, which a share needs not."""
    name = row.metric.replace("_", " ")
    return name if row.unit == "share" else f"{name} in {row.unit}"


def _tested(record: DecisionRecord) -> list[tuple[str, str, str, str]]:
    """Return a row for the metric that decides, and one for each beside it."""
    measured: list[DecisionRecord | SecondaryRecord] = [record, *record.secondary]
    return [_row(f"{_measured(row)} on {record.n:,} test examples", row) for row in measured]


def _row(
    name: str, row: DecisionRecord | SecondaryRecord | MemberRecord | SideEffect
) -> tuple[str, str, str, str]:
    before, after = (_in_unit(side.value, row.unit) if side else "" for side in (row.before, row.after))
    return name, before, after, _change(row)


def _change(row: DecisionRecord | SecondaryRecord | MemberRecord | SideEffect) -> str:
    """Return `+43.4 [38.5, 48.2]` in points or in the metric's unit, `×1.04 [1.02, 1.06]` of perplexities."""
    if isinstance(row, SideEffect) and row.ratio:
        return _with_ends(row.ratio, 1, "×{:.3f}", "{:.3f}")
    if not row.difference:
        return ""
    scale, digits = (100, ".1f") if row.unit == "share" else (1, ".3f")
    points = " points" if row.unit == "share" else ""
    return _with_ends(row.difference, scale, f"{{:+{digits}}}{points}", f"{{:+{digits}}}")


def _with_ends(measured: IntervalRecord, scale: float, value: str, end: str) -> str:
    ends = ", ".join(end.format(scale * number) for number in measured.ci or ())
    return value.format(scale * measured.value) + (f" [{ends}]" if ends else " [too few groups]")


# ------------------------------------------------------------------------------------------- what the other verbs show


def print_rows(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str | None = None,
    whole: Sequence[str] = (),
) -> None:
    console = terminal()
    if title:
        console.print(Text(title))
    console.print(table(columns, rows, whole=whole))


def print_scores(found: Mapping[str, Any]) -> None:
    """Print what `secateur eval` measured."""
    scores = [ScoreRecord.model_validate(score) for score in found["scores"]]
    start = BaselineRecord.model_validate(found["baseline"])
    rows = [(s.metric, with_interval(s, s.unit), s.n, s.groups, s.unit) for s in scores]
    title = f"{found['model']} on {found['task']} ({found['split']}), {found['plan']}"
    columns = ("metric", "value [95 %]", "n", "groups", "unit")
    print_rows(columns, rows, title=title, whole=columns[:2])
    if scores[0].ci is None:
        print(few_groups(scores[0].groups))
    floors = floors_text(start)
    beside = f"; hold it against {floors}, read on the validation split" if floors else ""
    terminal().print(Text(f"{decides_text(start)}{beside}"))
    if start.warning:
        terminal().print(Text(start.warning, style="bold red"))


def print_check(found: Mapping[str, Any]) -> None:
    """Print what was understood of a task."""
    check = TaskCheckRecord.model_validate(found)
    written = check.max_new_tokens
    words = {"probe": "calibration (probe)", "select": "validation (select)"}
    sizes = [f"{words.get(name, name)} {size:,}" for name, size in check.splits.items()]
    if check.groups != check.splits:
        sizes.append(f"in groups: {', '.join(f'{size:,}' for size in check.groups.values())}")
    longest = "no bound" if check.context is None else f"{check.context:,} tokens"
    rows = [
        ("format", check.format),
        ("examples", f"{check.examples:,} ({check.kind}; {check.metric} decides)"),
        ("splits", ", ".join(sizes)),
        *([("tokens of a prompt", _three(check.prompt_tokens))] if check.prompt_tokens else []),
        *([("tokens of an answer", _three(check.answer_tokens))] if check.answer_tokens else []),
        *(
            [("the model writes", f"up to {written:,} tokens, in which its answer is looked for")]
            if written
            else []
        ),
        *([("longest for the model", longest)] if check.model else []),
        *([("never read", ", ".join(check.unread))] if check.unread else []),
        ("without a model", floors_text(check) or "nothing to compare with"),
    ]
    print(f"{check.task}{f', in the tokens of {check.model}' if check.model else ''}\n")
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        print(f"{name:{width}}{value}")
    if check.model is None:
        print(
            "\n--model MODEL adds lengths in its tokens, what is too long for it, and three examples as it reads them."
        )
    for one in check.rendered:
        print(f"\n{split_words(one.split)}, {one.id}")
        print(f"{one.prompt} → {' + '.join(map(repr, one.answer))}")  # quoted: a space in front matters
        if one.choices is not None:
            print(f"choices: {', '.join(map(repr, one.choices))}")
    for problem in check.problems:
        terminal().print(Text(f"\n{problem}", style="bold red"))


def _three(lengths: LengthsRecord) -> str:
    if lengths.least == lengths.most:
        return f"{lengths.least:,}"
    return f"{lengths.least:,} to {lengths.most:,}, half of them at most {lengths.median:,.0f}"


def print_run(found: Mapping[str, Any]) -> None:
    """Print what `secateur show` knows of a run."""
    console = terminal()
    if found["verdict"] is not None:
        print_verdict(console, VerdictRecord.model_validate(found["verdict"]))
        console.print()
    else:
        console.print(Text(f"{found['run']['run']}: {found['run']['status']}, no verdict yet"))
    title = _listed(found)
    wide = console.width >= WIDE
    rows = [
        [in_words(cell) if wide and isinstance(cell, str) else cell for cell in trial.values()]
        for trial in found["trials"]
    ]
    names = (found["trials"] or [{}])[0]
    print_rows([COLUMN_WORDS.get(name, name.replace("_", " ")) for name in names], rows, title=title)


def _listed(found: Mapping[str, Any]) -> str:
    """Return how many cuts a run chose among, as its verdict counts them, and in which order they are listed."""
    metric, ties = metric_name(found["metric"]).lower(), metric_name(found["ties_by"]).lower()
    equal = "" if found["metric"] == found["ties_by"] else f", equal ones by {ties}"
    some = "" if found["on_select"] == found["tried"] else f", {found['on_select']:,} of them"
    words = (
        f"{found['tried']:,} cuts were tried{some} on the validation split. Best first: on most examples, then by "
        f"{metric}{equal}."
    )
    if found["for_curves"]:
        words += (
            f"\n{found['for_curves']:,} more were judged after the search, for the curves of the report; they were not "
            "chosen among and come last."
        )
    return words
