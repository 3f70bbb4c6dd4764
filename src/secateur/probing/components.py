"""Importance of a model's parts on one task or several, at one number of shots or several, and what heads do.

Each task at each number of shots is one reading, from one model that is loaded once. Only the examples of the split
that is read are encoded, so an example of another split that does not fit the context is no error. Changes no model.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from secateur.checkpoint.folder import write_json
from secateur.core.plan import Drop, Plan, proved_kinds
from secateur.core.progress import Progress, silent
from secateur.core.readings import PARTS, Readings, mean_readings, spearman_overlap
from secateur.core.records.probe import (
    AgreementRecord,
    ComponentsRecord,
    ImportanceRecord,
    OverlapRecord,
    ProbeRecord,
    ReadingRecord,
    RemovalCheckRecord,
    RowsRecord,
)
from secateur.core.score import METRICS
from secateur.core.site import Site
from secateur.core.stats import rank_correlation
from secateur.errors import PlanError, TaskError
from secateur.hf.anatomy import Anatomy
from secateur.hf.load import Loaded
from secateur.hf.running import FEW, check_runs
from secateur.options import Options, layers_of
from secateur.probes.ablation import ablation_importance
from secateur.probes.answer_margin import AnswerMargin
from secateur.probes.block_gradients import block_effects
from secateur.probes.experts import router_mass
from secateur.probes.heads import head_importance, neuron_importance
from secateur.probes.induction import SEEDS, check_copying, copying, prefix_matching
from secateur.probes.proved import check_proved
from secateur.probing.report import write_probe_report
from secateur.records import versions
from secateur.session import (
    Session,
    blank_of,
    decided_by_choices,
    read_model,
    read_task,
    ready_session,
    session_on,
)
from secateur.surgery.operations import droppable, droppable_experts
from secateur.tasks.example import Task
from secateur.tasks.shots import with_shots

CHECKED = 20  # heads, or experts, that are taken out in truth
CHECK_EXAMPLES = 100  # of the split, on which they are
BY_GRADIENT = {"heads": head_importance, "neurons": neuron_importance}
BY_ABLATION = {"ffns": "mlp", "attentions": "attn", "blocks": ""}  # kind of part → part of its site
assert {*BY_GRADIENT, "ffns", "experts", "induction"} == set(PARTS), (
    "every name that may be asked for is read here"
)

ByKind = Mapping[
    str, Mapping[str, Readings]
]  # kind of part → metric → readings; the first metric ranks the kind


@dataclass(frozen=True)
class TaskReading:
    """The importance of parts on one task at one number of shots.

    Args:
        n: Examples of the split that were read.
        of: Examples that the split has; more than `n` where some did not fit the context.
        by_kind: Readings by kind of part and by metric.
        checks: Readings of heads and experts beside what taking them out does, by kind of part.
    """

    task: str
    shots: int
    n: int
    of: int
    by_kind: ByKind
    checks: Mapping[str, RemovalCheckRecord] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return a name that no other reading of the same run has."""
        return f"{self.task}, {self.shots}-shot"


@dataclass(frozen=True)
class ComponentReadings:
    """All readings, in the order of tasks and shots, and the behavior of heads, which is empty if it was not read."""

    readings: tuple[TaskReading, ...]
    behavior: Mapping[str, Readings]


def read_record(
    what: Sequence[str],
    options: Options,
    tasks: Sequence[str],
    shots: Sequence[int],
    split: str,
    *,
    out: str | Path | None = None,
    progress: Progress = silent,
) -> ProbeRecord | RowsRecord:
    """Return the rows of one reading, or the record of several.

    Args:
        what: Names in `PARTS`.
        out: Folder for probe.json and probe.html, which hold the record of all readings in either case.

    Raises: as `read_components`; `OutputError` where nothing can be written.
    """
    found = read_components(what, options, tasks, shots, split, progress)
    record = ProbeRecord(
        what=list(what),
        model=options.model,
        split=split,
        tasks=list(dict.fromkeys(reading.task for reading in found.readings)),
        shots=list(dict.fromkeys(reading.shots for reading in found.readings)),
        components=components_record(found),
    )
    alone = len(what) == 1 and len(found.readings) < 2
    shown = rows_record(what[0], options.model, split, found) if alone else record
    if out is None:
        return shown
    layers = None if options.layers is None else list(options.layers)
    written = write_probe(record.model_copy(update={"layers": layers, "versions": versions()}), Path(out))
    return shown.model_copy(update={"written": [str(path) for path in written]})


def write_probe(record: ProbeRecord, out: Path) -> list[Path]:
    """Write probe.json and its page probe.html to the folder `out`; replace older ones."""
    write_json(out / "probe.json", record.to_json())
    return [out / "probe.json", write_probe_report(record, out / "probe.html")]


# -------------------------------------------------------------------------------------------------------------- reading


def read_components(
    what: Sequence[str],
    options: Options,
    tasks: Sequence[str],
    shots: Sequence[int],
    split: str,
    progress: Progress = silent,
) -> ComponentReadings:
    """Read what is asked of a model's parts, on each task with each number of shots.

    Args:
        what: Names in `PARTS`; induction alone needs no task.
        shots: Numbers of solved examples before every prompt.
        split: The split that is read.

    Raises: `TaskError` for two tasks of one name, `UnknownName` for layers, and as loading a model and a task do.
    """
    progress("load", 0, 1)
    blank = blank_of(options)
    blocks = layers_of(blank.anatomy, options)
    check_proved(blank, proved_kinds({*what} - {"induction"}, (), foldable=False))
    plain = _plain_tasks(options, blank, tasks, split)
    if "ffns" in what and len({task.kind == "text" for task in plain}) > 1:
        raise TaskError(
            "text and answers have different losses, and --what ffns no mean of them: read one of them."
        )
    sessions = list(_sessions(options, blank, plain, shots, split))
    loaded = read_model(options)
    if not sessions:
        check_runs(loaded, [range(min(FEW, loaded.anatomy.vocab_size))])
    progress("load", 1, 1)
    # Induction is shown beside the importance of heads, which is read for it too.
    kinds = dict.fromkeys("heads" if name == "induction" else name for name in what)
    readings = []
    for name, of, early in sessions:
        session = ready_session(early, loaded, progress)
        by_kind: dict[str, Mapping[str, Readings]] = {}
        for kind in kinds:
            by_kind |= read_kind(kind, session, split, blocks)
        examples = session.task.split(split)
        if "heads" in what:
            sites = map(Site.parse, _first(by_kind["heads"]).values)
            heads = [site for site in sites if droppable(site, loaded.anatomy)]
            expected = expected_rise(session, heads, examples, split)
            by_kind["heads"] = {**by_kind["heads"], "expected_rise": expected}
        checks = {
            kind: check
            for kind in ("heads", "experts")
            if kind in what and (check := removal_check(session, examples, by_kind[kind])) is not None
        }
        readings.append(TaskReading(name, session.options.shots, len(examples), of, by_kind, checks))
    return ComponentReadings(
        tuple(readings), behavior(loaded, blocks, progress) if "induction" in what else {}
    )


def _plain_tasks(options: Options, blank: Loaded, specs: Sequence[str], split: str) -> list[Task]:
    """Return the tasks without shots. Raises: `TaskError` for two of one name, which would be told apart by nothing."""
    tasks: dict[str, Task] = {}
    for spec in specs:
        task = read_task(replace(options, task=spec, shots=0), blank, {split: 1}, blank.anatomy)
        if task.name in tasks:
            raise TaskError(f"two tasks are called {task.name!r}. Give each once, files by different names.")
        tasks[task.name] = task
    return list(tasks.values())


def _sessions(
    options: Options, blank: Loaded, tasks: Sequence[Task], shots: Sequence[int], split: str
) -> Iterator[tuple[str, int, Session]]:
    """Yield task, number of examples of the split, and a session without weights on the examples that fit."""
    for task in tasks:
        for count in dict.fromkeys(shots):
            shot = with_shots(task, count, options.split_seed)
            numbers = set(shot.split(split))
            alone = shot.without([i for i in range(len(shot.examples)) if i not in numbers])
            yield task.name, len(numbers), session_on(replace(options, shots=count), blank, alone)


def read_kind(kind: str, session: Session, split: str, blocks: range) -> ByKind:
    """Return the readings of one name in `PARTS`: by gradient, or of all that are read by ablation together."""
    examples, anatomy = session.task.split(split), session.loaded.anatomy
    if kind in BY_GRADIENT:
        packing = session.judge().packing
        read = BY_GRADIENT[kind](
            session.loaded, session.encoded, examples, packing=packing, split=split, progress=session.progress
        )
        return {kind: {"importance": _within(read, anatomy, blocks)}}
    if kind == "experts":
        mass = router_mass(
            session.loaded, session.encoded, examples, packing=session.judge().packing, split=split
        )
        mixed = [Site.parse(site) for site in _within(mass, anatomy, blocks).values]
        able = [site for site in mixed if droppable_experts(anatomy, site.block)]
        rise = expected_rise(session, able, examples, split)
        return {kind: {"importance": _within(mass, anatomy, blocks), "expected_rise": rise}}
    wholes = {name: [anatomy.site(block, part) for block in blocks] for name, part in BY_ABLATION.items()}
    wholes["attentions"] = anatomy.attentions(blocks)
    sites = {name: [site for site in some if droppable(site, anatomy)] for name, some in wholes.items()}
    if not any(sites.values()):
        raise PlanError(
            f"nothing of blocks {blocks.start}:{blocks.stop} can be taken out to see what it is worth."
        )
    every = [site for of_kind in sites.values() for site in of_kind]
    by_metric = ablation_importance(session.judge(), every, examples, split=split)
    # The first metric ranks the kind: the loss, as accuracy ties on few examples.
    order = sorted(by_metric, key=lambda metric: "loss" not in metric)
    return {
        name: {metric: _at(by_metric[metric], map(str, of_kind)) for metric in order}
        for name, of_kind in sites.items()
        if of_kind
    }


def expected_rise(
    session: Session, sites: Sequence[Site], examples: Sequence[int], split: str, under: Plan | None = None
) -> Readings:
    """Return the expected rise of the loss without each of some parts, nats: below 0, the part hurts.

    The loss is that among the choices where they decide, else that of the answer or the text.

    Args:
        sites: Parts that are dropped, one at a time.
        examples: Numbers of the examples that are read.
        split: The split that they are of, for the record of the readings.
        under: A plan that is carried out beside each removal; by default the whole model.

    Returns: a value for each of `sites`, by its text.

    Differs: the published importance E|A·dL/dA| takes the absolute value, so that a part that hurts the task counts
    as one that it needs (docs/methods.md has the rank correlations of both with true removal).
    """
    judge, contrast = session.judge(), decided_by_choices(session)
    without = {site: session.empty + Drop(site) for site in sites}
    effects = block_effects(
        AnswerMargin.of(session.loaded, session.encoded, examples, contrast),
        examples,
        without.values(),
        spectra=judge.spectra,
        packing=judge.packing,
        under=under,
        room=judge.limits.cache_bytes,
        progress=session.progress,
        stage="head screen",
    )
    return Readings(
        what="expected rise of the loss without it",
        unit="nats",
        split=split,
        n=len(examples),
        low_is_removable=True,
        source="change of the block's output times the margin's gradient",
        values={str(site): effects.loss(cut) for site, cut in without.items()},
    )


def removal_check(
    session: Session, examples: Sequence[int], readings: Mapping[str, Readings]
) -> RemovalCheckRecord | None:
    """Take some heads or experts out, one at a time, and return how far each reading's order is that of the loss' rise.

    One is drawn from each of up to 20 equal parts of the order by the expected rise, so that all of it is looked at.
    None where none can be taken out.

    Args:
        examples: Those that were read; at most 100 of them are measured on.
        readings: By name, of the same parts; one of them is `expected_rise`.
    """
    rng, ranked = random.Random(session.options.seed), readings["expected_rise"].ranked()
    count = min(CHECKED, len(ranked))
    bounds = [len(ranked) * number // max(1, count) for number in range(count + 1)]
    drawn = [rng.choice(ranked[low:high])[0] for low, high in pairwise(bounds)]
    if not drawn:
        return None
    plans = {site: session.empty + Drop(Site.parse(site)) for site in drawn}
    return checked_against(
        session, plans, examples, {name: read.values for name, read in readings.items()}, rng
    )


def checked_against(
    session: Session,
    plans: Mapping[str, Plan],
    examples: Sequence[int],
    readings: Mapping[str, Mapping[str, float]],
    rng: random.Random,
) -> RemovalCheckRecord:
    """Judge each of some plans, and return how the order of each reading agrees with the rise of the loss.

    The loss is that among the choices where they decide, else that of the answer or the text.

    Args:
        plans: What is taken out, by name.
        examples: At most 100 of them are measured on.
        readings: By their name, a value of each plan by its name.
        rng: Draws those examples.
    """
    some = sorted(rng.sample(list(examples), min(CHECK_EXAMPLES, len(examples))))
    by_tokens = "text_loss" if "text" in session.task.kinds else session.loss_name
    metric = METRICS["choice_loss" if decided_by_choices(session) else by_tokens]
    outcomes = session.judge()([session.empty, *plans.values()], some, "ablation")
    whole = metric.mean(outcomes[session.empty])
    rise = {name: metric.mean(outcomes[plan]) - whole for name, plan in plans.items()}
    return RemovalCheckRecord(
        n=len(plans),
        examples=len(some),
        unit=metric.unit,
        rise=rise,
        agreement={
            name: _agreement([read[one] for one in plans], list(rise.values()))
            for name, read in readings.items()
        },
    )


def _agreement(read: Sequence[float], rise: Sequence[float]) -> AgreementRecord:
    """Return how far the order of what was read agrees with that of the true rises."""
    found = rank_correlation(read, rise)
    return AgreementRecord(rho=found and found[0], ci=found and list(found[1]))


def behavior(loaded: Loaded, blocks: range, progress: Progress, seeds: int = SEEDS) -> dict[str, Readings]:
    """Return prefix matching, copying and attention sink of every head, on random tokens: what a head does, not what it
    is worth.

    Args:
        seeds: Sequences, each longer than the one before; as many as in the source.

    Raises: `ModelError` where one of them cannot be read.
    """
    loaded.anatomy.refuse_pairs("prefix matching")
    check_copying(loaded.anatomy)
    copied = copying(loaded, seeds=seeds, blocks=blocks, progress=progress)
    found = {
        "prefix_matching": prefix_matching(loaded, seeds=seeds, progress=progress),
        "copying": copied.every,
        "copying_beyond_sink": copied.beyond_sink,
        "attention_sink": copied.sink,
    }
    return {name: _within(readings, loaded.anatomy, blocks) for name, readings in found.items()}


def _within(readings: Readings, anatomy: Anatomy, blocks: range) -> Readings:
    return _at(readings, (site for site in readings.values if anatomy.number(Site.parse(site)) in blocks))


def _at(readings: Readings, sites: Iterable[str]) -> Readings:
    return replace(readings, values={site: readings.values[site] for site in sites})


# -------------------------------------------------------------------------------------------------------------- records


def components_record(found: ComponentReadings) -> ComponentsRecord:
    """Return every kind that was read: its readings, their mean over tasks and shots, how far their orders agree."""
    kinds = dict.fromkeys(kind for reading in found.readings for kind in reading.by_kind)
    read: dict[str, ImportanceRecord | dict[str, float] | OverlapRecord | None] = {
        kind: importance_record(kind, found.readings) for kind in kinds
    }
    read |= {name: dict(readings.values) for name, readings in found.behavior.items()}
    if found.behavior:
        read["induction_overlap"] = _induction_overlap(found)
    return ComponentsRecord.model_validate(read)


def importance_record(kind: str, readings: Sequence[TaskReading]) -> ImportanceRecord:
    """Return the readings of one kind, their mean, and how far they agree."""
    named = {reading.name: _first(reading.by_kind[kind]) for reading in readings}
    return ImportanceRecord(
        unit=next(iter(named.values())).unit,
        readings=[
            ReadingRecord(
                name=reading.name,
                task=reading.task,
                shots=reading.shots,
                n=reading.n,
                of=reading.of,
                values=dict(named[reading.name].values),
                **_beside(reading, kind),
            )
            for reading in readings
        ],
        mean=dict(mean_readings(list(named.values())).values),
        overlap=_overlap(named) if len(named) > 1 else None,
    )


def _beside(reading: TaskReading, kind: str) -> dict[str, Any]:
    """Return the optional fields of a reading's record that it has."""
    first, found = _first(reading.by_kind[kind]), dict[str, Any]()
    if first.intervals:
        found["intervals"] = {site: list(ci) for site, ci in first.intervals.items()}
    if "expected_rise" in reading.by_kind[kind]:
        found["expected_rise"] = dict(reading.by_kind[kind]["expected_rise"].values)
    if kind in reading.checks:
        found["check"] = reading.checks[kind]
    return found


def _first(by_metric: Mapping[str, Readings]) -> Readings:
    return next(iter(by_metric.values()))


def _overlap(named: Mapping[str, Readings]) -> OverlapRecord | None:
    """Return the rank correlations of readings; None where there is but one part, which has no order."""
    if len(_first(named).values) < 2:
        return None
    return OverlapRecord.model_validate(spearman_overlap(named).to_json())


def _induction_overlap(found: ComponentReadings) -> OverlapRecord | None:
    """Return the rank correlations of importance and behavior; None where importance was not read."""
    heads = [_first(reading.by_kind["heads"]) for reading in found.readings if "heads" in reading.by_kind]
    if not heads:
        return None
    named = {
        name.replace("_", " "): readings
        for name, readings in found.behavior.items()
        if name != "attention_sink"  # a share of positions, no score of what a head does for the task
    }
    return _overlap({"importance": mean_readings(heads)} | named)


def rows_record(what: str, model: str, split: str, found: ComponentReadings) -> RowsRecord:
    """Return one reading on at most one task as rows, in the form that readings of matrices have."""
    head: dict[str, JsonValue] = {"what": what, "model": model, "task": None, "split": split}
    for reading in found.readings:
        shown = f"{reading.task} ({reading.shots}-shot)" if reading.shots else reading.task
        head |= {"task": shown, "n": reading.n, "of": reading.of}
        if what in reading.checks:
            head["check"] = reading.checks[what].to_json()
    overlap = {"overlap": _induction_overlap(found)} if what == "induction" else {}
    return RowsRecord.model_validate(head | {"rows": rows(what, found)} | overlap)


def rows(what: str, found: ComponentReadings) -> list[dict[str, JsonValue]]:
    """Return one row for each part, of one kind of reading on at most one task."""
    by_kind = found.readings[0].by_kind if found.readings else {}
    if what == "induction":
        importance = {"importance": _first(by_kind["heads"])} if by_kind else {}
        return _columns(dict(found.behavior) | importance)
    if what == "ffns":
        return [
            {"site": row["site"], "part": Site.parse(str(row["site"])).part or "block"} | row
            for by_metric in by_kind.values()
            for row in _columns(by_metric)
        ]
    values = _first(by_kind[what]).values
    order = sorted(
        values, key=lambda site: (-values[site], site)
    )  # equal values in the order of their addresses
    ranks = {site: rank for rank, site in enumerate(order, start=1)}
    return [row | {"rank": ranks[str(row["site"])]} for row in _columns(by_kind[what])]


def _columns(named: Mapping[str, Readings]) -> list[dict[str, JsonValue]]:
    """Return a row for each part: its readings, each followed by its interval where the reading has intervals."""
    found: list[dict[str, JsonValue]] = []
    for site in _first(named).values:
        row: dict[str, JsonValue] = {"site": site}
        for name, readings in named.items():
            row[name] = readings.values.get(site)
            if readings.intervals:
                row[f"{name}_ci"] = list(readings.intervals[site]) if site in readings.intervals else None
        found.append(row)
    return found
