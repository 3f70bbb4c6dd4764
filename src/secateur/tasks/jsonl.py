"""Task files: one JSON object a line, checked here, at the border, so that nothing behind it need ask again.

The format is `ExampleLine`; `task.schema.json` beside this file is its JSON schema. Knows no tokenizer and no splits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from secateur.core.reading import read_bytes
from secateur.errors import TaskError, nearest
from secateur.tasks.example import Example
from secateur.tasks.formats import QUESTIONS, jq_command, refuse_other_formats
from secateur.tasks.splits import ExampleSource

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
Model = TypeVar("Model", bound=BaseModel)


class ExampleLine(BaseModel):
    """One example of a task file."""

    model_config = ConfigDict(extra="forbid", strict=True, title="secateur task example")

    id: Text = Field(description="Unique in the file; splits depend on it.")
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

    def example(self) -> Example:
        """Return the example that the line holds."""
        choices = None if self.choices is None else tuple(self.choices)
        return Example(
            self.id, self.prompt, self.answer, choices, tuple(self.paraphrases), self.group or "", self.meta
        )


def _hint(row: ExampleLine) -> str:
    answer, count = row.answer.strip(), len(row.choices or [])
    if answer in [choice.strip() for choice in row.choices or []]:
        return ": they differ in white space"
    if answer.upper() in tuple(ascii_uppercase[:count]) or answer in map(str, range(count + 1)):
        return ": an answer is the text of its choice, not its letter or number"
    return ""


def read_jsonl(path: Path) -> ExampleSource:
    """Return the examples of a task file: kind "choice" where every line has choices, "generation" where none has.

    Raises: `TaskError`, with file and line, for a line that is no `ExampleLine`.
    """
    refuse_other_formats(path, QUESTIONS)
    lines = [(f"line {number}", row) for number, row in parse_lines(path, ExampleLine)]
    if not lines:
        raise TaskError(f"{path}: no examples in it.")
    kind = check_rows(lines, f"{path}, ", "lines", "files")
    return ExampleSource(path.stem, kind, tuple(row.example() for _, row in lines))


def check_rows(rows: Sequence[tuple[str, ExampleLine]], prefix: str, rows_word: str, whole_word: str) -> str:
    """Return the kind of a task with these rows: "choice" where every row has choices, "generation" where none has.

    Args:
        rows: At least one; each with the words that say where it is, such as `line 3`.
        prefix: Text before these words in a message.
        rows_word: Several of them in a message, such as `lines`.
        whole_word: Several tasks in a message, such as `files`.

    Raises: `TaskError` for an id that is used twice, and for rows of both kinds.
    """
    used: dict[str, str] = {}
    with_choices = rows[0][1].choices is not None
    for where, row in rows:
        if row.id in used:
            raise TaskError(f"{prefix}{where}: id {row.id!r} was already used in {used[row.id]}.")
        used[row.id] = where
    for where, row in rows:
        if (row.choices is not None) != with_choices:
            has, others = ("no choices", "have them") if with_choices else ("choices", "have none")
            raise TaskError(
                f"{prefix}{where}: it has {has}, and the {rows_word} before {others}. Use two {whole_word}."
            )
    return "choice" if with_choices else "generation"


def parse_lines(path: Path, model: type[Model]) -> Iterator[tuple[int, Model]]:
    """Yield line numbers from 1 and validated objects; blank lines are skipped. Raises: `TaskError`."""
    lines = read_utf8(path).split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, model.model_validate_json(line)
            except ValidationError as error:
                problem = explain(error, model)
                if _goes_on(lines[number - 1 :]):
                    command = jq_command(".", path)
                    problem = f"a JSON object over several lines. For one object a line: {command}"
                raise TaskError(f"{path}, line {number}: {problem}") from error


def _goes_on(lines: Sequence[str]) -> bool:
    """Return True where these lines begin with one JSON value that is longer than the first of them."""
    try:
        _, end = json.JSONDecoder().raw_decode("\n".join(lines).lstrip())
    except ValueError:
        return False
    return end > len(lines[0].strip())


def read_utf8(path: Path) -> str:
    """Return the file's text without a byte order mark. Raises: `TaskError` when missing or not UTF-8."""
    data = read_bytes(path, TaskError)
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise TaskError(
            f"{path}, line {line}: not UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from error


def schema_text() -> str:
    """Return the contents of `task.schema.json`."""
    return json.dumps(ExampleLine.model_json_schema(), indent=2) + "\n"


WANTED = {"string_type": "text", "list_type": "a list", "dict_type": "an object", "model_type": "an object"}


def explain(error: ValidationError, model: type[BaseModel], whole: str = "the line") -> str:
    """Return the first problem in plain words.

    Args:
        whole: Name of what was validated.
    """
    problem = error.errors(include_url=False)[0]
    where = "".join(f"[{part + 1}]" if isinstance(part, int) else str(part) for part in problem["loc"])
    match problem["type"]:
        case kind if kind in WANTED:
            what, value = repr(where) if where else whole, problem["input"]
            number = where == "answer" and isinstance(value, int)
            more = "; of a choice write the text, not the number" if number else ""
            return f"{what} is {_named(value)}, and {WANTED[kind]} is wanted{more}."
        case "missing":
            return f"'{where}' is missing."
        case "extra_forbidden":
            return f"unknown key '{where}'.{nearest(where, model.model_fields)}"
        case "json_invalid":
            return f"not JSON ({problem['msg'].removeprefix('Invalid JSON: ')})."
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
