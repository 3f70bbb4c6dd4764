"""Two local Ray workers of one thread each against one such worker, on the sweep of a random GPT-J; what a start takes,
and what a candidate costs beyond its evaluation.

Turn by turn, so that both see the same machine. Wall time counts here, and two workers need two free cores: beside the
ratio stands what share of two cores a plain loop of two processes got in the same turn.

    python benchmarks/run.py --only cluster       (make cluster), about five minutes where two cores are free
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from random_model import Size, as_task, gptj, prompts

from secateur.core.plan import Plan, Truncate
from secateur.core.site import Site
from secateur.distributed.launch import on_ray
from secateur.distributed.pool import RayWorkers
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.workers import EvaluationContext, Judged, Work
from secateur.hf.load import Loaded

TURNS = int(os.environ.get("TURNS", 6))
TARGET, OVERHEAD = 1.7, 0.6e-3  # times, and seconds per candidate
SIZE = Size(layers=4, d_model=512, vocabulary=8_000, prompts=60)
TINY = Size(layers=2, d_model=64, heads=2, vocabulary=64, prompts=1)
CANDIDATES = 400  # of the tiny model


class Watched:
    """A pool that adds up the seconds its workers say they computed."""

    def __init__(self, pool: RayWorkers) -> None:
        self._pool, self.computed = pool, 0.0

    def compute(self, question: EvaluationContext, work: Sequence[Work]) -> Iterator[Judged]:
        for plan, outcomes, seconds in self._pool.compute(question, work):
            self.computed += seconds
            yield plan, outcomes, seconds


def plans_of(loaded: Loaded, ranks: Sequence[int]) -> list[Plan]:
    kinds = ("q", "o", "up", "down")
    sites = [Site(block, kind) for block in range(loaded.anatomy.num_blocks) for kind in kinds]
    return [Plan(loaded.fingerprint, (Truncate(site, rank),)) for site in sites for rank in ranks]


def judged(
    loaded: Loaded, size: Size, plans: Sequence[Plan], pool: Any
) -> tuple[float, dict[Plan, np.ndarray]]:
    """Wall seconds of one sweep, and what it found."""
    task, encoded = as_task(prompts(size))
    started = time.perf_counter()
    found = Evaluator(loaded, task, encoded, workers=pool)(plans, range(size.prompts))
    return time.perf_counter() - started, found


def one_and_two() -> dict[str, Any]:
    """Both pools live for all turns; only one works at a time. Start-up is until the first outcome."""
    loaded = gptj(SIZE)
    plans = plans_of(loaded, (5, 50, 100, 200, 300, 400))
    started = time.perf_counter()
    with on_ray("local:3")(loaded) as three:
        three.pids  # noqa: B018  waits for them
        start = time.perf_counter() - started
        one, two = (part(three, hands) for hands in (three._handles[:1], three._handles[1:]))
        here = judged(loaded, SIZE, plans, None)[1]
        for pool in (one, two):  # spectra, which the workers keep
            there = judged(loaded, SIZE, plans, pool)[1]
            assert all(there[plan].tobytes() == here[plan].tobytes() for plan in plans)
        turns = []
        for turn in range(TURNS):
            pools = {"one": one, "two": two}
            order = sorted(pools, reverse=bool(turn % 2))
            seconds = {name: judged(loaded, SIZE, plans, pools[name])[0] for name in order}
            turns.append(seconds | {"cores": cores()})
    ratios = [turn["one"] / turn["two"] for turn in turns]
    return {"plans": len(plans), "start": start, "turns": turns, "ratio": float(np.median(ratios))}


def part(pool: RayWorkers, hands: list[Any]) -> RayWorkers:
    """A pool of some of the workers of another."""
    made = object.__new__(RayWorkers)
    vars(made).update(vars(pool) | {"_handles": hands, "_count": len(hands), "_contexts": [], "_fitted": {}})
    return made


def _burn(seconds: float) -> float:
    """Processor seconds that this process gets in so many seconds of wall time."""
    until, before = time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < until:
        pass
    return time.process_time() - before


def cores(seconds: float = 3.0) -> float:
    """How many cores two busy processes get here, now."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_burn, [0.01, 0.01])
        return sum(pool.map(_burn, [seconds] * 2, chunksize=1)) / seconds


def overhead() -> dict[str, float]:
    """Wall time per candidate beyond what the one worker computed, where evaluation costs next to nothing."""
    loaded = gptj(TINY)
    plans = plans_of(loaded, range(1, 1 + CANDIDATES // 8))[:CANDIDATES]
    with on_ray("local:1")(loaded) as pool:
        watched = Watched(pool)
        judged(loaded, TINY, plans, watched)
        found = []
        for _ in range(TURNS):
            watched.computed = 0.0
            seconds, _ = judged(loaded, TINY, plans, watched)
            found.append((seconds - watched.computed) / len(plans))
    return {"seconds": float(np.median(found)), "target": OVERHEAD}


def run() -> dict[str, Any]:
    return {"two": one_and_two(), "overhead": overhead()}


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    two, extra = found["two"], found["overhead"]["seconds"]
    what, most = (
        "two Ray workers of one thread against one",
        max(two["turns"], key=lambda turn: turn["cores"]),
    )
    each = ", ".join(f"{turn['one']:.1f} and {turn['two']:.1f} s" for turn in two["turns"])
    measured = f"{two['ratio']:.2f}× ({each})"
    yield f"{what}: {two['plans']} candidates, wall", measured, f"≥ {TARGET}×", _met(two["ratio"] >= TARGET)
    measured = f"{most['one'] / most['two']:.2f}×"
    yield (
        f"{what}: … when two busy loops got {most['cores']:.2f} of 2 cores, the most of any turn",
        measured,
        "",
        "",
    )
    measured, target = f"{1000 * extra:.2f} ms", f"≤ {1000 * OVERHEAD:g} ms"
    yield f"{what}: a candidate, beyond its evaluation", measured, target, _met(extra <= OVERHEAD)
    yield f"{what}: start of Ray and three workers with the model", f"{two['start']:.1f} s", "", ""


def _met(met: bool) -> str:
    return "yes" if met else "NO"


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
