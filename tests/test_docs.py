"""The documents say what is so: records, options, commands, code and links are checked against the real thing."""

from __future__ import annotations

import json
import logging
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import typer
from fixtures import data_components, data_directions
from fixtures.folders import save_model, write_rows
from fixtures.gguf_files import llama_gguf
from fixtures.places import ROOT
from fixtures.planted import affine_, massive, silenced, spoken

import secateur
from secateur.cli import main
from secateur.cli.app import app
from secateur.hf.load import Loaded
from secateur.options import Options
from secateur.proof import model_record
from secateur.tasks import facts
from secateur.training import measures

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "examples/README.md", ROOT / "CHANGELOG.md", ROOT / "README.md"])
TABLES = ("Plan", "Verdict", "Analysis")  # the tables of plan.json, verdict.json, analysis.json


def _read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, small run of the main job."""
    folder = tmp_path_factory.mktemp("docs") / "out"
    options = {"limit": 400, "matrices": ("mlp",), "layers": (2, 3)}
    result = secateur.prune("builtin:facts", "builtin:facts", folder, **options)
    assert result.plan.edits, "nothing was cut, so the records are not full: choose another run"
    return folder


# ---------------------------------------------------------------------------------------------------------- records.md

Tables = dict[str, dict[str, tuple[str, bool]]]  # table → key → (type, is always there)
SCALARS = {
    "text": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "null": lambda v: v is None,
    "list": lambda v: isinstance(v, list),
}


def _sections(text: str) -> dict[str, list[list[str]]]:
    """Heading of third level → the rows of its table, without head and rule."""
    found = {}
    for part in re.split(r"^### ", text, flags=re.M)[1:]:
        name, _, body = part.partition("\n")
        body = re.split(r"^## ", body, flags=re.M)[0]
        lines = [line for line in body.splitlines() if line.startswith("|")]
        found[name.strip()] = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return found


def _tables() -> Tables:
    capitalized = {name: rows for name, rows in _sections(_read("records.md")).items() if name[0].isupper()}
    return {
        name: {row[0].strip("`"): (row[1], len(row) < 4 or not row[3]) for row in rows}
        for name, rows in capitalized.items()
    }


def _problems(value: Any, kind: str, where: str, tables: Tables, seen: dict[str, set[str]]) -> list[str]:
    """Where `value` is not what the documented type says; notes in `seen` which keys occurred."""
    if " or " in kind:
        found = [_problems(value, one, where, tables, seen) for one in kind.split(" or ")]
        return min(found, key=len)
    if kind.endswith(("[]", "{}")):
        if not isinstance(value, list if kind.endswith("[]") else dict):
            return [f"{where} is no {kind}"]
        items = enumerate(value) if isinstance(value, list) else value.items()
        return [
            p for name, item in items for p in _problems(item, kind[:-2], f"{where}.{name}", tables, seen)
        ]
    if kind in SCALARS:
        return [] if SCALARS[kind](value) else [f"{where} is no {kind}: {value!r:.40}"]
    return _record_problems(value, kind, where, tables, seen)


def _record_problems(
    value: Any, kind: str, where: str, tables: Tables, seen: dict[str, set[str]]
) -> list[str]:
    table = tables[kind]
    if not isinstance(value, dict):
        return [f"{where} is no {kind}"]
    always = {key for key, (_, needed) in table.items() if needed}
    problems = [f"{where}.{key} is not documented in {kind}" for key in value.keys() - table.keys()]
    problems += [f"{where} lacks {key}, documented in {kind}" for key in always - value.keys()]
    if not problems:
        seen.setdefault(kind, set()).update(value)
    for key in value.keys() & table.keys():
        problems += _problems(value[key], table[key][0], f"{where}.{key}", tables, seen)
    return problems


@pytest.fixture(scope="module")
def removed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, small run of iterative pruning."""
    folder = tmp_path_factory.mktemp("docs") / "removed"
    options = {"method": "heads", "step": 0.5, "random_orders": 1, "vote": 2, "report": "full"}
    result = secateur.prune("builtin:recall", "builtin:recall", folder, target=0.5, **options)
    assert result.plan.edits
    return folder


@pytest.fixture(scope="module")
def directed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, small run that removes directions."""
    folder = tmp_path_factory.mktemp("docs") / "directed"
    options = {"method": "directions", "matrices": ("down",), "dynamic": False, "limit": 260}
    result = secateur.prune("builtin:facts", "builtin:facts", folder, **options)
    assert result.plan.removed
    return folder


@pytest.fixture(scope="module")
def shortened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, small run of depth pruning: an edit in `linear` form, since a fold's record has the same keys."""
    folder = tmp_path_factory.mktemp("docs") / "shortened"
    options = {
        "method": "depth",
        "blocks": 1,
        "form": "linear",
        "by": "cosine",
        "limit": 260,
        "report": "full",
    }
    result = secateur.prune("builtin:facts", "builtin:facts", folder, **options)
    assert result.plan.linearized
    return folder


@pytest.fixture(scope="module")
def inattentive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, small run that drops an attention."""
    folder = tmp_path_factory.mktemp("docs") / "inattentive"
    options = {"method": "attention", "attentions": 1, "limit": 260}
    return secateur.prune("builtin:facts", "builtin:facts", folder, **options).out


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, small run under two budgets, whose time is counted by parameters and not by a clock."""
    folder = tmp_path_factory.mktemp("docs") / "budgeted"
    options = {"params": 0.9, "latency": 0.95, "kinds": "heads,ffns", "limit": 260}

    def counted(before: Loaded, after: Loaded, *_: object, **__: object) -> float:
        return after.anatomy.num_parameters / before.anatomy.num_parameters

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("secateur.methods.budget.readings.time_kept", counted)
        return secateur.prune("builtin:facts", "builtin:facts", folder, **options).out


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, small run on two tasks."""
    folder = tmp_path_factory.mktemp("docs") / "together"
    options = {"matrices": ("down",), "layers": (1, 2), "limit": 260}
    return secateur.prune("builtin:components", ["builtin:facts", "builtin:recall"], folder, **options).out


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, small run of fine-tuning."""
    folder = tmp_path_factory.mktemp("docs") / "tuned"
    return secateur.finetune("builtin:facts", "builtin:facts", folder, epochs=1, limit=260, lora=2).out


@pytest.fixture(scope="module")
def unlucky(tmp_path_factory: pytest.TempPathFactory, words: Any) -> Path:
    """A real, small run of depth pruning in which a map does worse than dropping; the model has outlier tokens."""
    place = tmp_path_factory.mktemp("docs")
    model = affine_(massive(), 1, times=6)
    save_model(place / "model", model, words)
    write_rows(place / "text.jsonl", spoken(silenced(model, 1), 60))
    options = {"method": "depth", "blocks": 1, "by": "linearity", "allow_small": True}
    found = secateur.prune(str(place / "model"), f"text:{place / 'text.jsonl'}", place / "out", **options)
    assert found.verdict["search"]["fell_back"]
    return place


def _trained(place: Path) -> dict[str, Any]:
    """A real, tiny model from nothing, in the tokens of one that is there."""
    text = place.parent / "words.txt"
    text.write_text(" ".join(f"w{n % 7}" for n in range(4000)), encoding="utf-8")
    size = {"layers": 1, "d_model": 8, "heads": 2, "seqlen": 32}
    made = secateur.train(str(text), str(place), place.parent / "trained", steps=2, save_steps=(1,), **size)
    return json.loads((made.out / "train.json").read_text(encoding="utf-8"))


def _two_answers(place: Path) -> str:
    """A task whose questions all have the same choices."""
    rows = [
        {"id": e.id, "prompt": e.prompt, "answer": answer, "choices": [" Cairo", " cabbage"]}
        for e, answer in zip(facts.examples(), cycle((" Cairo", " cabbage", " Cairo")), strict=False)
    ]
    path = place.parent / "two.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def of_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """A model that was read from a GGUF file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return secateur.load(llama_gguf(tmp_path), device="cpu")


def _provenance(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "plan.json").read_text(encoding="utf-8"))["provenance"]


def test_the_page_of_families_and_their_count_are_those_of_the_table() -> None:
    sys.path.insert(0, str(ROOT / "dev"))
    try:
        from write_families_doc import documents
    finally:
        sys.path.pop(0)
    stale = [path.name for path, text in documents().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run python dev/write_families_doc.py"


def test_tables_and_schemas_of_records_are_those_of_the_types() -> None:
    sys.path.insert(0, str(ROOT / "dev"))
    try:
        from write_records_doc import documents
    finally:
        sys.path.pop(0)
    written = documents()
    stale = [path.name for path, text in written.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run python dev/write_records_doc.py"
    assert {path for path in written if path.suffix == ".json"} == set((DOCS / "schemas").iterdir())


@pytest.mark.slow
def test_every_record_is_as_documented(
    out: Path, removed: Path, directed: Path, shortened: Path, inattentive: Path, budgeted: Path, together: Path,
    tuned: Path, unlucky: Path, of_gguf: Loaded,
) -> None:  # fmt: skip
    tables, seen = _tables(), {}
    runs = (out, removed, directed, shortened, inattentive, budgeted, together, unlucky / "out")
    for kind, folder in ((kind, f) for f in runs for kind in TABLES):
        record = json.loads((folder / f"{kind.lower()}.json").read_text(encoding="utf-8"))
        assert _problems(record, kind, f"{folder.name}/{kind.lower()}", tables, seen) == []
    read = {"what": ["heads", "ffns", "neurons", "induction"], "layers": (0, 1), "limit": 250}
    probed = secateur.probe("builtin:recall", "builtin:recall", shots=[0, 1], **read)
    straight = secateur.probe(
        str(unlucky / "model"), f"text:{unlucky / 'text.jsonl'}", what="linearity", out=tuned.parent / "straight",
        allow_small=True,
    )  # fmt: skip
    straight |= json.loads((tuned.parent / "straight/probe.json").read_text(encoding="utf-8"))
    applied = secateur.apply("builtin:facts", ["b2.gate=3"], tuned.parent / "applied").out
    for kind, record in {
        "Provenance": _provenance(applied)
        | {"command": _provenance(out)["command"]},  # apply has its own words
        "Model": model_record(Options("tiny.gguf", "q.jsonl"), of_gguf).to_json(),
        "ModelIdentity": measures.identity_record(of_gguf).to_json(),
        "TrainedModel": measures.model_record(of_gguf).to_json(),
        "Linearity": straight,
        "Gains": secateur.bench(out, prompt=8, new=2, repeats=1),
        "Components": probed["components"],
        "Finetune": json.loads((tuned / "finetune.json").read_text(encoding="utf-8")),
        "Heal": secateur.heal(
            shortened,
            "builtin:facts",
            tuned.parent / "healed",
            lora=2,
            epochs=1,
            limit=260,
            ledger=tuned.parent / "openings.sqlite",
        ).record,
        "Train": _trained(tuned),
        "Baseline": secateur.evaluate("builtin:facts", _two_answers(tuned))["baseline"],
        "Forecast": secateur.plan_cost("builtin:facts", "builtin:facts", limit=260),
        "TaskCheck": secateur.check_task("builtin:facts", "builtin:facts"),
        "Structure": secateur.check_structure("builtin:facts"),
        "Comparison": secateur.compare_runs([out, removed], tuned.parent / "comparison.html"),
        "Map": secateur.need_map(
            "builtin:recall", "builtin:recall", tuned.parent / "map", what="heads", checks=4, limit=250
        ),
        "Transfer": secateur.transfer(removed, task="builtin:facts", limit=260),
    }.items():
        assert _problems(record, kind, kind.lower(), tables, seen) == []
    seen["Provenance"].add("gguf")  # tests/hf/test_gguf_files.py
    written = {(kind, key) for kind, keys in seen.items() for key in keys}
    documented = {(kind, key) for kind, rows in tables.items() for key in rows}
    several = {("FinetuneCommand", "processes"), ("HealCommand", "processes")}  # test_training_distributed.py
    several |= {("Components", "experts")}  # tests/methods/test_prune_experts.py
    assert written | several == documented


@pytest.mark.parametrize(
    "build",
    [getattr(data_components, name) for name in ("heads", "grouped", "components", "ffns")]
    + [getattr(data_directions, name) for name in ("heads", "removal", "single", "deep", "nothing")],
)
def test_what_the_report_is_tested_with_is_as_documented(
    build: Callable[[], data_components.Records],
) -> None:
    _, _, analysis = build()
    assert _problems(analysis, "Analysis", build.__name__, _tables(), {}) == []


def test_the_check_of_records_sees_a_wrong_key_a_missing_one_and_a_wrong_type() -> None:
    tables: Tables = {"Cut": {"site": ("text", True), "rank": ("integer", True), "ci": ("number[]", False)}}
    assert _problems([{"site": "b0.q", "rank": 1}], "Cut[]", "cut", tables, {}) == []
    for wrong in ({"site": "b0.q"}, {"site": "b0.q", "rank": "1"}, {"site": "b0.q", "rank": 1, "more": 2}):
        assert len(_problems(wrong, "Cut", "cut", tables, {})) == 1
    assert _problems({"site": "b0.q", "rank": 1, "ci": [None]}, "Cut", "cut", tables, {}) != []


def test_files_of_a_run_are_documented(out: Path) -> None:
    text = _read("records.md")
    for name in ("README.md", "plan.json", "verdict.json", "analysis.json", "report.html"):
        assert (out / name).exists()
        assert f"`OUT/{name}`" in text
    state = {path.name for path in out.with_name("out.run").iterdir()}
    assert state == {"ledger.sqlite", "lock"}


def test_every_column_of_the_ledger_is_documented(out: Path) -> None:
    sections = _sections(_read("records.md"))
    documented = {name: [r[0].strip("`") for r in rows] for name, rows in sections.items() if name.islower()}
    db = sqlite3.connect(out.with_name("out.run") / "ledger.sqlite")
    names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {name: [row[1] for row in db.execute(f"PRAGMA table_info({name})")] for name in names}
    db.close()
    assert found == documented


def test_sections_of_the_report_that_methods_names_exist(out: Path) -> None:
    rows = [line.split("|") for line in _read("methods.md").splitlines() if re.match(r"\| \([a-d]\)", line)]
    assert len(rows) == 4
    page = (out / "report.html").read_text(encoding="utf-8")
    for row in rows:
        title = row[3].split(":")[0].strip()
        assert f"<h2>{title}</h2>" in page


# -------------------------------------------------------------------------------------------------------------- cli.md


def _commands() -> dict[str, Any]:
    return typer.main.get_command(app).commands


def _options(command: Any) -> set[str]:
    return {word for p in command.params for word in (*p.opts, *p.secondary_opts) if word.startswith("-")}


def test_every_command_is_documented_and_no_other() -> None:
    headings = set(re.findall(r"^## ([a-z-]+)$", _read("cli.md"), flags=re.M))
    assert headings == set(_commands())


def test_every_option_is_documented_and_no_other() -> None:
    """In the table at the end, with the verbs that have it; and nothing that looks like one elsewhere."""
    text, commands = _read("cli.md"), _commands()
    table = text.partition("## Options")[2]
    real = {name: _options(command) for name, command in commands.items()}
    told: dict[str, set[str]] = {name: set() for name in commands}
    for row in (line.split("|") for line in table.splitlines() if line.startswith("| `-")):
        words = re.findall(r"`(-[^` ]+)", row[1])
        for verb in _verbs(row[2], list(commands)):
            told[verb] |= set(words)
    assert told == {name: options | {"-h", "--help"} for name, options in real.items()}
    root = _options(typer.main.get_command(app))
    every = root.union(*real.values(), {"--help"})
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) <= every


def _verbs(cell: str, every: list[str]) -> list[str]:
    cell = cell.strip()
    if cell.startswith("all"):
        return [verb for verb in every if verb not in re.findall(r"[a-z-]+", cell)[2:]]
    return [] if cell == "secateur itself" else cell.split(", ")


def _lines_of_commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in re.findall(r"^```(?:sh|console|bash)?\n(.*?)^```", _text(page), flags=re.M | re.S):
            for line in block.splitlines():
                if line.removeprefix("$ ").startswith("secateur "):
                    yield page.name, line.removeprefix("$ ")


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8") if page.exists() else ""


@pytest.mark.parametrize(("page", "line"), sorted(set(_lines_of_commands())))
def test_commands_in_the_documents_can_be_parsed(page: str, line: str) -> None:
    _, *words = shlex.split(line, comments=True)
    if words[0].startswith("-"):
        assert words[0] in _options(typer.main.get_command(app)) | {"--help"}
        return
    command = _commands()[words[0]]
    command.make_context(words[0], words[1:])  # raises for an unknown option or a missing argument


def _console() -> list[tuple[str, list[str]]]:
    """(command, the lines shown below it), in the order of cli.md."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", _read("cli.md"), flags=re.M | re.S):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def _missing(shown: list[str], printed: str) -> list[str]:
    """Shown lines that do not occur in `printed`, in order; `…` stands for anything, white space for white space."""
    lines = iter([" ".join(line.split()) for line in printed.splitlines()])
    wanted = [" ".join(line.split()) for line in shown]
    patterns = [re.compile(r" ?.* ?".join(map(re.escape, re.split(r" ?… ?", line)))) for line in wanted]
    return [w for w, p in zip(wanted, patterns, strict=True) if not any(p.fullmatch(line) for line in lines)]


def test_shown_output_is_compared_line_by_line() -> None:
    assert _missing(["a … d", "…", "e"], "a  b c d\nx\n\ne\n") == []
    assert _missing(["a … d", "f"], "a b c d\ne") == ["f"]
    assert _missing(["e", "a"], "a\ne") == ["a"]


@pytest.fixture
def last_of_a_process() -> Iterator[None]:
    """`main` leaves its own answer to Ctrl-C and its own logging behind, since a process ends with it."""
    logger = logging.getLogger("secateur")
    answer, handlers, level = signal.getsignal(signal.SIGINT), [*logger.handlers], logger.level
    yield
    signal.signal(signal.SIGINT, answer)
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.mark.slow
@pytest.mark.usefixtures("last_of_a_process")
def test_the_command_line_prints_what_the_document_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "240")
    for line, shown in _console():
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        refused = shown[-1].startswith("secateur:")
        assert end.value.code == (2 if refused else 0), line
        assert _missing(shown, captured.out + captured.err) == [], f"{line}\n{captured.out}{captured.err}"


# ----------------------------------------------------------------------------------------------------- architecture.md


def test_every_room_is_described_and_every_file_that_is_named_exists() -> None:
    text, source = _read("architecture.md"), Path(secateur.__file__).parent
    rooms = {path.name for path in source.iterdir() if path.is_dir()} - {"models", "__pycache__"}
    alone = {path.stem for path in source.glob("*.py")} - {"__init__"}
    table = text.partition("## The rooms")[2].partition("## ")[0]
    described = {
        n.strip("` /") for row in re.findall(r"^\| (`.*?) \|", table, flags=re.M) for n in row.split(",")
    }
    assert described == rooms | alone
    named = set(re.findall(r"`((?:[a-z_]+/)?[a-z_]+\.py)`", text))
    assert len(named) > 25
    missing = [name for name in named if not (source / name).exists() and not (ROOT / name).exists()]
    assert missing == []


# ----------------------------------------------------------------------------------------------------- code and links


def _python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", _text(page), flags=re.M | re.S)


@pytest.mark.slow
def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    blocks, space = _python_blocks(DOCS / "python.md"), {}
    assert len(blocks) >= 7
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), space)
    assert "Did you mean facts?" in str(_error_of(lambda: secateur.load("builtin:fact")))


def _error_of(call: Any) -> secateur.SecateurError:
    with pytest.raises(secateur.SecateurError) as caught:
        call()
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in _python_blocks(ROOT / "README.md") if "builtin:" in b])
def test_python_blocks_of_the_readme_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those on an embedded model; others need a model of the reader's."""
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.slow
def test_the_example_does_the_main_job(tmp_path: Path) -> None:
    script = ROOT / "examples/prune_own_model.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 25
    command = [sys.executable, "-W", "ignore", str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    verdict = json.loads((tmp_path / "example-out/verdict.json").read_text(encoding="utf-8"))
    assert done.stdout.startswith(f"{verdict['verdict']}: {verdict['sentence']}")


def _anchors(page: Path) -> set[str]:
    """GitHub's: lower case, spaces to hyphens, all but letters, digits, hyphens and underscores dropped."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", _text(page), flags=re.M | re.S), flags=re.M
    )
    return {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}


def test_links_lead_somewhere() -> None:
    for page in (page for page in PAGES if page.exists()):
        for link in re.findall(r"\]\(([^)\s]+)\)", _text(page)):
            if link.startswith(("http:", "https:")):
                continue
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in _anchors(target), f"{page.name}: {link}"
