"""How often a cut is taken where nothing helps, and where one cut does, by the number of examples in `select`.

The candidates are LASER's grid on a model and a task, judged once; every draw takes a third of them and `n` of the
examples, with replacement. Null: the sign of every example's gains is flipped at random, the same sign for all
candidates. Planted: one more candidate gains 10 % and loses 5 % of the examples, so 5 points at 15 % discordance. What
chooses is the library's own race and its own `choose`.

    python benchmarks/choice_study.py MODEL TASK.jsonl [--limit 5000] [--layers 25:30] [--matrices mlp] [--draws 200]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from secateur.core.plan import Plan, Truncate
from secateur.core.score import METRICS, OUTCOME
from secateur.core.site import Site
from secateur.methods.laser.search import HALVING, candidates
from secateur.methods.registry import read_options
from secateur.options import Options
from secateur.search.evidence import Evidence
from secateur.search.race import Objective, choose, race
from secateur.session import open_session

SIZES = (50, 200, 500, 1000)
GAINED, LOST = 0.10, 0.05
BASE = Plan("m")
PLANTED = Plan("m", (Truncate(Site(10**6, "o"), 0),))
OBJECTIVE = Objective(METRICS["accuracy"])


@dataclass(frozen=True)
class Matrix:
    """`before` (n,) and `gains` (plans, n): accuracy of the unchanged model, and what each cut adds to it."""

    before: np.ndarray
    gains: np.ndarray


def measured(options: Options) -> Matrix:
    """The grid of `options` on the whole `select` split."""
    session = open_session(options, None)
    base, select = session.empty, session.task.split("select")
    plans = [base + edit for edit in candidates(session.loaded.anatomy, options)]
    judged = session.judge()([base, *plans], select, "study")
    before = judged[base]["correct"]
    return Matrix(before, np.stack([judged[plan]["correct"] - before for plan in plans]))


def rows(correct: np.ndarray) -> np.ndarray:
    """OUTCOME rows with this accuracy and nothing else that differs, so that nothing breaks a tie."""
    made = np.zeros(correct.size, OUTCOME)
    made["example"], made["correct"] = np.arange(correct.size), correct
    made["correct_norm"] = made["choice_loss"] = np.nan
    return made


def drawn(
    matrix: Matrix, n: int, rng: np.random.Generator, *, flip: bool, plant: bool
) -> dict[Plan, np.ndarray]:
    """OUTCOME rows of the unchanged model and of the candidates of one draw."""
    examples = rng.integers(0, matrix.before.size, n)
    third = rng.choice(len(matrix.gains), max(1, len(matrix.gains) // 3), replace=False)
    gains = matrix.gains[np.ix_(third, examples)]
    if flip:
        gains = gains * rng.choice([-1.0, 1.0], n)
    made = {Plan("m", (Truncate(Site(number, "o"), 0),)): gain for number, gain in enumerate(gains)}
    if plant:
        made[PLANTED] = rng.choice([1.0, -1.0, 0.0], n, p=[GAINED, LOST, 1 - GAINED - LOST])
    before = matrix.before[examples]
    return {BASE: rows(before)} | {plan: rows(before + gain) for plan, gain in made.items()}


def taken(outcomes: Mapping[Plan, np.ndarray], seed: int) -> Plan | None:
    """The plan that is shown to gain, as LASER's search would take it."""
    n = len(outcomes[BASE])

    def judge(plans: Sequence[Plan], examples: Sequence[int], stage: str) -> dict[Plan, np.ndarray]:
        return {plan: outcomes[plan][: len(examples)] for plan in plans}

    raced = race(list(outcomes), range(n), judge, OBJECTIVE, HALVING)
    evidence = Evidence(OBJECTIVE.metric, np.arange(n), seed=seed)
    choice = choose(raced.others(BASE), outcomes[BASE], evidence, OBJECTIVE)
    return choice.best if choice.shown else None


def counted(
    draws: int, draw: Callable[[int], Mapping[Plan, np.ndarray]], wanted: Callable[[Any], bool]
) -> dict[str, Any]:
    """In how many draws what is taken is `wanted`, with an exact 95 % interval."""
    count = sum(wanted(taken(draw(seed), seed)) for seed in range(draws))
    ends = stats.binomtest(count, draws).proportion_ci(0.95, method="exact")
    return {"count": count, "share": count / draws, "ci": [ends.low, ends.high]}


def run(matrix: Matrix, *, draws: int = 200) -> list[dict[str, Any]]:
    """For each size of `select`: cuts taken where none helps; a planted cut found among such, and among the candidates
    as they are."""
    found = []
    for n in SIZES:

        def draw(seed: int, *, flip: bool, plant: bool, n: int = n) -> dict[Plan, np.ndarray]:
            return drawn(matrix, n, np.random.default_rng((n, seed)), flip=flip, plant=plant)

        found.append(
            {
                "n": n,
                "candidates": len(matrix.gains) // 3,
                "null": counted(
                    draws, lambda s: draw(s, flip=True, plant=False), lambda plan: plan is not None
                ),
                "planted, others change nothing": counted(
                    draws, lambda s: draw(s, flip=True, plant=True), lambda plan: plan == PLANTED
                ),
                "planted, others as they are": counted(
                    draws, lambda s: draw(s, flip=False, plant=True), lambda plan: plan == PLANTED
                ),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("task")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--layers", help="FROM:TO")
    parser.add_argument("--matrices", default="all")
    parser.add_argument("--draws", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    layers = given.layers and tuple(int(end) for end in given.layers.split(":"))
    matrices = tuple(given.matrices.split(","))
    options = read_options(given.model, given.task, limit=given.limit, layers=layers, matrices=matrices)
    print(json.dumps(run(measured(options), draws=given.draws), indent=1))


if __name__ == "__main__":
    main()
