"""A model from nothing: a Mistral of any size with random weights, for the tokens of a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM, PreTrainedTokenizerBase

from secateur.errors import ModelError
from secateur.hf.load import quiet


@dataclass(frozen=True)
class Size:
    """Shapes of a Mistral. `kv_heads` defaults to `heads`, `d_ff` to 8/3 of `d_model`, up to a multiple of 8; `context`
    counts positions. Raises: `ModelError` for shapes that no Mistral has."""

    layers: int = 4
    d_model: int = 128
    heads: int = 4
    kv_heads: int | None = None
    d_ff: int | None = None
    context: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ModelError(f"--{name.replace('_', '-')} {value}: give 1 or more.")
        if self.d_model % self.heads or (self.d_model // self.heads) % 2:
            raise ModelError(
                f"--d-model {self.d_model} with --heads {self.heads}: a head has an even, whole number of channels."
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ModelError(f"--heads {self.heads} cannot share --kv-heads {self.kv_heads} evenly.")

    @property
    def width(self) -> int:
        """Neurons of a feed-forward network."""
        return self.d_ff or -(-self.d_model * 8 // 3 // 8) * 8


def fresh_mistral(size: Size, tokenizer: PreTrainedTokenizerBase, seed: int) -> MistralForCausalLM:
    """Random weights in float32, the same for the same seed; torch's own randomness is left alone."""
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


def read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; code that lies there is never run. Raises `ModelError` where none can be read so."""
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"--tokenizer {folder} brings code of its own, and train runs none; nothing of it was run. Give the "
                "folder of a tokenizer that transformers knows."
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"--tokenizer {folder}: no tokenizer can be read there ({reason}).") from error
