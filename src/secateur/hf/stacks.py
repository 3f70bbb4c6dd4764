"""Blocks of any model that can be read, as places where a hook sees the stream, or what a matrix reads.

Names of modules only; of tensors no more than a matrix that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from secateur.core.place import Place
from secateur.hf.matrices import Ranges
from secateur.hf.modeling_secateur import LowRank
from secateur.hf.weights import read


@dataclass(frozen=True)
class Weight:
    """A matrix by the module that holds it; by its output rows there, where others share the module; by the `share` of
    its inputs, (index, count) of equal ones, where it is a head's."""

    module: str
    rows: Ranges | None = None
    share: tuple[int, int] = (0, 1)

    def columns(self, width: int) -> slice:
        """Which of the module's `width` inputs it reads."""
        index, count = self.share
        return slice(index * width // count, (index + 1) * width // count)

    def read(self, runs: nn.Module) -> Float[Tensor, "out in"]:
        """As a linear map, however it is stored."""
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
    """Matrices, by name, that all read what enters the module `reads`: the stream as it enters the module `enters`,
    behind a norm. Where the two are one module, they read the stream itself. `stack` is whose stream it is."""

    stack: str
    enters: str
    reads: str
    matrices: tuple[tuple[str, Weight], ...]


@dataclass(frozen=True)
class Sublayer:
    """A sublayer, by the modules whose input is what it reads and whose output is what it adds to the stream.

    Where a norm precedes it, what it reads lies behind that norm. An attention has `num_heads` query heads, which lie
    side by side where its output projection `projects` reads. `readers` are its matrices that read a stream.
    """

    name: str
    reads: str
    writes: str
    num_heads: int = 0
    projects: str = ""
    readers: tuple[Readers, ...] = ()


@dataclass(frozen=True)
class Block:
    path: str
    parts: tuple[Sublayer, ...]


@dataclass(frozen=True)
class Stack:
    """Blocks one after the other on one stream. `prefix` begins their sites: nothing, `enc.` or `dec.`.

    `norm` is `pre` (what a block reads is normed, what it adds is not), `sandwich` (both are), or `post`: the stream
    itself is normed, so that what leaves less what enters is not what the block contributes.
    """

    prefix: str
    norm: str
    blocks: tuple[Block, ...]

    def site(self, number: int, kind: str = "", head: int | None = None) -> str:
        """`b3`, `enc.b3`, `dec.b3.cross`, `dec.b3.cross.h7`."""
        return str(Place(number, kind, head, self.prefix))
