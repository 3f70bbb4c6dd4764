"""Records as tables for people. What came from data is printed as plain text, never as markup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from secateur.cli.terminal import Terminal, terminal

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
    scale, suffix = (100, " %") if unit == "share" else (1, "")
    digits = ".1f" if unit == "share" or abs(score["value"]) >= 100 else ".3f"
    text = f"{score['value'] * scale:{digits}}{suffix}"
    if score.get("ci"):
        text += f" [{score['ci'][0] * scale:{digits}}, {score['ci'][1] * scale:{digits}}]"
    return text


def p_text(p: float | None) -> str:
    if p is None:
        return ""
    return "< 1e-12" if p < 1e-12 else f"{p:.2g}"


def print_verdict(console: Terminal, verdict: Mapping[str, Any]) -> None:
    """The end of the main job: word, numbers, what was cut, what it cost elsewhere, what would have been free."""
    console.print()
    console.print(_said(verdict))
    console.print()
    rows = [_row(f"{row['metric']} on test", row) for row in (verdict, *verdict["secondary"])]
    rows += [_row(f"{row['metric']} on all test of {name}", row) for name, row in _by_task(verdict)]
    rows += [_row(effect["name"], effect) for effect in verdict["side_effects"]]
    console.print(table(("measured", "before", "after", "p"), rows, whole=("before", "after", "p")))
    console.print()
    cuts = [
        (cut["site"], f"{cut['shape'][0]} × {cut['shape'][1]}", cut["rank"], cut["full_rank"])
        for cut in verdict["cut"]
        if cut["kind"] == "truncate"
    ]
    if cuts:
        console.print(table(("cut", "shape", "rank kept", "of"), cuts))
        console.print()
    if verdict["cut"]:
        console.print(table(("saved", "before", "after"), list(_saved(verdict)), whole=("before", "after")))
        console.print()
    for note, fired in _notes(verdict):
        console.print(Text("· " + note, style="bold red" if fired else "dim"))


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
    before, after = (with_interval(row[which], unit) for which in ("before", "after"))
    return name, before, after, p_text(row.get("p_value"))


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


def print_run(found: Mapping[str, Any]) -> None:
    """What `secateur show` knows of a run."""
    console = terminal()
    if found["verdict"] is not None:
        print_verdict(console, found["verdict"])
        console.print()
    else:
        console.print(Text(f"{found['run']['run']}: {found['run']['status']}, no verdict yet"))
    rows = [(t["plan"], t["n"], t["accuracy"], t["loss"], t["seconds"]) for t in found["trials"]]
    title = f"{found['judged']} plans judged, on any split"
    print_rows(("plan", "n", "accuracy", "loss", "seconds"), rows, title=title)
