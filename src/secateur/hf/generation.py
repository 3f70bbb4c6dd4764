"""Read a model's generation_config.json: only the tokens that end a text are used.

Options that bend or sample the likeliest token (repetition penalties, forbidden and forced tokens,
temperatures) are set aside.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from secateur.errors import ModelError
from secateur.hf.family import Family


def generation_config(model: PreTrainedModel) -> GenerationConfig | None:
    """Return the model's generation config; None for one that generates no text, as a masked language model."""
    return getattr(model, "generation_config", None)


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that end a text: the tokenizer's EOS, and those of generation_config.json.

    Without that file transformers takes them from config.json.

    A masked language model generates no text, and has none.

    Raises: `ModelError` where these are no token ids.
    """
    config = generation_config(model)
    if config is None:
        return ()
    stated = config.eos_token_id
    listed = stated if isinstance(stated, list) else [stated]
    ids = [token for token in (tokenizer.eos_token_id, *listed) if token is not None]
    if not all(isinstance(token, int) for token in ids):
        raise ModelError(
            f"generation_config.json has eos_token_id {stated!r}, which is no token id and no list of some."
        )
    return tuple(dict.fromkeys(ids))


def positions(family: Family, model: PreTrainedModel, mask: Tensor) -> dict[str, Tensor]:
    """Return the positions of left-padded prompts as an argument of `generate`, where it would count from 0 and the
    model does not; nothing elsewhere.

    Args:
        mask: 1 for tokens, 0 for padding. (rows, length)
    """
    if not family.counts_from_pad:
        return {}
    return {"position_ids": mask.cumsum(-1) * mask + model.config.pad_token_id}


def unwritable(family: Family, model: PreTrainedModel) -> list[int]:
    """Return the tokens that must not be written: the padding, where positions pass it over."""
    return [model.config.pad_token_id] if family.counts_from_pad else []


@contextmanager
def generating_by(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Make the model generate by `config` alone while the context is open.

    `generate` would fill options that it leaves open from the model's own one.
    """
    before, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = before
