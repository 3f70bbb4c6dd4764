"""The result of `prune` and `apply`, and the reading of it from a finished folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.checkpoint.plans import read_plan
from secateur.core.plan import Plan
from secateur.core.reading import read_json
from secateur.errors import OutputError

AGAIN = "Give --overwrite to make it again."


@dataclass(frozen=True)
class Result:
    """The result of `prune` and `apply`: the folder of the checkpoint, and the content of its records.

    `already`: it was there before, and nothing was done. `verdict` is None where nothing was verified (`apply`).
    """

    out: Path
    verdict: dict[str, Any] | None
    plan: Plan
    already: bool = False


def read_result(out: Path) -> Result:
    """Of what was there before. Raises `OutputError`, `PlanError` where it is damaged."""
    file = out / "verdict.json"
    return Result(out, read_verdict(file) if file.exists() else None, read_plan(out), already=True)


def read_verdict(file: Path) -> dict[str, Any]:
    """Returns the content of verdict.json. Raises `OutputError` for a file that is no verdict."""
    found = read_json(file, OutputError, AGAIN)
    if not isinstance(found, dict) or not isinstance(found.get("verdict"), str):
        raise OutputError(f"{file} is damaged: it holds no verdict. {AGAIN}")
    return found
