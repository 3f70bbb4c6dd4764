"""Define the workers that may judge in the evaluator's place: what they get, and how the work is split into portions.

Knows no cluster. A worker returns exactly what the evaluator would have computed here: batches depend on the examples
alone, never on which plans are judged together or by whom.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Protocol

import numpy as np

from secateur.core.plan import Plan
from secateur.evaluation.batching import Packing
from secateur.hf.anatomy import Anatomy
from secateur.hf.load import Loaded
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Task

MEBI = 2**20
CACHE_BYTES = 1024 * MEBI  # of activations
Judged = tuple[Plan, np.ndarray, float]  # OUTCOME rows of a plan on some examples, and the seconds they took


@dataclass(frozen=True)
class Limits:
    """The memory that the evaluator may use.

    0 chooses by device: 768 tokens (300 to 2,000 are equally fast, and fewer take less memory) and a sixteenth of the
    model's size in logits (128 to 256 MiB) on a CPU, 32,768 and 2 GiB on an accelerator; both halve when memory runs
    out. `spectra` is a folder for decompositions. With 16 MiB a pass of SmolLM2 over text took 1.4 times as long in
    bfloat16: its vocabulary of 49,152 left room for one row of 85 tokens.
    """

    max_tokens: int = 0
    logit_bytes: int = 0
    cache_bytes: int = CACHE_BYTES
    spectra: str | None = None

    def packing(self, anatomy: Anatomy, *, on_cpu: bool, model_bytes: int) -> Packing:
        """Return the limits of a batch for a model of this size."""
        tokens = self.max_tokens or (768 if on_cpu else 32768)
        logit_bytes = self.logit_bytes or (
            min(max(128 * MEBI, model_bytes // 16), 256 * MEBI) if on_cpu else 2048 * MEBI
        )
        return Packing(
            tokens, max(1, logit_bytes // (4 * anatomy.num_logits)), anatomy.padding, anatomy.switches
        )


def spectra_bytes(model_bytes: int) -> int:
    """Return how many bytes of decompositions the evaluator keeps for a model of this size."""
    return max(256 * MEBI, model_bytes // 10)


@dataclass(frozen=True, eq=False)
class EvaluationContext:
    """All that an `Evaluator` needs besides the model."""

    task: Task
    encoded: Mapping[int, Encoded]
    ban: tuple[int, ...]
    limits: Limits

    def same(self, other: EvaluationContext) -> bool:
        """Return whether this is about the very same task and tokens."""
        objects = self.task is other.task and self.encoded is other.encoded
        return objects and (self.ban, self.limits) == (other.ban, other.limits)


@dataclass(frozen=True)
class Work:
    """Plans with one lowest block, to be judged on one shard of examples: they share the activations below."""

    plans: tuple[Plan, ...]
    examples: tuple[int, ...]


class Workers(Protocol):
    """Judge plans elsewhere."""

    def compute(self, context: EvaluationContext, work: Sequence[Work]) -> Iterator[Judged]:
        """Yield outcomes of every plan of `work` on its examples, each once, in the order in which they finish."""
        ...


WorkerLauncher = Callable[[Loaded], AbstractContextManager[Workers]]


Lowest = Callable[[Plan], int]  # the first block that a plan changes, or below which nothing is reused


def ordered(plans: Iterable[Plan], lowest: Lowest) -> list[Plan]:
    """Return the plans lowest edit first, as the evaluator takes them."""
    return sorted(plans, key=lambda plan: (lowest(plan), str(plan)))


def work_on(plans: Iterable[Plan], shards: Iterable[Sequence[int]], lowest: Lowest) -> list[Work]:
    """Return every plan on every shard, by shard and then from the lowest block upwards."""
    blocks = [tuple(same) for _, same in groupby(ordered(plans, lowest), key=lowest)]
    return [Work(same, tuple(shard)) for shard in shards for same in blocks]


@dataclass(frozen=True)
class Portion:
    """Some plans of piece number `piece` of the work, for one worker."""

    piece: int
    work: Work


class Portions:
    """Split work into portions so that a worker stays with one block as long as there is some of it.

    Workers begin at pieces of their own, the same ones in every round, where they still have spectra and activations.
    A portion is as large as what takes `seconds` at the pace seen last, so that little is lost with a worker and
    little time goes into asking; near the end it is smaller, so that all end together.
    """

    def __init__(self, work: Iterable[Work], workers: int, seconds: float) -> None:
        self._work = list(work)
        self._left = [deque(piece.plans) for piece in self._work]
        self._last_piece: dict[int, int] = {}  # by worker
        self._alone: set[Plan] = set()  # lost once: they go one by one, so that it shows which of them kills
        self._workers, self._seconds = workers, seconds
        self._pace = 0.0  # seconds per plan and example

    def __bool__(self) -> bool:
        return any(self._left)

    def next(self, worker: int) -> Portion:
        """Return a portion for worker number `worker`. There must be one left."""
        piece = self._last_piece[worker] = self._piece(worker)
        left, examples = self._left[piece], self._work[piece].examples
        count = 1
        if self._pace:
            ending = sum(map(len, self._left)) // (2 * self._workers)
            count = max(1, min(int(self._seconds / (self._pace * len(examples))), ending))
        plans = [left.popleft()]
        while left and len(plans) < count and not self._alone & {plans[-1], left[0]}:
            plans.append(left.popleft())
        return Portion(piece, Work(tuple(plans), examples))

    def took(self, portion: Portion, seconds: float) -> None:
        """Record that a portion is done, and the seconds that it took."""
        self._pace = seconds / (len(portion.work.plans) * len(portion.work.examples))

    def again(self, portion: Portion) -> None:
        """Put a lost portion back; it comes first now, plan by plan."""
        self._alone.update(portion.work.plans)
        self._left[portion.piece].extendleft(reversed(portion.work.plans))

    def _piece(self, worker: int) -> int:
        """Return the piece this worker is at; else one that no worker is at; else the one with the most left."""
        last = self._last_piece.get(worker)
        if last is not None and self._left[last]:
            return last
        count = len(self._work)
        start = worker % self._workers * count // self._workers
        fresh = set(range(count)) - set(self._last_piece.values())
        for piece in chain(range(start, count), range(start)):
            if piece in fresh and self._left[piece]:
                return piece
        sizes = [len(left) for left in self._left]
        return sizes.index(max(sizes))
