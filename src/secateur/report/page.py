"""The page engine: pieces of HTML and sections with figures in, one self-contained HTML page out.

Knows no record, no model and no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from secateur.report.chart import Figure
from secateur.report.frame import PageSection
from secateur.report.markup import embedded_json
from secateur.report.templating import TEMPLATES


def assemble(title: str, parts: Sequence[str | PageSection]) -> str:
    """Return a whole page as HTML that loads nothing from anywhere.

    Args:
        title: Text of the window's title.
        parts: Pieces of trusted HTML and sections, in order; empty ones are left out.
    """
    figures: dict[str, Figure] = {}
    for part in parts:
        if isinstance(part, PageSection) and part:
            new = part.figures()
            assert not figures.keys() & new.keys(), f"two figures have one id: {[*figures, *new]}"
            figures |= new
    drawn = [{"id": key, "data": figure.data, "layout": figure.layout} for key, figure in figures.items()]
    return TEMPLATES.get_template("page.html.j2").render(
        title=title,
        parts=parts,
        style=_resource("style.css"),
        figures=embedded_json(drawn),
        plotly=_resource("vendor/plotly-cartesian.min.js") if drawn else "",
        script=_resource("page.js"),
    )


def _resource(name: str) -> str:
    return resources.files("secateur.report").joinpath(name).read_text(encoding="utf-8")
