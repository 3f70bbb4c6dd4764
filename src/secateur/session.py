"""A model, a task in its tokens, and the ledger they are judged in: what every verb begins with."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar

from secateur.core.ledger import Ledger
from secateur.core.plan import Plan
from secateur.core.progress import Progress, silent
from secateur.core.score import METRICS
from secateur.core.site import Site, matrix_names
from secateur.errors import SecateurError, TaskError, TooLong, UnknownName, nearest
from secateur.hf.anatomy import Anatomy
from secateur.hf.fingerprint import config_digest
from secateur.hf.load import Loaded, load_model
from secateur.judge.evaluator import Judge
from secateur.judge.workers import Limits, Workers
from secateur.search.laser import PAPER_FRACTIONS, SMALL_RANKS, Objective
from secateur.surgery.mask import Spectra
from secateur.tasks.encode import Encoded, encode
from secateur.tasks.example import Task
from secateur.tasks.joint import check_apart, interleaved, joint
from secateur.tasks.load import load_task
from secateur.tasks.shots import with_shots

LOG = logging.getLogger("secateur")
METHODS = ("laser", "directions", "depth", "heads", "ffns", "components")
REMOVING = ("heads", "ffns", "components")


@dataclass(frozen=True)
class Options:
    """Everything `secateur prune` can be told. What changes the result is in `command()`, what changes speed is not."""

    model: str
    task: str
    method: str = "laser"
    revision: str | None = None
    test_task: str | None = None
    side: tuple[str, ...] = ()
    more_tasks: tuple[str, ...] = ()
    objective: str | None = None
    matrices: tuple[str, ...] = ("all",)
    layers: tuple[int, int] | None = None
    fractions: tuple[float, ...] = PAPER_FRACTIONS
    small_ranks: tuple[int, ...] = SMALL_RANKS
    exhaustive: bool = False
    compose: bool = True
    target: float | None = None
    max_loss: float | None = None
    params: float | None = None
    step: float = 0.1
    rescore: bool = True
    random_orders: int = 3
    portable: bool = False
    protocol: str | None = None
    per_head: bool = False
    overall: bool = False
    dynamic: bool = True
    weakest: bool | None = None
    second_order: bool = False
    whitened: bool = False
    blocks: int | None = None
    by: str = "loss"
    form: str = "fold"
    contiguous: bool = False
    rank: int | None = None
    zeroed: bool = False
    factorize: bool = False
    seed: int = 0
    split_seed: int = 0
    limit: int | None = None
    shots: int = 0
    seqlen: int = 256
    chat: bool = False
    allow_small: bool = False
    skip_long: bool = False
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    offload_folder: str | None = None
    max_memory: str | None = None
    max_tokens: int = 0
    trust_remote_code: bool = False

    SPEED_ONLY: ClassVar[tuple[str, ...]] = (
        "device",
        "device_map",
        "offload_folder",
        "max_memory",
        "max_tokens",
    )
    LISTENERS: ClassVar[Mapping[str, tuple[str, ...]]] = {  # which methods an option is for, if not for all
        **dict.fromkeys(("fractions", "small_ranks", "compose"), ("laser",)),
        **dict.fromkeys(("matrices", "exhaustive"), ("laser", "directions")),
        **dict.fromkeys(("target", "step", "rescore"), ("directions", *REMOVING)),
        "max_loss": ("directions", "depth", *REMOVING),
        **dict.fromkeys(("params", "random_orders", "portable"), REMOVING),
        **dict.fromkeys(("protocol", "overall", "dynamic", "weakest"), ("directions",)),
        **dict.fromkeys(("per_head", "second_order", "whitened"), ("directions",)),
        **dict.fromkeys(("blocks", "by", "form", "contiguous", "rank"), ("depth",)),
    }

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UnknownName(f"unknown method {self.method!r}.{nearest(self.method, METHODS)}")
        if self.objective is not None and self.objective not in METRICS:
            raise UnknownName(f"unknown objective {self.objective!r}.{nearest(self.objective, METRICS)}")
        if self.more_tasks and self.test_task is not None:
            raise SecateurError(
                "--test-task is for one --task: with several it would not say whose test it is."
            )
        if len(set(self.tasks)) < len(self.tasks):
            raise SecateurError(f"a --task is given twice: {', '.join(self.tasks)}. Each counts once.")
        self._refuse_foreign()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every --task."""
        return (self.task, *self.more_tasks)

    def _refuse_foreign(self) -> None:
        """What another method would listen to must not be without effect and without a word."""
        for f in fields(self):
            listeners = self.LISTENERS.get(f.name, METHODS)
            if self.method not in listeners and vars(self)[f.name] != f.default:
                typed = " ".join(_as_typed(f.name, vars(self)[f.name])) or f.name
                raise SecateurError(
                    f"{typed} is not for --method {self.method}, but for {_either(listeners)}."
                )

    def command(self) -> dict[str, Any]:
        """What identifies a run: two runs with equal commands give the same checkpoint."""
        shown = {name: value for name, value in self._given().items() if name not in self.SPEED_ONLY}
        return json.loads(json.dumps(shown))

    def command_line(self) -> str:
        """`secateur prune ...` as one would type it to get this again, without -o. What has its default is left out."""
        defaults = {f.name: f.default for f in fields(self)}
        words = ["secateur", "prune", self.model, *(word for task in self.tasks for word in ("--task", task))]
        for name, value in self._given().items():
            if name not in ("model", "task", "more_tasks", *self.SPEED_ONLY) and value != defaults[name]:
                words += _as_typed(name, value)
        return shlex.join(words)

    @property
    def offloading(self) -> dict[str, str | None]:
        """What `load_model` is told of a model that is larger than a device."""
        return {name: vars(self)[name] for name in ("device_map", "offload_folder", "max_memory")}

    def _given(self) -> Mapping[str, Any]:
        return {f.name: vars(self)[f.name] for f in fields(self)}


def _either(names: Sequence[str]) -> str:
    """`heads, ffns or components`."""
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _as_typed(name: str, value: Any) -> list[str]:
    """One option of `command_line`. Of grids, only the paper's has a word; others are Python's alone."""
    flag = "--" + name.replace("_", "-")
    if name in ("fractions", "small_ranks"):
        return ["--grid", "paper"] if (name, value) == ("small_ranks", ()) else []
    if name == "rescore":
        return ["--ranks-once"]
    if name == "weakest":
        return ["--weakest" if value else "--signed"]
    if isinstance(value, bool):
        return [flag] if value else ["--no-" + name]
    if name == "side":
        return [word for task in value for word in (flag, task)]
    joined = {"matrices": ",", "layers": ":"}.get(name)
    return [flag, joined.join(map(str, value)) if joined else str(value)]


@dataclass
class Session:
    """`on` changes the task or the model, `judge` gives what measures the one on the other."""

    options: Options
    loaded: Loaded
    task: Task
    encoded: dict[int, Encoded]
    ledger: Ledger | None
    progress: Progress = silent
    seconds: dict[str, float] = field(default_factory=dict)
    encodings: dict[str, tuple[Task, dict[int, Encoded]]] = field(default_factory=dict)  # by task hash
    workers: Workers | None = None  # who hold the same model and judge in the place of this process
    spectra: Spectra | None = None  # of the model, where they outlive one judge

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Wall-clock seconds of a stage, as far as this process did it."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started

    @cached_property
    def scope(self) -> str:
        """Outcomes may be shared between runs when weights, config, task, its tokens and precision are equal."""
        model = self.loaded.model
        parts = [self.loaded.fingerprint, config_digest(model), str(model.dtype), self.task.hash]
        digest = hashlib.sha256(json.dumps([*parts, self.options.chat]).encode())
        for number, encoded in sorted(self.encoded.items()):
            digest.update(json.dumps([number, encoded.pairs, encoded.gold, encoded.lengths]).encode())
        return digest.hexdigest()[:32]

    def shuffled(self, split: str) -> list[int]:
        """The examples of a split in the order of `--seed`, in which a race takes them; of several tasks by turns."""
        examples = list(self.task.split(split))
        random.Random(self.options.seed).shuffle(examples)
        return interleaved(self.task, examples)

    @property
    def empty(self) -> Plan:
        return Plan(self.loaded.fingerprint)

    def judge(self, **changes: Any) -> Judge:
        limits = Limits(max_tokens=self.options.max_tokens)
        kept = {"limits": limits, "ledger": self.ledger, "scope": self.scope, "progress": self.progress}
        kept |= {"workers": self.workers, "spectra": self.spectra}
        return Judge(self.loaded, self.task, self.encoded, **(kept | changes))

    @property
    def objective(self) -> Objective:
        """What is chosen by and decides: the one asked for, or the task's primary metric. Raises `TaskError`."""
        name = self.options.objective or self.task.primary_metric
        fits = {
            "text": {"text_loss", "loss"},
            "choice": set(METRICS) - {"text_loss"},
            "generation": set(METRICS) - {"text_loss", "accuracy_norm"},
        }
        fitting = set.intersection(*(fits[kind] for kind in self.task.kinds))
        if name not in fitting:
            which = " and ".join(sorted(self.task.kinds))
            raise TaskError(
                f"--objective {name} does not exist for a {which} task; it may be {', '.join(sorted(fitting))}."
            )
        return Objective(METRICS[name])

    def on(self, task: Task, loaded: Loaded | None = None) -> Session:
        """The same with another task, or with another model on the same task."""
        loaded, encoded = loaded or self.loaded, self.encoded
        if task is not self.task:
            if task.hash not in self.encodings:  # once, so that what does not fit is also said only once
                self.encodings[task.hash] = _encode(task, loaded, self.options)
            task, encoded = self.encodings[task.hash]
        of_model = {} if loaded is self.loaded else {"workers": None, "spectra": None}
        return replace(self, task=task, encoded=encoded, loaded=loaded, **of_model)


def open_session(options: Options, ledger: Ledger | None, progress: Progress = silent) -> Session:
    """Loads model and task. Raises `ModelError`, `TaskError`, `UnknownName`."""
    progress("load", 0, 1)
    loaded = read_model(options)
    session = session_on(options, loaded, read_task(options, loaded), ledger, progress)
    progress("load", 1, 1)
    return session


def read_model(options: Options) -> Loaded:
    """The model that `options` name. Raises `ModelError`, `UnknownName`."""
    return load_model(
        options.model,
        revision=options.revision,
        dtype=options.dtype,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        **options.offloading,
    )


def read_task(options: Options, loaded: Loaded) -> Task:
    """The task that `options` name, in its splits and with its shots, before anything is left out of it. Of several
    the joint one: what does not fit is left out of each first (`skip_long`), so that they still count alike.

    Demonstrations belong to the task, so the seed of the splits draws them. Raises `TaskError`, `UnknownName`.
    """
    if not options.more_tasks:
        return with_shots(_load(options, options.task, loaded), options.shots, options.split_seed)
    plain = [_load(options, spec, loaded) for spec in options.tasks]
    check_apart(plain)
    tasks = [with_shots(task, options.shots, options.split_seed) for task in plain]
    if options.skip_long:
        tasks = [_encode(task, loaded, options)[0] for task in tasks]
    return joint(tasks, options.split_seed)


def _load(options: Options, spec: str, loaded: Loaded) -> Task:
    return load_task(
        spec,
        tokenizer=loaded.tokenizer,
        test_spec=options.test_task,
        seqlen=options.seqlen,
        split_seed=options.split_seed,
        limit=options.limit,
        allow_small=options.allow_small,
    )


def session_on(
    options: Options, loaded: Loaded, task: Task, ledger: Ledger | None = None, progress: Progress = silent
) -> Session:
    """A session for what is read already. Raises `TaskError` for what does not fit the model's context."""
    task, encoded = _encode(task, loaded, options)
    return Session(options, loaded, task, encoded, ledger, progress)


def _tokens(task: Task, number: int, loaded: Loaded, chat: bool) -> Encoded:
    """One example in tokens, with room in the context for what is to be generated after it. Raises `TaskError`."""
    example, new = task.examples[number], task.member(number).new_tokens
    context = loaded.anatomy.context
    encoded = encode(example, loaded.tokenizer, context=context, chat=chat)
    prompt = len(encoded.pairs[0][0])
    if new and context is not None and prompt + new - 1 > context:
        raise TooLong(
            f"example {example.id!r}: a prompt of {prompt} tokens leaves no room for {new} more in the "
            f"model's context of {context}. Shorten it, or --skip-long leaves it out."
        )
    return encoded


def _encode(task: Task, loaded: Loaded, options: Options) -> tuple[Task, dict[int, Encoded]]:
    """The task in tokens; with `skip_long` without the examples that do not fit, which is said.

    Splits are made before anything is left out, so they do not depend on the model. Raises `TaskError`.
    """
    encoded: dict[int, Encoded] = {}
    for number in range(len(task.examples)):
        try:
            encoded[number] = _tokens(task, number, loaded, options.chat)
        except TooLong:
            if not options.skip_long:
                raise
    if len(encoded) == len(task.examples):
        return task, encoded
    dropped = len(task.examples) - len(encoded)
    LOG.warning(
        "%s: %d of %d examples do not fit the context and are left out.",
        task.name,
        dropped,
        len(task.examples),
    )
    fitting = task.without([i for i in range(len(task.examples)) if i not in encoded])
    empty = [name for name, split in task.splits.items() if split and not fitting.split(name)]
    if empty:
        raise TaskError(
            f"{task.name}: no example of the {empty[0]} split fits the model's context of "
            f"{loaded.anatomy.context} tokens."
        )
    return fitting, dict(enumerate(encoded.values()))


def layers_of(anatomy: Anatomy, options: Options) -> range:
    """The blocks asked for. Raises `UnknownName` where the model has not all of them."""
    low, high = options.layers or (0, anatomy.num_blocks)
    if not 0 <= low < high <= anatomy.num_blocks:
        raise UnknownName(
            f"layers {low}:{high} are not in this model: it has blocks 0 to {anatomy.num_blocks - 1} (all of them: "
            f"0:{anatomy.num_blocks})."
        )
    return range(low, high)


def matrices_of(anatomy: Anatomy, options: Options) -> list[Site]:
    """The matrices asked for, lowest block first. Raises `UnknownName`."""
    names, blocks = matrix_names(options.matrices, anatomy.matrix_kinds), layers_of(anatomy, options)
    if not names:
        raise UnknownName(f"--matrices names none. This model has {', '.join(anatomy.matrix_kinds)}, or all.")
    return sorted(site for site in anatomy.matrices if site.part in names and site.block in blocks)


def digest(value: Any) -> str:
    """16 hex characters that name a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
