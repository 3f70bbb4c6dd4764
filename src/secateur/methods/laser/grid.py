"""LASER's candidates: a grid of truncations, the most promising of them, greedy composition of several.

Knows values only; the judge of plans is handed in. Imports no torch.
Source: Sharma, Ash, Misra 2023 (arXiv 2312.13558) for grid and composition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from secateur.core.plan import Plan, Truncate
from secateur.core.readings import Readings
from secateur.core.site import Site
from secateur.methods.laser.method import PAPER_FRACTIONS, SMALL_RANKS
from secateur.search.evidence import Evidence
from secateur.search.race import RULES, Judge, Objective, Race, Rules, choose, race


def ranks(
    full_rank: int, fractions: Iterable[float] = PAPER_FRACTIONS, small: Iterable[int] = SMALL_RANKS
) -> list[int]:
    """Return the ranks to try, ascending: ⌊ρ · full⌋ for each fraction and the small ones, below the full rank."""
    wanted = {math.floor(fraction * full_rank) for fraction in fractions} | set(small)
    return sorted(rank for rank in wanted if 0 <= rank < full_rank)


def grid(
    shapes: Mapping[Site, tuple[int, int]],
    fractions: Iterable[float] = PAPER_FRACTIONS,
    small: Iterable[int] = SMALL_RANKS,
) -> list[Truncate]:
    """Return every truncation of every matrix, lowest block first."""
    fractions, small = tuple(fractions), tuple(small)
    return [
        Truncate(site, rank) for site in sorted(shapes) for rank in ranks(min(shapes[site]), fractions, small)
    ]


def screened(readings: Readings, candidates: Sequence[Truncate], most: int) -> list[Truncate]:
    """Return the candidates that are predicted best, at most so many, in their order."""
    kept = {name for name, _ in readings.ranked()[:most]}
    return [edit for edit in candidates if str(edit) in kept]


def compose(
    base: Plan,
    candidates: Sequence[Truncate],
    examples: Sequence[int],
    judge: Judge,
    objective: Objective,
    evidence: Evidence,
    rules: Rules = RULES,
    *,
    stage: str = "compose",
) -> Plan:
    """Return `base` with candidates added greedily: each time the one that helps most, as long as one is shown to help.

    Source: section 4 of the paper. Differs: the paper goes through all matrices once, from the last block to the first,
    and takes the first rank that helps at all, so that some ten noisy gains nearly always pile up: on CounterFact
    twelve cuts that gained nothing on test.
    """
    plan = base
    while True:
        taken = {edit.site for edit in plan.edits}
        beside = [plan + edit for edit in candidates if edit.site not in taken]
        if not beside:
            return plan
        raced = race([plan, *beside], examples, judge, objective, rules, stage=stage)
        before = judge([plan], examples, stage)[plan]
        choice = choose(raced.others(plan), before, evidence, objective)
        if not choice.shown:
            return plan
        plan = choice.best


def promising(raced: Race, base: Plan, objective: Objective, most: int) -> list[Truncate]:
    """Return the edit of each matrix that came furthest in the race and did best there.

    None that did worse than `base` on the same examples; at most `most`, the best first.
    """

    def success(edit: Truncate) -> tuple[int, tuple[float, float]]:
        rows = raced.outcomes[base + edit]
        return len(rows), objective.key(rows)

    best: dict[Site, Truncate] = {}
    for plan, rows in raced.outcomes.items():
        before = raced.outcomes[base][: len(rows)]
        if objective.key(rows[: len(before)]) >= objective.key(before):
            for edit in plan.truncated:
                best[edit.matrix] = max(edit, best.get(edit.matrix, edit), key=success)
    return sorted(best.values(), key=success, reverse=True)[:most]
