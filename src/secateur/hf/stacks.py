"""Blocks of any model that can be read, as places where a hook sees the stream, or the input of a matrix.

Names of modules only; of tensors no more than a matrix that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
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
