"""Options of a verb made from their descriptions: those of every method in one panel, those of each in its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from secateur.core.config import Named, options_of
from secateur.methods.registry import configs, either, method_options, methods
from secateur.options import Options

if TYPE_CHECKING:  # typer keeps its click to itself
    from typer._click import Context, HelpFormatter

Verb = Callable[..., None]
PANELS = {  # of a help page, with the names of their options; others come last
    "Options": ("task", "out", "goal", "method", "objective", "each", "dry_run", "overwrite", "seed"),
    "The task": (
        "test_task", "side", "limit", "split_seed", "allow_small", "skip_long", "seqlen", "shots", "chat", "join",
        "extract", "max_new_tokens",
    ),
    "The cut and its report": ("layers", "zeroed", "factorize", "report", "push", "save_recipe", "log"),
    "The model and the machine": (
        "revision", "gguf_file", "trust_remote_code", "dtype", "device", "device_map", "offload_folder", "max_memory",
        "max_tokens", "spectra", "ray", "workers", "cpus_per_worker", "gpus_per_worker",
    ),
}  # fmt: skip
AFTER = ("ray", "ledger", "overwrite", "out_folder", "as_json")  # which come last in a help page


def with_options(
    verb: Verb, only: Collection[str] | None = None, described: Iterable[Named] | None = None
) -> Verb:
    """Return `verb` with options in place of its `**options`.

    Args:
        only: Names of those that it has; None: all.
        described: The options; None: those of `prune`.
    """
    hints = get_type_hints(verb, include_extras=True)
    plain = [p for p in inspect.signature(verb).parameters.values() if p.kind is not p.VAR_KEYWORD]
    plain = [p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY) for p in plain]
    if described is None:
        described = [*options_of(Options), *(one for one, _ in method_options().values())]
    made = [
        _parameter(one)
        for one in described
        if not one.option.python_only and (only is None or one.name in only)
    ]
    before = next((n for n, p in enumerate(plain) if p.name in AFTER), len(plain))
    parameters = [*plain[:before], *made, *plain[before:]]
    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {p.name: p.annotation for p in parameters}
    return verb


class PanelCommand(TyperCommand):
    """A command whose help page has its options in sections: those of all methods, then those of each."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write arguments, the options of all methods, then those of each; one that several have is with each."""
        special = method_options()
        rows = {param.name: row for param in self.get_params(ctx) if (row := param.get_help_record(ctx))}
        arguments = {p.name for p in self.get_params(ctx) if p.param_type_name == "argument"}
        sections = {
            "Arguments": [row for name, row in rows.items() if name in arguments],
        }
        for title, names in PANELS.items():
            sections[title] = [rows[name] for name in names if name in rows]
        known = {*arguments, *special, *(name for names in PANELS.values() for name in names)}
        sections["Other options"] = [row for name, row in rows.items() if name not in known]
        for config in configs():
            listening = [method.name for method in methods().values() if method.Config is config]
            sections[f"Options of --method {either(listening)}"] = [
                (flags, text.replace(special[one.name][0].option.help, one.option.help))
                for one in options_of(config)
                if one.name in rows
                for flags, text in [rows[one.name]]
            ]
        for title, shown in sections.items():
            if shown:
                with formatter.section(title):
                    formatter.write_dl(shown)


def method_help() -> str:
    """Return what `--method` says of every method."""
    told = ". ".join(f"{method.name}: {method.summary}" for method in methods().values())
    return f"{told}. [default: that of --goal]"


GOAL_HELP = (
    "better (laser), smaller or faster (both: one budget for every kind of edit); --method narrows it. "
    "[default: smaller where a budget is given (--params, --kv-bytes, --max-loss), else better]"
)


def given(options: Mapping[str, object], **choice: str | None) -> dict[str, Any]:
    """Return the options as Python takes them, and the method or goal: those that were left out are not among them."""
    return {name: value for name, value in (choice | dict(options)).items() if value is not None}


def _parameter(one: Named) -> inspect.Parameter:
    """Return the parameter of an option on the command line."""
    described, default = one.option, one.default
    if described.repeated:
        annotation: object = list[str] | None
        default = None
    elif described.read is not None:
        annotation = str | None if default is None else str
        default = described.default_text
    else:
        annotation = one.kind
    flags = described.flags or one.flag
    info = typer.Option(flags, metavar=described.metavar, help=described.help)
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info]
    )
