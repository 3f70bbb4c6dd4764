"""Read tasks of the evaluation harness (the `lm-eval` extra), so that our accuracy is the harness's own number.

Zero-shot; solved examples come before the prompts as for every other task (`shots.py`). The harness itself
renders every (context, continuation) pair; here they only change their form. Nothing of lm_eval is imported
before a task is asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import util
from typing import TYPE_CHECKING, NamedTuple

from secateur.errors import SecateurError, TaskError, UnknownName, nearest
from secateur.tasks.example import Example
from secateur.tasks.extract import Extraction
from secateur.tasks.hub import check_copy, hub_or_cache, why_missing
from secateur.tasks.questions import GENERATED
from secateur.tasks.splits import ExampleSource

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

LOG = logging.getLogger("secateur")
DEFAULT_PATTERN = r"#### (\-?[0-9\.\,]+)"  # of lm-evaluation-harness 0.4.13, `RegexFilter`
KINDS = {"multiple_choice": "choice", "loglikelihood": "generation", "generate_until": "generation"}


def read_harness(name: str) -> ExampleSource:
    """Return the task `name`, or the one in the file `name` (.yaml), zero-shot.

    The documents that the harness scores are held out for the test split where the task also has training
    documents; otherwise they are all there is.

    Raises: `SecateurError` without lm_eval, `UnknownName`, and `TaskError` for groups, other output types,
    several right answers, and documents without one.
    """
    task = _load(name)
    kind = KINDS.get(task.OUTPUT_TYPE)
    if kind is None:
        raise TaskError(
            f"lm_eval:{name}: its output type is {task.OUTPUT_TYPE}; only {' and '.join(KINDS)} can be read."
        )
    if task.multiple_target:
        raise TaskError(f"lm_eval:{name}: questions with several right answers cannot be read.")
    _warn_of_differences(name, task)
    tokens, extraction = _generation(name, task) if task.OUTPUT_TYPE == "generate_until" else (0, None)
    scored = tuple(_examples(task, "eval", task.eval_docs))
    if not task.has_training_docs():
        return ExampleSource(task.task_name, kind, scored, None, tokens, extraction=extraction)
    training = tuple(_examples(task, "train", task.training_docs()))
    return ExampleSource(task.task_name, kind, training, scored, tokens, extraction=extraction)


def _load(name: str) -> ConfigurableTask:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise SecateurError(
            "lm_eval:NAME needs the evaluation harness: pip install 'secateur[lm-eval]'."
        ) from error
    is_file = name.endswith((".yaml", ".yml"))
    if is_file and not os.path.isfile(name):
        raise TaskError(f"lm_eval:{name}: no such file.")
    manager = TaskManager(include_defaults=not is_file)
    if not is_file and name not in manager.all_subtasks:
        if name in manager.all_tasks:
            raise TaskError(f"lm_eval:{name}: a group of tasks. Name one; `lm_eval ls tasks` lists them.")
        raise UnknownName(f"lm_eval has no task {name!r}.{nearest(name, manager.all_subtasks)}")
    try:
        with hub_or_cache():
            (task,) = manager.load([name])["tasks"].values()
    except (OSError, ValueError, RuntimeError) as error:
        raise TaskError(f"lm_eval:{name}: its data cannot be loaded{why_missing(error)}") from error
    return task


def _warn_of_differences(name: str, task: ConfigurableTask) -> None:
    if task.config.num_fewshot:
        LOG.warning(
            "lm_eval:%s: the harness shows %d solved examples; here --shots says how many.",
            name,
            task.config.num_fewshot,
        )
    if callable(task.config.process_results):
        LOG.warning("lm_eval:%s: the harness has its own scoring; here it is accuracy by likelihood.", name)


def _examples(task: ConfigurableTask, part: str, documents: Iterable[dict[str, object]]) -> Iterable[Example]:
    for number, document in enumerate(documents):
        name = f"{task.task_name}-{part}-{number}"
        context = task.fewshot_context(document, num_fewshot=0, gen_prefix=task.doc_to_prefix(document))
        requests = task.construct_requests(document, context, metadata=(task.task_name, number, 1))
        if task.OUTPUT_TYPE == "generate_until":
            prompt, answer = _moved(context, task.config.target_delimiter + str(task.doc_to_target(document)))
            yield Example(name, prompt, answer)
        elif task.OUTPUT_TYPE == "loglikelihood":
            prompt, answer = _moved(*requests.args)
            yield Example(name, prompt, answer)
        elif task.multiple_input:
            yield _placed(name, task, document, [request.args for request in requests])
        else:
            yield _choice(name, task, document, [request.args for request in requests])


def _generation(name: str, task: ConfigurableTask) -> tuple[int, Extraction]:
    """Return how many tokens the harness lets a model write, and how it finds and compares the answer.

    Raises: `TaskError` for other filters and metrics, for sampling, and for scoring by a function.
    """
    config = task.config
    metrics = {metric["metric"]: metric for metric in config.metric_list or []}
    settings = dict(config.generation_kwargs or {})
    if "exact_match" not in metrics or callable(config.process_results):
        raise TaskError(f"lm_eval:{name}: of written answers only those scored by exact_match are read.")
    if settings.get("do_sample"):
        raise TaskError(f"lm_eval:{name}: it samples its answers, and here the likeliest token is taken.")
    filters = (config.filter_list or [{"name": "none", "filter": []}])[0]
    steps = [
        step for step in filters["filter"] if step["function"] not in ("take_first", "remove_whitespace")
    ]
    if len(steps) > 1 or any(step["function"] != "regex" for step in steps):
        raise TaskError(f"lm_eval:{name}: its filter {filters['name']!r} is none of regex and take_first.")
    if len(config.filter_list or []) > 1:
        LOG.warning("lm_eval:%s: of its filters the first is used, %s.", name, filters["name"])
    step, metric = (steps or [{}])[0], metrics["exact_match"]
    extraction = Extraction(
        step.get("regex_pattern", DEFAULT_PATTERN if steps else ""),
        last=step.get("group_select", 0) == -1,
        from_gold=False,
        until=tuple([until] if isinstance(until := settings.get("until") or [], str) else until),
        ignored=tuple(metric.get("regexes_to_ignore") or ()),
        ignore_case=bool(metric.get("ignore_case")),
        ignore_punctuation=bool(metric.get("ignore_punctuation")),
    )
    return int(settings.get("max_gen_toks", GENERATED)), extraction


def _moved(context: str, continuation: str) -> tuple[str, str]:
    """Move white space from the end of the context to the continuation, as the harness does when it encodes."""
    prompt = context.rstrip()
    return prompt, context[len(prompt) :] + continuation


def _choice(
    name: str, task: ConfigurableTask, document: dict[str, object], pairs: list[tuple[str, str]]
) -> Example:
    raw = task.doc_to_choice(document)
    label = _label(name, task.doc_to_target(document), raw)
    # Behind the choices there are unconditional pairs, for mutual information.
    moved = [_moved(*pair) for pair in pairs[: len(raw)]]
    choices = tuple(continuation for _, continuation in moved)
    return Example(name, moved[0][0], choices[label], choices, label=label, lengths=_lengths(raw))


def _placed(
    name: str, task: ConfigurableTask, document: dict[str, object], pairs: list[tuple[str, str]]
) -> Example:
    """Return an example whose choices stand in the context, with the same continuation after each (WinoGrande)."""
    raw = task.doc_to_choice(document)
    label = _label(name, task.doc_to_text(document), raw)
    contexts = tuple(context for context, _ in pairs[: len(raw)])
    prompt = _shared_start(contexts).rstrip()
    answer = pairs[0][1]
    return Example(name, prompt, answer, tuple(raw), contexts=contexts, label=label, lengths=_lengths(raw))


def _shared_start(texts: tuple[str, ...]) -> str:
    first, last = min(texts), max(texts)
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


def _label(name: str, gold: object, choices: list[str]) -> int:
    if isinstance(gold, str) and gold in choices:
        return choices.index(gold)
    if isinstance(gold, int) and 0 <= gold < len(choices):
        return int(gold)
    raise TaskError(
        f"example {name!r}: its right answer {gold!r} is none of its {len(choices)} choices {choices}."
    )


def _lengths(choices: list[str]) -> tuple[int, ...]:
    return tuple(max(1, len(choice)) for choice in choices)


# The study of OPT-66B, Bansal et al. 2022 (arXiv 2212.09095): 14 tasks at 0, 1 and 5 shots, two more out of its domain.
# Prompts, splits and right answers are the harness's.
STUDY_NEEDS = "secateur[lm-eval], network"


class StudyTask(NamedTuple):
    """A task of the study; `harness` is the name that lm-eval has for it."""

    harness: str
    kind: str
    description: str


STUDY: Mapping[str, StudyTask] = {
    "hellaswag": StudyTask("hellaswag", "choice", "How a description of an everyday scene goes on."),
    "piqa": StudyTask("piqa", "choice", "Which of two ways reaches a physical goal."),
    "arc-easy": StudyTask("arc_easy", "choice", "Science questions of grade school, the easy part."),
    "arc-challenge": StudyTask(
        "arc_challenge", "choice", "Science questions of grade school, the hard part."
    ),
    "openbookqa": StudyTask("openbookqa", "choice", "Elementary science, closed book."),
    "winogrande": StudyTask("winogrande", "choice", "Which of two names fills the gap."),
    "boolq": StudyTask("boolq", "choice", "Yes or no, from a passage."),
    "cb": StudyTask("cb", "choice", "CommitmentBank: true, false or neither."),
    "copa": StudyTask("copa", "choice", "Which of two is the cause, or the effect."),
    "wic": StudyTask("wic", "choice", "Whether a word means the same in two sentences."),
    "wsc": StudyTask("wsc", "choice", "Whether a pronoun refers to a noun."),
    "multirc": StudyTask("multirc", "choice", "Whether an answer about a passage is right."),
    "rte": StudyTask("rte", "choice", "Textual entailment."),
    "record": StudyTask("record", "choice", "Which entity of a news text fills the gap."),
    "mathqa": StudyTask("mathqa", "choice", "Word problems with five choices (out of domain)."),
    "lambada": StudyTask("lambada_openai", "generation", "The last word of a passage (out of domain)."),
}


def check_study(name: str) -> None:
    """Raise `UnknownName` for a name that is no task of the study."""
    if name not in STUDY:
        raise UnknownName(f"the study has no task {name!r}.{nearest(name, STUDY)}")


def read_study(name: str) -> ExampleSource:
    """Return a task of the study.

    Raises: `UnknownName`, and as `read_harness`: without lm_eval, without the data or a network.
    """
    check_study(name)
    if util.find_spec("lm_eval"):  # else that is said
        check_copy(name)
    return replace(read_harness(STUDY[name].harness), name=name)
