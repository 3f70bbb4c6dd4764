"""The sums and products of eigenpruning (Vergara-Browne et al. 2024, arXiv 2404.03147): INT-SUM and INT-MULT.

Differs: their INT-MULT has i x j in training and j x i in the test; here an unordered pair is one group, so
both stay in one split. Standard library only.
"""

from __future__ import annotations

from secateur.tasks.example import Example
from secateur.tasks.splits import Source

DESCRIPTIONS = {
    "int-sum": "`3 + 45 =` for all numbers below 100 (eigenpruning's INT-SUM).",
    "int-mult": "`3 x 15 =` for all numbers below 20 (eigenpruning's INT-MULT).",
}


def int_sum() -> Source:
    """10,000 sums in 5,050 groups."""
    pairs = [(i, j) for i in range(100) for j in range(100)]
    return Source(
        "int-sum", "generation", tuple(_example("int-sum", i, j, f"{i} + {j} =", i + j) for i, j in pairs)
    )


def int_mult() -> Source:
    """400 products in only 210 groups: a quarter of them, not a fifth, is needed to choose by."""
    pairs = [(i, j) for i in range(20) for j in range(20)]
    examples = tuple(_example("int-mult", i, j, f"{i} x {j} =", i * j) for i, j in pairs)
    return Source("int-mult", "generation", examples, shares=(0.1, 0.25, 0.65))


def _example(name: str, i: int, j: int, prompt: str, result: int) -> Example:
    low, high = sorted((i, j))
    return Example(
        f"{name}-{i}-{j}", prompt, f" {result}", group=f"{name} {low},{high}", meta={"i": i, "j": j}
    )
