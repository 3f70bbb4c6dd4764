"""Writes src/secateur/keywords.py, the types of the options in Python, from their descriptions.

Run it after a change of an option: `python dev/write_keywords.py`; tests/test_python_api.py says when it is due.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from secateur.core.config import Named, options_of
from secateur.methods.registry import OURS
from secateur.options import Options
from secateur.signatures import annotation_of
from secateur.training.options import TASK_OPTIONS

FILE = Path(__file__).parent.parent / "src/secateur/keywords.py"
HEAD = '''"""Types of the options of the Python API, for checkers and completion. Written by dev/write_keywords.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from secateur.given import OneTask, Tasks
'''


def keywords_text() -> str:
    """Return the content of the file."""
    common = {one.name: one for one in options_of(Options)}
    own = {one.name: one for method in OURS for one in options_of(method.Config) if one.name not in common}
    return "\n".join(
        [
            HEAD,
            "",
            "class CommonOptions(TypedDict, total=False):",
            '    """Options of every verb that reads a model on a task."""',
            "",
            *_fields(common.values()),
            "",
            "",
            "class TrainingOptions(TypedDict, total=False):",
            '    """Options of `finetune` and `heal` that say what model and task are."""',
            "",
            *_fields(one for one in common.values() if one.name in TASK_OPTIONS),
            "",
            "",
            "class PruneOptions(CommonOptions, total=False):",
            '    """Options of `prune`: those of every method, and of each."""',
            "",
            *_fields(own.values()),
            "",
            "",
            "class ProbeOptions(TypedDict, total=False):",
            '    """Options of `probe`, which takes several numbers of shots itself."""',
            "",
            *_fields(one for one in (common | own).values() if one.name != "shots"),
            "",
        ]
    )


def _fields(options: Iterable[Named]) -> list[str]:
    return [f"    {one.name}: {annotation_of(one)}" for one in options]


if __name__ == "__main__":
    FILE.write_text(keywords_text(), encoding="utf-8")
