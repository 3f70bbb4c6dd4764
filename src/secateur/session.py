"""A model, a task in its tokens, and the ledger they are judged in: what every verb begins with."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from secateur.core.config import Config
from secateur.core.ledger import Ledger
from secateur.core.machine import Loading
from secateur.core.plan import Plan
from secateur.core.progress import Progress, StagedProgress, duration, silent
from secateur.core.score import LOSSES, METRICS, OF_ANSWERS, OUTCOME
from secateur.core.search_log import SearchLog
from secateur.errors import TaskError, TooLong
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.workers import Limits, Workers
from secateur.hf.anatomy import Anatomy
from secateur.hf.blank import blank_model
from secateur.hf.chat import check_template
from secateur.hf.fingerprint import config_digest
from secateur.hf.load import Loaded, load_model
from secateur.hf.running import check_runs
from secateur.options import Options
from secateur.search.evidence import Evidence
from secateur.search.race import Objective
from secateur.surgery.spectra import Spectra
from secateur.tasks.encode import Classifier, Encoded, encode, encode_play
from secateur.tasks.example import Example, Task
from secateur.tasks.joint import check_apart, interleaved, joint
from secateur.tasks.load import load_task
from secateur.tasks.shots import with_shots
from secateur.tasks.splits import PROOF, rank

LOG = logging.getLogger("secateur")
C = TypeVar("C", bound=Config)
T = TypeVar("T")
MAX_PROBED = 256  # examples of probe at most: gradients of 100 suffice (arXiv 2510.20800)
FIRST, FIRST_TOKENS = 4, 256  # that a model is run on before a search: what a config breaks shows in any


@dataclass
class Session:
    """One run: its model, its task in tokens, its ledger and its options.

    Sessions on another task or model (`on`, `dataclasses.replace`) share `seconds` and `encodings`.
    """

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
    log: SearchLog | None = None  # is told of the plans that are judged on this task

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall-clock seconds of a stage, as far as this process does it, to `seconds`."""
        if isinstance(self.progress, StagedProgress):
            self.progress.begin(stage)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Say how long a run will take, before it begins, and let progress know: seconds by stage, in their order."""
        each = ", ".join(f"{stage} {duration(taken)}" for stage, taken in seconds.items() if taken >= 1)
        LOG.info("expected to take %s: %s", duration(sum(seconds.values())), each)
        if isinstance(self.progress, StagedProgress):
            self.progress.expect(seconds)

    @cached_property
    def scope(self) -> str:
        """Return the key under which outcomes are shared between runs.

        Equal for equal weights, config, task, tokens and precision, and for outcomes of the same columns.
        """
        model = self.loaded.model
        parts = [
            self.loaded.fingerprint,
            config_digest(model),
            str(model.dtype),
            self.task.hash,
            *(OUTCOME.names or ()),
        ]
        digest = hashlib.sha256(json.dumps([*parts, self.options.chat]).encode())
        for number, encoded in sorted(self.encoded.items()):
            told = [number, encoded.pairs, encoded.gold, encoded.lengths, *encoded.masks]
            told += [encoded.types] if encoded.types else []
            told += ["sources", *encoded.sources] if encoded.sources else []
            digest.update(json.dumps(told).encode())
        return digest.hexdigest()[:32]

    def shuffled(self, split: str) -> list[int]:
        """Return the examples of a split in the order of `--seed`, in which a race takes them.

        Those of several tasks come by turns.
        """
        examples = list(self.task.split(split))
        random.Random(self.options.seed).shuffle(examples)
        return interleaved(self.task, examples)

    @property
    def probed(self) -> Sequence[int]:
        """Return the first examples of `probe`, as many as gradients and orders need; fits take all of `probe`."""
        return self.task.split("probe")[:MAX_PROBED]

    def halves(self) -> tuple[list[int], list[int]]:
        """Return `select` in two by whole groups: to build plans on, and to confirm them on, each as `shuffled`.

        The split seed decides which group is where, so that another --seed does not draw a kinder half.
        """
        order = {
            group: rank(group, self.options.split_seed, "confirm")
            for group in dict.fromkeys(e.group for e in self.task.of(self.task.split("select")))
        }
        built = set(sorted(order, key=order.__getitem__)[::2])
        select = self.shuffled("select")
        parts = (
            [i for i in select if (self.task.examples[i].group in built) == side] for side in (True, False)
        )
        return next(parts), next(parts)

    def recall(self, key: str, read: Callable[[Any], T]) -> T | None:
        """Return what the ledger remembers of this model and task under `key`, passed through `read`, or None."""
        return None if self.ledger is None else self.ledger.recall(self.scope, key, read)

    def remember(self, key: str, value: object) -> None:
        """Let the ledger remember a JSON value, where there is one."""
        if self.ledger is not None:
            self.ledger.remember(self.scope, key, value)

    def evidence(self, examples: Sequence[int]) -> Evidence:
        """Return the test of whether these examples of `select`, in this order, show a gain."""
        return Evidence(self.objective.metric, self.task.groups(examples), seed=self.options.seed)

    def first_rows(self) -> list[tuple[int, ...]]:
        """Return the first tokens of the first examples, to run the model on before anything else."""
        first = list(self.encoded.values())[:FIRST]
        return [(one.source(0) or one.whole(0))[:FIRST_TOKENS] for one in first]

    def config(self, kind: type[C]) -> C:
        """Return the options of the method that is searched by, which are of this class."""
        assert isinstance(self.options.config, kind), f"{self.options.method} has no {kind.__name__}"
        return self.options.config

    @property
    def empty(self) -> Plan:
        """Return the plan that cuts nothing."""
        return Plan(self.loaded.fingerprint)

    @property
    def loss_name(self) -> str:
        """Return the name of the loss of the task: by tokens of text, by actions of logged play, the cost of episodes,
        else `loss`."""
        return LOSSES.get(self.task.kind, "loss")

    def judge(self) -> Evaluator:
        """Build an evaluator for this task: one for each call, with caches of its own."""
        spectra = self.options.spectra  # whole, for workers are elsewhere
        return Evaluator(
            self.loaded,
            self.task,
            self.encoded,
            limits=Limits(
                max_tokens=self.options.max_tokens, spectra=spectra and str(Path(spectra).absolute())
            ),
            ledger=self.ledger,
            scope=self.scope,
            progress=self.progress,
            workers=self.workers,
            spectra=self.spectra,
            log=self.log,
        )

    @property
    def objective(self) -> Objective:
        """Return the metric that decides: the one asked for, or the task's primary one. Raises: `TaskError`."""
        name = self.options.objective or self.task.primary_metric
        fits: Mapping[str, Set[str]] = {
            "text": {"text_loss", "loss"},
            "choice": OF_ANSWERS,
            "generation": OF_ANSWERS - {"accuracy_norm", "choice_loss"},
            "label": {"accuracy", "loss"},
            "trajectories": {"action_loss"},
            "continuous": {"action_error"},
            "episodes": {"return", "success"},
        }
        fitting = set.intersection(*({*fits[kind]} for kind in self.task.scored_as))
        if self.task.members:  # by tokens the longest task would count most
            fitting = {name for name in fitting if not METRICS[name].weighted}
        if name not in fitting:
            which = " and ".join(sorted(self.task.scored_as))
            raise TaskError(
                f"--objective {name} does not exist for a {which} task; it may be {', '.join(sorted(fitting))}."
            )
        return Objective(METRICS[name])

    def on(self, task: Task, loaded: Loaded | None = None) -> Session:
        """Return the same session with another task, or with another model on the same task."""
        loaded, encoded = loaded or self.loaded, self.encoded
        log = self.log if task is self.task else None
        if task is not self.task:
            if task.hash not in self.encodings:  # once, so that what does not fit is also said only once
                self.encodings[task.hash] = _read(task, loaded, self.options)
            task, encoded = self.encodings[task.hash]
        workers, spectra = (self.workers, self.spectra) if loaded is self.loaded else (None, None)
        return replace(
            self, task=task, encoded=encoded, loaded=loaded, workers=workers, spectra=spectra, log=log
        )


def open_session(
    options: Options,
    ledger: Ledger | None,
    progress: Progress = silent,
    check: Callable[[Session], object] = lambda session: None,
    needs: Mapping[str, int] = PROOF,
) -> Session:
    """Read model and task, whose splits have as many groups as `needs` says.

    `check` is shown the session before the weights are read, which takes time and memory: it raises where that would be
    in vain. Raises `ModelError`, `TaskError`, `UnknownName`, and what `check` raises."""
    progress("load", 0, 1)
    early = early_session(options, needs=needs)
    check(early)
    session = ready_session(replace(early, ledger=ledger), read_model(options), progress)
    progress("load", 1, 1)
    return session


def early_session(options: Options, *, ruler: bool = False, needs: Mapping[str, int] = PROOF) -> Session:
    """Return a session without weights: its model has shapes and no numbers.

    Raises as `open_session`; with `ruler` not where a tokenizer is missing.
    """
    blank = blank_of(options, ruler=ruler)
    return session_on(options, blank, read_task(options, blank, needs, blank.anatomy))


def blank_of(options: Options, *, ruler: bool = False) -> Loaded:
    """Return the model that `options` name without its weights, or the one that they hold. Raises `ModelError`,
    `UnknownName`."""
    return options.in_memory or blank_model(options.model, ruler=ruler, **loading_of(options))


def ready_session(early: Session, loaded: Loaded, progress: Progress = silent) -> Session:
    """Return the session with the weights of its model, which was run once.

    Raises: `ModelError` where it gives no numbers.
    """
    session = replace(early, loaded=loaded, progress=progress)
    check_runs(loaded, session.first_rows())
    return session


def read_model(options: Options) -> Loaded:
    """Return the model that `options` name, or the one that they hold. Raises `ModelError`, `UnknownName`."""
    return options.in_memory or load_model(options.model, **loading_of(options))


def loading_of(options: Options) -> Loading:
    """Return the arguments of `load_model` besides the name."""
    return {
        "revision": options.revision,
        "dtype": options.dtype,
        "device": options.device,
        "trust_remote_code": options.trust_remote_code,
        **options.offloading,
    }


def read_task(
    options: Options, loaded: Loaded, needs: Mapping[str, int] = PROOF, anatomy: Anatomy | None = None
) -> Task:
    """Return the task that `options` name, in its splits and with its shots, before anything is left out of it.

    Of several tasks the joint one: what does not fit is left out of each first (`skip_long`), so that they still count
    alike.

    `needs` says how many groups which splits must have, `anatomy` is that of a model which can be cut. Demonstrations
    belong to the task, so the seed of the splits draws them. Raises `TaskError`, `UnknownName`.
    """
    if anatomy is not None and anatomy.acts and (asked := _of_text(options)):
        raise TaskError(f"{asked} is for models of text, and this is a decision transformer: leave it out.")
    plain = [_load(options, spec, loaded, needs, anatomy) for spec in options.tasks]
    prompts = (example.prompt for task in plain for example in task.examples if example.tokens is None)
    if options.chat and (first := next(prompts, None)) is not None:
        check_template(loaded.tokenizer, first)
    if not options.more_tasks:
        return with_shots(plain[0], options.shots, options.split_seed)
    check_apart(plain)
    tasks = [with_shots(task, options.shots, options.split_seed) for task in plain]
    if options.skip_long:
        tasks = [_encode(task, loaded, options)[0] for task in tasks]
    return joint(tasks, options.split_seed)


def _of_text(options: Options) -> str:
    """Return the first option of these that only a model of text has; empty for none."""
    asked = {
        "--chat": options.chat,
        "--shots": options.shots,
        "--extract": options.extract,
        "a second --task": options.more_tasks,
    }
    return next((name for name, value in asked.items() if value), "")


def _load(
    options: Options, spec: str, loaded: Loaded, needs: Mapping[str, int], anatomy: Anatomy | None
) -> Task:
    return load_task(
        spec,
        tokenizer=loaded.tokenizer,
        test_spec=options.test_task,
        seqlen=options.seqlen,
        split_seed=options.split_seed,
        limit=options.limit,
        allow_small=options.allow_small,
        needs=needs,
        rules=options.question_rules,
        labels=() if anatomy is None else anatomy.labels,
        acts=None if anatomy is None else anatomy.acts,
    )


def session_on(
    options: Options, loaded: Loaded, task: Task, ledger: Ledger | None = None, progress: Progress = silent
) -> Session:
    """Return a session for what is read already. Raises: `TaskError` for what does not fit the model's context."""
    task, encoded = _read(task, loaded, options)
    return Session(options, loaded, task, encoded, ledger, progress)


def _read(task: Task, loaded: Loaded, options: Options) -> tuple[Task, dict[int, Encoded]]:
    """Return `_encode` for a task that is going to be judged; warn of answers that are scored in part."""
    task, encoded = _encode(task, loaded, options)
    joined = [number for number, one in encoded.items() if one.joined]
    if joined:
        LOG.warning(
            "%s: in %d of %d examples, such as %s, an answer begins within the last token of its prompt; what lies in "
            "that token is not scored, as in the evaluation harness. Let answers begin at a word's border.",
            task.name,
            len(joined),
            len(encoded),
            task.examples[joined[0]].id,
        )
    return task, encoded


def encoded_for(loaded: Loaded, example: Example, *, context: int | None, chat: bool) -> Encoded:
    """Return an example in the tokens of a model and as its head reads them. Raises: as `encode`."""
    anatomy = loaded.anatomy
    if anatomy.acts:
        return encode_play(example)
    reads_first = anatomy.details.bidirectional
    return encode(
        example,
        loaded.tokenizer,
        context=context,
        vocab_size=anatomy.vocab_size,
        chat=chat,
        masked=anatomy.details.masked,
        classifier=Classifier(reads_first, anatomy.padding, anatomy.num_types) if anatomy.labels else None,
        start=anatomy.start if anatomy.num_encoder else None,
    )


def _tokens(task: Task, number: int, loaded: Loaded, chat: bool) -> Encoded:
    """Return one example in tokens, with room in the context for what is generated after it. Raises: `TaskError`."""
    example, new = task.examples[number], task.member(number).new_tokens
    if example.shown:
        loaded.anatomy.check_causal("--shots")
    if new and not loaded.anatomy.answers_text:
        loaded.anatomy.check_causal(f"{task.name}, for which {new} tokens are generated,")
    encoded = encoded_for(loaded, example, context=loaded.anatomy.context, chat=chat)
    prompt, context = len(encoded.pairs[0][0]), loaded.anatomy.context
    if new and context is not None and prompt + new - 1 > context:
        raise TooLong(
            f"example {example.id!r}: a prompt of {prompt} tokens leaves no room for {new} more in the "
            f"model's context of {context}. Shorten it, or let the model write less (--max-new-tokens with --extract), "
            "or --skip-long leaves it out."
        )
    return encoded


def _encode(task: Task, loaded: Loaded, options: Options) -> tuple[Task, dict[int, Encoded]]:
    """Return the task in tokens; with `skip_long` without the examples that do not fit, which is said.

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


def decided_by_choices(session: Session) -> bool:
    """Return whether the objective compares the choices of an example, rather than reading its gold answer alone."""
    compares = session.objective.metric.column in ("correct", "correct_norm", "choice_loss")
    return session.task.kind == "choice" and compares


def digest(value: object) -> str:
    """Return 16 hex characters that name a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
