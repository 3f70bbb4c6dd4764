"""Load MODEL into memory so that it can be trusted: it is checked before it is loaded, and again after.

Runs no pickle, and no code of a checkpoint unless allowed; prints nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from logging import ERROR, getLogger
from typing import Unpack, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from secateur.core import machine
from secateur.core.machine import Loading, Offloading
from secateur.core.records.verdict import GgufRecord
from secateur.errors import ModelError
from secateur.hf.anatomy import Anatomy, anatomy, stock_class
from secateur.hf.build import Auto, carved_architecture
from secateur.hf.families import ARCHITECTURES, DECISIONS
from secateur.hf.family import ACTIONS, CAUSAL, LABELS, MASKED, PAIRS, Family, Head
from secateur.hf.files import Header, LoadingInfo, check_weights, copied_files
from secateur.hf.fingerprint import Look, fingerprint
from secateur.hf.generation import end_ids
from secateur.hf.gguf_input import dequantized
from secateur.hf.modeling_secateur import SecateurConfig, SecateurForCausalLM
from secateur.hf.placement import Placement
from secateur.hf.recognize import family_of
from secateur.hf.source import (
    ModelSource,
    download,
    folder_of,
    gguf_of,
    hub_source,
    local_source,
    read_config,
    refuse_adapter,
)
from secateur.hf.weights import device_of, keep_own_unembedding_, read

DTYPES = {name: getattr(torch, name) for name in machine.DTYPES}
_BROKEN = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, StrictDataclassError,
)  # fmt: skip
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)


Refuse = Callable[[str, LoadingInfo], None]  # raises where the tensors of a model of this name do not fit


@dataclass(frozen=True)
class Loaded:
    """A model ready to be read: eval mode, no gradients, every parameter finite.

    `source` is its folder, `copied` the files of it that go unchanged into every checkpoint made of it. `gguf` is the
    file that the folder was made of.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    fingerprint: str
    revision: str | None
    source: str | None
    placement: Placement = field(default_factory=Placement)
    copied: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    gguf: GgufRecord | None = None

    def parameter(self, name: str) -> Tensor:
        """Return one parameter of the model by its name, without gradients."""
        return read(self.model, name)

    @property
    def device(self) -> torch.device:
        """Return the device that takes tokens and gives logits."""
        return device_of(self.model, f"{self.anatomy.embedding}.weight")

    @property
    def ends(self) -> tuple[int, ...]:
        """Return the tokens that end a generated text."""
        return end_ids(self.model, self.tokenizer)

    @property
    def machine(self) -> Loading:
        """Return the options of `load_model` that put another model on the same devices."""
        place = self.placement
        if not place.device_map:
            return {"device": str(self.device)}
        return {
            "device": place.device,
            "device_map": place.device_map,
            "offload_folder": place.offload_folder,
            "max_memory": place.max_memory,
        }


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    **offloading: Unpack[Offloading],
) -> Loaded:
    """Load MODEL: a folder, a hub name, `builtin:NAME`, or a GGUF file.

    Args:
        dtype: `auto` (as stored), float32, bfloat16, float16 or float64.
        device: `auto` (cuda where there is one, else cpu), or torch's name of a device.
        offloading: `device_map`, `offload_folder` and `max_memory` of `Placement`, for a model larger than a device.

    Raises: `UnknownName` for a model, dtype, device or revision that does not exist; `ModelError` for a model
    that cannot be cut (see `anatomy`), and for files that are broken, incomplete, pickled or not finite.
    """
    placement = Placement(device, **offloading)
    check_machine(dtype, device, **offloading)
    with quiet():
        source = find_source(name, revision)
        remote = check_kind(source, trust_remote_code)
        auto = auto_of(source)
        files = read_files(
            source,
            auto,
            partial(refuse_partial, family_in(source)),
            dtype=dtype,
            placement=placement,
            remote=remote,
            remote_tokenizer=trust_remote_code,
        )
    model, source = files.model, files.source
    end_ids(model, files.tokenizer)  # refused before anything is measured
    return Loaded(
        name,
        model,
        files.tokenizer,
        anatomy(model),
        files.fingerprint,
        source.revision,
        str(source.folder),
        placement,
        {} if isinstance(files.tokenizer, NoTokenizer) else copied_files(source.folder, files.tokenizer),
        source.gguf,
    )


@dataclass(frozen=True)
class Files:
    """The content of a checkpoint folder: every parameter finite, eval mode, no gradients."""

    source: ModelSource
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str


def read_files(
    source: ModelSource,
    auto: Auto,
    refuse: Refuse,
    *,
    dtype: str,
    placement: Placement,
    remote: bool = False,
    remote_tokenizer: bool = False,
) -> Files:
    """Fetch missing files and read them by the class `auto`; `refuse` is called with the tensors that did not fit.

    Raises: as `load_model`, but for the kind of the model.
    """
    machine.check_dtype(dtype)
    torch_dtype, scratch = DTYPES.get(dtype, "auto"), placement.scratch()
    with quiet():
        if source.is_partly_here:
            source = download(source)
            refuse_adapter(source.folder)
        config, held = config_of(source, remote), check_weights(source.folder, source.config)
        refuse_shallow(source, config, held)
        refuse_unlike(source, on_meta(source, auto, config, torch_dtype, remote), held)
        tokenizer = tokenizer_of(source, remote_tokenizer)
        where = placement.arguments(scratch)
        model, info = _weights(source, auto, config, torch_dtype, remote, where)
        refuse(source.name, info)
        model = placement.placed_(model, scratch).eval().requires_grad_(False)
        keep_own_unembedding_(model)
        if model.dtype == torch.float64:  # for which there is no grouped product of matrices
            model.set_experts_implementation("eager")
    return Files(source, model, tokenizer, fingerprint(model, _refuse_unfit(source, dtype, refuse)))


def check_machine(dtype: str, device: str, **offloading: Unpack[Offloading]) -> None:
    """Check dtype and placement before anything is fetched. Raises: `UnknownName`, `ModelError`."""
    Placement(device, **offloading).check()
    machine.check_dtype(dtype)


def find_source(name: str, revision: str | None) -> ModelSource:
    """Find MODEL and read its config, no weights; those of a GGUF file once, which then lie in a folder.

    Raises: `UnknownName`, `ModelError`.
    """
    if (local := folder_of(name)) is not None and revision is not None:
        kind = "folder" if local.is_dir() else "file"
        raise ModelError(f"a revision ({revision}) names a commit on the hub, and {name} is a local {kind}.")
    if (found := gguf_of(name, revision)) is not None:
        file, commit = found
        folder, record = dequantized(file, lambda config: family_in(ModelSource(name, file, config)))
        return ModelSource(name, folder, read_config(folder), commit, gguf=record)
    return local_source(name) or hub_source(name, revision)


def check_kind(source: ModelSource, trust_remote_code: bool) -> bool:
    """Return True where the model needs code of its own. Raises before any weight is read or fetched."""
    unknown = source.config.get("model_type") not in CONFIG_MAPPING_NAMES
    remote = unknown and bool(source.config.get("auto_map"))
    remote = remote and not is_carved(source)  # of whose code this package has its own copy
    if remote and not trust_remote_code:
        architecture = _architecture(source)
        known = (
            "" if architecture in ARCHITECTURES else f" {architecture} is also no family that secateur knows."
        )
        raise ModelError(
            f"{source.name} brings code of its own (auto_map in config.json) and needs trust_remote_code; "
            f"nothing of it was run. Give --trust-remote-code only if you trust the model's source.{known}"
        )
    family_in(source)
    return remote


def family_in(source: ModelSource) -> Family:
    """Return the family of a model. Raises: `ModelError` for a model that cannot be cut."""
    architecture = _architecture(source)
    return family_of(architecture, source.config["stock"] if is_carved(source) else source.config)


def is_carved(source: ModelSource) -> bool:
    """Return True for a checkpoint that secateur cut into shapes of its own."""
    named = source.config.get("architectures")
    return isinstance(named, list) and SecateurForCausalLM.__name__ in named


def auto_of(source: ModelSource) -> Auto:
    """Return the class that reads the checkpoint."""
    if is_carved(source):
        return SecateurForCausalLM
    family = family_in(source)
    return AutoModelForImageTextToText if family.tower else _BY_HEAD[family.head]


_BY_HEAD: Mapping[Head, Auto] = {
    CAUSAL: AutoModelForCausalLM,
    MASKED: AutoModelForMaskedLM,
    LABELS: AutoModelForSequenceClassification,
    PAIRS: AutoModelForSeq2SeqLM,
    ACTIONS: AutoModel,
}


def _architecture(source: ModelSource) -> str:
    if is_carved(source):
        return carved_architecture(source.name, source.config)
    named = source.config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0]
    known: Mapping[str, str] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    model_type = source.config.get("model_type")
    if not isinstance(model_type, str) or model_type not in known:
        raise ModelError(f"config.json of {source.name} names no architecture (model_type {model_type!r}).")
    return known[model_type]


def config_of(source: ModelSource, remote: bool) -> PreTrainedConfig:
    """Return the config as transformers reads it. Raises: `ModelError`."""
    try:
        if is_carved(source):
            return SecateurConfig.from_pretrained(str(source.folder))
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            str(source.folder), trust_remote_code=remote, local_files_only=True
        )
    except _BROKEN as error:
        raise ModelError(f"config.json of {source.name} cannot be used: {_first_line(error)}") from error
    return config


def on_meta(
    source: ModelSource, auto: Auto, config: PreTrainedConfig, dtype: torch.dtype | str, remote: bool
) -> PreTrainedModel:
    """Return the model that a config states, without memory. Raises: `ModelError` where it states none."""
    wanted = config.dtype or torch.float32 if isinstance(dtype, str) else dtype
    failed = f"config.json of {source.name} cannot be used"
    with building(failed, config), torch.device("meta"):
        model: PreTrainedModel
        if auto is SecateurForCausalLM:
            model = auto._from_config(config, dtype=wanted)
        else:
            model = auto.from_config(config, dtype=wanted, trust_remote_code=remote)  # type: ignore[union-attr]
    family = ARCHITECTURES.get(stock_class(type(model)).__name__)
    if family is not None and family.no_float64 and wanted == torch.float64:
        raise ModelError(f"{family.architecture} does not run in float64: take --dtype float32.")
    return model


MORE = 2  # times what is stored: beyond that transformers would make up a model, which may fill the memory
_FLOATS = ("F64", "F32", "F16", "BF16")


def refuse_shallow(source: ModelSource, config: PreTrainedConfig, held: Mapping[str, Header]) -> None:
    """Raise `ModelError` where there are fewer tensors than blocks: to build them all could take hours."""
    blocks = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if blocks > len(held):
        raise ModelError(
            f"config.json of {source.name} states {blocks} blocks and the weights are {len(held)} tensors: they are "
            "not of one model. Copy both again."
        )


def refuse_unlike(source: ModelSource, blank: PreTrainedModel, held: Mapping[str, Header]) -> None:
    """Refuse, by the headers alone, weights that do not belong to the model that config.json states.

    Raises: `ModelError` where a parameter is stored as whole numbers, which transformers would cast silently,
    and where config.json states another model altogether.
    """
    parameters = dict(blank.named_parameters())
    for name, header in held.items():
        if header.dtype not in _FLOATS and any(_ends_alike(name, path) for path in parameters):
            raise ModelError(
                f"{name} of {source.name} is stored as {header.dtype}: quantized? Only float weights can be cut."
            )
    stated = sum(parameter.numel() for parameter in parameters.values())
    stored = sum(math.prod(header.shape) for header in held.values())
    if stated > MORE * stored:
        raise ModelError(
            f"config.json of {source.name} states {stated:,} parameters and the weights hold {stored:,} numbers: they "
            "are not of one model. Copy both again."
        )


def _ends_alike(name: str, path: str) -> bool:
    """Return True where a stored tensor is the parameter at `path`: one may be named from a module further in."""
    return f".{path}".endswith(f".{name}") or f".{name}".endswith(f".{path}")


def _weights(
    source: ModelSource,
    auto: Auto,
    config: PreTrainedConfig,
    dtype: torch.dtype | str,
    remote: bool,
    where: Mapping[str, object],
) -> tuple[PreTrainedModel, LoadingInfo]:
    """Return the model, and the tensors that did not fit."""
    with building(f"{source.name} cannot be loaded", config):
        found = auto.from_pretrained(
            str(source.folder),
            config=config,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that they are listed, and refused
            output_loading_info=True,
            trust_remote_code=remote,
            local_files_only=True,
            **where,
        )
    model, info = found  # type: ignore[misc]  # a pair, since `output_loading_info` is given
    return model, info


@contextmanager
def building(failed: str, config: PreTrainedConfig) -> Iterator[None]:
    """Raise `ModelError` where transformers or torch cannot make a model of `config`.

    The message begins with `failed` and ends with the token ids that the vocabulary has no row for.
    """
    try:
        yield
    except (*_BROKEN, RuntimeError, AssertionError) as error:  # the last one is torch's word on a padding id
        beyond = "; ".join(ids_beyond(config))
        more = f". config.json has {beyond}." if beyond else ""
        raise ModelError(f"{failed}: {_first_line(error)}{more}") from error


def ids_beyond(config: PreTrainedConfig) -> list[str]:
    """Return the token ids of a config that its embeddings have no row for, each in words."""
    size = config.get_text_config().vocab_size
    return [
        f"{name} {value}, and vocab_size {size} ends at {size - 1}: set it to null, or to the id of a token"
        for name, value in sorted(config.to_dict().items())
        if name.endswith("_token_id") and isinstance(value, int) and not -size <= value < size
    ]


def refuse_partial(family: Family, name: str, info: LoadingInfo) -> None:
    """Raise `ModelError` where tensors are missing, misshapen or too many, the family's constants aside.

    Transformers would fill gaps with random numbers and drop the rest.
    """
    unexpected = [key for key in info["unexpected_keys"] if not family.leaves_out(key)]
    mismatched = [
        f"{key} {tuple(found)} for {tuple(wanted)}" for key, found, wanted in info["mismatched_keys"]
    ]
    problems = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(unexpected),
        "of the wrong shape": sorted(mismatched),
        "unreadable": sorted(map(str, info["error_msgs"])),
    }
    parts = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)})"
        for what, keys in problems.items()
        if keys
    ]
    if parts:
        raise ModelError(f"the weights of {name} do not fit its config.json: tensors {'; '.join(parts)}.")


def _refuse_unfit(source: ModelSource, dtype: str, refuse: Refuse) -> Look:
    """Return a check of each parameter's numbers and shape.

    Transformers does not look at the shape of a parameter that it leaves on disk.
    """

    def look(name: str, parameter: nn.Parameter, found: Tensor) -> None:
        if found.shape != parameter.shape:
            wrong = [(name, found.shape, parameter.shape)]
            refuse(
                source.name,
                LoadingInfo(missing_keys=[], unexpected_keys=[], mismatched_keys=wrong, error_msgs=[]),
            )
        refuse_nonfinite(name, found, dtype)

    return look


def refuse_nonfinite(name: str, parameter: Tensor, dtype: str) -> None:
    """Raise `ModelError` for a parameter that is quantized, or holds NaN or infinity in the `dtype` asked for."""
    if not parameter.is_floating_point() or parameter.dtype not in DTYPES.values():
        raise ModelError(f"{name} is stored as {parameter.dtype}: quantized? Only float weights can be cut.")
    if parameter.numel() and not torch.isfinite(torch.stack(torch.aminmax(parameter))).all():
        hint = " Perhaps it does not fit float16: try --dtype bfloat16." if dtype == "float16" else ""
        raise ModelError(f"{name} holds NaN or infinity; this model cannot be trusted.{hint}")


def tokenizer_of(source: ModelSource, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a checkpoint, or what stands for it where the model reads no text.

    Raises: `ModelError` where there is none, or it cannot be read.
    """
    if source.config.get("model_type") in [family.name for family in DECISIONS.values()]:
        return cast(PreTrainedTokenizerBase, NoTokenizer())  # used by a tokenizer's public methods alone
    if not any((source.folder / file).exists() for file in _VOCABULARIES):
        raise ModelError(
            f"{source.folder} has no tokenizer (none of {', '.join(_VOCABULARIES)}); copy one there."
        )
    with TokenizerErrors(f"the tokenizer of {source.name} cannot be read"):
        return read_tokenizer(str(source.folder), trust_remote_code=trust_remote_code)


class NoTokenizer:
    """A substitute for the tokenizer of a model that reads no text."""

    eos_token_id: None = None
    chat_template: None = None

    def encode(self, text: str, **_: object) -> list[int]:
        """Raise `ModelError`: there are no tokens."""
        raise ModelError(
            "a decision transformer reads states, actions and returns, and no text: give a task of episodes or "
            "trajectories; see docs/tasks.md."
        )

    def decode(self, ids: int | Sequence[int], **_: object) -> str:
        """Return no text."""
        return ""

    def save_pretrained(self, folder: object) -> None:
        """Write nothing."""


def read_tokenizer(folder: str, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a folder, tried on a word: some broken ones can be read but not used."""
    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **options)
    tokenizer.decode(tokenizer.encode("a", verbose=False))
    return tokenizer


class TokenizerErrors(AbstractContextManager[None]):
    """Turn errors of a tokenizer into a `ModelError` that begins with `failed`.

    The tokenizers library raises `Exception` itself, of which every error is a kind, so the exact type is
    compared; and where it fails within, a panic of its own.
    """

    def __init__(self, failed: str) -> None:
        self._failed = failed

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None or error is None:
            return
        if (
            kind is Exception
            or kind.__name__ == "PanicException"
            or issubclass(kind, (*_BROKEN, ImportError))
        ):
            raise ModelError(f"{self._failed}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def quiet() -> Iterator[None]:
    """Turn bars, log lines and Python warnings of transformers, accelerate and the hub off, and back as they were."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_verbosity, hub_bars = hub_logging.get_verbosity(), not are_progress_bars_disabled()
    dispatch = getLogger("accelerate.big_modeling")
    dispatch_level = dispatch.level
    logging.set_verbosity_error()
    dispatch.setLevel(ERROR)
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        dispatch.setLevel(dispatch_level)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
