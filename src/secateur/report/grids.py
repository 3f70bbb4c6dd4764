"""Heat maps of one number for each head, layer × head, and the matrix of rank correlations between readings.

Importance is heavy-tailed: a few heads are worth tens of times the median. So color follows the square root of the
value, on a scale of even lightness; hover and table carry the value itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.core.site import Site
from secateur.report.chart import (
    ACCENT,
    DIVERGING,
    INK,
    SEQUENTIAL,
    Figure,
    cell_height,
    marks,
    new_axis,
    new_layout,
    some,
)
from secateur.report.markup import MINUS, known, text
from secateur.report.pruned_units import Dropped, site_of

LARGE, SMALL = 560, 330  # pixels that the lines of a map take at most: alone, or as one of several
MOST_NAMES = 12  # readings whose correlations are also written in the cells

Values = Mapping[Site, float]


def values_of(record: Mapping[str, Any] | None) -> dict[Site, float]:
    """Site → value of those that were measured; what is no address is left out."""
    found = ((site_of(address), value) for address, value in (record or {}).items())
    return {site: value for site, value in found if site is not None and known(value)}


def ranks(values: Values) -> dict[Site, int]:
    """1 for the largest; ties in the model's order."""
    ordered = sorted(values, key=lambda site: (-values[site], site))
    return {site: place for place, site in enumerate(ordered, start=1)}


def amount(value: float, unit: str) -> str:
    """Three significant figures: the readings span orders of magnitude."""
    if unit == "share":
        return f"{100 * value:.3g} points".replace("-", MINUS)
    return f"{value:.3g}".replace("-", MINUS)


def unit_map(
    title: str,
    values: Values,
    gone: Dropped,
    *,
    unit: str,
    word: str,
    note: str = "",
    most: int = SMALL,
) -> Figure:
    """A cell for each head, colored by the root of its value from 0 to the largest; × on what was cut.

    Color ends at 1 where the `unit` is `score`, a number from 0 to 1. `word` says what the value is.
    """
    order = ranks(values)
    blocks, heads = 1 + max(site.block for site in values), 1 + max(site.index for site in values)
    z: list[list[float | None]] = [[None] * heads for _ in range(blocks)]
    hover = [[""] * heads for _ in range(blocks)]
    for site, value in values.items():
        z[site.block][site.index] = _root(value)
        hover[site.block][site.index] = _hover(site, value, order, unit, word, site in gone)
    top = 1.0 if unit == "score" else _root(max(values.values())) or 1.0
    height = cell_height(blocks, most)
    crosses = _crosses([(site.index, site.block) for site in values if site in gone], height, heads)
    rows = [_row(site, place, values[site], unit, gone) for site, place in order.items()]
    data = [_heat(z, hover, SEQUENTIAL, 0.0, top), crosses]
    return Figure(title, data, _sheet(blocks, heads, height), _head(word, gone), rows, note)


def _root(value: float) -> float:
    return math.sqrt(max(0.0, value))


def _hover(site: Site, value: float, order: Mapping[Site, int], unit: str, word: str, cut: bool) -> str:
    said = f"<b>{site}</b>{', cut' if cut else ''}<br>{word} {amount(value, unit)}"
    return f"{said}{_unit(unit)}<br>rank {order[site]} of {len(order)}"


def _unit(unit: str) -> str:
    return "" if unit in ("share", "score") else f" {text(unit)}"


def _head(word: str, gone: Dropped) -> tuple[str, ...]:
    return ("head", "rank", word, *(("",) if gone.sites else ()))


def _row(site: Site, place: int, value: float, unit: str, gone: Dropped) -> list[str]:
    end = [("cut" if site in gone else "stays")] if gone.sites else []
    return [str(site), str(place), amount(value, unit), *end]


def _heat(
    z: list[list[float | None]], hover: list[list[str]], scale: list[list[Any]], low: float, high: float
) -> dict[str, Any]:
    gap = 2 if max(len(z), len(z[0])) <= 16 else 1
    return {
        "type": "heatmap",
        "z": z,
        "text": hover,
        "hovertemplate": "%{text}<extra></extra>",
        "hoverongaps": False,
        "zmin": low,
        "zmax": high,
        "colorscale": scale,
        "showscale": False,
        "xgap": gap,
        "ygap": gap,
    }


def _crosses(points: Sequence[tuple[int, int]], height: float, heads: int) -> dict[str, Any]:
    size = max(3.0, min(9.0, 0.4 * height, 110 / heads))
    return marks(points, symbol="x-thin-open", size=size, color=ACCENT, line={"width": 1.6})


def _sheet(blocks: int, heads: int, height: float) -> dict[str, Any]:
    plain = {"showgrid": False, "showline": False, "tickangle": 0, "ticks": ""}
    return new_layout(
        int(54 + height * blocks),
        xaxis=new_axis("head", range=[-0.6, heads - 0.4], tickvals=some(heads, 12), **plain),
        yaxis=new_axis("block", range=[-0.6, blocks - 0.4], tickvals=some(blocks, 16), **plain),
    )


def correlations(title: str, overlap: Mapping[str, Any]) -> Figure:
    """Spearman's correlation of every pair of readings: blue alike, orange opposite, numbered as in the axis."""
    names, rho = overlap["names"], overlap["rho"]
    count = len(names)
    order = range(count)
    z = [[None if i == j else rho[i][j] for j in order] for i in order]
    hover = [[f"{text(names[i])}<br>{text(names[j])}<br>{_rho(rho[i][j])}" for j in order] for i in order]
    cells = _heat(z, hover, DIVERGING, -1.0, 1.0)
    layout = _names_sheet(names)
    if count <= MOST_NAMES:
        layout["annotations"] = [
            _written(i, j, rho[i][j]) for i in order for j in order if i != j and known(rho[i][j])
        ]
    rows = [[text(names[i]), *(_rho(rho[i][j]) for j in order)] for i in order]
    head = ("", *(str(1 + i) for i in order))
    return Figure(title, [cells], layout, head, rows, f"Spearman, over {overlap['n']:,} heads")


def _rho(value: float | None) -> str:
    return f"{value:+.2f}".replace("-", MINUS) if known(value) else "—"


def _written(row: int, column: int, value: float) -> dict[str, Any]:
    color = "#ffffff" if abs(value) > 0.65 else INK
    words = f"{abs(value):.2f}".removeprefix("0")
    sign = MINUS if value < 0 else ""
    font = {"size": 11, "color": color}
    return {"x": column, "y": row, "text": sign + words, "showarrow": False, "font": font}


def _names_sheet(names: Sequence[str]) -> dict[str, Any]:
    """Names at the left, numbered; the numbers alone below, where names would not fit."""
    count, plain = len(names), {"showgrid": False, "showline": False, "ticks": "", "tickangle": 0}
    shown = some(count, 16)
    words = [f"{_short(names[i])}  {1 + i}" for i in shown]
    below = {"tickvals": shown, "ticktext": [str(1 + i) for i in shown], "range": [-0.6, count - 0.4]}
    layout = new_layout(
        int(34 + min(34.0, max(9.0, 420 / count)) * count),
        xaxis=new_axis("", **below, **plain),
        yaxis=new_axis(
            "", tickvals=shown, ticktext=words, range=[count - 0.4, -0.6], automargin=True, **plain
        ),
    )
    layout["margin"] |= {"l": 20, "b": 24}
    return layout


def _short(name: Any, most: int = 24) -> str:
    """Cut to fit beside the axis, then escaped."""
    words = str(name)
    return text(words if len(words) <= most else words[: most - 1] + "…")
