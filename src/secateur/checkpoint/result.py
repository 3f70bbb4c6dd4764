"""What `prune` and `apply` give back, and what a finished folder says of itself."""

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
    """What `prune` and `apply` give back: where the checkpoint is, and what its files say.

    `already`: it was there before, and nothing was done. `verdict` is None where nothing was verified (`apply`).
    """

    out: Path
    verdict: dict[str, Any] | None
    plan: Plan
    already: bool = False


def read_result(out: Path) -> Result:
    """Of what was there before. Raises `OutputError`, `PlanError` where it is damaged."""
    file = out / "verdict.json"
    verdict = read_json(file, OutputError, AGAIN) if file.exists() else None
    if verdict is not None and not isinstance(verdict, dict):
        raise OutputError(f"{file} is damaged: it holds no record. {AGAIN}")
    return Result(out, verdict, read_plan(out), already=True)
