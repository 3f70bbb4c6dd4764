"""A short measurement: plans as the search will ask them judged on some examples, one matrix of each shape decomposed,
each reading made on few examples. Rates are those non-negative ones that fit the times best.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from secateur.core.comparison import compare
from secateur.core.ledger import Ledger
from secateur.core.plan import Plan, RemoveDirections, Truncate
from secateur.core.progress import Progress
from secateur.core.score import OUTCOME
from secateur.errors import ModelError
from secateur.evaluation.generate import greedy
from secateur.forecast.count import BEHAVIOR_TOKENS, Amounts, Counted, decomposition
from secateur.forecast.machine import DISK, Machine, svd_flops
from secateur.forecast.work import CHORES, Judged, Plans, Read, Work, empty
from secateur.linalg.spectrum import spectrum
from secateur.methods.method import Reading
from secateur.methods.registry import method_named
from secateur.probes.induction import check_copying, copying, prefix_matching
from secateur.session import Session, read_model
from secateur.side_tasks import side_effects

JUDGING = ("plan", "edit", "example", "call", "block", "flop", "logit", "written", "mask flop")
FEW, MANY = 32, 256  # examples of the smaller and the larger samples
SAMPLES = 10  # groups of plans that are tried
TIMES = 3  # that each is measured; the fastest counts
PATIENCE = 20.0  # s, after which no larger sample is judged
REPORT = 0.25  # s to write records and report.html of builtin:facts on one core; grows with the blocks
STEPS = 8  # of greedy text
SEEDS = 12  # of the 100 random sequences of prefix matching and copying


def calibrated(session: Session, counted: Counted, works: Sequence[Work], progress: Progress) -> Machine:
    """The rates of this machine for what `works` ask."""
    measured = _Measured(session, counted, works)
    stages = (measured.judging, measured.decompositions, measured.readings, measured.rest)
    rates: dict[str, float] = {}
    for number, stage in enumerate(stages):
        progress("calibrate", number, len(stages))
        rates |= stage()
    progress("calibrate", len(stages), len(stages))
    said = f"measured here in {time.perf_counter() - measured.started:.0f} s"
    return Machine(rates, (said,))


def fitted(rows: Sequence[Amounts], seconds: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    """Non-negative seconds for each of `names` that come nearest to all times, relative to each."""
    amounts = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    scale = np.maximum(amounts.max(axis=0), 1e-300)
    times = np.array(seconds)
    found, _ = nnls(amounts / scale / times[:, None], np.ones(len(times)))
    return dict(zip(names, (found / scale).tolist(), strict=True))


@dataclass
class _Measured:
    session: Session
    counted: Counted
    works: Sequence[Work]

    def __post_init__(self) -> None:
        self.started = time.perf_counter()
        self._judge = self.session.judge()
        self._svds: dict[str, float] = {}

    # ------------------------------------------------------------------------------------------------------- judging

    def judging(self) -> dict[str, float]:
        """Plans of every kind the search has, where most of them are judged, on few examples and on more; and the
        model as it is wherever else something is judged."""
        rows: list[Amounts] = []
        seconds: list[float] = []
        packed = self._packed()
        with tempfile.TemporaryDirectory() as folder, Ledger.open(Path(folder) / "ledger.sqlite") as ledger:
            for place, count, group in self._samples():
                if count > FEW and time.perf_counter() - self.started > PATIENCE and len(rows) > len(JUDGING):
                    continue
                plans, work = self._asked(group, place, count)
                rows.append(self.counted.judged(work))
                taken = self._judged(plans, place, count, ledger)
                seconds.append(max(taken / 2, taken - packed * rows[-1]["packed"]))
        return fitted(rows, seconds, JUDGING) | {"packed": packed}

    def _packed(self) -> float:
        """Seconds to put a token into a batch, which is done once for all plans that are judged together."""
        loads, taken, amount = self.counted.loads, 0.0, 0
        for name in {work.place for work in self.works if isinstance(work, Judged)}:
            at = loads.places[name]
            some, load = at.examples[:MANY], loads.of(name, 0, min(MANY, len(at.examples)))
            taken += min(_timed(partial(loads.packing.pack, at.session.encoded, some)) for _ in range(TIMES))
            amount += load.tokens + load.kept
        return taken / amount

    def _samples(self) -> Iterator[tuple[str, int, Plans]]:
        places = dict.fromkeys(work.place for work in self.works if isinstance(work, Judged))
        for size in (FEW, MANY):
            for place in places:
                count = min(size, len(self.counted.loads.places[place].examples))
                for group in self._groups() if place == "select" else (empty(),):
                    yield place, count, group

    def _groups(self) -> list[Plans]:
        """Some of the groups of plans to come, evenly among those that differ: the lowest and the highest first."""
        every = dict.fromkeys(
            replace(plans, count=1) for work in self.works if isinstance(work, Judged) for plans in work.plans
        )
        ordered = sorted(every, key=lambda plans: (len(plans.edited), plans.block, plans.edited))
        step = max(1.0, (len(ordered) - 1) / (SAMPLES - 1))
        return [ordered[round(at * step)] for at in range(min(SAMPLES, len(ordered)))]

    def _asked(self, group: Plans, place: str, count: int) -> tuple[list[Plan], Judged]:
        """Three plans of a group where there are so many that differ, and the work that they are."""
        found = list(group.such) or [self.session.empty]
        return found, Judged("calibrate", place, 0, count, (replace(group, count=len(found)),))

    def _judged(self, plans: Sequence[Plan], place: str, count: int, ledger: Ledger) -> float:
        """Seconds, with spectra that are there already."""
        at = self.counted.loads.places[place]
        examples = at.examples[:count]
        self._decomposed(plans)
        times = []
        for turn in range(TIMES):
            judge = at.session.judge(ledger=ledger, scope=f"{len(plans)} {turn} {time.perf_counter()}")
            judge.spectra = self._judge.spectra
            times.append(_timed(partial(judge, plans, examples, "calibrate")))
        return min(times)

    def _decomposed(self, plans: Iterable[Plan]) -> None:
        anatomy = self.session.loaded.anatomy
        edits = [edit for plan in plans for edit in plan.edits]
        for site in {edit.matrix for edit in edits if isinstance(edit, Truncate | RemoveDirections)}:
            matrix = anatomy.matrix(site)
            self._judge.spectra(matrix, self.session.loaded.parameter(matrix.weight))

    # --------------------------------------------------------------------------------------------- matrices, readings

    def decompositions(self) -> dict[str, float]:
        """One matrix of each shape that is decomposed."""
        loaded, found = self.session.loaded, {}
        asked = any(
            work.decomposes if isinstance(work, Judged) else work.reading.decomposes
            for work in self.works
            if isinstance(work, Judged | Read)
        )
        for matrix in loaded.anatomy.matrices.values():
            name = decomposition(matrix.shape)
            if asked and name not in found:
                weight = matrix.read(loaded.parameter(matrix.weight))
                found[name] = min(_timed(partial(spectrum, weight)) for _ in range(TIMES))
        self._svds = found
        each = [found[name] / svd_flops(name) for name in found]
        return found | {"svd flop": max(each, default=0.0)}

    def readings(self) -> dict[str, float]:
        """Return the rates of each reading, made on some numbers of examples; behavior on fewer random sequences."""
        made = (work.reading for work in self.works if isinstance(work, Read))
        largest = {one.what: one for one in sorted(made, key=lambda one: len(one.parts))}
        rates = self._behavior() if "behavior" in largest else {}
        for what, reading in largest.items():
            rates |= {} if what in CHORES else self._reading(reading)
        return rates

    def _reading(self, reading: Reading) -> dict[str, float]:
        """Return its rates; decompositions have theirs."""
        rows, seconds, what = [], [], reading.what
        names = [what, *(f"{what} {each}" for each in ("flop", "example", "part", "moment"))]
        sizes = dict.fromkeys(min(size, reading.examples) for size in (8, FEW, 2 * FEW))
        for count, parts, under in product(
            sizes, {reading.parts[-1:], reading.parts}, {False, reading.under}
        ):
            smaller = replace(reading, examples=count, parts=parts, times=1.0, under=under)
            self.counted.read(smaller)
            amounts = self.counted.read(smaller)  # as the second time, which is the faster
            rows.append(amounts)
            known = sum(self._svds.get(name, 0.0) * amount for name, amount in amounts.items())
            taken = min(_timed(partial(self._make, smaller)) for _ in range(TIMES))
            seconds.append(max(taken / 10, taken - known))
        return fitted(rows, seconds, names)

    def _make(self, reading: Reading) -> None:
        method = method_named(self.session.options.method)
        method.measure(reading, self.session, self._judge, self._some_plan)

    @property
    def _some_plan(self) -> Plan:
        """A plan of the search that cuts something."""
        groups = (group for work in self.works if isinstance(work, Judged) for group in work.plans)
        return next(plan for group in groups for plan in group.such if plan.edits)

    def _behavior(self) -> dict[str, float]:
        """By tokens: sequences grow, and end at the context. Nothing where the search will leave it out."""
        loaded = self.session.loaded
        context = loaded.anatomy.context or max(BEHAVIOR_TOKENS)
        lengths = [min(length, context) for length in BEHAVIOR_TOKENS]
        try:
            check_copying(loaded.anatomy)
            taken = _timed(lambda: [probe(loaded, seeds=SEEDS) for probe in (prefix_matching, copying)])
        except ModelError:
            return {"behavior": 0.0}
        return {"behavior": taken * sum(lengths) / sum(lengths[:SEEDS])}

    def rest(self) -> dict[str, float]:
        """A step of greedy text, sides read from their files, statistics."""
        session = self.session
        test = session.task.split("test")
        prompts = [session.encoded[e].pairs[0][0][:8] for e in test[:8]]
        room = self._judge.packing.max_tokens
        step = min(_timed(lambda: greedy(session.loaded, prompts, STEPS, room)) for _ in range(TIMES)) / STEPS
        outcomes = np.zeros(len(test), OUTCOME)
        outcomes["tokens"], outcomes["loss"] = 1, np.random.default_rng(0).random(len(test))
        groups, metric = session.task.groups(test), session.objective.metric
        statistics = _timed(lambda: compare(metric, outcomes, outcomes, groups, seed=0))
        if session.options.in_memory is None:
            again = _timed(lambda: read_model(session.options))
        else:  # what is written is read once, from a file that is not there yet
            again = sum(p.nbytes for p in session.loaded.model.parameters()) / DISK
        none = {f"{what} flop": 0.0 for what in CHORES}
        return none | {
            "step": step,
            "reload": again,
            "spectrum byte": 1 / DISK,
            "report": REPORT,
            "sides read": _timed(lambda: side_effects(session)),
            "statistics": statistics,
        }


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
