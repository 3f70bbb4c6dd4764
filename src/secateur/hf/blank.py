"""Build a model without weights, from its config.json alone, on the meta device, for counting.

It comes with its tokenizer, or where there is none with a ruler that cuts text into pieces of about the usual
length. Or make a new model with random weights: for the tokens of a tokenizer, or a tiny one of a config's kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack
from zlib import crc32

import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from secateur.core.machine import Offloading
from secateur.errors import ModelError
from secateur.hf.anatomy import anatomy, stock_class
from secateur.hf.build import of_each_kind, repaired
from secateur.hf.family import ACTIONS, Family, has_free_heads, indivisible_units, routing, sizes
from secateur.hf.files import check_weights
from secateur.hf.load import (
    DTYPES,
    Loaded,
    TokenizerErrors,
    auto_of,
    building,
    check_kind,
    check_machine,
    config_of,
    family_in,
    find_source,
    on_meta,
    quiet,
    read_tokenizer,
    refuse_shallow,
    tokenizer_of,
)
from secateur.hf.size import Size
from secateur.hf.source import download

MASK = "[MASK]"
STREAM, NEURONS, VOCABULARY = 64, 48, 96  # sizes of a tiny copy
# English words have 4.7 letters: 1.3 pieces a word, as tokenizers have tokens; a mask is one
PIECE = re.compile(rf"\s*(?:{re.escape(MASK)}|(?:(?!{re.escape(MASK)})\S){{1,6}})")


@dataclass(frozen=True)
class Ruler:
    """A substitute for a tokenizer where only lengths matter: a word is a piece, a long one several.

    Equal pieces have equal ids, so choices share the same beginnings as with a tokenizer.
    """

    vocab_size: int
    bos_token_id: int | None = None
    eos_token_id: int = 0
    chat_template: None = None
    mask_token: str = MASK
    mask_token_id: int = 0

    def encode(self, text: str, **_: object) -> list[int]:
        """Return one id for each piece."""
        return [
            self.mask_token_id if piece.endswith(MASK) else 1 + crc32(piece.encode()) % (self.vocab_size - 1)
            for piece in PIECE.findall(text)
        ]

    def decode(self, ids: int | Sequence[int]) -> str:
        """Return no text: ids are hashes."""
        return ""

    def __call__(self, text: str, pair: str | None = None, **_: object) -> dict[str, list[int]]:
        return {"input_ids": self.encode(f"{text} {pair}" if pair else text)}


def _has_tokenizer(folder: Path) -> bool:
    """Return True where a file in the folder is named like a tokenizer's; it may still be unreadable."""
    return any(file.name.startswith(("tokenizer", "vocab", "spiece", "tekken")) for file in folder.iterdir())


def blank_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    ruler: bool = False,
    **offloading: Unpack[Offloading],
) -> Loaded:
    """Load MODEL as `load_model` names it, with its tokenizer and without its weights. Its fingerprint is no model's.

    With `ruler` neither weights nor tokenizer need be there.

    Raises: `UnknownName` and `ModelError` as `load_model` does for all but weights.
    """
    check_machine(dtype, device, **offloading)
    with quiet():
        source = find_source(name, revision)
        remote, auto = check_kind(source, trust_remote_code), auto_of(source)
        if not ruler and source.is_partly_here:
            source = download(source, weights=False)
        config = config_of(source, remote)
        if not ruler and not source.is_partly_here:
            refuse_shallow(source, config, check_weights(source.folder, source.config))
        model = on_meta(source, auto, config, DTYPES.get(dtype, "auto"), remote)
        needed = not ruler or _has_tokenizer(source.folder) or family_in(source).head is ACTIONS
        tokenizer = tokenizer_of(source, trust_remote_code) if needed else None
    found = anatomy(model.eval().requires_grad_(False))
    place = str(source.folder)
    ruled: Any = tokenizer or Ruler(found.vocab_size)  # used by a tokenizer's public methods alone
    return Loaded(name, model, ruled, found, "blank", source.revision, place, gguf=source.gguf)


# ----------------------------------------------------------------------------------------------------------- new models


def fresh_mistral(size: Size, tokenizer: PreTrainedTokenizerBase, seed: int) -> MistralForCausalLM:
    """Return a model with random weights in float32, the same for the same seed; torch's own random state stays."""
    config = MistralConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,  # ids may have gaps
        hidden_size=size.d_model,
        intermediate_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads or size.heads,
        head_dim=size.d_model // size.heads,
        max_position_embeddings=size.context,
        sliding_window=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MistralForCausalLM(config)


_SIZES_OF_STREAM = (
    "hidden_size",
    "n_embd",
    "d_model",
    "embed_dim",
    "word_embed_proj_dim",
    "hidden_dim",
    "dim",
)
_WINDOWS = ("sliding_window", "window_size")
_SIZES_OF_CODES = {"q_lora_rank": 28, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "v_head_dim": 10}
_WIDTHS_OF_EXPERTS = ("moe_intermediate_size", "shared_expert_intermediate_size")


def tiny_config(loaded: Loaded, window: int) -> PreTrainedConfig:
    """Return the config of `tiny_copy`; equal for models that differ in sizes and names alone.

    Args:
        loaded: May be blank; of a carved model the stock class counts.
        window: Tokens that its sliding windows hold.

    Raises: `ModelError` where there is no such model.
    """
    family, config = loaded.anatomy.details, loaded.model.config
    if family.encoder is not None:
        raise ModelError(
            f"{family.architecture} is an encoder-decoder, of which no tiny copy is proved: secateur's own tests "
            "hold the stock class to what docs/families.md says of it."
        )
    if family.head is ACTIONS:
        raise ModelError(
            f"{loaded.name} is a decision transformer, and no tiny copy of one is made; the tests prove its cuts."
        )
    if family.no_float64:
        raise ModelError(f"{family.architecture} does not run in float64, in which a tiny copy is made.")
    with quiet(), building(f"no tiny copy of {loaded.name} can be made", config):
        return _shrunk(config, family, window)


def tiny_copy(loaded: Loaded, config: PreTrainedConfig) -> PreTrainedModel:
    """Return a small model of the very class of another, in float64, with random weights.

    It has a block of each kind that the config tells apart, of a hybrid two, and three at least; four heads at
    most, of the same size where a config can state it beside that of the stream, some sharing keys where they do in the
    model. All parameters are random, gains and biases too.

    Args:
        loaded: The other model, which may be blank.
        config: As `tiny_config` returns it for that model.

    Raises: `ModelError` where transformers makes no such model.
    """
    cls = stock_class(type(loaded.model))
    failed = f"no tiny copy of {loaded.name} can be made"
    with quiet(), building(failed, config), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _made(cls, config, loaded.anatomy.details)
        for parameter in (one for one in model.parameters() if not one.is_meta):
            is_gain = parameter.dim() == 1 and bool((parameter == 1).all())
            torch.nn.init.normal_(parameter, mean=float(is_gain), std=parameter.shape[-1] ** -0.5)
        model.eval().requires_grad_(False)
    return model


def _made(cls: type[PreTrainedModel], config: PreTrainedConfig, family: Family) -> PreTrainedModel:
    """Return a model in float64; of a multimodal one only the language model has memory, for no image is read."""
    how: Mapping[str, Any] = {"dtype": torch.float64, "experts_implementation": "eager"}
    with torch.device("meta" if family.tower else "cpu"):
        model: PreTrainedModel = cls._from_config(config, **how)
    if family.tower:
        tower = model.get_submodule(family.tower)
        assert isinstance(tower, PreTrainedModel)
        model.set_submodule(family.tower, type(tower)._from_config(config.get_text_config(), **how))
        model.get_submodule(family.unembedding).to_empty(device="cpu")
        model.tie_weights()
    return model


def _shrunk(config: PreTrainedConfig, family: Family, window: int) -> PreTrainedConfig:
    text = config.get_text_config()
    stated, own = text.to_dict(), sizes(family, text)
    groups = min(own.num_kv_heads, 2 if own.num_kv_heads < own.num_heads else 4)
    heads = min(own.num_heads, 4 if groups == 1 else groups * min(2, own.num_heads // own.num_kv_heads))
    d_head, width = own.d_head, STREAM - STREAM % heads
    free = has_free_heads(family, text) and "heads" not in indivisible_units(family, text)
    if not free and own.num_heads * own.d_head == own.d_model:  # the class divides
        # sections of rotary positions add up to half a head in some of these
        by_rope = family.sized_by_scaling or family.tower
        d_head = own.d_head if by_rope else min(own.d_head, STREAM)
        width = heads * d_head
    changes: dict[str, object] = {
        "num_attention_heads": heads,
        "hidden_size": width,
        "vocab_size": VOCABULARY,
    }
    changes |= {"head_dim": d_head} if (free or stated.get("head_dim")) and not family.latent else {}
    changes |= {name: groups for name in ("num_kv_heads", "num_key_value_heads") if name in stated}
    changes |= {name: width for name in _SIZES_OF_STREAM if stated.get(name) == own.d_model}
    changes |= {name: window for name in _WINDOWS if stated.get(name)}
    changes |= {name: NEURONS for name in _WIDTHS_OF_EXPERTS if stated.get(name)}
    changes |= {name: size for name, size in _SIZES_OF_CODES.items() if stated.get(name)}
    changes |= {name: 1 for name in stated if name.endswith("_token_id") and stated[name] is not None}
    if keys := stated.get("linear_num_key_heads"):
        of_values = {"linear_num_value_heads": 2 * stated["linear_num_value_heads"] // keys}
        changes |= {"linear_num_key_heads": 2} | of_values if keys > 2 else {}
    if family.width is not None:
        changes[family.width] = NEURONS
    if family.experts is not None and (router := routing(family, text)) is not None:
        each = -(-2 * router.chosen // router.groups)  # of a group
        changes[family.experts.count] = min(getattr(text, family.experts.count), router.groups * max(2, each))
    return repaired(config, of_each_kind(config, 2 if family.mixers else 1, 3), **changes)


def tokenizer_in(folder: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a folder, running no code from there.

    Raises: `ModelError` where that cannot be done.
    """
    try:
        with quiet(), TokenizerErrors(f"--tokenizer {folder}: no tokenizer can be read there"):
            return read_tokenizer(folder, trust_remote_code=False)
    except ModelError as error:
        if "trust_remote_code" in str(error.__cause__):
            raise ModelError(
                f"--tokenizer {folder} brings code of its own, and train runs none; nothing of it was run. Give the "
                "folder of a tokenizer that transformers knows."
            ) from error
        raise
