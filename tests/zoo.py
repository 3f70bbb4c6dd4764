"""Tiny random models of every family and layout that secateur reads, for all tests that need a model.

`ZOO["llama"]()` gives a fresh float32 model in eval mode, the same weights every time; `tiny(name, dtype)`
casts it. Vocabulary 96, 64 positions, 2 or 3 blocks. Biases and norms are randomized too, so that nothing
is zero, one or equal by accident of initialization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from secateur.surgery.operations import OnParameter

VOCAB_SIZE = 96
CONTEXT = 64

_TOKENS = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_COMMON = _TOKENS | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GATED = _COMMON | {"intermediate_size": 40, "max_position_embeddings": CONTEXT}
_GPT = _TOKENS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
_FALCON = _COMMON | {"max_position_embeddings": CONTEXT}
_GEMMA = _GATED | {
    "num_key_value_heads": 2,
    "head_dim": 12,
    "query_pre_attn_scalar": 12,
    "sliding_window": 16,
}


def _build(cls: str, config: str, tied: bool, options: Mapping[str, Any]) -> PreTrainedModel:
    made = getattr(transformers, config)(**options, tie_word_embeddings=tied)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, cls)(made)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=1.0 if _is_gain(parameter) else 0.0, std=0.15)
    return model.eval().requires_grad_(False)


def _is_gain(parameter: torch.Tensor) -> bool:
    return parameter.dim() == 1 and bool((parameter == 1).all())


def _entry(cls: str, config: str, tied: bool = False, **options: Any) -> Callable[[], PreTrainedModel]:
    return partial(_build, cls, config, tied, options)


ZOO: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": _entry("GPT2LMHeadModel", "GPT2Config", tied=True, **_GPT),
    "gpt2-untied-wide": _entry("GPT2LMHeadModel", "GPT2Config", **_GPT | {"n_inner": 56, "n_layer": 3}),
    "gptj": _entry("GPTJForCausalLM", "GPTJConfig", rotary_dim=4, **_GPT),
    "gpt-neox": _entry(
        "GPTNeoXForCausalLM", "GPTNeoXConfig", **_GATED | {"intermediate_size": 80, "rotary_pct": 0.5}
    ),
    "gpt-neox-serial": _entry(
        "GPTNeoXForCausalLM", "GPTNeoXConfig", use_parallel_residual=False, attention_bias=False, **_GATED
    ),
    "opt": _entry(
        "OPTForCausalLM", "OPTConfig", tied=True, ffn_dim=48, **_COMMON | {"max_position_embeddings": CONTEXT}
    ),
    "opt-projected": _entry(  # as OPT-350m: narrower embeddings, norms after, no final norm
        "OPTForCausalLM",
        "OPTConfig",
        tied=True,
        ffn_dim=48,
        word_embed_proj_dim=20,
        do_layer_norm_before=False,
        **_COMMON | {"max_position_embeddings": CONTEXT},
    ),
    "bloom": _entry("BloomForCausalLM", "BloomConfig", tied=True, **_COMMON),
    "falcon-7b": _entry("FalconForCausalLM", "FalconConfig", tied=True, multi_query=True, **_FALCON),
    "falcon-40b": _entry(
        "FalconForCausalLM", "FalconConfig", new_decoder_architecture=True, num_kv_heads=2, **_FALCON
    ),
    "falcon-rw": _entry(
        "FalconForCausalLM",
        "FalconConfig",
        tied=True,
        multi_query=False,
        parallel_attn=False,
        alibi=True,
        bias=True,
        **_FALCON,
    ),
    "llama": _entry("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, **_GATED),
    "llama-tied-biased": _entry(
        "LlamaForCausalLM",
        "LlamaConfig",
        tied=True,
        attention_bias=True,
        mlp_bias=True,
        num_key_value_heads=4,
        **_GATED | {"num_hidden_layers": 3, "hidden_size": 48, "head_dim": 8},
    ),
    "mistral": _entry(
        "MistralForCausalLM", "MistralConfig", num_key_value_heads=2, sliding_window=16, **_GATED
    ),
    "qwen2": _entry("Qwen2ForCausalLM", "Qwen2Config", tied=True, num_key_value_heads=2, **_GATED),
    "qwen3": _entry(
        "Qwen3ForCausalLM", "Qwen3Config", tied=True, num_key_value_heads=2, head_dim=12, **_GATED
    ),
    "gemma2": _entry("Gemma2ForCausalLM", "Gemma2Config", tied=True, **_GEMMA),
    "gemma3": _entry("Gemma3ForCausalLM", "Gemma3TextConfig", tied=True, **_GEMMA),
    "phi": _entry("PhiForCausalLM", "PhiConfig", partial_rotary_factor=0.5, **_GATED),
    "phi3": _entry("Phi3ForCausalLM", "Phi3Config", num_key_value_heads=2, **_GATED),
    "phi3-multi-query": _entry("Phi3ForCausalLM", "Phi3Config", num_key_value_heads=1, **_GATED),
    "phi3-long": _entry(  # as Phi-3-128k: other frequencies where the longest row is longer than 8
        "Phi3ForCausalLM",
        "Phi3Config",
        original_max_position_embeddings=8,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [2.0, 5.0, 9.0, 20.0],
        },
        **_GATED,
    ),
}


def tiny(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A fresh model of the zoo in `dtype`."""
    return ZOO[name]().to(dtype)


def variant(name: str, **changes: Any) -> PreTrainedModel:
    """A fresh model of the zoo with other values in its config."""
    cls, config, tied, options = ZOO[name].args
    return _build(cls, config, tied, options | changes)


def written_(model: PreTrainedModel, operations: Sequence[OnParameter]) -> None:
    """Each operation written into the parameter it names, for good: the slow way to what the mask computes."""
    for operation in operations:
        operation.apply_(model.get_parameter(operation.parameter))
