"""The story on one screen: read model and task, search, cut, verify once, save, report."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur.checkpoint.folder import Folder
from secateur.checkpoint.plans import read_plan
from secateur.core.baseline import baseline_text
from secateur.core.ledger import Ledger
from secateur.core.plan import Plan
from secateur.core.progress import Progress, silent
from secateur.errors import OutputError
from secateur.judge.baseline import baseline
from secateur.judge.workers import Hire
from secateur.methods import components, depth, directions, laser
from secateur.methods.found import Found
from secateur.options import Options
from secateur.proof import cut_and_verify, form_of
from secateur.session import Session, digest, open_session, read_model, read_task, session_on
from secateur.sides import side_effects
from secateur.surgery.spectra import make_ready
from secateur.tasks.joint import distinct

LOG = logging.getLogger("secateur")


@dataclass(frozen=True)
class Method:
    """`check` raises before anything is computed, `search` gives the plan."""

    check: Callable[[Session], None]
    search: Callable[[Session], Found]


METHODS: Mapping[str, Method] = {
    "laser": Method(laser.check, laser.search),
    "directions": Method(directions.check, directions.search),
    "depth": Method(depth.check, depth.search),
    **dict.fromkeys(("heads", "ffns", "components"), Method(components.check, components.search)),
}


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
    workers: Hire | None = None,
    session: Session | None = None,
) -> Result:
    """Find what `options.model` does not need for `options.task`, cut it, prove it, write it to `out`.

    Killed at any moment and called again it goes on where it was and ends with the same plan; `workers` judge in the
    place of this process; `session` is for these options, where there is one already. Raises any `SecateurError`; then
    `out` is untouched.
    """
    folder = Folder.at(out, reads=options.model)
    with folder.claimed():
        if folder.finished(options.command(), overwrite=overwrite):
            return read_result(folder.out, already=True)
        journal_file = Path(ledger) if ledger is not None else folder.ledger
        check_ledger(journal_file)
        session = session or open_session(options, None, progress)
        check(session)
        if options.spectra is not None:
            make_ready(Path(options.spectra))
        hired = nullcontext() if workers is None else workers(session.loaded)
        with hired as hands, Ledger.open(journal_file) as journal:
            return _prune(replace(session, ledger=journal, workers=hands), folder, journal)


def _prune(session: Session, folder: Folder, journal: Ledger) -> Result:
    command = session.options.command()
    run = f"{folder.out.resolve()} {digest(command)}"
    journal.start_run(run, command, out=str(folder.out.resolve()))
    journal.remember(run, "scope", session.scope)
    journal.remember(run, "metric", session.objective.metric.name)
    journal.remember(run, "select", session.task.split("select"))
    start = measured_baseline(session)
    found = METHODS[session.options.method].search(session)
    verdict = cut_and_verify(session, found, start, folder.staging)
    journal.finish_run(run, verdict["verdict"])
    folder.publish()
    return Result(folder.out, verdict, found.plan)


def measured_baseline(session: Session) -> dict[str, Any]:
    """What the unchanged model can do on `select`, said before the search begins; with a warning where it is not shown
    to be more than chance."""
    found = baseline_of(session, session.task.split("select"))
    LOG.info("%s: %s", session.task.name, baseline_text(found))
    if found["warning"]:
        LOG.warning("%s: %s", session.task.name, found["warning"])
    return found


def baseline_of(session: Session, examples: Sequence[int]) -> dict[str, Any]:
    """What the unchanged model can do on some examples of `select`."""
    outcomes = session.judge()([session.empty], examples, "baseline")[session.empty]
    metric, seed = session.objective.metric, session.options.seed
    return baseline(session.task, "select", examples, outcomes, metric, seed)


def prune_each(
    options: Options,
    out: str | Path,
    *,
    ledger: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    workers: Hire | None = None,
) -> list[Result]:
    """One plan for each of `options.tasks`: what as many calls of `prune` write to OUT/NAME, of a model that is read
    once and whose matrices are decomposed once.

    All tasks are read and checked before the first search. Each run has its own state, so that the same call goes on
    with the one that was killed. Raises any `SecateurError`; what was finished before stays.
    """
    if (Path(out) / "plan.json").exists():
        raise OutputError(f"{out} is a checkpoint; --each makes a folder of several. Give another -o.")
    places = [Path(out) / name for name in distinct([*map(folder_name, options.tasks)], "{}-{}")]
    runs = [
        (replace(options, task=task, more_tasks=()), place)
        for task, place in zip(options.tasks, places, strict=True)
    ]
    ready = _sessions([run for run in runs if not _is_there(*run, overwrite)], progress)
    how = {"ledger": ledger, "overwrite": overwrite, "progress": progress, "workers": workers}
    return [prune(own, place, session=ready.get(place), **how) for own, place in runs]


def folder_name(spec: str) -> str:
    """What a task is called among folders: `facts` of `builtin:facts`, `q` of `data/q.jsonl`."""
    return re.sub(r"[^\w.-]+", "-", Path(spec.rpartition(":")[2]).stem).strip(".-") or "task"


def _is_there(options: Options, place: Path, overwrite: bool) -> bool:
    return Folder.at(place, reads=options.model).finished(options.command(), overwrite=overwrite)


def _sessions(runs: Sequence[tuple[Options, Path]], progress: Progress) -> dict[Path, Session]:
    """Sessions on one model, all checked; none where there is nothing to do."""
    if not runs:
        return {}
    loaded, spectra, ready = read_model(runs[0][0]), None, {}
    for options, place in runs:
        session = session_on(options, loaded, read_task(options, loaded), None, progress)
        spectra = spectra or session.judge().spectra
        ready[place] = replace(session, spectra=spectra)
        check(ready[place])
    return ready


def check_ledger(path: Path) -> None:
    """Before a model is loaded: what is there must be ours. Raises `LedgerError`."""
    if path.exists() and path.stat().st_size:
        Ledger.open(path, create=False).close()


def check(session: Session) -> None:
    """Before the search, which may take hours: whatever it and the verdict will need to read can be read.

    Raises `UnknownName` and `TaskError`.
    """
    METHODS[session.options.method].check(session)
    form_of(session)
    session.objective  # noqa: B018  raises where the task has no such metric
    side_effects(session)


def read_result(out: Path, *, already: bool = False) -> Result:
    """What a finished checkpoint folder says of itself."""
    file = out / "verdict.json"
    verdict = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return Result(out, verdict, read_plan(out), already)
