"""Work out the shape that a plan leaves: blocks, heads, neurons and ranks. Values only, no tensor.

Query heads that share one key/value head must stay equally many in all groups of a block, or the attention cannot be
computed. Where a plan leaves them uneven there are two exact ways out, and the smaller one is taken: a key/value head
is repeated for parts of its group, or dropped heads stay in place, with zeroed output columns.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from secateur.core.plan import Linearize, Plan
from secateur.core.site import CROSS_MATRICES, Site, part_of
from secateur.hf.anatomy import Anatomy
from secateur.hf.family import HeadSizes
from secateur.hf.matrices import Matrix
from secateur.surgery.operations import OUTPUTS, following, group_of, num_directions


@dataclass(frozen=True)
class Group:
    """One key/value head and the query heads it serves, by their numbers in the original."""

    kv: int
    queries: tuple[int, ...]


@dataclass(frozen=True)
class BlockShape:
    """The remaining parts of block `number`. None: the part is dropped whole; empty: no unit remains, but a bias.

    `experts` are those of a mixture, empty where the block's network is none. `cross` are the groups of a
    cross-attention, and `site` is the block's address.
    """

    number: int
    groups: tuple[Group, ...] | None
    neurons: Sequence[int] | None
    experts: Sequence[int] = ()
    cross: tuple[Group, ...] | None = None
    site: Site = field(default=Site(0))

    def groups_of(self, part: str) -> tuple[Group, ...] | None:
        """Return the remaining groups of the self-attention (`attn`) or of the cross-attention (`cross`)."""
        return self.cross if part == "cross" else self.groups

    def heads_of(self, part: str) -> list[int]:
        """Return the remaining query heads of an attention, by their numbers in the original."""
        return [head for group in self.groups_of(part) or () for head in group.queries]

    @property
    def heads(self) -> list[int]:
        """Return the remaining query heads, by their numbers in the original."""
        return self.heads_of("attn")

    @property
    def queries(self) -> int:
        """Return the number of query heads for each key/value head."""
        return len(self.groups[0].queries) if self.groups else 0


@dataclass(frozen=True)
class Shape:
    """The remaining blocks of a model and the matrices that are stored in another form.

    `ranks` are of the matrices that are stored as two factors; `folds` are the matrices that need a bias and have none;
    `entries` are the linear maps, in order, by the block that they are put before, None for the end.
    """

    blocks: tuple[BlockShape, ...]
    ranks: Mapping[Site, int] = field(default_factory=dict)
    folds: frozenset[Site] = frozenset()
    entries: Mapping[int | None, tuple[Linearize, ...]] = field(default_factory=dict)

    @property
    def numbers(self) -> list[int]:
        """Return the remaining blocks, by their numbers in the original."""
        return [block.number for block in self.blocks]

    def size(self, matrix: Matrix, anatomy: Anatomy) -> tuple[int, int]:
        """Return the remaining (out, in) of a matrix of a remaining block."""
        block, head = self.block_of(matrix.site), anatomy.widths[anatomy.number(matrix.site)].head
        return len(rows_left(matrix, block, head)), len(columns_left(matrix, block, head))

    def block_of(self, site: Site) -> BlockShape:
        """Return the remaining block that a site is in."""
        whole = site.whole_block
        return next(block for block in self.blocks if block.site == whole)

    def num_parameters(self, anatomy: Anatomy) -> int:
        """Return the parameters of the whole model as it will be stored; tied ones count once."""
        blocks = enumerate(anatomy.widths)
        lost = sum(widths.num_parameters for block, widths in blocks if block not in self.numbers)
        biased = new_biases(self, anatomy)
        edits = (edit for entry in self.entries.values() for edit in entry)
        added = sum(array.size for edit in edits for array in edit.fitted.content.values())
        return (
            anatomy.num_parameters - lost + added - sum(self._lost(b, anatomy, biased) for b in self.blocks)
        )

    def _lost(self, block: BlockShape, anatomy: Anatomy, biased: Set[str]) -> int:
        widths = anatomy.widths[block.number]
        lost = (widths.num_experts - len(block.experts)) * widths.expert
        sizes = (
            len(block.groups or ()),
            len(block.heads),
            len(block.heads_of("cross")),
            len(block.neurons or ()),
        )
        whole = sizes == (widths.num_kv_heads, widths.num_heads, widths.num_cross, widths.d_ff)
        if whole and not biased and not any(site.whole_block == block.site for site in self.ranks):
            return lost
        gone: set[str] = set()
        # An attention that has no heads since an earlier cut stays as it is: nothing, or a bias.
        if not block.groups and widths.num_heads and widths.attention:
            lost += widths.attention
            if block.groups is not None:
                lost -= anatomy.d_model  # the bias
            gone |= set("qkvo")
        elif block.groups:
            lost += (widths.num_heads - len(block.heads)) * len(anatomy.details.per_head)
        if not block.cross and widths.num_cross:
            lost += widths.cross
            if block.cross is not None:
                lost -= anatomy.d_model  # the bias
            gone |= set(CROSS_MATRICES)
        if not block.neurons and widths.d_ff and widths.network:
            lost += widths.network
            if block.neurons is not None:
                lost -= anatomy.d_model  # the bias
            gone |= {"gate", "up", "down"}
        for site, matrix in anatomy.matrices.items():
            if site.whole_block == block.site and site.part not in gone:
                lost += self._lost_of(matrix, anatomy, biased)
        return lost

    def _lost_of(self, matrix: Matrix, anatomy: Anatomy, biased: Set[str]) -> int:
        rows, columns = self.size(matrix, anatomy)
        rank = self.ranks.get(matrix.site)
        weights = rows * columns if rank is None else rank * (rows + columns)
        block = self.block_of(matrix.site)
        left = {"o": block.groups, "cross.o": block.cross, "down": block.neurons}
        gone = left.get(matrix.site.part, ()) is None
        has_bias = matrix.bias is not None or matrix.module in biased
        lost = matrix.num_parameters - weights - (rows if has_bias and not gone else 0)
        return 2 * lost if anatomy.is_gated(matrix.site) else lost


def shape_of(plan: Plan, anatomy: Anatomy, *, factorize: bool = False) -> Shape:
    """Return the shape that `plan`, which `resolve` accepts, leaves.

    With `factorize`, truncated matrices are stored as two factors wherever that is smaller: below rank mn/(m + n).
    Those of experts are not, which lie in one tensor with those of others, nor queries with gates between their heads.
    """
    gone = set(plan.dropped)
    lost_blocks = anatomy.numbers(plan.blocks_gone)
    left = [number for number in range(anatomy.num_blocks) if number not in lost_blocks]
    folded = {edit.matrix for edit in plan.removed if edit.fold is not None}
    lasting = folded | {site for site, matrix in anatomy.matrices.items() if matrix.bias is not None}
    blocks = tuple(
        BlockShape(
            number,
            _groups(anatomy.site(number, "attn"), gone, lasting, anatomy),
            _neurons(anatomy.site(number, "mlp"), gone, lasting, anatomy),
            tuple(
                n
                for n in range(anatomy.widths[number].num_experts)
                if anatomy.site(number, "mlp", "e", n) not in gone
            ),
            _groups(anatomy.site(number, "cross"), gone, lasting, anatomy)
            if anatomy.widths[number].num_cross
            else None,
            anatomy.site(number),
        )
        for number in left
    )
    folds = frozenset(site for site in folded if anatomy.matrices[site].bias is None)
    entries: dict[int | None, tuple[Linearize, ...]] = {}
    for edit in plan.linearized:
        if edit.form == "linear":
            before = following(edit, left)
            entries[before] = (*entries.get(before, ()), edit)
    shape = Shape(blocks, folds=folds, entries=entries)
    if not factorize:
        return shape
    ranks = {
        site: rank
        for site, rank in ranks_left(plan, anatomy).items()
        if site in anatomy.matrices and not anatomy.is_gated(site)
    }
    sizes = {site: shape.size(anatomy.matrices[site], anatomy) for site in ranks}
    smaller = {s: rank for s, rank in ranks.items() if rank * sum(sizes[s]) < sizes[s][0] * sizes[s][1]}
    return replace(shape, ranks=smaller)


def ranks_left(plan: Plan, anatomy: Anatomy) -> dict[Site, int]:
    """Return the highest possible rank of each truncated matrix, and of each with directions removed."""
    ranks = {edit.matrix: edit.rank for edit in plan.truncated}
    for edit in plan.removed:
        matrix = anatomy.matrix(edit.matrix)
        heads = anatomy.heads_in(edit.matrix) or 1 if edit.per_head else 1
        left = heads * num_directions(matrix, heads) - len(edit.directions)
        ranks[edit.matrix] = min(left, *matrix.shape)
    return ranks


def new_biases(shape: Shape, anatomy: Anatomy) -> Set[str]:
    """Return the modules that get a bias they do not have.

    In a stock class these are all that its config's switch gives one, in a carved one those that need it.
    """
    if not shape.folds:
        return frozenset()
    changes = stock_config(shape, anatomy)
    if isinstance(changes, str):
        return {anatomy.matrices[site].module for site in shape.folds}
    parts = {part for switch, given in anatomy.details.biases.items() if switch in changes for part in given}
    return {m.module for site, m in anatomy.matrices.items() if site.part in parts and m.bias is None}


def heads_gone(plan: Plan, anatomy: Anatomy) -> set[Site]:
    """Return every query head that a plan drops, by itself or with its group, attention or block."""
    gone = {*plan.dropped, *plan.blocks_gone}
    heads = (
        anatomy.site(block, part, "h", index)
        for block, widths in enumerate(anatomy.widths)
        for part, count in (("attn", widths.num_heads), ("cross", widths.num_cross))
        for index in range(count)
    )
    return {head for head in heads if gone & {head, group_of(head, anatomy), *head.wholes}}


def ffns_gone(plan: Plan, anatomy: Anatomy) -> float:
    """Return the share of feed-forward networks that is dropped; a third of its neurons counts as a third of one."""
    gone = {*plan.dropped, *plan.blocks_gone}
    sizes = {block: widths.d_ff for block, widths in enumerate(anatomy.widths) if widths.d_ff}
    lost = 0.0
    for block, d_ff in sizes.items():
        whole = anatomy.site(block)
        neurons = sum(site.unit == "n" and site.whole_block == whole for site in gone)
        lost += 1.0 if gone & {whole, whole.beside("mlp")} else neurons / d_ff
    return lost / max(1, len(sizes))


def experts_gone(plan: Plan, anatomy: Anatomy) -> float:
    """Return the share of the experts of mixtures that is dropped, by themselves or with their block."""
    counts = {block: widths.num_experts for block, widths in enumerate(anatomy.widths)}
    gone = Counter(anatomy.number(site) for site in plan.dropped if site.unit == "e")
    blocks_gone = anatomy.numbers(plan.blocks_gone)
    lost = sum(count if block in blocks_gone else gone[block] for block, count in counts.items())
    return lost / max(1, sum(counts.values()))


def _groups(whole: Site, gone: Set[Site], lasting: Set[Site], anatomy: Anatomy) -> tuple[Group, ...] | None:
    """Return what is left of the attention `whole`."""
    num_heads, num_kv_heads = anatomy.heads(whole)
    if whole in gone or not num_heads:
        return None
    queries = num_heads // num_kv_heads
    groups = []
    for kv in range(num_kv_heads):
        heads = range(kv * queries, (kv + 1) * queries)
        left = tuple(head for head in heads if whole.beside(whole.part, "h", head) not in gone)
        if left and whole.beside(whole.part, "g", kv) not in gone:
            groups.append(Group(kv, left))
    if not groups and whole.beside(OUTPUTS[whole.part]) not in lasting:
        return None
    if groups and "heads" in anatomy.indivisible:
        return tuple(Group(kv, tuple(range(kv * queries, (kv + 1) * queries))) for kv in range(num_kv_heads))
    return tuple(_even(groups, queries))


def _even(groups: list[Group], queries: int) -> list[Group]:
    """Return groups with equally many query heads each, in the way that stores less."""
    counts = [len(group.queries) for group in groups]
    if len(set(counts)) < 2:
        return groups
    part = math.gcd(*counts)
    repeated = [
        Group(group.kv, group.queries[start : start + part])
        for group in groups
        for start in range(0, len(group.queries), part)
    ]
    filled = [_filled(group, max(counts), queries) for group in groups]
    return min((filled, repeated), key=lambda made: len(made) + sum(len(group.queries) for group in made))


def _filled(group: Group, count: int, queries: int) -> Group:
    """Return the group filled up to `count` heads with the first of the dropped ones."""
    gone = [h for h in range(group.kv * queries, (group.kv + 1) * queries) if h not in group.queries]
    return Group(group.kv, tuple(sorted([*group.queries, *gone[: count - len(group.queries)]])))


def _neurons(whole: Site, gone: Set[Site], lasting: Set[Site], anatomy: Anatomy) -> Sequence[int] | None:
    """Return what is left of the feed-forward network `whole`."""
    d_ff, block = anatomy.widths[anatomy.number(whole)].d_ff, whole.block
    if whole in gone or not d_ff:
        return None
    lost = {s.index for s in gone if s.unit == "n" and s.block == block and s.stack == whole.stack}
    if not lost:
        return range(d_ff)
    left = tuple(neuron for neuron in range(d_ff) if neuron not in lost)
    if left and "neurons" in anatomy.indivisible:
        return range(d_ff)
    return left if left or whole.beside("down") in lasting else None


def rows_left(matrix: Matrix, block: BlockShape, head: HeadSizes) -> Sequence[int]:
    """Return the remaining output rows of a matrix, in their new order."""
    kind, attention = matrix.site.kind, part_of(matrix.site.part)
    if kind == "q":
        return spread(block.heads_of(attention), head.query)
    if kind in "kv":
        return spread([group.kv for group in block.groups_of(attention) or ()], head.of(kind))
    if kind in ("gate", "up"):
        return () if block.neurons is None else block.neurons
    return range(matrix.shape[0])


def columns_left(matrix: Matrix, block: BlockShape, head: HeadSizes) -> Sequence[int]:
    """Return the remaining input columns of a matrix, in their new order."""
    kind = matrix.site.kind
    if kind == "o":
        return spread(block.heads_of(part_of(matrix.site.part)), head.value)
    if kind == "down":
        return () if block.neurons is None else block.neurons
    return range(matrix.shape[1])


def spread(heads: Sequence[int], size: int) -> list[int]:
    """Return the rows of some heads, each of which has `size` of them."""
    return [head * size + column for head in heads for column in range(size)]


# -------------------------------------------------------------------------------------------------- where it will load


def stock_config(shape: Shape, anatomy: Anatomy) -> dict[str, int | bool] | str:
    """Return the config changes that give the family's stock class this shape, or the reason why none has it."""
    if anatomy.carved:
        return "the model has shapes of its own already"
    if shape.entries:
        return "a linear map between blocks has no place in a stock class"
    if shape.ranks:
        return "factorised matrices have no place in a stock class"
    attending = [block for block in shape.blocks if anatomy.widths[block.number].num_heads]
    if any(not block.groups for block in attending) or any(
        not block.cross and anatomy.widths[block.number].num_cross for block in shape.blocks
    ):
        return "a block without attention has no place in a stock class"
    if any(not block.neurons and anatomy.widths[block.number].d_ff for block in shape.blocks):
        return "a block without feed-forward network has no place in a stock class"
    if anatomy.num_encoder:
        return _pairs_config(shape, anatomy)
    if anatomy.details.first_lacks and shape.numbers[0]:
        return "the first block of the class lacks a norm that this one has"
    heads = {(len(block.groups or ()), block.queries) for block in attending}
    if len(heads) > 1:
        return "blocks have different numbers of heads"
    widths = {len(block.neurons or ()) for block in shape.blocks}
    if len(widths) > 1:
        return "feed-forward networks have different widths"
    experts = {len(block.experts) for block in shape.blocks if block.experts}
    if len(experts) > 1:
        return "blocks have different numbers of experts"
    biases = _biases(shape.folds, anatomy)
    if isinstance(biases, str):
        return biases
    sizes, mixture = _changes(*heads.pop(), widths.pop(), anatomy), anatomy.details.experts
    if isinstance(sizes, str):
        return sizes
    if mixture is not None and experts and experts != {max(width.num_experts for width in anatomy.widths)}:
        sizes |= {mixture.count: experts.pop()}
    return sizes | biases


def _pairs_config(shape: Shape, anatomy: Anatomy) -> dict[str, int | bool] | str:
    """Return the config changes for an encoder-decoder whose blocks all have attention and network, or the reason."""
    if shape.folds:
        return f"{anatomy.architecture} has no place for a bias of {min(site.part for site in shape.folds)}"
    if not anatomy.can_cache(*depths_of(shape, anatomy).values()):
        return f"{anatomy.architecture} makes a cache of as many layers as its encoder has, and its decoder has more"
    changes: dict[str, int | bool] = {}
    for block in shape.blocks:
        own, family = anatomy.widths[block.number], anatomy.family_of(block.number)
        if (len(block.heads), len(block.heads_of("cross"))) != (own.num_heads, own.num_cross):
            if family.shared_bias:
                return f"{anatomy.architecture} has one bias of positions for the heads of all blocks"
            return f"{anatomy.architecture} fixes the size of a head by their number, so no other number fits"
        width, left = str(family.width), len(block.neurons or ())
        if changes.setdefault(width, left) != left:
            return "feed-forward networks have different widths"
    return changes


def depths_of(shape: Shape, anatomy: Anatomy) -> dict[str, int]:
    """Return how many blocks encoder and decoder have left, by the attributes of their config."""
    encoder = sum(number < anatomy.num_encoder for number in shape.numbers)
    depth = anatomy.family_of(0).depth
    return {depth: encoder, anatomy.details.depth: len(shape.numbers) - encoder}


def _biases(folds: Set[Site], anatomy: Anatomy) -> dict[str, bool] | str:
    """Return the switches that give every matrix of `folds` a bias, or the reason why none does."""
    family, switches = anatomy.details, {}
    for part in sorted({site.part for site in folds}):
        switch = next((name for name, parts in family.biases.items() if part in parts), None)
        if switch is None:
            return f"{family.architecture} has no place for a bias of {part}"
        switches[switch] = True
    return switches


def stock_groups(anatomy: Anatomy) -> list[int]:
    """Return how many KV groups a block of a stock model may have, ascending; one number where that is fixed."""
    family, queries = anatomy.details, anatomy.num_heads // anatomy.num_kv_heads
    if not anatomy.free_heads:
        return [anatomy.num_kv_heads]
    every = range(1, anatomy.num_kv_heads + 1)
    return [groups for groups in every if not family.even_heads or anatomy.d_model % (groups * queries) == 0]


def _changes(groups: int, queries: int, d_ff: int, anatomy: Anatomy) -> dict[str, int] | str:
    family, changes = anatomy.details, {}
    if (groups, groups * queries) != (anatomy.num_kv_heads, anatomy.num_heads):
        if not anatomy.free_heads:
            return f"{family.architecture} fixes the size of a head by their number, so no other number fits"
        if family.even_heads and anatomy.d_model % (groups * queries):
            return f"{family.architecture} takes no {groups * queries} heads: they do not divide {anatomy.d_model}"
        changes = {"num_attention_heads": groups * queries, "num_key_value_heads": groups}
        changes |= {} if family.latent else {"head_dim": anatomy.d_head}
    if d_ff != anatomy.d_ff:
        if family.width is None:
            return f"{family.architecture} fixes the width of its feed-forward networks"
        changes[family.width] = d_ff
        if family.rounds_width is not None:
            changes[family.rounds_width] = False
    return changes
