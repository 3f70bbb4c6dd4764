"""Pages to look at, from a run's records. Knows no torch."""

from secateur.report.write import (
    render,
    write_report,
)

__all__ = [
    "render",
    "write_report",
]
