"""What was dropped whole: heads, KV groups, feed-forward networks, blocks. A map of the model, a list, a question.

Every string from data is escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.core.site import Site
from secateur.errors import UnknownName
from secateur.report.markup import key, text

Record = Mapping[str, Any]

MOST_RUNS = 40  # numbers and runs that are told one by one; beyond, as with scattered neurons, their count
_UNITS = {"h": ("head", "heads"), "g": ("KV group", "KV groups"), "n": ("neuron", "neurons")}
_WHOLES = {"attn": "attention", "mlp": "feed-forward network", "": "the whole block"}


def site_of(address: Any) -> Site | None:
    """The site, or None for what is no address."""
    try:
        return Site.parse(str(address))
    except UnknownName:
        return None


@dataclass(frozen=True)
class Dropped:
    """The sites a plan takes away, and the shape of the model it takes them from (query heads, KV groups a block)."""

    sites: frozenset[Site]
    blocks: int
    heads: int
    groups: int

    def __contains__(self, site: Site) -> bool:
        """Whether `site` is gone: itself, the whole it is a part of, or the KV group it belongs to."""
        return site in self.sites or any(whole in self.sites for whole in self._wholes(site))

    def _wholes(self, site: Site) -> tuple[Site, ...]:
        group = ()
        if site.unit == "h" and self.groups:
            group = (Site(site.block, "attn", "g", site.index * self.groups // self.heads),)
        return (*group, *site.wholes)


def dropped(verdict: Record) -> Dropped:
    """What `verdict.json` says was dropped; empty where nothing was, or where only matrices were truncated."""
    model = verdict.get("model") or {}
    items = (item for item in verdict.get("cut") or () if item.get("kind") == "drop")
    sites = frozenset(site for item in items if (site := site_of(item["site"])) is not None)
    blocks = max(model.get("num_blocks") or 0, 1 + max((site.block for site in sites), default=-1))
    heads = model.get("num_heads") or 0
    return Dropped(sites, blocks, heads, model.get("num_kv_heads") or heads)


def drop_map(gone: Dropped) -> str:
    """A line for each block: its heads as squares, groups apart, and its feed-forward network as a bar."""
    rows = "".join(_row(block, gone) for block in reversed(range(gone.blocks)))
    heads = "heads" if gone.heads == gone.groups else f"heads, in groups of {gone.heads // gone.groups}"
    names = (f"{heads} →" if gone.heads else "", "feed-forward")
    foot = f'<div class="line foot"><span></span><span>{names[0]}</span><span>{names[1]}</span></div>'
    said = "; ".join(f"b{block}: {words}" for block, words in _by_block(gone)) or "nothing"
    legend = key(
        ("tried", "stays"), ("cut", "cut"), *((("cut gone", "whole block"),) if _whole(gone) else ())
    )
    label = f"Map of the model, {gone.blocks} blocks, the first at the bottom; cut: {said}"
    between = 2 if gone.heads == gone.groups else 7
    width = (
        f"--heads:{22 * gone.heads + 2 * (gone.heads - gone.groups) + between * max(0, gone.groups - 1)}px"
    )
    width += f";--between:{between}px"
    grid = f'<div class="parts" role="img" aria-label="{text(label)}" style="{width}">{rows}{foot}</div>'
    return grid + legend


def _whole(gone: Dropped) -> bool:
    return any(not site.part for site in gone.sites)


def _row(block: int, gone: Dropped) -> str:
    size = gone.heads // gone.groups if gone.heads else 0
    heads = "".join(_group(block, group, size, gone) for group in range(gone.groups))
    kind = "line gone" if Site(block) in gone else "line"
    row = f'<span class="m">b{block}</span><span class="heads">{heads}</span>{_network(block, gone)}'
    return f'<div class="{kind}">{row}</div>'


def _group(block: int, group: int, size: int, gone: Dropped) -> str:
    """The query heads that share keys and values; one square where none do."""
    sites = [Site(block, "attn", "h", group * size + place) for place in range(size)]
    return f"<span>{''.join(_cell(site, gone) for site in sites)}</span>"


def _cell(site: Site, gone: Dropped) -> str:
    cut = site in gone
    return f'<i class="{"cut" if cut else "tried"}" title="{site}{" gone" if cut else ""}"></i>'


def _network(block: int, gone: Dropped) -> str:
    site = Site(block, "mlp")
    neurons = sum(s.block == block and s.unit == "n" for s in gone.sites)
    if site in gone or not neurons:
        return f'<span class="{"cut" if site in gone else "tried"}" title="{site}"></span>'
    return f'<span class="tried part" title="{site}">{_minus(neurons)}</span>'


def _minus(neurons: int) -> str:
    return f"−{neurons:,} neuron{'s' if neurons != 1 else ''}"


def drop_list(gone: Dropped) -> str:
    """What went, block by block: `b0  heads 1–3, 6; feed-forward network`."""
    items = "".join(f"<dt>b{block}</dt><dd>{words}</dd>" for block, words in _by_block(gone))
    return f'<dl class="drops">{items}</dl>' if items else ""


def _by_block(gone: Dropped) -> Iterable[tuple[int, str]]:
    for block in range(gone.blocks):
        sites = sorted(site for site in gone.sites if site.block == block)
        words = [*_unit_words(sites, "h"), *_unit_words(sites, "g"), *_unit_words(sites, "n")]
        words += [_WHOLES[site.part] for site in sites if not site.unit]
        if words:
            yield block, "; ".join(words)


def _unit_words(sites: Sequence[Site], unit: str) -> list[str]:
    found = [site.index for site in sites if site.unit == unit]
    if not found:
        return []
    (one, many), numbers = _UNITS[unit], runs(found)
    if numbers.count(",") >= MOST_RUNS:
        return [f"{len(found):,} {many}"]
    return [f"{one if len(found) == 1 else many} {numbers}"]


def runs(numbers: Sequence[int]) -> str:
    """Ascending numbers with runs of three or more joined: `1–3, 6`."""
    spans: list[list[int]] = []
    for value in numbers:
        if spans and value == spans[-1][-1] + 1:
            spans[-1].append(value)
        else:
            spans.append([value])
    words = [[f"{s[0]}–{s[-1]}"] if len(s) > 2 else [str(v) for v in s] for s in spans]
    return ", ".join(word for span in words for word in span)
