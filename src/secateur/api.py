"""The verbs, for Python and the command line alike. Each returns plain data; none prints.

What is asked is looked at here, before torch is imported: numbers, words, which of them go together, whether what is
named is there, and whether -o is free. What does the work is imported only then. A model that is in memory already is
checked after its options, and before anything else.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from secateur.checkpoint.folder import LEDGER, UNPROVEN, Folder, made_early
from secateur.checkpoint.out import check_apart, check_new_file
from secateur.checkpoint.plans import read_plan
from secateur.core.config import options_of
from secateur.core.form import Form, Way, check_gguf_type
from secateur.core.ledger import check_ledger
from secateur.core.machine import Loading, NamedModel, check_device, check_dtype, shard_bytes
from secateur.core.origin import origin_of
from secateur.core.plan import Edit, Plan, parse_edits
from secateur.core.progress import Progress, StagedProgress, silent
from secateur.core.ranges import Range, check_number
from secateur.core.reading import as_written, check_name
from secateur.core.readings import FINER, LINEARITY, PARTS
from secateur.core.search_log import Log
from secateur.core.site import CHECKS, MAPPED
from secateur.errors import (
    ModelError,
    OutputError,
    PlanError,
    SecateurError,
    TaskError,
    UnknownName,
    nearest,
)
from secateur.forecast.fleet import UTILIZATION, DeviceFleet
from secateur.gains.length import THREADS, Length
from secateur.given import OneTask, Tasks, task_word, task_words
from secateur.hf.source import GGUF, place_of, with_gguf
from secateur.inputs import folder_names, inputs, inputs_of, kept_of, model_places, tasks_of
from secateur.keywords import CommonOptions, ProbeOptions, PruneOptions
from secateur.methods.registry import OURS, method_options, method_reading, method_readings, read_options
from secateur.options import Options
from secateur.result import ProbeResult, Result
from secateur.signatures import verb
from secateur.tracking import open_log

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from secateur.evaluation.workers import WorkerLauncher
    from secateur.hf.load import Loaded
    from secateur.session import Session

LOG = logging.getLogger("secateur")
SPLITS = ("probe", "select", "test")
CHECKABLE = Range(0, 1000, whole=True)
COMMON = tuple(options_of(Options))
EVERY = (*COMMON, *(one for method in OURS for one in options_of(method.Config)))
PLACES = (
    "revision",
    "gguf_file",
    "dtype",
    "device",
    "device_map",
    "offload_folder",
    "max_memory",
)  # how a model is loaded
Given = Plan | Sequence[str] | str | Path | None  # a plan, edits such as "b2.gate=5", or a plan file


def _more() -> list[str]:
    """Return the options that signatures need not name: those of methods of other packages, and the method."""
    return ["method", *method_options()]


@contextmanager
def options_for(
    model: str | Path | Loaded | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tasks: Sequence[str],
    options: Mapping[str, Any],
) -> Iterator[Options]:
    """Give the options of a verb; a model in memory is held in eval mode meanwhile, and is in them.

    Raises: as `read_options`; `ModelError` for a model that cannot be cut, and for a tokenizer beside a name.
    """
    given = dict(options)
    if "side" in given:
        given["side"] = task_words(given["side"])
    if given.get("test_task") is not None:
        given["test_task"] = task_word(given["test_task"])
    if isinstance(model, str | Path):
        if tokenizer is not None:
            raise ModelError(f"tokenizer= is for a model in memory; {model} is read with its own.")
        yield read_options(str(model), *tasks, **given)
        return
    chosen = read_options("", *tasks, **given)
    for name in PLACES:
        if vars(chosen)[name] != vars(Options)[name]:
            raise ModelError(f"{name}= says how a model is loaded, and this one is in memory already.")
    from secateur.hf.memory import borrowed

    with borrowed(model, tokenizer) as loaded:
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        yield replace(chosen, model=loaded.name, revision=loaded.revision, dtype=dtype, in_memory=loaded)


@verb(EVERY, _more)
def prune(
    model: str | Path | Loaded | PreTrainedModel,
    task: Tasks,
    out: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    ledger: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    workers: WorkerLauncher | None = None,
    log: Log | str | None = None,
    method: str | None = None,
    goal: str | None = None,
    **options: Unpack[PruneOptions],
) -> Result:
    """Find what a model does not need for a task, take it out, prove it on held-out data, write a checkpoint.

    Args:
        model: A folder, a GGUF file, a hub name, `builtin:NAME`, what `load` returns, or a model of transformers with
            its `tokenizer`. One in memory is left as it is.
        task: As on the command line, or its rows: dicts as a task file has them, a `datasets.Dataset`, or
            `secateur.texts(...)`. A list of tasks gives one plan that is good for all of them.
        out: Folder for the checkpoint.
        ledger: File that counts openings of the test split over several runs.
        progress: Called as `progress(stage, done, total)`.
        workers: What judges in place of this process, such as `secateur.on_ray("local:2")`.
        log: Called with a `Judgment` of every plan that the search judges; or `trackio`, `wandb`, `tensorboard:DIR`,
            which show them.
        method: The way to search; by default that of the goal.
        goal: `better`, `smaller` or `faster`; by default `smaller` where a budget is given (`params`, `kv_bytes`,
            `max_loss`), else `better`.
        options: As on the command line, with underscores: seed, limit, matrices, layers, ...

    Raises: any `SecateurError`; then what was at `out` is untouched.
    """
    opened = open_log(log)
    with options_for(
        model, tokenizer, task_words(task), {"method": method, "goal": goal, **options}
    ) as chosen:
        folder = Folder.at(out, reads=inputs_of(chosen), keeps=[ledger, *kept_of(chosen)])
        from secateur import pipeline

        return pipeline.prune(
            chosen,
            folder,
            ledger=ledger,
            overwrite=overwrite,
            progress=progress,
            workers=workers,
            expect=_expected(progress),
            log=opened,
        )


def _expected(progress: Progress) -> Callable[[Session, float | None], Mapping[str, float]] | None:
    """Return what forecasts the stages of a run, where somebody looks at its progress."""
    if not isinstance(progress, StagedProgress):
        return None
    from secateur.forecast.record import expected_seconds

    return expected_seconds


@verb(EVERY, _more)
def prune_each(
    model: str | Path | Loaded | PreTrainedModel,
    tasks: Tasks,
    out: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    ledger: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    workers: WorkerLauncher | None = None,
    method: str | None = None,
    goal: str | None = None,
    **options: Unpack[PruneOptions],
) -> list[Result]:
    """Prune for each task by itself, as `prune` does, in folders of `out` that are named after the tasks.

    The model is read once. The results are those of as many calls of `prune`, bit for bit.
    """
    with options_for(
        model, tokenizer, task_words(tasks), {"method": method, "goal": goal, **options}
    ) as chosen:
        if os.path.exists(Path(out) / "plan.json"):
            raise OutputError(f"{out} is a checkpoint; --each makes a folder of several. Give another -o.")
        reads, keeps = inputs_of(chosen), [ledger, *kept_of(chosen)]
        names = folder_names(chosen.tasks)
        places = [Folder.at(Path(out) / name, reads=reads, keeps=keeps) for name in names]
        each = [replace(chosen, task=one, more_tasks=()) for one in chosen.tasks]
        from secateur import pipeline

        runs = list(zip(each, places, strict=True))
        return pipeline.prune_each(
            runs,
            ledger=ledger,
            overwrite=overwrite,
            progress=progress,
            workers=workers,
            expect=_expected(progress),
        )


@verb(EVERY, _more)
def plan_cost(
    model: str | Path | Loaded | PreTrainedModel,
    task: Tasks,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    calibrate: bool = True,
    devices: int = 1,
    tflops: float | None = None,
    bandwidth: float | None = None,
    utilization: float = UTILIZATION,
    memory: float | None = None,
    progress: Progress = silent,
    method: str | None = None,
    goal: str | None = None,
    **options: Unpack[PruneOptions],
) -> dict[str, Any]:
    """Forecast what `prune` with these options asks: plans, evaluations, FLOPs, bytes, and seconds, stage by stage.

    Each number is three: the least a search can take, what searches took so far, the most. Seconds are measured here
    for some seconds; with `tflops` and `bandwidth` (GB/s) they are those of another machine, and with `calibrate`
    False there are none: then no weights are read, and a config.json is enough. Raises: as `prune` does before it
    starts.
    """
    with options_for(
        model, tokenizer, task_words(task), {"method": method, "goal": goal, **options}
    ) as chosen:
        fleet = DeviceFleet(devices, tflops, bandwidth, utilization, memory)
        inputs_of(chosen)
        from secateur.forecast.record import plan_cost

        return plan_cost(chosen, fleet, calibrate=calibrate, progress=progress)


@verb()
def load(
    model: str | Path,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    device_map: str | None = None,
    offload_folder: str | None = None,
    max_memory: str | None = None,
) -> Loaded:
    """Load a checkpoint, hub name, GGUF file or `builtin:NAME` with its tokenizer, anatomy and fingerprint.

    Args:
        gguf_file: Which `.gguf` file of `model`, where that is a folder with several or a hub name.
        dtype: auto (as stored), float32, bfloat16, float16 or float64.
        device_map: Spread the model by accelerate: auto, balanced, sequential, disk, or FILE.json.
        offload_folder: Folder that allows `device_map` to leave weights on disk.
        max_memory: What `device_map` may fill, such as `cpu=8GB,0=20GB`.

    Raises: `UnknownName`, `ModelError`.
    """
    from secateur.hf.load import load_model

    return load_model(
        with_gguf(str(model), gguf_file),
        revision=revision,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        device_map=device_map,
        offload_folder=offload_folder,
        max_memory=max_memory,
    )


@verb()
def report(folder: str | Path, also: Sequence[str | Path] = ()) -> Path:
    """Write `report.html` of what `prune` or `heal` left again, from its records.

    Args:
        folder: The checkpoint.
        also: Other healed cuts, for the curves over depth of a healed cut.

    Raises: `SecateurError` for records that are missing, broken, or not of one original; `OutputError` for a page that
    cannot be written.
    """
    from secateur.reporting import check_folder, write_run_report
    from secateur.training.report.heal_page import write_report_of

    folder = Path(folder)
    page = folder / "report.html"
    mend = "Write it again with `secateur prune` or `heal`."
    with as_written(folder, OutputError, mend):
        check_folder(folder)
        if (folder / "heal.json").exists():
            return write_report_of(folder, page, also)
        if also:
            raise SecateurError(f"{folder} holds no heal.json: --also is for what secateur heal wrote.")
        return write_run_report(folder, page)


@verb()
def compare_runs(folders: Sequence[str | Path], out: str | Path = "comparison.html") -> dict[str, Any]:
    """Write one page that compares what several runs of `prune` left, and return its numbers.

    Args:
        folders: Two checkpoints or more.
        out: The page.

    Raises: `SecateurError` for fewer folders, one given twice, records that are missing or broken; `OutputError` for a
    page that cannot be written.
    """
    from secateur import reporting

    if len(folders) < 2:
        raise SecateurError("comparing takes two folders or more that `secateur prune` wrote.")
    check_name(str(out), OutputError)
    with as_written(Path(out), OutputError, "Write it again with `secateur prune`."):
        return reporting.compare_runs(folders, out).to_json()


# ----------------------------------------------------------------------------------------------------------- evaluate


@verb(COMMON, _more)
def evaluate(
    model: str | Path | Loaded | PreTrainedModel,
    task: OneTask,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    split: str = "select",
    plan: Given = None,
    ledger: str | Path | None = None,
    progress: Progress = silent,
    **options: Unpack[CommonOptions],
) -> dict[str, Any]:
    """Measure all metrics of a model on one split, with intervals; with `plan`, of the model as if cut.

    `split="test"` counts as an opening of it and needs a `ledger` to be counted in. Of a checkpoint of `prune` the
    `join` is that of its run, unless another is given.
    """
    if split not in SPLITS:
        raise UnknownName(f"unknown split {split!r}.{nearest(split, SPLITS)}")
    if split == "test" and ledger is None:
        raise TaskError(
            "looking at the test split counts as opening it: say in which --ledger that is written down."
        )
    joined = _with_join(model if isinstance(model, str | Path) else None, options)
    with options_for(model, tokenizer, [task_word(task)], joined) as chosen:
        given = read_edits(plan)
        inputs_of(chosen)
        if ledger is not None:
            check_ledger(Path(ledger))
        from secateur import steps

        return steps.evaluate(chosen, split, given, ledger=ledger, progress=progress)


def _with_join(out: str | Path | None, options: CommonOptions) -> Mapping[str, Any]:
    """Return options with the join of the run that made the checkpoint `out`, where they say nothing of one."""
    if out is None or "join" in options or not os.path.isfile(Path(out) / "plan.json"):
        return options
    try:
        join = origin_of(Path(out), PlanError, "").join
    except PlanError:  # a plan.json of something else; whoever needs the plan says so
        return options
    if not join:
        return options
    LOG.info('%s was made with --join %r, which is taken here too (--join "" takes none).', out, join)
    return {**options, "join": join}


@verb(COMMON, _more)
def transfer(
    plan: Plan | str | Path,
    model: str | Path | Loaded | PreTrainedModel | None = None,
    *,
    task: OneTask,
    tokenizer: PreTrainedTokenizerBase | None = None,
    ledger: str | Path | None = None,
    progress: Progress = silent,
    **options: Unpack[CommonOptions],
) -> dict[str, Any]:
    """Measure a plan elsewhere, on the test split of another task or in another model, paired against the whole model.

    Args:
        plan: plan.json, or the checkpoint that holds one.
        model: One of the same shapes, whose weights may be others: linear maps are fitted to it anew. None: the one
            that the checkpoint `plan` was cut from.
        ledger: Where the opening of the test split is counted; None: in that of the run that made `plan`.

    Raises: `PlanError` for a plan without edits, for one that does not fit the model, and for biases of directions,
        which are not fitted anew; `TaskError` where there is no ledger.
    """
    given, place = read_edits(plan), None if isinstance(plan, Plan) else Path(plan)
    if not isinstance(given, Plan) or not given.edits:
        raise PlanError(f"{place or 'this plan'} cuts nothing, so there is nothing to measure.")
    if model is None:
        if place is None:
            raise ModelError("in which model? Give MODEL.")
        origin = origin_of(place if place.is_dir() else place.parent, PlanError, "Give MODEL.")
        model, options = origin.model, {"revision": origin.revision, **options}
    own = Path(f"{place}.run") / LEDGER
    if ledger is None and (place is None or not os.path.exists(own)):
        raise TaskError(
            "looking at the test split counts as opening it: say in which --ledger that is written down."
        )
    counted = own if ledger is None else Path(ledger)
    with options_for(model, tokenizer, [task_word(task)], _with_join(place, options)) as chosen:
        inputs_of(chosen)
        check_ledger(counted)
        from secateur import steps

        return steps.transfer(chosen, given, counted, progress).model_dump(exclude_unset=True)


def read_edits(plan: Given) -> Plan | tuple[Edit, ...]:
    """Return the plan of a plan file, or bare edits from text (`b2.gate=5`), without a model.

    Raises: `PlanError` for a file that holds no plan, `SecateurError` for text that is no edit.
    """
    if isinstance(plan, Plan):
        return plan
    if not isinstance(plan, str | Path):
        return parse_edits(plan or ())
    found, aside = read_plan(Path(plan)), Path(plan) / UNPROVEN
    if not found.edits and os.path.exists(aside):
        LOG.warning("%s cuts nothing; the plan that was set aside there is %s", plan, aside)
    return found


# -------------------------------------------------------------------------------------------------------------- apply


@verb()
def apply(
    model: str | Path,
    plan: Plan | Sequence[str] | str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    revision: str | None = None,
    gguf_file: str | None = None,
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
    call goes on with the next file. `secateur.cut` cuts a model in memory.

    Args:
        portable: Carry out the nearest plan that a stock class can hold.
        zeroed: Write the original's shapes, with zeros in them.
        factorize: Store low rank as two factors.
        svd: exact, randomized or auto (randomized for small ranks of large matrices), on `device`.
        check: logits, digests or auto (by the memory that is free); plan.json says which it was.
    """
    model, given, form = with_gguf(str(model), gguf_file), read_edits(plan), Form(zeroed, factorize, portable)
    way = Way(shard_bytes(shard_size), svd, check, device)
    check_dtype(dtype)
    files = [plan] if isinstance(plan, str | Path) else []
    folder = Folder.at(out, reads=inputs([model], files=files))
    edits = given.edits if isinstance(given, Plan) else given
    loading: Loading = {"revision": revision, "dtype": dtype, "trust_remote_code": trust_remote_code}
    command = {
        "apply": [edit.to_json() for edit in edits],
        "model": model,
        "revision": revision,
        "dtype": dtype,
        **vars(form),
        "shard_size": shard_size,
        "svd": svd,
    }
    from secateur import steps

    return steps.apply(
        model, given, folder, command, loading, form=form, way=way, overwrite=overwrite, progress=progress
    )


@verb()
def preview(
    model: str | Path,
    plan: Plan | Sequence[str] | str | Path,
    *,
    portable: bool = False,
    zeroed: bool = False,
    factorize: bool = False,
    shard_size: str = "5GB",
    svd: str = "auto",
    check: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    gguf_file: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Return what `apply` would cut, how many parameters would be left, where the result would load, and the nearest
    plan whose result would be a stock checkpoint. Writes nothing, and refuses what `apply` would refuse."""
    model, given, form = with_gguf(str(model), gguf_file), read_edits(plan), Form(zeroed, factorize, portable)
    Way(shard_bytes(shard_size), svd, check, device)
    check_dtype(dtype)
    inputs([model])
    loading: Loading = {"revision": revision, "dtype": dtype, "trust_remote_code": trust_remote_code}
    from secateur import steps

    return steps.preview(model, given, form, loading)


@verb()
def export(
    model: str | Path,
    file: str | Path | None = None,
    *,
    type: str = "f16",
    revision: str | None = None,
    gguf_file: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a stock checkpoint as a GGUF file, for llama.cpp, and return what was written and how near it is.

    Args:
        file: None: named after the model and the type, in the current folder.
        type: How numbers are stored: f16, q8_0 or f32.

    Raises: `ModelError` for a model that is not written as GGUF; `OutputError` for a file that is there, or that does
    not compute what the checkpoint does.
    """
    model = with_gguf(str(model), gguf_file)
    check_gguf_type(type)
    name = Path(model).name.removesuffix(GGUF).replace(":", "-")
    path = Path(f"{name}-{type}.gguf" if file is None else file)
    check_name(str(path), OutputError)
    check_apart(path, [place for place in inputs([model]) if place.is_file()])
    check_new_file(path, overwrite=overwrite)
    from secateur.steps import export_gguf

    return asdict(export_gguf(model, revision, path, type))


@verb()
def push(folder: str | Path, repo: str, *, private: bool = False, dry_run: bool = False) -> dict[str, Any]:
    """Upload a checkpoint to the Hugging Face hub, and return what was uploaded.

    Args:
        folder: The checkpoint.
        repo: USER/NAME on the hub; made where it is not there.
        private: Whether a repository that is made is private.
        dry_run: Only say which files would be uploaded.

    Raises: `OutputError` where there is no checkpoint, no account, no connection, or no right to write.
    """
    check_name(str(folder), OutputError)
    from secateur.checkpoint.push import push

    if _is_unchanged(folder):
        LOG.warning("%s holds the unchanged model: its plan cuts nothing.", folder)
    return push(Path(folder), repo, private=private, dry_run=dry_run).to_json()


def push_cut(folder: str | Path, repo: str, *, private: bool = False) -> dict[str, Any] | None:
    """Upload a checkpoint as `push` does; one that holds the unchanged model is left here, and None is returned."""
    if _is_unchanged(folder):
        LOG.warning(
            "%s holds the unchanged model: its plan cuts nothing. So nothing was pushed; `secateur push %s %s` pushes "
            "it all the same.",
            folder,
            folder,
            repo,
        )
        return None
    pushed: dict[str, Any] = push(folder, repo, private=private)
    return pushed


def _is_unchanged(folder: str | Path) -> bool:
    """Return True for a checkpoint with a plan that cuts nothing. Raises: `PlanError` for a plan that is broken."""
    return os.path.exists(Path(folder) / "plan.json") and not read_plan(Path(folder)).edits


# -------------------------------------------------------------------------------------------------------------- probe


@verb(EVERY, _more)
def probe(
    model: str | Path | Loaded | PreTrainedModel,
    task: Tasks = (),
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
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
    **options: Unpack[ProbeOptions],
) -> ProbeResult:
    """Read a model: `what` is heads, ffns, neurons, experts or induction (what matters, and what heads do), spectrum,
    or one of the four analyses of LASER's paper: curves, tail, frequency, paraphrases.

    The first five take several tasks and numbers of shots, and may be asked for together; then there are `components`
    (see docs/records.md) instead of `rows`. `out` is a folder for the record, `probe.json`, and its page, `probe.html`.
    `tail`, `frequency` and `paraphrases` look at what `plan` does. `linearity` reads encoders too, and has `models`
    instead of `rows`: MODEL, or `revisions` of it, and those in `also`; `finer` may name heads and matrices. Raises
    `UnknownName`, `TaskError`, `PlanError`, `OutputError`.
    """
    names, tasks, given = _words(what), task_words(task), read_edits(plan)
    numbers = [shots] if isinstance(shots, str | int | float) else list(shots)
    _check_readings(names, split, linearity_alone=bool(revisions or also or parts or finer))
    if set(names) <= set(PARTS):
        _check_edits(names, given)
        with options_for(model, tokenizer, [""], options) as asked:  # the tasks, perhaps none, come beside it
            counts = [replace(asked, shots=number).shots for number in numbers or [0]]
            if not tasks and set(names) != {"induction"}:
                raise TaskError(f"--what {','.join(names)} is read on a task: give --task.")
            reads = [*model_places(asked), *inputs(tasks=tasks)]
            with made_early(out, reads=reads):
                from secateur.probing.components import read_record

                record = read_record(names, asked, tasks, counts, split, out=out, progress=progress)
                return ProbeResult(record.model_dump(exclude_unset=True))
    word, number = _single(names, tasks, numbers)
    _check_edits(names, given)
    method = {"method": method_reading(names[0]).name} if names[0] in method_readings() else {}
    with options_for(model, tokenizer, [word], {**options, "shots": number, **method}) as asked:
        if names == [LINEARITY]:
            series = _series(asked, _words(revisions), _words(also), _words(finer))
            with made_early(out, reads=[*inputs_of(asked), *inputs(also)]):
                from secateur.probing.linearity import read_linearity

                straight = read_linearity(
                    series, split, parts=parts, finer=_words(finer), out=out, progress=progress
                )
                return ProbeResult(straight.model_dump(exclude_unset=True))
        with made_early(out, reads=inputs_of(asked)):
            from secateur import steps

            return ProbeResult(steps.analyze(names[0], asked, split, given, progress, out))


def _check_readings(names: Sequence[str], split: str, *, linearity_alone: bool) -> None:
    """Raises where readings are not known, do not go together, or do not go with what else was asked."""
    known = (*PARTS, *method_readings(), LINEARITY)
    for name in names or [""]:
        if name not in known:
            raise UnknownName(f"unknown probe {name!r}.{nearest(name, known)}")
    if list(names) != [LINEARITY] and linearity_alone:
        raise TaskError("--revisions, --also, --parts and --finer are for --what linearity.")
    _check_split(split)


def _check_split(split: str) -> None:
    """Raise `TaskError` or `UnknownName` for a split that readings may not be of."""
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
    """Return the models whose linearity is read. Raises: `UnknownName`, `ModelError`."""
    if revisions and asked.in_memory is not None:
        raise ModelError("revisions are of a model on the hub, by its name; this one is in memory.")
    for one in finer:
        if one not in FINER:
            raise UnknownName(f"there are no finer {one!r} to read.{nearest(one, FINER)}")
    found = [replace(asked, revision=one) for one in revisions] or [asked]
    other = (
        {"revision": None}
        if asked.in_memory is None
        else {"revision": None, "dtype": "auto", "in_memory": None}
    )
    found += [replace(asked, model=one, **other) for one in also]
    names = [one.named for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UnknownName(f"{twice[0]} is given twice; a curve each needs models of different names.")
    return found


def _words(given: str | Sequence[str]) -> list[str]:
    """Return one word or several as a list."""
    return [given] if isinstance(given, str | int | float) else list(given)


def _single(what: list[str], tasks: list[str], shots: list[int]) -> tuple[str, int]:
    """Return the task and the number of shots of what reads one alone. Raises: `TaskError`."""
    if not tasks:
        raise TaskError(f"--what {','.join(what)} is read on a task: give --task.")
    several, one = ", ".join(PARTS), len(what) == len(tasks) == len(shots) == 1
    if what == [LINEARITY] and not one:
        raise TaskError(
            f"--what linearity is read on one --task, at one number of --shots; {several} on several."
        )
    if what != [LINEARITY] and not one:
        raise TaskError(
            f"--what {','.join(what)} reads one thing, on one --task, at one number of --shots; several are for "
            f"{several}."
        )
    return tasks[0], shots[0]


# ---------------------------------------------------------------------------------------------------------------- map


@verb(COMMON, _more)
def need_map(
    model: str | Path | Loaded | PreTrainedModel,
    task: OneTask,
    out: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    what: str | Sequence[str] = MAPPED,
    split: str = "select",
    checks: int = CHECKS,
    ledger: str | Path | None = None,
    progress: Progress = silent,
    **options: Unpack[CommonOptions],
) -> dict[str, Any]:
    """Measure what every component of a model is worth for a task, and check each reading by taking some out.

    The command line calls it `secateur map`.

    Writes `map.json` and its page `map.html` to the folder `out`, and returns the same as the file. Called again, it
    goes on with what the ledger has.

    Args:
        what: Kinds of components: blocks, attentions, ffns, groups, heads, neurons, matrices.
        checks: Components of each kind that are taken out in truth, one at a time; 0 for none.
        ledger: Where all that is read and measured is kept; None: ledger.sqlite in `out`.

    Raises: `UnknownName`, `TaskError`, `ModelError`, `PlanError`, `OutputError`.
    """
    kinds = _words(what)
    for kind in kinds or [""]:
        if kind not in MAPPED:
            raise UnknownName(f"there are no {kind!r} to map.{nearest(kind, MAPPED)}")
    _check_split(split)
    check_number("checks", checks, CHECKABLE)
    with options_for(model, tokenizer, [task_word(task)], options) as asked:
        held = Path(out) / LEDGER if ledger is None else Path(ledger)
        check_ledger(held)
        with made_early(out, reads=inputs_of(asked)):
            from secateur.probing.map import read_map

            named, expect = [kind for kind in MAPPED if kind in kinds], None
            if isinstance(progress, StagedProgress):
                from secateur.forecast.record import map_seconds

                expect = partial(map_seconds, kinds=named, split=split, checks=checks)
            record = read_map(
                asked, named, split, Path(out), checks=checks, ledger=held, progress=progress, expect=expect
            )
            return record.model_dump(exclude_unset=True)


@verb(COMMON, _more)
def check_task(
    model: str | Path | None,
    task: OneTask,
    **options: Unpack[CommonOptions],
) -> dict[str, Any]:
    """Return what was understood of a task: format, splits, lengths in the model's tokens, chance, three examples.

    No weights are read; without a model nothing is said of tokens.

    The keys: docs/records.md, Task check. Raises: `TaskError`, `ModelError`, `UnknownName`.
    """
    with options_for(model or "", None, [task_word(task)], options) as chosen:
        inputs([] if model is None else [chosen.model], tasks_of(chosen))
        from secateur import steps

        return steps.check_task(chosen).to_json()


@verb()
def check_structure(
    model: str | Path,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Proves what is read of a model's structure, edit by edit, on a tiny random copy of its config. Reads no weights.

    Masked it computes what the cut model does, has the parameters that were predicted, goes on with a cache as without,
    and agrees with the same edit done where torch's attention is called. The keys: docs/records.md, Structure.

    Raises: `ModelError`, `UnknownName`.
    """
    named = with_gguf(str(model), gguf_file)
    inputs([named])
    from secateur import steps

    return steps.check_structure(named, revision, trust_remote_code).to_json()


# -------------------------------------------------------------------------------------------------------------- bench


@verb()
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
    gguf_file: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measures on this machine what a cut model saves against the dense one: sizes, memory, prefill, decode.

    `against` is the dense model; None: the one that `out` says it was cut from. `revision` and `gguf_file` are that
    model's. `threads` are torch's; None: as they are. The keys: docs/records.md, Bench.

    Raises: `UnknownName`, `ModelError`.
    """
    length = Length(prompt, new, batch, repeats)
    if threads is not None:
        check_number("threads", threads, THREADS)
    check_dtype(dtype)
    check_device(device)
    if against is None:
        origin = origin_of(place_of(str(out)), UnknownName, "Give --against MODEL.")
        against, revision = origin.model, revision or origin.revision
    against = with_gguf(str(against), gguf_file)
    inputs([str(out), str(against)])
    how: Loading = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    dense: NamedModel = {"name": str(against), "revision": revision, **how}
    cut: NamedModel = {"name": str(out), "revision": None, **how}
    from secateur.gains.record import bench

    return bench(dense, cut, length, threads=threads, progress=progress)
