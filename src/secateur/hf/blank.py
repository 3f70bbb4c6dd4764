"""A model without weights, from its config.json alone, on the meta device: what it would be made of, for counting.

With it comes its tokenizer, or where there is none a ruler that cuts text into pieces of about the usual length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import torch
from transformers import AutoModelForCausalLM

from secateur.hf.anatomy import anatomy
from secateur.hf.load import (
    DTYPES,
    Loaded,
    building,
    check_kind,
    check_machine,
    config_of,
    find_source,
    is_carved,
    quiet,
    tokenizer_of,
)
from secateur.hf.modeling_secateur import SecateurForCausalLM

PIECE = re.compile(
    r"\s*\S{1,6}"
)  # English words have 4.7 letters: 1.3 pieces a word, as tokenizers have tokens


@dataclass(frozen=True)
class Ruler:
    """Stands in for a tokenizer where only lengths matter: a word is a piece, a long one several. Equal pieces have
    equal ids, so what several choices share is shared."""

    vocab_size: int
    bos_token_id: int | None = None
    eos_token_id: int = 0
    chat_template: None = None

    def encode(self, text: str, **_: object) -> list[int]:
        return [1 + crc32(piece.encode()) % (self.vocab_size - 1) for piece in PIECE.findall(text)]

    def decode(self, ids: int | Sequence[int]) -> str:
        return ""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text)}


def _has_tokenizer(folder: Path) -> bool:
    """Whether any file here is one; whether it can be read is another question."""
    return any(file.name.startswith(("tokenizer", "vocab", "spiece", "tekken")) for file in folder.iterdir())


def blank_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    **offloading: str | None,
) -> Loaded:
    """MODEL as `load_model` names it, without its weights, which need not be there. Its fingerprint is no model's.

    Raises: `UnknownName` and `ModelError` as `load_model` does for what a config tells.
    """
    check_machine(dtype, device, **offloading)
    with quiet():
        source = find_source(name, revision)
        remote = check_kind(source, trust_remote_code)
        config = config_of(source, remote)
        wanted = DTYPES.get(dtype) or config.dtype or torch.float32
        with building(source, config), torch.device("meta"):
            if is_carved(source):
                model = SecateurForCausalLM._from_config(config, dtype=wanted)
            else:
                model = AutoModelForCausalLM.from_config(config, dtype=wanted, trust_remote_code=remote)
        tokenizer = tokenizer_of(source, trust_remote_code) if _has_tokenizer(source.folder) else None
    found = anatomy(model.eval().requires_grad_(False))
    return Loaded(
        name, model, tokenizer or Ruler(found.vocab_size), found, "blank", source.revision, str(source.folder)
    )
