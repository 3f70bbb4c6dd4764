"""The verb with a clock: `bench`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from secateur.cli.options import AsJson, Device, Dtype, Quiet, Trust, examples, print_json

SIZES = {  # key → name, unit
    "parameters": ("parameters", ""),
    "bytes_on_disk": ("on disk", "B"),
    "kv_bytes_per_token": ("cache, per token", "B"),
    "peak_bytes_prefill": ("peak of prefill", "B"),
    "peak_bytes_decode": ("peak of decode", "B"),
}
SPEEDS = {"prefill": "prefill, tokens/s", "decode": "decode, tokens/s"}
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
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What a cut saves, dense against cut: sizes, memory, and speed beside the limit its shapes set.

    Both models run turn by turn on this machine. Medians, ± half the range between the quartiles; in brackets the
    quartiles of the ratio.
    """
    from secateur.cli.progress import bars

    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        from secateur import api

        found = api.bench(
            out, against, prompt=prompt, new=new, batch=batch, repeats=repeats, threads=threads,
            revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code,
            progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(found)
    else:
        print_gains(found)


def print_gains(found: Mapping[str, Any]) -> None:
    """Dense, cut, how many times that is, and for speeds how near to the limit."""
    from secateur.cli.tables import print_rows

    shape = found["shape"]
    title = (
        f"{found['model']} against {found['against']}: prompts of {shape['prompt']}, {shape['new']} new tokens, "
        f"batch {shape['batch']}, {shape['repeats']} repeats, {found['dtype']}, {found['device']}, "
        f"{found['threads']} thread{'s' * (found['threads'] > 1)}"
    )
    print_rows(COLUMNS, [*_size_rows(found), *_speed_rows(found)], title=title, whole=COLUMNS)
    if found["note"]:
        print(found["note"])


def _size_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, (name, unit) in SIZES.items():
        if found[key] is None:
            yield name, "", "", "not measured", "", ""
            continue
        before, after = found[key]["before"], found[key]["after"]
        ratio = _times(after / before) if before else ""
        yield name, _size(before, unit), _size(after, unit), ratio, "", ""


def _speed_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, name in SPEEDS.items():
        one = found[key]
        sides = [f"{one[side]:,.0f} {_spread(one[side], one[f'{side}_iqr'])}" for side in ("before", "after")]
        low, high = one["speedup_iqr"]
        ratio = f"{_times(one['speedup'])} [{low:.2f}, {high:.2f}]"
        yield name, *sides, ratio, _times(one["limit"]), f"{100 * one['of_limit']:.0f} %"


def _size(value: float, unit: str) -> str:
    """`1.57 MB`, in powers of 1,000."""
    power = next((p for p in range(len(PREFIXES)) if value < 1000 ** (p + 1)), len(PREFIXES) - 1)
    return f"{value / 1000**power:,.{2 if power else 0}f} {PREFIXES[power]}{unit}".strip()


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×"


def _spread(median: float, quartiles: list[float]) -> str:
    """Half of the range between the quartiles, as a share of the median; nothing of one measurement."""
    if quartiles[0] == quartiles[1]:
        return ""
    return f"±{50 * (quartiles[1] - quartiles[0]) / median:.0f}%"


VERBS: tuple[tuple[Any, dict[str, Any]], ...] = (
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
