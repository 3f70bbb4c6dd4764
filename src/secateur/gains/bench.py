"""Two models by name, measured against each other on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.core.progress import Progress
from secateur.gains.length import Length
from secateur.gains.memory import peak_bytes
from secateur.gains.record import measure, memory_record
from secateur.gains.timing import using_threads
from secateur.hf.blank import blank_model
from secateur.hf.load import load_model
from secateur.hf.running import FEW, check_runs


def bench(
    dense: Mapping[str, Any],
    cut: Mapping[str, Any],
    length: Length,
    *,
    threads: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """`secateur.bench` of two models, each by the arguments of `load_model`. Raises as that, before either is read
    where their configs tell."""
    contexts = [blank_model(**words).anatomy.context for words in (dense, cut)]
    length.within(*contexts)
    with using_threads(threads) as count:
        before, after = (load_model(**words) for words in (dense, cut))
        for loaded in (before, after):
            check_runs(loaded, [range(min(FEW, loaded.anatomy.vocab_size))])
        found = measure(before, after, length, progress=progress)
        run = {name: found["shape"][name] for name in ("prompt", "new", "batch")} | {"threads": count}
        peaks = []
        for number, words in enumerate((dense, cut)):
            progress("peak memory", number, 2)
            peaks.append(peak_bytes(words, **run))
        progress("peak memory", 2, 2)
    return {"model": cut["name"], "against": dense["name"]} | found | memory_record(*peaks)
