"""The verb that looks ahead: `plan-cost`. It takes the options of `prune`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from secateur.cli.generated import PanelCommand, given, method_help, with_options
from secateur.cli.options import AsJson, Commands, Model, PruneTasks, Quiet, examples, print_json

SHOWN = {
    "plans": "plans",
    "evaluations": "evals",
    "gradients": "grads",
    "svds": "SVDs",
    "flops": "FLOPs",
}
NARROW = 110  # columns that the brackets need
UNITS = ((86400 * 3, 86400, "days"), (5400, 3600, "h"), (100, 60, "min"), (0, 1, "s"))


def plan_cost(
    model: Model,
    task: PruneTasks,
    method: Annotated[str, typer.Option(metavar="NAME", help=method_help())] = "laser",
    calibrate: Annotated[
        bool,
        typer.Option(
            help="Measure this machine for some seconds; without, a config.json is enough, and there are no seconds."
        ),
    ] = True,
    devices: Annotated[
        int,
        typer.Option(metavar="N", help="Devices that judge side by side, each with its own model."),
    ] = 1,
    tflops: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Peak of a device that is not here, in TFLOP/s at the model's precision."
        ),
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option(metavar="X", help="Its memory's bandwidth in GB/s; with --tflops.")
    ] = None,
    utilization: Annotated[
        float, typer.Option(metavar="SHARE", help="Of that peak, in matrix products: an assumption.")
    ] = 0.4,
    memory: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="A device's memory in GB: larger models take several. [default: enough]"
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **options: object,
) -> None:
    """Forecast what `prune` with these options will take, before it starts.

    Plans, evaluations, FLOPs, bytes and time, stage by stage: expected, and in brackets the least and the most that a
    search can come to.
    """
    machine = {"calibrate": calibrate, "devices": devices, "tflops": tflops, "bandwidth": bandwidth}
    machine |= {"utilization": utilization, "memory": memory}
    print_forecast(model, task, machine | given(method, options), as_json=as_json, quiet=quiet)


with_options(plan_cost)


def print_forecast(
    model: str, tasks: list[str], options: dict[str, Any], *, as_json: bool, quiet: bool
) -> None:
    """Print what a `prune` with these options would take."""
    from secateur.cli.progress import bars

    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        from secateur import api

        found = api.plan_cost(model, tasks, progress=progress, **options)
    if as_json:
        print_json(found)
    else:
        print_cost(found)


def print_cost(found: Mapping[str, Any]) -> None:
    """The stages, what is held in memory, and what all that rests on."""
    from rich.text import Text

    from secateur.cli.tables import print_rows
    from secateur.cli.terminal import terminal
    from secateur.core.baseline import baseline_text, floors_text
    from secateur.core.records.verdict import BaselineRecord
    from secateur.forecast.records import FloorsRecord

    sizes = ", ".join(f"{count} {name}" for name, count in found["examples"].items())
    title = f"{found['method']} on {found['model']} ({found['parameters']:,} parameters), {found['task']}: {sizes}"
    rows = [*found["stages"], found["total"]]
    shown = {"seconds": "time", **SHOWN}
    shown = {
        key: name for key, name in shown.items() if any(_between(row["counts"], key, str) for row in rows)
    }
    narrow = terminal().width < NARROW
    cells = [(row["stage"], *(_cell(row["counts"], key, narrow) for key in shown)) for row in rows]
    print_rows(("stage", *shown.values()), cells, title=title, whole=("stage", "time"))
    if narrow:
        print(f"expected numbers; the least and the most in {NARROW} columns, or with --json")
    held = {name: f"{name.replace('_', ' ')} {_short(count)}B" for name, count in found["bytes"].items()}
    every = held.pop("spectra")
    print(f"held at once: {', '.join(held.values())} (all {every})")
    start = found["baseline"] and BaselineRecord.model_validate(found["baseline"])
    if start:
        print(f"· {baseline_text(start)}")
    elif words := floors_text(FloorsRecord.model_validate(found["floors"])):
        print(f"· without a model: {words}")
    if start and start.warning:
        terminal().print(Text(f"· {start.warning}", style="bold red"))
    for said in found["assumptions"]:
        print(f"· {said}")


def _cell(counts: Mapping[str, Mapping[str, float]], key: str, narrow: bool) -> str:
    shown = _between(counts, key, _time if key == "seconds" else _short)
    return shown.partition(" [")[0] if narrow else shown


def _between(counts: Mapping[str, Mapping[str, float]], key: str, show: Callable[[float], str]) -> str:
    """`expected [least, most]`, or one number where they are one, or nothing."""
    least, expected, most = (counts[luck].get(key) for luck in ("least", "expected", "most"))
    if expected is None or not most:
        return ""
    shown = [show(value or 0.0) for value in (least, expected, most)]
    return shown[1] if len(set(shown)) == 1 else f"{shown[1]} [{shown[0]}, {shown[2]}]"


def _short(value: float) -> str:
    """Three digits and a power of 1,000: `1.57 M`."""
    power = min(7, max(0, len(f"{value:.0f}") - 1) // 3)
    return f"{value / 1000**power:.3g} {' kMGTPEZ'[power]}".strip()


def _time(seconds: float) -> str:
    _, scale, unit = next(each for each in UNITS if seconds >= each[0])
    return f"{seconds / scale:.3g} {unit}"


VERBS: Commands = (
    (
        plan_cost,
        {
            "name": "plan-cost",
            "cls": PanelCommand,
            "epilog": examples(
                "secateur plan-cost builtin:facts --task builtin:facts",
                "secateur plan-cost ./llama-70b --task q.jsonl --no-calibrate",
                "secateur plan-cost ./llama-70b --task q.jsonl --devices 8 --tflops 989 --bandwidth 3350 --memory 80",
            ),
        },
    ),
)
