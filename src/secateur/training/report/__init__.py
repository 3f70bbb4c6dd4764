"""The page of a healed cut, made from heal.json. Knows records, no model and no torch."""

from secateur.training.report.heal_figures import check_depth
from secateur.training.report.heal_page import render_heal, write_heal_report, write_report_of

__all__ = ["check_depth", "render_heal", "write_heal_report", "write_report_of"]
