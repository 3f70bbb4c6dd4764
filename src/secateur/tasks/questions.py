"""Questions with their answers from rows: their ids, how an answer is joined to its prompt, how it is looked for.

What a row means is said in `shapes.py`. Knows no container of rows, no tokenizer and no splits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from secateur.errors import TaskError
from secateur.tasks.encode import MASKS
from secateur.tasks.extract import Extraction, extraction_of
from secateur.tasks.formats import DOC, Row
from secateur.tasks.shapes import RIGHT, RIGHT_TABLE, ExampleLine, example_line, folded
from secateur.tasks.splits import ExampleSource

LOG = logging.getLogger("secateur")
GENERATED = (
    256  # tokens that are generated to find an answer in, where nothing else is said: the harness's default
)
MOST_SHOWN = 6  # spellings in a notice
MOST_LABELS = 20  # different answers that may be the names of classes,
LEAST_ROWS = 5  # where each has so many rows on average


@dataclass(frozen=True)
class QuestionRules:
    """Rules for reading the questions of a file.

    Attributes:
        join: Text that is put between a prompt and an answer that nothing separates; `\\n` and `\\t` are what they are
            in code.
        extract: `number`, or a regular expression that finds the answer in what the model writes; empty: the model is
            asked for the answer as it stands.
        max_new_tokens: Tokens that it may write to that end; None: 256.
    """

    join: str = ""
    extract: str = ""
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and not self.extract:
            raise TaskError("--max-new-tokens is for --extract: without it the answer itself is scored.")
        self.extraction  # noqa: B018  raises for a broken pattern

    @property
    def between(self) -> str:
        """Return the text of `join`."""
        return self.join.replace("\\n", "\n").replace("\\t", "\t")

    @property
    def extraction(self) -> Extraction | None:
        """Return the rule that finds the answer; None where the answer itself is scored."""
        return extraction_of(self.extract) if self.extract else None


def read_questions(
    name: str, place: str, rows: Iterable[Row], rules: QuestionRules, labels: Sequence[str] = ()
) -> ExampleSource:
    """Return the examples of the rows: kind "choice" where every row has choices, "generation" where none has.

    Args:
        name: Name of the task.
        place: Text for messages: the file.
        labels: With them a row is a text with one of these labels.

    Raises: `TaskError`, with file and line, for a row that is none of the shapes.
    """
    if labels and (rules.extract or rules.join):
        raise TaskError("--join and --extract are for answers that are written, and the model gives labels.")
    lines = [(row.where, example_line(row, place, labels)) for row in rows]
    if not lines:
        shape = "labelled" if labels else "question"
        raise TaskError(
            f"{place}: no examples in it. Wanted are rows such as {RIGHT[shape]}, or in a table {RIGHT_TABLE[shape]}; "
            f"see {DOC}."
        )
    kind = check_rows(lines, f"{place}, ", "rows", "files")
    if rules.extract and kind == "choice":
        raise TaskError(
            f"{place}: its questions have choices, and --extract is for answers that are written."
        )
    names = _ids([line for _, line in lines])  # of the rows as they are: --join moves none to another split
    found = [line.joined(rules.between) for _, line in lines]
    if not labels:
        _log_notices(place, found, of_answers=not rules.extract)
    examples = tuple(line.example(one) for one, line in zip(names, found, strict=True))
    tokens = (rules.max_new_tokens or GENERATED) if rules.extract else 0
    return ExampleSource(name, kind, examples, None, tokens, extraction=rules.extraction)


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
        if row.id is not None and row.id in used:
            raise TaskError(
                f"{prefix}{where}: id {row.id!r} was already used in {used[row.id]}. Give each its own, "
                "or leave out all."
            )
        used[row.id or ""] = where
    for where, row in rows:
        if (row.choices is not None) != with_choices:
            has, others = ("no choices", "have them") if with_choices else ("choices", "have none")
            raise TaskError(
                f"{prefix}{where}: it has {has}, and the {rows_word} before {others}. Use two {whole_word}."
            )
    return "choice" if with_choices else "generation"


def _ids(lines: Sequence[ExampleLine]) -> list[str]:
    """Return the id of each row, made from its content alone where it has none."""
    seen: Counter[str] = Counter()
    used = {line.id for line in lines}
    names = []
    for line in lines:
        name = line.id
        if name is None:
            said = [line.prompt, line.answer, line.choices, *([line.pair] if line.pair else [])]
            content = json.dumps(said, ensure_ascii=False).encode()
            made = hashlib.sha256(content).hexdigest()[:12]
            while name is None or name in used:
                seen[made] += 1
                name = made if seen[made] == 1 else f"{made}-{seen[made]}"
        names.append(name)
    return names


def _log_notices(place: str, lines: Sequence[ExampleLine], *, of_answers: bool) -> None:
    """Log once which answers differ in spelling only, and in how many rows words would be joined without a space."""
    free = [line.answer for line in lines if line.choices is None]
    if of_answers and (spellings := answers_notice(free)):
        LOG.warning("%s: %s", place, spellings)
    glued = [
        (line.prompt if len(line.prompt) <= 40 else f"…{line.prompt[-20:]}") + line.answer[:20]
        for line in lines
        if is_glued(line.prompt, line.answer) and not any(mask in line.prompt for mask in MASKS)
    ]
    if glued:
        LOG.warning(
            "%s: in %d of %d rows nothing stands between prompt and answer, so that the model is asked for %r. If a "
            'space belongs there: --join " " (join=" " in Python).',
            place,
            len(glued),
            len(lines),
            glued[0],
        )


def answers_notice(answers: Sequence[str]) -> str:
    """Return a notice of answers that only case or spaces at the ends tell apart, with counts; an empty one for none.

    Args:
        answers: The right answer of each row, where it is written freely.
    """
    counts = Counter(answers)
    spellings: dict[str, list[str]] = {}
    for answer, _ in counts.most_common():
        spellings.setdefault(folded(answer), []).append(answer)
    if len(spellings) == len(counts):
        return ""
    several = [answer for group in spellings.values() if len(group) > 1 for answer in group]
    shown = ", ".join(f"{answer!r} {counts[answer]}" for answer in several[:MOST_SHOWN])
    shown += ", ..." if len(several) > MOST_SHOWN else ""
    return (
        f"{len(counts)} different answers, {len(spellings)} when case and spaces at the ends are ignored: {shown}. "
        f"Each counts as a different answer: write them one way.{classify_notice(answers)}"
    )


def classify_notice(answers: Sequence[str]) -> str:
    """Return how to make a classification of rows with few different answers, after a space; else an empty text.

    Args:
        answers: The right answer of each row, where it is written freely.
    """
    common = {
        folded(answer): answer.rstrip() for answer, _ in reversed(Counter(sorted(answers)).most_common())
    }
    names = [common[name] for name in sorted(common)]
    if not 1 < len(names) <= MOST_LABELS or len(answers) < LEAST_ROWS * len(names):
        return ""
    return (
        f" To choose among them instead of writing: add to every row a column choices with {'|'.join(names)}."
    )


def is_glued(prompt: str, answer: str) -> bool:
    """Return True where two words, or a sign that ends one and a word, would stand together without a space.

    Writing without spaces (Chinese, Japanese, Thai) is not.
    """
    end, begin = prompt[-1], answer[0]
    return (
        begin.isalnum() and _is_spaced(begin) and (end in ".,;:?!)%" or (end.isalnum() and _is_spaced(end)))
    )


def _is_spaced(letter: str) -> bool:
    """Return True for a letter of a script that puts spaces between words."""
    name = unicodedata.name(letter, "")
    return unicodedata.east_asian_width(letter) not in "WF" and not name.startswith(
        ("THAI", "LAO", "KHMER", "MYANMAR")
    )
