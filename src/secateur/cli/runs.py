"""Reads runs from ledgers and folders, for `secateur runs` and `secateur show`. Imports no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.checkpoint.folder import LEDGER, NOTE, RECORDS, UNPROVEN, Folder
from secateur.checkpoint.out import RUN
from secateur.core.ledger import Ledger, Run, Trial
from secateur.core.plan import Plan
from secateur.core.reading import as_written, parse_json
from secateur.core.score import METRICS, Metric
from secateur.errors import OutputError, SecateurError, UnknownName
from secateur.result import read_verdict

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

TRAINED = {
    f"{verb}.json": verb for verb in ("heal", "finetune", "train")
}  # the record that a verb leaves in OUT
RUNNING = "running"
STOPPED = "stopped"  # killed, interrupted or refused; the command goes on with it


def runs_in(place: Path) -> list[dict[str, Any]]:
    """Every run in one ledger file or under a folder, two levels deep, oldest first: those that ledgers tell of, what
    lies in `*.run` unfinished, and what `apply` and training made. Raises `UnknownName` for a place that is not
    there."""
    if not os.path.exists(place):
        raise UnknownName(
            f"{place}: there is no such folder and no such ledger. Give one, or nothing for this folder."
        )
    if not place.is_dir():
        found = list(_in_ledger(place))
    else:
        ledgers = [
            path for pattern in ("", "*.run/", "*/*.run/") for path in place.glob(f"{pattern}{LEDGER}")
        ]
        found = [run for path in sorted(set(ledgers)) for run in _in_ledger(path)]
        listed = {run["run"] for run in found}
        below = {path for pattern in ("*", "*/*") for path in place.glob(pattern) if path.is_dir()}
        folders = sorted({path for path in below if path.name != UNPROVEN} | {place})
        others = [
            run for folder in folders for run in (_finished(folder), _unfinished(folder)) if run is not None
        ]
        found += [run for run in others if run["run"] not in listed]
    return sorted(found, key=lambda run: run["created"])


def _in_ledger(path: Path) -> Iterator[dict[str, Any]]:
    with Ledger.open(path, create=False) as ledger:
        for run in ledger.runs():
            yield _judged(ledger, run)


def _judged(ledger: Ledger, run: Run) -> dict[str, Any]:
    """Return the row of a run of `prune`."""
    out, scope = _out(ledger.path, run), ledger.recall(run.id, "scope", str)
    tried = ledger.recall(run.id, "tried", int)
    if tried is None and _made(run, out):  # ledgers of an earlier day do not say it
        tried = tried_cuts(out)
    if tried is None:
        tried = sum(bool(trial.plan.edits) for trial in ledger.trials(scope)) if scope else 0
    more = {"plans": tried, "ledger": str(ledger.path)}
    status = _now(out, run) if run.status == RUNNING else run.status
    with as_written(ledger.path, OutputError, "Move it away, and start again."):
        return _row("prune", out, run.command, run.created, status, **more)


def tried_cuts(out: Path) -> int | None:
    """Return how many cuts a finished search chose among, as its verdict has it; None where there is no verdict."""
    file = out / "verdict.json"
    return int(read_verdict(file)["candidates_tried"]) if file.exists() else None


def _finished(out: Path) -> dict[str, Any] | None:
    """Return the run that made the folder `out`; None for a folder without a record."""
    folder = Folder(out)
    for name in RECORDS:
        record = folder.record(name)
        if record is None:
            continue
        verb = TRAINED.get(name) or ("apply" if "apply" in record["provenance"]["command"] else "prune")
        created = record["provenance"].get("created") or folder.made
        status = "done" if verb != "prune" else _word(out)
        with as_written(out / name, OutputError, "Remove it, or make it again."):
            return _row(verb, out, record["provenance"]["command"], str(created), status)
    return None


def _word(out: Path) -> str:
    """Return the word of a verdict."""
    file = out / "verdict.json"
    return read_verdict(file)["verdict"] if file.exists() else "done"


def _unfinished(run: Path) -> dict[str, Any] | None:
    """Return the run that is noted in `OUT.run` and not finished, going on or stopped; None where there is none."""
    note = run / NOTE
    if not run.name.endswith(RUN) or not os.path.isfile(note):
        return None
    out = run.with_name(run.name.removesuffix(RUN))
    with as_written(note, OutputError, "Remove it, or run the command again."):
        told = parse_json(note.read_text(encoding="utf-8", errors="replace"))
        return _row(str(told["verb"]), out, dict(told["command"]), str(told["created"]), _now(out))


def _now(out: Path, run: Run | None = None) -> str:
    """Of a run that has not said how it ended. Whoever works on it holds a lock, until the system takes it back; and
    what a ledger was not told any more, the result itself tells."""
    if Folder(out).is_locked:
        return RUNNING
    return _word(out) if run is not None and _made(run, out) else STOPPED


def _made(run: Run, out: Path) -> bool:
    """Return whether the checkpoint in `out` is of this run's command."""
    record = Folder(out).record("plan.json")
    return record is not None and record["provenance"]["command"] == run.command


def _row(
    verb: str, out: Path, command: Mapping[str, object], created: str, status: str, **more: object
) -> dict[str, Any]:
    more_tasks = command.get("more_tasks") or ()
    if not isinstance(more_tasks, list | tuple):
        raise TypeError("more_tasks is no list")  # said by `as_written`
    model = "a new Mistral" if verb == "train" else command[verb if verb in ("finetune", "heal") else "model"]
    full = out.resolve()
    first = command["train"] if verb == "train" else command.get("task", "")
    return {
        "run": str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full),
        "verb": verb,
        "model": str(model),
        "task": " + ".join(map(str, [first, *more_tasks])),
        "created": created[:16].replace("T", " "),
        "status": status,
        "plans": None,
        "command": dict(command),
        "ledger": None,
    } | more


def _out(ledger: Path, run: Run) -> Path:
    """Return where the run's checkpoint is: beside its `OUT.run`, wherever that is now; else where it was written."""
    if ledger.parent.suffix == RUN:
        return ledger.parent.with_suffix("")
    return Path(run.out)


@dataclass(frozen=True)
class JudgedRun:
    """The newest run of a ledger.

    Attributes:
        out: The folder of its checkpoint.
        summary: Its row in `secateur runs`.
        metric: The metric that decides.
        select: The examples of `select`; None where the ledger does not say.
        trials: The plans that were judged, with their means on `select`, in the order of first record.
        shared: Whether the ledger holds other runs too, whose plans may be among these.
    """

    out: Path
    summary: Mapping[str, Any]
    metric: Metric
    select: list[int] | None
    trials: list[Trial]
    shared: bool


def judged_run(place: Path) -> JudgedRun:
    """Read the newest run of a folder or a ledger. Raises: `UnknownName` where there is none; `LedgerError`."""
    path = _ledger_of(place)
    with Ledger.open(path, create=False) as ledger:
        runs = ledger.runs()
        if not runs:
            raise UnknownName(f"{path} holds no run yet.")
        run = runs[-1]
        scope = ledger.recall(run.id, "scope", str)
        metric = ledger.recall(run.id, "metric", METRICS.__getitem__)
        select = ledger.recall(run.id, "select", _examples)
        trials = ledger.trials(scope, select) if scope else []
        # ledgers of an earlier day do not say the metric
        summary, metric = _judged(ledger, run), metric or METRICS["accuracy"]
        return JudgedRun(_out(path, run), summary, metric, select, trials, shared=len(runs) > 1)


def run_record(place: Path, top: int) -> dict[str, Any]:
    """The newest run of a ledger with its verdict, if there is one, and the `top` cuts it judged, best first, after the
    original; all on `select`.

    The order is the search's own: cuts judged on more examples come first, since a race drops the others early; then
    the metric that decides, and where that is equal the likelihood of the right choice (`search.race.Objective`). Cuts
    that were judged after the search, for the curves of the report, were not chosen among and come last.
    """
    run = judged_run(place)
    metric = run.metric
    cut = [
        trial for trial in run.trials if trial.plan.edits
    ]  # in the order of first record: the search's own first
    tried = tried_cuts(run.out)
    own = len(cut) if tried is None or run.shared else min(tried, len(cut))
    ordered = [*_best_first(cut[:own], metric), *_best_first(cut[own:], metric)]
    base = [trial for trial in run.trials if not trial.plan.edits and run.select is not None]
    verdict = run.out / "verdict.json"
    return {
        "run": run.summary,
        "verdict": read_verdict(verdict) if verdict.exists() else None,
        "metric": metric.name,
        "judged": len(run.trials),
        "tried": own if tried is None else tried,
        "on_select": own,
        "for_curves": len(cut) - own,
        "ties_by": _tie_breaker(cut).name,
        "trials": [_judgment(trial, metric) for trial in (*base, *ordered[:top])],
    }


def _tie_breaker(trials: Sequence[Trial]) -> Metric:
    """Return the loss among the choices, or without choices the loss of the right answer."""
    among = METRICS["choice_loss"]
    has_choices = any(not math.isnan(trial.means[among.name]) for trial in trials)
    return among if has_choices else METRICS["loss"]


def _best_first(trials: Sequence[Trial], metric: Metric) -> list[Trial]:
    ties = _tie_breaker(trials)
    return sorted(trials, key=lambda trial: (-trial.n, _or_worst(trial, metric), _or_worst(trial, ties)))


def write_optuna(place: Path, file: Path) -> int:
    """Write the plans that a run judged as the trials of an optuna study, and return how many.

    A plan that was judged on all of `select` is a complete trial; one that left a race early is a pruned one, with its
    mean as the intermediate value at so many examples. The study is named after the run's folder.

    Args:
        file: An SQLite file that is not there yet.

    Raises: `SecateurError` where optuna is not installed; `OutputError` for a file that cannot be made; `UnknownName`,
        `LedgerError` as `judged_run`.
    """
    if find_spec("optuna") is None:
        raise SecateurError("--optuna needs the package optuna, which is not installed: pip install optuna")
    if os.path.lexists(file) or not file.absolute().parent.is_dir():
        raise OutputError(f"--optuna {file}: give a file that is not there yet, in a folder that is.")
    run = judged_run(place)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "maximize" if run.metric.higher_is_better else "minimize"
    storage = f"sqlite:///{file.absolute()}"
    study = optuna.create_study(storage=storage, study_name=run.out.name, direction=direction)
    study.set_user_attr("metric", run.metric.name)
    study.add_trials(_optuna_trials(run))
    return len(run.trials)


def _optuna_trials(run: JudgedRun) -> list[FrozenTrial]:
    from optuna.distributions import CategoricalDistribution, IntDistribution
    from optuna.trial import TrialState, create_trial

    parameters = [_parameters(trial.plan) for trial in run.trials]
    numbers = {name: [found[name] for found in parameters if name in found] for name in ("block", "rank")}
    numbers["edits"] = [found["edits"] for found in parameters]
    ranges = {name: IntDistribution(min(seen), max(seen)) for name, seen in numbers.items() if seen}
    matrices = sorted({str(found["matrix"]) for found in parameters if "matrix" in found})
    ranges |= {"matrix": CategoricalDistribution(matrices)} if matrices else {}
    everything = max((trial.n for trial in run.trials), default=0)
    trials = []
    for trial, params in zip(run.trials, parameters, strict=True):
        value = trial.means[run.metric.name]
        whole = trial.n == everything and not math.isnan(value)
        means = {name: trial.means[name] for name in METRICS if not math.isnan(trial.means[name])}
        trials.append(
            create_trial(
                state=TrialState.COMPLETE if whole else TrialState.PRUNED,
                value=value if whole else None,
                intermediate_values={trial.n: value},
                params=params,
                distributions={name: ranges[name] for name in params},
                user_attrs={"plan": str(trial.plan), "examples": trial.n, "seconds": trial.seconds} | means,
            )
        )
    return trials


def _parameters(plan: Plan) -> dict[str, int | str]:
    """Return what distinguishes plans in a dashboard: how much is cut, and of a single truncation where and how far."""
    found: dict[str, int | str] = {"edits": len(plan.edits)}
    if len(plan.edits) == len(plan.truncated) == 1:
        edit = plan.truncated[0]
        found |= {"block": edit.site.block, "matrix": edit.site.label, "rank": edit.rank}
    return found


def _judgment(trial: Trial, metric: Metric) -> dict[str, Any]:
    """Return the metric that decides, the metric that breaks ties, and the loss where that is another."""
    ties = _tie_breaker([trial]).name
    names = dict.fromkeys((metric.name, ties, *(() if metric.column == "loss" else ("loss",))))
    means = {name: trial.means[name] for name in names}
    values = {name: None if math.isnan(mean) else mean for name, mean in means.items()}
    return {"plan": str(trial.plan), "n": trial.n} | values | {"seconds": trial.seconds}


def trained_record(place: Path) -> tuple[str, dict[str, Any]] | None:
    """Return the verb that trained what is in a folder, and its record; None for any other place."""
    records = ((verb, Folder(place).record(name)) for name, verb in TRAINED.items())
    return next(((verb, record) for verb, record in records if record), None)


def _ledger_of(place: Path) -> Path:
    if os.path.exists(place) and not os.path.isdir(place):
        return place
    tried = [place / LEDGER, Folder(place).ledger]
    for path in tried:
        if os.path.exists(path):
            return path
    plan, verdict = place / "plan.json", place / "verdict.json"
    if place.name == UNPROVEN and os.path.exists(place.parent / "plan.json"):
        raise UnknownName(
            f"{place} holds the plan that `secateur prune` set aside: secateur show {place.parent}, or secateur apply "
            f"MODEL --plan {plan} to carry it out."
        )
    if os.path.exists(verdict):
        raise UnknownName(
            f"{place} was made with --ledger elsewhere: secateur show LEDGER lists the plans that were judged, and "
            f"{place / 'report.html'} has the verdict."
        )
    if os.path.exists(plan):
        raise UnknownName(
            f"{place} was made by `secateur apply`, which judges nothing: secateur eval {place} --task TASK."
        )
    if note := _unfinished(Folder(place).run) or _unfinished(place):
        raise UnknownName(f"{place}: {note['verb']} is {note['status']}, and has nothing to show yet.")
    raise UnknownName(
        f"{place} is no run: there is no {' and no '.join(map(str, tried))}. `secateur runs DIR` lists runs."
    )


def _or_worst(trial: Trial, metric: Metric) -> float:
    """Return a key by which the best comes first; a value that is not there comes last."""
    value = trial.means[metric.name]
    return math.inf if math.isnan(value) else -value if metric.higher_is_better else value


def _examples(kept: object) -> list[int]:
    if not isinstance(kept, list) or not all(isinstance(number, int) for number in kept):
        raise ValueError("no list of examples")
    return kept
