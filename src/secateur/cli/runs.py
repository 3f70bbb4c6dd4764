"""What ledgers and checkpoint folders tell about runs, for `secateur runs` and `secateur show`. Imports no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from secateur.checkpoint.folder import Folder
from secateur.core.ledger import Ledger, Run, Trial
from secateur.core.score import METRICS, Metric
from secateur.errors import UnknownName


def runs_in(place: Path) -> list[dict[str, Any]]:
    """Every run under a folder (its `*.run` folders, two levels deep) or in one ledger file, oldest first."""
    if place.is_file():
        ledgers = [place]
    else:
        ledgers = sorted(
            {
                *place.glob("*.run/ledger.sqlite"),
                *place.glob("*/*.run/ledger.sqlite"),
                *place.glob("ledger.sqlite"),
            }
        )
    found = []
    for path in ledgers:
        with Ledger.open(path, create=False) as ledger:
            found += [_summary(ledger, run) for run in ledger.runs()]
    return sorted(found, key=lambda run: run["created"])


def _summary(ledger: Ledger, run: Run) -> dict[str, Any]:
    scope = ledger.recall(run.id, "scope")
    return {
        "run": _shown(_out(ledger.path, run)),
        "model": run.command["model"],
        "task": " + ".join([run.command["task"], *run.command.get("more_tasks", ())]),
        "created": run.created[:16].replace("T", " "),
        "status": run.status,
        "plans": len(ledger.trials(scope)) if scope else 0,
        "command": run.command,
        "ledger": str(ledger.path),
    }


def _out(ledger: Path, run: Run) -> Path:
    """Where the run's checkpoint is: beside its `OUT.run`, wherever that is now; else where it was written."""
    if ledger.parent.suffix == ".run":
        return ledger.parent.with_suffix("")
    return Path(run.out)


def _shown(path: Path) -> str:
    """Relative where it lies below the current folder."""
    full = path.resolve()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)


def run_record(place: Path, top: int) -> dict[str, Any]:
    """The newest run of a ledger with its verdict, if there is one, and the `top` plans it judged, best first in the
    metric that decides, after the original; all on `select`.

    Plans judged on more examples come first, since a race drops the others early.
    """
    path = _ledger_of(place)
    with Ledger.open(path, create=False) as ledger:
        runs = ledger.runs()
        if not runs:
            raise UnknownName(f"{path} holds no run yet.")
        run = runs[-1]
        scope, name, select = (ledger.recall(run.id, key) for key in ("scope", "metric", "select"))
        trials = ledger.trials(scope, select) if scope else []
        summary = _summary(ledger, run)
    metric = METRICS[name or "accuracy"]  # ledgers of an earlier day do not say
    cut = [trial for trial in trials if trial.plan.edits]
    sign = -1 if metric.higher_is_better else 1
    cut.sort(
        key=lambda trial: (-trial.n, sign * (_number(trial.means[metric.name]) or 0.0), trial.means["loss"])
    )
    base = [trial for trial in trials if not trial.plan.edits and select is not None]
    verdict = _out(path, run) / "verdict.json"
    return {
        "run": summary,
        "verdict": json.loads(verdict.read_text(encoding="utf-8")) if verdict.exists() else None,
        "metric": metric.name,
        "judged": len(trials),
        "trials": [_row(trial, metric) for trial in (*base, *cut[:top])],
    }


def _row(trial: Trial, metric: Metric) -> dict[str, Any]:
    """The metric that decides, and the loss by itself where that is another."""
    names = dict.fromkeys((metric.name, *(() if metric.column == "loss" else ("loss",))))
    values = {name: _number(trial.means[name]) for name in names}
    return {"plan": str(trial.plan), "n": trial.n} | values | {"seconds": trial.seconds}


def trained_record(place: Path) -> tuple[str, dict[str, Any]] | None:
    """The verb that trained what is in a folder, and its record; None for any other place."""
    records = ((verb, Folder(place).record(f"{verb}.json")) for verb in ("heal", "finetune", "train"))
    return next(((verb, record) for verb, record in records if record), None)


def _ledger_of(place: Path) -> Path:
    if place.is_file():
        return place
    tried = [place / "ledger.sqlite", Folder(place).ledger]
    for path in tried:
        if path.exists():
            return path
    if (place / "plan.json").exists() and not (place / "verdict.json").exists():
        raise UnknownName(
            f"{place} was made by `secateur apply`, which judges nothing: secateur eval {place} --task TASK."
        )
    raise UnknownName(
        f"{place} is no run: there is no {' and no '.join(map(str, tried))}. `secateur runs DIR` lists runs."
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
