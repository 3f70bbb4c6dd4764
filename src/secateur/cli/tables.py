"""Records as tables for people. What came from data is printed as plain text, never as markup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from secateur.cli.terminal import Terminal, terminal
from secateur.core.baseline import baseline_text, decides_text, floors_text
from secateur.core.comparison import WORSE
from secateur.core.score import few_groups

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
    """Numbers to the right, text to the left. Numbers and the columns in `whole` are never broken over lines."""
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


def show(cell: Any) -> str:
    """A number with four significant digits, nothing for None."""
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)


def with_interval(score: Mapping[str, Any], unit: str) -> str:
    """`54.0 % [49.2, 58.7]`, or in the metric's own unit."""
    text = _in_unit(score["value"], unit)
    scale, digits = (100, ".1f") if unit == "share" else (1, ".1f" if abs(score["value"]) >= 100 else ".3f")
    if score.get("ci"):
        text += f" [{score['ci'][0] * scale:{digits}}, {score['ci'][1] * scale:{digits}}]"
    elif "groups" in score:
        text += " [too few groups]"
    return text


def _in_unit(value: float, unit: str) -> str:
    """`54.0 %`, or a number of nats, or a perplexity."""
    if unit == "share":
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"


def print_verdict(console: Terminal, verdict: Mapping[str, Any]) -> None:
    """The end of the main job: word, numbers, what was cut, what it cost elsewhere, what would have been free."""
    console.print()
    console.print(_said(verdict))
    console.print()
    rows = [_row(f"{row['metric']} on test", row) for row in (verdict, *verdict["secondary"])]
    rows += [_row(f"{row['metric']} on all test of {name}", row) for name, row in _by_task(verdict)]
    rows += [_row(effect["name"], effect) for effect in verdict["side_effects"]]
    console.print(table(("measured", "before", "after", "change [95 %]"), rows, whole=("change [95 %]",)))
    console.print()
    cuts = [
        (cut["site"], f"{cut['shape'][0]} × {cut['shape'][1]}", cut["rank"], cut["full_rank"])
        for cut in verdict["cut"]
        if cut["kind"] == "truncate"
    ]
    if cuts:
        console.print(table(("cut", "shape", "rank kept", "of"), cuts))
        console.print()
    if verdict["cut"] and holds_cut(verdict):
        console.print(table(("size", "before", "after"), list(_saved(verdict)), whole=("before", "after")))
        console.print()
    for note, fired in _notes(verdict):
        console.print(Text("· " + note, style="bold red" if fired else "dim"))


def holds_cut(verdict: Mapping[str, Any]) -> bool:
    """Whether the checkpoint holds the cut model, not the unchanged one."""
    handed = verdict.get("handed_over")  # verdicts of an earlier day: it always does
    return handed is None or handed["holds"] == "cut"


def print_places(console: Terminal, verdict: Mapping[str, Any], out: Path) -> None:
    """The last lines: where the checkpoint is and what it holds, where the report is."""
    console.print()
    held, style = "", ""
    if not holds_cut(verdict):
        held = "the unchanged model"
    elif verdict["verdict"] == WORSE:
        held, style = "the cut model, WORSE than the original", "bold red"
    console.print(Text(f"checkpoint  {out}" + (f"  ({held})" if held else ""), style=style), soft_wrap=True)
    if handed := (verdict.get("handed_over") or {}).get("unproven"):
        console.print(Text(f"cut plan    {out / handed}  (not carried out)"), soft_wrap=True)
    console.print(Text(f"report      {out / 'report.html'}"), soft_wrap=True)


def _by_task(verdict: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Of several tasks each, in the metric that decides and in accuracy where it has one."""
    for row in verdict.get("tasks") or ():  # verdicts of an earlier day have none
        yield row["name"], row
        yield from ((row["name"], other) for other in row["secondary"] if other["metric"] == "accuracy")


def print_each(console: Terminal, verdicts: Sequence[Mapping[str, Any]]) -> None:
    """The end of `prune --each`: word, sentence and place of every task."""
    for told in verdicts:
        console.print()
        console.print(Text.assemble((told["task"]["name"], "bold"), ": ", _said(told)))
        console.print(Text(f"checkpoint  {told['out']}"), soft_wrap=True)


def _said(verdict: Mapping[str, Any]) -> Text:
    """The word and its sentence."""
    word = verdict["verdict"]
    return Text.assemble((word, WORD_STYLE[word.partition(" by ")[0]]), "  ", verdict["sentence"])


def _saved(verdict: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What is smaller, as stored: nothing where the shapes are the original's."""
    gains = verdict["gains"]
    names = {
        "parameters": "parameters",
        "bytes_on_disk": "bytes on disk",
        "kv_bytes_per_token": "KV cache, bytes/token",
    }
    for key, name in names.items():
        if gains[key] is not None:
            yield name, f"{gains[key]['before']:,.0f}", f"{gains[key]['after']:,.0f}"


def _notes(verdict: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Everything that stands beside the word, as lines; whether it is a warning."""
    if start := verdict.get("baseline"):  # verdicts of an earlier day have none
        yield f"at the start: {baseline_text(start)}", bool(start["warning"])
    if verdict["before"]["ci"] is None:
        yield few_groups(verdict["groups"]), True
    for guard in verdict["guards"]:
        yield f"{guard['name']}: {guard['detail']}", guard["fired"]
    for other in verdict["alternatives"]:
        if other["applicable"]:
            yield (
                f"instead of cutting, {other['name']}: {other['detail']} → {with_interval(other, 'share')}",
                False,
            )
    if verdict["cut"]:
        yield f"out: {verdict['cut_summary']}", False
        yield _loading(verdict["loads"]), False
    search, opened = verdict["search"], verdict["openings"]
    raced = "raced_out" in search
    lost = f" ({search['screened_out']} screened out, {search['raced_out']} raced out)" if raced else ""
    times = "once" if opened == 1 else f"{opened} times, corrected for"
    yield (
        f"{verdict['candidates_tried']} plans tried on select, from {search['proposed']} proposed{lost}; "
        f"{verdict['evaluations']:,} evaluations; test opened {times}",
        False,
    )


def _loading(loads: Mapping[str, Any]) -> str:
    first = next(place for place in loads["where"] if place["loads"])
    why = f"; no stock checkpoint, because {loads['why']}" if loads["why"] else ""
    return f"loads by {first['how']}{why}"


def _row(name: str, row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    unit = row["unit"]
    before, after = (_in_unit(row[which]["value"], unit) for which in ("before", "after"))
    return name, before, after, _change(row)


def _change(row: Mapping[str, Any]) -> str:
    """`+43.4 [38.5, 48.2]` in points or in the metric's unit, `×1.04 [1.02, 1.06]` of perplexities."""
    if "ratio" in row:
        return _with_ends(row["ratio"], 1, "×{:.3f}", "{:.3f}")
    if "difference" not in row:
        return ""
    scale, digits = (100, ".1f") if row["unit"] == "share" else (1, ".3f")
    return _with_ends(row["difference"], scale, f"{{:+{digits}}}", f"{{:+{digits}}}")


def _with_ends(found: Mapping[str, Any], scale: float, value: str, end: str) -> str:
    ends = [end.format(scale * one) for one in found["ci"] or ()]
    return value.format(scale * found["value"]) + (f" [{', '.join(ends)}]" if ends else " [too few groups]")


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
    """What `secateur eval` measured."""
    rows = [
        (s["metric"], with_interval(s, s["unit"]), s["n"], s["groups"], s["unit"]) for s in found["scores"]
    ]
    title = f"{found['model']} on {found['task']} ({found['split']}), {found['plan']}"
    columns = ("metric", "value [95 %]", "n", "groups", "unit")
    print_rows(columns, rows, title=title, whole=columns[:2])
    if found["scores"][0]["ci"] is None:
        print(few_groups(found["scores"][0]["groups"]))
    floors = floors_text(found["baseline"])
    beside = f"; hold it against {floors}, read on select" if floors else ""
    terminal().print(Text(f"{decides_text(found['baseline'])}{beside}"))
    if found["baseline"]["warning"]:
        terminal().print(Text(found["baseline"]["warning"], style="bold red"))


def print_run(found: Mapping[str, Any]) -> None:
    """What `secateur show` knows of a run."""
    console = terminal()
    if found["verdict"] is not None:
        print_verdict(console, found["verdict"])
        console.print()
    else:
        console.print(Text(f"{found['run']['run']}: {found['run']['status']}, no verdict yet"))
    title = f"{found['judged']} plans judged on select, by {found['metric'].replace('_', ' ')}"
    rows = [list(trial.values()) for trial in found["trials"]]
    print_rows([name.replace("_", " ") for name in (found["trials"] or [{}])[0]], rows, title=title)
