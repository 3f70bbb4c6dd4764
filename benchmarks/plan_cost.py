"""Predicted against measured: `plan_cost` of a command, then that command, stage by stage.

Commands whose number of evaluations is decided before they start, so that what is compared is the cost model and not
the luck of a race. CPU seconds of one thread, predicted and measured alike: what other programs do does not count.
    python benchmarks/plan_cost.py [CASE ...]    writes plan-cost-DATE.json beside this file
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from secateur import plan_cost, prune

HERE = Path(__file__).parent
SHARED = Path(__file__).parents[2] / "shared" / "data"
STORIES = str(SHARED / "models" / "stories260K")
TEXT = f"text:{SHARED / 'text_tinystories_train.jsonl'}"
WITHIN = 0.25
RANDOM = "random Llama of 20M"
Row = tuple[str, str, str, str]


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    task: str
    options: dict[str, Any] = field(default_factory=dict)


EVERY = {"exhaustive": True, "compose": False}
CASES = (
    Case("facts: laser, exhaustive", "builtin:facts", "builtin:facts", EVERY),
    Case("facts: heads", "builtin:facts", "builtin:facts", {"method": "heads"}),
    Case("facts: ffns", "builtin:facts", "builtin:facts", {"method": "ffns"}),
    Case("facts: depth by loss", "builtin:facts", "builtin:facts", {"method": "depth", "blocks": 1}),
    Case(
        "facts: directions, removal",
        "builtin:facts",
        "builtin:facts",
        {"method": "directions", "max_loss": 0.02},
    ),
    Case("recall: heads", "builtin:recall", "builtin:recall", {"method": "heads"}),
    Case("arith: laser, exhaustive", "builtin:arith", "builtin:int-sum", EVERY),
    Case(
        "stories: laser, exhaustive", STORIES, TEXT, EVERY | {"limit": 400, "seqlen": 64, "allow_small": True}
    ),
    Case(
        "stories: heads", STORIES, TEXT, {"method": "heads", "limit": 400, "seqlen": 64, "allow_small": True}
    ),
    Case(
        "stories: depth by loss",
        STORIES,
        TEXT,
        {"method": "depth", "blocks": 2, "limit": 400, "seqlen": 64, "allow_small": True},
    ),
    Case(
        f"{RANDOM}: laser, exhaustive",
        RANDOM,
        TEXT,
        EVERY
        | {
            "limit": 300,
            "allow_small": True,
            "seqlen": 32,
            "layers": (3, 6),
            "fractions": (0.8, 0.1),
            "small_ranks": (1,),
        },
    ),
)


def random_llama(folder: Path) -> None:
    """20M parameters in the tokens of stories260K."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=512, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(STORIES).save_pretrained(folder)


def run(names: tuple[str, ...] = ()) -> dict[str, Any]:
    torch.set_num_threads(1)
    found = []
    clock = mock.patch.object(time, "perf_counter", time.process_time)
    with tempfile.TemporaryDirectory() as folder, clock:
        for case in CASES:
            if names and not any(name in case.name for name in names):
                continue
            if case.model.startswith("builtin:") or Path(STORIES).exists():
                found.append(measured(case, Path(folder)))
                print(told(found[-1]), flush=True)
            else:
                found.append({"case": case.name, "left_out": "needs ../shared/data"})
    return {"within": WITHIN, "cases": found}


def measured(case: Case, folder: Path) -> dict[str, Any]:
    model = case.model
    if model == RANDOM:
        model = str(folder / "random")
        if not Path(model).exists():
            random_llama(Path(model))
    started = time.monotonic()
    predicted = plan_cost(model, case.task, **case.options)
    calibration = time.monotonic() - started
    out = folder / case.name.replace(" ", "-").replace(":", "")
    result = prune(model, case.task, out, **case.options)
    seconds = result.verdict["seconds"]
    stages = {row["stage"]: row["counts"]["expected"] for row in predicted["stages"]}
    told = {name: own.get("seconds", 0.0) for name, own in stages.items()}
    told["verify"] += told.pop("sides", 0.0)
    return {
        "case": case.name,
        "calibration_wall_seconds": calibration,
        "predicted": {name: told.get(name, 0.0) for name in seconds},
        "measured": seconds,
        "evaluations_predicted": sum(
            own.get("evaluations", 0) for name, own in stages.items() if name not in ("verify", "sides")
        ),
        "evaluations_measured": result.verdict["evaluations"],
    }


def ratio(case: dict[str, Any]) -> float:
    """Predicted over measured, of everything after loading."""
    return sum(case["predicted"].values()) / sum(case["measured"].values())


def told(case: dict[str, Any]) -> str:
    each = "; ".join(
        f"{n} {case['predicted'][n]:.2f} of {s:.2f}" for n, s in case["measured"].items() if s > 0.05
    )
    return f"{case['case']}: {ratio(case):.2f}× ({each})"


def rows(found: dict[str, Any]) -> Iterator[Row]:
    """For the table of all benchmarks."""
    for case in found["cases"]:
        name = f"plan-cost, {case['case']}"
        if "left_out" in case:
            yield name, "left out: " + case["left_out"], "", "–"
            continue
        near = abs(ratio(case) - 1) <= found["within"]
        each = ", ".join(
            f"{n} {case['predicted'][n]:.1f} of {s:.1f} s" for n, s in case["measured"].items() if s > 0.05
        )
        yield (
            name,
            f"{ratio(case):.2f} of what it took ({each})",
            f"within {found['within']:.0%}",
            "yes" if near else "NO",
        )


if __name__ == "__main__":
    results = run(tuple(sys.argv[1:]))
    if not sys.argv[1:]:
        path = HERE / f"plan-cost-{date.today()}.json"
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
