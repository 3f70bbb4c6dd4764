"""Forecast the cost of a prune before it starts, as plain data (docs/scale.md).

Amounts become seconds by what one of each takes: as stated for a machine that is not here, or as one short pass of the
model and one decomposition show here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from secateur.core.progress import Progress, silent
from secateur.evaluation.baseline import floors
from secateur.evaluation.batching import Packing
from secateur.evaluation.measurement import SideTask
from secateur.evaluation.workers import Limits, spectra_bytes
from secateur.forecast.count import Amounts, Counted, decomposition
from secateur.forecast.dry_run import CHORES, Judged, Read, SideWork, Work, dry_run, empty, map_work, proof
from secateur.forecast.fleet import DeviceFleet
from secateur.forecast.load import CACHE_BYTES, Loads, places_of
from secateur.forecast.records import FloorsRecord
from secateur.hf.anatomy import Anatomy
from secateur.hf.blank import Ruler
from secateur.linalg.spectrum import spectrum, spectrum_bytes
from secateur.methods.forecasting import CASES, ReadingCost
from secateur.options import Options
from secateur.pipeline import baseline_of, check
from secateur.session import Session, early_session, open_session
from secateur.side_tasks import side_effects

LOOK = 64  # examples of select that the pass runs on
BRIEF = 1.0  # s; what took less is measured again, and the faster counts
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


def plan_cost(
    options: Options, fleet: DeviceFleet, *, calibrate: bool = True, progress: Progress = silent
) -> dict[str, Any]:
    """`secateur.plan_cost` of what was looked at already."""
    started = time.perf_counter()
    if blank := fleet.elsewhere or not calibrate:
        session = early_session(options, ruler=True)
        check(session)
    else:
        session = open_session(options, None, progress, check)
    loading = time.perf_counter() - started
    found = forecast(session, fleet, calibrate=not blank, loading=loading, progress=progress)
    start = None if blank else baseline_of(session, session.shuffled("select")[:LOOK]).to_json()
    return found | {"floors": FloorsRecord(**floors(session.task)).to_json(), "baseline": start}


def forecast(
    session: Session,
    fleet: DeviceFleet,
    *,
    calibrate: bool,
    loading: float = 0.0,
    progress: Progress = silent,
    took: float | None = None,
) -> dict[str, Any]:
    """Return the record of a session whose method has been checked; `took` is as for `measured_here`."""
    watched = side_effects(session)
    anatomy, itemsize = session.loaded.anatomy, session.loaded.model.dtype.itemsize
    places = {_place(number): session.on(side.task) for number, side in enumerate(watched)}
    loads = Loads(places_of(session, places), _packing(session, calibrate), anatomy.d_model * itemsize)
    weights = anatomy.num_parameters * itemsize
    room = spectra_bytes(weights)
    works = {case: list(_works(session, watched, case)) for case in CASES}
    machine, stored = None, session.options.spectra is not None
    if fleet.tflops is not None and fleet.bandwidth is not None:
        machine = stated(
            anatomy, itemsize, fleet.tflops, fleet.bandwidth, fleet.utilization, _readings(works["most"])
        )
    elif calibrate:
        progress("look", 0, 1)
        machine = measured_here(
            session, Counted(anatomy, loads, room, stored), _readings(works["most"]), took
        )
    workers = fleet.workers(weights)
    each = {
        case: _stages(own, Counted(anatomy, loads, room, stored), machine, workers)
        for case, own in works.items()
    }
    names = list(dict.fromkeys(name for stages in each.values() for name in stages))
    each = _in_order(each, names)
    load = _load_seconds(loading, machine, fleet)
    stages = [_row("load", {case: {"seconds": load} for case in CASES})]
    stages += [_row(name, {case: each[case].get(name, {}) for case in CASES}) for name in names]
    return {
        "model": session.options.model,
        "task": session.task.name,
        "method": session.options.method,
        "parameters": anatomy.num_parameters,
        "examples": {name: len(session.task.split(name)) for name in ("probe", "select", "test")},
        "tokens": loads.of("select", 0, len(session.task.split("select"))).tokens,
        "devices": fleet.devices,
        "workers": workers,
        "stages": stages,
        "total": _row("all", {case: _total(row["counts"][case] for row in stages) for case in CASES}),
        "bytes": _bytes(session, loads, room),
        "assumptions": _said(session, fleet, machine, workers),
    }


def expected_seconds(session: Session, took: float | None = None) -> dict[str, float]:
    """Return the seconds that are expected of each stage of a run that begins now, in their order.

    Args:
        took: As for `measured_here`.
    """
    found = forecast(session, DeviceFleet(), calibrate=True, took=took)
    seconds = {row["stage"]: row["counts"]["expected"].get("seconds", 0.0) for row in found["stages"]}
    seconds["verify"] += seconds.pop("sides", 0.0)  # measured as one
    return {
        stage: seconds[stage]
        for stage in sorted(seconds, key=lambda stage: stage == "verify")
        if stage != "load"
    }


def map_seconds(session: Session, kinds: Sequence[str], split: str, checks: int) -> dict[str, float]:
    """Return the seconds that are expected of each stage of a map that begins now, at the pace of a pass here.

    Args:
        kinds: Names in `MAPPED`.
        split: The split that is read.
        checks: Components of each kind that are taken out.
    """
    anatomy, itemsize = session.loaded.anatomy, session.loaded.model.dtype.itemsize
    works = map_work(session, kinds, split, checks)
    loads = Loads(places_of(session, {}), session.judge().packing, anatomy.d_model * itemsize)
    room, stored = spectra_bytes(anatomy.num_parameters * itemsize), session.options.spectra is not None
    machine = measured_here(session, Counted(anatomy, loads, room, stored), _readings(works))
    stages = _stages(works, Counted(anatomy, loads, room, stored), machine, 1)
    return {stage: sums.get("seconds", 0.0) for stage, sums in stages.items()}


def _readings(works: Sequence[Work]) -> list[ReadingCost]:
    return [work.reading for work in works if isinstance(work, Read)]


def _works(session: Session, watched: Sequence[SideTask], case: str) -> list[Work]:
    names = {side.task.hash: _place(number) for number, side in enumerate(watched)}
    sides = [
        SideWork(_place(number), len(side.task.examples), side.continuations)
        for number, side in enumerate(watched)
    ]
    return [*dry_run(session, case, names), *proof(session, sides)]


def _place(number: int) -> str:
    """Of a side: not by its own name, which may be that of another, or of a split."""
    return f"side {number}"


def _packing(session: Session, here: bool) -> Packing:
    """The evaluator's own, or for a machine that is not here what it is on an accelerator."""
    if here:
        return session.judge().packing
    anatomy, itemsize = session.loaded.anatomy, session.loaded.model.dtype.itemsize
    limits = Limits(max_tokens=session.options.max_tokens)
    weights = anatomy.num_parameters * itemsize
    return limits.packing(anatomy, on_cpu=False, model_bytes=weights)


# -------------------------------------------------------------------------------------------------------------- stages


def _stages(
    works: Sequence[Work], counted: Counted, machine: Machine | None, workers: int
) -> dict[str, dict[str, float]]:
    """Sums by stage. What is judged is shared among workers; what is read, written and decided is not."""
    found: dict[str, dict[str, float]] = {}
    for work in works:
        amounts = counted(work)
        own = found.setdefault(work.stage, {})
        _add_(own, _shown(work, amounts))
        if machine is not None:
            shared = 1.0 if workers == 1 or not isinstance(work, Judged) else 1 / (SHARED * workers)
            _add_(own, {"seconds": shared * machine.time(amounts)})
    return found


def _add_(sums: dict[str, float], amounts: Amounts) -> None:
    """Add each amount to the sum of its name."""
    for name, amount in amounts.items():
        sums[name] = sums.get(name, 0) + amount


def _shown(work: Work, amounts: Amounts) -> dict[str, float]:
    """Return the counts that the table shows of one work."""
    plans: float = 0
    evaluations: float = 0
    gradients: float = 0
    if isinstance(work, Judged):
        plans = sum(group.count for group in work.plans) if work.first == 0 else 0
        evaluations = work.evaluations
    if isinstance(work, Read):
        gradients = amounts.get(f"{work.what} example", 0)
    return {
        "plans": plans,
        "evaluations": evaluations,
        "flops": sum(amount for name, amount in amounts.items() if name.endswith("flop")),
        "svds": sum(amount for name, amount in amounts.items() if name.startswith(SVD)),
        "gradients": gradients,
    }


def _in_order(
    each: Mapping[str, Mapping[str, Mapping[str, float]]], names: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """The least no more than what is expected, nor the most less: where a plan begins is a mean, and may cost more than
    what the brackets have."""
    found: dict[str, dict[str, dict[str, float]]] = {case: {} for case in CASES}
    for name in names:
        keys = dict.fromkeys(key for case in CASES for key in each[case].get(name, {}))
        for key in keys:
            values = [each[case].get(name, {}).get(key, 0.0) for case in CASES]
            for case, value in zip(CASES, (min(values), values[1], max(values)), strict=True):
                found[case].setdefault(name, {})[key] = value
    return found


def _row(name: str, counts: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    return {"stage": name, "counts": {case: dict(own) for case, own in counts.items()}}


def _total(each: Iterable[Mapping[str, float | None]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in each:
        _add_(total, {name: value for name, value in one.items() if value is not None})
    return total


def _load_seconds(loading: float, machine: Machine | None, fleet: DeviceFleet) -> float | None:
    if machine is None:
        return None
    return machine.seconds["reload"] / 2 if fleet.elsewhere else loading


def _bytes(session: Session, loads: Loads, room: int) -> dict[str, int]:
    """Of the largest thing of each kind that is held at once."""
    anatomy = session.loaded.anatomy
    load = loads.of("select", 0, len(session.task.split("select")))
    spectra = [spectrum_bytes(matrix.shape) for matrix in anatomy.matrices.values()]
    longest = max((one.longest for one in session.encoded.values()), default=1)
    kept = min(load.kept, loads.packing.max_kept, max(longest, loads.packing.max_tokens))
    return {
        "weights": anatomy.num_parameters * session.loaded.model.dtype.itemsize,
        "spectra": sum(spectra),
        "spectra_kept": min(sum(spectra), max(room, max(spectra))),
        "activations": min(load.tokens * loads.width, CACHE_BYTES),
        "logits": 4 * kept * anatomy.num_logits,
    }


def _said(session: Session, fleet: DeviceFleet, machine: Machine | None, workers: int) -> list[str]:
    """Return the assumptions of the numbers, in words."""
    said = list(machine.said) if machine else ["no machine: FLOPs and bytes, no seconds"]
    if isinstance(session.loaded.tokenizer, Ruler):
        said.append("no tokenizer: about 1.3 tokens a word")
    if session.options.spectra is not None:
        said.append(
            "--spectra: counted as if nothing were there yet; what is read again is read whole, at "
            f"{DISK / 1e9:g} GB/s for each worker"
        )
    if fleet.devices > 1:
        said.append(
            f"{workers} models on {fleet.devices} devices judge at {SHARED:.0%} of {workers} times one; all else on one"
        )
    return [*said, "expected: what races and compositions took in a few small searches (docs/scale.md)"]


# ------------------------------------------------------------------------------------------------ amounts into seconds


def measured_here(
    session: Session, counted: Counted, readings: Iterable[ReadingCost], took: float | None = None
) -> Machine:
    """Return the rates of this machine: overheads as assumed, FLOPs as fast as a pass of the whole model shows.

    Args:
        took: Seconds of the pass over `select` that was just run, or None to run one over `LOOK` of its examples.
    """
    examples = session.shuffled("select")
    if took is None or took < BRIEF:
        examples = examples[:LOOK]
        judge = replace(session, ledger=None, workers=None, progress=silent).judge()
        took = _seconds(lambda: judge([session.empty], examples, "look"))
    amounts = counted.judged(Judged("look", "select", 0, len(examples), (empty(),)))
    anatomy, itemsize = session.loaded.anatomy, session.loaded.model.dtype.itemsize
    return paced(anatomy, itemsize, readings, amounts, took, _svd_flop(session))


def _svd_flop(session: Session) -> float:
    """Return the seconds of a FLOP in a decomposition; of the largest matrix, or a part of it."""
    matrix = max(session.loaded.anatomy.matrices.values(), key=lambda one: min(one.shape))
    whole = matrix.read(session.loaded.parameter(matrix.weight))[:LARGEST, :LARGEST]
    return _seconds(lambda: spectrum(whole)) / svd_flops(decomposition((whole.shape[0], whole.shape[1])))


def _seconds(run: Callable[[], object]) -> float:
    """Return the seconds that `run` takes; where they are few, the fewer of two."""
    started = time.perf_counter()
    run()
    took = time.perf_counter() - started
    if took >= BRIEF:
        return took
    started = time.perf_counter()
    run()
    return min(took, time.perf_counter() - started)


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
    readings: Iterable[ReadingCost],
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
    readings: Iterable[ReadingCost],
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
    said = f"measured here: {1e-9 / flop:.3g} GFLOP/s in a pass of the model, {1e-9 / svd_flop:.3g} in decompositions"
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


def _rates(
    anatomy: Anatomy, itemsize: int, readings: Iterable[ReadingCost], speed: Speed
) -> dict[str, float]:
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
