"""What `secateur probe --what linearity` read, as tables. What is cut short here is whole in --json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from secateur.cli.tables import print_rows
from secateur.cli.terminal import terminal

COLUMNS = ("site", "stream", "held\nout", "added", "held\nout", "cosine", "cond.", "dim.", "anis.")
KINDS = {"stream": "with the residual", "added": "without the residual"}
SITES = 8  # in one line; more are counted


def print_linearity(found: Mapping[str, Any]) -> None:
    """One model whole; of several the held-out scores, blocks by models. Then what stands against them."""
    models = found["models"]
    title = f"linearity of {found['model']} on {found['task']} ({found['split']})"
    if len(models) == 1:
        first = models[0]["rows"][0]
        tokens = f"{first['num_tokens']:,} tokens, {first['num_fit']:,} to fit held-out maps"
        cells = [cells for row in models[0]["rows"] for cells in _lines(row)]
        print_rows(COLUMNS, cells, title=f"{title}, {tokens}", whole=COLUMNS)
    else:
        _print_series(models, title)
    for line in (*_outliers(models), *_notes(models)):
        terminal().print(Text(line))


def _lines(row: Mapping[str, Any]) -> Iterator[list[str]]:
    """The scores of a place, and below them those without its outlier tokens."""
    yield [row["site"], *_cells(row)]
    if row["without_outliers"]:
        yield [_less(row["outliers"]["count"]), *_cells(row["without_outliers"])]


def _less(count: int) -> str:
    return f"  less {count:,}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    scores = [x for name in KINDS for x in row[name] or (None, None)]
    cells = [*map(_four, scores), "" if row["cosine"] is None else f"{row['cosine']:.3f}"]
    dimension = row["intrinsic_dimension"]
    cells += [f"{row['condition']:.0e}", "" if dimension is None else f"{dimension:.1f}"]
    return [*cells, f"{row['anisotropy']:.2f}"]


def _four(score: float | None) -> str:
    """Four digits behind the point, as far as they say something: held out, noise may score below -100."""
    return "" if score is None else f"{score:.4f}" if score > -10 else f"{score:.0f}"


def _print_series(models: Sequence[Mapping[str, Any]], title: str) -> None:
    """A table for each score. Where outlier tokens pass in any of the models a second line is without them."""
    sites = list(dict.fromkeys(row["site"] for model in models for row in model["rows"]))
    by_site = [{row["site"]: row for row in model["rows"]} for model in models]
    for number, (name, words) in enumerate(KINDS.items()):
        rows = [line for site in sites for line in _across([rows.get(site) for rows in by_site], site, name)]
        if number:
            terminal().print()
        columns = ("site", *(model["name"] for model in models))
        print_rows(columns, rows, title=f"{title}: {words}, held out", whole=("site",))


def _across(rows: Sequence[Mapping[str, Any] | None], site: str, name: str) -> Iterator[list[str]]:
    """One score of one place in every model; none where no model has it."""
    if any(row and row[name] for row in rows):
        yield [site, *(_held_out(row, name) for row in rows)]
        if any(row and row["without_outliers"] for row in rows):
            usual = [row and (row["without_outliers"] or row) for row in rows]
            yield ["  less outliers", *(_held_out(row, name) for row in usual)]


def _held_out(row: Mapping[str, Any] | None, name: str) -> str:
    return _four(row[name][1]) if row and row[name] else ""


# ---------------------------------------------------------------------------------------------------------------- notes


def _outliers(models: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Which tokens are outliers where, places of like ones together; then where they decide the scores."""
    for model in models:
        begin = "" if len(models) == 1 else f"{model['name']} "
        alike: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
        for row in model["rows"]:
            if row["outliers"]:
                first, word = row["outliers"]["positions"][0], row["outliers"]["tokens"][0]
                alike.setdefault((first["position"], word["text"]), []).append(row)
        for (position, word), rows in alike.items():
            sites, found = _counted([row["site"] for row in rows]), [row["outliers"] for row in rows]
            yield (
                f"outlier tokens: {begin}{sites}: {_span(found)} of {rows[0]['num_tokens']:,}, up to "
                f"{max(one['largest'] for one in found):.0f} median norms; most often at position {position} "
                f"({_of([one['positions'][0] for one in found])}), {word!r} "
                f"({_of([one['tokens'][0] for one in found])})"
            )
        if swayed := [row for row in model["rows"] if row["outliers"] and row["outliers"]["matter"]]:
            yield f"warning: {begin}{_swayed(swayed)}"


def _swayed(rows: Sequence[Mapping[str, Any]]) -> str:
    """That outlier tokens decide scores of these places, with the one that they change most."""
    changes = [
        (abs(whole - without), row["site"], whole, without)
        for row in rows
        for name in KINDS
        for whole, without in zip(row[name] or (), row["without_outliers"][name] or (), strict=False)
    ]
    most = ""
    if changes:
        _, site, whole, without = max(changes)
        most = f" ({site}: {_four(whole)} with them, {_four(without)} without)"
    sites = _counted([row["site"] for row in rows])
    return (
        f"outlier tokens decide scores of {sites}{most}. Compare blocks by the lines without them, as --method depth "
        "--by linearity does."
    )


def _span(found: Sequence[Mapping[str, Any]]) -> str:
    """`284`, or `205 to 510`."""
    low, high = (end(one["count"] for one in found) for end in (min, max))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _of(found: Sequence[Mapping[str, Any]]) -> str:
    return f"{_span(found)} of {found[0]['of']:,}"


def _counted(sites: Sequence[str]) -> str:
    if len(sites) <= SITES:
        return ", ".join(sites)
    return f"{len(sites)} places from {sites[0]} to {sites[-1]}"


def _notes(models: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Each reason once, with the sites that it is about."""
    sites: dict[tuple[str, str, bool], list[str]] = {}
    for model in models:
        for row in model["rows"]:
            for read, where in ((row, ""), (row["without_outliers"], " without outlier tokens")):
                if read and read["reason"]:
                    key = model["name"], read["reason"], read["trusted"]
                    sites.setdefault(key, []).append(row["site"] + where)
    for (name, reason, trusted), own in sites.items():
        where = ", ".join(own) if len(models) == 1 else f"{name} {', '.join(own)}"
        yield f"{'note' if trusted else 'not to be trusted'}: {where}: {reason}"
