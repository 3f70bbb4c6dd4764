"""The page engine: pieces of HTML and sections with figures in, one self-contained HTML page out.

Knows no record, no model and no torch.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from functools import cache
from importlib import resources

from secateur.report.chart import Figure
from secateur.report.colors import dark_colors, variables
from secateur.report.frame import PageSection
from secateur.report.markup import embedded_json
from secateur.report.templating import TEMPLATES

FEWEST_SECTIONS = 3  # that are worth a list of contents


def assemble(title: str, parts: Sequence[str | PageSection]) -> str:
    """Return a whole page as HTML that loads nothing from anywhere.

    Args:
        title: Text of the window's title.
        parts: Pieces of trusted HTML and sections, in order; empty ones are left out.
    """
    sections = [part for part in parts if isinstance(part, PageSection) and part]
    figures: dict[str, Figure] = {}
    for part in sections:
        new = part.figures()
        assert not figures.keys() & new.keys(), f"two figures have one id: {[*figures, *new]}"
        figures |= new
    drawn = [{"id": key, "data": figure.data, "layout": figure.layout} for key, figure in figures.items()]
    packed = embedded_json(drawn)
    return TEMPLATES.get_template("page.html.j2").render(
        title=title,
        contents=[(part.name, part.title) for part in sections] if len(sections) >= FEWEST_SECTIONS else [],
        parts=parts,
        style=variables() + _resource("style.css"),
        figures=packed,
        dark=embedded_json(dark_colors(packed)),
        plotly=_plotly() if drawn else "",
        script=_resource("page.js"),
    )


def _resource(name: str) -> str:
    return resources.files("secateur.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """Return the library compressed by gzip, as base64: a third of its size."""
    library = _resource("vendor/plotly-cartesian.min.js").encode("utf-8")
    return base64.b64encode(gzip.compress(library, 9, mtime=0)).decode("ascii")
