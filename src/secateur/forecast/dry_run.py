"""The search of a method, run without computing: a judge that counts what it is asked and draws the outcomes.

Where a search decides by outcomes, they are drawn so that it decides as `Habits` say: the least that it can ask, what
searches asked so far, or the most. Knows shapes and the options, never weights; the search itself is the real one.

Its work is plain values, counts without seconds: plans to judge, passes to read by, greedy text.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, assert_never

import numpy as np

from secateur.core.plan import Drop, Linearize, Plan, RemoveDirections, Truncate
from secateur.core.score import METRICS, OUTCOME, PRIMARY
from secateur.core.site import Site
from secateur.evaluation.measurement import GENERATED_TOKENS
from secateur.hf.load import Loaded
from secateur.methods.forecasting import Habits, ReadingCost
from secateur.methods.registry import method_named
from secateur.options import layers_of
from secateur.probing.components import CHECK_EXAMPLES
from secateur.probing.map import PARTS, QUARTERS, components_of, networks_of
from secateur.search.evidence import Evidence
from secateur.search.race import FIRST_RUNG, Objective
from secateur.session import MAX_PROBED, Session, decided_by_choices
from secateur.surgery.operations import OUTPUTS
from secateur.tasks.example import Task
from secateur.tasks.joint import tested

CONTINUED = 32  # chunks of text that the verdict continues
CHORES = (
    "behavior",
    "sides read",
    "reload",
    "report",
    "statistics",
)  # named readings that take time and no task
LOG = logging.getLogger("secateur")
DRAWS = 200  # of sign flips: outcomes are drawn far apart, so few settle what is shown to gain
WORSE = 10.0  # by how much a plan that is to leave a race is worse, in the metric's unit


@dataclass(frozen=True)
class Plans:
    """`count` plans that write the same matrices, each at mean `rank`; without matrices they stand blocks aside.
    Below `block`, the lowest that is touched, nothing runs."""

    count: float
    block: int
    edited: tuple[Site, ...] = ()
    rank: float = 0.0


@dataclass(frozen=True)
class Judged:
    """Plans judged on the examples from `first` to `last` of a place: a split, or a side task."""

    stage: str
    place: str
    first: int
    last: int
    plans: tuple[Plans, ...]
    decomposes: bool = False  # truncations and directions need the spectra of what they write

    @property
    def evaluations(self) -> float:
        """The number of plans times examples."""
        return (self.last - self.first) * sum(plans.count for plans in self.plans)


@dataclass(frozen=True)
class Read:
    """A reading in a stage of the search, or one of `CHORES`."""

    stage: str
    reading: ReadingCost

    @property
    def what(self) -> str:
        """The name of the reading."""
        return self.reading.what


@dataclass(frozen=True)
class Generated:
    """Greedy text: `rows` prompts side by side, `tokens` each, under `plans` plans."""

    stage: str
    rows: int
    tokens: int
    plans: float


Work = Judged | Read | Generated


@dataclass(frozen=True)
class SideWork:
    """A side task as the verdict measures it: its place, its examples, and whether text is continued."""

    name: str
    examples: int
    continued: bool


def empty(count: float = 1.0) -> Plans:
    """Return the model as it is, as so many plans."""
    return Plans(count, 0)


def proof(session: Session, sides: Sequence[SideWork]) -> Iterator[Work]:
    """Yield the work of the verdict: both models on `test` and on each side, and what is to be had without a cut."""
    n, kind = len(tested(session.task)), session.task.kind
    alternative = 0 if kind in PRIMARY else 1  # one token banned, or a bias per answer
    yield Judged("verify", "test", 0, n, (empty(2 + alternative),))
    for what in ("reload", "report", "sides read"):
        yield Read("verify", ReadingCost(what, "test", n, ()))
    yield Read("verify", ReadingCost("statistics", "test", n, (), times=3 + len(sides)))
    for side in sides:
        yield Judged("sides", side.name, 0, side.examples, (empty(2),))
        if side.continued:
            yield Generated("sides", min(CONTINUED, side.examples), GENERATED_TOKENS, 2)


# --------------------------------------------------------------------------------------------- the search


@dataclass
class Recorder:
    """Record what a search asks, as works in order, and what it knows by then."""

    case: str
    habits: Habits
    stage: str = "search"
    works: list[Work] = field(default_factory=list)
    # examples that a plan was judged on, by place and the first of them
    known: dict[tuple[str, int, Plan], int] = field(default_factory=dict)
    quality: dict[Plan, float] = field(default_factory=dict)
    leaves: dict[Plan, int] = field(default_factory=dict)  # the example count at which a plan falls behind
    drawn: int = 0  # numbers
    gains: int = 0  # times that a search found something better so far

    def draw(self) -> float:
        """Return the next of a sequence of numbers that fill 0 to 1 evenly: multiples of the golden ratio, modulo 1."""
        self.drawn += 1
        return self.drawn * 0.6180339887498949 % 1

    def read(self, reading: ReadingCost) -> None:
        """Note a reading."""
        self.works.append(Read(self.stage, reading))

    def generated(self, rows: int, tokens: int, plans: float) -> None:
        """Note greedy text: `rows` prompts, `tokens` each, under so many plans."""
        self.works.append(Generated(self.stage, rows, tokens, plans))

    def draw_qualities(self, plans: Sequence[Plan]) -> None:
        """Draw what is not known of these plans, judged together: which gain, and when the others fall behind."""
        base = self.quality.setdefault(plans[0], 0.0)
        fresh = [plan for plan in plans if plan not in self.quality]
        if not fresh:
            return
        better = self.gains < self.habits.gains[self.case]
        self.gains += better
        for number, plan in enumerate(fresh):
            self.quality[plan] = base + better
            if number or not better:  # the first is the winner, where there is one
                self.leaves[plan] = self._leaves(number, len(fresh))

    def _leaves(self, number: int, count: int) -> int:
        """Return at how many examples plan `number` of so many is behind, so that the share that stays is as stated."""
        if self.case == "most":
            return int(np.iinfo(np.int64).max)
        share = 0.0 if self.case == "least" else self.habits.surviving
        place = (number + 0.5) / count
        rungs = 0 if share == 0.0 else math.floor(math.log(place) / math.log(share))
        return int(FIRST_RUNG * 2**rungs)


@dataclass(frozen=True)
class DryJudge:
    """In the place of an evaluator: counts, and draws outcomes."""

    session: DrySession

    @property
    def recorder(self) -> Recorder:
        """The recorder of the session."""
        return self.session.recorder

    def __call__(
        self, plans: Sequence[Plan], examples: Sequence[int], stage: str = "judge"
    ) -> dict[Plan, np.ndarray]:
        if not plans:
            return {}
        place = self.session.place or self.session.split_of(examples)
        self._record(plans, place, examples)
        self.recorder.draw_qualities(plans)
        return {plan: self._outcomes(plan, examples) for plan in plans}

    def _record(self, plans: Sequence[Plan], place: str, examples: Sequence[int]) -> None:
        """Note what a ledger would not know yet."""
        known, count = self.recorder.known, len(examples)
        starts: dict[int, list[Plan]] = {}
        for plan in dict.fromkeys(plans):
            start = known.get((place, examples[0], plan), 0)
            if start < count:
                starts.setdefault(start, []).append(plan)
                known[place, examples[0], plan] = count
        for start, fresh in sorted(starts.items()):
            decomposes = any(plan.truncated or plan.removed for plan in fresh)
            groups, stage = self._grouped(fresh), self.recorder.stage
            self.recorder.works.append(Judged(stage, place, start, count, groups, decomposes))

    def _grouped(self, plans: Sequence[Plan]) -> tuple[Plans, ...]:
        """Return the plans as groups of those that write the same matrices."""
        groups: dict[tuple[int, tuple[Site, ...]], list[Plan]] = {}
        for plan in plans:
            lowest = self.session.loaded.anatomy.lowest_block(plan)
            groups.setdefault((lowest, self._written(plan)), []).append(plan)
        found = []
        for (block, sites), alike in groups.items():
            ranks = [edit.rank for plan in alike for edit in plan.truncated]
            ranks += [len(edit.directions) for plan in alike for edit in plan.removed]
            found.append(Plans(len(alike), block, sites, sum(ranks) / len(alike) / max(1, len(sites))))
        return tuple(found)

    def _written(self, plan: Plan) -> tuple[Site, ...]:
        """Return the matrices that a mask of this plan writes, lowest block first."""
        sites = set()
        for edit in plan.edits:
            match edit:
                case Truncate() | RemoveDirections():
                    sites.add(edit.matrix)
                case Drop():
                    if edit.site.part and edit.site.unit != "e":
                        sites.add(edit.site.beside(OUTPUTS[edit.site.part]))
                case Linearize():
                    if edit.folded_into is not None:
                        sites.add(edit.folded_into)
                case _:
                    assert_never(edit)
        return tuple(sorted(sites))

    def _breaks(self, plan: Plan) -> bool:
        """Return whether more blocks are gone than the bound is said to allow."""
        share = self.recorder.habits.droppable[self.recorder.case]
        return len(plan.blocks_gone) > share * self.session.loaded.anatomy.num_blocks

    def _outcomes(self, plan: Plan, examples: Sequence[int]) -> np.ndarray:
        """Return OUTCOME rows whose mean loss is the drawn quality, negated; every answer is right."""
        rows = np.zeros(len(examples), OUTCOME)
        rows["example"], rows["tokens"] = examples, 1
        value = np.full(len(examples), self.recorder.quality[plan])
        # no two examples alike
        value += 1e-6 * np.asarray(examples) / max(1, len(self.session.task.examples))
        if plan in self.recorder.leaves:
            value[self.recorder.leaves[plan] // 2 :] -= WORSE
        if self._breaks(plan):
            value -= WORSE
        rows["correct"] = rows["correct_norm"] = 1.0
        rows["loss"] = rows["choice_loss"] = 100 - value  # positive, as a loss is
        return rows


@dataclass
class DrySession(Session):
    """A session whose judges count.

    Args:
        recorder: What is asked goes there.
        place: The name of a side task; empty for the task itself, of which it is the split that is asked.
        sides: Names of the side tasks by the hash of their tasks.
    """

    recorder: Recorder = field(default_factory=lambda: Recorder("expected", Habits()))
    place: str = ""
    sides: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, session: Session, recorder: Recorder, sides: Mapping[str, str]) -> DrySession:
        """Return the same session with a recorder in the place of a model that runs."""
        values = {one.name: vars(session)[one.name] for one in fields(Session)}
        return cls(**values | {"ledger": None, "workers": None}, recorder=recorder, sides=sides)

    def judge(self) -> Any:
        """Return a judge that counts."""
        return DryJudge(self)

    @property
    def objective(self) -> Objective:
        """The loss, which is drawn; accuracy has but two values."""
        return Objective(METRICS[self.loss_name])

    def evidence(self, examples: Sequence[int]) -> Evidence:
        """Return evidence of few draws."""
        return Evidence(
            self.objective.metric, self.task.groups(examples), seed=self.options.seed, draws=DRAWS
        )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count what is asked meanwhile to this stage."""
        before, self.recorder.stage = self.recorder.stage, stage
        try:
            yield
        finally:
            self.recorder.stage = before

    def on(self, task: Task, loaded: Loaded | None = None) -> DrySession:
        """Return the same with a side task."""
        other = super().on(task, loaded)
        assert isinstance(other, DrySession)
        return replace(other, place=self.sides.get(task.hash, self.place))

    def split_of(self, examples: Sequence[int]) -> str:
        """Return the split that these examples are of."""
        return next(name for name in ("select", "probe", "test") if examples[0] in self.task.split(name))


def dry_run(session: Session, case: str, sides: Mapping[str, str]) -> list[Work]:
    """Return what the search of this session asks, in order.

    Args:
        case: `least`, `expected` or `most`.
        sides: Names of the side tasks by the hash of their tasks.
    """
    method = method_named(session.options.method)
    recorder = Recorder(case, method.habits)
    level = LOG.level
    LOG.setLevel(logging.CRITICAL)  # what the search says of drawn outcomes means nothing
    try:
        method.dry_search(DrySession.of(session, recorder, sides), recorder)
    finally:
        LOG.setLevel(level)
    return recorder.works


def map_work(session: Session, kinds: Sequence[str], split: str, checks: int) -> list[Work]:
    """Return the work of `secateur map`: its readings of every component, and the removals.

    Args:
        kinds: Names in `MAPPED`.
        split: The split that is read.
        checks: Components of each kind that are taken out.
    """
    anatomy, recorder = session.loaded.anatomy, Recorder("expected", Habits(), "readings")
    blocks, examples = layers_of(anatomy, session.options), session.task.split(split)[:MAX_PROBED]
    found = {kind: list(of_kind.values()) for kind, of_kind in components_of(session, kinds).items()}
    if "neurons" in kinds:
        parts = (
            anatomy.site(block, "mlp", "n", part) for block in networks_of(session) for part in range(PARTS)
        )
        found["neurons"] = [session.empty + Drop(part) for part in parts]

    def read(what: str, sites: Iterable[Site], **cost: Any) -> None:
        recorder.read(ReadingCost(what, split, len(examples), tuple(sites), **cost))

    if set(kinds) != {"matrices"}:
        read("head importance", (), passes=2.0)
        read("neuron importance", (), passes=2.0)
    # each quarter of the blocks costs a pass forward, and one back to its lowest
    passes = sum(2 - block / anatomy.num_blocks for block in blocks[:: -(-len(blocks) // QUARTERS)])
    own = [anatomy.site(anatomy.lowest_block(plan)) for plans in found.values() for plan in plans]
    contrast = decided_by_choices(session)
    read("edit effects", own, passes=passes, blocks=1.0, choices=contrast)
    read("first order", map(anatomy.site, blocks), blocks=2.0, choices=contrast)
    if "matrices" in found:
        written = {edit.matrix for plan in found["matrices"] for edit in plan.truncated}
        read("spectra", sorted(written), decomposes=True)
    if "heads" in found:
        read("behavior", (), times=0.1)  # the shortest quarter of the sequences, a tenth of their tokens
    if "blocks" in found:
        read("linear fits", map(Site, blocks), passes=2.0, fits=True)
    recorder.stage = "removals"
    removed = [plans[len(plans) * n // checks] for plans in found.values() for n in range(checks)]
    DrySession.of(session, recorder, {}).judge()([session.empty, *removed], examples[:CHECK_EXAMPLES])
    return recorder.works
