"""The anatomy of a model: its sizes, and for every site the module and the rows that hold it.

Reads names and shapes only, so it works on the meta device; changes nothing. A module that it cannot name it
refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from secateur.core.acts import Acts
from secateur.core.plan import Plan
from secateur.core.site import ATTENTION_MATRICES, EVERY_MATRIX, Site, block_at
from secateur.errors import ModelError, PlanError, UnknownName, nearest
from secateur.hf.family import (
    CAUSAL,
    PAIRS,
    Family,
    HeadSizes,
    Mixture,
    Routing,
    Sizes,
    Slot,
    acts_of,
    has_alibi,
    has_free_heads,
    indivisible_units,
    is_foldable,
    labels_of,
    padding_of,
    residual_scale,
    routing,
    sizes,
    start_of,
)
from secateur.hf.matrices import Matrix, Ranges, grouped_rows, paired_rows, sliced_rows, stacked_rows
from secateur.hf.modeling_secateur import LowRank, SecateurForCausalLM, Side
from secateur.hf.recognize import family_of
from secateur.hf.rope import length_switches
from secateur.hf.weights import distinct, parameter_or_buffer, same


@dataclass(frozen=True)
class Widths:
    """The sizes of one block; 0 where the part was removed.

    `num_parameters` counts all of the block, norms too, `attention` those of the module of its attention, and `network`
    those of the module of its feed-forward network; 0 where there is no such module, or it holds a part of them only.
    Of a mixture `expert` counts those of one expert, with its row of the router. `mixer` counts those of a module that
    stands for the attention, in some blocks of a hybrid; these have no heads. `num_cross` are the heads of the
    cross-attention in a decoder beside an encoder, `cross` counts the parameters of its module, and `head` are the
    sizes of a head.
    """

    num_heads: int
    num_kv_heads: int
    d_ff: int
    num_parameters: int
    attention: int
    network: int
    num_experts: int
    expert: int
    mixer: int
    head: HeadSizes
    num_cross: int = 0
    cross: int = 0

    @property
    def d_head(self) -> int:
        """Return the numbers that a head gives, which its columns of o read."""
        return self.head.value

    def heads(self, part: str) -> tuple[int, int]:
        """Return the query and the key/value heads of the attention that `part` is, or is a matrix of."""
        crosses = part.startswith("cross")
        return (self.num_cross, self.num_cross) if crosses else (self.num_heads, self.num_kv_heads)


@dataclass(frozen=True)
class Anatomy:
    """A model's parts by name. Paths are as for `model.get_submodule`; `context` counts usable positions.

    `widths` are the sizes of each block; `num_heads`, `num_kv_heads` and `d_ff` are those of the widest block;
    in a model that was never cut all blocks are alike. `carved`: it was cut, and has shapes of its own. `mlps`
    are the feed-forward modules that map one tensor to one tensor, one per block, or None for families whose
    blocks have no such module; Falcon adds into what they return, so clone it to keep it. `free_heads`: its
    config can state another number of heads of the same size. `num_parameters` counts tied parameters once.
    `foldable`: what a feed-forward network gives enters the stream as it is; `residual_scale` is the function of
    that name. `indivisible` are units (`heads`, `neurons`) that stay stored, silenced, until the last one of a
    block goes. `entered` are the modules that linear maps lie before, in place of removed blocks. `switches` are
    `length_switches`. `details` is the family's entry in the table. `routing` says how the routers of a mixture of
    experts choose, `of_experts` are matrices of single experts, which no linear layer holds. `mixers` are the
    blocks of a hybrid that have something else than attention, with what that is; `pads_left`: none of these makes
    anything of padding that lies before a text. `labels` are the names that a sequence classifier gives, in the
    order of its logits, `padding` is the token that fills rows, and `num_types` are the texts of a row that
    embeddings tell apart. Of an encoder-decoder the blocks of the encoder come first, `num_encoder` of them, then
    those of the decoder, whose family `details` is; `start` is the token that the decoder begins with. `acts` are
    the sizes of a decision transformer's states and actions; a step of an episode is three of its positions.
    """

    family: str
    architecture: str
    details: Family
    num_blocks: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    d_head: int
    d_ff: int
    vocab_size: int
    context: int | None
    blocks: tuple[str, ...]
    mlps: tuple[str, ...] | None
    embedding: str
    unembedding: str
    final_norm: str | None
    tied: bool
    num_parameters: int
    matrices: Mapping[Site, Matrix]
    widths: tuple[Widths, ...]
    alibi: bool = False
    free_heads: bool = False
    carved: bool = False
    foldable: bool = True
    residual_scale: float | None = 1.0
    indivisible: tuple[str, ...] = ()
    entered: frozenset[str] = frozenset()
    switches: Sequence[int] = ()
    routing: Routing | None = None
    of_experts: Mapping[Site, Matrix] = field(default_factory=dict)
    mixers: Mapping[int, str] = field(default_factory=dict)
    pads_left: bool = True
    labels: tuple[str, ...] = ()
    padding: int = 0
    num_types: int = 1
    num_encoder: int = 0
    start: int = 0
    acts: Acts | None = None

    def number(self, site: Site) -> int:
        """Return the place of a site's block among all blocks. Raises: `UnknownName` where the model has none."""
        if not self.has_block(site):
            raise UnknownName(f"this model has no {site}: it has {self.blocks_in_words}, counted from 0.")
        return self._range(site.stack)[0] + site.block

    @property
    def blocks_in_words(self) -> str:
        """Return how many blocks there are: `12 blocks`, of an encoder-decoder of either stack."""
        if not self.num_encoder:
            return f"{self.num_blocks} blocks"
        return f"{self.num_encoder} blocks enc.bN and {self.num_blocks - self.num_encoder} dec.bN"

    def numbers(self, sites: Iterable[Site]) -> set[int]:
        """Return the places of blocks among all blocks."""
        return {self.number(site) for site in sorted(sites, reverse=True)}

    def lowest_block(self, plan: Plan) -> int:
        """Return the first block that a plan changes, 0 for the empty plan; what is below it may be reused.

        Of an encoder-decoder it is always 0: whatever is judged there runs whole. So it is of a block that is not
        there, which is refused where the plan is resolved.
        """
        lowest = plan.lowest_block
        if lowest is None or self.num_encoder or not self.has_block(lowest):
            return 0
        return self.number(lowest)

    def site(self, number: int, part: str = "", unit: str = "", index: int = 0) -> Site:
        """Return the address of a part of block `number` of all blocks."""
        return block_at(number, self.num_encoder).beside(part, unit, index)

    def reads_source(self, matrix: Matrix) -> bool:
        """Return True for a matrix that is run at the positions of what an encoder reads, not of what is written."""
        return matrix.site.stack == "enc" or matrix.site.part in ("cross.k", "cross.v")

    def refuse_pairs(self, what: str) -> None:
        """Raise `ModelError` for an encoder-decoder, which `what` does not know."""
        if self.num_encoder:
            raise ModelError(
                f"{what} does not know encoder-decoders such as {self.architecture}. They go through --method laser, "
                "directions, heads, ffns, components, attention and depth (--form drop), and apply."
            )

    def has_block(self, site: Site) -> bool:
        """Return True where the model has the block of a site."""
        first, last = self._range(site.stack)
        return site.block < last - first

    def _range(self, stack: str) -> tuple[int, int]:
        """Return the first block of a stack, and the end of it; of one that the model has not, an empty range."""
        if bool(stack) != bool(self.num_encoder):
            return 0, 0
        return (0, self.num_encoder) if stack == "enc" else (self.num_encoder, self.num_blocks)

    def can_cache(self, encoder: int, decoder: int) -> bool:
        """Return True where the stock class has room in its cache with so many blocks."""
        return encoder >= decoder or not self.details.cached_by_encoder

    def family_of(self, block: int) -> Family:
        """Return the family of block `number` of all blocks: in an encoder that of encoders."""
        encoder = self.details.encoder
        return self.details if encoder is None or block >= self.num_encoder else encoder

    def slot(self, site: Site) -> Slot:
        """Return the slot of a kind of matrix in the block of a site."""
        return self.family_of(self.number(site)).slots[site.part]

    def check_causal(self, what: str) -> None:
        """Raise `ModelError` for any other than a causal language model, which `what` is not for."""
        if not self.writes_text:
            no_text = "" if self.answers_text else " and writes no text"
            raise ModelError(
                f"{what} is not for {self.architecture}, {self.details.head.words}{no_text}: leave it out, "
                "or take a causal model."
            )

    def check_cached(self, what: str) -> None:
        """Raise `ModelError` for a model that keeps no keys and values of the past, which `what` needs."""
        self.check_causal(what)
        if not self.details.caches:
            raise ModelError(f"{what}: {self.architecture} keeps no cache, so leave it out.")

    @property
    def writes_text(self) -> bool:
        """Return True for a causal language model."""
        return self.details.head is CAUSAL

    @property
    def answers_text(self) -> bool:
        """Return True for a model that generates text: a causal one, or an encoder-decoder."""
        return self.details.head in (CAUSAL, PAIRS)

    @property
    def num_logits(self) -> int:
        """Return how many numbers the head gives where it is read: one for each token, label, or part of an action."""
        return self.acts.act_dim if self.acts else len(self.labels) or self.vocab_size

    @property
    def attending(self) -> list[int]:
        """Return the blocks that have heads: all of them, unless the model is a hybrid or was cut."""
        return [block for block, block_widths in enumerate(self.widths) if block_widths.num_heads]

    @property
    def kept_from(self) -> tuple[frozenset[int], ...]:
        """Return sets of blocks of each of which one has to stay: all, or of a hybrid those of either kind, or of an
        encoder-decoder those of either stack.

        A cache counts its tokens in a block with attention, and some classes want one of each kind.
        """
        encoder = frozenset(range(self.num_encoder))
        kinds = (
            frozenset(range(self.num_blocks)) - self.mixers.keys() - encoder,
            frozenset(self.mixers),
            encoder,
        )
        return tuple(kind for kind in kinds if kind)

    def check_attention(self, site: Site) -> None:
        """Raise `UnknownName` for an attention, or a part of one, in a block of a hybrid that has none."""
        if site.block in self.mixers and (site.part == "attn" or site.part in ATTENTION_MATRICES):
            raise UnknownName(
                f"{site}: block {site.block} has no attention with heads but {self.mixers[site.block]}, which stays as "
                "it is. Drop the block, cut its feed-forward network, or take a block with heads "
                f"({', '.join(map(str, self.attending)) or 'there is none'})."
            )

    def is_gated(self, site: Site) -> bool:
        """Return True for a matrix of query heads each of which is followed by the rows of its gate."""
        return not site.unit and self.slot(site).layout == "gated"

    def attention(self, block: int, part: str = "attn") -> str:
        """Return the path of the module in which the positions of a block attend to each other, or to an encoder's."""
        return f"{self.blocks[block]}.{_attention(self.family_of(block), part)}"

    def module(self, site: Site) -> str:
        """Return the path of the module that holds a matrix, or of its substitute after a cut."""
        return f"{self.blocks[self.number(site)]}.{self.slot(site).module}"

    def heads(self, site: Site) -> tuple[int, int]:
        """Return the query and the key/value heads of the attention that a site is, or is a part of."""
        return self.widths[self.number(site)].heads(site.part)

    def attentions(self, blocks: Iterable[int]) -> list[Site]:
        """Return the attentions of these blocks, in a decoder beside an encoder also those to its output."""
        return [
            self.site(block, part)
            for block in blocks
            for part in ("attn", "cross")
            if part == "attn" or self.widths[block].num_cross
        ]

    def heads_in(self, site: Site) -> int | None:
        """Return how many heads share a matrix's rows (of an o: its columns); None for matrices without heads."""
        queries, keys = self.heads(site)
        return {"q": queries, "k": keys, "v": keys, "o": queries}.get(site.kind)

    def matrix(self, site: Site) -> Matrix:
        """Return the matrix at `site`.

        Raises: `UnknownName` with the nearest names for a site that is no matrix of this model, `PlanError` for
        one of which an earlier cut left nothing, or two factors.
        """
        if site in self.of_experts:
            return self.of_experts[site]
        self.check_attention(site)
        if site not in self.matrices:
            if self.carved and self.has_block(site) and site.part in self.matrix_kinds:
                raise PlanError(
                    f"{site} is no matrix any more: an earlier cut took it away or stored it as two factors. Cut the "
                    "original model once, with one plan for all."
                )
            known = [str(other) for other in (*self.matrices, *self.of_experts)]
            raise UnknownName(f"this model has no matrix {site}.{nearest(str(site), known)}")
        return self.matrices[site]

    @property
    def matrix_kinds(self) -> tuple[str, ...]:
        """Return the kinds of matrices that blocks have, in canonical order: `q k v o gate up down` or some of them."""
        kinds = {site.part for site in self.matrices}
        return tuple(kind for kind in EVERY_MATRIX if kind in kinds)

    @property
    def every_matrix(self) -> Mapping[Site, Matrix]:
        """Return the matrices of blocks, those of experts included."""
        return {**self.matrices, **self.of_experts}


def anatomy(model: PreTrainedModel) -> Anatomy:
    """Return the anatomy of a Hugging Face causal or masked language model, sequence classifier, encoder-decoder or
    decision transformer, carved or not.

    Raises: `ModelError` for adapters, quantized models, mixtures of experts and other kinds that are not cut,
    for unknown families, and for any module with a matrix that the family's table does not name.
    """
    _refuse_wrapped(model)
    stock = stock_class(type(model))
    family = family_of(stock.__name__, model.config.to_dict())
    _refuse_foreign_code(stock, family)
    carved = stock is not type(model)
    config = model.config.get_text_config()
    general = sizes(family, config)
    if family.shares_embeddings and not getattr(config, family.shares_embeddings):
        raise ModelError(
            f"this {family.architecture} has a vocabulary for each of its two languages ({family.shares_embeddings} is "
            "false), and is not read: take one with a common vocabulary."
        )
    each = [
        (own, path, Site(number, stack=stack))
        for stack, own in family.stacks.items()
        for number, path in enumerate(_block_paths(model, own))
    ]
    blocks = tuple(path for _, path, _ in each)
    num_encoder = sum(own is family.encoder for own, _, _ in each)
    mixers = dict(_mixers(model, family, blocks))
    if len(mixers) == len(blocks):
        raise ModelError(f"this {family.architecture} has no block with attention, and is not read.")
    widths = tuple(
        _widths(model, own, general if own is family else sizes(own, config), block, carved)
        for own, block, _ in each
    )
    listed = (
        _block(model, own, general, block, at, block_widths, carved)
        for (own, block, at), block_widths in zip(each, widths, strict=True)
    )
    matrices = {matrix.site: matrix for matrix in chain.from_iterable(listed)}
    _refuse_unnamed(model, family, matrices)
    embedding, _ = (_module(model, path) for path in (family.embedding, family.unembedding))
    return Anatomy(
        family=family.name,
        architecture=family.architecture,
        details=family,
        num_blocks=len(blocks),
        d_model=general.d_model,
        num_heads=max(block_widths.num_heads for block_widths in widths),
        num_kv_heads=max(block_widths.num_kv_heads for block_widths in widths),
        d_head=general.d_head,
        d_ff=max(block_widths.d_ff for block_widths in widths),
        vocab_size=embedding.get_parameter("weight").shape[0],
        context=general.context,
        blocks=blocks,
        mlps=None if family.mlp is None else tuple(f"{block}.{own.mlp}" for own, block, _ in each),
        embedding=family.embedding,
        unembedding=family.unembedding,
        final_norm=None if _find(model, family.final_norm) is None else family.final_norm,
        tied=same(model, f"{family.unembedding}.weight", f"{family.embedding}.weight"),
        num_parameters=sum(p.numel() for p in distinct(model).values()),
        matrices=matrices,
        widths=widths,
        alibi=has_alibi(family, config),
        free_heads=has_free_heads(family, config),
        carved=carved,
        foldable=is_foldable(family, config),
        residual_scale=residual_scale(family, config),
        indivisible=indivisible_units(family, config),
        entered=frozenset(path for path, module in model.named_modules() if _entry_of(module) is not None),
        switches=length_switches(config, family.bidirectional),
        routing=routing(family, config),
        of_experts={}
        if family.experts is None
        else dict(_matrices_of_experts(model, blocks, widths, family.experts)),
        mixers={block: family.mixers[module] for block, module in mixers.items()},
        pads_left=not any(
            _has_bias(_module(model, f"{blocks[block]}.{module}")) for block, module in mixers.items()
        ),
        labels=labels_of(family, config),
        padding=padding_of(family, config),
        num_types=getattr(config, "type_vocab_size", 1) if family.bidirectional else 1,
        num_encoder=num_encoder,
        start=start_of(family, config),
        acts=acts_of(family, config),
    )


def _mixers(model: nn.Module, family: Family, blocks: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield each block that has another module in the place of its attention, with the name of that."""
    for number, block in enumerate(blocks):
        found = [module for module in family.mixers if _find(model, f"{block}.{module}") is not None]
        if found:
            yield number, found[0]


def _has_bias(module: nn.Module) -> bool:
    """Return True where a projection in a module makes something of zeros, to which padding is set before it."""
    return any(isinstance(part, nn.Linear) and part.bias is not None for part in module.modules())


def stock_class(cls: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the class itself, or of a carved model the stock class that it carves."""
    return cls.__mro__[1] if cls.__name__ == SecateurForCausalLM.__name__ else cls


def _refuse_wrapped(model: object) -> None:
    if getattr(model, "peft_config", None) or getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            "this model carries an unmerged adapter (PEFT): merge_and_unload() it and save that."
        )
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise ModelError(f"this {type(model).__name__} is quantized; use the original float checkpoint.")
    if not hasattr(getattr(model, "config", None), "to_dict"):
        raise ModelError(f"{type(model).__name__} is not a Hugging Face model: it has no config.")


def _refuse_foreign_code(stock: type, family: Family) -> None:
    """Refuse a class of the same name from elsewhere: it may order fused rows in another way, which no shape shows."""
    fused = any(slot.layout != "whole" for slot in family.slots.values())
    if fused and not stock.__module__.startswith("transformers."):
        raise ModelError(
            f"{family.architecture} of {stock.__module__} is not transformers' own class, and its "
            "fused matrices may be laid out otherwise. Load it with transformers' class of that name."
        )


def _block_paths(model: nn.Module, family: Family) -> tuple[str, ...]:
    blocks = _module(model, family.blocks)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        raise ModelError(f"{family.architecture}: {family.blocks} is not a list of blocks.")
    return tuple(f"{family.blocks}.{index}" for index in range(len(blocks)))


def _widths(model: nn.Module, family: Family, general: Sizes, block: str, carved: bool) -> Widths:
    """Return the sizes that the config states; of a carved model those of its modules, some of which may be gone."""
    mixer = sum(_count(model, f"{block}.{module}") for _, module in _mixers(model, family, [block]))
    attention = 0 if family.mixes or mixer else _count(model, f"{block}.{_attention(family)}")
    network = 0 if family.mlp is None else _count(model, f"{block}.{family.mlp}")
    first = _find(model, f"{block}.{family.from_first}") if family.from_first else None
    shared = 0 if first is None else sum(parameter.numel() for parameter in first.parameters())
    cross = _count(model, f"{block}.{_attention(family, 'cross')}") if "cross.o" in family.slots else 0
    counted = (_count(model, block) - shared, attention - shared, network)
    paths = {kind: f"{block}.{slot.module}" for kind, slot in family.slots.items()}
    experts = (0, 0) if family.experts is None else _expert_sizes(model, block, family.experts)
    if not carved:
        d_ff = _stored_shape(_linear(model, paths["down"]))[1] if "down" in paths else 0
        heads = (0, 0) if mixer else (general.num_heads, general.num_kv_heads)
        crossing = general.num_heads if cross else 0
        return Widths(*heads, d_ff, *counted, *experts, mixer, general.head, crossing, cross)
    found = {kind: _find(model, path) for kind, path in paths.items()}
    key = found["k"]
    outputs = key.nf if isinstance(key, Conv1D) else getattr(key, "out_features", 0)
    layout, head = family.slots["k"].layout, general.head
    stored = head.key + head.value if layout == "paired" else head.key
    num_heads, keys = (0, 0) if mixer else (_inputs(found["o"]) // head.value, outputs // stored)
    num_kv_heads = keys if layout in ("whole", "paired") else (keys - num_heads) // 2
    d_ff = _inputs(found.get("down"))
    crossing = _inputs(found.get("cross.o")) // general.d_head
    num_kv_heads = num_kv_heads if num_heads else 0
    return Widths(num_heads, num_kv_heads, d_ff, *counted, *experts, mixer, general.head, crossing, cross)


def _expert_sizes(model: nn.Module, block: str, experts: Mixture) -> tuple[int, int]:
    """Return how many experts a block has and the parameters of one; none where its network is no mixture."""
    network = f"{block}.{experts.network}"
    if _find(model, f"{network}.{experts.router}") is None:
        return 0, 0
    lacks = [name for name in experts.rows if _find(model, f"{network}.{name}") is None]
    if lacks:
        raise ModelError(
            f"{network} holds no {lacks[0]}, which its family should have (another kind of router?)."
        )
    tensors = {name: parameter_or_buffer(model, f"{network}.{name}") for name in experts.rows}
    (count,) = {tensors[name].shape[dimension] for name, dimension in experts.rows.items()}
    sizes = (tensor.numel() // count for tensor in tensors.values() if isinstance(tensor, nn.Parameter))
    return count, sum(sizes)


def _matrices_of_experts(
    model: nn.Module, blocks: Sequence[str], widths: Sequence[Widths], experts: Mixture
) -> Iterator[tuple[Site, Matrix]]:
    """Yield gate, up and down of every expert; gate and up share a parameter, in which experts lie upon each other."""
    for number, (block, own) in enumerate(zip(blocks, widths, strict=True)):
        path = f"{block}.{experts.network}.experts"
        turned = experts.interleaved
        if own.num_experts:
            _, *shape = parameter_or_buffer(model, f"{path}.down_proj").shape
            d_model, d_ff = reversed(shape) if turned else shape
        for expert in range(own.num_experts):
            for place, kind in enumerate(("gate", "up")):
                every_other = tuple((row, row + 1) for row in range(place, 2 * d_ff, 2))
                rows = every_other if turned else stacked_rows((d_ff, d_ff), place)
                site, weight = Site(number, kind, "e", expert), f"{path}.gate_up_proj"
                yield site, Matrix(site, path, weight, (d_ff, d_model), rows, turned, expert=expert)
            site = Site(number, "down", "e", expert)
            yield (
                site,
                Matrix(site, path, f"{path}.down_proj", (d_model, d_ff), transposed=turned, expert=expert),
            )


def _attention(family: Family, part: str = "attn") -> str:
    output = "cross.o" if part == "cross" else "o"
    return (family.mixes if part == "attn" else "") or family.slots[output].module.rpartition(".")[0]


def _count(model: nn.Module, path: str) -> int:
    return sum(parameter.numel() for parameter in _module(model, path).parameters())


def _inputs(module: nn.Module | None) -> int:
    """Return the inputs of a linear layer, whole or as two factors; 0 for the substitute of a removed one."""
    return module.nx if isinstance(module, Conv1D) else getattr(module, "in_features", 0)


def _block(
    model: nn.Module,
    family: Family,
    general: Sizes,
    block: str,
    at: Site,
    block_widths: Widths,
    carved: bool,
) -> Iterator[Matrix]:
    """Yield the matrices of the block `at`; in a carved model those that are left and whole."""
    for kind, slot in family.slots.items():
        path = f"{block}.{slot.module}"
        if block_widths.mixer and kind in ATTENTION_MATRICES:
            continue
        if carved and not isinstance(_find(model, path), (nn.Linear, Conv1D)):
            continue
        linear = _linear(model, path)
        shape = _shape(kind, general, block_widths)
        rows = sum(_shape(sharer, general, block_widths)[0] for sharer in _sharers(kind, slot.layout))
        needed = (2 * rows if slot.layout == "gated" else rows, shape[1])
        if _stored_shape(linear) != needed:
            found = _stored_shape(linear)
            raise ModelError(f"{path} is {found} (out, in), where {family.name} should have {needed}.")
        yield Matrix(
            at.beside(kind),
            path,
            f"{path}.weight",
            shape,
            _rows(kind, slot.layout, general, block_widths),
            isinstance(linear, Conv1D),
            None if linear.bias is None else f"{path}.bias",
        )


def _shape(kind: str, general: Sizes, block_widths: Widths) -> tuple[int, int]:
    """Return (out, in) of a matrix, from the widths alone."""
    head, keys, d_ff = block_widths.head, block_widths.num_kv_heads, block_widths.d_ff
    crossing = block_widths.num_cross * head.value
    outputs = {"q": block_widths.num_heads * head.query, "k": keys * head.key, "v": keys * head.value}
    outputs |= {"gate": d_ff, "up": d_ff, "cross.q": crossing, "cross.k": crossing, "cross.v": crossing}
    inputs = {"o": block_widths.num_heads * head.value, "cross.o": crossing, "down": d_ff}
    inputs |= {kind: size for kind, size in zip("qkv", head.reads, strict=True) if size}
    return outputs.get(kind, general.d_model), inputs.get(kind, general.d_model)


def _sharers(kind: str, layout: str) -> tuple[str, ...]:
    """Return the kinds that live in one parameter with `kind`, in stored order where they are stacked."""
    if layout in ("whole", "gated"):
        return (kind,)
    if layout == "paired":
        return ("k", "v")
    return ("q", "k", "v") if kind in "qkv" else ("gate", "up")


def _rows(kind: str, layout: str, general: Sizes, block_widths: Widths) -> Ranges | None:
    if layout == "whole":
        return None
    if layout == "grouped":
        return grouped_rows(kind, block_widths.num_heads, block_widths.num_kv_heads, general.d_head)
    if layout == "paired":
        return paired_rows(kind, block_widths.num_kv_heads, general.head.key, general.head.value)
    if layout == "gated":
        starts = range(0, 2 * block_widths.num_heads * general.d_head, 2 * general.d_head)
        return tuple((start, start + general.d_head) for start in starts)
    if layout == "sliced":
        return sliced_rows(kind, block_widths.num_heads, general.d_head)
    sharers = _sharers(kind, layout)
    return stacked_rows(
        tuple(_shape(sharer, general, block_widths)[0] for sharer in sharers), sharers.index(kind)
    )


def _refuse_unnamed(model: nn.Module, family: Family, matrices: Mapping[Site, Matrix]) -> None:
    """Refuse a model with a nameless parameter of two or more dimensions; norms and biases have one dimension."""
    named = {family.embedding, family.unembedding, *family.extras} | {m.module for m in matrices.values()}
    named |= {f"{block}.{module}" for block in _block_paths(model, family) for module in family.beside}
    if family.from_first:
        named |= {f"{_block_paths(model, own)[0]}.{own.from_first}" for own in family.stacks.values()}
    tower = f"{family.tower}." if family.tower else ""
    network = None if family.experts is None else family.experts.network
    blocks = _block_paths(model, family)
    unedited = tuple(f"{block}.{part}." for block in blocks for part in (network, *family.mixers) if part)
    for path, module in model.named_modules():
        if f"{path}.".startswith(unedited) or not f"{path}.".startswith(tower):
            continue  # stays as it is
        substitutes: list[tuple[str, nn.Module]]
        substitutes = [(path, module)] if isinstance(module, LowRank | Side) else []
        substitutes += [(f"{path}.entry", entry)] if (entry := _entry_of(module)) is not None else []
        named |= {
            f"{at}.{inner}".rstrip(".") for at, part in substitutes for inner, _ in part.named_modules()
        }
        unknown = path not in named and any(p.dim() > 1 for p in module.parameters(recurse=False))
        if unknown:
            raise ModelError(
                f"{family.architecture}: {path} ({type(module).__name__}) holds a matrix that the family "
                f"{family.name} does not have (an adapter, cross-attention, or another variant?)."
            )


def _entry_of(module: nn.Module) -> nn.Module | None:
    """Return the linear maps that a carved module begins with."""
    entry = getattr(module, "entry", None)
    return entry if isinstance(entry, nn.Sequential) else None


def _linear(model: nn.Module, path: str) -> nn.Linear | Conv1D:
    module = _module(model, path)
    if not isinstance(module, (nn.Linear, Conv1D)):
        kind = type(module).__name__
        raise ModelError(f"{path} is a {kind}, not a linear layer: quantized, or with an adapter?")
    return module


def _stored_shape(linear: nn.Linear | Conv1D) -> tuple[int, int]:
    """Return (out, in) whatever the storage."""
    rows, columns = linear.weight.shape
    return (columns, rows) if isinstance(linear, Conv1D) else (rows, columns)


def _module(model: nn.Module, path: str) -> nn.Module:
    found = _find(model, path)
    if found is None:
        raise ModelError(f"{type(model).__name__} has no module {path}, which its family should have.")
    return found


def _find(model: nn.Module, path: str) -> nn.Module | None:
    """Return the module at `path`, or None where there is none or it was set to None."""
    module: nn.Module | None = model
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return module
