"""Hooks of mkdocs: the site has the repository's own layout, so that a link that holds there holds in it.

README.md is the front page, docs/reference.md is made from what `import secateur` offers, and a link to a file that is
no page, such as a source, becomes its name alone: the repository has no public address yet.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*",
    "docs/schemas/*",
    "docs/results/*",
    "dev/LOG.md",
    "benchmarks/RESULTS.md",
    "examples/README.md",
    "src/secateur/models/*/README.md",
)
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
LIST = re.compile(r"^( *)([-*]|\d+\.) ")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Give the pages and pictures of the repository in the place of the files of docs/."""
    theme = [file for file in files if not Path(file.abs_src_path or "").is_relative_to(ROOT / "docs")]
    found = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    own = [
        File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)) for path in found
    ]
    return Files([*theme, *own, File.generated(config, "docs/reference.md", content="\n".join(reference()))])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write what GitHub's Markdown allows as Python's wants it: links to sources, `[][]`, lists."""
    folder = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        there = files.get_file_from_path(target) is not None
        assert there or (ROOT / target).exists(), (
            f"{page.file.src_uri} links to {target}, which does not exist"
        )
        return match[0] if there else match[1]

    return "\n".join(_spaced_lists(LINK.sub(link, markdown.replace("[][]", r"\[\]\[\]")).splitlines()))


def _spaced_lists(lines: list[str]) -> Iterator[str]:
    """Yield the lines with a blank one before every list that follows a paragraph; code stays as it is."""
    code, before = False, ""
    for line in lines:
        code ^= line.lstrip().startswith("```")
        begins = LIST.match(line) and before.strip() and not before.startswith(" ") and not LIST.match(before)
        if begins and not code:
            yield ""
        yield line
        before = line


def reference() -> Iterator[str]:
    """Yield the page of the Python API: every public name, with its docstring."""
    sys.path.insert(0, str(ROOT / "src"))
    import secateur

    yield "# Reference\n\nEvery name of `import secateur`. How they go together: [Python](python.md).\n"
    where = secateur._WHERE
    for title, functions in (("Functions", True), ("Values", False)):
        yield f"## {title}\n"
        for name in where:
            if name.islower() == functions:
                yield f"::: {where[name]}.{name}\n    options:\n      heading: secateur.{name}\n"
