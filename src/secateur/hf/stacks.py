"""Blocks of any model that can be read, as places where a hook sees the stream, or the input of a matrix.

At the end encoders and encoder-decoders described so: BERT, RoBERTa, T5, as they are read without their head. BERT and
RoBERTa with the head that fills masks are also families, and cut. Names of modules only; of tensors no more than a
matrix that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from secateur.core.place import ReadableSite
from secateur.hf.matrices import Ranges
from secateur.hf.modeling_secateur import LowRank
from secateur.hf.weights import read


@dataclass(frozen=True)
class Weight:
    """The place of a matrix: its module, and its output rows there, where others share the module.

    `share`, (index, count), is of the inputs that a head's matrix reads: one of `count` equal parts.
    """

    module: str
    rows: Ranges | None = None
    share: tuple[int, int] = (0, 1)

    def columns(self, width: int) -> slice:
        """Return the inputs of the module, `width` in all, that this matrix reads."""
        index, count = self.share
        return slice(index * width // count, (index + 1) * width // count)

    def read(self, runs: nn.Module) -> Float[Tensor, "out in"]:
        """Return the matrix as a linear map, however it is stored."""
        module = runs.get_submodule(self.module)
        if isinstance(module, LowRank):
            whole = read(runs, f"{self.module}.b").T @ read(runs, f"{self.module}.a")
        else:
            kept = read(runs, f"{self.module}.weight")
            whole = kept.T if isinstance(module, Conv1D) else kept
        mine = whole[:, self.columns(whole.shape[1])]
        return mine if self.rows is None else torch.cat([mine[start:stop] for start, stop in self.rows])


@dataclass(frozen=True)
class Readers:
    """Matrices, by name, that read the input of the module `reads`.

    That input is the stream as it enters the module `enters`, behind a norm. Where the two are one module, they
    read the stream itself. `stack` says whose stream it is.
    """

    stack: str
    enters: str
    reads: str
    matrices: tuple[tuple[str, Weight], ...]


@dataclass(frozen=True)
class Sublayer:
    """A sublayer, by the modules that read its input and write its contribution to the stream.

    Where a norm precedes it, its input lies behind that norm. An attention has `num_heads` query heads, side by
    side in the input of its output projection `projects`. `readers` are its matrices that read a stream.
    """

    name: str
    reads: str
    writes: str
    num_heads: int = 0
    projects: str = ""
    readers: tuple[Readers, ...] = ()


@dataclass(frozen=True)
class Block:
    """One block: its module's path and its sublayers."""

    path: str
    parts: tuple[Sublayer, ...]


@dataclass(frozen=True)
class Stack:
    """Blocks one after the other on one stream. `prefix` begins their sites: empty, `enc.` or `dec.`.

    `norm` is `pre` (a block's input is normed, its contribution is not), `sandwich` (both are), or `post`: the
    stream itself is normed, so output less input is not the block's contribution.
    """

    prefix: str
    norm: str
    blocks: tuple[Block, ...]

    def site(self, number: int, kind: str = "", head: int | None = None) -> str:
        """Return an address: `b3`, `enc.b3`, `dec.b3.cross`, `dec.b3.cross.h7`."""
        return str(ReadableSite(number, kind, head, self.prefix))


# ------------------------------------------------------------------------------------------------------ encoders


Matrices = tuple[tuple[str, Weight], ...]


class Described(TypedDict):
    """The fields of `Readable` that the kind of a model decides."""

    kind: str
    stacks: tuple[Stack, ...]
    d_model: int
    vocab_size: int
    context: int | None
    pad: int
    start: NotRequired[int]


def _bert(model: PreTrainedModel) -> Described:
    """Describe BERT or RoBERTa: a norm on the stream after each addition."""
    config = model.config
    reserved = config.pad_token_id + 1 if config.model_type != "bert" else 0  # RoBERTa counts from there
    blocks = [_bert_block(f"encoder.layer.{n}", config) for n in range(config.num_hidden_layers)]
    return {
        "kind": "encoder",
        "stacks": (Stack("enc.", "post", tuple(blocks)),),
        "d_model": config.hidden_size,
        "vocab_size": config.vocab_size,
        "context": config.max_position_embeddings - reserved,
        "pad": config.pad_token_id or 0,
    }


def _bert_block(path: str, config: PreTrainedConfig) -> Block:
    inner, dense = f"{path}.attention.self", f"{path}.attention.output.dense"
    names = {"q": "query", "k": "key", "v": "value"}
    reading = _reading("enc.", f"{inner}.query", f"{inner}.query", _matrices(inner, names))
    attn = Sublayer("attn", f"{inner}.query", dense, config.num_attention_heads, dense, reading)
    up = f"{path}.intermediate"
    reading = _reading("enc.", up, up, _matrices(up, {"up": "dense"}))
    return Block(path, (attn, Sublayer("mlp", up, f"{path}.output.dense", readers=reading)))


def _t5(model: PreTrainedModel) -> Described:
    config = model.config
    paths = (f"encoder.block.{n}" for n in range(config.num_layers))
    encoder = [
        Block(p, (_t5_attention("enc.", f"{p}.layer.0", config), _t5_mlp("enc.", p, 1, config)))
        for p in paths
    ]
    decoder = [_t5_decoder_block(n, config) for n in range(config.num_decoder_layers)]
    return {
        "kind": "encoder-decoder",
        "stacks": (Stack("enc.", "pre", tuple(encoder)), Stack("dec.", "pre", tuple(decoder))),
        "d_model": config.d_model,
        "vocab_size": config.vocab_size,
        "context": None,
        "pad": config.pad_token_id or 0,
        "start": config.decoder_start_token_id or 0,
    }


def _t5_decoder_block(number: int, config: PreTrainedConfig) -> Block:
    path = f"decoder.block.{number}"
    own = _t5_attention("dec.", f"{path}.layer.0", config)
    return Block(path, (own, _t5_cross(f"{path}.layer.1", config), _t5_mlp("dec.", path, 2, config)))


def _t5_attention(stack: str, layer: str, config: PreTrainedConfig) -> Sublayer:
    inner = f"{layer}.SelfAttention"
    reading = _reading(stack, f"{layer}.layer_norm", f"{inner}.q", _matrices(inner, "qkv"))
    return Sublayer("attn", f"{inner}.q", f"{inner}.o", config.num_heads, f"{inner}.o", reading)


def _t5_cross(layer: str, config: PreTrainedConfig) -> Sublayer:
    """Describe a cross-attention: queries read the decoder's stream, keys and values the encoder's normed output."""
    inner = f"{layer}.EncDecAttention"
    queries = _reading("dec.", f"{layer}.layer_norm", f"{inner}.q", _matrices(inner, "q", "cross."))
    kept = _reading("enc.", "encoder.final_layer_norm", f"{inner}.k", _matrices(inner, "kv", "cross."))
    return Sublayer("cross", f"{inner}.q", f"{inner}.o", config.num_heads, f"{inner}.o", queries + kept)


def _t5_mlp(stack: str, path: str, layer: int, config: PreTrainedConfig) -> Sublayer:
    inner = f"{path}.layer.{layer}.DenseReluDense"
    names = {"gate": "wi_0", "up": "wi_1"} if config.is_gated_act else {"up": "wi"}
    reading = _reading(stack, f"{path}.layer.{layer}.layer_norm", inner, _matrices(inner, names))
    return Sublayer("mlp", inner, inner, readers=reading)


def _reading(stack: str, enters: str, reads: str, matrices: Matrices) -> tuple[Readers, ...]:
    return (Readers(stack, enters, reads, matrices),)


def _matrices(path: str, names: Mapping[str, str] | Sequence[str], prefix: str = "") -> Matrices:
    """Return the matrices at `path` by our name, from the module's names."""
    known = names if isinstance(names, Mapping) else {name: name for name in names}
    return tuple((prefix + name, Weight(f"{path}.{module}")) for name, module in known.items())


ENCODERS: Mapping[str, Callable[[PreTrainedModel], Described]] = {
    "bert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "t5": _t5,
    "mt5": _t5,
}
UNREAD = ("pooler.",)  # what the body has beyond its blocks; it is missing where a head was trained instead
INSIDE = ("encoder.layer.", "encoder.block.", "decoder.block.")
