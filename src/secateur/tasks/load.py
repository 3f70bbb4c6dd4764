"""From what a user writes after --task to a `Task`: files, generators, presets, the evaluation harness.

What needs an extra (datasets, lm_eval) is imported only where it is used. Knows no model.
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
from secateur.tasks.harness import read_harness
from secateur.tasks.jsonl import read_jsonl
from secateur.tasks.local import read_records
from secateur.tasks.presets import NEEDS, PRESETS, read_preset
from secateur.tasks.splits import PROOF, Source, arrange, make_task, take
from secateur.tasks.study import NEEDS as STUDY_NEEDS
from secateur.tasks.study import STUDY, check_study, read_study
from secateur.tasks.text import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TaskInfo(NamedTuple):
    """One line of `secateur tasks`; `needs` is empty, or the extra and the network a task asks for."""

    name: str
    kind: str
    description: str
    needs: str


BUILTINS: Mapping[str, Callable[[], Source]] = {
    "facts": lambda: Source("facts", facts.KIND, tuple(facts.examples())),
    "recall": lambda: Source("recall", recall.KIND, tuple(recall.examples())),
    "components": lambda: Source("components", components.KIND, tuple(components.examples())),
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
    """The task that `spec` names, split into probe, select and test.

    `spec` is FILE.jsonl, text:FILE, builtin:NAME, a preset's name, PRESET:FILE.jsonl (its records from a file),
    study:NAME or lm_eval:NAME. With `test_spec` the test split is all of it, and `spec` gives probe and select.
    `limit` keeps at most that many examples, whole groups, of each source. `shares` of probe, select, test are .1, .4,
    .5; `needs` says how many groups which of them must have, unless `allow_small`. The result depends on content and
    `split_seed` only, never on the order of lines.

    Raises: `UnknownName` for a name that nothing answers to; `TaskError` for data that cannot be used.
    """
    source = _open(spec, tokenizer, seqlen)
    test = None if test_spec is None else _open(test_spec, tokenizer, seqlen)
    how = {
        "split_seed": split_seed,
        "limit": limit,
        "allow_small": allow_small,
        "shares": shares,
        "needs": needs,
    }
    return make_task(source, test, **how)


def load_side(
    spec: str, *, tokenizer: PreTrainedTokenizerBase, seqlen: int = 256, limit: int | None = None
) -> Task:
    """A task that is only watched, never chosen by: all its examples (at most `limit`) in one split, `test`.

    Raises: as `load_task`, but no split can be too small.
    """
    source = _open(spec, tokenizer, seqlen)
    examples = arrange(take((*source.examples, *(source.held_out or ())), limit, 0), 0)
    return Task(source.name, source.kind, examples, all_tested(examples), source.max_new_tokens)


def list_tasks() -> list[TaskInfo]:
    """The tasks that have a name of their own."""
    worlds = {"facts": facts, "recall": recall, "components": components}
    told = {name: world.DESCRIPTION for name, world in worlds.items()} | arithmetic.DESCRIPTIONS
    kinds = {name: world.KIND for name, world in worlds.items()}
    builtin = [
        TaskInfo(f"builtin:{name}", kinds.get(name, "generation"), told[name], "") for name in BUILTINS
    ]
    presets = [TaskInfo(p.name, p.kind, p.description, NEEDS) for p in PRESETS.values()]
    study = [TaskInfo(f"study:{name}", t.kind, t.description, STUDY_NEEDS) for name, t in STUDY.items()]
    return builtin + presets + study


class _Spec(NamedTuple):
    """The parts of what is written after --task: `kind` is how it is read, `name` what is read, which is a file where
    `path` says so."""

    kind: str
    name: str
    path: Path | None = None


def _spec(text: str) -> _Spec:
    """Raises `UnknownName` for a name that nothing answers to, `TaskError` for a file that cannot be a task."""
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
    """The files that a task is read from, where it is. Raises as `load_task` before it reads: `UnknownName`, and
    `TaskError` for no file."""
    path = _spec(spec).path
    if path is None:
        return []
    check_file(path, TaskError)
    return [path]


def _open(text: str, tokenizer: PreTrainedTokenizerBase, seqlen: int) -> Source:
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
