"""Pages to look at, from a run's records. Knows no torch."""

from secateur.report.write import (
    render,
    render_heal,
    write_heal_report,
    write_report,
)

__all__ = [
    "render",
    "render_heal",
    "write_heal_report",
    "write_report",
]
