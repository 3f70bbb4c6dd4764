"""Tell which stock checkpoints llama.cpp can hold: limits of its converter to GGUF, and of its models of each family.

Each of them was met by running it, in the version that `VERSION` names; tests/checkpoint/test_where_it_loads.py
holds them to what was found there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from secateur.hf.family import CAUSAL, Family

VERSION = "llama.cpp 0c1e57098"
RAN = frozenset(
    {
        "bloom",
        "falcon",
        "gemma2",
        "gemma3",
        "gpt2",
        "gpt_neox",
        "llama",
        "mistral",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
    }
)
"""Families of which whole and cut models gave the same logits and greedy tokens there as in transformers."""

_UNKNOWN = frozenset({"gptj", "opt"})
_FIXED_WIDTH = frozenset({"falcon", "gpt2", "phi"})  # d_ff is taken to be 4 d_model
_FIXED_HEADS = frozenset({"phi3", "qwen2"})  # the size of a head is taken to be d_model / heads
_SILU, _GELU = ("silu",), ("gelu", "gelu_new", "gelu_pytorch_tanh")
_SWITCHES: Mapping[str, Mapping[str, tuple[object, ...]]] = {  # of the config, and the values that it knows
    "bloom": {"apply_residual_connection_post_layernorm": (False,)},
    "falcon": {"new_decoder_architecture": (True,), "bias": (False,), "alibi": (False,), "activation": _GELU},
    "gemma2": {"attention_bias": (False,), "hidden_activation": _GELU},
    "gemma3": {"attention_bias": (False,), "hidden_activation": _GELU, "attn_logit_softcapping": (None,)},
    "gpt2": {
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "activation_function": _GELU,
    },
    "gpt_neox": {"attention_bias": (True,), "hidden_act": _GELU},
    "llama": {"hidden_act": _SILU},
    "mistral": {"hidden_act": _SILU},
    "phi": {"qk_layernorm": (False,), "hidden_act": _GELU},
    "phi3": {"hidden_act": _SILU},
    "qwen2": {"hidden_act": _SILU},
    "qwen3": {"attention_bias": (False,), "hidden_act": _SILU},
}
_PERIOD = {"gemma2": 2, "gemma3": 6}  # of so many blocks the last one has no window
_COUNTED = (
    "compare its answers first: which blocks have heads may be counted there, where the config lists them"
)
BLOCKS_OF_27B = {"gemma2": 46, "gemma3": 62}  # a model of so many scales attention by d_model / heads
_SCALINGS = frozenset({"default", "linear", "llama3"})  # of rotary positions
_PLAIN_YARN = frozenset({"rope_type", "rope_theta", "factor", "original_max_position_embeddings"})
_TOKENIZER_MODEL = frozenset({"gemma2", "phi3"})  # converted only with a file of that name
_SILENT = "and may compute something else without a word"


def refusal(
    family: Family, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, files: Mapping[str, bytes]
) -> str:
    """Return the reason why llama.cpp cannot run a checkpoint; empty where it can.

    Args:
        config: of a stock class.
        files: those of the tokenizer, by name.
    """
    if family.tower:
        return "it would be the language model alone"
    if family.head is not CAUSAL:
        return f"it would be without the head of {family.head.words}"
    return (
        _refused_shape(family, config)
        or _refused_positions(family.name, config)
        or _refused_tokenizer(family, tokenizer, files)
    )


def condition(family: Family, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the condition under which llama.cpp runs a checkpoint that it does not refuse; empty for always."""
    conditions = (_window(family, config), _unpublished(family, tokenizer), _COUNTED if family.mixers else "")
    return "; ".join(text for text in conditions if text)


def _refused_shape(family: Family, config: PreTrainedConfig) -> str:
    name, size, heads = family.name, config.hidden_size, config.num_attention_heads
    if name in _UNKNOWN:
        return f"it has no {family.architecture}"
    for switch, known in _SWITCHES.get(name, {}).items():
        if getattr(config, switch) not in known:
            return f"it knows this family only with {switch} = {' or '.join(map(str, known))}, {_SILENT}"
    width = getattr(config, family.width) if family.width is not None else None
    if name in _FIXED_WIDTH and (width or 4 * size) != 4 * size:
        return f"it takes feed-forward networks of this family to have 4 × {size:,} neurons"
    if name in _FIXED_HEADS and (getattr(config, "head_dim", None) or size // heads) * heads != size:
        return "it takes the size of a head of this family to follow from their number"
    return _refused_gemma(name, config) if name in _PERIOD else ""


def _refused_gemma(name: str, config: PreTrainedConfig) -> str:
    period, blocks = _PERIOD[name], config.num_hidden_layers
    for block, kind in enumerate(config.layer_types):
        if (kind == "full_attention") != (block % period == period - 1):
            return f"it takes one block in {period} to have no window, which block {block} does not fit, {_SILENT}"
    per_head = config.hidden_size // config.num_attention_heads
    if config.query_pre_attn_scalar != (per_head if blocks == BLOCKS_OF_27B[name] else config.head_dim):
        return f"it takes the scale of attention from the number of blocks, {_SILENT}"
    return ""


def _refused_positions(name: str, config: PreTrainedConfig) -> str:
    stated = getattr(config, "rope_parameters", None) or {"rope_type": "default"}
    rope = stated.get("full_attention", stated)
    kind = rope["rope_type"]
    if name == "gpt_neox" and (kind != "default" or rope["rope_theta"] != 10_000):
        return f"it takes rotary positions of this family to have base 10,000 and no scaling, {_SILENT}"
    scaled_alike = kind in _SCALINGS or (name, kind) == ("phi3", "longrope")
    if scaled_alike or (kind == "yarn" and rope.keys() <= _PLAIN_YARN):
        return ""
    return f"it scales rotary positions of the kind {kind} otherwise in this family, {_SILENT}"


def _window(family: Family, config: PreTrainedConfig) -> str:
    """Return the length up to which llama.cpp, which reads this family without its window, computes the same."""
    window = getattr(config, "sliding_window", None)
    if family.name in _PERIOD or window is None or window >= config.max_position_embeddings:
        return ""
    return f"up to {window:,} tokens, since it has no sliding window in this family"


def _refused_tokenizer(family: Family, tokenizer: PreTrainedTokenizerBase, files: Mapping[str, bytes]) -> str:
    if "tokenizer.model" in files:
        return ""
    stated = json.loads(files.get("tokenizer_config.json", b"{}")).get("tokenizer_class")
    if family.name in _TOKENIZER_MODEL and not (family.name == "phi3" and stated == "GPT2Tokenizer"):
        return "its converter wants a tokenizer.model for this family"
    kind = _kind(tokenizer)
    return "" if kind in ("", "BPE") else f"its converter takes no {kind} tokenizer"


def _unpublished(family: Family, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a condition for byte-level tokenizers, which are known by a hash of their tokens of one text."""
    falls_back = _kind(tokenizer) == "BPE" and tokenizer.backend_tokenizer.model.byte_fallback
    if family.name in ("llama", "mistral") and falls_back:
        return ""
    return "with a tokenizer that its converter knows, as it does those of most published models"


def _kind(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return `BPE`, `WordLevel`, `WordPiece` or `Unigram`; empty for a tokenizer in Python."""
    return type(tokenizer.backend_tokenizer.model).__name__ if tokenizer.is_fast else ""
