"""What a head does with repeated text: prefix matching (does it look at what came after this token before?) and
copying (does it raise the token it looks at?). A diagnosis of behavior, not of importance.

Reads attention weights of one block at a time while the model runs on random tokens; nothing is kept but numbers per
head. Knows no task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from secateur.core.progress import Progress, silent
from secateur.core.readings import Readings
from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.evaluation.batching import Batch
from secateur.evaluation.forward import Forward
from secateur.evaluation.workers import MEBI
from secateur.hf.anatomy import Anatomy
from secateur.hf.load import Loaded
from secateur.probes.attention import attend
from secateur.probes.random_tokens import lead_of, random_segments, with_bos
from secateur.surgery.mask import swapped_forward

REPEATS = 4


def prefix_matching(
    loaded: Loaded, *, seeds: int = 100, frequencies: Sequence[int] | None = None, progress: Progress = silent
) -> Readings:
    """Attention that goes to the followers of earlier occurrences of the current token, as `b3.attn.h5`; 0 to 1.

    BOS, then a segment of unique random tokens 4 times; summed over all earlier occurrences, mean over the positions
    of repeats 2 to 4, mean over sequences. Seed s has a segment of 25 + 2s tokens, or as many as context and
    vocabulary allow. `frequencies` counts each token id in some text; without, ids stand for it, which tokenizers
    give out from frequent to rare. `n` counts sequences.
    Source: Bansal et al. 2022 (arXiv 2212.09095), after Olsson et al. 2022 (arXiv 2209.11895). Differs: seeded with
    numpy's own generator; the authors count a position too many where a segment ends.
    Raises: `ModelError` where there are no heads or attention weights cannot be had, or context or vocabulary are too
    small.
    """
    _check_heads(loaded.anatomy)
    segments = random_segments(loaded, seeds, REPEATS, frequencies)
    total = _zeros(loaded)
    done = 0
    for rows in _batches(loaded, segments):
        tokens = with_bos(loaded, np.tile(rows, REPEATS))
        segment, lead = rows.shape[1], tokens.shape[1] - REPEATS * rows.shape[1]

        def consume(block: int, weights: Tensor, segment: int = segment, lead: int = lead) -> None:
            total[block] += prefix_scores(weights, segment, lead).double().sum(dim=0).cpu()

        attend(loaded, tokens, consume)
        done += len(rows)
        progress("prefix matching", done, len(segments))
    source = f"{len(segments)} random sequences repeated {REPEATS} times (arXiv 2212.09095)"
    return _readings("prefix matching", source, len(segments), total)


def copying(
    loaded: Loaded,
    *,
    seeds: int = 100,
    frequencies: Sequence[int] | None = None,
    authors: bool = False,
    progress: Progress = silent,
) -> Readings:
    """How far a head raises the very token it attends to most, as `b3.attn.h5`; 0 to 1.

    BOS, then unique random tokens, as long as the sequences of prefix matching. Position j's own value vector goes
    through the head's part of `o`, the model's final norm and its unembedding. Of the softmax, the tokens up to j
    less their mean, where positive: the share that is at the token j attends most. 0 where nothing is raised. Mean
    over j without BOS, mean over sequences. A value's bias counts, that of `o` belongs to no head and does not; a
    norm between `o` and the residual stream (Gemma 2 and 3) is left out; queries of a group share their values.
    With `authors`, as their code: every block gets the embeddings, no final norm, and the bias of `o` counts.
    Source, `seeds`, `frequencies`, `n`: as `prefix_matching`. Raises: `ModelError` as there, and as `check_copying`.
    """
    check_copying(loaded.anatomy)
    segments = random_segments(loaded, seeds, REPEATS, frequencies, unique=True)
    total = _zeros(loaded)
    circuit = _Circuit(loaded, authors)
    for number, segment in enumerate(segments):
        tokens = with_bos(loaded, segment[None])
        attended, values = circuit.attend(tokens)
        for block in total:
            total[block] += circuit.scores(block, tokens, attended[block], values[block])
        progress("copying", number + 1, len(segments))
    fed = ", every block fed the embeddings" if authors else ""
    source = f"{len(segments)} random sequences{fed} (arXiv 2212.09095)"
    return _readings("copying", source, len(segments), total)


def check_copying(anatomy: Anatomy) -> None:
    """Raises `ModelError` where there are no heads, or the way through one leads over two factors that an earlier cut
    left of a matrix."""
    _check_heads(anatomy)
    for site in (Site(block, part) for block in anatomy.attending for part in "vo"):
        if site not in anatomy.matrices:
            raise ModelError(
                f"copying of heads cannot be read: {site} is stored as two factors by an earlier cut."
            )


def _check_heads(anatomy: Anatomy) -> None:
    if not anatomy.attending:
        raise ModelError("this model has no heads: earlier cuts took them all.")


def _zeros(loaded: Loaded) -> dict[int, Float[Tensor, " heads"]]:
    anatomy = loaded.anatomy
    return {b: torch.zeros(anatomy.widths[b].num_heads, dtype=torch.float64) for b in anatomy.attending}


def _readings(what: str, source: str, n: int, total: dict[int, Float[Tensor, " heads"]]) -> Readings:
    means = {block: (sums / n).tolist() for block, sums in total.items()}
    named = {str(Site(b, "attn", "h", h)): v for b, of_block in means.items() for h, v in enumerate(of_block)}
    return Readings(what, "share", "random tokens", n, True, source, named)


def _batches(loaded: Loaded, segments: Sequence[np.ndarray]) -> Iterator[Int[np.ndarray, "rows segment"]]:
    """Segments of equal length side by side, as many as 64 MiB of attention weights allow."""
    waiting = sorted(segments, key=len)
    while waiting:
        length = len(waiting[0])
        weights = 4 * loaded.anatomy.num_heads * (REPEATS * length + lead_of(loaded)) ** 2
        most = max(1, 64 * MEBI // weights)
        rows = [segment for segment in waiting[:most] if len(segment) == length]
        yield np.stack(rows)
        waiting = waiting[len(rows) :]


# --------------------------------------------------------------------------------------------------------- the scores


def prefix_scores(
    weights: Float[Tensor, "*heads length length"], segment: int, lead: int = 1
) -> Float[Tensor, "*heads"]:
    """Prefix matching of each attention matrix over `lead` tokens and then `segment` tokens again and again.

    What a token k segments back was followed by lies on one diagonal, k·segment − 1 below the main one.
    """
    repeats, rest = divmod(weights.shape[-1] - lead, segment)
    assert rest == 0, f"{weights.shape[-1]} tokens are not {lead} and segments of {segment}"
    wide = torch.promote_types(weights.dtype, torch.float32)
    total = weights.new_zeros(weights.shape[:-2], dtype=wide)
    for back in range(1, repeats):
        followers = weights.diagonal(1 - back * segment, -2, -1)  # begins at position back·segment − 1
        total = total + followers[..., lead + 1 :].sum(dim=-1, dtype=wide)
    return total / ((repeats - 1) * segment)


def copying_scores(
    logits: Float[Tensor, "heads length length"], attended: Int[Tensor, "heads length"], lead: int = 1
) -> Float[Tensor, " heads"]:
    """Mean over positions j from `lead` on of the raised share at `attended`[j]; `logits`[j, i] of the token at i.

    Of a softmax over the vocabulary only the ratios among the tokens i ≤ j matter for a share, so that no other
    logit is needed and no probability underflows.
    """
    length = logits.shape[-1]
    future = torch.ones(length, length, dtype=torch.bool, device=logits.device).triu(1)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(future, -torch.inf)
    p = (wide - wide.amax(dim=-1, keepdim=True)).exp()  # in units of the likeliest token up to j
    count = torch.arange(1, length + 1, device=p.device)
    raised = (p - p.sum(dim=-1, keepdim=True) / count[:, None]).relu()
    whole = raised.sum(dim=-1)
    share = raised.gather(-1, attended[..., None])[..., 0] / torch.where(whole > 0, whole, 1)
    return share[:, lead:].mean(dim=-1)


class _Circuit:
    """The way from a token's value vector, through one head and the model's own readout, to the tokens' logits."""

    def __init__(self, loaded: Loaded, authors: bool) -> None:
        self._loaded, self._authors = loaded, authors
        self._forward = Forward(loaded.model, loaded.anatomy)
        self._head = loaded.model.get_submodule(loaded.anatomy.unembedding)

    def attend(self, tokens: Int[Tensor, "1 length"]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """For each block, the position that each head attends most, (heads, length), and v, (length, kv heads, d)."""
        parts, model = self._loaded.anatomy, self._loaded.model
        attended: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for block in parts.attending:
                matrix = parts.matrix(Site(block, "v"))

                def keep(
                    _: nn.Module, args: tuple, y: Tensor, block: int = block, matrix: Any = matrix
                ) -> None:
                    own = matrix.of_output(y)
                    values[block] = own.reshape(-1, parts.widths[block].num_kv_heads, parts.d_head).clone()

                stack.callback(model.get_submodule(matrix.module).register_forward_hook(keep).remove)
            if self._authors:
                _feed_embeddings(stack, self._loaded)
            attend(
                self._loaded,
                tokens,
                lambda block, weights: attended.update({block: weights[0].argmax(dim=-1)}),
            )
        return attended, values

    def scores(
        self, block: int, tokens: Tensor, attended: Tensor, values: Float[Tensor, "length kv_heads d_head"]
    ) -> Float[Tensor, " heads"]:
        """As many heads at a time as 64 MiB of logits and outputs allow."""
        parts, length = self._loaded.anatomy, tokens.shape[1]
        step = max(1, 16 * MEBI // (length * max(length, parts.d_model)))
        found = []
        num_heads = parts.widths[block].num_heads
        for first in range(0, num_heads, step):
            heads = range(first, min(first + step, num_heads))
            logits = self._logits(tokens, self._outputs(block, heads, values))
            found.append(copying_scores(logits, attended[first : heads.stop], lead_of(self._loaded)))
        return torch.cat(found).double().cpu()

    def _outputs(self, block: int, heads: range, values: Tensor) -> Float[Tensor, "heads length d_model"]:
        parts = self._loaded.anatomy
        matrix = parts.matrix(Site(block, "o"))
        o = matrix.read(self._loaded.parameter(matrix.weight))
        own = parts.widths[block]
        queries = own.num_heads // own.num_kv_heads
        each = values[:, [head // queries for head in heads]].transpose(0, 1)
        columns = o[:, heads.start * parts.d_head : heads.stop * parts.d_head]
        out = each @ columns.T.reshape(len(heads), parts.d_head, -1)
        biased = self._authors and matrix.bias is not None
        return out + self._loaded.parameter(matrix.bias) if biased else out

    @torch.inference_mode()
    def _logits(self, tokens: Tensor, hidden: Float[Tensor, "heads length d_model"]) -> Tensor:
        """Logits of the sequence's own tokens, (heads, length, length), through norm, projection and unembedding as
        the model has them: one call in which every block stands aside."""
        path = self._loaded.anatomy.unembedding
        weight = self._loaded.parameter(f"{path}.weight")
        own = tokens[0].to(weight.device)
        weight = weight[own]
        bias = None if self._head.bias is None else self._loaded.parameter(f"{path}.bias")[own]
        with ExitStack() as stack:
            stack.enter_context(swapped_forward(self._head, lambda x: nn.functional.linear(x, weight, bias)))
            if self._authors and self._loaded.anatomy.final_norm is not None:
                norm = self._loaded.model.get_submodule(self._loaded.anatomy.final_norm)
                stack.enter_context(swapped_forward(norm, lambda x: x))
            batch = _everywhere(tokens.expand(len(hidden), -1))
            logits = self._forward.logits(batch, start=self._loaded.anatomy.num_blocks, hidden=hidden)
        return logits.reshape(*hidden.shape[:2], -1)


def _feed_embeddings(stack: ExitStack, loaded: Loaded) -> None:
    """Every block gets what the first one gets."""
    first: list[Tensor] = []

    def feed(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        entering = args[0] if args else kwargs["hidden_states"]
        first.append(entering.clone())
        return (
            ((first[0].clone(), *args[1:]), kwargs)
            if args
            else ((), kwargs | {"hidden_states": first[0].clone()})
        )

    for path in loaded.anatomy.blocks:
        module = loaded.model.get_submodule(path)
        stack.callback(module.register_forward_pre_hook(feed, with_kwargs=True).remove)


def _everywhere(tokens: Int[Tensor, "rows length"]) -> Batch:
    """A batch whose every position counts and that has no targets."""
    none = torch.zeros(0, dtype=torch.long)
    return Batch(tokens, torch.arange(tokens.numel()), none, none, none, none, none.bool(), none)
