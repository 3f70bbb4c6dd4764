"""Parts that were dropped whole (heads, KV groups, feed-forward networks, blocks), as a map of the model and as a list.

Every string from data is escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from secateur.core.records.verdict import VerdictRecord
from secateur.core.site import Site, block_at
from secateur.errors import UnknownName
from secateur.report.markup import key
from secateur.report.templating import fragment

MOST_RUNS = 40  # numbers and runs that are listed one by one; beyond, as with scattered neurons, their count
_UNITS = {
    "h": ("head", "heads"),
    "g": ("KV group", "KV groups"),
    "n": ("neuron", "neurons"),
    "e": ("expert", "experts"),
}
_WHOLES = {
    "attn": "attention",
    "cross": "cross-attention",
    "mlp": "feed-forward network",
    "": "the whole layer",
}


def site_of(address: str) -> Site | None:
    """Return the site, or None for text that is no address."""
    try:
        return Site.parse(address)
    except UnknownName:
        return None


@dataclass(frozen=True)
class Dropped:
    """The sites that a plan removes, and the shape of the model that it removes them from.

    Args:
        blocks: How many blocks the model has.
        heads: Query heads of a block; 0 where that is unknown.
        groups: KV groups of a block.
        replaced: Blocks that a linear map stands for, by itself or folded into the network before.
        headless: Blocks of a hybrid that never had heads.
        encoder: Of the blocks, those of an encoder, which come first.
    """

    sites: frozenset[Site] = frozenset()
    blocks: int = 0
    heads: int = 0
    groups: int = 0
    replaced: frozenset[int] = frozenset()
    headless: frozenset[int] = frozenset()
    encoder: int = 0

    def __contains__(self, site: Site) -> bool:
        """Tell whether `site` is gone: itself, the whole it is a part of, or the KV group it belongs to."""
        wholes = [site, *site.wholes]
        if site.unit == "h" and self.groups:
            wholes.append(site.beside(site.part, "g", site.index * self.groups // self.heads))
        return not self.sites.isdisjoint(wholes)


def dropped(verdict: VerdictRecord) -> Dropped:
    """Return what a verdict says was dropped; nothing where only matrices were cut."""
    model = verdict.model
    sites = frozenset(
        site for item in verdict.cut if item.kind == "drop" and (site := site_of(item.site)) is not None
    )
    blocks = max(model.num_blocks, 1 + max((site.block for site in sites), default=-1))
    replaced = frozenset(block for item in verdict.cut for block in item.blocks or ())
    groups = model.num_kv_heads or model.num_heads
    headless = frozenset(model.without_heads)
    return Dropped(sites, blocks, model.num_heads, groups, replaced, headless, model.encoder_blocks)


def drop_map(gone: Dropped) -> str:
    """Return a line for each block: its heads as squares, groups apart, and its feed-forward network as a bar."""
    size = gone.heads // gone.groups if gone.heads else 0
    between = 7 if size > 1 else 2  # pixels; heads of a group stand closer than groups
    width = 22 * gone.heads + 2 * (gone.heads - gone.groups) + between * max(0, gone.groups - 1)
    words = "; ".join(f"{block}: {words}" for block, words in by_block(gone)) or "nothing"
    whole = [("cut gone", "whole layer")] if any(not site.part for site in gone.sites) else []
    drawn = fragment(
        "cut",
        "drop_map",
        lines=[_line(block, size, gone) for block in reversed(range(gone.blocks))],
        heads="" if not gone.heads else "heads" if size == 1 else f"heads, in groups of {size}",
        label=f"Map of the model, {gone.blocks} blocks, the first at the bottom; cut: {words}",
        style=f"--heads:{width}px;--between:{between}px" + (";--label:54px" if gone.encoder else ""),
    )
    folded = [("cut folded", "a linear map stands for it")] if gone.replaced else []
    return drawn + key(("tried", "stays"), ("cut", "cut"), *whole, *folded)


def _line(block: int, size: int, gone: Dropped) -> dict[str, object]:
    """Return what the template needs of a block: (site, whether it is gone) of each head, by group; its network."""
    whole = block_at(block, gone.encoder)
    heads = [
        [whole.beside("attn", "h", group * size + place) for place in range(size)]
        for group in range(0 if block in gone.headless else gone.groups)
    ]
    network = whole.beside("mlp")
    return {
        "block": str(whole),
        "gone": whole in gone,
        "replaced": block in gone.replaced,
        "groups": [
            [(str(site), site in gone or block in gone.replaced) for site in group] for group in heads
        ],
        "network": str(network),
        "network_gone": network in gone or block in gone.replaced,
        "lost": [
            f"{len(units):,} {words[len(units) > 1]}"
            for unit, words in _UNITS.items()
            if (units := [s for s in gone.sites if s.unit == unit and s.wholes[0] == network])
        ],
    }


def drop_list(gone: Dropped) -> str:
    """Return what was dropped, block by block: `b0  heads 1–3, 6; feed-forward network`."""
    items = "".join(
        f"<dt>{block.words} <code>{block}</code></dt><dd>{words}</dd>" for block, words in by_block(gone)
    )
    return f'<dl class="drops">{items}</dl>' if items else ""


def by_block(gone: Dropped) -> Iterable[tuple[Site, str]]:
    """Yield each layer that lost something, with what went of it: `heads 1–3, 6; feed-forward network`."""
    for block in range(gone.blocks):
        whole = block_at(block, gone.encoder)
        sites = sorted(site for site in gone.sites if site.whole_block == whole)
        own, crossing = ([s for s in sites if (s.part == "cross") == crosses] for crosses in (False, True))
        words = [part for unit in _UNITS for part in _unit_words(own, unit)]
        words += [f"cross-attention {part}" for unit in "hg" for part in _unit_words(crossing, unit)]
        words += [_WHOLES[site.part] for site in sites if not site.unit]
        if words:
            yield whole, "; ".join(words)


def _unit_words(sites: Sequence[Site], unit: str) -> list[str]:
    indices = [site.index for site in sites if site.unit == unit]
    if not indices:
        return []
    (singular, plural), numbers = _UNITS[unit], runs(indices)
    if numbers.count(",") >= MOST_RUNS:
        return [f"{len(indices):,} {plural}"]
    return [f"{singular if len(indices) == 1 else plural} {numbers}"]


def runs(numbers: Sequence[int]) -> str:
    """Return ascending numbers with runs of three or more joined: `1–3, 6`."""
    spans: list[list[int]] = []
    for value in numbers:
        if spans and value == spans[-1][-1] + 1:
            spans[-1].append(value)
        else:
            spans.append([value])
    words = [[f"{s[0]}–{s[-1]}"] if len(s) > 2 else [str(v) for v in s] for s in spans]
    return ", ".join(word for span in words for word in span)
