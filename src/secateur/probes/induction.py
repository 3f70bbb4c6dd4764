"""Measure what heads do with repeated text: prefix matching (attention to the token that followed this one before) and
copying (raising the token that is attended to). A diagnosis of behavior, not of importance.

Reads attention weights of one block at a time while the model runs on random tokens; nothing is kept but numbers per
head. Knows no task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from secateur.core.progress import Progress, silent
from secateur.core.readings import Readings
from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.evaluation.batching import Batch
from secateur.evaluation.forward import Forward
from secateur.evaluation.workers import MEBI
from secateur.hf.anatomy import Anatomy
from secateur.hf.calls import entering
from secateur.hf.load import Loaded
from secateur.hf.matrices import Matrix
from secateur.probes.heads import attend
from secateur.surgery.mask import swapped_forward

REPEATS = 4
SEEDS = 100  # sequences of random tokens (arXiv 2212.09095)
LEFT_OUT = 0.04  # of the vocabulary at either end (arXiv 2212.09095)


def prefix_matching(
    loaded: Loaded,
    *,
    seeds: int = SEEDS,
    frequencies: Sequence[int] | None = None,
    progress: Progress = silent,
) -> Readings:
    """Return the attention to the followers of earlier occurrences of the current token, as `b3.attn.h5`; 0 to 1.

    BOS, then a segment of unique random tokens 4 times; summed over all earlier occurrences, mean over the positions
    of repeats 2 to 4, mean over sequences. Seed s has a segment of 25 + 2s tokens, or as many as context and
    vocabulary allow. `n` counts sequences.

    Args:
        frequencies: The count of each token id in some text; without it ids stand for it, which tokenizers assign from
            frequent to rare.

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


@dataclass(frozen=True)
class CopyingReadings:
    """Copying of every head, and how much of it is what heads do while they rest on the attention sink.

    Attributes:
        every: Over all positions, as in the source.
        beyond_sink: Only over positions that attend most neither to position 0 nor to themselves; 0 where a head has
            none.
        sink: The share of positions that do attend most to position 0 or to themselves.
    """

    every: Readings
    beyond_sink: Readings
    sink: Readings


def copying(
    loaded: Loaded,
    *,
    seeds: int = SEEDS,
    frequencies: Sequence[int] | None = None,
    blocks: range | None = None,
    authors: bool = False,
    progress: Progress = silent,
) -> CopyingReadings:
    """Return how far a head raises the very token it attends to most, as `b3.attn.h5`; 0 to 1.

    BOS, then unique random tokens, as long as the sequences of prefix matching. Position j's own value vector goes
    through the head's part of `o`, the model's final norm and its unembedding. Of the softmax, the tokens up to j
    less their mean, where positive: the share that is at the token j attends most. 0 where nothing is raised. Mean
    over j without BOS, mean over sequences. A value's bias counts, that of `o` belongs to no head and does not; a
    norm between `o` and the residual stream (Gemma 2 and 3) is left out, and so are gates on what heads give (Qwen3.5);
    queries of a group share their values.

    Args:
        blocks: The blocks to read; None: all.
        authors: Compute as the authors' code does: every block gets the embeddings, no final norm, and the bias of `o`
            counts.

    Source, `seeds`, `frequencies`, `n`: as `prefix_matching`. Raises: `ModelError` as there, and as `check_copying`.
    """
    check_copying(loaded.anatomy)
    segments = random_segments(loaded, seeds, REPEATS, frequencies, unique=True)
    every, beyond, counts, sink = (_zeros(loaded, blocks) for _ in range(4))
    circuit, lead = _Circuit(loaded, authors), lead_of(loaded)
    for number, segment in enumerate(segments):
        tokens = with_bos(loaded, segment[None])
        attended, values = circuit.attend(tokens)
        for block in every:
            shares = circuit.scores(block, tokens, attended[block], values[block])
            elsewhere = ~at_sink(attended[block])[:, lead:].cpu()
            every[block] += shares.mean(dim=-1)
            beyond[block] += (shares * elsewhere).sum(dim=-1)
            counts[block] += elsewhere.sum(dim=-1)
            sink[block] += 1 - elsewhere.double().mean(dim=-1)
        progress("copying", number + 1, len(segments))
    fed = ", every block fed the embeddings" if authors else ""
    source, n = f"{len(segments)} random sequences{fed} (arXiv 2212.09095)", len(segments)
    means = {block: n * total / counts[block].clamp(min=1) for block, total in beyond.items()}
    return CopyingReadings(
        _readings("copying", source, n, every),
        _readings("copying beyond the attention sink", source, n, means),
        _readings("attention sink", source, n, sink),
    )


def check_copying(anatomy: Anatomy) -> None:
    """Raise `ModelError` where there are no heads, or an earlier cut stored the `v` or `o` of one as two factors."""
    _check_heads(anatomy)
    for site in (Site(block, part) for block in anatomy.attending for part in "vo"):
        if site not in anatomy.matrices:
            raise ModelError(
                f"copying of heads cannot be read: {site} is stored as two factors by an earlier cut."
            )


def _check_heads(anatomy: Anatomy) -> None:
    if not anatomy.attending:
        raise ModelError("this model has no heads: earlier cuts took them all.")


def _zeros(loaded: Loaded, blocks: range | None = None) -> dict[int, Float[Tensor, " heads"]]:
    anatomy = loaded.anatomy
    read = [block for block in anatomy.attending if blocks is None or block in blocks]
    return {b: torch.zeros(anatomy.widths[b].num_heads, dtype=torch.float64) for b in read}


def _readings(what: str, source: str, n: int, total: dict[int, Float[Tensor, " heads"]]) -> Readings:
    means = {block: (sums / n).tolist() for block, sums in total.items()}
    named = {str(Site(b, "attn", "h", h)): v for b, of_block in means.items() for h, v in enumerate(of_block)}
    return Readings(what, "share", "random tokens", n, True, source, named)


def _batches(loaded: Loaded, segments: Sequence[np.ndarray]) -> Iterator[Int[np.ndarray, "rows segment"]]:
    """Yield segments of equal length side by side, as many as 64 MiB of attention weights allow."""
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
    """Return the prefix matching of each attention matrix over `lead` tokens and then repeats of `segment` tokens.

    The followers of the same token k segments back lie on one diagonal, k·segment − 1 below the main one.
    """
    repeats, rest = divmod(weights.shape[-1] - lead, segment)
    assert rest == 0, f"{weights.shape[-1]} tokens are not {lead} and segments of {segment}"
    wide = torch.promote_types(weights.dtype, torch.float32)
    total = weights.new_zeros(weights.shape[:-2], dtype=wide)
    for back in range(1, repeats):
        followers = weights.diagonal(1 - back * segment, -2, -1)  # begins at position back·segment − 1
        total = total + followers[..., lead + 1 :].sum(dim=-1, dtype=wide)
    return total / ((repeats - 1) * segment)


def at_sink(attended: Int[Tensor, "heads length"]) -> Bool[Tensor, "heads length"]:
    """Tell of each position whether a head attends there most to position 0 or to the position itself."""
    return (attended == 0) | (attended == torch.arange(attended.shape[-1], device=attended.device))


def copying_scores(
    logits: Float[Tensor, "heads length length"], attended: Int[Tensor, "heads length"], lead: int = 1
) -> Float[Tensor, "heads positions"]:
    """Return the raised share at `attended`[j] of each position j from `lead` on.

    `logits[:, j, i]` are of the token at position i.

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
    return share[:, lead:]


class _Circuit:
    """Compute logits of tokens from value vectors, through one head and the model's own final norm and unembedding."""

    def __init__(self, loaded: Loaded, authors: bool) -> None:
        self._loaded, self._authors = loaded, authors
        self._forward = Forward(loaded.model, loaded.anatomy)
        self._head = loaded.model.get_submodule(loaded.anatomy.unembedding)

    def attend(self, tokens: Int[Tensor, "1 length"]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Return by block the position that each head attends most, (heads, length), and v, (length, kv heads, d)."""
        parts, model = self._loaded.anatomy, self._loaded.model
        attended: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for block in parts.attending:
                matrix = parts.matrix(Site(block, "v"))

                def keep(
                    _: nn.Module,
                    args: tuple[object, ...],
                    y: Tensor,
                    block: int = block,
                    matrix: Matrix = matrix,
                ) -> None:
                    v = matrix.of_output(y)
                    values[block] = v.reshape(-1, parts.widths[block].num_kv_heads, parts.d_head).clone()

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
    ) -> Float[Tensor, "heads positions"]:
        """Return `copying_scores` of each head, as many at a time as 64 MiB of logits and outputs allow."""
        parts, length = self._loaded.anatomy, tokens.shape[1]
        step = max(1, 16 * MEBI // (length * max(length, parts.d_model)))
        scores = []
        num_heads = parts.widths[block].num_heads
        for first in range(0, num_heads, step):
            heads = range(first, min(first + step, num_heads))
            logits = self._logits(tokens, self._outputs(block, heads, values))
            scores.append(copying_scores(logits, attended[first : heads.stop], lead_of(self._loaded)))
        return torch.cat(scores).double().cpu()

    def _outputs(self, block: int, heads: range, values: Tensor) -> Float[Tensor, "heads length d_model"]:
        parts = self._loaded.anatomy
        matrix = parts.matrix(Site(block, "o"))
        o = matrix.read(self._loaded.parameter(matrix.weight))
        width = parts.widths[block]
        queries = width.num_heads // width.num_kv_heads
        each = values[:, [head // queries for head in heads]].transpose(0, 1)
        columns = o[:, heads.start * parts.d_head : heads.stop * parts.d_head]
        out = each @ columns.T.reshape(len(heads), parts.d_head, -1)
        if self._authors and matrix.bias is not None:
            out = out + self._loaded.parameter(matrix.bias)
        return out

    @torch.inference_mode()
    def _logits(self, tokens: Tensor, hidden: Float[Tensor, "heads length d_model"]) -> Tensor:
        """Return logits of the sequence's own tokens, (heads, length, length), through norm, projection and unembedding
        of the model: one call in which every block stands aside."""
        path = self._loaded.anatomy.unembedding
        weight = self._loaded.parameter(f"{path}.weight")
        ids = tokens[0].to(weight.device)
        weight = weight[ids]
        bias = None if self._head.bias is None else self._loaded.parameter(f"{path}.bias")[ids]
        with ExitStack() as stack:
            stack.enter_context(swapped_forward(self._head, lambda x: nn.functional.linear(x, weight, bias)))
            if self._authors and self._loaded.anatomy.final_norm is not None:
                norm = self._loaded.model.get_submodule(self._loaded.anatomy.final_norm)
                stack.enter_context(swapped_forward(norm, lambda x: x))
            none = torch.zeros(0, dtype=torch.long)
            rows = tokens.expand(len(hidden), -1)  # every position counts, and there are no targets
            batch = Batch(rows, torch.arange(rows.numel()), none, none, none, none, none.bool(), none)
            logits = self._forward.logits(batch, start=self._loaded.anatomy.num_blocks, hidden=hidden)
        return logits.reshape(*hidden.shape[:2], -1)


def _feed_embeddings(stack: ExitStack, loaded: Loaded) -> None:
    """Pass to every block the input of the first one."""
    first: list[Tensor] = []

    def feed(
        module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        first.append(entering(args, kwargs).clone())
        return (
            ((first[0].clone(), *args[1:]), kwargs)
            if args
            else ((), kwargs | {"hidden_states": first[0].clone()})
        )

    for path in loaded.anatomy.blocks:
        module = loaded.model.get_submodule(path)
        stack.callback(module.register_forward_pre_hook(feed, with_kwargs=True).remove)


# -------------------------------------------------------------------------------------------------- random tokens


def random_segments(
    loaded: Loaded,
    seeds: int,
    repeats: int,
    frequencies: Sequence[int] | None = None,
    *,
    unique: bool = False,
) -> list[Int[np.ndarray, " segment"]]:
    """Return one segment of unique random tokens a seed, with room for `repeats` of it in the context.

    With `unique` a segment is `repeats` times as long instead. Raises: `ModelError` where there is no room.
    """
    tokens = random_vocabulary(loaded, frequencies)
    context = loaded.anatomy.context
    room = len(tokens) if context is None else (context - lead_of(loaded)) // (1 if unique else repeats)
    most = min(len(tokens), room)
    if most < 2:
        raise ModelError(
            f"a segment of random tokens needs at least 2; a context of {context} and {len(tokens)} usable tokens "
            f"leave room for {max(most, 0)}."
        )
    lengths = [min((25 + 2 * seed) * (repeats if unique else 1), most) for seed in range(seeds)]
    return [
        np.random.default_rng(seed).choice(tokens, length, replace=False)
        for seed, length in enumerate(lengths)
    ]


def random_vocabulary(loaded: Loaded, frequencies: Sequence[int] | None = None) -> Int[np.ndarray, " tokens"]:
    """Return ids without special tokens and without the most and the least frequent 4 %, most frequent first."""
    tokenizer = loaded.tokenizer
    usable = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    ids = np.array(sorted(i for i in usable if i < loaded.anatomy.vocab_size))
    if frequencies is not None:
        if len(frequencies) <= ids.max(initial=-1):
            raise ModelError(
                f"{len(frequencies)} token frequencies for ids up to {ids.max()}; give one for each id."
            )
        ids = ids[np.argsort(-np.asarray(frequencies)[ids], kind="stable")]
    drop = int(LEFT_OUT * len(ids))
    return ids[drop : len(ids) - drop]


def _bos(loaded: Loaded) -> tuple[int, ...]:
    """Return BOS, or EOS where there is no BOS (as in GPT-2, where they are one), or nothing where there is neither.

    Raises: `ModelError` where the model has no embedding for it.
    """
    first = loaded.tokenizer.bos_token_id
    first = loaded.tokenizer.eos_token_id if first is None else first
    if first is not None and first >= loaded.anatomy.vocab_size:
        raise ModelError(
            f"the tokenizer begins a text with id {first}, and the model has no embedding for it: its vocab_size is "
            f"{loaded.anatomy.vocab_size}."
        )
    return () if first is None else (first,)


def lead_of(loaded: Loaded) -> int:
    """Return the number of tokens before the first segment: 1 with BOS, else 0."""
    return len(_bos(loaded))


def with_bos(loaded: Loaded, rows: Int[np.ndarray, "rows length"]) -> Int[Tensor, "rows length+1"]:
    """Return the rows with BOS in front, where there is one."""
    lead = np.broadcast_to(np.array(_bos(loaded), dtype=rows.dtype), (len(rows), lead_of(loaded)))
    return torch.from_numpy(np.concatenate([lead, rows], axis=1))
