"""Speed of the effects of singular directions against a plain loop over them, turn by turn; and memory against the
number of examples.

Both get one batch's inputs and gradients and the decomposition, and give the effect of every direction. The target is
against the formula as it is written, direction by direction; beside it stand the leanest loop there is and one that
makes each σ u vᵀ a matrix.

    python benchmarks/directions.py       about three minutes
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cut_speed
import numpy as np
import torch
from torch import Tensor
from turns import paired

from secateur.evaluation.batching import Packing
from secateur.gains.memory import RESET, RETURNS_AT_ONCE, resident
from secateur.linalg.directions import Directions, directions
from secateur.methods.directions.effects import directions_effects
from secateur.tasks.encode import Encoded

D_MODEL, D_FF, HEADS = 768, 3072, 12
ROWS, LENGTH = 5, 20
MATRICES = {  # (out, in), the side on which heads lie, the target
    "up": ((D_FF, D_MODEL), None, 70),
    "o": ((D_MODEL, D_MODEL), None, 70),
    "down": ((D_MODEL, D_FF), None, 20),
    "k, per head": ((D_MODEL, D_MODEL), "out", 10),
    "o, per head": ((D_MODEL, D_MODEL), "in", 10),
}
Effect = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
FEW, MANY = 64, 1024  # examples
ALLOWED = 1.05  # times the memory with few


def read(parts: Directions, x: Tensor, g: Tensor) -> np.ndarray:
    """x and g are (inputs, rows, t, in) and (outputs, rows, t, out), with a dimension of heads on one of the two."""
    a, _ = parts.along(x - x.mean(dim=(1, 2), keepdim=True), g)
    return (-a.sum(1) / ROWS).flatten().numpy()


def by_formula(change: Tensor, g: Tensor, u: Tensor, row: Tensor) -> Tensor:
    """Σ ⟨g, u (row · Δx)⟩ as it is written."""
    return torch.einsum("bto,bto->", g, torch.einsum("btd,d->bt", change, row)[..., None] * u)


def lean(change: Tensor, g: Tensor, u: Tensor, row: Tensor) -> Tensor:
    """With as little overhead as there can be."""
    return (g.flatten(0, 1) * torch.outer(change.flatten(0, 1) @ row, u)).sum()


def as_matrix(change: Tensor, g: Tensor, u: Tensor, row: Tensor) -> Tensor:
    """What removing the direction from the weight would do: σ u vᵀ as a matrix."""
    return (g * (change @ torch.outer(u, row).T)).sum()


LOOPS = {"formula": (by_formula, 9), "lean": (lean, 5), "matrix": (as_matrix, 1)}  # with its turns


def loop(effect: Effect, parts: Directions, x: Tensor, g: Tensor) -> np.ndarray:
    """Head after head, direction after direction."""
    found = []
    for head in range(len(parts.sigma)):
        inputs, gradient = (v[head if len(v) > 1 else 0] for v in (x, g))
        change = inputs.mean(dim=(0, 1)) - inputs
        for u, row in zip(parts.u[head].T, parts.rows[head], strict=True):
            found.append(float(effect(change, gradient, u, row)) / ROWS)
    return np.array(found)


def batch(shape: tuple[int, int], side: str | None) -> tuple[Directions, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    weight, x, g = (
        torch.randn(size, generator=draw)
        for size in (shape, (ROWS, LENGTH, shape[1]), (ROWS, LENGTH, shape[0]))
    )

    def heads(values: Tensor) -> Tensor:
        return values.unflatten(-1, (HEADS, -1)).movedim(-2, 0)

    if side is None:
        return directions(weight[None]), x[None], g[None]
    if side == "out":
        return directions(weight.unflatten(0, (HEADS, -1))), x[None], heads(g)
    return directions(heads(weight).contiguous()), heads(x), g[None]


def speed(name: str) -> dict[str, Any]:
    shape, side, target = MATRICES[name]
    given = batch(shape, side)
    found = {
        name: paired(lambda: read(*given), lambda effect=effect: loop(effect, *given), turns=turns, times=20)
        for name, (effect, turns) in LOOPS.items()
    }
    assert all(one["largest_difference"] < 1e-4 for one in found.values()), "they do not compute the same"
    return found | {"target": target}


# ---------------------------------------------------------------------------------------------------------- memory


def extra_bytes(count: int) -> int:
    """How far resident memory rises above what this process holds after reading eight examples."""
    torch.set_num_threads(1)
    loaded = cut_speed.dense("OPT", cut_speed.Size(layers=4, d_model=256, heads=4, vocabulary=2000))
    tokens = np.random.default_rng(0).integers(4, 2000, (count, LENGTH)).tolist()
    encoded = {e: Encoded(((tuple(row[:-1]), tuple(row[-1:])),), 0, (1,)) for e, row in enumerate(tokens)}

    def probe(examples: range) -> None:
        packing = Packing(max_tokens=320, max_kept=320, pad=0)
        directions_effects(
            loaded, encoded, examples, loaded.anatomy.matrices, packing=packing, second_order=True
        )

    probe(range(8))
    resting = resident("VmRSS")
    RESET.write_text("5")  # the mark of most resident memory: man 5 proc
    probe(range(count))
    return resident("VmHWM") - resting


def memory() -> dict[str, Any]:
    def peak(count: int) -> int:
        command = [sys.executable, "-W", "ignore", __file__, "--memory", str(count)]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | RETURNS_AT_ONCE
        )
        return int(done.stdout.splitlines()[-1])

    few, many = peak(FEW), peak(MANY)
    return {"few": few, "many": many, "ratio": many / few}


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    return {"speed": {name: speed(name) for name in MATRICES}, "memory": memory()}


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """What, measured, target, met: as `run.py` has them."""
    for name, one in found["speed"].items():
        formula, others = one["formula"], [f"{one[way]['ratio']:.0f}×" for way in ("lean", "matrix")]
        low, high = formula["ratio_iqr"]
        measured = f"{formula['ratio']:.0f}× [{low:.0f}, {high:.0f}] of {1000 * formula['seconds']:.2f} ms"
        met = "yes" if formula["ratio"] >= one["target"] else "NO"
        yield (
            f"effects of all directions against a loop over them: {name}",
            f"{measured}; leanest loop {others[0]}, σuvᵀ as a matrix {others[1]}",
            f"≥ {one['target']}×",
            met,
        )
    one = found["memory"]
    measured = f"{one['ratio']:.2f}× ({one['few'] / 1e6:.0f} and {one['many'] / 1e6:.0f} MB)"
    met = "yes" if one["ratio"] <= ALLOWED else "NO"
    yield f"extra memory, {MANY:,} examples against {FEW}", measured, f"≤ {ALLOWED}×", met


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
