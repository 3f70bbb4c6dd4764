"""Return the result of `prune` and `apply`, and read it from a finished folder."""

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
    """The result of `prune` and `apply`.

    Attributes:
        out: The folder of the checkpoint.
        verdict: The content of verdict.json; None where nothing was verified (`apply`).
        already: The checkpoint was there before, and nothing was done.
    """

    out: Path
    verdict: dict[str, Any] | None
    plan: Plan
    already: bool = False


def read_result(out: Path) -> Result:
    """Return the result that a finished folder holds. Raises: `OutputError`, `PlanError` where it is damaged."""
    file = out / "verdict.json"
    return Result(out, read_verdict(file) if file.exists() else None, read_plan(out), already=True)


def read_verdict(file: Path) -> dict[str, Any]:
    """Return the content of verdict.json. Raises: `OutputError` for a file that is no verdict."""
    verdict = read_json(file, OutputError, AGAIN)
    if not isinstance(verdict, dict) or not isinstance(verdict.get("verdict"), str):
        raise OutputError(f"{file} is damaged: it holds no verdict. {AGAIN}")
    return verdict
