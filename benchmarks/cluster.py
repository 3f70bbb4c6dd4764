"""Two local Ray workers of one thread each against one such worker, on the sweep of a random GPT-J; what a start takes,
and what a candidate costs beyond its evaluation.

Turn by turn, so that both see the same machine. Wall time counts here, and two workers need two free cores: beside the
ratio stands what share of two cores a plain loop of two processes got in the same turn.

    python benchmarks/cluster.py       (make cluster), about five minutes; appends to RESULTS.md
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from random_model import Size, as_task, gptj, prompts

from secateur.core.plan import Plan, Truncate
from secateur.core.site import Site
from secateur.distributed.cluster import on_ray
from secateur.distributed.pool import Pool
from secateur.hf.load import Loaded
from secateur.judge.evaluator import Judge
from secateur.judge.workers import Judged, Question, Work

TURNS = int(os.environ.get("TURNS", 3))
TARGET, OVERHEAD = 1.7, 0.6e-3  # times, and seconds per candidate
SIZE = Size(layers=4, d_model=512, vocabulary=8_000, prompts=60)
TINY = Size(layers=2, d_model=64, heads=2, vocabulary=64, prompts=1)
CANDIDATES = 400  # of the tiny model


class Watched:
    """A pool that adds up the seconds its workers say they computed."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self.computed = pool, 0.0

    def compute(self, question: Question, work: Sequence[Work]) -> Iterator[Judged]:
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
    found = Judge(loaded, task, encoded, workers=pool)(plans, range(size.prompts))
    return time.perf_counter() - started, found


def one_and_two() -> dict[str, Any]:
    """Both pools live for all turns; only one works at a time. Start-up is until the first outcome."""
    loaded = gptj(SIZE)
    plans = plans_of(loaded, (5, 50, 100, 200, 300, 400))
    started = time.perf_counter()
    with on_ray("local:3")(loaded) as three:
        three.pids  # noqa: B018  waits for them
        start = time.perf_counter() - started
        one, two = (part(three, hands) for hands in (three._hands[:1], three._hands[1:]))
        here = judged(loaded, SIZE, plans, None)[1]
        for pool in (one, two):  # spectra, which the workers keep
            there = judged(loaded, SIZE, plans, pool)[1]
            assert all(there[plan].tobytes() == here[plan].tobytes() for plan in plans)
        turns = []
        for _ in range(TURNS):
            seconds = [judged(loaded, SIZE, plans, pool)[0] for pool in (one, two)]
            turns.append({"one": seconds[0], "two": seconds[1], "cores": cores()})
    ratios = [turn["one"] / turn["two"] for turn in turns]
    return {"plans": len(plans), "start": start, "turns": turns, "ratio": float(np.median(ratios))}


def part(pool: Pool, hands: list[Any]) -> Pool:
    """A pool of some of the workers of another."""
    made = object.__new__(Pool)
    vars(made).update(vars(pool) | {"_hands": hands, "_count": len(hands), "_questions": [], "_fitted": {}})
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


def written(found: dict[str, Any]) -> str:
    """A section of RESULTS.md."""
    two, extra, when = found["two"], found["overhead"], date.today()
    shown = ", ".join(f"{t['one']:.1f} and {t['two']:.1f} s ({t['cores']:.2f} cores)" for t in two["turns"])
    best = max(two["turns"], key=lambda turn: turn["cores"])
    met = "yes" if two["ratio"] >= TARGET else "NO"
    cheap = "yes" if extra["seconds"] <= OVERHEAD else "NO"
    return "\n".join(
        [
            f"\n## Cluster, {when}\n",
            "| what | measured | target | met |",
            "|---|---|---|---|",
            f"| two Ray workers of one thread against one, {two['plans']} candidates, wall | {two['ratio']:.2f}× "
            f"| ≥ {TARGET}× | {met} |",
            f"| … in the turn with most processor to be had ({best['cores']:.2f} of 2 cores) "
            f"| {best['one'] / best['two']:.2f}× |  |  |",
            f"| per candidate beyond its evaluation | {1000 * extra['seconds']:.2f} ms | ≤ {1000 * OVERHEAD:g} ms "
            f"| {cheap} |",
            f"| start: Ray and three workers with the model | {two['start']:.1f} s |  |  |",
            "",
            f"One worker and two, turn by turn: {shown}. “Cores” is what two busy loops got right after. Outcomes are "
            "those of one process to the bit.",
            "",
            f"- {when}, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end, "
            f"torch {torch.__version__}",
            "",
        ]
    )


if __name__ == "__main__":
    result = {"two": one_and_two(), "overhead": overhead()}
    print(json.dumps(result, indent=2))
    section = written(result)
    print(section)
    with (Path(__file__).parent / "RESULTS.md").open("a", encoding="utf-8") as file:
        file.write(section)
