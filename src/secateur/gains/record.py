"""Dense against cut as plain data: sizes, memory, speeds, and what stands beside them in words (docs/records.md)."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from secateur.core.progress import Progress
from secateur.errors import ModelError, UnknownName
from secateur.gains.cost import Cost, cost, random_tokens
from secateur.gains.timing import paired, speed
from secateur.gains.zeroed import zeroed
from secateur.hf.load import Loaded
from secateur.hf.source import INDEX, WEIGHTS

SHORT = 32  # tokens that tell the cache's bytes a token, where nothing is timed
MEMORY = ("peak_bytes", "peak_bytes_prefill", "peak_bytes_decode")
TIMED = ("prefill", "decode", "shape", "threads")


@dataclass(frozen=True)
class Length:
    """What is run: `batch` prompts of `prompt` tokens, then `new` tokens each; `repeats` times."""

    prompt: int = 512
    new: int = 32
    batch: int = 1
    repeats: int = 7

    def within(self, *contexts: int | None) -> Length:
        """Cut down to the shortest context, half of it at most for new tokens."""
        context = min((c for c in contexts if c is not None), default=self.prompt + self.new)
        if context < 2:
            raise ModelError(f"a context of {context} has no room for a prompt and a new token.")
        new = min(self.new, context // 2)
        return replace(self, new=new, prompt=min(self.prompt, context - new))


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
    shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
    return sum((folder / shard).stat().st_size for shard in set(shards))


def original_of(folder: str | Path) -> tuple[str, str | None]:
    """The model that a checkpoint of secateur says it was cut from, and its revision. Raises: `UnknownName`."""
    record = Path(folder) / "plan.json"
    if not record.exists():
        raise UnknownName(f"{folder} does not say what it was cut from (no plan.json): give --against MODEL.")
    try:
        command = json.loads(record.read_text(encoding="utf-8"))["provenance"]["command"]
        return command["model"], command["revision"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnknownName(f"{record} does not say what was cut: give --against MODEL.") from error


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
