"""Copy the files that no cut touches: the tokenizer's, and the generation config.

They are copied byte for byte into every checkpoint that is made of a model. Transformers would write some of
them in a form that its earlier releases do not read, and others not at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_relative_imports

from secateur.errors import ModelError
from secateur.hf.source import TOKENIZER_FILES

GENERATION = "generation_config.json"


def copied_files(folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """Return the files: name relative to `folder` → content. Raises: `ModelError` for a file that cannot be read."""
    patterns = {*TOKENIZER_FILES, *tokenizer.vocab_files_names.values(), GENERATION}
    found = _contents(folder, {path for pattern in patterns for path in folder.glob(pattern)})
    return found | _contents(folder, _code(folder, found.get("tokenizer_config.json")))


def _contents(folder: Path, paths: set[Path]) -> dict[str, bytes]:
    try:
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths) if path.is_file()}
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _code(folder: Path, config: bytes | None) -> set[Path]:
    """Find the modules of a tokenizer that brings its own code; only those in `folder` itself. None of them is run."""
    named: Any = json.loads(config or b"{}").get("auto_map", [])
    classes = named.get("AutoTokenizer", []) if isinstance(named, dict) else named
    classes = [classes] if isinstance(classes, str) else classes
    todo = [name.partition(".")[0] for name in classes if name and "--" not in name]
    found: set[Path] = set()
    while todo:
        module = folder / f"{todo.pop()}.py"
        if module.parent == folder and module.is_file() and module not in found:
            found.add(module)
            todo += get_relative_imports(module)
    return found
