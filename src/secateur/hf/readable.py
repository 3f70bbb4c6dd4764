"""What can be read, which is more than can be cut: blocks of decoders, of encoders and of encoder-decoders, as places
where a hook sees the stream.

Decoders are those that have an Anatomy, carved ones too. For the others there is a table here, read-only; the verbs
that cut keep refusing them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from secateur.errors import ModelError
from secateur.hf.anatomy import Anatomy
from secateur.hf.families import refuse_quantized
from secateur.hf.load import Loaded, check_machine, find_source, load_model, quiet, read_files


@dataclass(frozen=True)
class Part:
    """A sublayer, by the modules whose input is what it reads and whose output is what it adds to the stream.

    Where a norm precedes it, what it reads lies behind that norm.
    """

    name: str
    reads: str
    writes: str


@dataclass(frozen=True)
class Block:
    path: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Stack:
    """Blocks one after the other on one stream. `prefix` begins their sites: nothing, `enc.` or `dec.`.

    `norm` is `pre` (what a block reads is normed, what it adds is not), `sandwich` (both are), or `post`: the stream
    itself is normed, so that what leaves less what enters is not what the block contributes.
    """

    prefix: str
    norm: str
    blocks: tuple[Block, ...]

    def site(self, number: int, part: str = "") -> str:
        """`b3`, `enc.b3`, `dec.b3.cross`."""
        return f"{self.prefix}b{number}" + (f".{part}" if part else "")


@dataclass(frozen=True)
class Readable:
    """A model to be read. `runs` is the part of it without its head, `kind` decoder, encoder or encoder-decoder.

    `context` counts usable positions (None: no bound); `start` is what a decoder beside an encoder begins with.
    """

    name: str
    kind: str
    runs: nn.Module
    tokenizer: PreTrainedTokenizerBase
    stacks: tuple[Stack, ...]
    d_model: int
    context: int | None
    pad: int
    start: int | None = None
    revision: str | None = None


def load_readable(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Readable:
    """Loads MODEL as `load_model` does, or, read-only, a kind of model that is not cut.

    Raises: as `load_model`; what is neither is refused in its words.
    """
    check_machine(dtype, device)
    with quiet():
        source = find_source(name, revision)
    if source.config.get("model_type") not in _OTHERS or source.config.get("is_decoder"):
        options = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
        return readable_of(load_model(name, revision=revision, **options))
    refuse_quantized(source.config["model_type"], source.config)
    read = read_files(source, AutoModel, _refuse_gaps, dtype=dtype, device=device)
    return readable_from(read.model, read.tokenizer, name=name, revision=read.source.revision)


def readable_of(loaded: Loaded) -> Readable:
    """A decoder that could be cut too."""
    anatomy, config = loaded.anatomy, loaded.model.config
    stack = Stack("", _norm(anatomy, config), tuple(_decoder_blocks(loaded.model, anatomy)))
    return Readable(
        loaded.name,
        "decoder",
        loaded.model.base_model,
        loaded.tokenizer,
        (_below(stack, loaded.model.base_model_prefix),),
        anatomy.d_model,
        anatomy.context,
        pad=0,
        revision=loaded.revision,
    )


def readable_from(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "model",
    revision: str | None = None,
) -> Readable:
    """An encoder or encoder-decoder that is already in memory, without its head. Raises `ModelError` for another."""
    kind = model.config.model_type
    if kind not in _OTHERS:
        raise ModelError(
            f"{type(model).__name__} is no encoder that secateur can read ({', '.join(_OTHERS)})."
        )
    return Readable(name=name, runs=model, tokenizer=tokenizer, revision=revision, **_OTHERS[kind](model))


# ----------------------------------------------------------------------------------------------------------- decoders


def _norm(anatomy: Anatomy, config: Any) -> str:
    """BLOOM can be told to take the normed stream as its residual."""
    if anatomy.foldable:
        return "post" if getattr(config, "apply_residual_connection_post_layernorm", False) else "pre"
    return "sandwich" if anatomy.family in _AFTER else "post"


_AFTER = {  # norms that what a sublayer gives passes before it is added
    name: {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
    for name in ("gemma2", "gemma3")
}


def _decoder_blocks(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[Block]:
    """Parts that were cut away whole are left out."""
    after = _AFTER.get(anatomy.family, {})
    slots = anatomy.details.slots
    for number, path in enumerate(anatomy.blocks):
        own, parts = anatomy.widths[number], []
        for name, first, last, there in (
            ("attn", "q", "o", own.num_heads),
            ("mlp", "up", "down", own.d_ff),
        ):
            if there:
                writes = after.get(name, slots[last].module)
                parts.append(Part(name, f"{path}.{slots[first].module}", f"{path}.{writes}"))
        yield Block(path, tuple(parts))


def _below(stack: Stack, prefix: str) -> Stack:
    """The same with paths as they are inside the model without its head."""
    cut = f"{prefix}."

    def inner(path: str) -> str:
        assert path.startswith(cut), f"{path} is not below {prefix}"
        return path.removeprefix(cut)

    blocks = (
        Block(inner(b.path), tuple(Part(p.name, inner(p.reads), inner(p.writes)) for p in b.parts))
        for b in stack.blocks
    )
    return Stack(stack.prefix, stack.norm, tuple(blocks))


# ------------------------------------------------------------------------------------------- encoders, encoder-decoders


def _bert(model: PreTrainedModel) -> dict[str, Any]:
    """BERT and RoBERTa: a norm on the stream after each addition."""
    config = model.config
    reserved = config.pad_token_id + 1 if config.model_type != "bert" else 0  # RoBERTa counts from there
    parts = (
        Part("attn", "attention.self.query", "attention.output.dense"),
        Part("mlp", "intermediate", "output.dense"),
    )
    blocks = _blocks("encoder.layer", config.num_hidden_layers, parts)
    return {
        "kind": "encoder",
        "stacks": (Stack("enc.", "post", blocks),),
        "d_model": config.hidden_size,
        "context": config.max_position_embeddings - reserved,
        "pad": config.pad_token_id or 0,
    }


def _t5(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    attn = Part("attn", "layer.0.SelfAttention.q", "layer.0.SelfAttention.o")
    cross = Part("cross", "layer.1.EncDecAttention.q", "layer.1.EncDecAttention.o")
    first, second = (Part("mlp", f"layer.{n}.DenseReluDense", f"layer.{n}.DenseReluDense") for n in (1, 2))
    encoder = _blocks("encoder.block", config.num_layers, (attn, first))
    decoder = _blocks("decoder.block", config.num_decoder_layers, (attn, cross, second))
    return {
        "kind": "encoder-decoder",
        "stacks": (Stack("enc.", "pre", encoder), Stack("dec.", "pre", decoder)),
        "d_model": config.d_model,
        "context": None,
        "pad": config.pad_token_id or 0,
        "start": config.decoder_start_token_id or 0,
    }


def _blocks(path: str, count: int, parts: tuple[Part, ...]) -> tuple[Block, ...]:
    return tuple(
        Block(
            f"{path}.{n}",
            tuple(Part(p.name, f"{path}.{n}.{p.reads}", f"{path}.{n}.{p.writes}") for p in parts),
        )
        for n in range(count)
    )


_OTHERS: Mapping[str, Any] = {
    "bert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "t5": _t5,
    "mt5": _t5,
}
_UNREAD = ("pooler.",)  # what the body has beyond its blocks; it is missing where a head was trained instead
_INSIDE = ("encoder.layer.", "encoder.block.", "decoder.block.")


def _refuse_gaps(name: str, info: Mapping[str, Any]) -> None:
    """Heads do not matter here. All that is below them must be there and fit. Raises `ModelError`."""
    missing = [key for key in info["missing_keys"] if not key.startswith(_UNREAD)]
    beyond = [key for key in info["unexpected_keys"] if any(part in key for part in _INSIDE)]
    mismatched = [key for key, *_ in info["mismatched_keys"]]
    wrong = sorted([*missing, *beyond, *mismatched, *map(str, info["error_msgs"])])
    if wrong:
        raise ModelError(
            f"the weights of {name} do not fit its config.json: {len(wrong)} tensors are missing, too many or of the "
            f"wrong shape ({', '.join(wrong[:3])})."
        )
