"""Checkpoints and task files on disk, tiny, for tests that begin where a user begins."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner, Result

from secateur.cli.app import app


def secateur(*words: object) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(app, [str(word) for word in words])


def done_in(place: Path, *commands: Sequence[str]) -> Path:
    """Runs these commands in a folder, one after another; each has to succeed."""
    before = os.getcwd()
    os.chdir(place)
    for words in commands:
        done = secateur(*words)
        assert done.exit_code == 0, done.stderr
    os.chdir(before)
    return place


def refused(result: Result, *pieces: object) -> None:
    """Exit code 2, one message of one line on stderr with all the pieces, and nothing on stdout."""
    assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    message = result.stderr.strip()
    assert message.startswith("secateur: ")
    assert "\n" not in message
    assert "Traceback" not in message
    for piece in pieces:
        assert str(piece) in message, f"{piece!r} is not in {message!r}"


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **how: Any) -> Path:
    model.save_pretrained(folder, **how)
    tokenizer.save_pretrained(folder)
    return folder


def questions(count: int = 260, seed: int = 0) -> list[dict[str, Any]]:
    """Choice questions in the words of the zoo's tokenizer, whose right answers follow no rule."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        choices = [f" w{token}" for token in draw.sample(range(3, 90), 2)]
        prompt = " ".join(f"w{draw.randrange(3, 90)}" for _ in range(4))
        rows.append(
            {"id": f"q{number}", "prompt": prompt, "answer": draw.choice(choices), "choices": choices}
        )
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
