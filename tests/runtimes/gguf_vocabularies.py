"""Compares what is made of a GGUF file's tokenizer with llama.cpp's own reference ids.

    python tests/runtimes/gguf_vocabularies.py LLAMA_CPP

In the project's own environment. LLAMA_CPP is the folder of llama.cpp's source (`make gguf` unpacks one): its `models`
has vocabularies as GGUF files, each with texts (.inp) and the ids that the original tokenizer gives (.out). Prints, for
each that transformers can read, how many texts get these ids by transformers alone, and as secateur reads them.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.utils.logging import set_verbosity_error

from secateur.hf.gguf_header import GgufHeader
from secateur.hf.gguf_tokenizer import restore_

BETWEEN = "\n__ggml_vocab_test__\n"


def right(tokenizer: PreTrainedTokenizerBase, file: Path) -> tuple[int, int]:
    """The number of texts that get the reference ids, and of all."""
    texts = Path(f"{file}.inp").read_bytes().decode().split(BETWEEN)
    ids = [[int(word) for word in line.split()] for line in Path(f"{file}.out").read_text().split("\n")]
    pairs = list(zip(texts, ids, strict=False))
    return sum(tokenizer.encode(text, add_special_tokens=False) == wanted for text, wanted in pairs), len(
        pairs
    )


def main(models: Path) -> None:
    for file in sorted(models.glob("ggml-vocab-*.gguf")):
        if not Path(f"{file}.inp").exists():
            continue
        try:
            tokenizer = AutoTokenizer.from_pretrained(models, gguf_file=file.name)
        except Exception as error:  # of many kinds, for what transformers cannot read
            print(f"{file.name} | not read: {str(error)[:60]!r}")
            continue
        alone, count = right(tokenizer, file)
        doubt = restore_(tokenizer, GgufHeader(file, read_gguf_metadata(str(file))[0], ()))
        ours, _ = right(tokenizer, file)
        print(f"{file.name} | alone {alone} of {count} | here {ours} of {count} | {doubt or 'no doubt'}")


if __name__ == "__main__":
    set_verbosity_error()
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]) / "models")
