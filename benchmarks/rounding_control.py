"""Is a gain undone quantization noise? Measure a cut again after fresh 4-bit rounding of the neighbors of what it cuts.

The weights of SmolLM2-135M (`make llm`) were stored as Q4_1: 32 weights of a row share a scale and an offset. A cut
that only undoes the errors of this rounding gains nothing once they are others. So all other matrices of the blocks
that are cut are rounded again, in groups that begin some columns later, and the plan is measured in that model. A gain
that stays does not hang on one set of errors of the neighbors; of those of the cut matrix itself this says nothing.

    python benchmarks/rounding_control.py PLAN --task TASK [--model MODEL] [--limit N]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

import secateur
from secateur.api import read_edits
from secateur.core.plan import Plan
from secateur.hf.load import Loaded

SHIFTS = (8, 16, 24)


def rounded(weight: torch.Tensor, shift: int) -> torch.Tensor:
    """Return a matrix (out, in) rounded to Q4_1, in groups of 32 columns of which the first begins at `shift`."""
    turned = np.roll(weight.detach().float().numpy(), -shift, axis=1)
    stored = quantize(np.ascontiguousarray(turned), GGMLQuantizationType.Q4_1)
    read = dequantize(stored, GGMLQuantizationType.Q4_1)
    return torch.from_numpy(np.roll(read, shift, axis=1)).to(weight.dtype)


def with_fresh_neighbors(model: str | Path, plan: Plan, shift: int) -> Loaded:
    """Return the model, its blocks that `plan` cuts rounded again, the cut matrices themselves excepted."""
    loaded = secateur.load(model)
    cut = {edit.site for edit in plan.edits}
    blocks = {site.block for site in cut}
    for site, matrix in loaded.anatomy.matrices.items():
        if site.block in blocks and site not in cut:
            stored = loaded.parameter(matrix.weight)
            with torch.no_grad():
                matrix.write_(stored, rounded(matrix.read(stored), shift))
    return loaded


def main() -> None:
    """Print, for the weights as stored and for each shift, the metric before and after the cut."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", help="a checkpoint folder, plan.json, or edits such as b17.o=57")
    parser.add_argument("--task", required=True)
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "models" / "smollm2-135m"))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--test-task")
    asked = parser.parse_args()
    for found in controls(asked.plan, asked.task, asked.model, limit=asked.limit, test_task=asked.test_task):
        print(json.dumps(found))


def controls(edits: str, task: str, model: str | Path, **options: Any) -> list[dict[str, Any]]:
    """Return what a plan does on `test`: in the model as stored (shift 0), and rounded again by each of `SHIFTS`."""
    given = read_edits(Path(edits) if Path(edits).exists() else edits.split())
    plan = given if isinstance(given, Plan) else Plan(secateur.load(model).fingerprint, given)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for shift in (0, *SHIFTS):
            loaded = with_fresh_neighbors(model, plan, shift) if shift else secateur.load(model)
            where = {"tokenizer": loaded.tokenizer, "ledger": Path(folder) / f"{shift}.sqlite"}
            # The model itself, not what `load` returned, whose fingerprint is that of the weights as stored.
            found = secateur.transfer(plan, loaded.model, task=task, **where, **options)
            rows.append(
                {"shift": shift} | {key: found[key] for key in ("before", "after", "difference", "p_value")}
            )
    return rows


if __name__ == "__main__":
    main()
