"""Load the `Task` that a user names after --task: a file, data set, generator, preset, or task of the harness.

Extras (datasets, lm_eval) are imported only where they are used. Knows no model.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from secateur.core.acts import POSITIONS, Acts
from secateur.core.reading import check_file
from secateur.errors import TaskError, UnknownName, nearest
from secateur.tasks import arithmetic, components, facts, recall
from secateur.tasks.example import Task, all_tested
from secateur.tasks.formats import DOC, QUESTIONS, ROW_FILES, Row, is_saved, other_format
from secateur.tasks.harness import STUDY, STUDY_NEEDS, check_study, read_harness, read_study
from secateur.tasks.hub import NEEDS, check_copy, dataset_rows, parse_name
from secateur.tasks.presets import PRESETS, read_preset, read_records
from secateur.tasks.questions import QuestionRules, read_questions
from secateur.tasks.rows import read_rows
from secateur.tasks.shapes import RIGHT, answer_columns, is_text, shape_words
from secateur.tasks.splits import PROOF, ExampleSource, arrange, make_task, take
from secateur.tasks.text import read_documents, read_text
from secateur.tasks.trajectories import EPISODES, gridworld, read_episodes, read_trajectories

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LOG = logging.getLogger("secateur")


class TaskInfo(NamedTuple):
    """One line of `secateur tasks`; `needs` is empty, or the extra and the network a task asks for."""

    name: str
    kind: str
    description: str
    needs: str


CONTAINERS = {
    ".csv": "a table (CSV)",
    ".tsv": "a table (TSV)",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
}
CONTAINERS[".json"] = "JSON"
KINDS = {
    "text": "plain text",
    "builtin": "made by secateur",
    "trajectories": "logged play",
    "episodes": "episodes that are played",
    "lm_eval": "a task of the evaluation harness",
    "study": "a task of the evaluation harness",
    "preset": "a data set of the papers",
}
ACTING = ("trajectories", "episodes")  # kinds of names that are for decision transformers, with a file
GRIDWORLD = "gridworld"  # the built-in task that is
AS_WRITTEN = QuestionRules()
BUILTINS: Mapping[str, Callable[[], ExampleSource]] = {
    "facts": lambda: ExampleSource("facts", facts.KIND, tuple(facts.examples())),
    "recall": lambda: ExampleSource("recall", recall.KIND, tuple(recall.examples())),
    "components": lambda: ExampleSource("components", components.KIND, tuple(components.examples())),
    "int-sum": arithmetic.int_sum,
    "int-mult": arithmetic.int_mult,
    GRIDWORLD: lambda: gridworld(None),
}


def load_task(
    spec: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    test_spec: str | None = None,
    seqlen: int = 256,
    split_seed: int = 0,
    limit: int | None = None,
    allow_small: bool = False,
    shares: tuple[float, float, float] | None = None,
    needs: Mapping[str, int] = PROOF,
    rules: QuestionRules = AS_WRITTEN,
    labels: Sequence[str] = (),
    acts: Acts | None = None,
) -> Task:
    """Load the task that `spec` names, split into probe, select and test.

    The result depends on content and `split_seed` only, never on the order of lines.

    Args:
        tokenizer: Cuts text; None where the task is questions.
        spec: FILE (.csv, .tsv, .jsonl, .json, or a folder that `datasets` saved), text:FILE, hf:OWNER/NAME[:SPLIT],
            builtin:NAME, a preset's name, PRESET:FILE (its records from a file), study:NAME, lm_eval:NAME,
            episodes:FILE or trajectories:FILE.
        test_spec: a task whose examples are all of the test split; `spec` then gives probe and select.
        seqlen: tokens of a chunk of text.
        limit: keep at most that many examples, whole groups, of each source.
        allow_small: accept splits with fewer groups than `needs`.
        shares: of probe, select, test; .1, .4, .5 by default.
        needs: groups that each split must have.
        rules: how questions of a file or a data set are read.
        labels: those of a sequence classifier, for which rows are texts with a label.
        acts: sizes of a decision transformer, for which tasks are episodes and logged play.

    Raises: `UnknownName` for a name that does not exist; `TaskError` for data that cannot be used.
    """
    source = _open(spec, tokenizer, seqlen, rules, labels, acts)
    test = None if test_spec is None else _open(test_spec, tokenizer, seqlen, rules, labels, acts)
    return make_task(
        source,
        test,
        split_seed=split_seed,
        limit=limit,
        allow_small=allow_small,
        shares=shares,
        needs=needs,
    )


def load_side(
    spec: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    seqlen: int = 256,
    limit: int | None = None,
    rules: QuestionRules = AS_WRITTEN,
    labels: Sequence[str] = (),
    acts: Acts | None = None,
) -> Task:
    """Load a task that is only watched, never chosen by: all its examples (at most `limit`) in one split, `test`.

    Raises: as `load_task`, but no split can be too small.
    """
    source = _open(spec, tokenizer, seqlen, rules, labels, acts)
    examples = arrange(take((*source.examples, *(source.held_out or ())), limit, 0), 0)
    splits = all_tested(examples)
    return Task(source.name, source.kind, examples, splits, source.max_new_tokens, (), source.extraction)


def list_tasks() -> list[TaskInfo]:
    """Return the tasks that have a name."""
    worlds = {"facts": facts, "recall": recall, "components": components}
    descriptions = {name: world.DESCRIPTION for name, world in worlds.items()} | arithmetic.DESCRIPTIONS
    kinds = {name: world.KIND for name, world in worlds.items()} | {GRIDWORLD: EPISODES}
    descriptions[GRIDWORLD] = "A key, then a goal, among lava: episodes for a decision transformer."
    builtin = [
        TaskInfo(f"builtin:{name}", kinds.get(name, "generation"), descriptions[name], "")
        for name in BUILTINS
    ]
    presets = [TaskInfo(p.name, p.kind, p.description, NEEDS) for p in PRESETS.values()]
    study = [TaskInfo(f"study:{name}", t.kind, t.description, STUDY_NEEDS) for name, t in STUDY.items()]
    return builtin + presets + study


class _Spec(NamedTuple):
    """The parts of a task's name: `kind` says how it is read; `name` is a file where `path` is set."""

    kind: str
    name: str
    path: Path | None = None


def _spec(text: str) -> _Spec:
    """Parse a task's name.

    Raises: `UnknownName` for a name that does not exist, `TaskError` for a file that cannot be a task.
    """
    kind, _, rest = text.partition(":")
    if kind in ("text", *ACTING) and rest:
        return _Spec(kind, rest, Path(rest))
    if kind == "builtin" and rest:
        if rest not in BUILTINS:
            raise UnknownName(f"unknown builtin task {rest!r}.{nearest(rest, BUILTINS)}")
        return _Spec(kind, rest)
    if kind == "study" and rest:
        check_study(rest)
        return _Spec(kind, rest)
    if kind == "lm_eval" and rest:
        return _Spec(kind, rest, Path(rest) if rest.endswith((".yaml", ".yml")) else None)
    if text in PRESETS:
        return _Spec("preset", text)
    if kind in PRESETS and rest:
        return _Spec(kind, rest, Path(rest))
    if text in STUDY:
        return _Spec("study", text)
    if kind == "hf" and rest:
        return _Spec(kind, rest, parse_name(rest).folder)
    path, is_there = Path(text), os.path.exists(text)
    if (path.suffix.lower() in ROW_FILES and (is_there or ":" not in text)) or is_saved(path):
        return _Spec("rows", text, path)
    if is_there:
        if path.suffix in (".yaml", ".yml"):
            raise TaskError(f"{text}: a task of the evaluation harness is written lm_eval:{text}.")
        if other := other_format(path, QUESTIONS):
            raise TaskError(other)
        raise TaskError(
            f"{text}: a file of questions ends in {', '.join(ROW_FILES)}; plain text is written text:{text}."
        )
    known = [info.name for info in list_tasks()]
    raise UnknownName(
        f"unknown task {text!r}.{nearest(text, known)} A file is written FILE.csv, FILE.jsonl or text:FILE; a data "
        "set of the hub hf:OWNER/NAME; a task of the evaluation harness lm_eval:NAME."
    )


def describe(text: str, labelled: bool = False) -> str:
    """Return in words how a task was understood: what holds its rows, and what a row is.

    Args:
        labelled: It is read for a sequence classifier.

    Raises: as `load_task`.
    """
    spec = _spec(text)
    if spec.kind not in ("rows", "hf"):
        return KINDS.get(spec.kind, f"records of {spec.kind}")
    rows = dataset_rows(spec.name) if spec.kind == "hf" else read_rows(Path(spec.name), QUESTIONS)
    first = next(rows, None)
    suffix = "" if spec.kind == "hf" else Path(spec.name).suffix.lower()
    shape = "texts with their labels" if labelled else shape_words(first.value if first else {})
    return f"{CONTAINERS.get(suffix, 'a data set')} of {shape}"


def files_of(spec: str) -> list[Path]:
    """Return the files that a task is read from; none where it is no file.

    Raises: as `load_task` before it reads: `UnknownName`; `TaskError` for no file, and for data of the hub where that
        does not answer and nothing of it is here.
    """
    found = _spec(spec)
    path = found.path
    if path is None:
        if found.kind == "preset" and find_spec("datasets"):  # else that is said
            check_copy(found.name, f" Or bring its records: {found.name}:FILE.jsonl.")
        if found.kind == "study" and find_spec("lm_eval"):
            check_copy(found.name)
        return []
    if not is_saved(path):
        check_file(path, TaskError)
    return [path]


def _open(
    text: str,
    tokenizer: PreTrainedTokenizerBase | None,
    seqlen: int,
    rules: QuestionRules,
    labels: Sequence[str],
    acts: Acts | None,
) -> ExampleSource:
    spec = _spec(text)
    _check_acting(text, spec, acts, of_text=tokenizer is not None)
    if labels and spec.kind not in ("rows", "hf"):
        raise TaskError(
            f"{text} is no labelled text, and the model is a sequence classifier: give a file or a data set with rows "
            f"such as {RIGHT['labelled']}; see {DOC}."
        )
    match spec.kind:
        case "text":
            return read_text(Path(spec.name), _cutting(tokenizer, text), seqlen)
        case "rows":
            path = Path(spec.name)
            return _read(path.stem, text, read_rows(path, QUESTIONS), tokenizer, seqlen, rules, labels)
        case "hf":
            name = spec.name.rpartition("/")[2].replace(":", " ")
            return _read(name, text, dataset_rows(spec.name), tokenizer, seqlen, rules, labels)
        case "trajectories":
            return read_trajectories(Path(spec.name), acts, seqlen // POSITIONS)
        case "episodes":
            return read_episodes(Path(spec.name), acts)
        case "builtin":
            return gridworld(acts) if spec.name == GRIDWORLD else BUILTINS[spec.name]()
        case "lm_eval":
            return read_harness(spec.name)
        case "study":
            return read_study(spec.name)
        case "preset":
            return read_preset(PRESETS[spec.name])
        case preset:
            return read_records(PRESETS[preset], Path(spec.name))


def _check_acting(text: str, spec: _Spec, acts: Acts | None, *, of_text: bool) -> None:
    """Raise `TaskError` for a task of play and a model of text, or the other way around."""
    acting = spec.kind in ACTING or (spec.kind, spec.name) == ("builtin", GRIDWORLD)
    if acting and acts is None and of_text:
        raise TaskError(
            f"{text} is for a decision transformer, and the model reads text: give questions or text."
        )
    if acts is not None and not acting:
        raise TaskError(
            f"{text} is no play, and the model is a decision transformer: give builtin:{GRIDWORLD}, episodes:FILE or "
            f"trajectories:FILE; see {DOC}."
        )


def _read(
    name: str,
    place: str,
    rows: Iterator[Row],
    tokenizer: PreTrainedTokenizerBase | None,
    seqlen: int,
    rules: QuestionRules,
    labels: Sequence[str],
) -> ExampleSource:
    """Return the questions in these rows, or the text where the first of them is a text; with `labels` texts that have
    one of them."""
    if labels:
        return read_questions(name, place, rows, rules, labels)
    first = list(islice(rows, 1))
    rows = chain(first, rows)
    if first and is_text(first[0].value):
        if beside := answer_columns(first[0].value):
            LOG.warning(
                "%s: read as plain text, and %s is not read. For questions, rename text → question. Labels are for "
                "models with a head for sequence classification.",
                place,
                beside[0],
            )
        return read_documents(name, place, rows, _cutting(tokenizer, place), seqlen)
    return read_questions(name, place, rows, rules)


def _cutting(tokenizer: PreTrainedTokenizerBase | None, text: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer that cuts a text. Raises: `TaskError` where there is none."""
    if tokenizer is None:
        raise TaskError(f"{text} is plain text, which is cut into chunks of a model's tokens: give --model.")
    return tokenizer
