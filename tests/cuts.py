"""One plan of every kind of cut, for any model of the zoo."""

from __future__ import annotations

import numpy as np

from secateur.core.fitted import Fitted
from secateur.core.plan import Drop, Edit, Linearize, RemoveDirections, Truncate
from secateur.core.site import Site
from secateur.hf.anatomy import Anatomy
from secateur.surgery.operations import num_directions

KINDS = [
    "one head", "uneven heads", "all heads of a block", "KV group", "KV groups everywhere", "heads everywhere",
    "attention of block 0", "attention of block 1", "FFN of block 0", "neurons", "all neurons of a block",
    "neurons everywhere", "block 0", "last block", "mixed", "rank 0", "rank 3", "ranks and heads", "q alone",
    "directions", "directions of attention", "directions of heads", "directions and parts", "few directions left",
    "linear block 0", "last block linear", "linear of rank 2", "all but one linear", "folded", "folded and cut",
]  # fmt: skip


def drops(*sites: str) -> list[Edit]:
    return [Drop(Site.parse(site)) for site in sites]


def removals(
    a: Anatomy,
    block: int,
    kinds: str = "q k v o gate up down",
    *,
    per_head: bool = False,
    keep: int | None = None,
) -> list[Edit]:
    """Directions 0, 2 and the last of each matrix of a block, or all but the first `keep`, with a mean to fold."""
    found: list[Edit] = []
    for site, matrix in a.matrices.items():
        if site.block == block and site.part in kinds.split():
            heads = (a.heads_in(site) or 1) if per_head else 1
            count = heads * num_directions(matrix, heads)
            gone = (0, 2, count - 1) if keep is None else tuple(range(keep, count))
            mean = np.random.default_rng([block, ord(site.part[0])]).normal(size=matrix.shape[1])
            has_heads = per_head and a.heads_in(site) is not None
            found.append(RemoveDirections(site, gone, has_heads, Fitted.of({"mean": mean})))
    return found


def linear(a: Anatomy, *blocks: int, rank: int | None = None, form: str = "linear") -> Edit:
    """A run of blocks as a random map near the identity."""
    random = np.random.default_rng(blocks)
    width = a.d_model
    if form == "fold":
        return Linearize(blocks, form, Fitted.of({"weight": near_identity(random, width)}))
    bias = random.normal(size=width)
    if rank is None:
        return Linearize(blocks, form, Fitted.of({"weight": near_identity(random, width), "bias": bias}))
    factors = {name: random.normal(size=(rank, width)) / width**0.5 for name in "ab"}
    return Linearize(blocks, form, Fitted.of(factors | {"bias": bias}))


def near_identity(random: np.random.Generator, width: int) -> np.ndarray:
    return np.eye(width) + random.normal(size=(width, width)) / width**0.5


def folded(a: Anatomy, *blocks: int) -> list[Edit]:
    """Where a norm follows the feed-forward networks, the same run as a linear map, or dropped."""
    if a.foldable:
        return [linear(a, *blocks, form="fold")]
    return [linear(a, *blocks)] if a.final_norm else drops(*(f"b{block}" for block in blocks))


def edits_of(kind: str, a: Anatomy) -> list[Edit]:
    """Edits of one kind for any model of the zoo."""
    heads, groups, blocks = range(a.num_heads), range(a.num_kv_heads), range(a.num_blocks)
    of_each_group = range(0, a.num_heads, a.num_heads // a.num_kv_heads)
    if a.num_heads == a.num_kv_heads:
        of_each_group = range(1, 2)
    last = a.num_blocks - 1
    return {
        "one head": lambda: drops("b0.attn.h1"),
        "uneven heads": lambda: drops("b0.attn.h1", "b1.attn.h0", "b1.attn.h2", "b1.attn.h3"),
        "all heads of a block": lambda: drops(*(f"b0.attn.h{h}" for h in heads)),
        "KV group": lambda: drops("b1.attn.g0"),
        "KV groups everywhere": lambda: drops(*(f"b{b}.attn.g{b % len(groups)}" for b in blocks)),
        "heads everywhere": lambda: drops(*(f"b{b}.attn.h{h}" for b in blocks for h in of_each_group)),
        "attention of block 0": lambda: drops("b0.attn"),
        "attention of block 1": lambda: drops("b1.attn"),
        "FFN of block 0": lambda: drops("b0.mlp"),
        "neurons": lambda: drops("b0.mlp.n3", "b0.mlp.n4", "b1.mlp.n0"),
        "all neurons of a block": lambda: drops(*(f"b1.mlp.n{n}" for n in range(a.d_ff))),
        "neurons everywhere": lambda: drops(*(f"b{b}.mlp.n{n}" for b in blocks for n in (1, 5, 6))),
        "block 0": lambda: drops("b0"),
        "last block": lambda: drops(f"b{a.num_blocks - 1}"),
        "mixed": lambda: drops("b0.attn", "b1.mlp", "b1.attn.h2"),
        "rank 0": lambda: [Truncate(site, 0) for site in a.matrices if site.block == 0],
        "rank 3": lambda: [Truncate(site, 3) for site in a.matrices if site.block == 0],
        "ranks and heads": lambda: [
            *(Truncate(site, 2, "tail") for site in a.matrices if site.block == 1),
            *drops("b1.attn.h1", "b1.mlp.n2"),
        ],
        "directions": lambda: removals(a, 0),
        "directions of attention": lambda: removals(a, 1, "k v"),
        "directions of heads": lambda: removals(a, 1, "q k v o", per_head=True),
        "directions and parts": lambda: [
            *removals(a, 0, "o down"), *removals(a, 1, "q up"),
            *drops(*(f"b0.attn.h{h}" for h in heads), *(f"b0.mlp.n{n}" for n in range(a.d_ff))),
            *drops("b1.attn.h1", "b1.mlp.n2"),
        ],
        "few directions left": lambda: removals(a, 0, keep=2),
        "linear block 0": lambda: [linear(a, 0)],
        "last block linear": lambda: [linear(a, last)] if a.final_norm else drops(f"b{last}"),
        "linear of rank 2": lambda: [linear(a, 0, rank=2), *drops("b1.attn.h1", "b1.mlp.n2")],
        "all but one linear": lambda: [linear(a, *range(last))],
        "folded": lambda: folded(a, *range(1, a.num_blocks)),
        "folded and cut": lambda: [*folded(a, last), *drops("b0.attn.h1", "b0.mlp.n2"), *removals(a, 0, "k up")],
        "q alone": lambda: [Truncate(Site(0, "q"), 2), *drops("b0.attn.h0")],
    }[kind]()  # fmt: skip


def factorized(kind: str) -> bool:
    return "rank" in kind or kind in ("q alone", "few directions left")
