"""The verb with a clock: `bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.options import AsJson, Commands, Device, Dtype, Quiet, Trust, examples, print_json

if TYPE_CHECKING:
    from secateur.core.records.verdict import BeforeAfter, GainsRecord, SpeedRecord

COLUMNS = ("", "dense", "cut", "ratio", "limit", "of limit")
PREFIXES = ("", "k", "M", "G", "T")


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
        bench,
        {
            "epilog": examples(
                "secateur bench out",
                "secateur bench out --against ./my-llama --prompt 1024 --batch 4 --threads 1",
            )
        },
    ),
)
