"""A family of models: the module that holds each matrix, and what its config says of one model.

Everything here is names and attributes; no tensor is touched. The families themselves are in `families`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from transformers import PreTrainedConfig

from secateur.core.acts import Acts
from secateur.errors import ModelError

MULTIMODAL = ", multimodal"  # after the name of the family that the language model is of
CLASSIFIER = ", classifier"  # after the name of the family that the blocks are of


class Head(NamedTuple):
    """The kind of a model's head: the class of transformers that loads it, its pipeline on the hub, and it in words."""

    auto: str
    pipeline: str
    words: str = ""


CAUSAL = Head("AutoModelForCausalLM", "text-generation")
MASKED = Head("AutoModelForMaskedLM", "fill-mask", "a masked language model, which fills masks")
PAIRS = Head(
    "AutoModelForSeq2SeqLM",
    "text2text-generation",
    "an encoder-decoder, which reads one text and writes another",
)
LABELS = Head(
    "AutoModelForSequenceClassification", "text-classification", "a sequence classifier, which gives labels"
)
ACTIONS = Head("AutoModel", "reinforcement-learning", "a decision transformer, which gives actions")


@dataclass(frozen=True)
class Slot:
    """The place of a matrix: a module relative to its block, and how it shares that module with others.

    `layout` is `"whole"` (alone), `"stacked"` (all of q, then k, then v; or gate, then up), `"grouped"`
    (for each key/value group: its query heads, then its key, then its value head), `"sliced"` (for each quarter of
    the heads: all of q, then v, then k), `"paired"` (for each head its key, then its value), or `"gated"` (of q: each
    head is followed by as many rows of a gate on what that head gives, which goes with the head and is never edited).
    """

    module: str
    layout: str = "whole"


@dataclass(frozen=True)
class Mixture:
    """The place of a block's experts. `network` is a module relative to the block, everything else is relative to that.

    `router` is the module that returns logits, weights and numbers of the experts that are chosen for each token.
    `rows` are parameters and buffers that hold something of every expert, with the dimension that counts experts.
    `count` is the config attribute for their number; a router does with no fewer than `fewest`. `interleaved` says that
    the matrices are stored (in, out), gate and up in turn, column by column.
    """

    network: str
    router: str
    rows: Mapping[str, int]
    count: str
    fewest: int = 1
    interleaved: bool = False


@dataclass(frozen=True)
class Variant:
    """Another family of the same class, for configs of which an attribute, as text, begins with `value`."""

    attribute: str
    value: str
    family: Family

    def is_of(self, config: Mapping[str, object]) -> bool:
        """Return True for a config of this variant."""
        return str(config.get(self.attribute)).startswith(self.value)


@dataclass(frozen=True)
class Family:
    """One architecture. Paths are module paths in the whole model; slots are relative to a block.

    `mlp` is the module, relative to a block, that the block calls with one positional tensor and that returns
    one; None where there is no such module. `extras` are modules outside the blocks with matrices that are
    never edited (learned positions, OPT's projections). `context` is the config attribute that bounds the
    positions, and `kv_heads` the one that says their number, or `multi_query`, a switch between one and all.

    For cutting: `counts` are the numbers of heads that an attention module keeps (or reads in its config), `width` is
    the config attribute for d_ff, None where the class fixes it, `free_heads` says that a config can state another
    number of heads without changing their size, `even_heads` that it must divide d_model even so, `adds_residual`
    that the attention returns the stream with its contribution, `returns_list` that it returns a list, and `biases`
    which switch of the config gives which matrices a bias, in all blocks. `after` are norms, relative to a block,
    that the output of a part (attn, mlp) passes before it is added to the stream. `indivisible` are the units
    (`heads`, `neurons`) that a norm takes together, so that each of them counts for all others, or that the class
    cannot store in another number: dropped ones stay, silenced, until the last one goes, and `head_norms` is the
    config switch that makes heads so, by a list with a norm for each. `per_head` are parameters, relative to the
    attention, with a number for each query head. `beside` are modules, relative to a block, with matrices that are
    never edited. `alibi` says that positions enter as a bias for each head, or names the config switch that says it;
    `sized_by_scaling` says that scaled rotary positions take the size of a head from the number of heads. `constants`
    are buffers, relative to a block, that releases of before 2023 stored beside the weights: masks, which the class
    makes by itself. `tower` is the module of the language model within a multimodal one, of which everything else
    stays as it is; empty where the whole model is one. `experts` is for feed-forward networks that are mixtures of
    experts, in all blocks or in some: they have no slots, and are cut by experts and within their matrices.

    `head` is what stands upon the blocks, and `bidirectional` says that each position attends to all. `classifier` are
    the modules of the family's sequence classifier that hold matrices: first the one that gives the logits of labels;
    empty where it is not cut. `first_lacks` is a norm, relative to a block, that the first block of the class does
    without, and the name of another in it that is of the same kind.
    `mixes` is the module, relative to a block, that lets positions attend to each other, where it does not hold the
    output projection. `is_decoder` says that the class is causal where its config has that switch, and refused without
    it. `post_norm` says that the stream is normed after each addition. `caches` says that the model keeps keys and
    values of the past, `no_float64` that its code does not run in float64. `counts_from_pad` says that
    positions begin behind the padding's id. `unread` are beginnings of the names of stored tensors that the class
    has no place for: heads that were trained beside this one.

    `encoder` is of an encoder-decoder: the family of the encoder's blocks, of which `blocks`, `slots`, `mlp`, `counts`,
    `width`, `heads` and `depth` are read; everything else is said here, beside the decoder's own.
    `heads` and `depth` are the config attributes for the numbers of query heads and of blocks. `from_first` is a
    tensor, relative to a block, that the first block of a stack holds for all others; `shared_bias` says that an
    attention gets the biases of positions from the one before, with a number for each head, and hands them on.
    `cached_by_encoder` says that the class makes a cache with as many layers as its encoder has blocks.
    `variant` is the family of the same class where a config attribute says so. `latent`: queries, keys and values
    are made of codes of lower rank, which no head owns and which stay as they are, so that a cache holds these.
    `shares_embeddings` is the config switch without which encoder and decoder have different vocabularies.

    `mixers` are of a hybrid: modules, relative to a block, that stand for the attention in some of its blocks, with
    what they are; they are never edited. `rounds_width` is the config switch that makes the class take another d_ff
    than the one that `width` states.
    """

    name: str
    architecture: str
    blocks: str
    embedding: str
    final_norm: str
    slots: Mapping[str, Slot]
    mlp: str | None = "mlp"
    unembedding: str = "lm_head"
    extras: tuple[str, ...] = ()
    context: str = "max_position_embeddings"
    kv_heads: str = "num_key_value_heads"
    counts: Mapping[str, str] = field(default_factory=dict)
    width: str | None = "intermediate_size"
    free_heads: bool = False
    even_heads: bool = False
    adds_residual: bool = False
    returns_list: bool = False
    caches: bool = True
    no_float64: bool = False
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    after: Mapping[str, str] = field(default_factory=dict)
    indivisible: tuple[str, ...] = ()
    head_norms: str | None = None
    per_head: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    alibi: bool | str = False
    sized_by_scaling: bool = False
    constants: tuple[str, ...] = ()
    experts: Mixture | None = None
    tower: str = ""
    head: Head = CAUSAL
    bidirectional: bool = False
    classifier: tuple[str, ...] = ("score",)
    first_lacks: tuple[str, str] | None = None
    mixes: str = ""
    is_decoder: bool = False
    post_norm: bool = False
    counts_from_pad: bool = False
    unread: tuple[str, ...] = ()
    mixers: Mapping[str, str] = field(default_factory=dict)
    rounds_width: str | None = None
    encoder: Family | None = None
    heads: str = "num_attention_heads"
    depth: str = "num_hidden_layers"
    from_first: str = ""
    shared_bias: bool = False
    cached_by_encoder: bool = False
    shares_embeddings: str = ""
    variant: Variant | None = None
    latent: bool = False

    @property
    def masked(self) -> bool:
        """Return True for a masked language model."""
        return self.head is MASKED

    @property
    def stacks(self) -> Mapping[str, Family]:
        """Return the families of the stacks of blocks by their names in addresses, in the order in which they run."""
        return {"": self} if self.encoder is None else {"enc": self.encoder, "dec": self}

    def stated_by(self, config: Mapping[str, object]) -> Family:
        """Return the variant that a config states, or this family."""
        return self.variant.family if self.variant is not None and self.variant.is_of(config) else self

    def leaves_out(self, name: str) -> bool:
        """Return True where a stored tensor is not needed: of `unread`, or, with or without the base model's prefix,
        of `constants`."""
        if name.startswith(self.unread):
            return True
        prefix, _, blocks = self.blocks.partition(".")
        found = re.fullmatch(rf"(?:{prefix}\.)?{re.escape(blocks)}\.\d+\.(.+)", name)
        return found is not None and found[1] in self.constants

    def within(self, architecture: str, tower: str) -> Family:
        """Return this family as the language model at the module `tower` of a multimodal architecture."""
        prefix = self.blocks.partition(".")[0]

        def moved(path: str) -> str:
            return re.sub(rf"^{prefix}(?=\.)", tower, path)

        return replace(
            self,
            name=f"{self.name}{MULTIMODAL}",  # what ran of the family alone did not run of this
            architecture=architecture,
            tower=tower,
            blocks=moved(self.blocks),
            embedding=moved(self.embedding),
            final_norm=moved(self.final_norm),
        )

    def classifying(self, architecture: str) -> Family:
        """Return this family with the head of a sequence classifier, whose class is `architecture`."""
        output, *others = self.classifier
        variant = self.variant and replace(self.variant, family=self.variant.family.classifying(architecture))
        return replace(
            self,
            variant=variant,
            name=f"{self.name}{CLASSIFIER}",
            architecture=architecture,
            head=LABELS,
            unembedding=output,
            extras=(*self.extras, *others),
            unread=tuple(name for name in self.unread if not any(part.startswith(name) for part in others)),
        )

    def acting(self, name: str, architecture: str) -> Family:
        """Return this family, of GPT-2's modules, as the blocks of a decision transformer of transformers.

        It embeds returns, states, actions and the numbers of steps in place of tokens, and its head gives actions.
        """
        read = ("embed_timestep", "embed_return", "embed_state", "embed_action")
        return replace(
            self,
            name=name,
            architecture=architecture,
            head=ACTIONS,
            blocks="encoder.h",
            embedding="encoder.wte",
            final_norm="encoder.ln_f",
            unembedding="predict_action.0",
            extras=("encoder.wpe", *read, "predict_state", "predict_return"),
            context="",  # every position has the same embedding, so that there is no bound
            caches=False,
            classifier=(),
        )


# ------------------------------------------------------------------------------------------- what a config says of it


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of a head's query, key and value, each as a projection of its own gives it, and of what that reads.

    `q_reads` and `kv_reads` are sizes of codes; 0: the stream.
    """

    query: int
    key: int
    value: int
    q_reads: int = 0
    kv_reads: int = 0

    @property
    def reads(self) -> tuple[int, int, int]:
        """Return what q, k and v read; 0: the stream."""
        return self.q_reads, self.kv_reads, self.kv_reads

    def cached(self, groups: int) -> int:
        """Return the numbers of a token that a cache holds for so many KV groups; two, to count tokens by, for none."""
        of_codes = self.kv_reads + self.query - self.key if self.kv_reads else 0
        return (of_codes or groups * (self.key + self.value)) if groups else 2

    def of(self, kind: str) -> int:
        """Return the rows of a head in q, k or v, or its columns in o."""
        return {"q": self.query, "k": self.key}.get(kind, self.value)


@dataclass(frozen=True)
class Sizes:
    """The widths that the layouts need, vocabulary and context. Each key/value head serves equally many query heads."""

    d_model: int
    num_heads: int
    num_kv_heads: int
    head: HeadSizes
    vocab_size: int
    context: int | None

    @property
    def d_head(self) -> int:
        """Return the numbers that a head gives."""
        return self.head.value


def sizes(family: Family, config: PreTrainedConfig) -> Sizes:
    """Return widths, vocabulary and context that the model's config states.

    Raises: `ModelError` where heads do not share keys evenly.
    """
    num_heads: int = getattr(config, family.heads)
    num_kv_heads = num_heads if family.head is PAIRS else _num_kv_heads(family, config)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"broken config: {num_heads} query heads cannot share {num_kv_heads} key/value heads."
        )
    context = getattr(config, family.context, None)
    if family.counts_from_pad and context is not None:
        context -= config.pad_token_id + 1
    head = _head_sizes(family, config, num_heads)
    return Sizes(config.hidden_size, num_heads, num_kv_heads, head, config.vocab_size, context)


def _head_sizes(family: Family, config: PreTrainedConfig, num_heads: int) -> HeadSizes:
    """Return the sizes of a head; of latent attention without the part of keys that all heads share."""
    if not family.latent:
        d_head = getattr(config, "head_dim", None) or config.hidden_size // num_heads
        return HeadSizes(d_head, d_head, d_head)
    query = config.qk_nope_head_dim + config.qk_rope_head_dim
    codes = (config.q_lora_rank or 0, config.kv_lora_rank)
    return HeadSizes(query, config.qk_nope_head_dim, config.v_head_dim, *codes)


_CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk")


class Routing(NamedTuple):
    """Describe how a router chooses: `chosen` experts for each token, out of `groups`, of which it looks at some."""

    chosen: int
    groups: int


def routing(family: Family, config: PreTrainedConfig) -> Routing | None:
    """Return how routers choose; None where there are no experts. Raises: `ModelError` for numbers by layer."""
    if family.experts is None:
        return None
    chosen = next((found for name in _CHOSEN if (found := getattr(config, name, None)) is not None), None)
    every = getattr(config, family.experts.count)
    if not isinstance(chosen, int) or not isinstance(every, int):
        raise ModelError(
            f"{family.architecture}: its config has {every} experts, {chosen} for a token, which is not one number for "
            "all layers; such a model is not read."
        )
    return Routing(chosen, getattr(config, "n_group", None) or 1)


def start_of(family: Family, config: PreTrainedConfig) -> int:
    """Return the token that the decoder of an encoder-decoder begins with; 0 for another model.

    Raises: `ModelError` where the config states none.
    """
    if family.head is not PAIRS:
        return 0
    start: object = getattr(config, "decoder_start_token_id", None)
    if not isinstance(start, int) or not 0 <= start < config.vocab_size:
        raise ModelError(
            f"{family.architecture}: config.json has decoder_start_token_id {start!r}: set it to the id of the token "
            "that the decoder begins with."
        )
    return start


def labels_of(family: Family, config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the names of a sequence classifier's labels, in the order of its logits; none for another model.

    Raises: `ModelError` for one that gives no single label of several.
    """
    if family.head is not LABELS:
        return ()
    named, problem = config.id2label or {}, getattr(config, "problem_type", None)
    if problem not in (None, "single_label_classification") or len(named) < 2:
        found = f"problem_type {problem!r}" if len(named) > 1 else f"{len(named)} label, as for regression"
        raise ModelError(
            f"{family.architecture}: config.json states {found}; secateur judges classifiers that give each text one "
            "of several labels."
        )
    by_number = {int(number): str(label) for number, label in named.items()}
    labels = tuple(by_number.get(number, "") for number in range(len(named)))
    if len(set(labels) - {""}) < len(named):
        raise ModelError(
            f"{family.architecture}: id2label of config.json is {named}; number the labels from 0 on, and name each "
            "otherwise."
        )
    return labels


def acts_of(family: Family, config: PreTrainedConfig) -> Acts | None:
    """Return the sizes of a decision transformer's states and actions; None for another model."""
    if family.head is not ACTIONS:
        return None
    return Acts(config.state_dim, config.act_dim, config.max_ep_len)


def padding_of(family: Family, config: PreTrainedConfig) -> int:
    """Return the token that fills rows on their right: any, but where a classifier looks for the last one before it.

    Raises: `ModelError` where that is needed and not stated.
    """
    if family.head is not LABELS or family.bidirectional:
        return 0
    pad: object = config.pad_token_id
    if not isinstance(pad, int) or not 0 <= pad < config.vocab_size:
        raise ModelError(
            f"{family.architecture}: config.json has pad_token_id {pad!r}, and the class reads the last token that is "
            "no padding: set it to the id of a token that ends no text."
        )
    return pad


def has_alibi(family: Family, config: PreTrainedConfig) -> bool:
    """Return True where positions enter as a bias for each head (ALiBi), made by the model for all heads at once."""
    return bool(getattr(config, family.alibi)) if isinstance(family.alibi, str) else family.alibi


def has_free_heads(family: Family, config: PreTrainedConfig) -> bool:
    """Return True where the stock class may have fewer heads of the same size."""
    scaled = family.sized_by_scaling and config.rope_parameters["rope_type"] != "default"
    return family.free_heads and not scaled


def is_foldable(family: Family, config: PreTrainedConfig) -> bool:
    """Return True where a feed-forward network's output enters the stream as it is.

    A linear map of it is then one more down projection.
    """
    own = family.after or family.experts or family.head is PAIRS
    return not own and residual_scale(family, config) == 1


def residual_scale(family: Family, config: PreTrainedConfig) -> float | None:
    """Return the number by which what a part gives, after its norms, is added to the stream; None where the stream is
    normed after that."""
    if family.post_norm or not getattr(config, "do_layer_norm_before", True):
        return None
    return float(getattr(config, "residual_multiplier", 1.0))


def indivisible_units(family: Family, config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the units that must stay together in a stock class: by a common norm, or by a list of norms for heads."""
    listed = family.head_norms is not None and getattr(config, family.head_norms)
    return ("heads",) if listed else family.indivisible


def _num_kv_heads(family: Family, config: PreTrainedConfig) -> int:
    heads: int = config.num_attention_heads
    if family.kv_heads == "multi_query":
        if getattr(config, "new_decoder_architecture", False):  # Falcon from 40B on
            return int(config.num_kv_heads)
        return 1 if config.multi_query else heads
    return getattr(config, family.kv_heads, None) or heads
