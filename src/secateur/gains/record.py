"""The record of what a cut saves: sizes, memory and speeds of the dense model and of the cut one, with notes.

`gains` only counts; `measure` takes the time too, and `bench` reads two models by name and measures memory as well.

What was masked and not cut is counted too: parts whose output weights are all zero, stored and computed all the same.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from secateur.core.machine import NamedModel
from secateur.core.progress import Progress
from secateur.core.records.verdict import BeforeAfter, GainsRecord, ShapeRecord, ZeroedRecord
from secateur.core.site import Site
from secateur.gains.cost import Cost, cost, random_tokens
from secateur.gains.length import Length
from secateur.gains.memory import peak_bytes
from secateur.gains.timing import PairedTimes, paired, speed
from secateur.hf.blank import blank_model
from secateur.hf.files import read_index
from secateur.hf.load import Loaded, load_model
from secateur.hf.matrices import Matrix
from secateur.hf.running import check_runs, few_tokens, using_threads
from secateur.hf.source import INDEX, WEIGHTS

SHORT = 32  # tokens that tell the cache's bytes a token, where nothing is timed
MEMORY = ("peak_bytes", "peak_bytes_prefill", "peak_bytes_decode")


def gains(before: Loaded, after: Loaded, folder: Path | None = None) -> GainsRecord:
    """Return what the cut saves, without a clock: parameters, bytes on disk, cache bytes; speeds and memory are None.

    Args:
        folder: Where `after` lies, if that is not `after.source`. A model in memory only has no bytes on disk.
    """
    cached = None
    if before.anatomy.writes_text and before.anatomy.details.caches:
        length = Length(prompt=SHORT, new=1).within(before.anatomy.context, after.anatomy.context)
        dense, cut = costs(before, after, length)
        cached = BeforeAfter(before=dense.kv_bytes_per_token, after=cut.kv_bytes_per_token)
    places = before.source, folder or after.source
    stored = [bytes_on_disk(place) for place in places if place is not None]
    zero, device = zeroed(after), after.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    notes = [zeroed_note(zero), *_form_notes(before, after)]
    return GainsRecord(
        parameters=BeforeAfter(before=before.anatomy.num_parameters, after=after.anatomy.num_parameters),
        bytes_on_disk=BeforeAfter(before=stored[0], after=stored[1]) if len(stored) == 2 else None,
        kv_bytes_per_token=cached,
        zeroed=zero,
        peak_bytes=None,
        peak_bytes_prefill=None,
        peak_bytes_decode=None,
        prefill=None,
        decode=None,
        shape=None,
        threads=None,
        device=f"{device.type} {name}",
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
    times = _in_turn(before, after, length, progress)
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


def time_kept(before: Loaded, after: Loaded, asked: Length, *, progress: Progress) -> float:
    """Return the time of a prompt with the tokens after it, as a share of the dense model's: the median of turns."""
    length = asked.within(before.anatomy.context, after.anatomy.context)
    times = _in_turn(before, after, length, progress)
    seconds = np.asarray(times.prefill) + np.asarray(times.decode)  # (turns, 2)
    return float(np.median(seconds[:, 1] / seconds[:, 0]))


def _in_turn(before: Loaded, after: Loaded, length: Length, progress: Progress) -> PairedTimes:
    """Return the times of both models on the same random tokens."""
    tokens = _tokens(before, after, length).to(before.device)
    models = before.model, after.model
    return paired(models, tokens, new=length.new, repeats=length.repeats, progress=progress)


def peaks(before: Mapping[str, int | None], after: Mapping[str, int | None]) -> dict[str, BeforeAfter | None]:
    """Return the keys about memory from what `peak_bytes` found; None where it could not be measured."""
    dense, cut = (_measured(side) for side in (before, after))
    if dense is None or cut is None:
        return dict.fromkeys(MEMORY)
    pairs = [(max(dense), max(cut)), *zip(dense, cut, strict=True)]
    return {name: BeforeAfter(before=was, after=now) for name, (was, now) in zip(MEMORY, pairs, strict=True)}


def _measured(peak: Mapping[str, int | None]) -> tuple[int, int] | None:
    prefill, decode = peak["prefill"], peak["decode"]
    return None if prefill is None or decode is None else (prefill, decode)


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


def _form_notes(before: Loaded, after: Loaded) -> Iterator[str]:
    if before.model.dtype != after.model.dtype:
        yield f"the dense model is {_dtype(before)}, the cut one {_dtype(after)}: --dtype compares like with like"
    if before.gguf is not None:
        yield f"the dense model is {before.gguf.words}; its bytes are counted as float32, as which it was read"


def _dtype(loaded: Loaded) -> str:
    return str(loaded.model.dtype).removeprefix("torch.")


def _joined(notes: list[str | None]) -> str | None:
    return "; ".join(note for note in notes if note) or None


# ---------------------------------------------------------------------------------------------------------------- zeros


def zeroed_note(counts: ZeroedRecord) -> str | None:
    """Return `12 heads are zero but stored: nothing saved`, or None where no part is zero."""
    parts = {"head": counts.heads, "feed-forward network": counts.ffns, "neuron": counts.neurons}
    words = [f"{count} {name}{'s' * (count > 1)}" for name, count in parts.items() if count]
    if not words:
        return None
    verb = "is" if sum(parts.values()) == 1 else "are"
    return f"{' and '.join(words)} {verb} zero but stored: nothing saved"


def zeroed(loaded: Loaded) -> ZeroedRecord:
    """Return how many parts of a model are there and do nothing. A factorized matrix counts as not zero."""
    unread = {site: _unread_inputs(loaded, matrix.module) for site, matrix in _outputs(loaded)}
    d_head = loaded.anatomy.d_head
    heads = [inputs.unflatten(0, (-1, d_head)).all(1) for site, inputs in unread.items() if site.part == "o"]
    neurons = [inputs for site, inputs in unread.items() if site.part == "down"]
    return ZeroedRecord(
        heads=sum(int(zero.sum()) for zero in heads),
        ffns=sum(bool(zero.all()) for zero in neurons),
        neurons=sum(int(zero.sum()) for zero in neurons if not zero.all()),
        weights=_zeros(loaded),
    )


def _outputs(loaded: Loaded) -> list[tuple[Site, Matrix]]:
    """Return the matrices that write into the residual stream, as far as they are stored as one matrix."""
    return [
        (site, matrix)
        for site, matrix in loaded.anatomy.matrices.items()
        if site.part in ("o", "down")
        and isinstance(loaded.model.get_submodule(matrix.module), nn.Linear | Conv1D)
    ]


def _unread_inputs(loaded: Loaded, path: str) -> Bool[Tensor, " inputs"]:
    """Return for each input of a linear layer whether all of its weights are zero."""
    weight = loaded.parameter(f"{path}.weight")
    linear = loaded.model.get_submodule(path)
    return ((weight.T if isinstance(linear, Conv1D) else weight) == 0).all(0)


def _zeros(loaded: Loaded) -> int:
    """Return the zeros in all matrices of two dimensions outside embeddings, whatever their pattern."""
    matrices = [
        f"{path}.{name}".lstrip(".")
        for path, module in loaded.model.named_modules()
        if not isinstance(module, nn.Embedding)
        for name, p in module.named_parameters(recurse=False)
        if p.dim() > 1
    ]
    weights = map(loaded.parameter, matrices)
    return sum(int(p.numel() - torch.count_nonzero(p)) for p in weights)


def bench(
    dense: NamedModel,
    cut: NamedModel,
    length: Length,
    *,
    threads: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Return what the cut saves, measured here: a `GainsRecord` as plain values.

    Args:
        dense: The arguments of `load_model` for the dense model.
        cut: The same for the cut one.
        length: The work that is timed.
        threads: Threads of torch; None: as many as now.

    Raises: as `load_model`, before either is read where their configs tell.
    """
    anatomies = [blank_model(**words).anatomy for words in (dense, cut)]
    for anatomy in anatomies:
        anatomy.check_cached("timing of prompts and of what is written after them")
    length.within(*(anatomy.context for anatomy in anatomies))
    with using_threads(threads) as count:
        before, after = (load_model(**words) for words in (dense, cut))
        for loaded in (before, after):
            check_runs(loaded, [few_tokens(loaded.anatomy)])
        measured = measure(before, after, length, progress=progress)
        shape, used = measured.shape, []
        assert shape is not None
        for number, words in enumerate((dense, cut)):
            progress("peak memory", number, 2)
            peak = peak_bytes(words, prompt=shape.prompt, new=shape.new, batch=shape.batch, threads=count)
            used.append(peak)
        progress("peak memory", 2, 2)
    names = {"model": cut["name"], "against": dense["name"]}
    return measured.model_copy(update=names | peaks(*used)).to_json()
