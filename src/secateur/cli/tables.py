"""Records as tables for people. What came from data is printed as plain text, never as markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

WORD_STYLE = {"improves": "bold green", "worse": "bold red", "no difference shown": "bold yellow"}


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> Table:
    """Numbers to the right, text to the left."""
    made = Table(
        title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    rows = [list(row) for row in rows]
    for number, name in enumerate(columns):
        numeric = all(isinstance(row[number], int | float) or row[number] is None for row in rows)
        made.add_column(name, justify="right" if numeric and rows else "left", overflow="fold")
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
    digits = ".1f" if unit == "share" else ".3f"
    text = f"{score['value'] * scale:{digits}}{suffix}"
    if score.get("ci"):
        text += f" [{score['ci'][0] * scale:{digits}}, {score['ci'][1] * scale:{digits}}]"
    return text


def p_text(p: float | None) -> str:
    if p is None:
        return ""
    return "< 1e-12" if p < 1e-12 else f"{p:.2g}"


def print_verdict(console: Console, verdict: Mapping[str, Any]) -> None:
    """The end of the main job: word, numbers, what was cut, what it cost elsewhere, what would have been free."""
    console.print()
    console.print(Text(verdict["verdict"], style=WORD_STYLE[verdict["verdict"]]), end="  ")
    console.print(Text(verdict["sentence"]))
    console.print()
    rows = [_row(f"{row['metric']} on test", row) for row in (verdict, *verdict["secondary"])]
    rows += [_row(effect["name"], effect) for effect in verdict["side_effects"]]
    console.print(table(("measured", "before", "after", "p"), rows))
    console.print()
    cuts = [
        (cut["site"], f"{cut['shape'][0]} × {cut['shape'][1]}", cut["rank"], cut["full_rank"])
        for cut in verdict["cut"]
    ]
    if cuts:
        console.print(table(("cut", "shape", "rank kept", "of"), cuts))
        console.print()
    for guard in verdict["guards"]:
        style = "red" if guard["fired"] else "dim"
        console.print(Text(f"guard · {guard['name']}: {guard['detail']}", style=style))
    for other in verdict["alternatives"]:
        value = f" → {with_interval(other, 'share')}" if other["applicable"] else " (not applicable)"
        console.print(Text(f"instead of cutting · {other['name']}: {other['detail']}{value}", style="dim"))
    search = verdict["search"]
    console.print(
        Text(
            f"{verdict['candidates_tried']} plans tried on select of {search['proposed']} proposed "
            f"({search['screened_out']} screened out, {search['raced_out']} raced out), "
            f"{verdict['evaluations']:,} evaluations; test opened {verdict['openings']} time(s).",
            style="dim",
        )
    )


def _row(name: str, row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    unit = row["unit"]
    before, after = (with_interval(row[which], unit) for which in ("before", "after"))
    return name, before, after, p_text(row.get("p_value"))
