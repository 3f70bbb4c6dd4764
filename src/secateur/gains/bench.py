"""Measure two models, given by name, against each other on this machine."""

from __future__ import annotations

from typing import Any

from secateur.core.machine import NamedModel
from secateur.core.progress import Progress
from secateur.gains.length import Length
from secateur.gains.memory import peak_bytes
from secateur.gains.record import measure, peaks
from secateur.gains.timing import using_threads
from secateur.hf.blank import blank_model
from secateur.hf.load import load_model
from secateur.hf.running import FEW, check_runs


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
    contexts = [blank_model(**words).anatomy.context for words in (dense, cut)]
    length.within(*contexts)
    with using_threads(threads) as count:
        before, after = (load_model(**words) for words in (dense, cut))
        for loaded in (before, after):
            check_runs(loaded, [range(min(FEW, loaded.anatomy.vocab_size))])
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
