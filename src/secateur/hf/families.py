"""Architectures as data: the module that holds each matrix of each family, and the kinds of models that are refused.

Everything here is names and attributes; no tensor is touched. A new family is one more entry of `FAMILIES`.
Module names are those of transformers 5, read from its modelling files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, NamedTuple

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

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
LABELS = Head(
    "AutoModelForSequenceClassification", "text-classification", "a sequence classifier, which gives labels"
)


@dataclass(frozen=True)
class Slot:
    """The place of a matrix: a module relative to its block, and how it shares that module with others.

    `layout` is `"whole"` (alone), `"stacked"` (all of q, then k, then v; or gate, then up), `"grouped"`
    (for each key/value group: its query heads, then its key, then its value head), `"sliced"` (for each quarter of
    the heads: all of q, then v, then k), or `"gated"` (of q: each head is followed by as many rows of a gate on what
    that head gives, which goes with the head and is never edited).
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


_TOGETHER = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}  # kinds that may share a module


def _slots(**modules: str) -> Mapping[str, Slot]:
    """Parse `qkv="attn.c_attn/stacked", o="attn.c_proj"` into slots."""
    found: dict[str, Slot] = {}
    for kinds, text in modules.items():
        module, _, layout = text.partition("/")
        found |= dict.fromkeys(_TOGETHER.get(kinds, (kinds,)), Slot(module, layout or "whole"))
    return found


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

    @property
    def masked(self) -> bool:
        """Return True for a masked language model."""
        return self.head is MASKED

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
        return replace(
            self,
            name=f"{self.name}{CLASSIFIER}",
            architecture=architecture,
            head=LABELS,
            unembedding=output,
            extras=(*self.extras, *others),
            unread=tuple(name for name in self.unread if not any(part.startswith(name) for part in others)),
        )


_SHARED = {"num_key_value_groups": "queries"}  # query heads for each key/value head
_LLAMA_ATTENTION = {kind: f"self_attn.{kind}_proj" for kind in "qkvo"}
_MASKS = ("attn.bias", "attn.masked_bias")
_LLAMA_SLOTS = _slots(**_LLAMA_ATTENTION, gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj")


def _fused_slots(attention: str) -> Mapping[str, Slot]:
    """Return the slots of GPT-NeoX, BLOOM or Falcon.

    They share names, and the layout once the number of key/value heads is known.
    """
    return _slots(
        qkv=f"{attention}.query_key_value/grouped",
        o=f"{attention}.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
    )


_UNGATED_SLOTS = _slots(**_LLAMA_ATTENTION, up="mlp.up_proj", down="mlp.down_proj")
_FUSED_GATE_SLOTS = _slots(**_LLAMA_ATTENTION, gate_up="mlp.gate_up_proj/stacked", down="mlp.down_proj")
_ATTENTION_BIAS = {"attention_bias": tuple("qkvo")}
_GATED_BIAS = {"mlp_bias": ("gate", "up", "down")}
_UNGATED_BIAS = {"mlp_bias": ("up", "down")}
_NORMS_AFTER = {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}


def _like_llama(
    name: str, architecture: str, slots: Mapping[str, Slot] = _LLAMA_SLOTS, **traits: Any
) -> Family:
    """Return a family whose modules are named as Llama's; `traits` are fields of `Family`."""
    usual: dict[str, Any] = {
        "blocks": "model.layers",
        "embedding": "model.embed_tokens",
        "final_norm": "model.norm",
    }
    usual |= {"counts": _SHARED, "free_heads": True}
    return Family(name, architecture, slots=slots, **usual | traits)


def _mixture(
    name: str,
    architecture: str,
    count: str,
    router: str = "gate",
    weight: str = "weight",
    network: str = "mlp",
    extra: Mapping[str, int] | None = None,
    fewest: int = 1,
    interleaved: bool = False,
    attention: Mapping[str, str] = _LLAMA_ATTENTION,
    **traits: Any,
) -> Family:
    """Return a family with the attention of Llama and mixtures of experts for networks, or in some of its blocks."""
    rows = {f"{router}.{weight}": 0, "experts.gate_up_proj": 0, "experts.down_proj": 0} | dict(extra or {})
    experts = Mixture(network, router, rows, count, fewest, interleaved)
    return _like_llama(name, architecture, _slots(**attention), mlp=None, experts=experts, **traits)


def _like_bert(
    name: str, architecture: str, base: str, head: Sequence[str], masked: bool = True, **traits: Any
) -> Family:
    """Return a family with the blocks of BERT: a masked language model, or a decoder.

    Args:
        base: Module of the model without its head.
        head: Unembedding, and matrices between the blocks and either end of the model.
    """
    embeddings = f"{base}.embeddings"
    return Family(
        name,
        architecture,
        f"{base}.encoder.layer",
        f"{embeddings}.word_embeddings",
        "",
        _slots(
            q="attention.self.query",
            k="attention.self.key",
            v="attention.self.value",
            o="attention.output.dense",
            up="intermediate.dense",
            down="output.dense",
        ),
        mlp=None,
        unembedding=head[0],
        extras=(f"{embeddings}.position_embeddings", f"{embeddings}.token_type_embeddings", *head[1:]),
        counts={"num_attention_heads": "heads", "all_head_size": "width"},
        head=MASKED if masked else CAUSAL,
        bidirectional=masked,
        is_decoder=not masked,
        mixes="attention.self",
        post_norm=True,
        unread=(f"{base}.pooler.", f"{embeddings}.position_ids", "cls.seq_relationship."),
        **traits,
    )


_BERT_HEAD = ("cls.predictions.decoder", "cls.predictions.transform.dense")
_ROBERTA_HEAD = ("lm_head.decoder", "lm_head.dense")
_ELECTRA_HEAD = ("generator_lm_head", "generator_predictions.dense", "electra.embeddings_project")
_DENSE_CLASSIFIER = ("classifier.out_proj", "classifier.dense")

_SINKS = ("sinks",)
_CORRECTED = {"gate.e_score_correction_bias": 0}

_DELTA_NET = {"linear_attn": "gated linear attention"}
_SHORT_CONVOLUTION = {"conv": "a short convolution"}
_STATE_SPACE = {"mamba": "a state space"}
_GATED_ATTENTION = _LLAMA_ATTENTION | {"q": "self_attn.q_proj/gated"}
_LFM2_ATTENTION = _LLAMA_ATTENTION | {"o": "self_attn.out_proj"}
_FROM_PAD = {"counts_from_pad": True}
_BERT_DECODERS: Sequence[tuple[str, str, str, Sequence[str], Mapping[str, bool]]] = (
    ("bert", "BertLMHeadModel", "bert", _BERT_HEAD, {}),
    ("bert-generation", "BertGenerationDecoder", "bert", ("lm_head.decoder",), {}),
    ("ernie", "ErnieForCausalLM", "ernie", _BERT_HEAD, {}),
    ("roberta", "RobertaForCausalLM", "roberta", _ROBERTA_HEAD, _FROM_PAD),
    ("xlm-roberta", "XLMRobertaForCausalLM", "roberta", _ROBERTA_HEAD, _FROM_PAD),
    ("camembert", "CamembertForCausalLM", "roberta", _ROBERTA_HEAD, _FROM_PAD),
    ("data2vec-text", "Data2VecTextForCausalLM", "data2vec_text", _ROBERTA_HEAD, _FROM_PAD),
    ("electra", "ElectraForCausalLM", "electra", _ELECTRA_HEAD, {}),
)


FAMILIES: Mapping[str, Family] = {
    family.architecture: family
    for family in (
        _like_llama("llama", "LlamaForCausalLM", even_heads=True, biases=_ATTENTION_BIAS | _GATED_BIAS),
        _like_llama("mistral", "MistralForCausalLM"),
        _like_llama("qwen2", "Qwen2ForCausalLM"),
        _like_llama("qwen3", "Qwen3ForCausalLM", biases=_ATTENTION_BIAS),
        _like_llama("gemma", "GemmaForCausalLM", biases=_ATTENTION_BIAS),
        _like_llama(
            "gemma2", "Gemma2ForCausalLM", even_heads=True, biases=_ATTENTION_BIAS, after=_NORMS_AFTER
        ),
        _like_llama(
            "gemma3", "Gemma3ForCausalLM", even_heads=True, biases=_ATTENTION_BIAS, after=_NORMS_AFTER
        ),
        _like_llama("vaultgemma", "VaultGemmaForCausalLM", even_heads=True, biases=_ATTENTION_BIAS),
        _like_llama("granite", "GraniteForCausalLM", biases=_ATTENTION_BIAS | _GATED_BIAS),
        _like_llama(
            "granite_swa",
            "GraniteSWAForCausalLM",
            biases=_ATTENTION_BIAS | _GATED_BIAS,
            per_head=_SINKS,
        ),
        _like_llama("cohere", "CohereForCausalLM", biases=_ATTENTION_BIAS),
        _like_llama("cohere2", "Cohere2ForCausalLM", biases=_ATTENTION_BIAS),
        _like_llama(
            "cohere_compass_text", "CohereCompassForCausalLM", free_heads=False, biases=_ATTENTION_BIAS
        ),
        _like_llama("cwm", "CwmForCausalLM", even_heads=True),
        _like_llama("ernie4_5", "Ernie4_5ForCausalLM", biases={"use_bias": (*"qkvo", "gate", "up", "down")}),
        _like_llama("exaone4", "Exaone4ForCausalLM", even_heads=True, after=_NORMS_AFTER),
        _like_llama("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", biases=_ATTENTION_BIAS),
        _like_llama(
            "hyperclovax",
            "HyperCLOVAXForCausalLM",
            even_heads=True,
            biases=_ATTENTION_BIAS | _GATED_BIAS,
            after={"attn": "post_norm1", "mlp": "post_norm2"},
        ),
        _like_llama("ministral", "MinistralForCausalLM"),
        _like_llama("ministral3", "Ministral3ForCausalLM"),
        _like_llama("seed_oss", "SeedOssForCausalLM", biases=_GATED_BIAS),
        _like_llama("smollm3", "SmolLM3ForCausalLM", biases=_ATTENTION_BIAS | _GATED_BIAS),
        _like_llama("olmo", "OlmoForCausalLM", biases=_ATTENTION_BIAS),
        _like_llama(
            "olmo2", "Olmo2ForCausalLM", biases=_ATTENTION_BIAS, after=_NORMS_AFTER, indivisible=("heads",)
        ),
        _like_llama(
            "olmo3", "Olmo3ForCausalLM", biases=_ATTENTION_BIAS, after=_NORMS_AFTER, indivisible=("heads",)
        ),
        _like_llama(
            "stablelm",
            "StableLmForCausalLM",
            free_heads=False,
            counts=_SHARED | {"num_heads": "heads", "num_key_value_heads": "kv_heads"},
            head_norms="qk_layernorm",
        ),
        _like_llama("helium", "HeliumForCausalLM", free_heads=False, biases=_GATED_BIAS),
        _like_llama("bitnet", "BitNetForCausalLM", biases=_ATTENTION_BIAS, indivisible=("heads", "neurons")),
        _like_llama("glm", "GlmForCausalLM", _FUSED_GATE_SLOTS),
        _like_llama(
            "glm4",
            "Glm4ForCausalLM",
            _FUSED_GATE_SLOTS,
            after={"attn": "post_self_attn_layernorm", "mlp": "post_mlp_layernorm"},
        ),
        _like_llama("apertus", "ApertusForCausalLM", _UNGATED_SLOTS, biases=_ATTENTION_BIAS),
        _like_llama(
            "arcee",
            "ArceeForCausalLM",
            _UNGATED_SLOTS,
            even_heads=True,
            biases=_ATTENTION_BIAS | _UNGATED_BIAS,
        ),
        _like_llama("jais2", "Jais2ForCausalLM", _UNGATED_SLOTS, even_heads=True),
        _like_llama(
            "nemotron", "NemotronForCausalLM", _UNGATED_SLOTS, biases=_ATTENTION_BIAS | _UNGATED_BIAS
        ),
        _like_llama(
            "starcoder2",
            "Starcoder2ForCausalLM",
            _slots(**_LLAMA_ATTENTION, up="mlp.c_fc", down="mlp.c_proj"),
            biases={"use_bias": (*"qkvo", "up", "down")},
        ),
        _like_llama(
            "nanochat",
            "NanoChatForCausalLM",
            _slots(**_LLAMA_ATTENTION, up="mlp.fc1", down="mlp.fc2"),
            biases=_ATTENTION_BIAS,
            final_norm="",  # its only norm follows the embedding too, so no map can lie before it
        ),
        _mixture("mixtral", "MixtralForCausalLM", "num_local_experts"),
        _mixture("qwen2_moe", "Qwen2MoeForCausalLM", "num_experts"),
        _mixture("qwen3_moe", "Qwen3MoeForCausalLM", "num_experts", biases=_ATTENTION_BIAS),
        _mixture("olmoe", "OlmoeForCausalLM", "num_experts", biases=_ATTENTION_BIAS, indivisible=("heads",)),
        _mixture(
            "granitemoe",
            "GraniteMoeForCausalLM",
            "num_local_experts",
            "router",
            network="block_sparse_moe",
            biases=_ATTENTION_BIAS,
        ),
        _mixture(
            "phimoe", "PhimoeForCausalLM", "num_local_experts", "router", fewest=2, biases=_ATTENTION_BIAS
        ),
        _mixture(
            "dots1",
            "Dots1ForCausalLM",
            "n_routed_experts",
            extra=_CORRECTED,
            fewest=2,
            biases=_ATTENTION_BIAS,
        ),
        _mixture("glm4_moe", "Glm4MoeForCausalLM", "n_routed_experts", extra=_CORRECTED, fewest=2),
        _mixture(
            "hunyuan_v1_moe",
            "HunYuanMoEV1ForCausalLM",
            "num_experts",
            weight="wg.weight",
            biases=_ATTENTION_BIAS,
        ),
        _mixture(
            "minimax_m2",
            "MiniMaxM2ForCausalLM",
            "num_local_experts",
            extra={"e_score_correction_bias": 0},
            indivisible=("heads",),
        ),
        _mixture("exaone_moe", "ExaoneMoeForCausalLM", "num_experts", extra=_CORRECTED, fewest=2),
        _mixture(
            "gpt_oss",
            "GptOssForCausalLM",
            "num_local_experts",
            "router",
            extra={"router.bias": 0, "experts.gate_up_proj_bias": 0, "experts.down_proj_bias": 0},
            interleaved=True,
            biases=_ATTENTION_BIAS,
            per_head=_SINKS,
        ),
        _mixture(
            "flint",
            "FlintForCausalLM",
            "num_experts",
            biases=_ATTENTION_BIAS,
            per_head=_SINKS,
        ),
        _mixture(
            "flex_olmo",
            "FlexOlmoForCausalLM",
            "num_experts",
            biases=_ATTENTION_BIAS,
            after=_NORMS_AFTER,
            indivisible=("heads",),
        ),
        _mixture(
            "kolibri1",
            "Kolibri1ForCausalLM",
            "num_experts",
            extra=_CORRECTED,
            after={"attn": "post_self_attn_layernorm", "mlp": "post_mlp_layernorm"},
        ),
        _mixture(
            "hy_v3",
            "HYV3ForCausalLM",
            "num_experts",
            extra={"e_score_correction_bias": 0},
            biases=_ATTENTION_BIAS,
            unread=("model.layers.80.",),  # it predicts the token after the next
        ),
        _mixture("cohere2_moe", "Cohere2MoeForCausalLM", "num_experts", biases=_ATTENTION_BIAS),
        _mixture("mellum", "MellumForCausalLM", "num_experts", biases=_ATTENTION_BIAS, unread=("mtp.",)),
        _mixture(
            "solar_open",
            "SolarOpenForCausalLM",
            "n_routed_experts",
            extra=_CORRECTED,
            fewest=2,
            biases={"attention_bias": tuple("qkv")},
        ),
        *(
            _mixture(
                name,
                architecture,
                "num_local_experts",
                "router",
                network="block_sparse_moe",
                biases=_ATTENTION_BIAS,
                beside=("shared_mlp.input_linear", "shared_mlp.output_linear"),
                per_head=per_head,
            )
            for name, architecture, per_head in (
                ("granitemoeshared", "GraniteMoeSharedForCausalLM", ()),
                ("granitemoe_swa", "GraniteMoeSWAForCausalLM", _SINKS),
            )
        ),
        _mixture(
            "ernie4_5_moe",
            "Ernie4_5_MoeForCausalLM",
            "moe_num_experts",
            extra={"gate.moe_statics.e_score_correction_bias": 1},
        ),
        _like_llama(
            "qwen3_5",
            "Qwen3_5ForCausalLM",
            _slots(**_GATED_ATTENTION, gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj"),
            biases=_ATTENTION_BIAS,
            mixers=_DELTA_NET,
            unread=("mtp.",),
        ),
        _mixture(
            "qwen3_next",
            "Qwen3NextForCausalLM",
            "num_experts",
            attention=_GATED_ATTENTION,
            biases=_ATTENTION_BIAS,
            mixers=_DELTA_NET,
            unread=("mtp.",),
        ),
        _mixture(
            "qwen3_5_moe",
            "Qwen3_5MoeForCausalLM",
            "num_experts",
            attention=_GATED_ATTENTION,
            biases=_ATTENTION_BIAS,
            mixers=_DELTA_NET,
            unread=("mtp.",),
        ),
        _mixture(
            "lfm2_moe",
            "Lfm2MoeForCausalLM",
            "num_experts",
            network="feed_forward",
            extra={"expert_bias": 0},
            attention=_LFM2_ATTENTION,
            final_norm="model.embedding_norm",
            mixers=_SHORT_CONVOLUTION,
        ),
        _like_llama(
            "lfm2",
            "Lfm2ForCausalLM",
            _slots(**_LFM2_ATTENTION, gate="feed_forward.w1", up="feed_forward.w3", down="feed_forward.w2"),
            mlp="feed_forward",
            final_norm="model.embedding_norm",
            mixers=_SHORT_CONVOLUTION,
            rounds_width="block_auto_adjust_ff_dim",
        ),
        _like_llama(
            "bamba",
            "BambaForCausalLM",
            _slots(
                **_LLAMA_ATTENTION,
                gate="feed_forward.gate_proj",
                up="feed_forward.up_proj",
                down="feed_forward.down_proj",
            ),
            mlp="feed_forward",
            final_norm="model.final_layernorm",
            biases=_ATTENTION_BIAS | _GATED_BIAS,
            mixers=_STATE_SPACE,
        ),
        _like_llama(
            "granitemoehybrid",  # without experts, as its small models are
            "GraniteMoeHybridForCausalLM",
            _slots(
                **_LLAMA_ATTENTION,
                gate_up="shared_mlp.input_linear/stacked",
                down="shared_mlp.output_linear",
            ),
            mlp="shared_mlp",
            width="shared_intermediate_size",
            biases=_ATTENTION_BIAS,
            mixers=_STATE_SPACE,
        ),
        _like_llama(
            "olmo_hybrid",
            "OlmoHybridForCausalLM",
            biases=_ATTENTION_BIAS,
            after=_NORMS_AFTER,
            indivisible=("heads",),
            mixers=_DELTA_NET,
        ),
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            "transformer.h",
            "transformer.wte",
            "transformer.ln_f",
            _slots(
                qkv="attn.c_attn/stacked",
                o="attn.c_proj",
                up="mlp.c_fc",
                down="mlp.c_proj",
            ),
            extras=("transformer.wpe",),
            counts={"num_heads": "heads", "split_size": "width"},
            width="n_inner",
            constants=_MASKS,
        ),
        Family(
            "gpt_bigcode",
            "GPTBigCodeForCausalLM",
            "transformer.h",
            "transformer.wte",
            "transformer.ln_f",
            _slots(
                qkv="attn.c_attn/grouped",
                o="attn.c_proj",
                up="mlp.c_fc",
                down="mlp.c_proj",
            ),
            extras=("transformer.wpe",),
            kv_heads="multi_query",
            counts=_SHARED | {"num_heads": "heads", "kv_heads": "kv_heads", "embed_dim": "width"},
            width="n_inner",
        ),
        Family(
            "gpt_neo",
            "GPTNeoForCausalLM",
            "transformer.h",
            "transformer.wte",
            "transformer.ln_f",
            _slots(
                q="attn.attention.q_proj",
                k="attn.attention.k_proj",
                v="attn.attention.v_proj",
                o="attn.attention.out_proj",
                up="mlp.c_fc",
                down="mlp.c_proj",
            ),
            extras=("transformer.wpe",),
            counts={"num_heads": "heads"},
            constants=("attn.attention.bias", "attn.attention.masked_bias"),
        ),
        Family(
            "gptj",
            "GPTJForCausalLM",
            "transformer.h",
            "transformer.wte",
            "transformer.ln_f",
            _slots(
                q="attn.q_proj",
                k="attn.k_proj",
                v="attn.v_proj",
                o="attn.out_proj",
                up="mlp.fc_in",
                down="mlp.fc_out",
            ),
            counts={"num_attention_heads": "heads"},
            width="n_inner",
            constants=_MASKS,
        ),
        Family(
            "codegen",
            "CodeGenForCausalLM",
            "transformer.h",
            "transformer.wte",
            "transformer.ln_f",
            _slots(qkv="attn.qkv_proj/sliced", o="attn.out_proj", up="mlp.fc_in", down="mlp.fc_out"),
            width="n_inner",
            indivisible=("heads",),
            constants=("attn.causal_mask",),
        ),
        Family(
            "gpt_neox",
            "GPTNeoXForCausalLM",
            "gpt_neox.layers",
            "gpt_neox.embed_in",
            "gpt_neox.final_layer_norm",
            _fused_slots("attention"),
            biases={"attention_bias": tuple("qkvo")},
        ),
        Family(
            "opt",
            "OPTForCausalLM",
            "model.decoder.layers",
            "model.decoder.embed_tokens",
            "model.decoder.final_layer_norm",
            _slots(**_LLAMA_ATTENTION | {"o": "self_attn.out_proj"}, up="fc1", down="fc2"),
            mlp=None,
            extras=("model.decoder.embed_positions", "model.decoder.project_in", "model.decoder.project_out"),
            counts={"num_heads": "heads"},
            width="ffn_dim",
            biases={"enable_bias": (*"qkvo", "up", "down")},
        ),
        Family(
            "biogpt",
            "BioGptForCausalLM",
            "biogpt.layers",
            "biogpt.embed_tokens",
            "biogpt.layer_norm",
            _slots(**_LLAMA_ATTENTION | {"o": "self_attn.out_proj"}, up="fc1", down="fc2"),
            mlp=None,
            unembedding="output_projection",
            extras=("biogpt.embed_positions",),
            counts={"num_heads": "heads"},
        ),
        Family(
            "persimmon",
            "PersimmonForCausalLM",
            "model.layers",
            "model.embed_tokens",
            "model.final_layernorm",
            _fused_slots("self_attn"),
            counts={"num_heads": "heads"},
        ),
        Family(
            "mpt",
            "MptForCausalLM",
            "transformer.blocks",
            "transformer.wte",
            "transformer.norm_f",
            _slots(
                qkv="attn.Wqkv/stacked",
                o="attn.out_proj",
                up="ffn.up_proj",
                down="ffn.down_proj",
            ),
            mlp=None,  # called with the residual as a second tensor, which it adds
            context="max_seq_len",
            counts={"n_heads": "heads"},
            width=None,
            alibi=True,
        ),
        Family(
            "bloom",
            "BloomForCausalLM",
            "transformer.h",
            "transformer.word_embeddings",
            "transformer.ln_f",
            _fused_slots("self_attention"),
            mlp=None,  # called with the residual as a second tensor, which it adds
            context="seq_length",  # ALiBi needs no bound; some configs carry the training length
            counts={"num_heads": "heads"},
            width=None,
            adds_residual=True,
            alibi=True,
        ),
        Family(
            "falcon",
            "FalconForCausalLM",
            "transformer.h",
            "transformer.word_embeddings",
            "transformer.ln_f",
            _fused_slots("self_attention"),
            kv_heads="multi_query",
            counts={"num_heads": "heads", "num_kv_heads": "kv_heads"},
            width="ffn_hidden_size",
            biases={"bias": (*"qkvo", "up", "down")},
            alibi="alibi",
        ),
        Family(
            "phi",
            "PhiForCausalLM",
            "model.layers",
            "model.embed_tokens",
            "model.final_layernorm",
            _slots(**_LLAMA_ATTENTION | {"o": "self_attn.dense"}, up="mlp.fc1", down="mlp.fc2"),
            counts=_SHARED,
        ),
        Family(
            "phi3",
            "Phi3ForCausalLM",
            "model.layers",
            "model.embed_tokens",
            "model.norm",
            _slots(
                qkv="self_attn.qkv_proj/stacked",
                o="self_attn.o_proj",
                gate_up="mlp.gate_up_proj/stacked",
                down="mlp.down_proj",
            ),
            counts=_SHARED | {"num_key_value_heads": "kv_heads", "config.num_attention_heads": "heads"},
            free_heads=True,
            sized_by_scaling=True,  # LongRoPE checks its factors so, whatever `head_dim` says
        ),
        _like_bert(
            "bert", "BertForMaskedLM", "bert", _BERT_HEAD, classifier=("classifier", "bert.pooler.dense")
        ),
        _like_bert("electra", "ElectraForMaskedLM", "electra", _ELECTRA_HEAD, classifier=_DENSE_CLASSIFIER),
        *(
            _like_bert(
                name,
                architecture,
                "roberta",
                _ROBERTA_HEAD,
                counts_from_pad=True,
                classifier=_DENSE_CLASSIFIER,
            )
            for name, architecture in (
                ("roberta", "RobertaForMaskedLM"),
                ("xlm-roberta", "XLMRobertaForMaskedLM"),
                ("camembert", "CamembertForMaskedLM"),
            )
        ),
        *(
            _like_bert(f"{name}-decoder", architecture, base, head, masked=False, **traits)
            for name, architecture, base, head, traits in _BERT_DECODERS
        ),
        Family(
            "xglm",
            "XGLMForCausalLM",
            "model.layers",
            "model.embed_tokens",
            "model.layer_norm",
            _slots(**_LLAMA_ATTENTION | {"o": "self_attn.out_proj"}, up="fc1", down="fc2"),
            mlp=None,
            counts={"num_heads": "heads", "embed_dim": "width"},
            width="ffn_dim",
            no_float64=True,
        ),
        Family(
            "openai-gpt",
            "OpenAIGPTLMHeadModel",
            "transformer.h",
            "transformer.tokens_embed",
            "",
            _slots(qkv="attn.c_attn/stacked", o="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"),
            extras=("transformer.positions_embed",),
            counts={"n_head": "heads", "split_size": "width"},
            width=None,
            returns_list=True,
            caches=False,
            post_norm=True,
            constants=_MASKS,
        ),
        Family(
            "ctrl",
            "CTRLLMHeadModel",
            "transformer.h",
            "transformer.w",
            "transformer.layernorm",
            _slots(
                q="multi_head_attention.Wq",
                k="multi_head_attention.Wk",
                v="multi_head_attention.Wv",
                o="multi_head_attention.dense",
                up="ffn.0",
                down="ffn.2",
            ),
            mlp="ffn",
            counts={"num_heads": "heads"},
            width="dff",
            classifier=(),  # that class takes the logits of labels otherwise
        ),
        Family(
            "modernbert",
            "ModernBertForMaskedLM",
            "model.layers",
            "model.embeddings.tok_embeddings",
            "model.final_norm",
            _slots(
                qkv="attn.Wqkv/stacked",
                o="attn.Wo",
                gate_up="mlp.Wi/stacked",
                down="mlp.Wo",
            ),
            unembedding="decoder",
            extras=("head.dense",),
            biases={"attention_bias": tuple("qkvo"), "mlp_bias": ("gate", "up", "down")},
            head=MASKED,
            bidirectional=True,
            classifier=(),  # may read the mean of all positions
            first_lacks=("attn_norm", "mlp_norm"),
        ),
        Family(
            "distilbert",
            "DistilBertForMaskedLM",
            "distilbert.transformer.layer",
            "distilbert.embeddings.word_embeddings",
            "",
            _slots(
                q="attention.q_lin",
                k="attention.k_lin",
                v="attention.v_lin",
                o="attention.out_lin",
                up="ffn.lin1",
                down="ffn.lin2",
            ),
            mlp="ffn",
            unembedding="vocab_projector",
            extras=("distilbert.embeddings.position_embeddings", "vocab_transform"),
            counts={"n_heads": "heads", "dim": "width"},
            width="hidden_dim",
            head=MASKED,
            bidirectional=True,
            classifier=("classifier", "pre_classifier"),
            post_norm=True,
            unread=("distilbert.embeddings.position_ids",),
        ),
    )
}


TOWERS: Mapping[str, str] = {
    "AyaVisionForConditionalGeneration": "model.language_model",
    "Cohere2VisionForConditionalGeneration": "model.language_model",
    "Gemma3ForConditionalGeneration": "model.language_model",
    "InternVLForConditionalGeneration": "model.language_model",
    "LlavaForConditionalGeneration": "model.language_model",
    "LlavaNextForConditionalGeneration": "model.language_model",
    "LlavaOnevisionForConditionalGeneration": "model.language_model",
    "Mistral3ForConditionalGeneration": "model.language_model",
    "Qwen2VLForConditionalGeneration": "model.language_model",
    "Qwen2_5_VLForConditionalGeneration": "model.language_model",
    "Qwen3VLForConditionalGeneration": "model.language_model",
    "Qwen3_5ForConditionalGeneration": "model.language_model",
    "Qwen3_5MoeForConditionalGeneration": "model.language_model",
    "SmolVLMForConditionalGeneration": "model.text_model",
}
"""Multimodal architectures of which the language model is cut: the module that it is, of a family above."""

_QWEN2_VL = replace(FAMILIES["Qwen2ForCausalLM"], free_heads=False)
_OF_TYPE: Mapping[str, Family] = {
    **{family.name: family for family in FAMILIES.values()},
    "gemma3_text": FAMILIES["Gemma3ForCausalLM"],
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3_vl_text": FAMILIES["Qwen3ForCausalLM"],
    "qwen3_5_text": FAMILIES["Qwen3_5ForCausalLM"],
    "qwen3_5_moe_text": FAMILIES["Qwen3_5MoeForCausalLM"],
}
"""Families by the `model_type` of a config."""

_OF_LANGUAGE = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | MODEL_FOR_MASKED_LM_MAPPING_NAMES
CLASSIFIERS: Mapping[str, Family] = {
    architecture: _OF_TYPE[kind].classifying(architecture)
    for kind, architecture in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.items()
    if kind in _OF_TYPE
    and _OF_LANGUAGE.get(kind) == _OF_TYPE[kind].architecture
    and _OF_TYPE[kind].classifier
    and not _OF_TYPE[kind].mixers
}
"""Sequence classifiers, by class: the blocks of a family above under another head."""

ARCHITECTURES: Mapping[str, Family] = {**FAMILIES, **CLASSIFIERS}


class FamilyInfo(NamedTuple):
    """A family as it is listed.

    `silenced` are units that stay stored when they are dropped; `fold`: a linear map can be folded into a network;
    `masked`: it is a masked language model; `mixers` are what some blocks have in place of attention; `classifier`:
    the class of its sequence classifier, empty for none; `caches`: it keeps keys and values of the past; `float64`:
    it runs in that; `counts_from_pad`: positions begin behind the padding's id; `stock_heads`: a stock checkpoint may
    have fewer heads; `stock_biases` are the matrices that get a bias there.
    """

    family: str
    architecture: str
    gated: bool
    silenced: tuple[str, ...]
    fold: bool
    stock_heads: bool
    stock_biases: tuple[str, ...]
    experts: bool
    masked: bool
    mixers: tuple[str, ...]
    classifier: str
    caches: bool
    float64: bool
    counts_from_pad: bool

    @property
    def limits(self) -> str:
        """Return in words what is not possible; empty where everything is."""
        found = ["a masked language model: it fills masks, and generates no text"] if self.masked else []
        found += [f"dropped {unit} stay, silenced" for unit in self.silenced]
        found += [] if self.fold else ["nothing is folded: a norm follows"]
        found += [] if self.stock_heads else ["stock checkpoints keep all heads"]
        found += (
            ["networks are mixtures of experts, of which whole experts go, and nothing is folded into them"]
            if self.experts
            else []
        )
        found += [
            f"in blocks without heads {mixer} stays; one block of each kind stays" for mixer in self.mixers
        ]
        found += [] if self.caches else ["not timed: it keeps no cache"]
        found += [] if self.float64 else ["not in float64"]
        if self.counts_from_pad and not self.masked:
            found += [
                "transformers' own generate counts its positions from 0, which is not how it was trained"
            ]
        return "; ".join(found)


class Listed(NamedTuple):
    """A class of transformers with a head for language, and what is read of it: `limits`, or `refusal`, one of which is
    empty where the other is not, or both where all is read."""

    architecture: str
    family: str
    limits: str
    refusal: str


def list_classes(names: Mapping[str, str]) -> list[Listed]:
    """Return for every class of one of transformers' mappings (model type → class) whether it is read, and why not."""
    limits = {info.architecture: info.limits for info in list_families()}
    listed = []
    for architecture in sorted({*names.values()}):
        if architecture in TOWERS:
            listed.append(Listed(architecture, "of its language model", "everything else stays as it is", ""))
        elif architecture in FAMILIES:
            listed.append(Listed(architecture, FAMILIES[architecture].name, limits[architecture], ""))
        else:
            listed.append(Listed(architecture, "", "", _refusal(architecture, names)))
    return listed


def _refusal(architecture: str, names: Mapping[str, str]) -> str:
    """Return the kind of a class that is not read, as far as it or the config that it has by default tells."""
    if architecture in _WHY_UNREAD:
        return _WHY_UNREAD[architecture]
    kinds = [CONFIG_MAPPING[model_type]() for model_type, name in names.items() if name == architecture]
    found = next((kind for one in kinds if (kind := _kind(architecture, one.to_dict()))), None)
    return found or "not in the table of families"


def list_families() -> list[FamilyInfo]:
    """Return the families that can be cut, by name."""
    classifiers = {family.name: architecture for architecture, family in CLASSIFIERS.items()}
    return [
        FamilyInfo(
            family.name,
            family.architecture,
            "gate" in family.slots,
            family.indivisible,
            not (family.after or family.post_norm),
            family.free_heads,
            tuple(part for parts in family.biases.values() for part in parts),
            bool(family.experts),
            family.masked,
            tuple(family.mixers.values()),
            classifiers.get(f"{family.name}{CLASSIFIER}", ""),
            family.caches,
            not family.no_float64,
            family.counts_from_pad,
        )
        for family in sorted(FAMILIES.values(), key=lambda family: family.name)
    ]


@dataclass(frozen=True)
class Sizes:
    """The widths that the layouts need, vocabulary and context. Each key/value head serves equally many query heads."""

    d_model: int
    num_heads: int
    num_kv_heads: int
    d_head: int
    vocab_size: int
    context: int | None


def sizes(family: Family, config: PreTrainedConfig) -> Sizes:
    """Return widths, vocabulary and context that the model's config states.

    Raises: `ModelError` where heads do not share keys evenly.
    """
    num_heads = config.num_attention_heads
    num_kv_heads = _num_kv_heads(family, config)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"broken config: {num_heads} query heads cannot share {num_kv_heads} key/value heads."
        )
    d_head = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    context = getattr(config, family.context, None)
    if family.counts_from_pad and context is not None:
        context -= config.pad_token_id + 1
    return Sizes(config.hidden_size, num_heads, num_kv_heads, d_head, config.vocab_size, context)


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
    scale = getattr(config, "residual_multiplier", 1.0)
    normed = family.after or family.post_norm or not getattr(config, "do_layer_norm_before", True)
    return not (normed or family.experts) and scale == 1


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


_LATENT = "whose keys and values come from a code of low rank (latent attention), which no head owns"
_UNREAD: Mapping[str, Sequence[str]] = {
    "a model that keeps a state in place of attention": (
        "FalconMambaForCausalLM", "Mamba2ForCausalLM", "MambaForCausalLM", "RwkvForCausalLM", "xLSTMForCausalLM",
    ),
    "a hybrid, of which some blocks keep a state or convolve in place of attention": (
        "BambaForCausalLM", "Lfm2ForCausalLM", "Lfm3ForCausalLM", "OlmoHybridForCausalLM",
        "Qwen3_5ForCausalLM", "RecurrentGemmaForCausalLM", "Zamba2ForCausalLM", "ZambaForCausalLM",
    ),
    "a hybrid, of which blocks keep a state beside their attention": ("FalconH1ForCausalLM",),
    "a mixture of experts and a hybrid, of which some blocks keep a state or convolve in place of attention": (
        "BailingHybridForCausalLM", "GraniteMoeHybridForCausalLM", "Inkling2ForCausalLM", "InklingForCausalLM",
        "JambaForCausalLM", "KimiLinearForCausalLM", "Lfm2MoeForCausalLM", "MiniMaxForCausalLM", "NemotronHForCausalLM",
        "Qwen3NextForCausalLM", "Qwen3_5MoeForCausalLM", "Qwen4ExpForCausalLM",
    ),
    f"a decoder {_LATENT}": ("MiniCPM3ForCausalLM", "YoutuForCausalLM"),
    f"a mixture of experts {_LATENT}": (
        "AXK1ForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM",
        "LongcatFlashForCausalLM",
    ),
    "a mixture of experts of which an indexer chooses the keys that attention looks at": (
        "AXK2ForCausalLM", "DeepseekV32ForCausalLM", "DeepseekV4ForCausalLM", "Dots3NoteForCausalLM",
        "GlmMoeDsaForCausalLM", "HYV4ForCausalLM", "MiniMaxM3VLForCausalLM",
    ),
    "a mixture of experts of which a gate multiplies what attention gives": (
        "AfmoeForCausalLM", "BeamForCausalLM", "LagunaForCausalLM",
    ),
    "a mixture of experts with attention of other shapes in some blocks": ("MiMoV2FlashForCausalLM",),
    "a mixture of experts of which the router weighs what enters an expert": ("Llama4ForCausalLM",),
    "a decoder of which blocks differ in the size of heads, and later ones read the keys and values of earlier ones": (
        "Gemma3nForCausalLM", "Gemma4ForCausalLM", "Gemma4UnifiedForCausalLM",
    ),
    "a small model beside a large one, of which it reads the keys and values": (
        "Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM",
    ),
    "a decoder of which heads are taken in pairs, one from the other": ("DiffLlamaForCausalLM",),
    "a decoder whose attention is masked by what all value heads hold": ("DogeForCausalLM",),
    "a decoder that runs its blocks more than once": ("HrmTextForCausalLM",),
    "a decoder of which the first block, or the last, has other parameters than the rest": (
        "GPTNeoXJapaneseForCausalLM", "ModernBertDecoderForCausalLM",
    ),
    "a decoder that keeps its cache as an encoder-decoder does": (
        "MegatronBertForCausalLM", "RemBertForCausalLM",
    ),
    "the decoder of an encoder-decoder model": (
        "BartForCausalLM", "BigBirdPegasusForCausalLM", "BlenderbotForCausalLM", "BlenderbotSmallForCausalLM",
        "MBartForCausalLM", "MarianForCausalLM", "MusicgenForCausalLM", "MusicgenMelodyForCausalLM", "MvpForCausalLM",
        "PLBartForCausalLM", "PegasusForCausalLM", "ProphetNetForCausalLM", "TrOCRForCausalLM", "WhisperForCausalLM",
    ),
    "a model that reads and writes sound": ("MoshiForCausalLM",),
    "a model of bytes, with models of its own at both ends": ("BltForCausalLM",),
    "a model that attends within chunks of its text, by hashes": ("ReformerModelWithLMHead",),
    "a model whose attention matrices are no linear layers": ("XLNetLMHeadModel",),
}  # fmt: skip
"""What keeps classes that are not read from being a family of the table, as far as that is known."""
_WHY_UNREAD = {name: why for why, names in _UNREAD.items() for name in names if name not in FAMILIES}

_EXPERTS = (  # a class that can do without experts states the last even so
    "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok",
)  # fmt: skip
_CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk")
_MODALITIES = ("vision_config", "audio_config", "speech_config", "text_config", "image_token_id")


def family_of(architecture: str, config: Mapping[str, object]) -> Family:
    """Return the family of a model, from its class name and its config as a dictionary.

    Raises: `ModelError`, by kind (quantized, mixture of experts, encoder-decoder, multimodal, no causal
    language model, unknown).
    """
    refuse_quantized(architecture, config)
    if architecture in TOWERS:
        return _tower_of(architecture, config)
    kind = _kind(architecture, config)
    if kind is not None:
        raise ModelError(f"{architecture} is {kind}, and is not read; `secateur models` lists what is.")
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"unknown family {architecture}.{_misspelled(architecture)} `secateur models` lists those that are read."
        )
    family = ARCHITECTURES[architecture]
    if family.bidirectional and config.get("is_decoder"):
        raise ModelError(
            f"config.json of this {architecture} has is_decoder, with which positions attend to what precedes them "
            "alone: set it to false, or take the class of a causal model."
        )
    if family.is_decoder and not config.get("is_decoder"):
        raise ModelError(
            f"config.json of this {architecture} has no is_decoder, without which positions attend to what follows "
            "them too: set it to true, or take the class of a masked language model."
        )
    return family


def _tower_of(architecture: str, config: Mapping[str, object]) -> Family:
    """Return the family of the language model in a multimodal one. Raises: `ModelError` where that is not cut."""
    stated = config.get("text_config")
    text = stated if isinstance(stated, Mapping) else {}
    kind = str(
        text.get("model_type") or CONFIG_MAPPING[str(config["model_type"])]().get_text_config().model_type
    )
    if kind not in _OF_TYPE:
        raise ModelError(
            f"{architecture}: its language model is of type {kind!r}, which secateur does not cut."
        )
    inner = _OF_TYPE[kind]
    family_of(inner.architecture, text)
    return inner.within(architecture, TOWERS[architecture])


_KIND_OF_HEAD = re.compile("For(CausalLM|MaskedLM|SequenceClassification)$")


def _misspelled(architecture: str) -> str:
    """Return the family that must have been meant; empty where none is nearly the same, their common ending aside."""
    head = _KIND_OF_HEAD.search(architecture)
    among = CLASSIFIERS if head and head[1] == "SequenceClassification" else FAMILIES
    alike = (known for known in among if head is None or known.endswith(head[0]))
    names = {_KIND_OF_HEAD.sub("", known): known for known in alike}
    near = get_close_matches(_KIND_OF_HEAD.sub("", architecture), names, 1, 0.85)
    return f" Did you mean {names[near[0]]}?" if near else ""


def refuse_quantized(architecture: str, config: Mapping[str, object]) -> None:
    """Raise `ModelError` where the config says that weights are stored as codes."""
    found = config.get("quantization_config") or config.get("quantization")
    if not found:
        return
    method = found.get("quant_method", "") if isinstance(found, Mapping) else ""
    how = f" ({method})" if method else ""
    raise ModelError(
        f"this {architecture} is quantized{how}: its stored codes cannot be cut. Use the original float "
        "checkpoint, or dequantize it and save that."
    )


def _kind(architecture: str, config: Mapping[str, object]) -> str | None:
    """Return the kind of a refused model in words, or None for a plain decoder as far as the config tells."""
    if architecture in _WHY_UNREAD:
        return _WHY_UNREAD[architecture]
    nested = config.get("ffn_config")  # where DBRX keeps the number of experts
    stated = {**config, **nested} if isinstance(nested, Mapping) else config
    family = ARCHITECTURES.get(architecture)
    counted = any(stated.get(key) for key in (_EXPERTS if family is None else _EXPERTS[:-1]))
    named = family is None and "moe" in architecture.lower()
    if (counted or named) and not (family and family.experts):
        return "a mixture of experts"
    if config.get("is_encoder_decoder"):
        return "an encoder-decoder"
    if any(config.get(key) is not None for key in _MODALITIES):
        return "a multimodal model"
    if architecture not in ARCHITECTURES and not architecture.endswith(
        ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForSequenceClassification")
    ):
        return "not a causal language model with its head, nor a masked one, nor a sequence classifier"
    return None
