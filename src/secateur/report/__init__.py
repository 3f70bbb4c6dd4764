"""Pages to look at, from a run's records. Knows no torch."""

from secateur.report.write import (
    render,
    render_heal,
    render_probe,
    write_heal_report,
    write_probe_report,
    write_report,
)

__all__ = [
    "render",
    "render_heal",
    "render_probe",
    "write_heal_report",
    "write_probe_report",
    "write_report",
]
