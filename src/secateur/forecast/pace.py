"""The speed of this machine, from one short pass of the model and one decomposition."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from secateur.core.progress import silent
from secateur.forecast.count import Counted, decomposition
from secateur.forecast.machine import Machine, paced, svd_flops
from secateur.forecast.work import Judged, empty
from secateur.linalg.spectrum import spectrum
from secateur.methods.method import Reading
from secateur.session import Session

LOOK = 64  # examples of select that the pass runs on
TIMES = 2  # that each is measured; the faster counts
LARGEST = 1024  # rows and columns at most of what is decomposed


def measured_here(session: Session, counted: Counted, readings: Iterable[Reading]) -> Machine:
    """Return the rates of this machine: overheads as assumed, FLOPs as fast as a pass of the whole model shows."""
    examples = session.shuffled("select")[:LOOK]
    amounts = counted.judged(Judged("look", "select", 0, len(examples), (empty(),)))
    judge = session.judge(ledger=None, workers=None, progress=silent)
    seconds = min(_timed(lambda: judge([session.empty], examples, "look")) for _ in range(TIMES))
    anatomy, itemsize = session.loaded.anatomy, session.loaded.model.dtype.itemsize
    return paced(anatomy, itemsize, readings, amounts, seconds, _svd_flop(session))


def _svd_flop(session: Session) -> float:
    """Return the seconds of a FLOP in a decomposition; of the largest matrix, or a part of it."""
    matrix = max(session.loaded.anatomy.matrices.values(), key=lambda one: min(one.shape))
    whole = matrix.read(session.loaded.parameter(matrix.weight))[:LARGEST, :LARGEST]
    seconds = min(_timed(lambda: spectrum(whole)) for _ in range(TIMES))
    return seconds / svd_flops(decomposition((whole.shape[0], whole.shape[1])))


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
