"""Counts what makes code hard to carry on: records read by key, untyped values, one-use helpers, repeated names.

Run from the project's root: `python dev/counts.py`. The bounds are those that docs/architecture.md promises.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "secateur"
RELATIVE = re.compile(r"(What|That|Those|Whoever|Which|Where|Whether|Who|How|Whose|When)\b")


def main() -> None:
    """Print each count beside its bound."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lines = sum(text.count("\n") for text in texts.values())
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    docs = [doc for node in nodes if isinstance(node, DOCUMENTED) and (doc := ast.get_docstring(node))]
    clauses = sum(bool(RELATIVE.match(doc)) for doc in docs)
    private, once = _private_helpers(trees)
    counts = (
        ("lines", lines, None),
        ("string-keyed reads, per thousand lines", _per_thousand(_keyed_reads(nodes), lines), 10),
        ("dict[str, Any], per thousand lines", _per_thousand(_untyped_dicts(nodes), lines), 2),
        ("Any, per thousand lines", _per_thousand(sum(_is_any(node) for node in nodes), lines), 5),
        ("docstrings that begin with a relative clause, %", 100 * clauses / len(docs), 1),
        ("class names defined twice", len(_twice(nodes)), 0),
        ("private helpers used once, %", 100 * len(once) / private, 20),
        ("modules imported by exactly one other", len(_imported_once(trees)), 40),
        ("comments, % of lines", 100 * _comments(texts.values()) / lines, None),
    )
    for name, value, bound in counts:
        print(f"{value:10.1f}  {name}" + ("" if bound is None else f" (at most {bound})"))
    print("twice:", ", ".join(_twice(nodes)) or "none")
    print("imported once:", ", ".join(_imported_once(trees)))


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _per_thousand(count: int, lines: int) -> float:
    return 1000 * count / lines


def _keyed_reads(nodes: list[ast.AST]) -> int:
    """Count subscripts by a constant text, whether read or written."""
    return sum(
        isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
        for node in nodes
    )


def _untyped_dicts(nodes: list[ast.AST]) -> int:
    wanted = {"dict[str, Any]", "Mapping[str, Any]"}
    return sum(isinstance(node, ast.Subscript) and ast.unparse(node) in wanted for node in nodes)


def _is_any(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "Any"


def _twice(nodes: list[ast.AST]) -> list[str]:
    names = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    return sorted(name for name, count in names.items() if count > 1)


def _private_helpers(trees: dict[Path, ast.Module]) -> tuple[int, list[str]]:
    """Return how many functions there are, and which private ones are mentioned once beside their definition."""
    total, once = 0, []
    for path, tree in trees.items():
        used = Counter(_mentions(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                total += 1
                if node.name.startswith("_") and not node.name.startswith("__") and used[node.name] == 1:
                    once.append(f"{path.stem}.{node.name}")
    return total, once


def _mentions(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def _imported_once(trees: dict[Path, ast.Module]) -> list[str]:
    """Return the modules that exactly one other module of the package imports."""
    modules = {".".join(("secateur", *path.relative_to(SOURCE).with_suffix("").parts)) for path in trees}
    importers: dict[str, set[Path]] = {}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                for name in names & modules:
                    importers.setdefault(name, set()).add(path)
    return sorted(name.removeprefix("secateur.") for name, who in importers.items() if len(who) == 1)


def _comments(texts) -> int:
    return sum(line.lstrip().startswith("#") for text in texts for line in text.splitlines())


if __name__ == "__main__":
    main()
