"""Speed of linearity scores from streamed moments against the SVD of all embeddings in float64, turn by turn; and
memory against the number of tokens.

Both get the same float32 hidden states, batch by batch, and give the scores of all transitions with the residual; ours
has those without in the same moments. The reference is the authors' (LLM-Microscope, `procrustes_similarity`): gather
all, center, decompose, project. Its cost is the same for every transition, so fewer of them give the same ratio.

    python benchmarks/linearity.py       about half an hour and 4 GB; TRANSITIONS=2 for five minutes
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor
from turns import paired

from secateur.gains.memory import RESET, RETURNS_AT_ONCE, resident
from secateur.linalg.least_squares import PairMoments

D, BATCH, TOKENS = 768, 2000, 50_000
TRANSITIONS = int(os.environ.get("TRANSITIONS", 12))
TURNS = 3
TARGET = 2.5
FEW, MANY = 4_000, 16_000  # tokens, for memory
ALLOWED = 1.05  # times the memory with few


def states(tokens: int, seed: int = 0) -> Iterator[list[Tensor]]:
    """Batches of what enters the first block and leaves each: half a linear map of it, half a nonlinear one."""
    draw = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, D, D, generator=draw) / D**0.5 for _ in range(TRANSITIONS)]
    for _ in range(0, tokens, BATCH):
        found = [torch.randn(BATCH, D, generator=draw)]
        for linear, other in maps:
            x = found[-1]
            found.append(x + 0.3 * (x @ linear) + 0.3 * torch.nn.functional.gelu(x @ other))
        yield found


def ours(batches: Iterator[list[Tensor]]) -> np.ndarray:
    """As the probe does, of all tokens: with what was added as Y, both scores come from the same moments."""
    moments = [PairMoments() for _ in range(TRANSITIONS)]
    for batch in batches:
        for one, x, y in zip(moments, batch, batch[1:], strict=False):
            wide = x.double()
            one.add(wide, y.double() - wide)
    found = []
    for one in moments:
        leaving = one.spread_x + 2 * float(one.centered_xy.trace()) + one.spread_y
        found.append(1 - one.error(one.fit()) / leaving)
    return np.array(found)


def theirs(batches: Iterator[list[Tensor]]) -> np.ndarray:
    """All states are kept until the last has come."""
    gathered = [torch.cat(layer) for layer in zip(*batches, strict=True)]
    return np.array([by_svd(x, y) for x, y in pairwise(gathered)])


def by_svd(x: Tensor, y: Tensor) -> float:
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    x, y = x / x.norm(), y / y.norm()
    left, _, _ = torch.linalg.svd(x, full_matrices=False)
    return 1 - float((left @ (left.T @ y) - y).square().sum())


def speed() -> dict[str, Any]:
    torch.set_num_threads(1)
    kept = list(states(TOKENS))
    found = paired(lambda: ours(iter(kept)), lambda: theirs(iter(kept)), turns=TURNS)
    assert found["largest_difference"] < 1e-9, "they do not compute the same"
    return found | {"tokens": TOKENS, "transitions": TRANSITIONS, "d_model": D}


# ---------------------------------------------------------------------------------------------------------- memory


def extra_bytes(tokens: int) -> int:
    """How far resident memory rises above what this process holds after two batches."""
    torch.set_num_threads(1)
    ours(states(2 * BATCH))
    resting = resident("VmRSS")
    RESET.write_text("5")  # the mark of most resident memory: man 5 proc
    ours(states(tokens))
    return resident("VmHWM") - resting


def memory() -> dict[str, Any]:
    def peak(tokens: int) -> int:
        command = [sys.executable, "-W", "ignore", __file__, "--memory", str(tokens)]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | RETURNS_AT_ONCE
        )
        return int(done.stdout.splitlines()[-1])

    few, many = peak(FEW), peak(MANY)
    return {"few": few, "many": many, "ratio": many / few}


def run() -> dict[str, Any]:
    return {"speed": speed(), "memory": memory()}


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """What, measured, target, met: as `run.py` has them."""
    one = found["speed"]
    low, high = one["ratio_iqr"]
    measured = f"{one['ratio']:.2f}× [{low:.2f}, {high:.2f}] of {one['seconds']:.1f} s"
    what = f"linearity of {one['transitions']} transitions, d_model {one['d_model']}, {one['tokens']:,} tokens, float64"
    yield f"{what}, against the SVD", measured, f"≥ {TARGET}×", "yes" if one["ratio"] >= TARGET else "NO"
    one = found["memory"]
    measured = f"{one['ratio']:.2f}× ({one['few'] / 1e6:.0f} and {one['many'] / 1e6:.0f} MB)"
    met = "yes" if one["ratio"] <= ALLOWED else "NO"
    yield f"… extra memory, {MANY:,} tokens against {FEW:,}", measured, f"≤ {ALLOWED}×", met


def main() -> None:
    if sys.argv[1:2] == ["--memory"]:
        print(extra_bytes(int(sys.argv[2])))
        return
    found = run()
    print(
        json.dumps(found, indent=2)
        if "--json" in sys.argv
        else "\n".join(" | ".join(row) for row in rows(found))
    )


if __name__ == "__main__":
    main()
