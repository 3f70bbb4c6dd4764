"""Fixtures of every test on SmolLM2."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.smollm2 import CAPITALS, GGUF, MODEL


@pytest.fixture(scope="module", autouse=True)
def fetched() -> None:
    """Skip, aloud, where the model was not fetched."""
    if not MODEL.is_dir() or not GGUF.is_file():
        pytest.skip(f"there is no {MODEL}, or no {GGUF}: `make llm` fetches both", allow_module_level=True)


@pytest.fixture(scope="session")
def side(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few questions to watch, in place of passages of text, which take a minute each time."""
    rows = CAPITALS.read_text(encoding="utf-8").splitlines(keepends=True)
    file = tmp_path_factory.mktemp("side") / "side.jsonl"
    file.write_text("".join(rows[:12]), encoding="utf-8")
    return file
