"""secateur: cut what a transformer does not need for a task, and prove what was gained and lost."""

__version__ = "0.1.0"
