"""Shapes of rows: one place that says what a row means, as people have them, and refuses what means nothing.

A row is told by its columns: a question with its answer; one with choices, whose answer is a text, a letter or a place;
a conversation, whose last turn of the assistant is the answer; or plain text, which `text.py` reads. For a sequence
classifier a row is a text with its label. All but plain text become an `ExampleLine`; `task.schema.json` beside this
file is its JSON schema. Knows no container of rows.
"""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from string import ascii_uppercase
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema

from secateur.errors import TaskError
from secateur.tasks.example import Example
from secateur.tasks.formats import DOC, Row

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
PROMPTS = ("prompt", "question")
ANSWERS = ("answer", "completion", "answerKey")
CHOICES = ("choices", "options")
SYNONYMS = ("correct answer", "correct", "label")  # of the answer, where no column has one of its names
OURS = ("id", "prompt", "question", "answer", "choices", "options", "paraphrases", "group", "meta")
NAMES = dict.fromkeys((*OURS, *ANSWERS, "messages", "text"))  # columns that are read, in their order
TEXTS = ("text", "prompt", "sentence", "sentence1", "premise")  # of a row for a classifier,
PAIRS = ("text_pair", "sentence2", "hypothesis")  # and of a second text in it
LABELS = ("label", "answer")
MOST_LABELS = 12  # in a message
SPACES = re.compile(r"[\s_-]+")
CHOICE_COLUMN = re.compile(r"(?:choice|option)[ _-]?(?:\d+|[a-z])|[a-z]", re.IGNORECASE)
PLACE = re.compile(r"-?\d{1,9}")
CHOICE_PREFIX = re.compile(r"(?:choice|option)[ _-]?", re.IGNORECASE)
ROLES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
LEAST_ALIKE = 0.85  # of a column's name and one of ours, from which on it is a slip of the pen
RIGHT: Mapping[str, str] = {  # a right row of each shape, as it is shown where one is wrong
    "question": '{"prompt": "The capital of Italy is", "answer": " Rome"}',
    "choices": '{"question": "The capital of Italy is", "choices": [" Paris", " Rome"], "answer": 1}',
    "messages": '{"messages": [{"role": "user", "content": "What is the capital of Italy?"}, '
    '{"role": "assistant", "content": "Rome"}]}',
    "labelled": '{"text": "A fine film.", "label": "positive"}',
}
RIGHT_TABLE: Mapping[str, str] = {
    "question": "the columns prompt,answer with the row The capital of Italy is,Rome",
    "choices": "the columns question,A,B,answer with the row The capital of Italy is,Paris,Rome,B",
    "messages": "the columns prompt,answer with the row The capital of Italy is,Rome",
    "labelled": "the columns text,label with the row A fine film.,positive",
}


class ExampleLine(BaseModel):
    """One example of a task file."""

    model_config = ConfigDict(extra="forbid", strict=True, title="secateur task example")

    id: Text | None = Field(
        None, description="Unique in the file; splits depend on it. Left out: made from the content."
    )
    prompt: Text = Field(description="What the model reads; no white space at its end.")
    answer: Text = Field(
        description="What should follow, with the space that joins it; one of the choices, if there are any."
    )
    choices: list[Text] | None = Field(
        None, min_length=2, description="All possible answers, or null where the answer is free."
    )
    paraphrases: list[Text] = Field(default=[], description="The same question in other words.")
    meta: dict[str, object] = Field(
        default={}, description="Anything worth keeping; never read by the model."
    )
    group: Text | None = Field(None, description="Examples of one group stay in one split; default: the id.")
    turns: SkipJsonSchema[list[tuple[str, str]]] = []  # role and content before the answer, of a conversation
    unread: SkipJsonSchema[list[str]] = []  # columns that were kept in meta
    labelled: SkipJsonSchema[bool] = False  # a text with its label
    pair: SkipJsonSchema[str] = ""

    @model_validator(mode="after")
    def _answer_is_a_choice(self) -> ExampleLine:
        if self.choices is not None:
            if len(set(self.choices)) < len(self.choices):
                raise ValueError(f"a choice is given twice: {self.choices}")
            if self.answer not in self.choices:
                raise ValueError(
                    f"'answer' {self.answer!r} is not one of the choices {self.choices}{_hint(self)}"
                )
        return self

    def example(self, name: str) -> Example:
        """Return the example that the line holds, with `name` as its id."""
        choices = None if self.choices is None else tuple(self.choices)
        return Example(
            name,
            self.prompt,
            self.answer,
            choices,
            tuple(self.paraphrases),
            self.group or "",
            self.meta,
            turns=tuple(self.turns),
            labelled=self.labelled,
            pair=self.pair,
        )

    def joined(self, by: str) -> ExampleLine:
        """Return the same with `by` before every answer, where nothing stands between it and the prompt."""
        if not by or self.turns or self.prompt[-1].isspace():
            return self

        def mended(text: str) -> str:
            return text if text[0].isspace() else by + text

        choices = None if self.choices is None else [mended(choice) for choice in self.choices]
        return self.model_copy(update={"answer": mended(self.answer), "choices": choices})


def _hint(row: ExampleLine) -> str:
    letters = ascii_uppercase[: len(row.choices or [])]
    alike = [choice for choice in row.choices or [] if folded(choice) == folded(row.answer)]
    if alike:
        return f": it may be {' or '.join(map(repr, alike))}, which case or white space alone tell apart"
    return f"; it may be the text of one, its letter ({letters[0]} to {letters[-1]}) or its place, counted from 0"


def example_line(row: Row, place: str = "", labels: Sequence[str] = ()) -> ExampleLine:
    """Return what a row means; with `labels`, those of a classifier, as a text that has one of them.

    Raises: `TaskError` with the row, what was found, what is wanted and a right one.
    """
    where, value, shape = row.where, spelled(row.value), "question"
    right = RIGHT_TABLE if row.in_table else RIGHT
    try:
        if not isinstance(value, Mapping):
            raise _WrongColumns(f"the row is {_named(value)}, and an object is wanted")
        if labels:
            shape = "labelled"
            return ExampleLine.model_validate(_labelled(value, row.in_table, labels))
        shape = "messages" if "messages" in value else _shape(value)
        return ExampleLine.model_validate(_fields(value, shape, row.in_table))
    except ValidationError as error:
        problem = explain(error)
    except _WrongColumns as error:
        where = "the header" if row.in_table else where
        problem = f"{error}. Right would be {right[shape]}."
    except _Unfit as error:
        problem = f"{error}." + (f" Right would be {right[shape]}." if shape == "messages" else "")
    raise TaskError(f"{f'{place}, ' if place else ''}{where}: {problem[:-1]}; see {DOC}.")


class _Unfit(Exception):
    """Raised for a row that means nothing, with what is wrong, without a full stop."""


class _WrongColumns(_Unfit):
    """Raised for a row with other columns than those of any shape; in a table its header is wrong."""


# -------------------------------------------------------------------------------------------------------------- shapes


def spelled(value: object) -> object:
    """Return a row with its columns spelled as ours: case, spaces, `_` and `-` in their names do not count."""
    if not isinstance(value, Mapping):
        return value
    names = _spelling(tuple(value))
    return {names[name]: cell for name, cell in value.items()}


@lru_cache
def _spelling(columns: tuple[object, ...]) -> Mapping[object, object]:
    """Return column → the name of ours that it has; another, or a second one of that name, keeps its own."""
    found: dict[object, object] = {name: name for name in columns}
    has_answer = {_squeezed(name) for name in ANSWERS} & {_squeezed(name) for name in columns}
    for ours in (*NAMES, *(() if has_answer else SYNONYMS)):
        alike = [name for name in columns if _squeezed(name) == _squeezed(ours)]
        if len(alike) == 1:
            found[alike[0]] = ours
    return found


def _squeezed(name: object) -> str:
    return SPACES.sub("", name).casefold() if isinstance(name, str) else ""


def is_text(value: object) -> bool:
    """Return True for a row that holds plain text and no question."""
    value = spelled(value)
    return isinstance(value, Mapping) and "text" in value and not {*PROMPTS, "messages"} & value.keys()


def answer_columns(value: object) -> list[str]:
    """Return the columns of a row that could be an answer."""
    value = spelled(value)
    return [name for name in (*ANSWERS, *SYNONYMS) if isinstance(value, Mapping) and name in value]


def shape_words(value: object) -> str:
    """Return in words what a row like this one is."""
    value = spelled(value)
    if is_text(value):
        return "plain text"
    if not isinstance(value, Mapping):
        return "no rows"
    words = {"question": "questions with their answers", "choices": "questions with choices"}
    return "conversations" if "messages" in value else words[_shape(value)]


def _shape(row: Mapping[str, object]) -> str:
    return "choices" if set(CHOICES) & row.keys() or _choice_columns(row) else "question"


def _fields(row: Mapping[str, object], shape: str, in_table: bool) -> dict[str, object]:
    """Return the row by the names of `ExampleLine`; other columns are kept in its meta."""
    given = {key: value for key, value in row.items() if not _is_absent(value, in_table)}
    if shape == "messages":
        taken, found = {"messages"}, _conversation(row["messages"])
    else:
        taken, found = _question(row, given, in_table)
    ours = ("id", "paraphrases", "group", *(() if in_table else ("meta",)))  # a cell is no object
    known = {key: given[key] for key in ours if key in given}
    if in_table and isinstance(cell := known.get("paraphrases"), str):
        known["paraphrases"] = _listed(cell)
    for name in ("id", "group"):
        if isinstance(known.get(name), int) and not isinstance(known[name], bool):
            known[name] = str(known[name])
    others = {key: value for key, value in row.items() if key not in {*taken, *ours}}
    for name in others:
        if alike := _nearly(str(name)):
            raise _WrongColumns(
                f"unknown key {name!r}. Did you mean {alike[0]}? If not, give it another name"
            )
    if isinstance(meta := known.get("meta", {}), Mapping):
        known["meta"] = {**others, **meta}
    return {**found, **known, "unread": list(others)}


@cache  # every row has the same columns
def _nearly(name: str) -> list[str]:
    return difflib.get_close_matches(name, OURS, n=1, cutoff=LEAST_ALIKE)


def _is_absent(value: object, in_table: bool) -> bool:
    """Return True for null, for a number that is none, and for an empty cell: what tables write where nothing is."""
    return value is None or (isinstance(value, float) and value != value) or (in_table and value == "")


def _question(
    row: Mapping[str, object], given: Mapping[str, object], in_table: bool
) -> tuple[set[str], dict[str, object]]:
    """Return the columns that were used, and prompt, answer and choices."""
    prompt, answer = _one_of(row, PROMPTS, "question"), _one_of(row, (*ANSWERS, *SYNONYMS), "answer")
    listed = _one_of(row, CHOICES, "choices")
    if not (prompt and answer):
        raise _WrongColumns(_missing(row, "" if prompt else "question", "" if answer else "answer", in_table))
    columns = [] if listed else _choice_columns(row)
    named = [name for name in columns if name in given]
    for name in (prompt, answer):
        if name not in given:
            raise _Unfit(
                f"{name!r} is empty" if in_table else f"{name!r} is {_named(row[name])}, and text is wanted"
            )
    found: dict[str, object] = {"prompt": given[prompt], "answer": given[answer]}
    labels: Sequence[object] = ascii_uppercase
    if columns:
        found["choices"], labels = (
            [given[name] for name in named],
            [CHOICE_PREFIX.sub("", name) for name in named],
        )
    elif listed in given:
        found["choices"], labels = _choices(given[listed])
    if answer in SYNONYMS and "choices" not in found and _is_number_or_truth(given[answer]):
        raise _Unfit(
            f"{answer!r} is {str(given[answer])!r} and there are no choices: add them, or rename the column to answer "
            "where the model is to write just that"
        )
    found["answer"] = _answer(given[answer], found.get("choices"), [str(label).upper() for label in labels])
    return {prompt, answer, listed, *columns}, found


def _one_of(row: Mapping[str, object], names: Sequence[str], what: str) -> str:
    """Return the column of these names that the row has; an empty text for none.

    Synonyms of the answer count where it has no other column.
    """
    found = [name for name in names if name in row]
    found = [name for name in found if name not in SYNONYMS] or found
    if len(found) > 1:
        raise _WrongColumns(f"{' and '.join(map(repr, found))} could each be the {what}; leave one out")
    return found[0] if found else ""


def _missing(row: Mapping[str, object], question: str, answer: str, in_table: bool) -> str:
    """Return the message about the columns that are missing, each named or empty, with columns to rename."""
    wanted = [
        name for name in ("'prompt' (or 'question')" if question else "", answer and "'answer'") if name
    ]
    are, whole = "are" if len(wanted) > 1 else "is", "header" if in_table else "row"
    said = f"{' and '.join(wanted)} {are} missing; the {whole} has {', '.join(map(str, row)) or 'nothing'}"
    renames = []
    for ours, words in ((question, PROMPTS), (answer, (*ANSWERS, *SYNONYMS))):
        unread = [str(name) for name in row if name not in NAMES and not CHOICE_COLUMN.fullmatch(str(name))]
        if ours and (alike := [name for name in unread if _sounds_like(name, words)]):
            renames.append(f"{alike[0]} → {ours}")
    return said + (f". Rename: {', '.join(renames)}" if renames else "")


def _sounds_like(name: str, words: Sequence[str]) -> bool:
    """Return True for a column whose name holds one of the words, or nearly is one."""
    parts = SPACES.sub(" ", name).casefold().split()
    return any(difflib.get_close_matches(part, words, n=1, cutoff=0.8) for part in parts)


def _is_number_or_truth(value: object) -> bool:
    """Return True for what may be the number of a class, or say that something else is right."""
    return (
        not isinstance(value, str)
        or value.strip().casefold() in ("true", "false", "yes", "no")
        or value.strip().isdecimal()
    )


def _choice_columns(row: Mapping[str, object]) -> list[str]:
    """Return the columns that hold a choice each, such as A, B, C, or option_1, option_2; at least two."""
    found = [name for name in row if isinstance(name, str) and CHOICE_COLUMN.fullmatch(name)]
    letters = [name for name in found if len(name) == 1]
    if letters and [name.upper() for name in letters] != list(ascii_uppercase[: len(letters)]):
        found = [name for name in found if len(name) > 1]
    return found if len(found) > 1 else []


def _choices(value: object) -> tuple[object, Sequence[object]]:
    """Return choices and what names each of them: letters, or the labels that stand beside them."""
    if isinstance(value, str):
        return _listed(value), ascii_uppercase
    if isinstance(value, Mapping):  # as ARC and CommonsenseQA have them
        texts, labels = value.get("text"), value.get("label")
        if isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels):
            return texts, labels
    return value, ascii_uppercase


def _listed(cell: str) -> list[object]:
    """Return the items of a list in one cell: a list as Python or JSON writes it, or items between bars."""
    if cell.lstrip().startswith("["):
        try:
            found = ast.literal_eval(cell.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise _Unfit(f"the list {cell[:60]!r} cannot be read") from error
        if isinstance(found, list) and len(found) > 1:
            return [str(item) if isinstance(item, int | float) else item for item in found]  # a cell is text
        raise _Unfit(
            f"the list {cell[:60]!r} has no commas between its items (an array of numpy is printed so); write "
            "[' Paris', ' Rome']"
        )
    if "|" in cell:
        return list(cell.split("|"))
    raise _Unfit(f"{cell[:60]!r} is no list; write Paris|Rome, or a column for each choice")


def _answer(value: object, choices: object, labels: Sequence[str]) -> object:
    """Return the text of the answer: of choices the one that equals it, else the only one that differs in nothing but
    case and spaces at its ends, else the one at its letter or place.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return value
    if not isinstance(choices, list) or not choices:
        return str(value)
    if not isinstance(value, str):
        return _pointed(value, choices, labels)
    if value in choices:
        return value
    alike = [choice for choice in choices if isinstance(choice, str) and folded(choice) == folded(value)]
    if len(alike) != 1:
        return _pointed(value, choices, labels)
    try:
        pointed = _pointed(value, choices, labels)
    except _Unfit:  # a letter or a place beyond the choices points at none
        return alike[0]
    if pointed not in (value, alike[0]):
        raise _Unfit(
            f"the answer {value!r} may be the choice {alike[0]!r}, or point at {pointed!r}; write it in full"
        )
    return alike[0]


def _pointed(value: int | str, choices: Sequence[object], labels: Sequence[str]) -> object:
    """Return the choice at a letter or place; the value itself where it is neither."""
    name = str(value).strip().strip("().:").removesuffix(".0").upper()
    labels = labels[: len(choices)]
    if name in labels:
        return choices[labels.index(name)]
    if PLACE.fullmatch(name):
        if any(label.isdecimal() for label in labels):
            raise _Unfit(f"the answer {value!r} is beyond the choices, which are {', '.join(labels)}")
        if not 0 <= int(name) < len(choices):
            raise _Unfit(
                f"the answer {value!r} is beyond the {len(choices)} choices, whose places are 0 to {len(choices) - 1}; "
                "where yours count from 1, take 1 off"
            )
        return choices[int(name)]
    if len(name) == 1 and name in ascii_uppercase and name in str(value):
        raise _Unfit(f"the answer {value!r} is beyond the choices, which are {labels[0]} to {labels[-1]}")
    return value


def folded(text: str) -> str:
    """Return the text without case and without spaces at its ends, which people write now this way and now that."""
    return text.strip().casefold()


def _labelled(row: Mapping[str, object], in_table: bool, labels: Sequence[str]) -> dict[str, object]:
    """Return a text, perhaps a second one, and its label by the names of `ExampleLine`; other columns go into meta."""
    names = {_squeezed(name): name for name in row}
    columns = {}
    for what, wanted in (("text", TEXTS), ("second text", PAIRS), ("label", LABELS)):
        found = [names[_squeezed(name)] for name in wanted if _squeezed(name) in names]
        if len(found) > 1:
            raise _WrongColumns(f"{' and '.join(map(repr, found))} could each be the {what}; leave one out")
        if not found and what != "second text":
            has = ", ".join(map(str, row)) or "nothing"
            raise _WrongColumns(
                f"no column is the {what} ({', '.join(wanted)}); the {'header' if in_table else 'row'} has {has}"
            )
        columns[what] = found[0] if found else ""
    texts = []
    for column in filter(None, (columns["text"], columns["second text"])):
        text = row[column]
        if not isinstance(text, str) or not text.strip():
            raise _Unfit(
                f"{column!r} is {'empty' if isinstance(text, str) else _named(text)}, and text is wanted"
            )
        texts.append(text)
    known = {name: row[name] for name in ("id", "group") if not _is_absent(row.get(name), in_table)}
    label = labels[_label(row[columns["label"]], labels)]
    return {
        "prompt": texts[0],
        "pair": "".join(texts[1:]),
        "answer": label,
        "choices": list(labels),
        "labelled": True,
        "meta": {name: cell for name, cell in row.items() if name not in (*columns.values(), "id", "group")},
        **{name: str(value) for name, value in known.items()},
    }


def _label(value: object, labels: Sequence[str]) -> int:
    """Return the number of the label that a row names, by its name or by its number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    shown = ", ".join(labels[:MOST_LABELS]) + (", ..." if len(labels) > MOST_LABELS else "")
    known = f"the model has {shown} (0 to {len(labels) - 1})"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _Unfit(f"the label is {_named(value)}; {known}")
    name = str(value).strip().removesuffix(".0")
    exact = [number for number, label in enumerate(labels) if label == str(value)]
    alike = exact or [number for number, label in enumerate(labels) if folded(label) == folded(name)]
    numbered = [int(name)] if PLACE.fullmatch(name) and 0 <= int(name) < len(labels) else []
    found = {*alike, *numbered}
    if not found:
        raise _Unfit(f"the label {value!r} is none of the model's; {known}")
    if len(found) > 1:
        raise _Unfit(
            f"the label {value!r} may be {' or '.join(repr(labels[n]) for n in sorted(found))}; {known}"
        )
    return found.pop()


def _conversation(value: object) -> dict[str, object]:
    """Return the turns up to the last one of the assistant as a prompt, and that one as its answer.

    In plain text a turn is `User: ...`, one a line, and the answer follows `Assistant:`.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise _Unfit("'messages' is text, and a list of turns is wanted") from error
    if not isinstance(value, list):
        raise _Unfit(f"'messages' is {_named(value)}, and a list of turns is wanted")
    turns = [_turn(turn, f"messages[{number}]") for number, turn in enumerate(value, start=1)]
    last = max((number for number, (role, _) in enumerate(turns) if role == "assistant"), default=0)
    if last == 0:
        raise _Unfit("'messages' lacks the answer, which is a turn of the assistant after one of the user")
    before = [f"{ROLES[role]}: {content}" for role, content in turns[:last]]
    return {
        "prompt": "\n".join([*before, "Assistant:"]),
        "answer": " " + turns[last][1].lstrip(" "),
        "turns": turns[:last],
    }


def _turn(turn: object, where: str) -> tuple[str, str]:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        raise _Unfit(f"'{where}' is no object with role and content")
    role, content = str(turn["role"]), turn.get("content")
    if role not in ROLES:
        raise _Unfit(f"'{where}' is of the role {role!r}, and {', '.join(ROLES)} are read")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise _Unfit(f"'{where}' calls a tool, and text is wanted")
    if isinstance(content, list):
        parts = [part if isinstance(part, Mapping) else {} for part in content]
        others = [part.get("type") for part in parts if not isinstance(part.get("text"), str)]
        if others:
            raise _Unfit(f"'{where}' holds {others[0] or 'no text'!r}, and models here read text alone")
        content = "".join(part["text"] for part in parts)
    if not isinstance(content, str) or not content.strip():
        what = "empty" if isinstance(content, str) else _named(content)
        raise _Unfit(f"the content of '{where}' is {what}, and text is wanted")
    return role, content


def schema_text() -> str:
    """Return the contents of `task.schema.json`."""
    return json.dumps(ExampleLine.model_json_schema(), indent=2) + "\n"


WANTED = {"string_type": "text", "list_type": "a list", "dict_type": "an object", "model_type": "an object"}


def explain(error: ValidationError, whole: str = "the row") -> str:
    """Return the first problem in plain words.

    Args:
        whole: Name of what was validated.
    """
    problem = error.errors(include_url=False)[0]
    where = "".join(f"[{part + 1}]" if isinstance(part, int) else str(part) for part in problem["loc"])
    match problem["type"]:
        case kind if kind in WANTED:
            what = repr(where) if where else whole
            return f"{what} is {_named(problem['input'])}, and {WANTED[kind]} is wanted."
        case "missing":
            return f"'{where}' is missing."
        case "too_short":
            return f"'{where}' has {len(problem['input'])} of the least 2."
        case "string_too_short" | "string_pattern_mismatch":
            return f"'{where}' is empty."
        case "value_error":
            return f"{problem['ctx']['error']}."
        case _:
            return f"'{where}': {problem['msg']}." if where else f"{problem['msg']}."


def _named(value: object) -> str:
    """Name the kind of a JSON value."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case int() | float():
            return f"the number {value}"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"
