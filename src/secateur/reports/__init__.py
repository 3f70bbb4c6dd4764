"""Pages to look at, from a run's records. Knows no torch."""

from secateur.reports.page import render, write_report

__all__ = ["render", "write_report"]
