"""Architectures as data: the module that holds each matrix of each family. A new one is one more entry of `FAMILIES`.

Module names are those of transformers 5, read from its modelling files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from secateur.hf.family import CAUSAL, MASKED, PAIRS, Family, Mixture, Slot, Variant

# kinds that may share a module
_TOGETHER = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "gate_up": ("gate", "up")}


def _slots(**modules: str) -> Mapping[str, Slot]:
    """Parse `qkv="attn.c_attn/stacked", o="attn.c_proj"` into slots."""
    found: dict[str, Slot] = {}
    for kinds, text in modules.items():
        module, _, layout = text.partition("/")
        found |= dict.fromkeys(_TOGETHER.get(kinds, (kinds,)), Slot(module, layout or "whole"))
    return found


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


def _like_t5(name: str, architecture: str, gated: bool = False) -> Family:
    """Return an encoder-decoder with the modules of T5, whose networks are gated where its config says so."""
    own, cross = "layer.0.SelfAttention", "layer.1.EncDecAttention"
    attention = {kind: f"{own}.{kind}" for kind in "qkvo"}
    crossing = {f"cross.{kind}": f"{cross}.{kind}" for kind in "qkvo"}

    def network(layer: int) -> dict[str, str]:
        path = f"layer.{layer}.DenseReluDense"
        inner = {"gate": f"{path}.wi_0", "up": f"{path}.wi_1"} if gated else {"up": f"{path}.wi"}
        return inner | {"down": f"{path}.wo"}

    decoder = Family(
        name,
        architecture,
        "decoder.block",
        "shared",
        "decoder.final_layer_norm",
        _slots(**attention, **crossing, **network(2)),
        mlp="layer.2.DenseReluDense",
        extras=("encoder.embed_tokens", "decoder.embed_tokens"),
        context="",  # positions enter as distances, without bound
        counts={"n_heads": "heads", "inner_dim": "width"},
        width="d_ff",
        head=PAIRS,
        classifier=(),
        depth="num_decoder_layers",
        from_first=f"{own}.relative_attention_bias",
        shared_bias=True,
        cached_by_encoder=True,
    )
    encoder = replace(
        decoder,
        blocks="encoder.block",
        slots=_slots(**attention, **network(1)),
        mlp="layer.1.DenseReluDense",
        depth="num_layers",
    )
    plain = replace(decoder, encoder=encoder)
    if gated:
        return plain
    return replace(plain, variant=Variant("feed_forward_proj", "gated", _like_t5(name, architecture, True)))


def _like_bart(name: str, architecture: str, final_norm: str = "", **traits: Any) -> Family:
    """Return an encoder-decoder with the modules of BART; with a final norm, other norms precede what they are for."""
    attention = _LLAMA_ATTENTION | {"o": "self_attn.out_proj"}
    crossing = {f"cross.{kind}": f"encoder_attn.{kind}_proj" for kind in "qkv"}
    network = {"up": "fc1", "down": "fc2"}
    places = (
        "encoder.embed_tokens",
        "decoder.embed_tokens",
        "encoder.embed_positions",
        "decoder.embed_positions",
    )
    decoder = Family(
        name,
        architecture,
        "model.decoder.layers",
        "model.shared",
        final_norm,
        _slots(**attention, **crossing, **{"cross.o": "encoder_attn.out_proj"}, **network),
        mlp=None,
        extras=tuple(f"model.{place}" for place in places),
        counts={"num_heads": "heads"},
        width="decoder_ffn_dim",
        head=PAIRS,
        classifier=(),
        post_norm=not final_norm,
        heads="decoder_attention_heads",
        depth="decoder_layers",
        **traits,
    )
    encoder = replace(
        decoder,
        blocks="model.encoder.layers",
        slots=_slots(**attention, **network),
        width="encoder_ffn_dim",
        heads="encoder_attention_heads",
        depth="encoder_layers",
    )
    return replace(decoder, encoder=encoder)


_BERT_HEAD = ("cls.predictions.decoder", "cls.predictions.transform.dense")
_ROBERTA_HEAD = ("lm_head.decoder", "lm_head.dense")
_ELECTRA_HEAD = ("generator_lm_head", "generator_predictions.dense", "electra.embeddings_project")
_DENSE_CLASSIFIER = ("classifier.out_proj", "classifier.dense")

_SINKS = ("sinks",)
_CORRECTED = {"gate.e_score_correction_bias": 0}
_LATENT_ATTENTION = {"q": "self_attn.q_b_proj", "kv": "self_attn.kv_b_proj/paired", "o": "self_attn.o_proj"}
_LATENT: Mapping[str, Any] = {
    "latent": True,
    "beside": ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
    "counts": _SHARED | {"num_heads": "heads"},
}


def _latent(family: Family) -> Family:
    """Return a family with latent attention, beside its variant of which queries are made of the stream itself."""
    plain = replace(family, slots={**family.slots, "q": Slot("self_attn.q_proj")})
    return replace(family, variant=Variant("q_lora_rank", "None", plain))


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
        _latent(
            _mixture(
                "deepseek_v2",
                "DeepseekV2ForCausalLM",
                "n_routed_experts",
                attention=_LATENT_ATTENTION,
                even_heads=True,
                **_LATENT,
            )
        ),
        *(
            _latent(
                _mixture(
                    name,
                    architecture,
                    "n_routed_experts",
                    extra=_CORRECTED,
                    fewest=2,
                    attention=_LATENT_ATTENTION,
                    unread=(f"model.layers.{layers}.",),  # which predicts the token after the next
                    **_LATENT,
                )
            )
            for name, architecture, layers in (
                ("deepseek_v3", "DeepseekV3ForCausalLM", 61),
                ("glm4_moe_lite", "Glm4MoeLiteForCausalLM", 47),
            )
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
        _like_t5("t5", "T5ForConditionalGeneration"),
        _like_t5("mt5", "MT5ForConditionalGeneration"),
        _like_bart("bart", "BartForConditionalGeneration"),
        _like_bart("marian", "MarianMTModel", shares_embeddings="share_encoder_decoder_embeddings"),
        _like_bart("mbart", "MBartForConditionalGeneration", "model.decoder.layer_norm"),
        _like_bart("pegasus", "PegasusForConditionalGeneration", "model.decoder.layer_norm"),
        _like_bart("blenderbot", "BlenderbotForConditionalGeneration", "model.decoder.layer_norm"),
        _like_bart("blenderbot-small", "BlenderbotSmallForConditionalGeneration"),
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
OF_TYPE: Mapping[str, Family] = {
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
    architecture: OF_TYPE[kind].classifying(architecture)
    for kind, architecture in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.items()
    if kind in OF_TYPE
    and _OF_LANGUAGE.get(kind) == OF_TYPE[kind].architecture
    and OF_TYPE[kind].classifier
    and not OF_TYPE[kind].mixers
}
"""Sequence classifiers, by class: the blocks of a family above under another head."""

DECISIONS: Mapping[str, Family] = {
    "DecisionTransformerModel": FAMILIES["GPT2LMHeadModel"].acting(
        "decision_transformer", "DecisionTransformerModel"
    )
}
"""Decision transformers, by class: blocks of a family above between states and actions."""

ARCHITECTURES: Mapping[str, Family] = {**FAMILIES, **CLASSIFIERS, **DECISIONS}
