"""Amounts → seconds: what one of each takes, as measured here or as assumed for a machine that is not here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from secateur.forecast.count import Amounts
from secateur.forecast.work import CHORES
from secateur.hf.anatomy import Anatomy
from secateur.methods.method import Reading

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
SHARED = 0.85  # of N times one device, where N judge: two local workers are to reach 1.7 of 2


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
    """A machine that is not here: `tflops` at its peak in the model's precision, `bandwidth` of its memory in GB/s."""
    flop, byte = 1 / (tflops * 1e12 * utilization), 1 / (bandwidth * 1e9)
    weights = itemsize * sum(own.num_parameters for own in anatomy.widths) / anatomy.num_blocks
    block = LAUNCH + weights * byte
    passes = {reading.what: reading.passes for reading in readings if reading.what not in CHORES}
    return Machine(
        OVERHEAD
        | {what: anatomy.num_blocks * count * block for what, count in passes.items()}
        | {f"{what} example": PER_EXAMPLE for what in passes}
        | {f"{what} part": PER_PART for what in passes}
        | {f"{what} flop": flop for what in (*passes, *CHORES)}
        | {f"{what} moment": NARROW * flop for what in passes}
        | {
            "block": block,
            "flop": flop,
            "logit": 2 * anatomy.d_model * flop + 12 * byte,
            "written": 2 * itemsize * byte,
            "mask flop": NARROW * flop,
            "svd flop": 1 / (SVD_TFLOPS * 1e12),
            "step": anatomy.num_blocks * block,
            "reload": 2 * itemsize * anatomy.num_parameters / DISK,
            **CONSTANT,
        },
        (
            f"a device of {tflops:g} TFLOP/s, of which matrix products reach {utilization:.0%}, and {bandwidth:g} GB/s",
            f"float32 {NARROW:g} times slower; {SVD_TFLOPS:g} TFLOP/s in exact decompositions",
            f"{LAUNCH * 1e3:g} ms to launch a block, {OVERHEAD['plan'] * 1e3:g} ms for each plan; "
            f"disks of {DISK / 1e9:g} GB/s; " + ", ".join(f"{name} {s:g} s" for name, s in CONSTANT.items()),
        ),
    )
