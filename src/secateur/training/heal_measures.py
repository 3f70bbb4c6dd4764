"""Teacher, unhealed and healed, measured alike: on select, on the side tasks, as text, and where asked for on test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.core.comparison import compare, recovered
from secateur.core.ledger import Ledger
from secateur.core.noninferiority import MARGIN
from secateur.core.plan import Plan
from secateur.core.score import METRICS
from secateur.evaluation.measurement import Measurement, SideTask, measure_model
from secateur.evaluation.sample import plain, prompts, sample
from secateur.evaluation.verdict import decide
from secateur.session import Session
from secateur.side_tasks import side_effects
from secateur.training.record import SHOWN
from secateur.training.state import judged

PROMPTS = 3  # pieces of text that each model writes
WRITTEN = 40  # tokens of each
SIDES = ("teacher", "unhealed", "healed")


@dataclass(frozen=True, eq=False)
class Measured:
    """One of the three models: OUTCOME arrays of select and of every side, greedy texts; test where it is opened."""

    select: np.ndarray
    sides: tuple[np.ndarray, ...]
    texts: tuple[str, ...]
    test: Measurement | None


Three = Mapping[str, Measured]  # by SIDES


def watched(session: Session) -> list[SideTask]:
    """The tasks of `--side`, else plain English. Not other phrasings of the test questions: test may stay closed."""
    return [side for side in side_effects(session) if not side.phrasings]


def measured(session: Session, sides: Sequence[SideTask], *, test: bool) -> Measured:
    """Of the session's model, as it is."""
    starts = prompts(session.task, session.encoded, PROMPTS)
    return Measured(
        judged(session, list(session.task.split("select"))),
        tuple(judged(session.on(side.task), [*range(len(side.task.examples))]) for side in sides),
        tuple(sample(session.loaded, start, WRITTEN) for start in starts),
        measure_model(session.judge(), [], []) if test else None,
    )


def score(name: str, outcomes: Mapping[str, np.ndarray], groups: np.ndarray, seed: int) -> dict[str, Any]:
    """A metric of all three (OUTCOME arrays by SIDES), how far the healed is from the unhealed and from the teacher,
    and the share of what the cut lost that came back."""
    metric, healed = METRICS[name], outcomes["healed"]
    found = {
        side: compare(metric, outcomes[side], healed, groups, seed=seed).to_json()
        for side in ("teacher", "unhealed")
    }
    back = recovered(metric, outcomes["teacher"], outcomes["unhealed"], healed, groups)
    return {
        "metric": name,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "teacher": found["teacher"]["before"],
        "unhealed": found["unhealed"]["before"],
        "healed": found["unhealed"]["after"],
        "gain": found["unhealed"]["difference"],
        "gap": found["teacher"]["difference"],
        "recovered": None if back is None else {"value": back[0], "ci": list(back[1])},
    }


def select_scores(session: Session, three: Three) -> list[dict[str, Any]]:
    task, seed = session.task, session.options.seed
    groups = task.groups(list(task.split("select")))
    outcomes = {name: three[name].select for name in SIDES}
    return [score(name, outcomes, groups, seed) for name in SHOWN[task.kind]]


def side_scores(session: Session, sides: Sequence[SideTask], three: Three) -> list[dict[str, Any]]:
    """What healing on one task did to others: all of their examples, none of which were learned as such."""
    return [
        {"name": side.name, "n": len(side.task.examples)}
        | score(
            side.task.primary_metric,
            {name: three[name].sides[number] for name in SIDES},
            side.task.groups(range(len(side.task.examples))),
            session.options.seed,
        )
        for number, side in enumerate(sides)
    ]


def texts(session: Session, three: Three) -> list[dict[str, Any]]:
    """What each wrote after the same beginnings."""
    return [
        {"prompt": plain(session.loaded, start)} | {name: three[name].texts[number] for name in SIDES}
        for number, start in enumerate(prompts(session.task, session.encoded, PROMPTS))
    ]


def proved(session: Session, plan: Plan, three: Three, ledger: Ledger) -> dict[str, Any]:
    """Test, opened once: the verdict is the healed model against the original, with the margin of `prune`, and counts
    as one opening; the unhealed stands beside it. `session` has the healed model, `plan` is that of the cut."""
    task, seed, metric = session.task, session.options.seed, session.objective.metric
    seen = {name: three[name].test for name in SIDES}
    found = decide(
        session.judge(), seen["teacher"], seen["healed"], plan, (), metric,
        ledger=ledger, scope=f"{session.scope} healed", seed=seed, margin=MARGIN,
    ).to_json()  # fmt: skip
    groups = task.groups(list(task.split("test")))
    outcomes = {name: seen[name].test for name in SIDES}
    scores = [score(name, outcomes, groups, seed) for name in SHOWN[task.kind]]
    return {name: found[name] for name in VERDICT} | {"scores": scores}


VERDICT = (
    "verdict", "metric", "n", "groups", "test", "p_value", "p_value_unadjusted", "openings", "non_inferiority",
    "guards",
)  # fmt: skip
