"""The verbs, for Python and the command line alike. Each returns plain data; none prints.

What is asked is looked at here, before torch is imported: numbers, words, which of them go together, whether what is
named is there, and whether -o is free. What does the work is imported only then.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.checkpoint.folder import UNPROVEN, Folder, made_early
from secateur.checkpoint.plans import read_plan
from secateur.checkpoint.result import Result
from secateur.core.form import Form, Way
from secateur.core.ledger import check_ledger
from secateur.core.machine import check_device, check_dtype, shard_bytes
from secateur.core.origin import origin_of
from secateur.core.plan import Edit, Plan, parse_edits
from secateur.core.progress import Progress, silent
from secateur.core.ranges import check_number
from secateur.core.reading import as_written
from secateur.core.readings import FINER, LINEARITY, PARTS
from secateur.errors import OutputError, PlanError, TaskError, UnknownName, nearest
from secateur.forecast.fleet import UTILIZATION, DeviceFleet
from secateur.gains.length import THREADS, Length
from secateur.hf.source import place_of
from secateur.inputs import folder_names, inputs, inputs_of, kept_of
from secateur.methods.registry import method_reading, method_readings, read_options
from secateur.options import Options

if TYPE_CHECKING:
    from secateur.evaluation.workers import WorkerLauncher
    from secateur.hf.load import Loaded

LOG = logging.getLogger("secateur")
SPLITS = ("probe", "select", "test")
Given = Plan | Sequence[str] | str | Path | None  # a plan, edits such as "b2.gate=5", or a plan file


def prune(
    model: str,
    task: str | Sequence[str],
    out: str | Path,
    *,
    ledger: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    workers: WorkerLauncher | None = None,
    **options: Any,
) -> Result:
    """Find what `model` does not need for `task`, take it out, prove it on held-out data, write a checkpoint. Of
    several tasks one plan that is good for all.

    `options` are the fields of `secateur.options.Options`: seed, limit, exhaustive, matrices, layers, ...
    `workers`: who judges in the place of this process, such as `secateur.on_ray("local:2")`.
    """
    chosen = read_options(model, *_each(task), **options)
    folder = Folder.at(out, reads=inputs_of(chosen), keeps=[ledger, *kept_of(chosen)])
    from secateur import pipeline as recipe

    how = {"ledger": ledger, "overwrite": overwrite, "progress": progress, "workers": workers}
    return recipe.prune(chosen, folder, **how)


def prune_each(
    model: str,
    tasks: Sequence[str],
    out: str | Path,
    *,
    ledger: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    workers: WorkerLauncher | None = None,
    **options: Any,
) -> list[Result]:
    """As `prune`, a plan for each task by itself, in folders of `out` that are named after them.

    The model is read once. The results are those of as many calls of `prune`, bit for bit.
    """
    chosen = read_options(model, *_each(tasks), **options)
    if os.path.exists(Path(out) / "plan.json"):
        raise OutputError(f"{out} is a checkpoint; --each makes a folder of several. Give another -o.")
    reads, keeps = inputs_of(chosen), [ledger, *kept_of(chosen)]
    places = [Folder.at(Path(out) / name, reads=reads, keeps=keeps) for name in folder_names(chosen.tasks)]
    each = [replace(chosen, task=one, more_tasks=()) for one in chosen.tasks]
    from secateur import pipeline as recipe

    how = {"ledger": ledger, "overwrite": overwrite, "progress": progress, "workers": workers}
    return recipe.prune_each(list(zip(each, places, strict=True)), **how)


def plan_cost(
    model: str,
    task: str | Sequence[str],
    *,
    calibrate: bool = True,
    devices: int = 1,
    tflops: float | None = None,
    bandwidth: float | None = None,
    utilization: float = UTILIZATION,
    memory: float | None = None,
    progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:
    """Forecasts what `prune` with these options asks: plans, evaluations, FLOPs, bytes, and seconds, stage by stage.

    Each number is three: the least a search can take, what searches took so far, the most. Seconds are measured here
    for some seconds; with `tflops` and `bandwidth` (GB/s) they are those of another machine, and with `calibrate`
    False there are none: then no weights are read, and a config.json is enough. Raises: as `prune` does before it
    starts.
    """
    chosen = read_options(model, *_each(task), **options)
    fleet = DeviceFleet(devices, tflops, bandwidth, utilization, memory)
    inputs_of(chosen)
    from secateur.forecast.record import plan_cost

    return plan_cost(chosen, fleet, calibrate=calibrate, progress=progress)


def load(model: str, **options: Any) -> Loaded:
    """A checkpoint, hub name or `builtin:NAME` with its tokenizer, anatomy and fingerprint."""
    from secateur.hf.load import load_model

    return load_model(model, **options)


def report(folder: str | Path, also: Sequence[str | Path] = ()) -> Path:
    """Write `report.html` of what `prune` or `heal` left again, from its records; of a healed cut with others (`also`)
    on its curves over depth."""
    from secateur.reporting import write_run_report

    folder = Path(folder)
    mend = "Write it again with `secateur prune` or `heal`."
    with as_written(folder, OutputError, mend):
        return write_run_report(folder, folder / "report.html", also)


# ----------------------------------------------------------------------------------------------------------- evaluate


def evaluate(
    model: str,
    task: str,
    *,
    split: str = "select",
    plan: Given = None,
    ledger: str | Path | None = None,
    progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:
    """All metrics of a model on one split, with intervals; with `plan`, of the model as if cut.

    `split="test"` counts as an opening of it and needs a `ledger` to be counted in.
    """
    if split not in SPLITS:
        raise UnknownName(f"unknown split {split!r}.{nearest(split, SPLITS)}")
    if split == "test" and ledger is None:
        raise TaskError(
            "looking at the test split counts as opening it: say in which --ledger that is written down."
        )
    chosen, given = read_options(model, task, **options), read_edits(plan)
    inputs_of(chosen)
    if ledger is not None:
        check_ledger(Path(ledger))
    from secateur import measuring

    return measuring.evaluate(chosen, split, given, ledger=ledger, progress=progress)


def read_edits(plan: Given) -> Plan | tuple[Edit, ...]:
    """A plan, from a plan file; or bare edits, from text (`b2.gate=5`). No model is needed for that."""
    if isinstance(plan, Plan):
        return plan
    if not isinstance(plan, str | Path):
        return parse_edits(plan or ())
    found, aside = read_plan(Path(plan)), Path(plan) / UNPROVEN
    if not found.edits and os.path.exists(aside):
        LOG.warning("%s cuts nothing; the plan that was set aside there is %s", plan, aside)
    return found


# -------------------------------------------------------------------------------------------------------------- apply


def apply(
    model: str,
    plan: Plan | Sequence[str] | str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    portable: bool = False,
    zeroed: bool = False,
    factorize: bool = False,
    shard_size: str = "5GB",
    svd: str = "auto",
    check: str = "auto",
    progress: Progress = silent,
) -> Result:
    """Carry out a plan without a search or a verdict; the checkpoint says that nothing was verified.

    The model is read from its files and written tensor by tensor, so it may be larger than memory; killed, the same
    call goes on with the next file. With `portable` the nearest plan that a stock class can hold; with `zeroed` the
    original's shapes, zeros in them; with `factorize` low rank is stored as two factors. `svd` is exact, randomized
    or auto (randomized for small ranks of large matrices), on `device`; `check` is logits, digests or auto (by the
    memory that is free). plan.json says which it was.
    """
    given, form = read_edits(plan), Form(zeroed, factorize, portable)
    way = Way(shard_bytes(shard_size), svd, check, device)
    check_dtype(dtype)
    files = [plan] if isinstance(plan, str | Path) else []
    folder = Folder.at(out, reads=inputs([model], files=files))
    edits = given.edits if isinstance(given, Plan) else given
    loading = {"revision": revision, "dtype": dtype}
    command = {"apply": [edit.to_json() for edit in edits], "model": model} | loading | vars(form)
    command |= {"shard_size": shard_size, "svd": svd}
    loading |= {"trust_remote_code": trust_remote_code}
    from secateur import applying

    how = {"form": form, "way": way, "overwrite": overwrite, "progress": progress}
    return applying.apply(model, given, folder, command, loading, **how)


def preview(
    model: str,
    plan: Plan | Sequence[str] | str | Path,
    *,
    portable: bool = False,
    zeroed: bool = False,
    factorize: bool = False,
    shard_size: str = "5GB",
    svd: str = "auto",
    check: str = "auto",
    device: str = "auto",
    **loading: Any,
) -> dict[str, Any]:
    """What `apply` would cut, how many parameters would be left, where the result would load, and the nearest plan
    whose result would be a stock checkpoint. Writes nothing, and refuses what `apply` would refuse."""
    given, form = read_edits(plan), Form(zeroed, factorize, portable)
    Way(shard_bytes(shard_size), svd, check, device)
    check_dtype(loading.get("dtype", "auto"))
    inputs([model])
    from secateur import applying

    return applying.preview(model, given, form, loading)


# -------------------------------------------------------------------------------------------------------------- probe


def probe(
    model: str,
    task: str | Sequence[str] = (),
    *,
    what: str | Sequence[str] = "spectrum",
    split: str = "select",
    shots: int | Sequence[int] = 0,
    plan: Given = None,
    revisions: Sequence[str] = (),
    also: Sequence[str] = (),
    parts: bool = False,
    finer: str | Sequence[str] = (),
    out: str | Path | None = None,
    progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:
    """Read a model: `what` is heads, ffns, neurons or induction (what matters, and what heads do), spectrum, or one of
    the four analyses of LASER's paper: curves, tail, frequency, paraphrases.

    The first four take several tasks and numbers of shots, and may be asked for together; then there are `components`
    (see docs/records.md) instead of `rows`, and `out` is a folder for them as `probe.json`. `tail`, `frequency` and
    `paraphrases` look at what `plan` does. `linearity` reads encoders too, and has `models` instead of `rows`: MODEL,
    or `revisions` of it, and those in `also`; `finer` may name heads and matrices. Raises `UnknownName`, `TaskError`,
    `PlanError`, `OutputError`.
    """
    names, tasks, numbers, given = _each(what), _each(task), _each(shots), read_edits(plan)
    _check_readings(names, split, linearity_alone=bool(revisions or also or parts or finer))
    if set(names) <= set(PARTS):
        _check_edits(names, given)
        asked = read_options(model, "", **options)  # the tasks, which may be none, come beside it
        counts = [replace(asked, shots=number).shots for number in numbers or [0]]
        if not tasks and set(names) != {"induction"}:
            raise TaskError(f"--what {','.join(names)} is read on a task: give --task.")
        with made_early(out, reads=inputs([model], tasks)):
            from secateur.probing.record import read_record

            return read_record(names, asked, tasks, counts, split, out=out, progress=progress)
    task, number = _single(names, tasks, numbers, out)
    _check_edits(names, given)
    if names[0] in method_readings():
        options |= {"method": method_reading(names[0]).name}  # which has the options of the reading
    asked = read_options(model, task, shots=number, **options)
    if names == [LINEARITY]:
        series = _series(asked, _each(revisions), _each(also), _each(finer))
        with made_early(out, reads=[*inputs_of(asked), *inputs(also)]):
            from secateur.probing.linearity import read_linearity

            how = {"parts": parts, "finer": _each(finer), "out": out, "progress": progress}
            return read_linearity(series, split, **how)
    inputs_of(asked)
    from secateur import measuring

    return measuring.analyze(names[0], asked, split, given, progress)


def _check_readings(names: Sequence[str], split: str, *, linearity_alone: bool) -> None:
    """Raises where readings are not known, do not go together, or do not go with what else was asked."""
    known = (*PARTS, *method_readings(), LINEARITY)
    for name in names or [""]:
        if name not in known:
            raise UnknownName(f"unknown probe {name!r}.{nearest(name, known)}")
    if list(names) != [LINEARITY] and linearity_alone:
        raise TaskError("--revisions, --also, --parts and --finer are for --what linearity.")
    if split == "test":
        raise TaskError("probes read the probe or the select split; test is for the one verdict.")
    if split not in SPLITS:
        raise UnknownName(f"unknown split {split!r}.{nearest(split, SPLITS)}")


def _check_edits(names: Sequence[str], given: Plan | tuple[Edit, ...]) -> None:
    """Raises `PlanError` for readings that are of the model as it is, and for those that look at edits."""
    edits = given.edits if isinstance(given, Plan) else given
    if edits and set(names) & {*PARTS, LINEARITY, "spectrum", "curves"}:
        raise PlanError(f"--what {','.join(names)} reads the model as it is; leave out --plan and --edit.")
    if not edits and set(names) & {"tail", "frequency"}:
        raise PlanError(
            f"--what {','.join(names)} looks at an edit: give --plan plan.json, or --edit such as b2.gate=5."
        )


def _series(asked: Options, revisions: list[str], also: list[str], finer: list[str]) -> list[Options]:
    """The models whose linearity is read. Raises `UnknownName`."""
    for one in finer:
        if one not in FINER:
            raise UnknownName(f"there are no finer {one!r} to read.{nearest(one, FINER)}")
    found = [replace(asked, revision=one) for one in revisions] or [asked]
    found += [replace(asked, model=one, revision=None) for one in also]
    names = [one.named for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UnknownName(f"{twice[0]} is given twice; a curve each needs models of different names.")
    return found


def _each(given: Any) -> list[Any]:
    """One value or several, as a list."""
    return [given] if isinstance(given, str | int | float) else list(given)


def _single(what: list[str], tasks: list[str], shots: list[int], out: object) -> tuple[str, int]:
    """What the readings of matrices and edits are of, and linearity. Raises `TaskError`."""
    if not tasks:
        raise TaskError(f"--what {','.join(what)} is read on a task: give --task.")
    several, one = ", ".join(PARTS), len(what) == len(tasks) == len(shots) == 1
    if what == [LINEARITY] and not one:
        raise TaskError(
            f"--what linearity is read on one --task, at one number of --shots; {several} on several."
        )
    if what != [LINEARITY] and (not one or out is not None):
        raise TaskError(
            f"--what {','.join(what)} reads one thing, on one --task, at one number of --shots, and writes no -o; "
            f"several, and -o, are for {several}."
        )
    return tasks[0], shots[0]


# -------------------------------------------------------------------------------------------------------------- bench


def bench(
    out: str | Path,
    against: str | Path | None = None,
    *,
    prompt: int = 512,
    new: int = 32,
    batch: int = 1,
    repeats: int = 7,
    threads: int | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measures on this machine what a cut model saves against the dense one: sizes, memory, prefill, decode.

    `against` is the dense model; None: the one that `out` says it was cut from. `revision` is that model's. `threads`
    are torch's; None: as they are. The keys: docs/records.md, Bench. Raises: `UnknownName`, `ModelError`.
    """
    length = Length(prompt, new, batch, repeats)
    if threads is not None:
        check_number("threads", threads, THREADS)
    check_dtype(dtype)
    check_device(device)
    if against is None:
        origin = origin_of(place_of(str(out)), UnknownName, "Give --against MODEL.")
        against, revision = origin.model, revision or origin.revision
    inputs([str(out), str(against)])
    how = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    dense, cut = (
        {"name": str(against), "revision": revision} | how,
        {"name": str(out), "revision": None} | how,
    )
    from secateur.gains.bench import bench

    return bench(dense, cut, length, threads=threads, progress=progress)
