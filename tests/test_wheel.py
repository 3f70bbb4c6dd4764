"""The wheel holds all that the package needs, and runs where only it and its dependencies are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from docker_lines import instructions
from fixtures.places import ROOT

import secateur

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "examples/README.md"]


def _run(*words: str | Path, where: Path) -> str:
    """Return what a command prints, run in `where` without the paths and settings of this process."""
    env = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, words)], cwd=where, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the working tree stays clean; needs no network."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "src", place / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / name)
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", where=place)
    return next((place / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment that has the wheel, and the dependencies of this one by their folder."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    install = (sys.executable, "-m", "pip", "--python", place / "bin/python", "install")
    _run(*install, "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel, where=place)
    return place / "bin"


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    package = ROOT / "src/secateur"
    there = {
        path.relative_to(ROOT / "src").as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert len([name for name in there if not name.endswith(".py")]) > 20
    assert there - packed == set()
    assert {name.split("/")[0] for name in packed} == {
        "secateur",
        f"secateur-{secateur.__version__}.dist-info",
    }


@pytest.mark.slow
def test_the_installed_wheel_runs_without_the_sources(installed: Path, tmp_path: Path) -> None:
    where = _run(installed / "python", "-c", "import secateur; print(secateur.__file__)", where=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert secateur.__version__ in _run(installed / "secateur", "--version", where=tmp_path)
    facts = ("builtin:facts", "--task", "builtin:facts")
    forecast = _run(installed / "secateur", "prune", *facts, "-o", "out", "--dry-run", where=tmp_path)
    assert "accuracy" in forecast
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_installed_wheel_writes_a_report(installed: Path, tmp_path: Path) -> None:
    options = ("--limit", "260", "--layers", "2", "--matrices", "gate", "--report", "quick", "--quiet")
    facts = ("builtin:facts", "--task", "builtin:facts")
    _run(installed / "secateur", "prune", *facts, "-o", "out", *options, where=tmp_path)
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Plotly" in page
    assert "<style" in page


def test_no_document_promises_the_name_on_the_package_index() -> None:
    """Extras of what is installed already (`secateur[ray]`) take nothing of that name from an index."""
    lines = [line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()]
    asked = [line for line in lines if re.search(r"(pip|pipx|uv|uvx)\b.*\binstall\b", line)]
    assert asked
    assert [line for line in asked if re.search(r"install (-\S+ )*['\"]?secateur(?!\[)", line)] == []


def test_the_image_copies_what_there_is_and_runs_secateur_as_a_user_without_rights() -> None:
    """Its RUN lines are run by `make docker-lines`."""
    steps = instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    last = dict(steps)
    assert last["USER"] == "secateur"
    assert last["ENTRYPOINT"] == '["secateur"]'
    installs = [rest for word, rest in steps if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert all("-c constraints.txt" in line for line in installs)
    copied = {path for word, rest in steps if word == "COPY" for path in rest.split()[:-1]}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == sent
    assert all((ROOT / path).exists() for path in copied)
