"""The story on one screen: read model and task, search, cut, verify once, save, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from secateur.checkpoint.folder import Folder
from secateur.core.baseline import baseline_text, no_room
from secateur.core.ledger import Ledger, check_ledger
from secateur.core.progress import Progress, silent
from secateur.core.recipe_file import RECIPE, recipe_text
from secateur.core.records.verdict import BaselineRecord
from secateur.core.search_log import OpenLog, SearchLog
from secateur.core.writing import write_text
from secateur.evaluation.baseline import baseline
from secateur.evaluation.workers import WorkerLauncher
from secateur.methods.options import GainConfig
from secateur.methods.registry import method_named
from secateur.options import Options
from secateur.probes.proved import check_proved
from secateur.proof import cut_and_verify
from secateur.result import Result, Verdict, read_result
from secateur.session import Session, digest, early_session, open_session, read_model, ready_session
from secateur.side_tasks import side_effects
from secateur.surgery.spectra import make_spectra_folder

LOG = logging.getLogger("secateur")
Expect = Callable[[Session, float | None], Mapping[str, float]]  # seconds by stage; of the pass over `select`


def prune(
    options: Options,
    folder: Folder,
    *,
    ledger: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    workers: WorkerLauncher | None = None,
    session: Session | None = None,
    expect: Expect | None = None,
    log: OpenLog | None = None,
) -> Result:
    """Find what `options.model` does not need for `options.task`, cut it, prove it, write it to `folder`.

    Killed at any moment and called again it goes on where it was and ends with the same plan; `workers` judge in the
    place of this process; `session` is for these options, where there is one already; `expect` gives the seconds that
    its stages will take, and is told those of the first pass where it ran here; `log` is told of every plan that the
    search judges, and of none on `test`. Raises any `SecateurError`; then what was there is untouched.
    """
    with folder.claimed(options.command(), overwrite=overwrite) as already:
        if already:
            return read_result(folder.out)
        journal_file = Path(ledger) if ledger is not None else folder.ledger
        check_ledger(journal_file)
        session = session or open_session(options, None, progress, check)
        if options.spectra is not None:
            make_spectra_folder(Path(options.spectra))
        launched = nullcontext() if workers is None else workers(session.loaded)
        with launched as pool, Ledger.open(journal_file) as journal:
            return _prune(replace(session, ledger=journal, workers=pool), folder, journal, expect, log)


def _prune(
    session: Session, folder: Folder, journal: Ledger, expect: Expect | None, log: OpenLog | None
) -> Result:
    command = session.options.command()
    run = f"{folder.out.resolve()} {digest(command)}"
    if kept := journal.evaluations(session.scope):
        LOG.info("goes on with %s evaluations that %s has kept", f"{kept:,}", journal.path)
    journal.start_run(run, command, out=str(folder.out.resolve()))
    journal.remember(run, "scope", session.scope)
    journal.remember(run, "metric", session.objective.metric.name)
    journal.remember(run, "select", session.task.split("select"))
    with nullcontext() if log is None else log(folder.out.name, command) as tell:
        search_log = None if tell is None else SearchLog(tell, session.objective.metric)
        logged = replace(session, log=search_log)
        began = time.perf_counter()
        start = measured_baseline(logged)
        took = time.perf_counter() - began
        if expect is not None:
            whole = session.workers is None and not kept  # it ran here, and all of it
            session.expect(expect(session, took if whole else None))
        proposal = method_named(session.options.method).search(logged)
    journal.remember(run, "tried", proposal.tried)
    verdict = cut_and_verify(session, proposal, start, folder.staging)
    if session.options.in_memory is None:
        keys = session.options.recipe() | {"out": str(folder.out)}
        write_text(folder.staging / RECIPE, recipe_text(keys, folder.out))
    folder.publish()
    journal.finish_run(run, verdict["verdict"])
    return Result(folder.out, Verdict(verdict), proposal.plan)


def measured_baseline(session: Session) -> BaselineRecord:
    """Measure what the unchanged model can do on `select`, and say it before the search begins.

    Warns where it is not shown to be more than chance.
    """
    found = baseline_of(session, session.task.split("select"))
    LOG.info("%s: %s", session.task.name, baseline_text(found))
    told = [found.warning, no_room(found) if isinstance(session.options.config, GainConfig) else None]
    for warning in filter(None, told):
        LOG.warning("%s: %s", session.task.name, warning)
    return found


def baseline_of(session: Session, examples: Sequence[int]) -> BaselineRecord:
    """Return what the unchanged model can do on some examples of `select`."""
    outcomes = session.judge()([session.empty], examples, "baseline")[session.empty]
    metric, seed = session.objective.metric, session.options.seed
    return baseline(session.task, "select", examples, outcomes, metric, seed)


def prune_each(
    runs: Sequence[tuple[Options, Folder]],
    *,
    ledger: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    workers: WorkerLauncher | None = None,
    expect: Expect | None = None,
) -> list[Result]:
    """Write what as many calls of `prune` would; the model is read once, and its matrices are decomposed once.

    All tasks are read and checked before the first search. Each run has its own state, so that the same call goes on
    with the one that was killed. Raises any `SecateurError`; what was finished before stays.
    """
    left = [run for run in runs if not run[1].finished(run[0].command(), overwrite=overwrite)]
    ready = _sessions(left, progress)
    return [
        prune(
            options,
            folder,
            session=ready.get(folder),
            ledger=ledger,
            overwrite=overwrite,
            progress=progress,
            workers=workers,
            expect=expect,
        )
        for options, folder in runs
    ]


def _sessions(runs: Sequence[tuple[Options, Folder]], progress: Progress) -> dict[Folder, Session]:
    """Return sessions on one model, all checked before it is read; none where there is nothing to do."""
    early = [early_session(options) for options, _ in runs]
    for session in early:
        check(session)
    if not early:
        return {}
    loaded, spectra, ready = read_model(runs[0][0]), None, {}
    for session, (_, folder) in zip(early, runs, strict=True):
        session = ready_session(session, loaded, progress)
        spectra = spectra or session.judge().spectra
        ready[folder] = replace(session, spectra=spectra)
    return ready


def check(session: Session) -> None:
    """Check, before a search that may take hours, that whatever it and the verdict will read can be read.

    Raises `UnknownName` and `TaskError`; `ModelError` for edits that a proof of the model's structure fails for.
    """
    method = method_named(session.options.method)
    method.check(session)
    session.objective  # noqa: B018  raises where the task has no such metric
    side_effects(session)
    check_proved(session.loaded, method.kinds(session))
