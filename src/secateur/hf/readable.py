"""Blocks of decoders, encoders and encoder-decoders as places where a hook sees the stream.

More models can be read than cut. Those that have an Anatomy are read by it, carved ones too. The others are in
stacks.py, read-only; the verbs that cut refuse them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from secateur.core.machine import Offloading
from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.hf.anatomy import Anatomy
from secateur.hf.blank import blank_model
from secateur.hf.files import LoadingInfo
from secateur.hf.load import (
    DTYPES,
    Loaded,
    check_machine,
    config_of,
    find_source,
    is_carved,
    load_model,
    on_meta,
    quiet,
    read_files,
    tokenizer_of,
)
from secateur.hf.placement import Placement
from secateur.hf.recognize import refuse_quantized
from secateur.hf.source import ModelSource, download
from secateur.hf.stacks import ENCODERS, INSIDE, UNREAD, Block, Readers, Stack, Sublayer, Weight
from secateur.hf.weights import device_of


@dataclass(frozen=True)
class Readable:
    """A model to be read. `runs` is the part of it without its head, `kind` decoder, encoder or encoder-decoder.

    `context` counts usable positions (None: no bound), `vocab_size` embeddings; `start` is the first token of a
    decoder beside an encoder. `switches` are `length_switches`.
    """

    name: str
    kind: str
    runs: nn.Module
    tokenizer: PreTrainedTokenizerBase
    stacks: tuple[Stack, ...]
    d_model: int
    vocab_size: int
    context: int | None
    pad: int
    start: int | None = None
    revision: str | None = None
    switches: Sequence[int] = ()

    @property
    def device(self) -> torch.device:
        """Return the device that takes tokens."""
        return device_of(self.runs, next(name for name, _ in self.runs.named_parameters()))


def load_readable(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    **offloading: Unpack[Offloading],
) -> Readable:
    """Load MODEL as `load_model` does, or, read-only, a kind of model that is not cut.

    Raises: as `load_model`; a model that is neither is refused in its words.
    """
    check_machine(dtype, device, **offloading)
    source = _encoder(name, revision)
    if source is None:
        return readable_of(
            load_model(
                name,
                revision=revision,
                dtype=dtype,
                device=device,
                trust_remote_code=trust_remote_code,
                **offloading,
            )
        )
    read = read_files(source, AutoModel, _refuse_gaps, dtype=dtype, placement=Placement(device, **offloading))
    return readable_from(read.model, read.tokenizer, name=name, revision=read.source.revision)


def blank_readable(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    **offloading: Unpack[Offloading],
) -> Readable:
    """Load the same without weights. Raises: as `load_readable`, but for weights."""
    source = _encoder(name, revision)
    if source is None:
        return readable_of(
            blank_model(
                name,
                revision=revision,
                dtype=dtype,
                device=device,
                trust_remote_code=trust_remote_code,
                **offloading,
            )
        )
    check_machine(dtype, device, **offloading)
    with quiet():
        if source.is_partly_here:
            source = download(source, weights=False)
        model = on_meta(
            source, AutoModel, config_of(source, remote=False), DTYPES.get(dtype, "auto"), remote=False
        )
        tokenizer = tokenizer_of(source, False)
    return readable_from(model, tokenizer, name=name, revision=source.revision)


def _encoder(name: str, revision: str | None) -> ModelSource | None:
    """Find a model that is read and not cut; None for another. Raises: `UnknownName`, `ModelError`."""
    with quiet():
        source = find_source(name, revision)
    if (
        source.config.get("model_type") not in ENCODERS
        or source.config.get("is_decoder")
        or is_carved(source)
    ):
        return None
    refuse_quantized(source.config["model_type"], source.config)
    return source


def readable_of(loaded: Loaded) -> Readable:
    """Return a model that could also be cut, a decoder or an encoder, as a readable one.

    Raises: `ModelError` for a decision transformer.
    """
    anatomy, config = loaded.anatomy, loaded.model.config
    if anatomy.num_encoder:
        kinds = " and ".join(kind for kind in ENCODERS if "t5" in kind)
        raise ModelError(
            f"{loaded.name}: of encoder-decoders only {kinds} are read so, as they were before any cut into shapes of "
            f"their own; this is {'such a cut' if anatomy.carved else anatomy.architecture}."
        )
    if anatomy.acts:
        raise ModelError(
            f"{anatomy.architecture} reads states and actions, and linearity is read of models of text: leave it out."
        )
    stack = Stack("", _norm(anatomy, config), tuple(_decoder_blocks(loaded.model, anatomy)))
    return Readable(
        loaded.name,
        "encoder" if anatomy.details.bidirectional else "decoder",
        loaded.model.base_model,
        loaded.tokenizer,
        (stack,),
        anatomy.d_model,
        anatomy.vocab_size,
        anatomy.context,
        pad=0,
        revision=loaded.revision,
        switches=anatomy.switches,
    )


def readable_from(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "model",
    revision: str | None = None,
) -> Readable:
    """Return an encoder or encoder-decoder in memory, without its head. Raises: `ModelError` for another model."""
    kind = model.config.model_type
    if kind not in ENCODERS:
        raise ModelError(
            f"{type(model).__name__} is no encoder that secateur can read ({', '.join(ENCODERS)})."
        )
    found = Readable(name=name, runs=model, tokenizer=tokenizer, revision=revision, **ENCODERS[kind](model))
    for key, value in (("pad_token_id", found.pad), ("decoder_start_token_id", found.start)):
        if value is not None and not 0 <= value < found.vocab_size:
            raise ModelError(
                f"config.json of {name} has {key} {value}, and vocab_size {found.vocab_size} ends at "
                f"{found.vocab_size - 1}: set it to the id of a token."
            )
    return found


# ----------------------------------------------------------------------------------------------------------- decoders


def _norm(anatomy: Anatomy, config: PreTrainedConfig) -> str:
    """Return the place of norms; BLOOM can be told to take the normed stream as its residual."""
    if anatomy.foldable:
        return "post" if getattr(config, "apply_residual_connection_post_layernorm", False) else "pre"
    return "sandwich" if anatomy.details.after else "post"


def _decoder_blocks(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[Block]:
    """Yield blocks; paths are inside the model without its head.

    Parts that were removed whole are left out, and of the matrices those that are stored as two factors.
    """
    for number, own in enumerate(anatomy.widths):
        path = _below(anatomy.blocks[number], model)
        there = {"attn": own.num_heads, "mlp": own.d_ff}
        yield Block(path, tuple(_part(model, anatomy, number, name) for name in there if there[name]))


def _part(model: PreTrainedModel, anatomy: Anatomy, number: int, name: str) -> Sublayer:
    path, details = _below(anatomy.blocks[number], model), anatomy.details
    slots = details.slots
    after = {} if number in anatomy.mixers else details.after
    before = None if details.post_norm else _entered(model, path, name, after.values())
    first, last = ("q", "o") if name == "attn" else ("up", "down")
    reads = f"{path}.{slots[first].module}"
    found = ((kind, anatomy.matrices.get(Site(number, kind))) for kind in _READERS[name])
    matrices = ((kind, Weight(_below(one.module, model), one.rows)) for kind, one in found if one is not None)
    return Sublayer(
        name,
        reads,
        f"{path}.{after.get(name, slots[last].module)}",
        anatomy.widths[number].num_heads if name == "attn" else 0,
        f"{path}.{slots[last].module}" if name == "attn" else "",
        (Readers("", before or reads, reads, tuple(matrices)),),
    )


_READERS = {"attn": ("q", "k", "v"), "mlp": ("gate", "up")}
_BEFORE = {  # norms that the stream passes on its way to a part: the first of these that a block has
    "attn": (
        "attn_norm", "ln_attn", "input_layernorm", "ln_1", "self_attn_layer_norm", "operator_norm", "layernorm1",
    ),
    "mlp": (
        "mlp_norm", "pre_feedforward_layernorm", "ln_mlp", "post_attention_layernorm", "ln_2", "final_layer_norm",
        "pre_ff_layernorm", "layernorm2", "input_layernorm", "ln_1", "ffn_norm",
    ),
}  # fmt: skip


def _entered(model: PreTrainedModel, block: str, part: str, after: Collection[str]) -> str | None:
    """Return the norm before a part, which none of those `after` a part is, as OLMo 2 has; None where norms sit on the
    stream, as in OPT-350M, or the block was replaced."""
    if not getattr(model.config, "do_layer_norm_before", True):
        return None
    has = dict(model.base_model.get_submodule(block).named_children())
    return next((f"{block}.{norm}" for norm in _BEFORE[part] if norm in has and norm not in after), None)


def _below(path: str, model: PreTrainedModel) -> str:
    """Return a path in the model as a path in the model without its head."""
    prefix = f"{model.base_model_prefix}."
    assert path.startswith(prefix), f"{path} is not below {prefix}"
    return path.removeprefix(prefix)


# ----------------------------------------------------------------------------------------------------------- the others


def _refuse_gaps(name: str, info: LoadingInfo) -> None:
    """Raise `ModelError` where tensors below the head are missing or do not fit; heads do not matter here."""
    missing = [key for key in info["missing_keys"] if not key.startswith(UNREAD)]
    beyond = [key for key in info["unexpected_keys"] if any(part in key for part in INSIDE)]
    mismatched = [key for key, *_ in info["mismatched_keys"]]
    wrong = sorted([*missing, *beyond, *mismatched, *map(str, info["error_msgs"])])
    if wrong:
        raise ModelError(
            f"the weights of {name} do not fit its config.json: {len(wrong)} tensors are missing, too many or of the "
            f"wrong shape ({', '.join(wrong[:3])})."
        )
