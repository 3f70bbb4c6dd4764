"""The verbs, for Python and the command line alike. Each returns plain data; none prints."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from secateur import verify
from secateur.checkpoint.card import unverified_card
from secateur.checkpoint.folder import Folder, made_early
from secateur.checkpoint.plans import read_plan, write_plan
from secateur.checkpoint.save import Form
from secateur.checkpoint.stream import Way, mapped, stream
from secateur.checkpoint.stream_shards import parse_size
from secateur.checkpoint.tiers import where_it_loads
from secateur.core.comparison import compare
from secateur.core.ledger import Ledger
from secateur.core.plan import Edit, Plan, parse_edits
from secateur.core.progress import Progress, silent
from secateur.core.score import METRICS
from secateur.core.stats import exponential, exponential_interval
from secateur.core.writing import writing
from secateur.errors import PlanError, TaskError, UnknownName, nearest
from secateur.hf.load import Loaded, load_model
from secateur.judge.baseline import baseline
from secateur.judge.workers import Hire
from secateur.methods.analyses import ANALYSES
from secateur.options import Options
from secateur.readers.components import COMPONENTS
from secateur.readers.linearity import read_linearity
from secateur.readers.record import read_record
from secateur.recipe import Result, check_ledger, read_result
from secateur.recipe import prune as _prune
from secateur.recipe import prune_each as _prune_each
from secateur.records import counted, cut_summary, versions
from secateur.reports import write_report
from secateur.session import Session, open_session
from secateur.surgery.operations import resolve
from secateur.surgery.portable import portable_plan
from secateur.surgery.shape import shape_of

SPLITS = ("probe", "select", "test")
LINEARITY = "linearity"
Given = Plan | Sequence[str] | str | Path | None  # a plan, edits such as "b2.gate=5", or a plan file


def prune(
    model: str,
    task: str | Sequence[str],
    out: str | Path,
    *,
    ledger: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    workers: Hire | None = None,
    **options: Any,
) -> Result:
    """Find what `model` does not need for `task`, take it out, prove it on held-out data, write a checkpoint. Of
    several tasks one plan that is good for all.

    `options` are the fields of `secateur.options.Options`: seed, limit, exhaustive, matrices, layers, ...
    `workers`: who judges in the place of this process, such as `secateur.on_ray("local:2")`.
    """
    chosen = _options(model, task, options)
    return _prune(chosen, out, ledger=ledger, overwrite=overwrite, progress=progress, workers=workers)


def prune_each(
    model: str,
    tasks: Sequence[str],
    out: str | Path,
    *,
    ledger: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    workers: Hire | None = None,
    **options: Any,
) -> list[Result]:
    """As `prune`, a plan for each task by itself, in folders of `out` that are named after them.

    The model is read once. The results are those of as many calls of `prune`, bit for bit.
    """
    chosen = _options(model, tasks, options)
    return _prune_each(chosen, out, ledger=ledger, overwrite=overwrite, progress=progress, workers=workers)


def _options(model: str, task: str | Sequence[str], options: dict[str, Any]) -> Options:
    tasks = _each(task)
    if not tasks:
        raise TaskError("no task is given; name one, such as questions.jsonl.")
    return Options(model=model, task=tasks[0], more_tasks=tuple(tasks[1:]), **options)


def load(model: str, **options: Any) -> Loaded:
    """A checkpoint, hub name or `builtin:NAME` with its tokenizer, anatomy and fingerprint."""
    return load_model(model, **options)


def report(folder: str | Path, also: Sequence[str | Path] = ()) -> Path:
    """Write `report.html` of what `prune` or `heal` left again, from its records; of a healed cut with others (`also`)
    on its curves over depth."""
    folder = Path(folder)
    if not any((folder / name).exists() for name in ("verdict.json", "heal.json")):
        raise UnknownName(
            f"{folder} holds no verdict.json and no heal.json: it is not the output of secateur prune or heal."
        )
    return write_report(folder, folder / "report.html", also)


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
    given = read_edits(plan)
    if ledger is not None:
        check_ledger(Path(ledger))
    session = open_session(Options(model=model, task=task, **options), None, progress)
    chosen = plan_for(session, given)
    with Ledger.open(ledger) if ledger is not None else nullcontext() as journal:
        session = replace(session, ledger=journal)
        examples = session.task.split(split)
        outcomes = session.judge()([chosen], examples, "evaluate")[chosen]
        if journal is not None and split == "test":
            verify.record(journal, session.task, verify.look(session.scope, chosen))
    groups = session.task.groups(examples)
    names = {"text": ["text_loss"], "choice": ["accuracy", "accuracy_norm", "choice_loss", "loss"]}
    metrics = names.get(session.task.kind, ["accuracy", "loss", "top5", "top10"])
    seed = session.options.seed
    scores = [compare(METRICS[m], outcomes, outcomes, groups, seed=seed).after.to_json() for m in metrics]
    if session.task.kind == "text":
        scores.append(_perplexity(scores[0]))
    start = baseline(session.task, split, examples, outcomes, session.objective.metric, seed)
    head = {"model": model, "task": session.task.name, "split": split, "plan": str(chosen)}
    return head | {"scores": scores, "baseline": start}


def _perplexity(loss: dict[str, Any]) -> dict[str, Any]:
    shown = {"metric": "perplexity", "unit": "perplexity"}
    return loss | shown | {"value": float(exponential(loss["value"])), "ci": exponential_interval(loss["ci"])}


def read_edits(plan: Given) -> Plan | tuple[Edit, ...]:
    """A plan, from a plan file; or bare edits, from text (`b2.gate=5`). No model is needed for that."""
    if isinstance(plan, Plan):
        return plan
    return read_plan(Path(plan)) if isinstance(plan, str | Path) else parse_edits(plan or ())


def plan_for(session: Session, given: Plan | tuple[Edit, ...]) -> Plan:
    """The plan for this session's model. Raises `PlanError` where it is for another, `UnknownName` for its sites."""
    chosen = given if isinstance(given, Plan) else Plan(session.loaded.fingerprint, given)
    resolve(chosen, session.loaded.anatomy, session.loaded.fingerprint)
    return chosen


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
    way = Way(parse_size(shard_size), svd, check, device)
    edits = given.edits if isinstance(given, Plan) else given
    command = {
        "apply": [edit.to_json() for edit in edits],
        "model": model,
        "revision": revision,
        "dtype": dtype,
    }
    command |= {"portable": portable, "zeroed": zeroed, "factorize": factorize}
    command |= {"shard_size": shard_size, "svd": svd}
    loading = {"revision": revision, "dtype": dtype, "trust_remote_code": trust_remote_code}
    folder = Folder.at(out, reads=model)
    with folder.claimed():
        if folder.finished(command, overwrite=overwrite):
            return read_result(folder.out, already=True)
        with mapped(model, folder.run, **loading) as loaded:
            chosen = _chosen(given, loaded, portable)
            trust = {"trust_remote_code": trust_remote_code}
            made = stream(
                loaded, chosen, folder.run, folder.staging, form=form, way=way, progress=progress, **trust
            )
            loads = where_it_loads(chosen, loaded, form, read_back=made["check"] == "logits")
        provenance = {"command": command, "verified": False, "loads": loads.to_json(), "versions": versions()}
        write_plan(chosen, provenance | made, folder.staging)
        with writing(folder.staging):
            card = unverified_card(model, loaded.revision is not None, chosen, loads, made)
            (folder.staging / "README.md").write_text(card, encoding="utf-8")
        folder.publish()
    return Result(folder.out, None, chosen)


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
    whose result would be a stock checkpoint. Writes nothing."""
    given, form = read_edits(plan), Form(zeroed, factorize, portable)
    Way(parse_size(shard_size), svd, check, device)  # as `apply` would refuse it; nothing is computed here
    with TemporaryDirectory(prefix="secateur-") as place, mapped(model, Path(place), **loading) as loaded:
        chosen = _chosen(given, loaded, portable)
        anatomy = loaded.anatomy
        left = shape_of(chosen, anatomy, factorize=factorize).num_parameters(anatomy)
        nearest = None if anatomy.carved else portable_plan(chosen, loaded)
        loads = where_it_loads(chosen, loaded, form, read_back=False)
    return {
        "cut": str(chosen),
        "cut_summary": cut_summary(chosen, counted(anatomy.widths)),
        "parameters": {
            "before": anatomy.num_parameters,
            "after": anatomy.num_parameters if zeroed else left,
        },
        "loads": loads.to_json(),
        "portable": None if nearest is None or nearest == chosen or not nearest.edits else str(nearest),
    }


def _chosen(given: Plan | tuple[Edit, ...], loaded: Loaded, portable: bool) -> Plan:
    """The plan for this model. Raises `PlanError`, `UnknownName`."""
    plan = given if isinstance(given, Plan) else Plan(loaded.fingerprint, given)
    resolve(plan, loaded.anatomy, loaded.fingerprint)
    nearest = portable_plan(plan, loaded) if portable else plan
    if plan.edits and not nearest.edits:
        raise PlanError(
            f"--portable: the nearest plan that a stock {loaded.anatomy.architecture} can hold, with the same shape in "
            "every block, takes nothing. Ask for more, or leave out --portable."
        )
    return nearest


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
    names, known = _each(what), (*COMPONENTS, *ANALYSES, LINEARITY)
    for name in names or [""]:
        if name not in known:
            raise UnknownName(f"unknown probe {name!r}.{nearest(name, known)}")
    if names != [LINEARITY] and (revisions or also or parts or finer):
        raise TaskError("--revisions, --also, --parts and --finer are for --what linearity.")
    if split == "test":
        raise TaskError("probes read the probe or the select split; test is for the one verdict.")
    if split not in SPLITS:
        raise UnknownName(f"unknown split {split!r}.{nearest(split, SPLITS)}")
    if plan is not None and (names == [LINEARITY] or set(names) <= set(COMPONENTS)):
        raise PlanError(f"--what {','.join(names)} reads the model as it is; leave out --plan and --edit.")
    if names == [LINEARITY]:
        task, shots = _single(names, _each(task), _each(shots), None)
        asked = Options(model=model, task=task, shots=shots, **options)
        series = {"revisions": _each(revisions), "also": _each(also), "parts": parts, "finer": _each(finer)}
        with made_early(out):
            return read_linearity(asked, split, **series, out=out, progress=progress)
    if set(names) <= set(COMPONENTS):
        asked = Options(model=model, task="", **options)  # the tasks, which may be none, come beside it
        tasks, examples = _each(task), _each(shots) or [0]
        with made_early(out):
            return read_record(names, asked, tasks, examples, split, out=out, progress=progress)
    (task, shots), given = _single(names, _each(task), _each(shots), out), read_edits(plan)
    options |= {"method": "directions"} if names == ["directions"] else {}  # which listens to more options
    session = open_session(Options(model=model, task=task, shots=shots, **options), None, progress)
    rows = ANALYSES[names[0]](session, session.judge(), split, plan_for(session, given))
    return {"what": names[0], "model": model, "task": session.task.name, "split": split, "rows": rows}


def _each(given: Any) -> list[Any]:
    """One value or several, as a list."""
    return [given] if isinstance(given, str | int) else list(given)


def _single(what: list[str], tasks: list[str], shots: list[int], out: object) -> tuple[str, int]:
    """What the readings of matrices and edits are of, and linearity. Raises `TaskError`."""
    if not tasks:
        raise TaskError(f"--what {','.join(what)} is read on a task: give --task.")
    if len(what) != 1 or len(tasks) != 1 or len(shots) != 1 or out is not None:
        several = ", ".join(COMPONENTS)
        if what == [LINEARITY]:
            raise TaskError(
                f"--what linearity is read on one --task, at one number of --shots; {several} on several."
            )
        raise TaskError(
            f"--what {','.join(what)} reads one thing, on one --task, at one number of --shots, and writes no -o; "
            f"several, and -o, are for {several}."
        )
    return tasks[0], shots[0]
