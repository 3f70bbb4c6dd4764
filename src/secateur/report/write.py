"""Report files: JSON in, one self-contained HTML page out. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.core.finite import finite
from secateur.core.reading import read_json
from secateur.core.writing import write_text
from secateur.errors import SecateurError
from secateur.report.healing import healing_page
from secateur.report.page import assemble

AGAIN = "Write it again with `secateur prune`."

Json = Mapping[str, Any]


def check_folder(folder: Path) -> None:
    """Raise `SecateurError` where there is no such folder."""
    if not os.path.isdir(folder):
        raise SecateurError(
            f"{folder} is no folder. A report needs one that `secateur prune` or `heal` wrote."
        )


def read_record(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises: `SecateurError` where there is none."""
    if not os.path.exists(path):
        raise SecateurError(
            f"{path} is missing. A report needs the folder that `secateur prune` or `heal` wrote."
        )
    content = read_json(path, SecateurError, AGAIN)
    if not isinstance(content, dict):
        raise SecateurError(f"{path} holds no record but {content!r:.40}. {AGAIN}")
    return content


def render_heal(record: Json, also: Sequence[Json] = ()) -> str:
    """One self-contained HTML page from `heal.json`: what healing brought back, at what cost; `also` are the records of
    other healed cuts of the same original, for the curves over depth.

    Raises: `SecateurError` where they are of another original or task.
    """
    origins = {(one["teacher"]["fingerprint"], one["task"]["hash"]) for one in (record, *also)}
    if len(origins) > 1:
        raise SecateurError(
            "these healed cuts are not of one original on one task, so their curves cannot be drawn together. Heal "
            "them with the same --task, --limit, --seqlen and --split-seed."
        )
    record, figures = finite(record), {}
    sections = healing_page(record, [finite(other) for other in also], figures)
    return assemble(f"healed: {record['cut']['name']}", sections, figures)


def write_heal_report(record: Json, path: str | Path, also: Sequence[Json] = ()) -> Path:
    """Write the page of a healed cut.

    Raises: `SecateurError` as `render_heal`, `OutputError` for a page that cannot be written.
    """
    write_text(Path(path), render_heal(record, also), "folder")
    return Path(path)
