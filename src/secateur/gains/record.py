"""Dense against cut as plain data: sizes, memory, speeds, and what stands beside them in words (docs/records.md)."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from secateur.core.progress import Progress
from secateur.gains.cost import Cost, cost, random_tokens
from secateur.gains.length import Length
from secateur.gains.timing import paired, speed
from secateur.gains.zeroed import zeroed
from secateur.hf.load import Loaded
from secateur.hf.source import INDEX, WEIGHTS
from secateur.hf.weight_files import read_index

SHORT = 32  # tokens that tell the cache's bytes a token, where nothing is timed
MEMORY = ("peak_bytes", "peak_bytes_prefill", "peak_bytes_decode")
TIMED = ("prefill", "decode", "shape", "threads")


def gains(before: Loaded, after: Loaded, folder: Path | None = None) -> dict[str, Any]:
    """What is saved, without a clock: parameters, bytes on disk, cache bytes per token; speeds and memory are null.

    `folder` is where `after` lies, if it is not `after.source`. A model in memory only has no bytes on disk.
    """
    length = Length(prompt=SHORT, new=1).within(before.anatomy.context, after.anatomy.context)
    places = before.source, folder or after.source
    return _sizes(before, after, places, costs(before, after, length)) | dict.fromkeys(MEMORY + TIMED)


def costs(before: Loaded, after: Loaded, length: Length) -> tuple[Cost, Cost]:
    tokens = _tokens(before, after, length)
    return cost(before, tokens), cost(after, tokens)


def measure(before: Loaded, after: Loaded, asked: Length, *, progress: Progress) -> dict[str, Any]:
    """`gains` with speeds, measured here and now, and the limits that the shapes set."""
    length = asked.within(before.anatomy.context, after.anatomy.context)
    was, now = costs(before, after, length)
    tokens = _tokens(before, after, length).to(before.device)
    models = before.model, after.model
    times = paired(models, tokens, new=length.new, repeats=length.repeats, progress=progress)
    processed, made = length.batch * length.prompt, length.batch * length.new
    computed = was.prefill_flops / now.prefill_flops
    read = was.decode_bytes(length.new) / now.decode_bytes(length.new)
    found = gains(before, after) | {
        "prefill": speed(times.prefill, processed, computed),
        "decode": speed(times.decode, made, read),
        "kv_bytes_per_token": _pair(was.kv_bytes_per_token, now.kv_bytes_per_token),
        "shape": asdict(length),
        "threads": torch.get_num_threads(),
    }
    notes = [found["note"], *_length_notes(asked, length, (was, now))]
    return found | {"note": _joined(notes)}


def memory_record(before: Mapping[str, int | None], after: Mapping[str, int | None]) -> dict[str, Any]:
    """The keys about memory from what `peak_bytes` found; null where it could not be measured."""
    if None in (*before.values(), *after.values()):
        return dict.fromkeys(MEMORY)
    each = {f"peak_bytes_{phase}": _pair(before[phase], after[phase]) for phase in ("prefill", "decode")}
    return {"peak_bytes": _pair(max(before.values()), max(after.values()))} | each


def bytes_on_disk(folder: str | Path) -> int:
    """Of the safetensors files that hold the weights: one, or the shards its index names."""
    folder = Path(folder)
    if not (folder / INDEX).exists():
        return (folder / WEIGHTS).stat().st_size
    return sum((folder / shard).stat().st_size for shard in set(read_index(folder).values()))


def _sizes(
    before: Loaded, after: Loaded, places: tuple[str | Path | None, ...], cost: tuple[Cost, Cost]
) -> dict[str, Any]:
    silent, stored = zeroed(after), [None if place is None else bytes_on_disk(place) for place in places]
    return {
        "parameters": _pair(before.anatomy.num_parameters, after.anatomy.num_parameters),
        "bytes_on_disk": None if None in stored else _pair(*stored),
        "kv_bytes_per_token": _pair(*(one.kv_bytes_per_token for one in cost)),
        "zeroed": asdict(silent),
        "device": _device(after),
        "dtype": _dtype(after),
        "note": _joined([silent.note, *_dtype_notes(before, after)]),
    }


def _tokens(before: Loaded, after: Loaded, length: Length) -> torch.Tensor:
    vocabulary = min(before.anatomy.vocab_size, after.anatomy.vocab_size)
    return random_tokens(vocabulary, length.batch, length.prompt)


def _length_notes(asked: Length, length: Length, both: tuple[Cost, Cost]) -> Iterator[str]:
    if length != asked:
        yield (
            f"the context holds {length.prompt} + {length.new} tokens of the {asked.prompt} + {asked.new} asked for"
        )
    for name, one in zip(("dense", "cut"), both, strict=True):
        windows = [a.window for a in one.attended if a.window is not None and a.window <= length.prompt]
        if windows:
            yield (
                f"{name}: {len(windows)} of {len(one.attended)} blocks keep a sliding window of {max(windows)} tokens, "
                f"so cache bytes per token are those of a prompt of {length.prompt}"
            )


def _dtype_notes(before: Loaded, after: Loaded) -> Iterator[str]:
    if before.model.dtype != after.model.dtype:
        yield f"the dense model is {_dtype(before)}, the cut one {_dtype(after)}: --dtype compares like with like"


def _dtype(loaded: Loaded) -> str:
    return str(loaded.model.dtype).removeprefix("torch.")


def _device(loaded: Loaded) -> str:
    device = loaded.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} {name}"


def _pair(before: float | None, after: float | None) -> dict[str, float | None]:
    return {"before": before, "after": after}


def _joined(notes: list[str | None]) -> str | None:
    return "; ".join(note for note in notes if note) or None
