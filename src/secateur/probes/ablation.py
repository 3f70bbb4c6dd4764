"""What is lost when a part of a model stands aside: blocks, attentions, feed-forward networks, heads, groups, neurons.

A part is ablated by lending a module another `forward` that gives zeros; nothing is written, and no family is named.
What lies below the part is computed once per batch and shared by all that is ablated above it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.core.readings import Readings
from secateur.core.score import METRICS, Metric
from secateur.core.site import Site
from secateur.errors import UnknownName
from secateur.hf.anatomy import Anatomy
from secateur.hf.load import Loaded
from secateur.judge.evaluator import Judge, Progress, in_order, silent
from secateur.judge.forward import Forward, lent
from secateur.judge.generate import answers_within
from secateur.judge.outcomes import Tally, token_scores
from secateur.judge.rows import Batch, Packing

Outcomes = dict[Site | None, np.ndarray]


def ablation_importance(
    judge: Judge, sites: Sequence[Site], examples: Sequence[int], *, split: str, progress: Progress = silent
) -> dict[str, Readings]:
    """metric(model) − metric(model without the part), turned so that a part worth keeping has a positive number.

    One Readings for each metric the task has: `text_loss` for text, `accuracy` and `loss` for answers. Units: the
    metric's own. Source: Bansal et al. 2022 (arXiv 2212.09095), FFN importance. Differs: measured on the split named,
    never on the one reported; loss beside accuracy, which ties on few examples.
    Raises: `UnknownName` for a site that is a matrix or that the model does not have.
    """
    outcomes = ablated_outcomes(judge, sites, examples, progress=progress)
    names = ("text_loss",) if judge.task.kind == "text" else ("accuracy", "loss")
    return {name: _importance(METRICS[name], outcomes, split) for name in names}


def _importance(metric: Metric, outcomes: Outcomes, split: str) -> Readings:
    sign = 1 if metric.higher_is_better else -1
    dense = metric.mean(outcomes[None])
    values = {str(s): sign * (dense - metric.mean(rows)) for s, rows in outcomes.items() if s is not None}
    source = "metric(model) − metric(model without it) (arXiv 2212.09095)"
    what, n = f"importance by ablation ({metric.name})", len(outcomes[None])
    return Readings(what, metric.unit, split, n, True, source, values)


def ablated_outcomes(
    judge: Judge, sites: Sequence[Site], examples: Sequence[int], *, progress: Progress = silent
) -> Outcomes:
    """OUTCOME rows, in the order of `examples`, of the model without each site, and under None of the whole model.

    With L blocks, one kind of part costs about half of L whole passes. Memory does not grow with the examples.
    """
    sites = sorted(set(sites))
    for site in sites:
        _check(judge.loaded.anatomy, site)
    packing = judge.packing
    while True:
        try:
            with torch.inference_mode():
                return _outcomes(judge, sites, examples, packing, progress)
        except torch.OutOfMemoryError:
            if packing.max_tokens < 64:
                raise
            packing = packing.halved()


@contextmanager
def without(loaded: Loaded, site: Site) -> Iterator[None]:
    """Inside, the model computes as if `site` were not there, in cached generation too. Biases go with their part.

    A block without its attention (or feed-forward) keeps its norms; a block that is gone takes them with it.
    """
    _check(loaded.anatomy, site)
    path, forward = _standin(loaded, site)
    with lent(loaded.model.get_submodule(path), forward):
        yield


def _standin(loaded: Loaded, site: Site) -> tuple[str, Callable[..., Any]]:
    """The module, by path, that runs another `forward` while `site` is away."""
    parts, model = loaded.anatomy, loaded.model
    if not site.part:
        path = parts.blocks[site.block]
        return path, _passing(model.get_submodule(path).forward)
    kind = "o" if site.part == "attn" else "down"
    matrix = parts.matrix(Site(site.block, kind))
    if site.unit:
        first, last = _columns(parts, site)
        return matrix.module, _blanked(model.get_submodule(matrix.module).forward, first, last)
    if kind == "down" and parts.mlps is not None:  # then nothing of it needs to run
        return parts.mlps[site.block], torch.zeros_like
    return matrix.module, lambda x: x.new_zeros(*x.shape[:-1], matrix.shape[0])


def _passing(own: Callable[..., Any]) -> Callable[..., Any]:
    """A block that gives back what it got. It runs all the same, because its attention keeps count of the cache."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        entered = (args[0] if args else kwargs["hidden_states"]).clone()
        out = own(*args, **kwargs)
        return (entered, *out[1:]) if isinstance(out, tuple) else entered

    return forward


def _blanked(own: Callable[[Tensor], Tensor], first: int, last: int) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., first:last] = 0
        return own(x)

    return forward


def _columns(parts: Anatomy, site: Site) -> tuple[int, int]:
    """Where a head, group or neuron lies in the input of its block's `o` or `down`."""
    queries = parts.num_heads // parts.num_kv_heads
    width = {"h": parts.d_head, "g": queries * parts.d_head, "n": 1}[site.unit]
    return site.index * width, (site.index + 1) * width


def _check(parts: Anatomy, site: Site) -> None:
    if site.is_matrix:
        raise UnknownName(
            f"{site} is a matrix; what is ablated is a block, attn, mlp, head, group or neuron."
        )
    counts = {"": 1, "h": parts.num_heads, "g": parts.num_kv_heads, "n": parts.d_ff}
    if site.block >= parts.num_blocks or site.index >= counts[site.unit]:
        of = f", each with {counts[site.unit]} of {site.part}.{site.unit}" if site.unit else ""
        raise UnknownName(f"this model has no {site}: it has {parts.num_blocks} blocks{of}, counted from 0.")


# --------------------------------------------------------------------------------------------------------- the scores


def _outcomes(
    judge: Judge, sites: Sequence[Site], examples: Sequence[int], packing: Packing, progress: Progress
) -> Outcomes:
    forward = Forward(judge.loaded.model, judge.loaded.anatomy)
    rows: dict[Site | None, list[np.ndarray]] = {site: [] for site in (None, *sites)}
    batches = packing.pack(judge.encoded, examples)
    for number, batch in enumerate(batches):
        for site, logits in _each(judge.loaded, forward, sites, batch):
            tally = Tally(judge.task.kind, judge.encoded)
            tally.add(batch, token_scores(logits, batch, judge.ban))
            rows[site].append(tally.outcomes(batch.row_example.unique().tolist()))
        progress("ablation", number + 1, len(batches))
    found = {site: in_order(np.concatenate(parts), examples) for site, parts in rows.items()}
    if judge.task.kind == "generation" and judge.task.max_new_tokens:
        _generate(judge, found, examples, packing, progress)
    return found


def _each(
    loaded: Loaded, forward: Forward, sites: Sequence[Site], batch: Batch
) -> Iterator[tuple[Site | None, Tensor]]:
    """Logits at the kept positions of the whole model, then without each site, lowest block first."""
    yield None, forward.logits(batch)
    hidden, at = None, 0
    for block, group in groupby(sites, key=lambda site: site.block):
        if block > at:
            hidden, at = forward.entering(batch, block, start=at, hidden=hidden), block
        for site in group:
            if not site.part:  # what enters the block enters the next one
                yield site, forward.logits(batch, start=block + 1, hidden=hidden)
                continue
            with without(loaded, site):
                logits = forward.logits(batch, start=block, hidden=hidden)
            yield site, logits


def _generate(
    judge: Judge, found: Outcomes, examples: Sequence[int], packing: Packing, progress: Progress
) -> None:
    """Generation accuracy, which no activation can be reused for, in place of the exact match."""
    for number, (site, rows) in enumerate(found.items()):
        with nullcontext() if site is None else without(judge.loaded, site):
            rows["correct"] = answers_within(
                judge.loaded, judge.task, examples, judge.encoded, packing, judge.ban
            )
        progress("ablation, generating", number + 1, len(found))
