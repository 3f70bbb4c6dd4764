"""Amounts → seconds: what one of each takes, as assumed for a machine that is not here, or as one short pass of the
model and one decomposition show here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from secateur.core.progress import silent
from secateur.forecast.count import Amounts, Counted, decomposition
from secateur.forecast.dry_run import CHORES, Judged, empty
from secateur.hf.anatomy import Anatomy
from secateur.linalg.spectrum import spectrum
from secateur.methods.method import Reading
from secateur.session import Session

LOOK = 64  # examples of select that the pass runs on
TIMES = 2  # that each is measured; the faster counts
LARGEST = 1024  # rows and columns at most of what is decomposed
SVD = "svd "  # decompositions are named by their shape: `svd 4096x1024`
NARROW = (
    15.0  # times slower in float32, as for spectra and maps: an H100 has 67 TFLOP/s there, 989 in bfloat16
)
SVD_TFLOPS = 0.5  # of a GPU in a decomposition, which is bound by memory and by its iterations; unmeasured
LAUNCH = 3e-4  # s to launch one block from Python: some 20 kernels
DISK = 1e9  # bytes/s of weights and spectra read or written
OVERHEAD = {  # s each, in Python; measured on one core of a server, builtin:facts
    "plan": 1e-3,
    "edit": 5e-4,
    "example": 2e-5,
    "call": 2e-3,
    "packed": 3e-6,
    "behavior": 0.0,
    "spectrum byte": 1 / DISK,
}
PER_EXAMPLE, PER_PART = 1e-4, 1e-2  # s of a reading, in Python
CONSTANT = {"report": 1.0, "statistics": 0.5, "sides read": 1.0}  # s each time, on whatever machine
BANDWIDTH = 10.0  # GB/s of this machine's memory, as one core reads it
SHARE_OF_FLOPS = 0.2  # of a pass at least, where assumed overheads alone would take longer than it took
SHARED = 0.85  # of N times one device, where N judge: two local workers are to reach 1.7 of 2


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


def svd_flops(shape: str) -> float:
    """6mn² + 20n³ for U, σ and V of an m × n matrix, m ≥ n (Golub and Van Loan, Matrix Computations, 8.6)."""
    m, n = map(int, shape.removeprefix(SVD).split("x"))
    return 6.0 * m * n * n + 20.0 * n**3


@dataclass(frozen=True)
class Machine:
    """Seconds for one of each amount, and in words where they come from. Decompositions of shapes that are not among
    them take as long for each FLOP as those that are."""

    seconds: Mapping[str, float]
    said: tuple[str, ...]

    def time(self, amounts: Amounts) -> float:
        return sum(self.each(name) * amount for name, amount in amounts.items() if amount)

    def each(self, name: str) -> float:
        if name.startswith(SVD) and name not in self.seconds:
            return self.seconds["svd flop"] * svd_flops(name)
        return self.seconds[name]


def stated(
    anatomy: Anatomy,
    itemsize: int,
    tflops: float,
    bandwidth: float,
    utilization: float,
    readings: Iterable[Reading],
) -> Machine:
    """Return a machine that is not here.

    Args:
        itemsize: Bytes of a number of the model.
        tflops: Its peak in the model's precision.
        bandwidth: Of its memory, GB/s.
    """
    speed = Speed(
        1 / (tflops * 1e12 * utilization), 1 / (bandwidth * 1e9), LAUNCH, NARROW, 1 / (SVD_TFLOPS * 1e12)
    )
    return Machine(
        _rates(anatomy, itemsize, readings, speed),
        (
            f"a device of {tflops:g} TFLOP/s, of which matrix products reach {utilization:.0%}, and {bandwidth:g} GB/s",
            f"float32 {NARROW:g} times slower; {SVD_TFLOPS:g} TFLOP/s in exact decompositions",
            f"{LAUNCH * 1e3:g} ms to launch a block, {OVERHEAD['plan'] * 1e3:g} ms for each plan; "
            f"disks of {DISK / 1e9:g} GB/s; " + ", ".join(f"{name} {s:g} s" for name, s in CONSTANT.items()),
        ),
    )


def paced(
    anatomy: Anatomy,
    itemsize: int,
    readings: Iterable[Reading],
    look: Amounts,
    seconds: float,
    svd_flop: float,
) -> Machine:
    """Return this machine: memory and overheads as assumed, FLOPs as fast as the rest of a pass of the model was.

    Args:
        look: Amounts of that pass.
        seconds: What it took.
        svd_flop: Seconds of a FLOP in a decomposition.
    """
    readings = list(readings)
    byte = 1 / (BANDWIDTH * 1e9)
    idle = Machine(_rates(anatomy, itemsize, readings, Speed(0.0, byte, LAUNCH, 1.0, svd_flop)), ())
    flops = look["flop"] + 2 * anatomy.d_model * look["logit"]
    flop = max(seconds - idle.time(look), SHARE_OF_FLOPS * seconds) / flops
    speed = Speed(flop, byte, LAUNCH, 1.0, svd_flop)
    said = f"measured here: {1e-9 / flop:.0f} GFLOP/s in a pass of the model, {1e-9 / svd_flop:.0f} in decompositions"
    return Machine(_rates(anatomy, itemsize, readings, speed), (said,))


@dataclass(frozen=True)
class Speed:
    """Seconds for each of these.

    Attributes:
        flop: In matrix products of the model.
        byte: Of memory.
        launch: To launch one block from Python.
        narrow: Times slower in float32, as for spectra and maps.
        svd_flop: In exact decompositions.
    """

    flop: float
    byte: float
    launch: float
    narrow: float
    svd_flop: float


def _rates(anatomy: Anatomy, itemsize: int, readings: Iterable[Reading], speed: Speed) -> dict[str, float]:
    """Return the seconds for one of each amount."""
    weights = itemsize * sum(own.num_parameters for own in anatomy.widths) / anatomy.num_blocks
    block = speed.launch + weights * speed.byte
    passes = {reading.what: reading.passes for reading in readings if reading.what not in CHORES}
    return (
        OVERHEAD
        | {what: anatomy.num_blocks * count * block for what, count in passes.items()}
        | {f"{what} example": PER_EXAMPLE for what in passes}
        | {f"{what} part": PER_PART for what in passes}
        | {f"{what} flop": speed.flop for what in (*passes, *CHORES)}
        | {f"{what} moment": speed.narrow * speed.flop for what in passes}
        | {
            "block": block,
            "flop": speed.flop,
            "logit": 2 * anatomy.d_model * speed.flop + 12 * speed.byte,
            "written": 2 * itemsize * speed.byte,
            "mask flop": speed.narrow * speed.flop,
            "svd flop": speed.svd_flop,
            "step": anatomy.num_blocks * block,
            "reload": 2 * itemsize * anatomy.num_parameters / DISK,
            **CONSTANT,
        }
    )
