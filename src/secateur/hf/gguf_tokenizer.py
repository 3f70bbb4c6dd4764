"""Restore what transformers loses of a tokenizer in a GGUF file, and name the tokenizers of which this is known.

A GGUF file has the vocabulary, and only the name (`tokenizer.ggml.pre`) of the rules by which text is split before.
Each entry of `PRE` gives, on the reference texts of llama.cpp (models/ggml-vocab-*.gguf.inp and .out in its source,
as of llama-cpp-python 0.3.36), exactly the reference ids; `smollm` shares its rules with `starcoder` there. What
transformers 5.23 reads alone does so for gpt-2, qwen2, qwen35 and Phi-3 only: `tests/runtimes/gguf_vocabularies.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from secateur.hf.gguf_header import GgufHeader

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3, _QWEN2 = _WORDS + r"\p{N}{1,3}" + _REST, _WORDS + r"\p{N}" + _REST
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2])
_FALCON = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Punctuation("contiguous"),
        _GPT2,
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ]
)


def _split(pattern: str) -> pre_tokenizers.Sequence:
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_alone])


@dataclass(frozen=True)
class PreTokenizer:
    """The rules that split text before the merges; `ignore_merges`: what is a token as a whole is not merged."""

    split: pre_tokenizers.PreTokenizer
    ignore_merges: bool = False


PRE: Mapping[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(_GPT2),
    "smollm": PreTokenizer(_DIGITS),
    "starcoder": PreTokenizer(_DIGITS),
    "falcon": PreTokenizer(_FALCON),
    "llama-bpe": PreTokenizer(_split(_LLAMA3), ignore_merges=True),
    "qwen2": PreTokenizer(_split(_QWEN2)),
}
_AS_READ = frozenset({"qwen35"})
_SPACES = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
_GEMMA = frozenset({"gemma", "gemma2", "gemma3"})  # which have no space before the text, and their own class


def restore_(tokenizer: PreTrainedTokenizerBase, header: GgufHeader) -> str:
    """Set the rules that the file names where they are known.

    Returns: what may be wrong where they are not, as a sentence; else nothing.
    """
    model, pre = header.text("tokenizer.ggml.model"), header.text("tokenizer.ggml.pre")
    backend = tokenizer.backend_tokenizer
    if model == "gpt2":
        return "" if pre in _AS_READ else _set_split(backend, pre)
    if model == "llama" and header.architecture not in _GEMMA:
        if header.values.get("tokenizer.ggml.add_space_prefix", True) is not False:
            backend.normalizer, backend.pre_tokenizer = _SPACES, None
            return ""
        return "its tokenizer begins without a space, which was compared with no reference: it may split it otherwise."
    return f"its tokenizer ({model}) was compared with no reference: it may split text otherwise than the original."


def _set_split(backend: Tokenizer, pre: str | None) -> str:
    known = PRE.get(pre or "")
    if known is not None:
        backend.pre_tokenizer = known.split
        backend.model.ignore_merges = known.ignore_merges
        return ""
    named = (
        f"names its pre-tokenizer {pre}, whose"
        if pre
        else "does not name its pre-tokenizer (tokenizer.ggml.pre), so the"
    )
    return (
        f"it {named} rules are not known here: numbers, spaces and punctuation may be split into other tokens than the "
        "model was trained on. Compare ids with the original tokenizer first."
    )


def pre_name(backend: Tokenizer) -> str | None:
    """Return the name of `PRE` whose rules a byte-level tokenizer has; None where none is theirs."""
    stated = _rules(backend.pre_tokenizer)
    ignores = bool(backend.model.ignore_merges)
    return next(
        (name for name, one in PRE.items() if _rules(one.split) == stated and one.ignore_merges == ignores),
        None,
    )


def _rules(split: pre_tokenizers.PreTokenizer | None) -> str:
    """Return rules as text, without what concerns offsets alone."""
    if split is None:
        return ""
    state = split.__getstate__()
    return json.dumps(_without(json.loads(state), "trim_offsets"), sort_keys=True)


def _without(value: object, key: str) -> object:
    if isinstance(value, dict):
        return {name: _without(one, key) for name, one in value.items() if name != key}
    return [_without(one, key) for one in value] if isinstance(value, list) else value
