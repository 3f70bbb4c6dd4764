"""Speed and memory of an exhaustive LASER sweep against the authors' loop, paired, in one process.

The evaluator runs one real sweep over half of the matrices (three of each block, the other three of the next) and two
of the eleven fractions; right after some of its candidates the references measure the same candidate, so that both
see the same machine. The whole sweep of 8 × 6 × 11 candidates is extrapolated from what the evaluator pays once per
matrix and what per candidate; a reference pays the same for every candidate, so its sweep is a mean over a seeded
sample. Activations entering a block are counted once per three matrices, not six: against the evaluator.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import reference
import torch
from random_model import Size, as_task, gptj, prompts

from secateur.core.plan import Plan, Truncate
from secateur.evaluation.evaluator import Evaluator
from secateur.gains.memory import resident

FRACTIONS = (
    0.9,
    0.8,
    0.6,
    0.4,
    0.2,
    0.1,
    0.05,
    0.02,
    0.01,
    0.005,
    0.0,
)  # eleven, as many as the target names
MEASURED = (0.4, 0.05)  # the first that is run also pays what is paid once
HALVES = (("q", "o", "up"), ("k", "v", "down"))  # of the matrices: even blocks, odd blocks
REFERENCES = {  # how many candidates each is measured on
    "one at a time, full logits": (reference.one_at_a_time, 5),
    "batched, full logits": (reference.batched, 8),
    "batched, last position": (reference.last_position, 12),
}
TARGETS = {"one at a time, full logits": 10.0, "batched, full logits": 4.5, "batched, last position": 2.2}
MEMORY_TARGET = 1.3


@dataclass
class Clock:
    """Wall and processor time of the last step. Processor time is fair where other processes share the cores."""

    at: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        self.at = (time.perf_counter(), time.process_time())

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.at[0], time.process_time() - self.at[1]


@dataclass
class Samples:
    """(wall, processor) seconds of every measured candidate, by who measured it."""

    ours: dict[Plan, tuple[float, float]] = field(default_factory=dict)
    theirs: dict[str, dict[Plan, tuple[float, float]]] = field(default_factory=dict)
    losses: dict[str, dict[Plan, np.ndarray]] = field(default_factory=dict)


def run(size: Size, *, seed: int = 0, scale: float = 1.0) -> dict[str, Any]:
    """The speed figures as JSON. `scale` shortens the samples of the references."""
    torch.set_num_threads(1)
    loaded, asked = gptj(size, seed), prompts(size, seed)
    task, encoded = as_task(asked)
    plans = [
        p
        for p in _plans(loaded, size, MEASURED)
        if p.edits[0].matrix.part in HALVES[p.lowest_block.block % 2]
    ]
    samples = Samples({}, {name: {} for name in REFERENCES}, {name: {} for name in REFERENCES})
    chosen = _sampled(plans, random.Random(seed), scale)
    waiting, clock = sorted(plans, key=_order), Clock()

    def after_each(stage: str, done: int, total: int) -> None:
        plan = waiting.pop(0)
        samples.ours[plan] = clock.read()
        for name, (loop, _) in REFERENCES.items():
            if plan in chosen[name]:
                clock.start()
                samples.losses[name][plan] = loop(loaded.model, *_edit(loaded, plan), asked).double().numpy()
                samples.theirs[name][plan] = clock.read()
        clock.start()

    judge = Evaluator(loaded, task, encoded, progress=after_each)
    clock.start()
    found = judge(plans, range(size.prompts))
    return _summary(size, samples, found) | {"spent": _profile(judge, plans, size)}


def _plans(loaded: Any, size: Size, fractions: tuple[float, ...]) -> list[Plan]:
    empty = Plan(loaded.fingerprint)
    ranks = [int(fraction * size.d_model) for fraction in fractions]  # every matrix has d_model on one side
    return [empty + Truncate(site, rank) for site in sorted(loaded.anatomy.matrices) for rank in ranks]


def _order(plan: Plan) -> Any:
    """The evaluator's own order, in which its progress is reported."""
    return plan.lowest_block, plan.edits


def _edit(loaded: Any, plan: Plan) -> tuple[str, int]:
    return loaded.anatomy.matrix(plan.edits[0].matrix).weight, plan.edits[0].rank


def _sampled(plans: list[Plan], rng: random.Random, scale: float) -> dict[str, set[Plan]]:
    return {
        name: set(rng.sample(plans, max(2, round(scale * count)))) for name, (_, count) in REFERENCES.items()
    }


def _summary(size: Size, samples: Samples, found: dict[Plan, np.ndarray]) -> dict[str, Any]:
    num_candidates = size.layers * 6 * len(FRACTIONS)
    once, each = _once_and_each(samples.ours)
    ours = [size.layers * 6 * (o + len(FRACTIONS) * e) for o, e in zip(once, each, strict=True)]
    rows = {}
    for name, times in samples.theirs.items():
        theirs = [num_candidates * statistics.mean(t[k] for t in times.values()) for k in (0, 1)]
        gap = max(
            float(np.abs(found[p]["loss"] - losses).max()) for p, losses in samples.losses[name].items()
        )
        rows[name] = {
            "candidates_measured": len(times),
            "seconds_per_candidate": theirs[1] / num_candidates,
            "sweep_seconds": theirs[1],
            "ratio": theirs[1] / ours[1],
            "ratio_wall": theirs[0] / ours[0],
            "target": TARGETS[name],
            "largest_loss_difference": gap,
        }
    return {
        "candidates": num_candidates,
        "evaluator": {
            "candidates_measured": len(samples.ours),
            "seconds_once_per_matrix": once[1],
            "seconds_per_candidate": each[1],
            "sweep_seconds": ours[1],
            "by_block": _by_block(samples.ours),
        },
        "references": rows,
    }


def _once_and_each(ours: dict[Plan, tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Mean over matrices of what only the first candidate pays, and of what every one pays; wall, processor.

    The first candidate of a matrix pays its decomposition, of a block the activations that enter it, and runs the
    parts of the block that later ones find kept.
    """
    by_matrix: dict[Any, list[tuple[float, float]]] = {}
    for plan, seconds in ours.items():
        by_matrix.setdefault(plan.edits[0].matrix, []).append(seconds)
    later = {
        site: [statistics.median(t[k] for t in times[1:]) for k in (0, 1)]
        for site, times in by_matrix.items()
    }
    each = [statistics.mean(values[k] for values in later.values()) for k in (0, 1)]
    once = [statistics.mean(by_matrix[s][0][k] - later[s][k] for s in by_matrix) for k in (0, 1)]
    return once, each


def _by_block(ours: dict[Plan, tuple[float, float]]) -> dict[str, float]:
    """Median processor seconds of a candidate that finds everything kept, by block."""
    times: dict[str, list[float]] = {}
    seen = set()
    for plan, seconds in ours.items():
        site = plan.edits[0].matrix
        if site in seen:
            times.setdefault(f"b{site.block}", []).append(seconds[1])
        seen.add(site)
    return {block: statistics.median(found) for block, found in times.items()}


def _profile(judge: Evaluator, plans: list[Plan], size: Size) -> dict[str, float]:
    """Share of processor time by operator over six candidates spread over the blocks."""
    judge.progress = lambda *_: None
    chosen = sorted(plans, key=_order)[:: len(plans) // 6]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        judge(chosen, range(size.prompts))
    spent = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(spent.values())
    top = sorted(spent.items(), key=lambda item: -item[1])[:8]
    return {name.removeprefix("aten::"): round(value / total, 4) for name, value in top}


# Memory, in a process of its own


def memory(size: Size) -> dict[str, Any]:
    """Peak growth of the resident set over part of a sweep, against one copy of the model plus the activations kept.

    Twice: as it is, and with an allocator that gives memory back when it is freed, which is what the code itself holds
    (glibc keeps freed blocks below 32 MiB for later).
    """
    command = [sys.executable, __file__, "--memory", str(size.layers), str(size.d_model)]
    found = []
    for changed in ({}, {"MALLOC_MMAP_THRESHOLD_": str(2**20)}):
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | changed)
        found.append(json.loads(done.stdout))
    return found[0] | {"ratio_freed_at_once": found[1]["ratio"]}


def _measure_memory(size: Size) -> dict[str, float]:
    torch.set_num_threads(1)
    _warm_up()
    before = resident("VmRSS")
    loaded = gptj(size)
    gc.collect()
    with_model = resident("VmRSS")
    task, encoded = as_task(prompts(size))
    judge = Evaluator(loaded, task, encoded)
    judge(_plans(loaded, size, MEASURED)[-48:], range(size.prompts))  # the upper half: boundaries and insides
    peak = resident("VmHWM")
    model = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    return {
        "model_bytes": model,
        "kept_bytes": judge.most_kept,
        "growth_by_loading": with_model - before,
        "peak_growth": peak - before,
        "ratio": (peak - before) / (model + judge.most_kept),
        "target": MEMORY_TARGET,
    }


def _warm_up() -> None:
    """Everything that is imported or allocated once, before the first measurement."""
    small = Size(layers=1, d_model=64, vocabulary=100, prompts=4)
    loaded = gptj(small)
    task, encoded = as_task(prompts(small))
    Evaluator(loaded, task, encoded)(_plans(loaded, small, MEASURED), range(4))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", nargs=2, type=int)
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    if args.memory:
        print(json.dumps(_measure_memory(Size(args.memory[0], args.memory[1]))))
    else:
        print(json.dumps(run(Size(), scale=args.scale) | {"memory": memory(Size())}, indent=2))
