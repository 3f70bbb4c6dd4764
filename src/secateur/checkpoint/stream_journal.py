"""Which files of a checkpoint are finished, so that a killed command goes on with the others. Files and JSON only."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from secateur.core.reading import parse_json

JOURNAL = "journal.jsonl"


class Journal:
    """The finished files of one very job: `done` has a record for each, `{"file", "sha256", ...}`.

    The first line of the journal says which job it is. Another job's files are removed; a last line that was being
    written when the process was killed does not count.
    """

    def __init__(self, folder: Path, job: str) -> None:
        self._path = folder / JOURNAL
        lines = self._lines()
        if not lines or lines[0] != {"job": job}:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            lines = [{"job": job}]
        self._rewrite(lines)
        self.done: dict[str, dict[str, Any]] = {line["file"]: line for line in lines[1:]}

    def _lines(self) -> list[dict[str, Any]]:
        found = []
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""
        for line in text.splitlines():
            try:
                found.append(_checked(parse_json(line)))
            except ValueError:
                break
        return found

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        """Without a last line that is half there, which the next one would be glued to."""
        new = self._path.with_suffix(".new")
        new.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        os.replace(new, self._path)

    def add(self, record: dict[str, Any]) -> None:
        """On the disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[record["file"]] = record


def _checked(line: Any) -> dict[str, Any]:
    """A line as it was written. Raises `ValueError` for another, behind which nothing counts."""
    first = isinstance(line, dict) and isinstance(line.get("job"), str)
    kinds = {"file": str, "sha256": str, "matrices": list}
    if not first and not (
        isinstance(line, dict) and all(isinstance(line.get(n), k) for n, k in kinds.items())
    ):
        raise ValueError("no line of this journal")
    return line
