"""Sections of a page as values: headings, pieces of HTML, and figures with their numbers folded below."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.report.chart import Figure
from secateur.report.markup import known


@dataclass(frozen=True)
class FigureGroup:
    """Figures that stand side by side in a section.

    Args:
        figures: The figures, from left to right.
        layout: CSS classes of their box: `wide`, `pair`, `duo`, `multiples`, `multiples words`.
        name: What their ids begin with; None: the name of the section. A section with several groups names each.
    """

    figures: tuple[Figure, ...]
    layout: str = "wide"
    name: str | None = None

    def __bool__(self) -> bool:
        return bool(self.figures)


@dataclass(frozen=True)
class PageSection:
    """A section of a page. One whose body is empty is left out of the page.

    Args:
        name: Its anchor, and what the ids of its figures begin with: `NAME-0`, `NAME-1`, ….
        title: Its heading, as text.
        lead: The sentence below the heading, as HTML.
        body: Pieces of HTML and groups of figures, in order.
    """

    name: str
    title: str
    lead: str
    body: tuple[str | FigureGroup, ...]

    def __bool__(self) -> bool:
        return any(self.body)

    def placed(self, group: FigureGroup) -> list[tuple[str, Figure]]:
        """Return the figures of one group with their ids."""
        name = group.name or self.name
        return [(f"{name}-{index}", figure) for index, figure in enumerate(group.figures)]

    def figures(self) -> dict[str, Figure]:
        """Return all figures of the section by their ids."""
        groups = [piece for piece in self.body if isinstance(piece, FigureGroup)]
        return {key: figure for group in groups for key, figure in self.placed(group)}


def worst_allowed(start: float | None, max_loss: float | None, *, higher_is_better: bool) -> float | None:
    """Return the worst value that a metric may have; None where no bound was given.

    Args:
        start: The value of the original.
        max_loss: How much worse than that it may be.
    """
    if not known(start) or not known(max_loss):
        return None
    return start - max_loss if higher_is_better else start + max_loss
