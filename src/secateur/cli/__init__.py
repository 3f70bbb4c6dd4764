"""The command line: the only place that prints. Imports nothing heavy before a command needs it."""

from secateur.cli.app import main

__all__ = ["main"]
