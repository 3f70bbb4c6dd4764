"""Converts what `write.py` left to GGUF files, by llama.cpp's own converter.

    python tests/runtimes/convert.py FOLDER LLAMA_CPP

In the environment of `make gguf`. LLAMA_CPP is the folder of llama.cpp's source that its library was built from. Each
job of `jobs.json` gets a `gguf`, the file, or `refused`, the converter's words.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

source = Path(sys.argv[2]).resolve()
sys.path[:0] = [str(source), str(source / "gguf-py")]  # before any other package of the name gguf

import conversion  # noqa: E402
import convert_hf_to_gguf  # noqa: E402
from conversion.base import TextModel  # noqa: E402


def main(place: Path) -> None:
    jobs = json.loads((place / "jobs.json").read_text())
    for job in jobs:
        outcome = converted(job)
        print(job["model"], "|", job["cut"], "|", *outcome.values(), flush=True)
        job |= outcome
    (place / "jobs.json").write_text(json.dumps(jobs, indent=1))


def converted(job: dict[str, Any]) -> dict[str, Any]:
    """The file that was written, or why none was."""
    out = Path(job["folder"]) / "model.gguf"
    words = ["convert_hf_to_gguf.py", job["folder"], "--outfile", str(out), "--outtype", "f32"]
    try:
        with (
            patch.object(sys, "argv", words),
            _tokenizer_of_gpt2(job) if job["known_tokenizer"] else nullcontext(),
        ):
            convert_hf_to_gguf.main()
    except SystemExit as end:
        return {"refused": f"it ends with exit code {end.code}, as for a model that it does not support"}
    except (
        AssertionError,
        AttributeError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    return {"gguf": str(out)}


def _tokenizer_of_gpt2(job: dict[str, Any]) -> AbstractContextManager[Any]:
    """Takes any tokenizer for GPT-2's. The converter knows byte-level tokenizers by a hash for each that was published,
    which no tiny one has; and it is token ids that are compared."""
    architecture = json.loads((Path(job["folder"]) / "config.json").read_text())["architectures"][0]
    try:
        cls = conversion.get_model_class(architecture)
    except NotImplementedError:
        return nullcontext()
    known = {"set_vocab": TextModel._set_vocab_gpt2, "get_vocab_base_pre": lambda *_: "gpt-2"}
    return patch.multiple(cls, **known)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    assert conversion.__file__.startswith(str(source))
    main(Path(sys.argv[1]))
