"""Reads a model's generation_config.json: the tokens that end a text are obeyed, all that bends or samples the
likeliest token (repetition penalties, forbidden and forced tokens, temperatures) is set aside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from secateur.errors import ModelError


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a text: the tokenizer's EOS, and those of generation_config.json (else of config.json).

    Raises: `ModelError` where these are no token ids.
    """
    stated = model.generation_config.eos_token_id
    listed = stated if isinstance(stated, list) else [stated]
    found = [one for one in (tokenizer.eos_token_id, *listed) if one is not None]
    if not all(isinstance(one, int) for one in found):
        raise ModelError(
            f"generation_config.json has eos_token_id {stated!r}, which is no token id and no list of some."
        )
    return tuple(dict.fromkeys(found))


@contextmanager
def generating_by(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """While open, the model generates by `config` alone. `generate` would fill what it leaves open from the model's own
    one."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own
