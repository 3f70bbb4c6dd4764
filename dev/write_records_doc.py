"""Writes docs/records.md and docs/schemas/ from the types of all records.

    python dev/write_records_doc.py           # write
    python dev/write_records_doc.py --check   # exit code 1 where what is there is stale

The text around the tables is `dev/records.md.j2`.
"""

from __future__ import annotations

import json
import re
import sys
import types
import typing
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from pydantic import JsonValue
from pydantic.fields import FieldInfo

from secateur.core.config import options_of
from secateur.core.records.analysis import AnalysisRecord
from secateur.core.records.comparison import ComparisonRecord, TransferRecord
from secateur.core.records.map import MapRecord
from secateur.core.records.plan import PlanRecord
from secateur.core.records.probe import ComponentsRecord, LinearityRecord, StructureRecord
from secateur.core.records.record import Record
from secateur.core.records.task_check import TaskCheckRecord
from secateur.core.records.verdict import GainsRecord, SearchRecord, VerdictRecord
from secateur.forecast.records import ForecastRecord
from secateur.methods.registry import method_options, methods
from secateur.options import Options
from secateur.recipe.keys import recipe_schema
from secateur.training.records.finetune import FinetuneRecord
from secateur.training.records.heal import HealRecord
from secateur.training.records.train import TrainRecord

ROOT = Path(__file__).parents[1]
FILES = {
    "plan": PlanRecord,
    "verdict": VerdictRecord,
    "analysis": AnalysisRecord,
    "components": ComponentsRecord,
    "linearity": LinearityRecord,
    "map": MapRecord,
    "transfer": TransferRecord,
    "bench": GainsRecord,
    "finetune": FinetuneRecord,
    "heal": HealRecord,
    "train": TrainRecord,
    "comparison": ComparisonRecord,
    "plan-cost": ForecastRecord,
    "structure": StructureRecord,
    "task-check": TaskCheckRecord,
}
WORDS = {str: "text", int: "integer", float: "number", bool: "boolean", type(None): "null"}
ONLY = re.compile(r"\s*\(only: ([^()]*(?:\([^()]*\)[^()]*)*)\)$")


def main() -> int:
    """Write or compare. Returns the exit code."""
    stale = []
    for path, text in documents().items():
        if "--check" in sys.argv:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{path.relative_to(ROOT)} is stale: python dev/write_records_doc.py")
    return bool(stale)


def documents() -> dict[Path, str]:
    """Return what is generated: each file's text."""
    shown: set[type[Record]] = set()
    tables = {name: "\n\n".join(sections(kind, shown)) for name, kind in FILES.items()}
    tables["command"] = command_table()
    loader = Environment(loader=FileSystemLoader(ROOT / "dev"), keep_trailing_newline=True)
    text = loader.get_template("records.md.j2").render(tables=tables)
    schemas = {
        ROOT / f"docs/schemas/{name}.schema.json": json.dumps(kind.model_json_schema(), indent=1) + "\n"
        for name, kind in FILES.items()
    }
    schemas[ROOT / "docs/schemas/recipe.schema.json"] = json.dumps(recipe_schema(), indent=1) + "\n"
    return {ROOT / "docs/records.md": text} | schemas


def command_table() -> str:
    """Return the table of the options that identify a run."""
    named = [("model", "text", "MODEL", ""), ("task", "text", "`--task`, the first", "")]
    named.append(("more_tasks", "text[]", "every `--task` after the first", ""))
    named.append(("method", "text", "`--method`", ""))
    described = [(one, "") for one in options_of(Options)]
    described += [(one, ", ".join(names)) for one, names in method_options().values()]
    for one, when in described:
        if not one.option.speed_only:
            typed_as = "text" if one.kind in (Path, str) else typed(one.kind)
            named.append(
                (one.name, typed_as, f"`{one.flag}`" if not one.option.python_only else "Python only", when)
            )
    lines = [f"| `{name}` | {kind} | {meaning} | {when} |" for name, kind, meaning, when in named]
    return "| key | type | meaning | when |\n|---|---|---|---|\n" + "\n".join(lines)


def sections(kind: type[Record], shown: set[type[Record]]) -> list[str]:
    """Return the table of a record, then those of the records in it, each once."""
    if kind in shown:
        return []
    shown.add(kind)
    mine = rows(kind)
    inner = [part for field in fields(kind).values() for part in records_in(field.annotation)]
    head = "| key | type | meaning | when |\n|---|---|---|---|" if any(row[3] for row in mine) else SHORT
    lines = ["| " + " | ".join(row if "when" in head else row[:3]) + " |" for row in mine]
    text = f"### {name_of(kind)}\n\n{prose(kind)}{head}\n" + "\n".join(lines)
    return [text, *(section for part in inner for section in sections(part, shown))]


SHORT = "| key | type | meaning |\n|---|---|---|"


def prose(kind: type[Record]) -> str:
    """Return the docstring of a record as a paragraph."""
    return " ".join((kind.__doc__ or "").split()) + "\n\n"


def fields(kind: type[Record]) -> dict[str, FieldInfo]:
    """Return the fields of a record; of an open one also those that the methods add."""
    kind.model_rebuild()
    found = dict(kind.model_fields)
    for method in methods().values() if kind is AnalysisRecord else ():
        method.record_types()[1].model_rebuild()
        found |= method.record_types()[1].model_fields
    return found


def rows(kind: type[Record]) -> list[list[str]]:
    """Return key, type, meaning and when of every field."""
    made = []
    for name, field in fields(kind).items():
        meaning, _, when = ONLY.sub(r"\0\1", field.description or "").partition("\0")
        if not when and kind is AnalysisRecord and name not in kind.model_fields:
            when = ", ".join(m.name for m in methods().values() if name in m.record_types()[1].model_fields)
        made.append([f"`{name}`", typed(field.annotation), meaning, when])
    return made


def typed(kind: object) -> str:
    """Return a type in the words of the tables: `number[]`, `Score{}`, `text or null`."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return typed(parts[0])
    if kind is SearchRecord:
        return " or ".join(dict.fromkeys(name_of(method.record_types()[0]) for method in methods().values()))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(typed(part) for part in parts)
    if origin is tuple and len({part for part in parts if part is not ...}) > 1:
        return "list"
    if origin in (list, tuple):
        return " or ".join(f"{kind}[]" for kind in typed(parts[0]).split(" or "))
    if origin is dict:
        return "Command" if parts[1] is JsonValue else f"{typed(parts[1])}{{}}"
    if isinstance(kind, type) and issubclass(kind, Record):
        return name_of(kind)
    return "list" if kind is JsonValue else WORDS[typing.cast(type, kind)]


def records_in(kind: object) -> list[type[Record]]:
    """Return the records that a type is made of."""
    if kind is SearchRecord:
        return list(dict.fromkeys(method.record_types()[0] for method in methods().values()))
    if isinstance(kind, type) and issubclass(kind, Record):
        return [kind]
    return [record for part in typing.get_args(kind) for record in records_in(part)]


def name_of(kind: type[Record]) -> str:
    """Return the heading of a record."""
    return kind.__name__.removesuffix("Record")


if __name__ == "__main__":
    sys.exit(main())
