"""What `secateur probe` read, as tables. What is cut short here is whole in --json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from secateur.cli.linearity_tables import print_linearity
from secateur.cli.tables import print_rows, show
from secateur.cli.terminal import terminal

NEURONS_SHOWN = 10  # of each end: a reading of neurons has thousands, and 20 lines fit a screen
COLUMNS = 4  # readings side by side; with more, the lowest and the highest stand for them
MATRIX = 10  # readings whose correlations fit 80 characters
BEHAVIOR = ("prefix_matching", "copying")


def print_readings(found: Mapping[str, Any], top: int | None = None) -> None:
    """Rows of one reading, or the tables of several."""
    if found["what"] == "linearity":
        print_linearity(found)
        return
    if "components" in found:
        _print_components(found, top)
        return
    rows = found["rows"]
    if "rank" in rows[0]:
        rows = _ends(rows, top or (NEURONS_SHOWN if found["what"] == "neurons" else None), len(rows))
    columns = [name for name in rows[0] if name != "values"]
    cells = [[_short(row[name]) for name in columns] for row in rows]
    print_rows([name.replace("_", " ") for name in columns], cells, title=_title(found))
    if found.get("overlap"):
        _print_overlap("rank correlation", found["overlap"])


def _title(found: Mapping[str, Any]) -> str:
    on = f" on {found['task']} ({found['split']})" if found["task"] else ""
    return f"{found['what']} of {found['model']}{on}{_fit(found)}"


def _fit(found: Mapping[str, Any]) -> str:
    """Nothing where all examples were read."""
    whole = found.get("of") == found.get("n")
    return "" if whole else f", {found['n']} of {found['of']} examples fit"


def _ends(rows: Sequence[Mapping[str, Any]], top: int | None, count: int) -> list[Mapping[str, Any]]:
    """The `top` most and `top` least important, by rank; all in their own order where nothing is left out."""
    if top is None or count <= 2 * top:
        return list(rows)
    ranked = sorted(rows, key=lambda row: row["rank"])
    gap = dict.fromkeys(rows[0]) | {"site": f"… {count - 2 * top:,} between"}
    return [*ranked[:top], gap, *ranked[-top:]]


# -------------------------------------------------------------------------------------------------- several readings


def _print_components(found: Mapping[str, Any], top: int | None) -> None:
    """Which readings there are, then each kind of part, then what heads do."""
    record = found["components"]
    kinds = {name: one for name, one in record.items() if isinstance(one, Mapping) and "readings" in one}
    console = terminal()
    console.print(Text(f"{', '.join(found['what'])} of {found['model']} ({found['split']})"))
    first = next(iter(kinds.values()))
    rows = [(n, r["name"], r["n"], r["of"]) for n, r in enumerate(first["readings"], start=1)]
    print_rows(("no", "reading", "n", "of"), rows)
    for name, kind in kinds.items():
        console.print()
        _print_kind(name, kind, top or (NEURONS_SHOWN if name == "neurons" else None))
    if "prefix_matching" in record:
        console.print()
        _print_behavior(record)


def _print_kind(name: str, kind: Mapping[str, Any], top: int | None) -> None:
    """Mean and rank of every part, most important first; then how far the readings agree on their order."""
    mean, readings = kind["mean"], [reading["values"] for reading in kind["readings"]]
    order = sorted(mean, key=lambda site: (-mean[site], site))
    rows = [
        {"site": site, "mean": mean[site], "rank": place} | _spread(site, readings)
        for place, site in enumerate(order, start=1)
    ]
    rows = _ends(rows, top, len(rows))
    print_rows(
        list(rows[0]), [list(row.values()) for row in rows], title=f"{name}: importance, {kind['unit']}"
    )
    if kind["overlap"]:
        _print_overlap(f"{name}: rank correlation of readings", kind["overlap"], numbered=True)


def _spread(site: str, readings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    values = [reading[site] for reading in readings]
    if len(values) <= COLUMNS:
        return {str(n): value for n, value in enumerate(values, start=1)}
    return {"lowest": min(values), "highest": max(values)}


def _print_behavior(record: Mapping[str, Any]) -> None:
    rows = [(site, *(record[name][site] for name in BEHAVIOR)) for site in record["prefix_matching"]]
    print_rows(("site", *(name.replace("_", " ") for name in BEHAVIOR)), rows, title="what heads do")
    if record["induction_overlap"]:
        _print_overlap("rank correlation", record["induction_overlap"])


def _print_overlap(title: str, overlap: Mapping[str, Any], *, numbered: bool = False) -> None:
    """The matrix where it fits, else each reading's mean with the others. Empty where a reading has no order."""
    names, rho = overlap["names"], overlap["rho"]
    labels = [str(n) for n in range(1, len(names) + 1)] if numbered else names
    if len(names) <= MATRIX:
        columns = ("", *labels)
        rows = [(label, *map(_two, row)) for label, row in zip(labels, rho, strict=True)]
    else:
        columns = ("no", "mean with the others")
        rows = [(label, _two(_mean_of_others(rho, n))) for n, label in enumerate(labels)]
    terminal().print()
    print_rows(columns, rows, title=f"{title} (n = {overlap['n']:,})", whole=columns[1:])


def _mean_of_others(rho: Sequence[Sequence[float | None]], number: int) -> float | None:
    known = [value for n, value in enumerate(rho[number]) if n != number and value is not None]
    return sum(known) / len(known) if known else None


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


# --------------------------------------------------------------------------------------------------------------- cells


def _short(value: Any) -> Any:
    """Lists and records as a short text."""
    if isinstance(value, list):
        return " ".join(_short_item(item) for item in value)
    if isinstance(value, Mapping):
        return " ".join(f"{name} {show(item)}" for name, item in value.items())
    return value


def _short_item(item: Any) -> str:
    if isinstance(item, list):
        return f"{item[1]}×{str(item[0]).strip()}"
    return f"{item:.3g}" if isinstance(item, float) else str(item)
