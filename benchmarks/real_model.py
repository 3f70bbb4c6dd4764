"""The price of searches on a real language model, in F: forward passes of the whole model over the selection split.

F is the processor time in which the run itself measured the unchanged model on `select`; what other programs do does
not count. The model is SmolLM2-135M-Instruct, dequantized from Q4_1 (`make llm`); the tasks are in ../shared/data.
    python benchmarks/real_model.py [JOB ...]    writes real-model-DATE.json beside this file
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from secateur import pipeline, prune

HERE = Path(__file__).parent
MODEL = HERE.parent / "models" / "smollm2-135m"
SHARED = Path(__file__).parents[2] / "shared" / "data"
FACTS = str(SHARED / "counterfact.jsonl")
PROSE = f"text:{SHARED / 'text_tinystories_train.jsonl'}"
CHUNKS = {"seqlen": 64, "limit": 570}


@dataclass(frozen=True)
class Job:
    """One search of `prune`, for which `most` F are allowed."""

    name: str
    task: str
    most: float
    options: dict[str, Any] = field(default_factory=dict)


JOBS = (
    Job("laser", FACTS, 100, {"method": "laser", "limit": 1000}),
    Job(
        "depth by cosine",
        PROSE,
        8,
        {"method": "depth", "by": "cosine", "form": "drop", "blocks": 3, **CHUNKS},
    ),
    Job("depth by cosine, folded", PROSE, 8, {"method": "depth", "by": "cosine", "blocks": 3, **CHUNKS}),
    Job("depth by loss", PROSE, 60, {"method": "depth", "by": "loss", "form": "drop", "blocks": 3, **CHUNKS}),
    Job("depth by loss, folded", PROSE, 60, {"method": "depth", "by": "loss", "blocks": 3, **CHUNKS}),
    Job("heads", FACTS, 60, {"method": "heads", "target": 0.7, "limit": 1000}),
    Job(
        "directions",
        FACTS,
        150,
        {"method": "directions", "layers": (10, 20), "matrices": ("k", "v"), "limit": 1000},
    ),
)


class Searched(Exception):
    """The search of a job has ended; the verdict is left out."""


def measured(job: Job, folder: Path) -> dict[str, Any]:
    """Run the search of a job; return the seconds of F and of each stage, in processor time of one thread."""
    passes: list[float] = []
    stages: dict[str, float] = {}
    plans: list[str] = []
    whole = pipeline.measured_baseline

    def baseline(session: Any) -> Any:
        began = time.process_time()
        found = whole(session)
        passes.append(time.process_time() - began)
        return found

    def stop(session: Any, proposal: Any, start: Any, staging: Path) -> None:
        stages.update(session.seconds)
        plans.append(str(proposal.plan))
        raise Searched

    with (
        mock.patch.object(time, "perf_counter", time.process_time),
        mock.patch.object(pipeline, "measured_baseline", baseline),
        mock.patch.object(pipeline, "cut_and_verify", stop),
        suppress(Searched),
    ):
        prune(MODEL, job.task, folder / job.name.replace(" ", "-"), **job.options)
    return {
        "job": job.name,
        "most": job.most,
        "F_seconds": passes[0],
        "stages_F": {stage: seconds / passes[0] for stage, seconds in stages.items() if seconds},
        "search_F": sum(stages.values()) / passes[0],
        "plan": plans[0],
    }


def run(names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Return the figures of all jobs, or of those named."""
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for job in JOBS:
            if not names or job.name in names:
                found.append(measured(job, Path(folder)))
                print(json.dumps(found[-1]), flush=True)
    return found


if __name__ == "__main__":
    results = run(tuple(sys.argv[1:]))
    if not sys.argv[1:]:
        path = HERE / f"real-model-{date.today()}.json"
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
