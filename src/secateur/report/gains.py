"""What the cut saves and where it loads, as HTML. Every string from data is escaped here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.core.loading import evidence_text, sign
from secateur.report.frame import Figures, Record, section
from secateur.report.markup import MISSING, change, known, table, text

_SIZES = {
    "parameters": ("Parameters", ""),
    "bytes_on_disk": ("On disk", "B"),
    "kv_bytes_per_token": ("KV cache, a token", "B"),
    "peak_bytes": ("Peak memory", "B"),
}
_SPEEDS = {"prefill": "Prefill", "decode": "Decode"}
_PREFIXES = ("", "k", "M", "G", "T")
NOTHING = 0.001  # a ratio this near 1 saves nothing


def gains(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """Dense against cut: sizes, speeds, and the share of the limit that the remaining parameters set."""
    found = verdict.get("gains") or {}
    rows = [_size_row(*_SIZES[name], found[name]) for name in _SIZES if found.get(name)]
    rows += [_speed_row(_SPEEDS[name], found[name]) for name in _SPEEDS if found.get(name)]
    timed = any(found.get(name) for name in _SPEEDS)
    head = ("", "dense", "cut", "ratio", *(("limit", "share of the limit") if timed else ()))
    rows = [row[: len(head)] for row in rows]
    body = f'<div class="gains">{table(head, rows, source="verdict.json")}</div>' if rows else ""
    note = f'<p class="note">{text(found["note"])}</p>' if body and found.get("note") else ""
    title = "What it weighs" if grown(found) else "What it saves"
    return section("gains", title, _lead(found), body, note, where_it_loads(verdict))


def grown(found: Record) -> bool:
    """Whether the cut model is the larger one, as where biases were added."""
    pair = found.get("parameters") or {}
    return known(pair.get("before")) and known(pair.get("after")) and pair["after"] > pair["before"]


def _lead(found: Record) -> str:
    """What was compared; with speeds also how, and against what."""
    if not found.get("prefill") and not found.get("decode"):
        return "The dense model against the cut one."
    shape, threads = found.get("shape") or {}, found.get("threads")
    said = [words.format(shape[name]) for name, words in _SHAPE.items() if shape.get(name)]
    said += [text(found[name]) for name in ("dtype", "device") if found.get(name)]
    said += [f"{threads:,} thread{'s' if threads > 1 else ''}"] if threads else []
    return (
        "The dense model against the cut one, measured in the same run. The limit is what the remaining parameters "
        f"allow. Speeds with {', '.join(said)}."
    )


_SHAPE = {"prompt": "{:,} prompt tokens", "new": "{:,} new tokens", "batch": "a batch of {:,}"}


def _size_row(name: str, unit: str, item: Mapping[str, Any]) -> list[str]:
    before, after = item.get("before"), item.get("after")
    sides = [text(size(value, unit)) for value in (before, after)]
    ratio = after / before if known(before) and known(after) and before else None
    return [name, *sides, _ratio(ratio), "", ""]


def _speed_row(name: str, item: Mapping[str, Any]) -> list[str]:
    sides = [
        f"{item[side]:,.0f} tokens/s" if known(item.get(side)) else MISSING for side in ("before", "after")
    ]
    limit = f"{item['limit']:.2f} ×" if known(item.get("limit")) else ""
    share = f"{100 * item['of_limit']:.0f} %" if known(item.get("of_limit")) else ""
    speedup = item.get("speedup")
    return [
        name,
        *sides,
        f"<b>{speedup:.2f} ×</b>" if known(speedup) else MISSING,
        limit,
        _track(item, share),
    ]


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return MISSING
    if abs(ratio - 1) < NOTHING:
        return "nothing saved"
    return f"<b>{ratio:.2f} ×</b> <small>{text(change(ratio - 1, 'share', name_unit=False))} %</small>"


def _track(item: Mapping[str, Any], share: str) -> str:
    """The share of the limit in words, with a bar as long."""
    if not share:
        return ""
    width = min(100.0, max(0.0, 100 * item["of_limit"]))
    return f'<span class="of"><i style="width:{width:.1f}%"></i></span>{share}'


def size(value: float | None, unit: str) -> str:
    """`1.57 MB`, in powers of 1,000; counts in full."""
    if not known(value):
        return MISSING
    if not unit:
        return f"{value:,.0f}"
    power = next(p for p in range(len(_PREFIXES)) if value < 1000 ** (p + 1) or p == len(_PREFIXES) - 1)
    return f"{value / 1000**power:,.{0 if power == 0 else 2}f} {_PREFIXES[power]}{unit}"


def where_it_loads(verdict: Record) -> str:
    """Each place with its sign: the line of code where it loads and how that is known, the reason where it does not."""
    places = (verdict.get("loads") or {}).get("where") or ()
    items = "".join(_place(item) for item in places)
    return f'<h3>Where it loads</h3><ul class="loads">{items}</ul>' if items else ""


_KINDS = {"✓": ("yes", "loads"), "○": ("expected", "is expected to load"), "✗": ("no", "does not load")}


def _place(item: Mapping[str, Any]) -> str:
    kind, word = _KINDS[sign(item)]
    how, evidence = text(item.get("how") or ""), text(evidence_text(item))
    said = f"<code>{how}</code>" if item["loads"] and how else how
    known = f"<br><small>{evidence}</small>" if evidence else ""
    mark = f'<span class="sign" role="img" aria-label="{word}">{sign(item)}</span>'
    return f'<li class="{kind}">{mark}<div><b>{text(item["place"])}</b><br>{said}{known}</div></li>'
