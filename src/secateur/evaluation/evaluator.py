"""Judge plans on examples: cheap for a search that asks again and again, with the same result as one plan at a time.

Plans are taken from the lowest block they edit upwards. The activations that enter that block are computed once from
the original model and kept, so nothing below an edit runs twice; nor does what the edit leaves unchanged inside that
block. One boundary is kept for one shard of examples at a time: at most `cache_bytes`, and as much again for the
inside. An encoder-decoder runs whole for each plan.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateur.core.ledger import Ledger
from secateur.core.plan import Plan
from secateur.core.progress import Progress, silent
from secateur.core.score import OUTCOME
from secateur.core.search_log import SearchLog
from secateur.evaluation.activation_cache import NOTHING, ActivationCache, Unchanged, find_unchanged
from secateur.evaluation.batching import SMALLEST, Batch, Packing, Tally, shards, token_scores
from secateur.evaluation.forward import Forward
from secateur.evaluation.generate import answers_within, play
from secateur.evaluation.workers import (
    EvaluationContext,
    Judged,
    Limits,
    Workers,
    ordered,
    spectra_bytes,
    work_on,
)
from secateur.hf.load import Loaded
from secateur.hf.running import not_finite
from secateur.surgery.mask import masked
from secateur.surgery.operations import DropExperts, OnParameter, Operation, resolve
from secateur.surgery.spectra import Spectra, spectra_of
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Task


class Evaluator:
    """Judge plans: `judge(plans, examples)` returns OUTCOME rows by plan, from the ledger where they are known.

    Args:
        ban: Tokens that may not be answered.
        workers: Compute what is missing, in the place of this process.
        keep_activations: Keep the activations of the last shard from one call of `compute` to the next, for callers
            that ask in small portions.
        log: Is told of every plan that was judged, also of what the ledger knew.
        spectra: The decompositions that another evaluator of the same model has.
    """

    def __init__(
        self,
        loaded: Loaded,
        task: Task,
        encoded: Mapping[int, Encoded],
        *,
        limits: Limits | None = None,
        ledger: Ledger | None = None,
        scope: str = "",
        ban: Sequence[int] = (),
        progress: Progress = silent,
        workers: Workers | None = None,
        keep_activations: bool = False,
        spectra: Spectra | None = None,
        log: SearchLog | None = None,
    ) -> None:
        self.loaded, self.task, self.encoded = loaded, task, encoded
        self.progress, self.ban = progress, tuple(ban)
        self._ledger, self._scope, self._workers = ledger, scope, workers
        self._keep_activations, self._log = keep_activations, log
        self._open: _OpenShard | None = None
        self.limits = limits or Limits()
        self._forward = Forward(loaded.model, loaded.anatomy)
        model_bytes = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
        self.spectra = spectra or spectra_of(spectra_bytes(model_bytes), self.limits.spectra)
        self.packing = self.limits.packing(
            loaded.anatomy, on_cpu=self._forward.device.type == "cpu", model_bytes=model_bytes
        )
        self.evaluated = 0
        self.most_kept = 0  # bytes of activations held at once so far
        self._unchanged: dict[tuple[str, ...], Unchanged] = {}

    def __call__(
        self, plans: Iterable[Plan], examples: Sequence[int], stage: str = "judge"
    ) -> dict[Plan, np.ndarray]:
        """Return OUTCOME rows of each plan, in the order of `examples`. What the ledger knows is not computed again.

        Raises: `ModelError` where the original itself gives no number for an example: nothing could be compared.
        """
        plans = list(dict.fromkeys(plans))
        parts = {plan: [self._known(plan, examples)] for plan in plans}
        groups: dict[tuple[int, ...], list[Plan]] = {}
        for plan in plans:
            have = set(parts[plan][0]["example"].tolist())
            groups.setdefault(tuple(e for e in examples if e not in have), []).append(plan)
        total = sum(len(missing) * len(group) for missing, group in groups.items())
        done = 0
        for plan, outcomes, seconds in self._missing(groups):
            parts[plan].append(outcomes)
            if self._ledger is not None:
                self._ledger.record(self._scope, plan, outcomes, seconds=seconds)
            done += len(outcomes)
            self.evaluated += len(outcomes)
            self.progress(stage, done, total)
        judged = {plan: in_order(np.concatenate(rows), examples) for plan, rows in parts.items()}
        for plan in judged:
            if not plan.edits and not self.ban:
                self._refuse_nan(judged[plan])
        if self._log is not None:
            self._log.add(stage, judged)
        return judged

    def _refuse_nan(self, outcomes: np.ndarray) -> None:
        wrong = outcomes["example"][~np.isfinite(outcomes["loss"])].tolist()
        if wrong:
            first = self.task.examples[wrong[0]].id
            what = f"the losses of {len(wrong)} of {len(outcomes)} examples, such as {first!r}, are"
            raise not_finite(self.loaded.name, self.loaded.model.dtype, what)

    def tally(self, plan: Plan, examples: Sequence[int]) -> Tally:
        """Return the log-likelihood of every continuation, which outcomes do not hold."""
        tally = Tally(self.task, self.encoded)
        with torch.inference_mode(), masked(self.loaded.model, self._resolve(plan), self.spectra):
            for batch in self.packing.pack(self.encoded, examples):
                tally.add(batch, token_scores(self._forward.logits(batch), batch, self.ban))
        return tally

    def _known(self, plan: Plan, examples: Sequence[int]) -> np.ndarray:
        return (
            np.zeros(0, OUTCOME) if self._ledger is None else self._ledger.known(self._scope, plan, examples)
        )

    def _resolve(self, plan: Plan) -> Sequence[Operation]:
        return resolve(plan, self.loaded.anatomy, self.loaded.fingerprint)

    def _missing(self, groups: Mapping[tuple[int, ...], Sequence[Plan]]) -> Iterator[Judged]:
        """Yield outcomes of the plans of each group on its examples, computed by the workers where there are some."""
        if self._workers is None:
            for examples, plans in groups.items():
                yield from self.compute(plans, examples)
            return
        context = EvaluationContext(self.task, self.encoded, self.ban, self.limits)
        work = [
            piece
            for examples, plans in groups.items()
            for piece in work_on(plans, self._shards(examples), self.loaded.anatomy.lowest_block)
        ]
        yield from self._workers.compute(context, work)

    def compute(self, plans: Iterable[Plan], examples: Sequence[int]) -> Iterator[Judged]:
        """Yield outcomes of each (plan, shard of examples), lowest edit first; no ledger is read or written."""
        plans = ordered(plans, self.loaded.anatomy.lowest_block)
        for shard in self._shards(examples):
            waiting = list(plans)
            while waiting:
                try:
                    for outcome in self._compute_shard(list(waiting), shard):
                        yield outcome
                        waiting.pop(0)
                except torch.OutOfMemoryError:
                    if self.packing.max_tokens < SMALLEST:
                        raise
                    self.packing = self.packing.halved()

    def _compute_shard(self, plans: Sequence[Plan], shard: Sequence[int]) -> Iterator[Judged]:
        if self.encoded[shard[0]].episode is not None:
            yield from self._play(plans, shard)
            return
        anatomy = self.loaded.anatomy
        state = self._open_shard(shard, anatomy.lowest_block(plans[0]))
        for plan in plans:
            started = time.perf_counter()
            operations = self._resolve(plan)
            block = anatomy.lowest_block(plan)
            tally = Tally(self.task, self.encoded)
            with torch.inference_mode():
                state.boundary.move(block)
                state.cache = self._cache_for(operations, block, state.cache)
                with masked(self.loaded.model, operations, self.spectra):
                    for number, batch in enumerate(state.batches):
                        hidden, cached = state.boundary.hidden[number], state.cache.on(number)
                        logits = self._forward.logits(batch, start=block, hidden=hidden, cached=cached)
                        tally.add(batch, token_scores(logits, batch, self.ban))
                    self.most_kept = max(self.most_kept, state.boundary.num_bytes + state.cache.used)
                    outcomes = tally.outcomes(shard)
                    self._generate(shard, outcomes)
            yield plan, outcomes, time.perf_counter() - started

    def _generate(self, shard: Sequence[int], outcomes: np.ndarray) -> None:
        """Overwrite `correct` by what greedy generation gives, for the tasks that ask for it."""
        limits = [self.task.member(e).new_tokens for e in shard]
        for limit in sorted({*limits} - {0}):
            rows = [i for i, tokens in enumerate(limits) if tokens == limit]
            examples = [shard[i] for i in rows]
            outcomes["correct"][rows] = answers_within(
                self.loaded, self.task, examples, self.encoded, self.packing, self.ban
            )

    def _play(self, plans: Sequence[Plan], shard: Sequence[int]) -> Iterator[Judged]:
        """Yield outcomes of episodes, which the model plays under each plan; the loss is minus the return."""
        episodes = [episode for e in shard if (episode := self.encoded[e].episode) is not None]
        for plan in plans:
            started, out = time.perf_counter(), np.zeros(len(shard), OUTCOME)
            with masked(self.loaded.model, self._resolve(plan), self.spectra):
                found = play(self.loaded, episodes, self.packing.max_tokens)
            out["example"], out["predicted"] = shard, -1
            out["correct_norm"] = out["choice_loss"] = np.nan
            out["loss"] = [-one.total for one in found]
            out["correct"], out["tokens"] = [one.success for one in found], [one.steps for one in found]
            yield plan, out, time.perf_counter() - started

    def _open_shard(self, shard: Sequence[int], block: int) -> _OpenShard:
        """Return the activations of a shard: those kept, where they enter no higher block, or none computed yet."""
        state = self._open
        if (
            state is None
            or (state.shard, state.packing) != (list(shard), self.packing)
            or state.boundary.block > block
        ):
            self._open = None  # frees what was kept before there is more
            batches = self.packing.pack(self.encoded, shard)
            boundary = _Boundary(self._forward, batches)
            cache = ActivationCache(self.loaded.model, NOTHING, 0)
            state = _OpenShard(list(shard), self.packing, batches, boundary, cache)
        self._open = state if self._keep_activations else None
        return state

    def _cache_for(
        self, operations: Sequence[Operation], block: int, before: ActivationCache
    ) -> ActivationCache:
        """Return a cache of what these operations leave unchanged inside `block`: `before`, the last plan's, where that
        is the same."""
        if self.loaded.anatomy.num_encoder:  # which runs whole for each plan
            return before
        path = self.loaded.anatomy.blocks[block]
        edited = [o.parameter.rpartition(".")[0] for o in operations if isinstance(o, OnParameter)]
        edited += [operation.path for operation in operations if isinstance(operation, DropExperts)]
        modules = tuple(dict.fromkeys(module for module in edited if module.startswith(path + ".")))
        if modules and modules not in self._unchanged:
            self._unchanged[modules] = find_unchanged(self._forward, self.loaded.model, path, modules)
        parts = self._unchanged[modules] if modules else NOTHING
        if parts == before.parts:
            return before
        return ActivationCache(self.loaded.model, parts, self.limits.cache_bytes)

    def _shards(self, examples: Sequence[int]) -> Iterator[list[int]]:
        width = self.loaded.anatomy.d_model * self.loaded.model.dtype.itemsize
        played = [e for e in examples if self.encoded[e].episode is not None]
        read = [e for e in examples if self.encoded[e].episode is None]
        for some in filter(None, (read, played)):  # what is played and what is read never run together
            yield from shards(some, self.encoded, width, self.limits.cache_bytes)


class _Boundary:
    """The activations that enter one block, for every batch of a shard, from the original model."""

    def __init__(self, forward: Forward, batches: Sequence[Batch]) -> None:
        self._forward, self._batches = forward, batches
        self.block = 0
        self.hidden: list[Tensor | None] = [None] * len(batches)

    @property
    def num_bytes(self) -> int:
        return sum(h.numel() * h.element_size() for h in self.hidden if h is not None)

    def move(self, block: int) -> None:
        """Move up to `block`, never down, as plans come; nothing is kept for block 0, where tokens enter."""
        assert block >= self.block
        if block == self.block:
            return
        for number, batch in enumerate(self._batches):
            hidden = self.hidden[number]
            self.hidden[number] = self._forward.entering(batch, block, start=self.block, hidden=hidden)
        self.block = block


@dataclass
class _OpenShard:
    """One shard with what is known of its activations so far."""

    shard: list[int]
    packing: Packing
    batches: Sequence[Batch]
    boundary: _Boundary
    cache: ActivationCache


def in_order(outcomes: np.ndarray, examples: Sequence[int]) -> np.ndarray:
    """Return OUTCOME rows in the order of `examples`, which each have exactly one."""
    by_example = {example: number for number, example in enumerate(outcomes["example"].tolist())}
    assert len(by_example) == len(outcomes), "an example was judged twice"
    rows: np.ndarray = outcomes[[by_example[e] for e in examples]]
    return rows
