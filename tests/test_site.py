"""The documentation site: every page is in its navigation, and its strict build finds no broken link."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fixtures.places import ROOT

import secateur

MKDOCS = shutil.which("mkdocs", path=f"{ROOT / '.venv-docs/bin'}{os.pathsep}{os.environ['PATH']}")
built = pytest.mark.skipif(MKDOCS is None, reason="mkdocs is not installed: `make docs` once")


def test_every_page_of_docs_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r": (\S+\.md)$", text.partition("\nnav:")[2], flags=re.M))
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert pages | {"docs/reference.md"} == {page for page in listed if page.startswith("docs/")}
    assert all((ROOT / page).is_file() for page in listed - {"docs/reference.md"})


def _build(place: Path, changed: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of `changed`. Under `--quiet` mkdocs would count no warnings."""
    words = [str(MKDOCS), "build", "--strict", "-d", str(place)]
    return subprocess.run(words, cwd=changed, capture_output=True, text=True, check=False)


@pytest.mark.slow
@built
def test_the_site_is_built_strictly_with_every_public_name(tmp_path: Path) -> None:
    done = _build(tmp_path, ROOT)
    assert done.returncode == 0, done.stderr
    assert "Cut what a transformer does not need" in (tmp_path / "index.html").read_text(encoding="utf-8")
    page = (tmp_path / "docs/reference.html").read_text(encoding="utf-8")
    assert [name for name in secateur.__all__ if f"secateur.{name}" not in page and name[0] != "_"] == []


@pytest.mark.slow
@built
@pytest.mark.parametrize("link", ["docs/cli.md#nowhere", "docs/nothing.md"])
def test_a_broken_link_stops_the_build(link: str, tmp_path: Path) -> None:
    for name in ("docs", "dev", "benchmarks", "examples", "src"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
        )
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "tests"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    with (tmp_path / "README.md").open("a", encoding="utf-8") as file:
        file.write(f"\n[broken]({link})\n")
    done = _build(tmp_path / "site", tmp_path)
    assert done.returncode != 0
    assert (link.partition("#")[2] or link) in done.stderr
