"""The house stands as its plan says: who may import whom, who may touch a model, who may print, what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import secateur

SOURCE = Path(secateur.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
MAY_IMPORT = {
    "errors": set(),
    "core": {"errors"},
    "linalg": set(),
    "hf": {"errors", "core"},
    "surgery": {"errors", "core", "linalg", "hf"},
    "tasks": {"errors", "core"},
    "evaluation": {"errors", "core", "hf", "surgery", "tasks"},
    "probes": {"errors", "core", "linalg", "hf", "surgery", "tasks", "evaluation"},
    "search": {"errors", "core"},
    "report": {"errors", "core"},
    "checkpoint": {"errors", "core", "hf", "surgery"},
    "gains": {"errors", "core", "hf"},
    "records": {"errors", "core", "tasks"},
    "options": {"errors", "core", "hf", "search", "tasks"},
    "inputs": {"errors", "core", "hf", "tasks", "options"},
    "session": {"errors", "core", "hf", "surgery", "tasks", "evaluation", "search", "options"},
}
MAY_IMPORT["given"] = {"errors", "core", "tasks"}
MAY_IMPORT["signatures"] = {"errors", "core"}
MAY_IMPORT["keywords"] = {"given"}
MAY_IMPORT["tracking"] = {"errors", "core"}
for room_ in ("records", "checkpoint", "probes"):
    MAY_IMPORT[room_] |= {"__init__"}  # for the version
MAY_IMPORT["side_tasks"] = {"session", "tasks", "evaluation"}
MAY_IMPORT["training"] = {
    "errors",
    "core",
    "hf",
    "tasks",
    "evaluation",
    "checkpoint",
    "records",
    "options",
    "session",
}
MAY_IMPORT["training"] |= {"side_tasks", "evaluation", "report"}  # healing is reported as a cut is
MAY_IMPORT["training"] |= {"methods"}  # the records alone: heal.json holds the curves of a depth cut
MAY_IMPORT["training"] |= {"inputs", "surgery", "given", "keywords", "signatures"}
MAY_IMPORT["probing"] = {
    *MAY_IMPORT["probes"],
    "probes",
    "options",
    "session",
    "records",
    "checkpoint",
    "report",
}
MAY_IMPORT["methods"] = {*MAY_IMPORT["probing"], "probing", "search", "side_tasks", "evaluation", "gains"}
MAY_IMPORT["reporting"] = {"errors", "core", "probing", "methods", "report"}
MAY_IMPORT["proof"] = {*MAY_IMPORT["methods"], "methods", "gains", "reporting"}
MAY_IMPORT["result"] = {"errors", "core", "checkpoint", "probing", "report", "reporting"}
MAY_IMPORT["pipeline"] = {*MAY_IMPORT["proof"], "proof", "result"}
MAY_IMPORT["steps"] = MAY_IMPORT["methods"] | {"methods", "result", "__init__"}
MAY_IMPORT["forecast"] = MAY_IMPORT["pipeline"] | {"pipeline"}
MAY_IMPORT["api"] = MAY_IMPORT["forecast"] | {
    "training",
    "reporting",
    "forecast",
    "gains",
    "inputs",
    "steps",
    "given",
    "keywords",
    "signatures",
    "tracking",
}
MAY_IMPORT["distributed"] = {"errors", "core", "hf", "evaluation"}
MAY_IMPORT["recipe"] = MAY_IMPORT["api"] | {"api", "training", "distributed", "__init__"}
MAY_IMPORT["cli"] = MAY_IMPORT["api"] | {"api", "training", "distributed", "recipe", "__init__"}
MAY_IMPORT["__init__"] = set(MAY_IMPORT)  # the front door names the verbs and opens them when asked
MAY_IMPORT["__main__"] = {"cli"}
NEVER = {
    "core": {"torch", "transformers", "safetensors", "huggingface_hub"},
    "search": {"torch", "transformers"},
    "report": {"torch", "transformers"},
    "tasks": {"torch"},
    "linalg": {"transformers", "numpy", "scipy"},
}
PRINTS = {"cli"}


def room(path: Path) -> str:
    """The first folder or file below the package: `judge`, `recipe`."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path, *, when_called: bool = True) -> Iterator[str]:
    """Every module that a file imports: `secateur.core.plan`, `torch`; our own names in full. Without `when_called`
    those of its first level alone, which are imported with the file."""
    for node in ast.walk(tree(path)) if when_called else tree(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """The rooms and files of ours that a file imports. `from secateur import __version__` is the front door."""
    modules = set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "secateur" or len(parts) < 2:
            continue
        exists = (SOURCE / parts[1]).is_dir() or (SOURCE / f"{parts[1]}.py").exists()
        modules.add(parts[1] if exists else "__init__")
    return modules


def calls(path: Path, names: set[str]) -> list[str]:
    """`file:line name` of every plain call of one of `names`."""
    return [
        f"{path.relative_to(SOURCE)}:{node.lineno} {node.func.id}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    ]


def test_every_room_has_its_place():
    assert {room(path) for path in FILES} - {"models"} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    allowed = MAY_IMPORT[room(path)] | {room(path)}
    assert ours(path) <= allowed, f"{path.relative_to(SOURCE)} reaches where it may not"


def test_training_knows_the_records_and_the_pages_of_methods_and_nothing_else_of_them():
    known = {
        name for path in FILES if room(path) == "training" for name in imported(path) if ".methods." in name
    }
    assert known
    assert {name.split(".")[3] for name in known} <= {"records", "report"}


def test_the_plan_itself_has_no_circle():
    """Names are sorted so that each may only import earlier ones; a circle in MAY_IMPORT would have no such order."""
    left = {
        name: set(allowed) - {name, "__init__"} for name, allowed in MAY_IMPORT.items() if name != "__init__"
    }
    while left:
        free = {name for name, needs in left.items() if not needs & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


def test_no_two_files_import_each_other_in_a_circle():
    modules = {
        ".".join(("secateur", *path.relative_to(SOURCE).with_suffix("").parts)): path for path in FILES
    }
    needs = {
        name: {m for m in imported(path, when_called=not is_door(path)) if m in modules and m != name}
        for name, path in modules.items()
    }
    while True:
        free = {name for name, wanted in needs.items() if not wanted & set(needs)}
        if not free:
            break
        needs = {name: wanted for name, wanted in needs.items() if name not in free}
    assert not needs, f"a circle among {sorted(needs)}"


def is_door(path: Path) -> bool:
    """`methods/NAME/method.py` has the options that its search reads, and opens that search when it is called."""
    return room(path) == "methods" and path.name == "method.py" and path.parent != SOURCE / "methods"


@pytest.mark.parametrize("where", sorted(NEVER))
def test_what_a_room_never_imports(where):
    found = {
        f"{path.relative_to(SOURCE)}: {name}"
        for path in FILES
        if room(path) == where
        for name in imported(path)
        if name.split(".")[0] in NEVER[where] and not _only_for_types(path, name)
    }
    assert not found


def _only_for_types(path: Path, name: str) -> bool:
    """Imported under `if TYPE_CHECKING:` and nowhere else."""
    guarded = [
        node
        for node in ast.walk(tree(path))
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    inside = {line for node in guarded for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    lines = [
        node.lineno
        for node in ast.walk(tree(path))
        if (isinstance(node, ast.ImportFrom) and name.startswith(node.module or ""))
        or (isinstance(node, ast.Import) and any(alias.name == name for alias in node.names))
    ]
    return bool(lines) and set(lines) <= inside


def test_only_hf_asks_models_what_they_have():
    """`getattr` and `hasattr`; on plain modules of Python, as in the lazy front door, they are fine."""
    found = [
        call
        for path in FILES
        if room(path) not in ("hf", "__init__")
        for call in calls(path, {"getattr", "hasattr", "setattr", "delattr"})
    ]
    assert not found


def test_only_the_command_line_prints():
    printing = {"print", "pprint", "input"}
    found = [call for path in FILES if room(path) not in PRINTS for call in calls(path, printing)]
    assert not found


def test_one_file_opens_the_terminal():
    """What others print goes through it, so that no control character of a name gets further."""
    for path in FILES:
        if path != SOURCE / "cli/terminal.py":
            assert not {name for name in imported(path) if name.startswith("rich.console")}, path


def test_nothing_reads_or_writes_pickles():
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path in FILES:
        assert not {name.split(".")[0] for name in imported(path)} & banned, path
        attributes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)]
        for node in attributes:
            on_torch = isinstance(node.value, ast.Name) and node.value.id == "torch"
            assert not (on_torch and node.attr in ("load", "save")), f"{path}:{node.lineno}"


def test_no_error_is_swallowed_whole():
    """`except Exception` and bare `except`; `except BaseException` only where it raises again."""
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                name = node.type.id if isinstance(node.type, ast.Name) else "" if node.type else "everything"
                assert name not in ("Exception", "everything"), f"{path}:{node.lineno}"
                if name == "BaseException":
                    assert any(isinstance(n, ast.Raise) for n in ast.walk(node)), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "run",
    [
        "import secateur",
        "import secateur.cli.app",
        "import secateur.core.ledger, secateur.search.race, secateur.report",
        "import secateur.cli.runs",
        "import secateur.api, secateur.training.verbs",
        "from typer.testing import CliRunner; from secateur.cli.app import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0",
        "from typer.testing import CliRunner; from secateur.cli.app import app;"
        "assert CliRunner().invoke(app, ['prune', '--help']).exit_code == 0",
    ],
)
def test_what_stays_light_imports_no_torch(run):
    heavy = "import sys; found = {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"{run}\n{heavy}\nassert not found, found"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_help_page_waits_for_no_statistics():
    """scipy.stats alone takes half a second to import."""
    run = "from typer.testing import CliRunner; from secateur.cli.app import app;"
    run += "assert CliRunner().invoke(app, ['prune', '--help']).exit_code == 0;"
    run += "import sys; assert 'scipy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
