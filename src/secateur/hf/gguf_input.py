"""Make a checkpoint folder of a GGUF file: dequantized by transformers to float32, with what that loses restored.

The folder lies in the user's cache under the digest of the file, and everything else reads it as any other checkpoint.
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from secateur.core.cache import cache_folder
from secateur.core.records.verdict import GgufRecord
from secateur.core.writing import no_space, writing
from secateur.errors import ModelError
from secateur.hf import llama_cpp
from secateur.hf.files import LoadingInfo
from secateur.hf.gguf_header import ORIGINAL, GgufHeader, digest_of_file, read_header, unread_keys
from secateur.hf.gguf_tokenizer import restore_

LOG = logging.getLogger("secateur")
VERSION = 1  # of what is made of a file: another number makes it again
SHOWN = frozenset({"bloom", "gemma3", "llama", "qwen3"})
"""Architectures of which files of llama.cpp's converter computed here what the checkpoint did that they were made of:
tiny models, in float32, on llama-cpp-python 0.3.36 and transformers 5.23.0. GPT-2 and Falcon cannot be read."""

_BROKEN = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, ImportError,
    AssertionError, StrictDataclassError,
)  # fmt: skip
GIVE = ORIGINAL.replace("Or give", "Give")
_NOTE = "gguf.json"
_KNOWN = frozenset(  # keys that are read by transformers or here, or that say nothing about what is computed
    {
        "context_length", "block_count", "feed_forward_length", "embedding_length", "vocab_size",
        "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
        "attention.layer_norm_epsilon", "attention.key_length", "attention.value_length", "rope.dimension_count",
        "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
        "rope.scaling.finetuned", "expert_count", "expert_used_count", "attention.sliding_window",
        "attn_logit_softcapping", "final_logit_softcapping", "rope.freq_base_swa",
    }
)  # fmt: skip
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_TRIED = ("1234 and 56.7", "def f(x):\n    return x\n", "two  spaces", " a", "It's 2024's.\n\n")


class ReadGguf(NamedTuple):
    """A model of a GGUF file in float32, its tokenizer, and what may be wrong with them, in sentences."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    doubts: tuple[str, ...]


Check = Callable[
    [Mapping[str, object]], object
]  # called with the config; raises for a model that is not wanted


def dequantized(file: Path, check: Check) -> tuple[Path, GgufRecord]:
    """Return the checkpoint folder that a GGUF file was made into, now or before, and what it was.

    Raises: `ModelError` for a file that is damaged or that transformers cannot read, for what `check` refuses, and
    where what was read is not all that the file holds; `OutputError` where the cache cannot be written.
    """
    header = read_header(file)
    digest = digest_of_file(file)
    folder = cache_folder("gguf") / f"{digest[:20]}-{VERSION}-{transformers.__version__}"
    with writing(folder, "XDG_CACHE_HOME"), _alone(folder):
        if not _is_whole(folder):
            _make(header, folder, check)
    note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
    record = GgufRecord(
        file=file.name, type=header.kind, sha256=digest, transformers=transformers.__version__
    )
    _tell(record, folder, note["doubts"])
    return folder, record


_TOLD: set[Path] = set()


def _tell(record: GgufRecord, folder: Path, doubts: Sequence[str]) -> None:
    """Say once what is read, and what may be wrong with it."""
    if folder in _TOLD:
        return
    _TOLD.add(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    LOG.info("%s (as float32: %.2f GB in %s)", record.words, size / 1e9, folder)
    for doubt in doubts:
        LOG.warning("%s: %s", record.file, doubt)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which the system takes back from a process that ends."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_whole(folder: Path) -> bool:
    """Return True where a folder holds the files that were written, in their lengths."""
    try:
        sizes = json.loads((folder / _NOTE).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _make(header: GgufHeader, folder: Path, check: Check) -> None:
    """Write the folder; it appears by rename."""
    need = 4 * sum(math.prod(tensor.shape) for tensor in header.tensors)
    if shutil.disk_usage(folder.parent).free < need:
        raise no_space(folder, "XDG_CACHE_HOME")
    part = folder.with_name(f"{folder.name}.partial")
    for old in (part, folder):
        shutil.rmtree(old, ignore_errors=True)
    try:
        part.mkdir(mode=0o700)
        read = read_gguf(header.path, check)
        _save(read, part)
        sizes = {path.name: path.stat().st_size for path in part.iterdir()}
        note = {"file": str(header.path), "files": sizes, "doubts": read.doubts}
        (part / _NOTE).write_text(json.dumps(note, indent=2), encoding="utf-8")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _save(read: ReadGguf, folder: Path) -> None:
    """Write model and tokenizer, and read the tokenizer again: a class of transformers may have rules of its own."""
    read.model.save_pretrained(folder)
    read.tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    stated = json.loads(config.read_text(encoding="utf-8"))
    # the class that reads tokenizer.json as it is, which transformers 4 knows too
    config.write_text(
        json.dumps(stated | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n", encoding="utf-8"
    )
    again = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    for text in _TRIED:
        if again.encode(text) != read.tokenizer.encode(text):
            raise ModelError(
                f"the tokenizer of the GGUF file gives other ids of {text!r} once it is written. Please report it."
            )


def read_gguf(file: Path, check: Check = lambda config: None) -> ReadGguf:
    """Read a GGUF file by transformers, in float32, and restore what that loses. Raises: as `dequantized`."""
    header = read_header(file)
    with tempfile.TemporaryDirectory(prefix="secateur-") as name, redirect_stderr(io.StringIO()):  # a bar
        place = Path(name)
        (place / "model.gguf").symlink_to(
            file.absolute()
        )  # alone: other files beside it would be looked at too
        config = _config(header, place)
        check(config.to_dict())
        doubts = [*_restore_config_(config, header)]
        model = _model(header, place, config)
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(place), config=config, gguf_file="model.gguf")
        except _BROKEN as error:
            raise _unreadable(header, "the tokenizer", error) from error
    if doubt := restore_(tokenizer, header):
        doubts.append(doubt)
    return ReadGguf(model, tokenizer, tuple(doubts))


def _unreadable(header: GgufHeader, what: str, error: BaseException) -> ModelError:
    told = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ModelError(
        f"transformers {transformers.__version__} cannot read {what} of {header.path}, a GGUF of architecture "
        f"{header.architecture} ({told}). {GIVE}"
    )


def _config(header: GgufHeader, place: Path) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            str(place), gguf_file="model.gguf", local_files_only=True
        )
    except _BROKEN as error:
        raise _unreadable(header, "the config", error) from error
    named = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    config.architectures = config.architectures or ([named] if isinstance(named, str) else [])
    config.name_or_path = ""  # the name of the model it was made of, which is no place
    return config


def _restore_config_(config: PreTrainedConfig, header: GgufHeader) -> Iterator[str]:
    """Set in the config what the file states and transformers does not read; yield what may be wrong.

    Raises: `ModelError` for what is computed otherwise and cannot be stated.
    """
    if header.architecture not in SHOWN:
        yield (
            f"what transformers reads of the architecture {header.architecture} was compared with no original "
            "here: try a few prompts before you trust it."
        )
    _restore_sizes_(config, header)
    if (scaling := _scaling(config, header)) is not None:
        config.rope_parameters = {**(config.rope_parameters or {}), **scaling}
    if unread := sorted(set(unread_keys(header, dict.fromkeys(_KNOWN)))):
        yield (
            f"nothing here reads {', '.join(unread[:5])} of the file, which may say that the model computes something "
            "else."
        )


def _restore_sizes_(config: PreTrainedConfig, header: GgufHeader) -> None:
    known = config.to_dict()
    size = header.number("attention.key_length")
    if size is not None and "head_dim" in known:
        config.head_dim = int(size)
    if size is not None and header.number("attention.value_length") not in (None, size):
        raise ModelError(
            f"{header.path} has keys and values of different sizes, which no class here has. {ORIGINAL}"
        )
    if "sliding_window" in known:
        window = header.number("attention.sliding_window")
        config.sliding_window = None if window is None else int(window)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := header.number(key)) is not None and key in known:
            setattr(config, key, float(cap))
    if header.architecture in llama_cpp.BLOCKS_OF_27B:
        _restore_gemma_(config, header)
    for switch, tensor in (("attention_bias", "blk.0.attn_q.bias"), ("mlp_bias", "blk.0.ffn_up.bias")):
        if header.architecture == "llama" and switch in known and header.has(tensor):
            setattr(config, switch, True)


def _restore_gemma_(config: PreTrainedConfig, header: GgufHeader) -> None:
    """Set the scale of attention, which llama.cpp takes from the number of blocks, and the base within windows."""
    largest = config.num_hidden_layers == llama_cpp.BLOCKS_OF_27B[header.architecture]
    config.query_pre_attn_scalar = (
        config.hidden_size // config.num_attention_heads if largest else config.head_dim
    )
    base = header.number("rope.freq_base_swa")
    if base is not None and "sliding_attention" in (config.rope_parameters or {}):
        config.rope_parameters["sliding_attention"]["rope_theta"] = float(base)


def _scaling(config: PreTrainedConfig, header: GgufHeader) -> dict[str, str | float | int] | None:
    """Return how rotary positions are scaled, as a config says it. Raises: `ModelError` for what it cannot state."""
    kind, factor = (
        header.text(f"{header.architecture}.rope.scaling.type"),
        header.number("rope.scaling.factor"),
    )
    if header.has("rope_freqs.weight"):
        factors = header.floats("rope_freqs.weight")
        base = float(header.number("rope.freq_base") or 10_000.0)
        scaling: dict[str, str | float | int] = {"rope_type": "llama3", "factor": max(factors), **_LLAMA3}
        wanted = llama3_factors(base, 2 * len(factors), scaling)
        if (
            max(abs(one / other - 1) for one, other in zip(factors, wanted, strict=True)) > 1e-3
        ):  # they are float32
            raise ModelError(
                f"{header.path} scales rotary positions by a table (rope_freqs) that is not Llama 3's, and "
                f"transformers would leave it out. {GIVE}"
            )
        return scaling if max(factors) != 1 else None
    if kind in (None, "none") or (kind == "linear" and factor in (None, 0, 1)):
        return None
    if kind == "linear" and factor is not None and config.rope_parameters is not None:
        return {"rope_type": "linear", "factor": float(factor)}
    raise ModelError(
        f"{header.path} scales rotary positions ({kind}), which transformers would leave out. {GIVE}"
    )


def llama3_factors(base: float, size: int, scaling: Mapping[str, str | float | int]) -> list[float]:
    """Return the divisor that Llama 3 has for each of the `size / 2` rotary frequencies.

    Source: transformers' `_compute_llama3_parameters`; llama.cpp keeps them as the tensor rope_freqs.
    """
    factor, length = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    found = []
    for index in range(0, size, 2):
        wave = 2 * math.pi * base ** (index / size)
        smooth = min(1.0, max(0.0, (length / wave - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def _model(header: GgufHeader, place: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model with all that the file holds, as a plain one: what comes from GGUF refuses to be saved."""
    how = {"gguf_file": "model.gguf", "config": config, "dtype": torch.float32, "local_files_only": True}
    try:
        found = AutoModelForCausalLM.from_pretrained(str(place), output_loading_info=True, **how)
        assert isinstance(found, tuple), type(
            found
        )  # the types of transformers do not know `output_loading_info`
        read: PreTrainedModel
        info: LoadingInfo
        read, info = found
        _refuse_unread(header, read)
        vars(read.config).pop("quantization_config", None)  # the weights are float32 now
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
        model.load_state_dict(read.state_dict(), assign=True)
        model.tie_weights()
    except _BROKEN as error:
        raise _unreadable(header, "the weights", error) from error
    missing = sorted({*info["missing_keys"], *(str(one[0]) for one in info["mismatched_keys"])})
    if missing:
        raise ModelError(
            f"{header.path} lacks {len(missing)} tensors, or has them in other shapes ({missing[0]}): damaged?"
        )
    for name, buffer in read.named_buffers():  # those that are not saved, which the meta device has not
        owner, _, last = name.rpartition(".")
        model.get_submodule(owner).register_buffer(last, buffer, persistent=False)
    model.eval()
    model.requires_grad_(False)
    return model


def _refuse_unread(header: GgufHeader, model: PreTrainedModel) -> None:
    """Raise `ModelError` for tensors that transformers leaves out without a word."""
    held = {tensor.name for tensor in header.tensors} - {"rope_freqs.weight"}
    left = sorted(held - _plainly_named(header, model))
    if left:  # perhaps named otherwise; what transformers itself goes by takes seconds to ask
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )

        kind = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
        processor = kind(config=model.config.to_dict())  # type: ignore[no-untyped-call]
        left = sorted(set(left) - get_gguf_hf_weights_map(model, processor).keys())
    if left:
        raise ModelError(
            f"{header.path} holds {len(left)} tensors that transformers {transformers.__version__} would leave out "
            f"({', '.join(left[:3])}). {GIVE}"
        )


def _plainly_named(header: GgufHeader, model: PreTrainedModel) -> set[str]:
    """Return the names in GGUF of a model's parameters, by the table of the package `gguf`."""
    from gguf.constants import MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    known = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    if header.architecture not in known:
        return set()
    names = get_tensor_name_map(known[header.architecture], model.config.num_hidden_layers)
    found = (names.get_name(name, try_suffixes=(".weight", ".bias")) for name in model.state_dict())
    return {name for name in found if name is not None}
