"""The files that no cut touches: the tokenizer's, and the generation config. They go as they are, byte for byte, into
every checkpoint that is made of a model: transformers would write some of them in a form that its earlier releases do
not read, and others not at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_relative_import_files

from secateur.errors import ModelError

TEMPLATES = "additional_chat_templates/*.jinja"
TOKENIZER_FILES = (
    "tokenizer*.json",  # tokenizer.json, tokenizer_config.json, tokenizer.4.0.0.json
    "tokenizer.model*",  # also tokenizer.model.v3
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "merges*.txt",
    "*.model",  # spiece.model, sentencepiece.bpe.model
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    TEMPLATES,
)
"""Names as patterns; a tokenizer's class may name more (`vocab_files_names`)."""

GENERATION = "generation_config.json"


def copied_files(folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """What is copied from a model's folder: name, relative to it → content. Raises `ModelError` for what cannot be
    read."""
    return tokenizer_files(folder, tokenizer) | _contents(folder, [folder / GENERATION])


def tokenizer_files(folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """The part of that that is the tokenizer's; nothing where `folder` is none. Raises `ModelError`."""
    patterns = {*TOKENIZER_FILES, *tokenizer.vocab_files_names.values()}
    found = _contents(folder, [path for pattern in patterns for path in folder.glob(pattern)])
    return found | _contents(folder, _code(folder, found.get("tokenizer_config.json")))


def _contents(folder: Path, paths: list[Path]) -> dict[str, bytes]:
    try:
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths) if path.is_file()}
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _code(folder: Path, config: bytes | None) -> list[Path]:
    """The modules of a tokenizer that brings its own code. Nothing of it is run."""
    named: Any = json.loads(config or b"{}").get("auto_map", [])
    classes = named.get("AutoTokenizer", []) if isinstance(named, dict) else named
    classes = [classes] if isinstance(classes, str) else classes
    modules = [folder / f"{name.split('.')[0]}.py" for name in classes if name and "--" not in name]
    there = [module for module in modules if module.is_file()]
    return there + [Path(file) for module in there for file in get_relative_import_files(module)]
