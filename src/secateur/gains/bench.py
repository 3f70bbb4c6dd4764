"""`secateur.bench`: two models by name, measured against each other on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.core.progress import Progress, silent
from secateur.errors import UnknownName
from secateur.gains.memory import peak_bytes
from secateur.gains.record import Length, measure, memory_record, original_of
from secateur.gains.timing import using_threads
from secateur.hf.load import load_model


def bench(
    out: str | Path,
    against: str | Path | None = None,
    *,
    prompt: int = 512,
    new: int = 32,
    batch: int = 1,
    repeats: int = 7,
    threads: int | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """What a cut model saves against the dense one, measured now, on this machine: sizes, memory, prefill, decode.

    `against` is the dense model; None: the one that `out` says it was cut from. `revision` is that model's. `threads`
    are torch's; None: as they are. The keys: docs/records.md, Bench. Raises: `UnknownName`, `ModelError`.
    """
    if min(prompt, new, batch, repeats, threads or 1) < 1:
        raise UnknownName("prompt, new, batch, repeats and threads are numbers from 1.")
    if against is None:
        against, found = original_of(out)
        revision = revision or found
    how = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    words = ({"name": str(against), "revision": revision} | how, {"name": str(out), "revision": None} | how)
    with using_threads(threads) as count:
        before, after = (load_model(**word) for word in words)
        found = measure(before, after, Length(prompt, new, batch, repeats), progress=progress)
        run = {name: found["shape"][name] for name in ("prompt", "new", "batch")} | {"threads": count}
        peaks = []
        for number, word in enumerate(words):
            progress("peak memory", number, len(words))
            peaks.append(peak_bytes(word, **run))
        progress("peak memory", len(words), len(words))
    return {"model": str(out), "against": str(against)} | found | memory_record(*peaks)
