"""Sections of single methods in the old form, from plain JSON, until each lies with its method as a `PageSection`."""

from __future__ import annotations

from secateur.core.site import Site
from secateur.report.cuts import Tried
from secateur.report.depth import SECTIONS as DEPTH
from secateur.report.frame import Figures, Record, Section
from secateur.report.pruned_units import site_of
from secateur.report.pruning import pruning


def old_sections(verdict: Record, plan: Record, analysis: Record) -> tuple[list[str], Figures]:
    """Return the sections that only some methods have, as HTML, and their figures by id."""
    figures: Figures = {}
    return [build(verdict, plan, analysis, figures) for build in SECTIONS], figures


def tried(verdict: Record, analysis: Record) -> Tried:
    """Return what the search looked at: swept, screened, read, drawn as a curve, or measured as a whole block."""
    rows = [row for block in ("sweep", "screen", "curves") for row in analysis.get(block) or ()]
    matrices = (analysis.get("directions") or {}).get("matrices") or ()
    sites = {site for row in [*rows, *matrices] if (site := site_of(str(row.get("site")))) is not None}
    steps = (analysis.get("depth") or {}).get("order") or ()
    blocks = {int(block) for step in steps for block in step["measured"]}
    kinds = (verdict.get("model") or {}).get("matrices") or ()
    sites |= {Site(block, kind) for block in blocks for kind in kinds}
    removed: dict[str, tuple[int, int]] = {}
    for row in matrices:
        gone, had = removed.get(row["site"], (0, 0))
        removed[row["site"]] = gone + len(row["removed"]), had + row["of"]
    return Tried(frozenset(sites), removed)


SECTIONS: tuple[Section, ...] = (
    pruning,
    *DEPTH,
)
