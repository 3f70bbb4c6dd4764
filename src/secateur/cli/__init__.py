"""The command line: the only place that prints. Imports nothing heavy before a command needs it."""


def main() -> None:
    """Entry point."""
    try:
        from secateur.cli.app import main as run
    except KeyboardInterrupt:  # amid the first imports
        raise SystemExit(130) from None
    run()
