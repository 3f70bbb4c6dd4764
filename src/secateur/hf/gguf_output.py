"""Write a Llama as a GGUF file, through the writer of the package `gguf`. Other families have llama.cpp's converter.

Source: `conversion/llama.py` and `conversion/base.py` of llama.cpp (in the source of llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from secateur.errors import ModelError, OutputError
from secateur.hf import llama_cpp
from secateur.hf.gguf_input import llama3_factors
from secateur.hf.gguf_tokenizer import PRE, pre_name
from secateur.hf.load import Loaded
from secateur.hf.weights import read

if TYPE_CHECKING:
    from gguf import GGUFWriter

FAMILIES = ("llama", "mistral")  # which GGUF knows as llama
CONVERT = "convert_hf_to_gguf.py {folder} --outfile {file} --outtype {kind}"
_BLOCK = 32  # numbers that share a scale in Q8_0
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}  # general.file_type
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type


@dataclass
class Written:
    """Count the tensors that were written, by type, and name those whose shape kept them out of blocks."""

    tensors: dict[str, int] = field(default_factory=dict)
    instead: list[str] = field(default_factory=list)


def check_export(loaded: Loaded, file: Path, kind: str) -> None:
    """Raise `ModelError` for a model that is not written as GGUF here, saying what to do."""
    anatomy, config = loaded.anatomy, loaded.model.config
    if anatomy.carved:
        raise ModelError(
            f"{loaded.name} has other shapes from block to block, which GGUF cannot state. Cut it with --portable, or "
            "with --zeroed, for a stock checkpoint."
        )
    if why := llama_cpp.refusal(anatomy.details, config, loaded.tokenizer, loaded.copied):
        raise ModelError(f"{loaded.name} cannot be written for llama.cpp: {why}.")
    convert = f"llama.cpp's converter may: {CONVERT.format(folder=loaded.name, file=file, kind=kind)}"
    if anatomy.family not in FAMILIES:
        raise ModelError(f"secateur writes no GGUF of the family {anatomy.family}. {convert}")
    if (scaled := _rope(config)["rope_type"]) not in ("default", "linear", "llama3"):
        raise ModelError(f"secateur writes no GGUF with rotary positions of the kind {scaled}. {convert}")
    tokenizer = loaded.tokenizer
    known = tokenizer.is_fast and type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    if not known or pre_name(tokenizer.backend_tokenizer) is None:
        raise ModelError(
            f"secateur writes no GGUF with this tokenizer, only byte-level ones of {', '.join(PRE)}. {convert}"
        )


def write_gguf(loaded: Loaded, file: Path, kind: str, said: Mapping[str, str]) -> Written:
    """Write a model that `check_export` let pass.

    Args:
        loaded: In float32.
        said: Further entries of the metadata.

    Raises: `ModelError` without the package `gguf`; `OutputError` for numbers beyond float16.
    """
    try:
        import gguf
    except ImportError as error:
        raise ModelError(
            "GGUF needs the package gguf, which is not here: pip install secateur[gguf]."
        ) from error
    writer = gguf.GGUFWriter(file, "llama")
    try:
        _add_config(writer, loaded.model.config)
        _add_tokenizer(writer, loaded.tokenizer, loaded.anatomy.vocab_size)
        writer.add_file_type(_FILE_TYPES[kind])
        if kind == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, text in said.items():
            writer.add_string(key, text)
        written = _add_tensors(writer, loaded, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return written


def _rope(config: PreTrainedConfig) -> Mapping[str, str | float | int]:
    stated: Mapping[str, str | float | int] = config.rope_parameters
    return stated


def _add_config(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    heads = config.num_attention_heads
    size = config.head_dim or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(_rope(config)["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = _rope(config)
    if rope["rope_type"] == "linear":
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_float32("llama.rope.scaling.factor", float(rope["factor"]))
    if rope["rope_type"] == "llama3":
        factors = llama3_factors(float(rope["rope_theta"]), size, rope)
        writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))


def _add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    backend = tokenizer.backend_tokenizer
    name = pre_name(backend)
    assert name is not None, "check_export let it pass"
    state = json.loads(backend.to_str())
    added = {token["id"]: token for token in state["added_tokens"]}
    words = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens, types = [], []
    for number in range(size):
        tokens.append(words.get(number, f"[PAD{number}]"))
        special = number in added and added[number]["special"]
        types.append(
            _CONTROL if special else _USER if number in added else _NORMAL if number in words else _UNUSED
        )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    for key, number in (
        ("bos", tokenizer.bos_token_id),
        ("eos", tokenizer.eos_token_id),
        ("unknown", tokenizer.unk_token_id),
        ("padding", tokenizer.pad_token_id),
    ):
        if number is not None:
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", number)
    plain, around = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    writer.add_add_bos_token(around[: -len(plain)] == [tokenizer.bos_token_id])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _add_tensors(writer: GGUFWriter, loaded: Loaded, kind: str) -> Written:
    """Add every parameter once, in the names and the order of rows of llama.cpp."""
    from gguf import MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map
    from gguf.quants import quantize

    config, written = loaded.model.config, Written()
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in _parameters(loaded):
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, f"{name} has no name in GGUF"
        rows = _rotary_pairs(name, tensor, config)
        chosen = kind if rows.ndim > 1 else "f32"  # as llama.cpp keeps norms and biases
        if chosen == "q8_0" and rows.shape[-1] % _BLOCK:
            chosen = "f16"
            written.instead.append(stored)
        if chosen == "q8_0":
            writer.add_tensor(
                stored, quantize(rows, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0
            )
        else:
            writer.add_tensor(stored, rows if chosen == "f32" else _halves(stored, rows))
        written.tensors[chosen] = written.tensors.get(chosen, 0) + 1
    return written


def _parameters(loaded: Loaded) -> Iterator[tuple[str, Tensor]]:
    tied = loaded.model.config.tie_word_embeddings
    for name, _ in loaded.model.named_parameters():
        if not (tied and name == "lm_head.weight"):
            yield name, read(loaded.model, name)


def _halves(name: str, rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        halves = rows.astype(np.float16)
    if not np.isfinite(halves).all():
        raise OutputError(f"{name} has numbers beyond float16. Give --type f32 or q8_0.")
    return halves


def _rotary_pairs(name: str, tensor: Tensor, config: PreTrainedConfig) -> np.ndarray:
    """Return a tensor's numbers; rotary pairs lie beside each other in GGUF, half a head apart in transformers."""
    rows = tensor.float().cpu().numpy()
    found = re.search(r"\.([qk])_proj\.(?:weight|bias)$", name)
    if found is None:
        return np.ascontiguousarray(rows)
    heads = config.num_attention_heads if found[1] == "q" else config.num_key_value_heads
    pairs = rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(pairs).reshape(rows.shape)
