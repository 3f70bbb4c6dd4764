"""What singular directions would make a model say: the tokens they raise and lower through the unembedding.

Only for directions that reach the residual stream by linear maps alone: those of o and down, and of v through its o.
What q and k do is to choose where to look, what gate and up do goes through a nonlinearity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.plan import Plan, RemoveDirections
from secateur.core.site import Site
from secateur.hf.anatomy import Anatomy
from secateur.hf.load import Loaded
from secateur.surgery.operations import Decompose, RemoveComponents, decompose, resolve

MOST = 6  # tokens on each side
Tokens = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Words:
    """Tokens with their logit along a unit vector after the final norm. The sign of a singular direction is arbitrary:
    it says `more` where it points one way and `less` where it points the other."""

    more: Tokens
    less: Tokens

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def direction_words(
    loaded: Loaded, edit: RemoveDirections, numbers: Sequence[int], decompose: Decompose = decompose
) -> list[Words]:
    """Of some of the directions that `edit` removes; empty where they do not reach the stream by linear maps, or the
    unembedding does not read the stream through one norm.

    Source: weights read in the vocabulary, Dar et al. 2022 (arXiv 2209.02535)."""
    anatomy = loaded.anatomy
    unembedding = loaded.parameter(f"{anatomy.unembedding}.weight")
    if (
        not numbers
        or edit.matrix.part not in ("o", "down", "v")
        or not _is_read_in_words(anatomy, unembedding)
    ):
        return []
    stream = _to_stream(loaded, edit) if edit.matrix.part == "v" else None
    if edit.matrix.part == "v" and stream is None:
        return []
    (operation,) = resolve(Plan(loaded.fingerprint, (edit,)), anatomy, loaded.fingerprint)
    assert isinstance(operation, RemoveComponents)
    basis = operation.basis(loaded.parameter(operation.parameter), decompose)
    found = []
    for number in numbers:
        piece, index = divmod(number, basis.shape[2])
        vector = basis[piece, :, index]
        written = vector if stream is None else _beside(stream, basis.shape[0], piece) @ vector
        logits = unembedding.float() @ _normed(loaded, written).float()
        found.append(Words(_tokens(loaded, logits, True), _tokens(loaded, logits, False)))
    return found


def _is_read_in_words(anatomy: Anatomy, unembedding: Tensor) -> bool:
    """Whether the stream is what the blocks add up to, and the unembedding reads it through one last norm: not where
    norms stand on the way, nor in OPT-350m, which norms the stream block by block and projects it."""
    plain = anatomy.final_norm is not None and anatomy.foldable
    return plain and unembedding.shape[1] == anatomy.d_model


def _to_stream(loaded: Loaded, edit: RemoveDirections) -> Float[Tensor, "d_model values"] | None:
    """What o makes of all values, as if every query head looked at one token; None in a block whose o is not whole."""
    anatomy, block = loaded.anatomy, edit.matrix.block
    matrix, own = anatomy.matrices.get(Site(block, "o")), anatomy.widths[block]
    if matrix is None:
        return None
    o = matrix.read(loaded.parameter(matrix.weight)).float()
    queries = own.num_heads // own.num_kv_heads
    return o.unflatten(1, (own.num_kv_heads, queries, anatomy.d_head)).sum(2).flatten(1)


def _beside(
    stream: Float[Tensor, "d_model values"], num: int, piece: int
) -> Float[Tensor, "d_model values_"]:
    """The columns of one of `num` heads."""
    return stream.unflatten(1, (num, -1))[:, piece]


def _normed(loaded: Loaded, vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """The direction as the unembedding sees it; half the difference of both signs leaves out a norm's bias."""
    norm = loaded.model.get_submodule(loaded.anatomy.final_norm)
    vector = vector.to(loaded.model.dtype)
    return (norm(vector) - norm(-vector)) / 2


def _tokens(loaded: Loaded, logits: Float[Tensor, " vocab"], largest: bool) -> Tokens:
    found = logits.topk(min(MOST, len(logits) // 2), largest=largest)
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return tuple((loaded.tokenizer.decode([token]), value) for token, value in pairs)
