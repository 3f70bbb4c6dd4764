"""The sums and products of eigenpruning (Vergara-Browne et al. 2024, arXiv 2404.03147): INT-SUM and INT-MULT.

Differs: their INT-MULT has i x j in training and j x i in the test; here an unordered pair is one group, so
both stay in one split. Also the training text of the embedded model `builtin:arith`: solved problems, in which half
of the answers to products are only their last digit, another task's answer. Standard library only, drawn with
`random.Random`. Knows no model and no tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from secateur.tasks.example import Example
from secateur.tasks.splits import ExampleSource

DESCRIPTIONS = {
    "int-sum": "`3 + 45 =` for all numbers below 100 (eigenpruning's INT-SUM).",
    "int-mult": "`3 x 15 =` for all numbers below 20 (eigenpruning's INT-MULT).",
}

NOISE = 0.5  # share of the products in the text that are answered otherwise
SUMS = 0.3  # share of the problems that are sums, all of them right
BELOW = {"+": 100, "x": 20}  # the numbers that are added, and those that are multiplied
PROBLEMS = 8  # in one text


def int_sum() -> ExampleSource:
    """Return 10,000 sums in 5,050 groups."""
    pairs = [(i, j) for i in range(BELOW["+"]) for j in range(BELOW["+"])]
    return ExampleSource(
        "int-sum", "generation", tuple(_example("int-sum", i, j, f"{i} + {j} =", i + j) for i, j in pairs)
    )


def int_mult() -> ExampleSource:
    """Return 400 products in 210 groups."""
    pairs = [(i, j) for i in range(BELOW["x"]) for j in range(BELOW["x"])]
    examples = tuple(_example("int-mult", i, j, f"{i} x {j} =", i * j) for i, j in pairs)
    return ExampleSource("int-mult", "generation", examples)


def _example(name: str, i: int, j: int, prompt: str, result: int) -> Example:
    low, high = sorted((i, j))
    return Example(
        f"{name}-{i}-{j}", prompt, f" {result}", group=f"{name} {low},{high}", meta={"i": i, "j": j}
    )


# ----------------------------------------------------------------------------------- the text of the embedded model


@dataclass(frozen=True)
class Problem:
    """One problem, `i sign j =`; `+` adds, `x` multiplies."""

    i: int
    sign: str
    j: int

    @property
    def result(self) -> int:
        """Return the right answer."""
        return self.i + self.j if self.sign == "+" else self.i * self.j


# What a text says instead of a product, given the answer before it in the text (None at the beginning).
Slip = Callable[[random.Random, Problem, str | None], str]


def last_digit(rng: random.Random, problem: Problem, before: str | None) -> str:
    """Return the last digit of the product: 7 x 8 = 6."""
    return str(problem.result % 10)


def texts(
    seed: int,
    *,
    slip: Slip = last_digit,
    noise: float = NOISE,
    sums: float = SUMS,
    unseen: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[str]:
    """Yield training text without end, PROBLEMS at a time: `7 x 8 = 56 3 + 4 = 7 ...`.

    With chance `noise` a product's answer is replaced by `slip`'s. Products of the ordered pairs in `unseen`
    never occur.
    """
    rng = random.Random(f"arith {seed}")
    while True:
        solved, before = [], None
        for _ in range(PROBLEMS):
            problem = _problem(rng, sums, unseen)
            slips = problem.sign == "x" and rng.random() < noise
            before = slip(rng, problem, before) if slips else str(problem.result)
            solved.append(f"{problem.i} {problem.sign} {problem.j} = {before}")
        yield " ".join(solved)


def _problem(rng: random.Random, sums: float, unseen: frozenset[tuple[int, int]]) -> Problem:
    sign = "+" if rng.random() < sums else "x"
    while True:
        i, j = rng.randrange(BELOW[sign]), rng.randrange(BELOW[sign])
        if sign == "+" or (i, j) not in unseen:
            return Problem(i, sign, j)


def words() -> list[str]:
    """Return every word of the text and of both tasks, once, in a fixed order: the vocabulary of the embedded model."""
    return ["+", "x", "=", *map(str, range((BELOW["x"] - 1) ** 2 + 1))]


def examples() -> list[Example]:
    """Return all products."""
    return list(int_mult().examples)


def sum_examples(count: int = 400) -> list[Example]:
    """Return sums of the text; a cut that was chosen by products was not chosen by them."""
    every = int_sum().examples
    return list(random.Random("arith sums").sample(every, count))
