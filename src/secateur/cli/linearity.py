"""What `secateur probe --what linearity` read, as tables. What is cut short here is whole in --json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from secateur.cli.tables import print_rows
from secateur.cli.terminal import terminal

COLUMNS = (
    "site", "residual", "held out", "without", "held out", "cosine", "cond.", "dim.", "anis."
)  # fmt: skip
_KINDS = {"stream": "with the residual", "added": "without the residual"}


def print_linearity(found: Mapping[str, Any]) -> None:
    """One model whole; of several the held-out scores, blocks by models. Then what stands against them."""
    models = found["models"]
    title = f"linearity of {found['model']} on {found['task']} ({found['split']})"
    if len(models) == 1:
        first = models[0]["rows"][0]
        tokens = f"{first['num_tokens']:,} tokens, {first['num_fit']:,} to fit held-out maps"
        print_rows(COLUMNS, [_cells(row) for row in models[0]["rows"]], title=f"{title}, {tokens}")
    else:
        _print_series(models, title)
    for line in _notes(models):
        terminal().print(Text(line))


def _cells(row: Mapping[str, Any]) -> list[Any]:
    stream, added = (
        [None if x is None else f"{x:.4f}" for x in row[name] or (None, None)] for name in _KINDS
    )
    shape = (f"{row['condition']:.0e}", row["intrinsic_dimension"], row["anisotropy"])
    return [row["site"], *stream, *added, row["cosine"], *shape]


def _print_series(models: Sequence[Mapping[str, Any]], title: str) -> None:
    sites = list(dict.fromkeys(row["site"] for model in models for row in model["rows"]))
    by_site = [{row["site"]: row for row in model["rows"]} for model in models]
    for number, (name, words) in enumerate(_KINDS.items()):
        rows = [[site, *(_held_out(rows.get(site), name) for rows in by_site)] for site in sites]
        shown = [row for row in rows if any(row[1:])]
        if number:
            terminal().print()
        print_rows(("site", *(model["name"] for model in models)), shown, title=f"{title}: {words}, held out")


def _held_out(row: Mapping[str, Any] | None, name: str) -> str:
    return "" if row is None or row[name] is None else f"{row[name][1]:.4f}"


def _notes(models: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Each reason once, with the sites that it is about."""
    sites: dict[tuple[str, str, bool], list[str]] = {}
    for model in models:
        for row in model["rows"]:
            if row["reason"]:
                key = model["name"], row["reason"], row["trusted"]
                sites.setdefault(key, []).append(row["site"])
    for (name, reason, trusted), own in sites.items():
        where = ", ".join(own) if len(models) == 1 else f"{name} {', '.join(own)}"
        yield f"{'note' if trusted else 'not to be trusted'}: {where}: {reason}"
