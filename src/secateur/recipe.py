"""The story on one screen: read the model, screen, race, compose, cut, verify once, save, report."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from secateur.checkpoint.folder import Folder
from secateur.core.ledger import Ledger
from secateur.core.plan import Plan, Truncate
from secateur.core.readings import Readings
from secateur.core.site import matrix_names
from secateur.errors import UnknownName
from secateur.hf.anatomy import Anatomy
from secateur.judge.evaluator import Judge, Progress, silent
from secateur.probes.truncation import truncation_effects
from secateur.proof import Found, cut_and_verify, read_plan, side_effects
from secateur.search.laser import Objective, Race, compose, grid, race, screened
from secateur.session import Options, Session, open_session

KEPT_BY_SCREEN = 1 / 3  # in trials the best edit was within the top 25 % of one of the two rankings
RACE_Z = 3.0
MAX_PROBED = 256  # gradients of 100 examples suffice (arXiv 2510.20800)


@dataclass(frozen=True)
class Result:
    """What `prune` and `apply` give back: where the checkpoint is, and what its files say.

    `already`: it was there before, and nothing was done. `verdict` is None where nothing was verified (`apply`).
    """

    out: Path
    verdict: dict[str, Any] | None
    plan: Plan
    already: bool = False


def prune(
    options: Options,
    out: str | Path,
    *,
    ledger: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Result:
    """Find what `options.model` does not need for `options.task`, cut it, prove it, write it to `out`.

    Killed at any moment and called again it goes on where it was and ends with the same plan. Raises any
    `SecateurError`; then `out` is untouched.
    """
    folder = Folder.at(out, reads=options.model)
    with folder.claimed():
        if folder.finished(options.command(), overwrite=overwrite):
            return read_result(folder.out, already=True)
        journal_file = Path(ledger) if ledger is not None else folder.ledger
        check_ledger(journal_file)
        session = open_session(options, None, progress)
        check(session)
        with Ledger.open(journal_file) as journal:
            return _prune(replace(session, ledger=journal), folder, journal)


def _prune(session: Session, folder: Folder, journal: Ledger) -> Result:
    command = session.options.command()
    run = f"{folder.out.resolve()} {_digest(command)}"
    journal.start_run(run, command, out=str(folder.out.resolve()))
    journal.remember(run, "scope", session.scope)
    found = search_laser(session)
    verdict = cut_and_verify(session, found, folder.staging)
    journal.finish_run(run, verdict["verdict"])
    folder.publish()
    return Result(folder.out, verdict, found.plan)


def check_ledger(path: Path) -> None:
    """Before a model is loaded: what is there must be ours. Raises `LedgerError`."""
    if path.exists() and path.stat().st_size:
        Ledger.open(path, create=False).close()


def check(session: Session) -> None:
    """Before the search, which may take hours: whatever it and the verdict will need to read can be read.

    Raises `UnknownName` and `TaskError`.
    """
    candidates(session.loaded.anatomy, session.options)
    session.objective  # noqa: B018  raises where the task has no such metric
    side_effects(session)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_result(out: Path, *, already: bool = False) -> Result:
    """What a finished checkpoint folder says of itself."""
    file = out / "verdict.json"
    verdict = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return Result(out, verdict, read_plan(out), already)


def candidates(anatomy: Anatomy, options: Options) -> tuple[Truncate, ...]:
    """The grid over the matrices and layers asked for. Raises `UnknownName`."""
    names = matrix_names(options.matrices, anatomy.matrix_kinds)
    if not names:
        raise UnknownName(f"--matrices names none. This model has {', '.join(anatomy.matrix_kinds)}, or all.")
    blocks = layers_of(anatomy, options)
    wanted = {s: m.shape for s, m in anatomy.matrices.items() if s.part in names and s.block in blocks}
    return tuple(grid(wanted, options.fractions, options.small_ranks))


def layers_of(anatomy: Anatomy, options: Options) -> range:
    """The blocks asked for. Raises `UnknownName` where the model has not all of them."""
    low, high = options.layers or (0, anatomy.num_blocks)
    if not 0 <= low < high <= anatomy.num_blocks:
        raise UnknownName(
            f"layers {low}:{high} are not in this model: it has blocks 0 to {anatomy.num_blocks - 1} (all of them: "
            f"0:{anatomy.num_blocks})."
        )
    return range(low, high)


def search_laser(session: Session) -> Found:
    """Screen on `probe`, race and compose on `select`. `test` is not touched."""
    options = session.options
    evaluator, goal = session.judge(), session.objective
    judge = _Counted(evaluator)
    everything = candidates(session.loaded.anatomy, options)
    select = session.shuffled("select")
    with session.timed("screen"):
        readings = None if options.exhaustive else screen(session, evaluator, everything)
    kept = everything if readings is None else screened(readings, everything, KEPT_BY_SCREEN)
    z = math.inf if options.exhaustive else RACE_Z
    base = session.empty
    with session.timed("race"):
        raced = race([base, *(base + edit for edit in kept)], select, judge, goal, z=z)
    plans = [base, raced.winner]
    if options.compose:
        with session.timed("compose"):
            plans.append(compose(base, _promising(raced, goal), select, judge, goal, z=z))
    judged = judge(plans, select, "choose")
    plan = max(dict.fromkeys(plans), key=lambda plan: goal.key(judged[plan]))
    if goal.metric.gain(judged[plan], judged[base]).mean() <= 0:
        plan = base  # a tie with better loss ranks candidates, but is no reason to cut
    predicted = None if readings is None else readings[-1]
    return Found(plan, everything, predicted, raced, len(judge.seen) - 1, sum(judge.seen.values()))


class _Counted:
    """A judge that keeps count of what a search asked, whether or not the ledger knew it."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.seen: dict[Plan, int] = {}

    def __call__(self, plans: Sequence[Plan], examples: Sequence[int], stage: str) -> dict[Plan, np.ndarray]:
        self.seen |= {plan: max(len(examples), self.seen.get(plan, 0)) for plan in plans}
        return self._judge(plans, examples, stage)


def screen(session: Session, judge: Judge, edits: Sequence[Truncate]) -> list[Readings]:
    """Predicted changes of loss to first and to second order, read once per run and remembered in the ledger."""
    probe = session.task.split("probe")[:MAX_PROBED]
    contrast = session.task.kind == "choice" and session.objective.metric.column == "correct"
    key = f"screen {_digest([contrast, len(probe), *map(str, edits)])}"
    known = session.ledger.recall(session.scope, key) if session.ledger else None
    if known is not None:
        return [Readings.from_json(one) for one in known]
    readings = truncation_effects(
        session.loaded,
        session.encoded,
        probe,
        edits,
        spectra=judge.spectra,
        packing=judge.packing,
        contrast=contrast,
        progress=session.progress,
    )
    if session.ledger:
        session.ledger.remember(session.scope, key, [one.to_json() for one in readings])
    return list(readings)


def _promising(raced: Race, goal: Objective) -> list[Truncate]:
    """Edits that, as far as they were judged, did not do worse than the original on the same examples."""
    base = next(plan for plan in raced.standing if not plan.edits)
    found = []
    for plan, outcomes in raced.standing.items():
        same = min(len(outcomes), len(raced.standing[base]))
        if plan.edits and goal.key(outcomes[:same]) >= goal.key(raced.standing[base][:same]):
            found.extend(plan.edits)
    return found
