"""Make a new model: a Mistral of any size with random weights, for the tokens of a tokenizer."""

from __future__ import annotations

import torch
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerBase

from secateur.errors import ModelError
from secateur.hf.load import TokenizerErrors, quiet, read_tokenizer
from secateur.hf.size import Size


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
