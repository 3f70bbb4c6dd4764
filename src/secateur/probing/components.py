"""What the parts of a model are worth, on one task or several, at one number of shots or several; and what heads do.

Each task at each number of shots is one reading, from one model loaded once. Only the examples of the split that is
read are encoded, so what does not fit the context elsewhere is in nobody's way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from secateur.core.progress import Progress, silent
from secateur.core.readings import PARTS, Readings
from secateur.core.site import Site
from secateur.errors import PlanError, TaskError
from secateur.hf.load import Loaded
from secateur.hf.running import FEW, check_runs
from secateur.options import Options, layers_of
from secateur.probes.ablation import ablation_importance
from secateur.probes.heads import head_importance
from secateur.probes.induction import check_copying, copying, prefix_matching
from secateur.probes.neurons import neuron_importance
from secateur.session import Session, blank_of, read_model, read_task, ready_session, session_on
from secateur.surgery.operations import droppable
from secateur.tasks.example import Task
from secateur.tasks.shots import with_shots

Found = dict[
    str, dict[str, Readings]
]  # kind of part → metric → its readings; the first metric stands for the kind


@dataclass(frozen=True)
class Reading:
    """One task at one number of shots. `n` examples of the split were read, of `of` that it has."""

    task: str
    shots: int
    n: int
    of: int
    found: Found

    @property
    def name(self) -> str:
        return f"{self.task}, {self.shots}-shot"

    @property
    def shown(self) -> str:
        """The task as a session names it."""
        return f"{self.task} ({self.shots}-shot)" if self.shots else self.task


@dataclass(frozen=True)
class Components:
    """All readings, in the order tasks and shots were given, and what heads do (empty where that was not asked)."""

    readings: tuple[Reading, ...]
    behavior: Mapping[str, Readings]


def read_components(
    what: Sequence[str],
    options: Options,
    tasks: Sequence[str],
    shots: Sequence[int],
    split: str,
    progress: Progress = silent,
) -> Components:
    """Reads `what` (names in `PARTS`) of `options.model` on each task at each number of shots.

    Only induction needs no task. Raises: `TaskError` for two tasks of one name, `UnknownName` for
    layers, and what reading a model or a task raises.
    """
    progress("load", 0, 1)
    early = blank_of(options)
    blocks = layers_of(early.anatomy, options)
    plain = _plain_tasks(options, early, tasks, split)
    if "ffns" in what and len({task.kind == "text" for task in plain}) > 1:
        raise TaskError(
            "text and answers have different losses, and --what ffns no mean of them: read one of them."
        )
    sessions = list(_sessions(options, early, plain, shots, split))
    loaded = read_model(options)
    if not sessions:
        check_runs(loaded, [range(min(FEW, loaded.anatomy.vocab_size))])
    progress("load", 1, 1)
    # Of induction the importance of heads is read too, to be set beside it.
    kinds = dict.fromkeys("heads" if one == "induction" else one for one in what)
    readings = [
        Reading(
            name,
            count,
            len(session.task.split(split)),
            of,
            _found(kinds, ready_session(session, loaded, progress), split, blocks),
        )
        for name, count, of, session in sessions
    ]
    found = behavior(loaded, blocks, progress) if "induction" in what else {}
    return Components(tuple(readings), found)


def _plain_tasks(options: Options, loaded: Loaded, specs: Sequence[str], split: str) -> list[Task]:
    """Before anything is read: tasks are told apart by their names."""
    found: dict[str, Task] = {}
    for spec in specs:
        task = read_task(replace(options, task=spec, shots=0), loaded, {split: 1})
        if task.name in found:
            raise TaskError(f"two tasks are called {task.name!r}. Give each once, files by different names.")
        found[task.name] = task
    return list(found.values())


def _sessions(
    options: Options,
    loaded: Loaded,
    tasks: Sequence[Task],
    shots: Sequence[int],
    split: str,
) -> Iterator[tuple[str, int, int, Session]]:
    """Task, shots, how many examples the split has, and a session without weights on those that fit."""
    for task in tasks:
        for count in dict.fromkeys(shots):
            shot = with_shots(task, count, options.split_seed)
            asked = set(shot.split(split))
            alone = shot.without([i for i in range(len(shot.examples)) if i not in asked])
            session = session_on(replace(options, shots=count), loaded, alone)
            yield task.name, count, len(asked), session


def _found(kinds: Sequence[str], session: Session, split: str, blocks: range) -> Found:
    return {name: found for kind in kinds for name, found in _BY_TASK[kind](session, split, blocks).items()}


def _by_gradient(kind: str, importance: Callable[..., Readings]) -> Callable[..., Found]:
    def read(session: Session, split: str, blocks: range) -> Found:
        examples, packing = session.task.split(split), session.judge().packing
        found = importance(
            session.loaded, session.encoded, examples, packing=packing, split=split, progress=session.progress
        )
        return {kind: {"importance": _within(found, blocks)}}

    return read


def _by_ablation(session: Session, split: str, blocks: range) -> Found:
    """Loss stands for the kind, as accuracy ties on few examples."""
    parts = {"ffns": "mlp", "attentions": "attn", "blocks": ""}
    anatomy = session.loaded.anatomy
    there = {
        kind: [site for block in blocks if droppable(site := Site(block, part), anatomy)]
        for kind, part in parts.items()
    }
    sites = {kind: found for kind, found in there.items() if found}
    if not sites:
        raise PlanError(
            f"nothing of blocks {blocks.start}:{blocks.stop} can be taken out to see what it is worth."
        )
    every = [site for found in sites.values() for site in found]
    read = ablation_importance(session.judge(), every, session.task.split(split), split=split)
    order = sorted(read, key=lambda metric: "loss" not in metric)
    return {kind: {m: _at(read[m], map(str, found)) for m in order} for kind, found in sites.items()}


def behavior(loaded: Loaded, blocks: range, progress: Progress) -> dict[str, Readings]:
    """Prefix matching and copying of every head, on random tokens: what a head does, not what it is worth.

    Raises: `ModelError` where one of them cannot be read.
    """
    check_copying(loaded.anatomy)
    read = {"prefix_matching": prefix_matching, "copying": copying}
    return {name: _within(probe(loaded, progress=progress), blocks) for name, probe in read.items()}


def _within(readings: Readings, blocks: range) -> Readings:
    return _at(readings, (site for site in readings.values if Site.parse(site).block in blocks))


def _at(readings: Readings, sites: Iterable[str]) -> Readings:
    return replace(readings, values={site: readings.values[site] for site in sites})


_BY_TASK: Mapping[str, Callable[..., Found]] = {
    "heads": _by_gradient("heads", head_importance),
    "ffns": _by_ablation,
    "neurons": _by_gradient("neurons", neuron_importance),
}
assert (*_BY_TASK, "induction") == PARTS, "what may be asked for is what there is"
