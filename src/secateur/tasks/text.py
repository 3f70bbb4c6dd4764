"""Plain text as a task: chunks of tokens whose loss is measured (perplexity). Knows no model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from secateur.errors import TaskError
from secateur.tasks.encode import leading_ids
from secateur.tasks.example import Example
from secateur.tasks.jsonl import parse_lines, read_utf8
from secateur.tasks.splits import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNKS_PER_GROUP = 10  # neighbors in a book resemble each other, so they are split and resampled together


class TextRow(BaseModel):
    """One document of a .jsonl text file; other keys are ignored."""

    model_config = ConfigDict(strict=True)

    text: str
    id: str | None = None
    meta: dict[str, Any] = {}


def read_text(path: Path, tokenizer: PreTrainedTokenizerBase, seqlen: int) -> Source:
    """Chunks of at most `seqlen` tokens, BOS included where the tokenizer adds one by default.

    The chunks of a .jsonl document are one group; of a .txt file, every ten consecutive ones. A rest of fewer
    than 2 tokens has nothing to score and is dropped. Ids come from the content, so a file may be renamed.

    Raises: `TaskError` for a file that cannot be read or holds no text, and a `seqlen` below 2.
    """
    if seqlen < 2:
        raise TaskError(f"--seqlen {seqlen}: a chunk needs at least 2 tokens, since the first is not scored.")
    if path.suffix == ".jsonl":
        examples = [
            e for name, text in _documents(path) for e in _chunks(name, text, tokenizer, seqlen, None)
        ]
    else:
        text = read_utf8(path)
        examples = list(_chunks(f"text-{_digest(text)}", text, tokenizer, seqlen, CHUNKS_PER_GROUP))
    if not examples:
        raise TaskError(f"{path}: no text in it.")
    return Source(path.stem, "text", tuple(examples))


def _documents(path: Path) -> Iterator[tuple[str, str]]:
    seen: dict[str, int] = {}
    for number, row in parse_lines(path, TextRow):
        name = row.id or f"text-{_digest(row.text)}"
        if name in seen:
            said = f"id {name!r} was already used" if row.id else "the same text was already given"
            raise TaskError(f"{path}, line {number}: {said} in line {seen[name]}.")
        seen[name] = number
        yield name, row.text


def _chunks(
    name: str, text: str, tokenizer: PreTrainedTokenizerBase, seqlen: int, per_group: int | None
) -> Iterator[Example]:
    meta = {"document": _digest(text)}
    for number, tokens in enumerate(cut(_encode(text, tokenizer), seqlen, leading_ids(tokenizer))):
        group = name if per_group is None else f"{name}/{number // per_group:05d}"
        yield Example(f"{name}#{number:06d}", "", "", group=group, meta=meta, tokens=tokens)


def cut(ids: Sequence[int], seqlen: int, leading: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Consecutive pieces of `ids`, each after `leading`, each of at most `seqlen` and at least 2 tokens."""
    step = seqlen - len(leading)
    for start in range(0, len(ids), step):
        piece = leading + tuple(ids[start : start + step])
        if len(piece) >= 2:
            yield piece


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
