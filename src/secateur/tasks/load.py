"""Load the `Task` that a user names after --task: a file, generator, preset, or task of the evaluation harness.

Extras (datasets, lm_eval) are imported only where they are used. Knows no model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from secateur.core.reading import check_file
from secateur.errors import TaskError, UnknownName, nearest
from secateur.tasks import arithmetic, components, facts, recall
from secateur.tasks.example import Task, all_tested
from secateur.tasks.formats import QUESTIONS, refuse_other_formats
from secateur.tasks.harness import STUDY, STUDY_NEEDS, check_study, read_harness, read_study
from secateur.tasks.jsonl import read_jsonl
from secateur.tasks.presets import NEEDS, PRESETS, read_preset, read_records
from secateur.tasks.splits import PROOF, ExampleSource, arrange, make_task, take
from secateur.tasks.text import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TaskInfo(NamedTuple):
    """One line of `secateur tasks`; `needs` is empty, or the extra and the network a task asks for."""

    name: str
    kind: str
    description: str
    needs: str


BUILTINS: Mapping[str, Callable[[], ExampleSource]] = {
    "facts": lambda: ExampleSource("facts", facts.KIND, tuple(facts.examples())),
    "recall": lambda: ExampleSource("recall", recall.KIND, tuple(recall.examples())),
    "components": lambda: ExampleSource("components", components.KIND, tuple(components.examples())),
    "int-sum": arithmetic.int_sum,
    "int-mult": arithmetic.int_mult,
}


def load_task(
    spec: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    test_spec: str | None = None,
    seqlen: int = 256,
    split_seed: int = 0,
    limit: int | None = None,
    allow_small: bool = False,
    shares: tuple[float, float, float] | None = None,
    needs: Mapping[str, int] = PROOF,
) -> Task:
    """Load the task that `spec` names, split into probe, select and test.

    The result depends on content and `split_seed` only, never on the order of lines.

    Args:
        spec: FILE.jsonl, text:FILE, builtin:NAME, a preset's name, PRESET:FILE.jsonl (its records from a file),
            study:NAME or lm_eval:NAME.
        test_spec: a task whose examples are all of the test split; `spec` then gives probe and select.
        seqlen: tokens of a chunk of text.
        limit: keep at most that many examples, whole groups, of each source.
        allow_small: accept splits with fewer groups than `needs`.
        shares: of probe, select, test; .1, .4, .5 by default.
        needs: groups that each split must have.

    Raises: `UnknownName` for a name that does not exist; `TaskError` for data that cannot be used.
    """
    source = _open(spec, tokenizer, seqlen)
    test = None if test_spec is None else _open(test_spec, tokenizer, seqlen)
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
    spec: str, *, tokenizer: PreTrainedTokenizerBase, seqlen: int = 256, limit: int | None = None
) -> Task:
    """Load a task that is only watched, never chosen by: all its examples (at most `limit`) in one split, `test`.

    Raises: as `load_task`, but no split can be too small.
    """
    source = _open(spec, tokenizer, seqlen)
    examples = arrange(take((*source.examples, *(source.held_out or ())), limit, 0), 0)
    return Task(source.name, source.kind, examples, all_tested(examples), source.max_new_tokens)


def list_tasks() -> list[TaskInfo]:
    """Return the tasks that have a name."""
    worlds = {"facts": facts, "recall": recall, "components": components}
    descriptions = {name: world.DESCRIPTION for name, world in worlds.items()} | arithmetic.DESCRIPTIONS
    kinds = {name: world.KIND for name, world in worlds.items()}
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
    if kind == "text" and rest:
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
    path, is_there = Path(text), os.path.exists(text)
    if path.suffix == ".jsonl" and (is_there or ":" not in text):
        return _Spec("jsonl", text, path)
    if is_there:
        if path.suffix in (".yaml", ".yml"):
            raise TaskError(f"{text}: a task of the evaluation harness is written lm_eval:{text}.")
        refuse_other_formats(path, QUESTIONS)
        raise TaskError(f"{text}: a task file ends in .jsonl; plain text is written text:{text}.")
    known = [info.name for info in list_tasks()]
    raise UnknownName(
        f"unknown task {text!r}.{nearest(text, known)} A file is written FILE.jsonl or text:FILE."
    )


def files_of(spec: str) -> list[Path]:
    """Return the files that a task is read from; none where it is no file.

    Raises: as `load_task` before it reads: `UnknownName`, and `TaskError` for no file.
    """
    path = _spec(spec).path
    if path is None:
        return []
    check_file(path, TaskError)
    return [path]


def _open(text: str, tokenizer: PreTrainedTokenizerBase, seqlen: int) -> ExampleSource:
    spec = _spec(text)
    match spec.kind:
        case "text":
            return read_text(Path(spec.name), tokenizer, seqlen)
        case "jsonl":
            return read_jsonl(Path(spec.name))
        case "builtin":
            return BUILTINS[spec.name]()
        case "lm_eval":
            return read_harness(spec.name)
        case "study":
            return read_study(spec.name)
        case "preset":
            return read_preset(PRESETS[spec.name])
        case preset:
            return read_records(PRESETS[preset], Path(spec.name))
