"""The verbs about time: `plan-cost` forecasts a `prune` and takes its options, `bench` measures what a cut saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.generated import GOAL_HELP, PanelCommand, given, method_help, with_options
from secateur.cli.options import (
    AsJson,
    Commands,
    Device,
    Dtype,
    Model,
    PruneTasks,
    Quiet,
    Trust,
    examples,
    print_json,
)
from secateur.core.progress import duration

if TYPE_CHECKING:
    from secateur.core.records.verdict import BeforeAfter, GainsRecord, SpeedRecord

SHOWN = {
    "plans": "plans",
    "evaluations": "evals",
    "gradients": "grads",
    "svds": "SVDs",
    "flops": "FLOPs",
}
NARROW = 110  # columns that the brackets need
COLUMNS = ("", "dense", "cut", "ratio", "limit", "of limit")
PREFIXES = ("", "k", "M", "G", "T")


def plan_cost(
    model: Model,
    task: PruneTasks,
    goal: Annotated[str | None, typer.Option(metavar="NAME", help=GOAL_HELP)] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help=method_help())] = None,
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
    print_forecast(
        model, task, machine | given(options, method=method, goal=goal), as_json=as_json, quiet=quiet
    )


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
    from secateur.core.baseline import baseline_text, floors_text, no_room, split_words
    from secateur.core.records.verdict import BaselineRecord
    from secateur.forecast.records import FloorsRecord
    from secateur.methods.options import GainConfig
    from secateur.methods.registry import method_named

    sizes = ", ".join(f"{count:,} in the {split_words(name)}" for name, count in found["examples"].items())
    title = f"{found['method']} on {found['model']} ({found['parameters']:,} parameters), {found['task']}: examples "
    title += sizes
    rows = [*found["stages"], found["total"]]
    shown = {"seconds": "time", **SHOWN}
    shown = {
        key: name for key, name in shown.items() if any(_between(row["counts"], key, str) for row in rows)
    }
    narrow = terminal().width < NARROW
    how = {key: duration if key == "seconds" else _short for key in shown}
    cells = [(row["stage"], *(_between(row["counts"], key, how[key]) for key in shown)) for row in rows]
    if narrow:
        cells = [tuple(cell.partition(" [")[0] for cell in row) for row in cells]
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
    if start:
        whole = start.model_copy(update={"n": found["examples"]["select"]})  # the search has all of it
        gains = issubclass(method_named(found["method"]).Config, GainConfig)
        for warning in filter(None, [start.warning, no_room(whole) if gains else None]):
            terminal().print(Text(f"· {warning}", style="bold red"))
    for said in found["assumptions"]:
        print(f"· {said}")


def _between(counts: Mapping[str, Mapping[str, float]], key: str, show: Callable[[float], str]) -> str:
    """`expected [least, most]`, or one number where they are one, or nothing."""
    least, expected, most = (counts[case].get(key) for case in ("least", "expected", "most"))
    if expected is None or not most:
        return ""
    shown = [show(value or 0.0) for value in (least, expected, most)]
    return shown[1] if len(set(shown)) == 1 else f"{shown[1]} [{shown[0]}, {shown[2]}]"


def _short(value: float) -> str:
    """Three digits and a power of 1,000: `1.57 M`."""
    power = min(7, max(0, len(f"{value:.0f}") - 1) // 3)
    return f"{value / 1000**power:.3g} {' kMGTPEZ'[power]}".strip()


def bench(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The cut model: a folder, or any MODEL.")],
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The dense one; left out: what OUT says it was cut from."),
    ] = None,
    prompt: Annotated[int, typer.Option(metavar="N", help="Tokens of each prompt.")] = 512,
    new: Annotated[int, typer.Option(metavar="N", help="Tokens decoded after it.")] = 32,
    batch: Annotated[int, typer.Option(metavar="N", help="Prompts at once.")] = 1,
    repeats: Annotated[int, typer.Option(metavar="N", help="Times each is measured, turn by turn.")] = 7,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads of torch; left out: its own choice.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of --against on the hub.")
    ] = None,
    gguf_file: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which .gguf file of --against.")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure what a cut saves, dense against cut: sizes, memory, and speed beside the limit its shapes set.

    Both models run turn by turn on this machine. Medians, ± half the range between the quartiles; in brackets the
    quartiles of the ratio.
    """
    from secateur.cli.progress import bars

    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        from secateur import api

        found = api.bench(
            out, against, prompt=prompt, new=new, batch=batch, repeats=repeats, threads=threads,
            revision=revision, gguf_file=gguf_file, dtype=dtype, device=device, trust_remote_code=trust_remote_code,
            progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(found)
    else:
        from secateur.core.records.verdict import GainsRecord

        print_gains(GainsRecord.model_validate(found))


def print_gains(gains: GainsRecord) -> None:
    """Print dense, cut, how many times that is, and for speeds how near to the limit."""
    from secateur.cli.tables import print_rows

    shape, threads = gains.shape, gains.threads
    assert shape is not None
    assert threads is not None
    title = (
        f"{gains.model} against {gains.against}: prompts of {shape.prompt}, {shape.new} new tokens, "
        f"batch {shape.batch}, {shape.repeats} repeats, {gains.dtype}, {gains.device}, "
        f"{threads} thread{'s' * (threads > 1)}"
    )
    sizes = (
        ("parameters", "", gains.parameters),
        ("on disk", "B", gains.bytes_on_disk),
        ("cache, per token", "B", gains.kv_bytes_per_token),
        ("peak of prefill", "B", gains.peak_bytes_prefill),
        ("peak of decode", "B", gains.peak_bytes_decode),
    )
    rows = [_size_row(name, unit, pair) for name, unit, pair in sizes]
    rows += [
        _speed_row(f"{name}, tokens/s", speed)
        for name, speed in (("prefill", gains.prefill), ("decode", gains.decode))
        if speed is not None
    ]
    print_rows(COLUMNS, rows, title=title, whole=COLUMNS)
    if gains.note:
        print(gains.note)


def _size_row(name: str, unit: str, pair: BeforeAfter | None) -> tuple[str, ...]:
    if pair is None:
        return name, "", "", "not measured", "", ""
    ratio = _times(pair.after / pair.before) if pair.before else ""
    return name, _size(pair.before, unit), _size(pair.after, unit), ratio, "", ""


def _speed_row(name: str, speed: SpeedRecord) -> tuple[str, ...]:
    sides = [
        f"{median:,.0f} {_spread(median, quartiles)}"
        for median, quartiles in ((speed.before, speed.before_iqr), (speed.after, speed.after_iqr))
    ]
    low, high = speed.speedup_iqr
    ratio = f"{_times(speed.speedup)} [{low:.2f}, {high:.2f}]"
    return name, *sides, ratio, _times(speed.limit), f"{100 * speed.of_limit:.0f} %"


def _size(value: float, unit: str) -> str:
    """Return `1.57 MB`, in powers of 1,000."""
    power = next((p for p in range(len(PREFIXES)) if value < 1000 ** (p + 1)), len(PREFIXES) - 1)
    return f"{value / 1000**power:,.{2 if power else 0}f} {PREFIXES[power]}{unit}".strip()


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×"


def _spread(median: float, quartiles: list[float]) -> str:
    """Return half of the range between the quartiles, as a share of the median; nothing of one measurement."""
    if quartiles[0] == quartiles[1]:
        return ""
    return f"±{50 * (quartiles[1] - quartiles[0]) / median:.0f}%"


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
    (
        bench,
        {
            "epilog": examples(
                "secateur bench out",
                "secateur bench out --against ./my-llama --prompt 1024 --batch 4 --threads 1",
            )
        },
    ),
)
