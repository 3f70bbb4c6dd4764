"""The record of what a cut saves: sizes, memory and speeds of the dense model and of the cut one, with notes."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from secateur.core.progress import Progress
from secateur.core.records.verdict import BeforeAfter, GainsRecord, ShapeRecord
from secateur.gains.cost import Cost, cost, random_tokens
from secateur.gains.length import Length
from secateur.gains.timing import paired, speed
from secateur.gains.zeroed import zeroed, zeroed_note
from secateur.hf.load import Loaded
from secateur.hf.source import INDEX, WEIGHTS
from secateur.hf.weight_files import read_index

SHORT = 32  # tokens that tell the cache's bytes a token, where nothing is timed
MEMORY = ("peak_bytes", "peak_bytes_prefill", "peak_bytes_decode")


def gains(before: Loaded, after: Loaded, folder: Path | None = None) -> GainsRecord:
    """Return what the cut saves, without a clock: parameters, bytes on disk, cache bytes; speeds and memory are None.

    Args:
        folder: Where `after` lies, if that is not `after.source`. A model in memory only has no bytes on disk.
    """
    length = Length(prompt=SHORT, new=1).within(before.anatomy.context, after.anatomy.context)
    dense, cut = costs(before, after, length)
    places = before.source, folder or after.source
    stored = [bytes_on_disk(place) for place in places if place is not None]
    zero = zeroed(after)
    notes = [zeroed_note(zero), *_dtype_notes(before, after), *_gguf_notes(before)]
    return GainsRecord(
        parameters=BeforeAfter(before=before.anatomy.num_parameters, after=after.anatomy.num_parameters),
        bytes_on_disk=BeforeAfter(before=stored[0], after=stored[1]) if len(stored) == 2 else None,
        kv_bytes_per_token=BeforeAfter(before=dense.kv_bytes_per_token, after=cut.kv_bytes_per_token),
        zeroed=zero,
        peak_bytes=None,
        peak_bytes_prefill=None,
        peak_bytes_decode=None,
        prefill=None,
        decode=None,
        shape=None,
        threads=None,
        device=_device(after),
        dtype=_dtype(after),
        note=_joined(notes),
    )


def costs(before: Loaded, after: Loaded, length: Length) -> tuple[Cost, Cost]:
    """Return what the same prompts cost in both models."""
    tokens = _tokens(before, after, length)
    return cost(before, tokens), cost(after, tokens)


def measure(before: Loaded, after: Loaded, asked: Length, *, progress: Progress) -> GainsRecord:
    """Return `gains` with speeds, measured here and now, and the limits that the shapes set."""
    length = asked.within(before.anatomy.context, after.anatomy.context)
    dense, cut = costs(before, after, length)
    tokens = _tokens(before, after, length).to(before.device)
    models = before.model, after.model
    times = paired(models, tokens, new=length.new, repeats=length.repeats, progress=progress)
    computed = dense.prefill_flops / cut.prefill_flops
    read = dense.decode_bytes(length.new) / cut.decode_bytes(length.new)
    counted = gains(before, after)
    speeds = {
        "prefill": speed(times.prefill, length.batch * length.prompt, computed),
        "decode": speed(times.decode, length.batch * length.new, read),
        "kv_bytes_per_token": BeforeAfter(before=dense.kv_bytes_per_token, after=cut.kv_bytes_per_token),
        "shape": ShapeRecord(**asdict(length)),
        "threads": torch.get_num_threads(),
        "note": _joined([counted.note, *_length_notes(asked, length, (dense, cut))]),
    }
    return counted.model_copy(update=speeds)


def peaks(before: Mapping[str, int | None], after: Mapping[str, int | None]) -> dict[str, BeforeAfter | None]:
    """Return the keys about memory from what `peak_bytes` found; None where it could not be measured."""
    dense, cut = ([side["prefill"], side["decode"]] for side in (before, after))
    if None in (*dense, *cut):
        return dict.fromkeys(MEMORY)
    pairs = [(max(dense), max(cut)), *zip(dense, cut, strict=True)]
    return {name: BeforeAfter(before=was, after=now) for name, (was, now) in zip(MEMORY, pairs, strict=True)}


def bytes_on_disk(folder: str | Path) -> int:
    """Return the bytes of the safetensors files that hold the weights: one, or the shards that its index names."""
    folder = Path(folder)
    if not (folder / INDEX).exists():
        return (folder / WEIGHTS).stat().st_size
    return sum((folder / shard).stat().st_size for shard in set(read_index(folder).values()))


def _tokens(before: Loaded, after: Loaded, length: Length) -> torch.Tensor:
    vocabulary = min(before.anatomy.vocab_size, after.anatomy.vocab_size)
    return random_tokens(vocabulary, length.batch, length.prompt)


def _length_notes(asked: Length, length: Length, both: tuple[Cost, Cost]) -> Iterator[str]:
    if length != asked:
        yield (
            f"the context holds {length.prompt} + {length.new} tokens of the {asked.prompt} + {asked.new} asked for"
        )
    for name, counted in zip(("dense", "cut"), both, strict=True):
        windows = [a.window for a in counted.attended if a.window is not None and a.window <= length.prompt]
        if windows:
            yield (
                f"{name}: {len(windows)} of {len(counted.attended)} blocks keep a sliding window of {max(windows)} "
                f"tokens, so cache bytes per token are those of a prompt of {length.prompt}"
            )


def _dtype_notes(before: Loaded, after: Loaded) -> Iterator[str]:
    if before.model.dtype != after.model.dtype:
        yield f"the dense model is {_dtype(before)}, the cut one {_dtype(after)}: --dtype compares like with like"


def _gguf_notes(before: Loaded) -> Iterator[str]:
    if before.gguf is not None:
        yield f"the dense model is {before.gguf.words}; its bytes are counted as float32, as which it was read"


def _dtype(loaded: Loaded) -> str:
    return str(loaded.model.dtype).removeprefix("torch.")


def _device(loaded: Loaded) -> str:
    device = loaded.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} {name}"


def _joined(notes: list[str | None]) -> str | None:
    return "; ".join(note for note in notes if note) or None
