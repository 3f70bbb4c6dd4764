"""A race whose spectra have no room in memory: decomposed again in every rung, read from a folder (`--spectra`), and
kept in memory as a bound. Turn by turn, wall time, since reading is not processor time alone (files are in the page
cache here); same outcomes to the bit.

Rungs of 32, 32 and 64 prompts as a race takes them; nobody drops, which is the same for all ways.

    python benchmarks/run.py --only spectra       about five minutes
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from random_model import Size, as_task, gptj, prompts

from secateur.core.plan import Plan, Truncate
from secateur.core.site import Site
from secateur.evaluation.evaluator import Evaluator
from secateur.surgery.spectra import spectra_of

TURNS = 3
SIZE = Size(layers=2, d_model=1024, vocabulary=8_000, prompts=128)
RUNGS = ((0, 32), (32, 64), (64, 128))
RANKS = (10, 102, 512)
ROOM = 2**25  # bytes: of one of the wide matrices, and no more
MOST = 1.1  # times what it takes with room for all in memory, which also decomposes each once


def run() -> dict[str, Any]:
    loaded = gptj(SIZE)
    sites = [Site(block, kind) for block in range(SIZE.layers) for kind in ("q", "o", "up", "down")]
    plans = [Plan(loaded.fingerprint, (Truncate(site, rank),)) for site in sites for rank in RANKS]
    task, encoded = as_task(prompts(SIZE))

    def race(room: int, folder: str | None) -> tuple[float, list[bytes]]:
        judge = Evaluator(loaded, task, encoded, spectra=spectra_of(room, folder))
        started, found = time.perf_counter(), []
        for first, last in RUNGS:
            outcomes = judge(plans, range(first, last))
            found += [outcomes[plan].tobytes() for plan in plans]
        return time.perf_counter() - started, found

    turns = []
    for _ in range(TURNS):
        with tempfile.TemporaryDirectory() as folder:
            ways = {
                "anew": race(ROOM, None),
                "empty folder": race(ROOM, folder),
                "full folder": race(ROOM, folder),
                "memory": race(2**40, None),
            }
        [_] = {tuple(found) for _, found in ways.values()}
        turns.append({name: seconds for name, (seconds, _) in ways.items()})
    median = {name: float(np.median([turn[name] for turn in turns])) for name in turns[0]}
    ratios = {
        name: float(np.median([turn["anew"] / turn[name] for turn in turns]))
        for name in ("empty folder", "full folder", "memory")
    }
    return {"plans": len(plans), "matrices": len(sites), "seconds": median, "ratios": ratios, "turns": turns}


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    seconds, turns = found["seconds"], found["turns"]
    what = f"a race of {found['plans']} plans of {found['matrices']} matrices, spectra without room"
    for name in ("empty folder", "full folder"):
        gained = found["ratios"][name]
        measured = f"{gained:.1f}× ({seconds[name]:.1f} s; decomposed in every rung {seconds['anew']:.1f} s)"
        yield f"{what}: --spectra, {name}", measured, "", ""
    bound = float(np.median([turn["empty folder"] / turn["memory"] for turn in turns]))
    measured = f"{bound:.2f}× of the time with all in memory ({seconds['memory']:.1f} s)"
    yield f"{what}: … empty folder", measured, f"≤ {MOST:g}×", "yes" if bound <= MOST else "NO"


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
