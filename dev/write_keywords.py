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
    shots, task = [common.pop("shots")], [common.pop(name) for name in TASK_OPTIONS if name != "shots"]
    return "\n".join(
        [
            HEAD,
            *_class("TaskOptions", "", "Options that say how model and task are opened.", task),
            *_class(
                "ReadingOptions", "TaskOptions", "Options of every verb that reads a model.", common.values()
            ),
            *_class("CommonOptions", "ReadingOptions", "Those, and solved examples.", shots),
            *_class(
                "TrainingOptions", "TaskOptions", "Options of model and task of `finetune`, `heal`.", shots
            ),
            *_class("MethodOptions", "", "Options of one method of `prune` or more.", own.values()),
            *_class("PruneOptions", "CommonOptions, MethodOptions", "Options of `prune`."),
            *_class(
                "ProbeOptions",
                "ReadingOptions, MethodOptions",
                "Options of `probe`, which takes several numbers of shots itself.",
            ),
        ]
    )


def _class(name: str, bases: str, doc: str, options: Iterable[Named] = ()) -> list[str]:
    """Return the lines of one TypedDict."""
    fields = [f"    {one.name}: {annotation_of(one)}" for one in options]
    head = f"class {name}({bases or 'TypedDict'}, total=False):"
    return ["", head, f'    """{doc}"""', *([""] if fields else []), *fields, ""]


if __name__ == "__main__":
    FILE.write_text(keywords_text(), encoding="utf-8")
