"""The papers' data sets by name, as data: where they are on the hub, and how a record becomes examples.

Sources: LASER (Sharma, Ash, Misra 2023, arXiv 2312.13558), appendix E.1 and E.2, for the first eight;
eigenpruning (Vergara-Browne et al. 2024, arXiv 2404.03147) for cb, copa, rte. Prompts are theirs to the
letter, a missing space included. The same records may come from a local file, `cb:train.jsonl`, with the fields of the
hub's copy (or of SuperGLUE's own files, where labels are words).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from secateur.errors import TaskError
from secateur.tasks.example import Example
from secateur.tasks.formats import RECORDS
from secateur.tasks.hub import load
from secateur.tasks.rows import read_rows
from secateur.tasks.splits import ExampleSource

Record = Mapping[str, Any]  # of any shape: what a preset finds missing in it is said


@dataclass(frozen=True)
class Preset:
    """A data set of the hub. `examples(record, id)` gives any number of examples; `held_out` is the hub's test split.

    `unique` keeps one example per prompt and none where the answers contradict each other.
    """

    name: str
    kind: str
    description: str
    dataset: str
    config: str | None
    splits: tuple[str, ...]
    examples: Callable[[Record, str], list[Example]]
    held_out: str | None = None
    max_new_tokens: int = 0
    unique: bool = False


def read_preset(preset: Preset) -> ExampleSource:
    """Load the preset from the hub.

    Raises: `SecateurError` without `datasets`, `TaskError` where the data cannot be had.
    """

    def read(split: str) -> tuple[Example, ...]:
        return tuple(to_examples(preset, split, _records(preset, split)))

    examples = tuple(chain.from_iterable(map(read, preset.splits)))
    held_out = None if preset.held_out is None else read(preset.held_out)
    kept = unique(examples) if preset.unique else examples
    return ExampleSource(preset.name, preset.kind, kept, held_out, preset.max_new_tokens)


def read_records(preset: Preset, path: Path) -> ExampleSource:
    """Return the examples of `preset` from a file of its records; nothing is held out for the test.

    Ids come from the content, so neither the order of lines nor the file's name moves an example to another
    split.

    Raises: `TaskError`, with file and line, for a line that is no such record.
    """
    examples: list[Example] = []
    seen: Counter[str] = Counter()
    for where, record, _ in read_rows(path, RECORDS):
        if not isinstance(record, Mapping):
            raise TaskError(f"{path}, {where}: no object with the fields of {preset.dataset}.")
        content = json.dumps(record, sort_keys=True).encode()
        name = f"{preset.name}-{hashlib.sha256(content).hexdigest()[:12]}"
        seen[name] += 1
        name += f"-{seen[name]}" if seen[name] > 1 else ""
        try:
            examples += preset.examples(record, name)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            reason = _reason(preset, record, error)
            raise TaskError(f"{path}, {where}: {reason}") from error
    if not examples:
        raise TaskError(f"{path}: no examples of {preset.name} in it.")
    kept = unique(tuple(examples)) if preset.unique else tuple(examples)
    return ExampleSource(preset.name, preset.kind, kept, None, preset.max_new_tokens)


def _reason(preset: Preset, record: Record, error: Exception) -> str:
    if {"prompt", "answer"} <= record.keys():
        return f"a question as it is asked, no record of {preset.name}. Name the file without {preset.name}: before it."
    if isinstance(error, KeyError) and error.args[0] not in record:
        return f"{error.args[0]!r} is missing; {preset.name} reads the fields of {preset.dataset}."
    return f"not as {preset.name} reads it ({error!r}); it reads the fields of {preset.dataset}."


def to_examples(preset: Preset, split: str, records: Iterable[Record]) -> Iterator[Example]:
    """Yield the examples of the records.

    Raises: `TaskError` for a record that is not of the shape this preset was written for.
    """
    for number, record in enumerate(records):
        name = f"{preset.name}-{split}-{number}"
        try:
            yield from preset.examples(record, name)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            where = f"{preset.dataset}, {split} record {number}"
            raise TaskError(
                f"{where}: not as preset {preset.name!r} expects it ({error!r}); the hub's copy has changed."
            ) from error


def _records(preset: Preset, split: str) -> Iterable[Record]:
    try:
        records: Iterable[Record] = load(preset.dataset, preset.config, split)
    except TaskError as error:
        raise TaskError(f"{preset.name}: {error} Or bring its records: {preset.name}:FILE.jsonl.") from error
    return records


def unique(examples: tuple[Example, ...]) -> tuple[Example, ...]:
    """Return one example per prompt, and none where answers contradict each other."""
    answers: dict[str, set[str]] = {}
    for example in examples:
        answers.setdefault(example.prompt, set()).add(example.answer)
    first = {example.prompt: example for example in reversed(examples)}
    return tuple(example for prompt, example in reversed(first.items()) if len(answers[prompt]) == 1)


def _stopped(text: str) -> str:
    """Return the text with a full stop, unless it ends in one or in a question mark."""
    text = text.strip()
    return text if text.endswith((".", "?")) else f"{text}."


def _pick(choices: tuple[str, ...], label: int | str, names: tuple[str, ...] = ()) -> str:
    """Return the choice with that number or name; a hidden label (-1) is an error and not the last choice."""
    if label in names:
        label = names.index(label)
    if isinstance(label, str) and label.isdecimal():  # a cell of a table
        label = int(label)
    if isinstance(label, str) or label < 0:
        raise IndexError(f"label {label}")
    return choices[label]


def counterfact(record: Record, name: str) -> list[Example]:
    """Return the rewrite's prompt with its true object."""
    rewrite = record["requested_rewrite"]
    return [
        Example(
            name,
            rewrite["prompt"].format(rewrite["subject"]),
            f" {rewrite['target_true']['str']}",
            paraphrases=tuple(text.strip() for text in record["paraphrase_prompts"]),
            meta={"subject": rewrite["subject"], "target_new": f" {rewrite['target_new']['str']}"},
        )
    ]


def hotpotqa(record: Record, name: str) -> list[Example]:
    """Return the question without its documents."""
    question = record["question"].strip()
    question += "" if question.endswith(("?", ".")) else "?"
    return [Example(name, f"{question} The answer is", f" {record['answer'].strip()}")]


TRUE_FALSE = (" true", " false")


def fever(record: Record, name: str) -> list[Example]:
    """Return the claim with true or false; nothing for claims without enough information."""
    answer = {"SUPPORTS": " true", "REFUTES": " false"}.get(record["label"])
    prompt = (
        f"Consider the following claim: {_stopped(record['claim'])} Is this claim true or false. The claim is"
    )
    return [] if answer is None else [Example(name, prompt, answer, TRUE_FALSE)]


# By the number of the label, from the data set's card.
PROFESSIONS = (
    "accountant", "architect", "attorney", "chiropractor", "comedian", "composer", "dentist",
    "dietitian", "dj", "filmmaker", "interior_designer", "journalist", "model", "nurse", "painter",
    "paralegal", "pastor", "personal_trainer", "photographer", "physician", "poet", "professor",
    "psychologist", "rapper", "software_engineer", "surgeon", "teacher", "yoga_teacher",
)  # fmt: skip
SHORT_PROFESSIONS = (
    "journalist",
    "poet",
    "composer",
    "model",
    "teacher",
    "architect",
    "painter",
    "professor",
)
GENDERS = (" male", " female")


def bios_gender(record: Record, name: str) -> list[Example]:
    """Return the biography with the person's gender."""
    question = "Is the person in this text male or female? The person is"
    prompt = f"Consider the following text: {_stopped(record['hard_text'])} {question}"
    return [Example(name, prompt, _pick(GENDERS, record["gender"]), GENDERS)]


def bios_profession(record: Record, name: str) -> list[Example]:
    """Return the biography with its profession; only the eight that are few tokens long, as in the paper."""
    profession = _pick(PROFESSIONS, record["profession"])
    if profession not in SHORT_PROFESSIONS:
        return []
    question = "What is the profession of the person in this text? The profession of this person is"
    prompt = f"Consider the following text: {_stopped(record['hard_text'])} {question}"
    return [Example(name, prompt, f" {profession}", tuple(f" {word}" for word in SHORT_PROFESSIONS))]


def truthfulqa(record: Record, name: str) -> list[Example]:
    """Return every answer of a question as a statement; they are one group."""
    answers = record["mc2_targets"]
    made = []
    for number, (text, label) in enumerate(zip(answers["choices"], answers["labels"], strict=True)):
        statement = text if text.endswith(".") else f"{text}."
        prompt = f"{record['question']} {statement}Is this statement true or false? This statement is"
        made.append(Example(f"{name}-{number}", prompt, TRUE_FALSE[1 - label], TRUE_FALSE, group=name))
    return made


def epistemic_reasoning(record: Record, name: str) -> list[Example]:
    """Return the pair of beliefs with entailment or not."""
    choices = (" entailment", " non-entailment")
    return [Example(name, record["inputs"].rstrip(), f" {record['targets'][0]}", choices)]


def wikidata_qa(record: Record, name: str) -> list[Example]:
    """Return the question; nothing where it has several answers, as in the paper."""
    targets = record["targets"]
    return [Example(name, record["inputs"].rstrip(), f" {targets[0]}")] if len(targets) == 1 else []


ENTAILMENT = ("entailment", "contradiction", "neutral")  # SuperGLUE's own files say labels in words
BINARY = ("entailment", "not_entailment")


def cb(record: Record, name: str) -> list[Example]:
    """Return premise and hypothesis with one of three relations."""
    choices = (" entails", " contradicts", " is neutral")
    prompt = (
        f"Premise: {record['premise']}\n\nHypothesis: {record['hypothesis']}\n\n"
        "Does the premise entail, contradict or is neutral to the hypothesis?\n"
        "Answer (entails, contradicts, is neutral): The premise"
    )
    return [Example(name, prompt, _pick(choices, record["label"], ENTAILMENT), choices)]


def rte(record: Record, name: str) -> list[Example]:
    """Return premise and hypothesis with one of two relations."""
    choices = (" entails", " contradicts")
    prompt = (
        f"Premise: {record['premise']}\n\nHypothesis: {record['hypothesis']}\n\n"
        "Does the premise entail or contradict to the hypothesis?\n"
        "Answer (entails or contradicts): The premise"
    )
    return [Example(name, prompt, _pick(choices, record["label"], BINARY), choices)]


def copa(record: Record, name: str) -> list[Example]:
    """Return the premise with two alternatives, of which one is the cause or the effect."""
    questions = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
    question = questions[record["question"]]
    prompt = (
        f"Premise: {record['premise']}\n{question}\n\nAlternative 1: {record['choice1']}\n"
        f"Alternative 2: {record['choice2']}\n\nWhat is the correct alternative?\n"
        "The correct alternative is alternative"
    )
    return [Example(name, prompt, _pick((" 1", " 2"), record["label"]), (" 1", " 2"))]


_GLUE, _BIOS = "aps/super_glue", "LabHC/bias_in_bios"
_TRAIN, _HELD = ("train",), "validation"

PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "counterfact", "generation", "21,919 facts with their paraphrases (LASER).",
            "azhx/counterfact", None, ("train", "test"), counterfact,
        ),
        Preset(
            "hotpotqa", "generation", "Questions over two facts, closed book (LASER).",
            "hotpotqa/hotpot_qa", "distractor", ("validation",), hotpotqa, max_new_tokens=15,
        ),
        Preset(
            "fever", "choice", "Claims, true or false (LASER).",
            "copenlu/fever_gold_evidence", None, ("validation", "test"), fever, unique=True,
        ),
        Preset(
            "bios-gender", "choice", "Gender from a biography (LASER).", _BIOS, None, ("dev",), bios_gender,
        ),
        Preset(
            "bios-profession", "choice", "One of eight professions from a biography (LASER).",
            _BIOS, None, ("dev",), bios_profession,
        ),
        Preset(
            "truthfulqa", "choice", "Answers to trick questions, each true or false (LASER).",
            "truthfulqa/truthful_qa", "multiple_choice", ("validation",), truthfulqa,
        ),
        Preset(
            "epistemic-reasoning", "choice", "Entailment between beliefs; never train on it (LASER).",
            "hails/bigbench", "epistemic_reasoning_zero_shot", ("default",), epistemic_reasoning,
        ),
        Preset(
            "wikidata-qa", "generation", "Facts from Wikidata; never train on it (LASER).",
            "hails/bigbench", "qa_wikidata_zero_shot", ("default",), wikidata_qa, max_new_tokens=10,
        ),
        Preset("cb", "choice", "CommitmentBank: entailment (eigenpruning).", _GLUE, "cb", _TRAIN, cb, _HELD),
        Preset("copa", "choice", "Cause or effect (eigenpruning).", _GLUE, "copa", _TRAIN, copa, _HELD),
        Preset("rte", "choice", "Textual entailment (eigenpruning).", _GLUE, "rte", _TRAIN, rte, _HELD),
    )
}  # fmt: skip
