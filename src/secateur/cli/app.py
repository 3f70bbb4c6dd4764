"""`secateur`: the command that holds the verbs, and what becomes of errors, of Ctrl-C and of warnings."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from secateur import __version__
from secateur.cli import apply as applying
from secateur.cli import chat as talking
from secateur.cli import cost as measuring
from secateur.cli import finetune as training
from secateur.cli import heal as healing
from secateur.cli import probe as reading
from secateur.cli import prune as making
from secateur.cli import train as pretraining
from secateur.cli.options import examples
from secateur.cli.terminal import INTERRUPTED, guard_streams, guarded_interrupts, one_line
from secateur.core.distributed import is_main
from secateur.errors import SecateurError, lacks_memory

if TYPE_CHECKING:
    from typer._click import Context

RESUMABLE = ("prune", "run", "demo", "apply", "map", "finetune", "heal", "train")


class Verbs(TyperGroup):
    """The group of verbs: a mistake of the user becomes one message and exit code 2; Ctrl-C says how to go on."""

    def invoke(self, ctx: Context) -> object:
        try:
            return super().invoke(ctx)
        except SecateurError as error:
            _complain(str(error))
            raise typer.Exit(error.exit_code) from error
        except (MemoryError, OSError, RuntimeError, ImportError) as error:
            if not lacks_memory(error):
                raise
            _complain(
                f"out of memory ({error or 'no more could be had'}). Give this process more, a smaller --batch-size or "
                "--seqlen, or leave weights on disk by --device-map auto --offload-folder DIR."
            )
            raise typer.Exit(SecateurError.exit_code) from error
        except KeyboardInterrupt as error:
            kept = " What is done is kept: the same command goes on from there."
            if is_main():
                typer.echo(err=True)
            _complain(f"interrupted.{kept if ctx.invoked_subcommand in RESUMABLE else ''}")
            raise typer.Exit(INTERRUPTED) from error


def _complain(message: str) -> None:
    """One line on stderr; of several processes that were launched together one speaks."""
    if is_main():
        typer.echo(f"secateur: {one_line(message)}", err=True)


class Lines(logging.Handler):
    """Write log messages, warnings among them, as lines on stderr, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"secateur: {one_line(record.getMessage())}", err=True)


app = typer.Typer(
    name="secateur",
    cls=Verbs,
    help="Find what a trained transformer does not need for a task, take it out, and prove what was gained and lost.",
    epilog=examples(
        "secateur demo -o demo-out",
        "secateur prune builtin:facts --task builtin:facts -o out",
        "secateur prune ./my-llama --task questions.jsonl -o my-llama-cut",
        "secateur COMMAND --help",
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"secateur {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _verb, _options in (
    *making.VERBS,
    *applying.VERBS,
    *reading.VERBS,
    *measuring.VERBS,
    *talking.VERBS,
    *training.VERBS,
    *healing.VERBS,
    *pretraining.VERBS,
):
    app.command(**_options)(_verb)


def main() -> None:
    """Entry point. Of several processes that were launched together one speaks; the others only work."""
    with guarded_interrupts():
        guard_streams()
        if is_main():
            logging.getLogger("secateur").addHandler(Lines(logging.INFO))
        else:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  until the process ends
            logging.getLogger("secateur").addHandler(Lines(logging.ERROR))
        app()
