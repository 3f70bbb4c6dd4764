"""Which files of a checkpoint are finished, so that a killed command goes on with the others. Files and JSON only."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

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
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else ():
            try:
                found.append(json.loads(line))
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
