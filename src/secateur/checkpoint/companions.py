"""Write the files beside a checkpoint's weights: config, tokenizer, generation config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from secateur.checkpoint.folder import write_json
from secateur.hf.older_readers import with_older_names
from secateur.hf.source import CONFIG


def write_companions(tokenizer: PreTrainedTokenizerBase, copied: Mapping[str, bytes], folder: Path) -> None:
    """Write the tokenizer and the generation config, and restate the config that `save_pretrained` left in `folder`.

    Args:
        copied: `Loaded.copied` of the model that the checkpoint is made of: file contents by name. Where it is empty,
            the tokenizer is written as transformers writes it.
    """
    config = with_older_names(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    stated = json.loads(copied.get("tokenizer_config.json", "{}"))
    if copied and "carving" in config and "tokenizer_class" not in stated:
        # transformers goes by the class of the config then, which in a carved model is not the family's own
        config["stock"]["tokenizer_class"] = type(tokenizer).__name__
    write_json(folder / CONFIG, dict(sorted(config.items())))
    if not copied:
        tokenizer.save_pretrained(folder)
    for name, content in copied.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
