"""Text, numbers and small HTML pieces. Knows nothing of plotly, files or what a verdict holds.

Everything that comes from data passes through `text` (HTML) or `embedded_json` (script element).
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from secateur.core.finite import finite

MINUS, SPACE, DASH = "\u2212", "\u00a0", "\u2013"
MISSING = "\u2014"
MAX_TABLE_ROWS = 400


def text(value: object) -> str:
    """Return `value` as inert HTML; also inert as plotly hover text, which reads tags and entities as HTML does."""
    return html.escape(str(value), quote=True)


def embedded_json(value: object) -> str:
    """Return JSON that cannot leave its script element, whatever it holds; NaN and infinities become null."""
    dumped = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        dumped = dumped.replace(character, f"\\u{ord(character):04x}")
    return dumped


def known(value: float | None) -> TypeGuard[float]:
    """Tell whether a measurement is there: None and NaN both mean "not measured"."""
    return value is not None and math.isfinite(value)


def number(value: float | None, unit: str) -> str:
    """Return a measured value in its unit: shares as percent, nats with three decimals."""
    if not known(value):
        return MISSING
    if unit == "share":
        return f"{100 * value:.1f}{SPACE}%"
    return _plain(value, unit).replace("-", MINUS)


def change(value: float | None, unit: str, *, name_unit: bool = True) -> str:
    """Return a difference, always signed; shares in percentage points."""
    if not known(value):
        return MISSING
    sign = "+" if value > 0 else MINUS if value < 0 else "±"
    if unit == "share":
        return f"{sign}{100 * abs(value):.1f}" + (f"{SPACE}points" if name_unit else "")
    return sign + _plain(abs(value), unit)


def factor(ratio: float) -> str:
    """Return `1.04 ×`; from 100 on two figures, `13,000 ×`: more of them say nothing."""
    if ratio < 100:
        return f"{ratio:.2f}{SPACE}×"
    power = 10 ** (math.floor(math.log10(ratio)) - 1)
    return f"{round(ratio / power) * power:,.0f}{SPACE}×"


def signed(value: float) -> str:
    """Return a difference to three significant figures: effects of single parts span orders of magnitude."""
    return f"{value:+.3g}".replace("-", MINUS)


def _plain(value: float, unit: str) -> str:
    size = abs(value)
    if unit.startswith("nats") and size < 100:
        return f"{value:.3f}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.2f}"


def interval(ci: Sequence[float] | None, unit: str, *, signed: bool = False) -> str:
    """Return `49.2 – 58.8 %`, or signed as differences are; nothing where there is no interval."""
    if not ci or not all(known(end) for end in ci):
        return ""
    if signed:
        return f"{change(ci[0], unit, name_unit=False)} to {change(ci[1], unit)}"
    if unit == "share":
        return f"{100 * ci[0]:.1f}{SPACE}{DASH}{SPACE}{100 * ci[1]:.1f}{SPACE}%"
    return f"{number(ci[0], unit)}{SPACE}{DASH}{SPACE}{number(ci[1], unit)}"


def p_value(value: float | None) -> str:
    """Return HTML for `p = …`, in powers of ten below 0.001."""
    if not known(value):
        return ""
    if value <= 0:
        return f"p{SPACE}&lt;{SPACE}10<sup>−300</sup>"  # underflow of a double; no test gives exactly zero
    if value >= 0.001:
        return f"p{SPACE}={SPACE}{value:.3f}" if value < 0.9995 else f"p{SPACE}={SPACE}1"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"p{SPACE}={SPACE}{mantissa}{SPACE}×{SPACE}10<sup>{MINUS}{abs(int(exponent))}</sup>"


def unit_name(unit: str) -> str:
    return "%" if unit == "share" else unit


def key(*items: tuple[str, str]) -> str:
    """Return the legend of a figure from (class of the sample, words); words are ours, never data."""
    return (
        '<p class="key">' + "".join(f'<span><i class="{k}"></i>{words}</span>' for k, words in items) + "</p>"
    )


def capital(words: object) -> str:
    """Return the same words with a capital at the front; the rest keeps its case."""
    return str(words)[:1].upper() + str(words)[1:]


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    source: str = "analysis.json",
    most: int = MAX_TABLE_ROWS,
) -> str:
    """Return a table of escaped cells; the first column names the row. Says how many rows beyond `most` are left out,
    and that `source` has them."""
    rows = list(rows)
    shown, more = rows[:most], len(rows) - most
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{c}</td>" for c in row[1:])}</tr>' for row in shown
    )
    tail = f'<p class="note">{more:,} more rows in {text(source)}.</p>' if more > 0 else ""
    heads = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>{tail}'
    )


def numbers(head: Sequence[str], rows: Iterable[Sequence[str]], source: str) -> str:
    """Return the numbers of a figure as a folded table, for screen readers and for copying."""
    rows = list(rows)
    return folded(table(head, rows, source=source)) if rows else ""


def folded(body: str, summary: str = "numbers") -> str:
    """Return numbers, as HTML, behind a line that opens them."""
    return f'<details class="numbers"><summary>{text(summary)}</summary>{body}</details>'


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Return round positions that enclose [low, high], in steps of 1, 2 or 5 times a power of ten."""
    span = max(high - low, 1e-9, 1e-6 * abs(high))
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
