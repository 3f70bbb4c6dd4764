"""The notebooks of examples/ were run in order without an error, name what there is, and show no path of a machine.

They are run by `make notebooks`, on SmolLM2-135M; here they are only read.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.places import ROOT

import secateur

NOTEBOOKS = [ROOT / "examples" / f"{name}.ipynb" for name in ("better", "smaller", "understand")]
GIVEN = {"prune": secateur.Result, "apply": secateur.Result, "probe": secateur.ProbeResult}  # by verbs
PATHS = re.compile(r"(?<![\w.])(?:[A-Z]:\\\\|/(?:home|root|Users|tmp|work|usr|opt|var|mnt|private)/)|~/")
TALKED_ABOUT = "no gain can be expected to show here"  # the one warning that a notebook has, and speaks of
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def notebook(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in notebook(path)["cells"] if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def wrong_names(code: str) -> Iterator[str]:
    """Yield what the code asks of secateur, or of what its verbs gave, that is not there."""
    kinds = {}
    for node in ast.walk(ast.parse(code)):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and isinstance(node.targets[0], ast.Name)
        ):
            kinds[node.targets[0].id] = GIVEN.get(ast.unparse(node.value.func).removeprefix("secateur."))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "secateur" and node.attr not in secateur.__all__:
                yield ast.unparse(node)
            kind = kinds.get(node.value.id)
            if kind is not None and node.attr not in {*dir(kind), *getattr(kind, "__dataclass_fields__", ())}:
                yield ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("secateur."):
            verb = getattr(secateur, node.func.attr, None)
            taken = set(inspect.signature(verb).parameters) if verb else set()
            yield from (f"{node.func.attr}({word.arg}=)" for word in node.keywords if word.arg not in taken)


def test_wrong_names_are_found():
    code = "r = secateur.prune(m, t, 'o', layerz=1)\nr.plod('x')\nsecateur.prun()\nr.plot('x')\nr.verdict"
    assert sorted(wrong_names(code)) == ["prune(layerz=)", "r.plod", "secateur.prun"]


@each_notebook
def test_it_is_a_notebook_that_was_run_in_order_without_an_error(path):
    found, cells = notebook(path), code_cells(path)
    assert (found["nbformat"], found["nbformat_minor"] >= 5) == (4, True)
    ids = [cell["id"] for cell in found["cells"]]
    assert len(set(ids)) == len(ids) > 8
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert set(kinds) <= {"stream", "execute_result", "display_data"}
    said = ["".join(out["text"]) for cell in cells for out in cell["outputs"] if out.get("name") == "stderr"]
    assert [words for words in said if TALKED_ABOUT not in words] == []
    assert path.stat().st_size < 500_000


@each_notebook
def test_what_is_said_between_the_cells_is_written_out(path):
    texts = [source(cell) for cell in notebook(path)["cells"] if cell["cell_type"] == "markdown"]
    assert [text for text in texts if len(text) < 60] == []


@each_notebook
def test_nbformat_finds_it_valid(path):
    nbformat = pytest.importorskip(
        "nbformat", reason="nbformat is not installed: it is in the extra notebooks"
    )
    nbformat.validate(nbformat.reads(path.read_text(encoding="utf-8"), as_version=4))


@each_notebook
def test_it_uses_only_names_and_options_that_there_are(path):
    assert list(wrong_names("\n".join(source(cell) for cell in code_cells(path)))) == []


@each_notebook
def test_it_holds_no_path_of_a_machine(path):
    assert PATHS.findall(path.read_text(encoding="utf-8")) == []


@each_notebook
def test_tables_stand_in_it_as_html_which_needs_no_script(path):
    pages = [
        "".join(output["data"]["text/html"])
        for cell in code_cells(path)
        for output in cell["outputs"]
        if "text/html" in output.get("data", {})
    ]
    assert any("<table>" in page for page in pages)
    assert not [page for page in pages if "<script" in page]


def test_the_documents_lead_to_each():
    for page in ("README.md", "examples/README.md", "docs/python.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert page == "README.md" or all(path.name in text for path in NOTEBOOKS), page
        assert "notebook" in text, page
