"""Plain text as a task: chunks of tokens whose loss is measured (perplexity). Knows no model."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from secateur.errors import TaskError
from secateur.tasks.encode import added_ids
from secateur.tasks.example import Example
from secateur.tasks.formats import ROW_FILES, TEXT, Row, other_format
from secateur.tasks.rows import read_rows, read_utf8
from secateur.tasks.shapes import explain, spelled
from secateur.tasks.splits import ExampleSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOG = logging.getLogger("secateur")
CHUNKS_PER_GROUP = 10  # neighbors in a book resemble each other, so they are split and resampled together


class TextLine(BaseModel):
    """One document of a file of rows; other keys are ignored."""

    model_config = ConfigDict(strict=True)

    text: str
    id: str | int | None = None


def read_text(path: Path, tokenizer: PreTrainedTokenizerBase, seqlen: int) -> ExampleSource:
    """Return chunks of at most `seqlen` tokens, BOS included where the tokenizer adds one by default.

    The chunks of one document of a file of rows are one group; of a .txt file, every ten consecutive ones. A rest of
    fewer than 2 tokens has nothing to score and is dropped. Ids come from the content, so a file may be renamed.

    Raises: `TaskError` for a file that cannot be read or holds no text, and a `seqlen` below 2.
    """
    if os.path.isdir(path) or path.suffix.lower() in ROW_FILES:
        return read_documents(path.stem, str(path), read_rows(path, TEXT), tokenizer, seqlen)
    if other := other_format(path, TEXT):
        raise TaskError(other)
    _check_seqlen(seqlen)
    text = read_utf8(path)
    examples = tuple(_chunks(f"text-{_digest(text)}", text, tokenizer, seqlen, CHUNKS_PER_GROUP))
    if not examples:
        raise TaskError(f"{path}: no text in it.")
    return ExampleSource(path.stem, "text", examples)


def read_documents(
    name: str, place: str, rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, seqlen: int
) -> ExampleSource:
    """Return the chunks of the documents in these rows, as `read_text`; `place` says in messages where they are.

    Empty documents are left out and equal ones counted once.
    """
    _check_seqlen(seqlen)
    examples = tuple(
        example
        for document, text in _documents(place, rows)
        for example in _chunks(document, text, tokenizer, seqlen, None)
    )
    if not examples:
        raise TaskError(f"{place}: no text in it.")
    return ExampleSource(name, "text", examples)


def _check_seqlen(seqlen: int) -> None:
    if seqlen < 2:
        raise TaskError(f"--seqlen {seqlen}: a chunk needs at least 2 tokens, since the first is not scored.")


def _documents(place: str, rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    """Yield name and text of each document, equal ones once and empty ones not at all; log how many.

    Of equal ones the first name counts, so that the order of lines does not.
    """
    documents: dict[str, tuple[str, str]] = {}
    lines: dict[str, tuple[str, str]] = {}
    empty, total = 0, 0
    for where, value, _ in rows:
        try:
            row = TextLine.model_validate(spelled(value))
        except ValidationError as error:
            raise TaskError(
                f'{place}, {where}: {explain(error)} Right would be {{"text": "Once upon"}}.'
            ) from error
        content, total = row.text.strip(), total + 1
        if not content:
            empty += 1
            continue
        name = str(row.id or f"text-{_digest(row.text)}")
        first, named = lines.setdefault(name, (where, content))
        if named != content:
            raise TaskError(f"{place}, {where}: id {name!r} was already used in {first}.")
        documents[content] = min(documents.get(content, (name, row.text)), (name, row.text))
    repeated = total - empty - len(documents)
    notes = [f"{empty} are empty and left out"] if empty else []
    notes += [f"{repeated} repeat another and are counted once with it"] if repeated else []
    if notes:
        LOG.warning("%s: of %d documents %s.", place, total, " and ".join(notes))
    yield from documents.values()


def _chunks(
    name: str, text: str, tokenizer: PreTrainedTokenizerBase, seqlen: int, per_group: int | None
) -> Iterator[Example]:
    meta = {"document": _digest(text)}
    before, _ = added_ids(tokenizer, text)
    ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    for number, tokens in enumerate(cut(ids, seqlen, before)):
        group = name if per_group is None else f"{name}/{number // per_group:05d}"
        yield Example(f"{name}#{number:06d}", "", "", group=group, meta=meta, tokens=tokens)


def cut(ids: Sequence[int], seqlen: int, leading: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield consecutive pieces of `ids`, each after `leading`, each of at most `seqlen` and at least 2 tokens."""
    step = seqlen - len(leading)
    for start in range(0, len(ids), step):
        piece = leading + tuple(ids[start : start + step])
        if len(piece) >= 2:
            yield piece


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
