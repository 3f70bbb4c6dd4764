"""Depth pruning step by step: blocks go one after another, the least missed first, and something simpler replaces them.

Blocks that are gone side by side are one run, which is replaced as one. Orders are read and maps are fitted on `probe`.
Whether a map is taken is decided on `select`, which it was not fitted to: where its loss is no lower than without it,
its run of blocks is dropped. Touches the model through a judge and `DepthReadings` alone.
Sources: Razzhigaev et al. 2024 (arXiv 2405.12250), the most linear first, re-scored after each; ShortGPT (arXiv
2403.03853) by cosine similarity; SLEB (arXiv 2402.09025) by measured loss; ReplaceMe (arXiv 2505.02819) for one run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from secateur.core.plan import Drop, Edit, Linearize, Plan
from secateur.core.records.verdict import FellBackRecord
from secateur.core.score import loss_or_worst
from secateur.hf.anatomy import Anatomy
from secateur.methods.depth.method import DepthConfig
from secateur.methods.depth.records import BlockStep
from secateur.methods.removal import Blocks, Carriers, carriers_of, run_with
from secateur.options import Options, layers_of
from secateur.probes.maps import BlockRun
from secateur.search.race import Judge
from secateur.search.removal import RemovalPoint
from secateur.session import Session


@dataclass(frozen=True)
class Similarity:
    """Two measures of how little a block changes the residual stream.

    Args:
        linearity: Score of the best linear map from what enters to what leaves, with the residual, in-sample as in the
            paper, but without outlier tokens.
        cosine: Mean cosine similarity of what enters and what leaves, over all tokens.
    """

    linearity: float
    cosine: float


class DepthReadings(Protocol):
    """Readings of a model, and fits to it, that depth pruning needs beside outcomes of plans."""

    def similarity(self, plan: Plan, blocks: Sequence[int]) -> Mapping[int, Similarity]:
        """Return the similarity of each of `blocks` in the model that `plan` leaves, read on `probe`."""

    def maps(self, plan: Plan, runs: Sequence[BlockRun]) -> Mapping[BlockRun, Linearize]:
        """Return a map for each of `runs`, fitted on `probe` in the model that `plan` leaves."""

    def samples(self, plans: Sequence[Plan]) -> tuple[str, Mapping[Plan, str]]:
        """Return a prompt, and the greedy text after it under each plan."""

    def side_values(self, plans: Sequence[Plan]) -> tuple[Mapping[Plan, dict[str, float]], dict[str, str]]:
        """Return each side task's metric under each plan, and its unit."""


@dataclass(frozen=True)
class DepthPoint(RemovalPoint):
    """A point of depth pruning.

    Attributes:
        fell_back: Runs of blocks that were dropped although a linear map was asked for, since their map did no better.
    """

    fell_back: tuple[FellBackRecord, ...] = ()


# -------------------------------------------------------------------------------------------------- which blocks may go


def forms_of(anatomy: Anatomy) -> list[str]:
    """Return the forms in which any block of this model can go."""
    carriers, blocks = carriers_of(anatomy), range(anatomy.num_blocks)
    return [
        form for form in ("drop", "linear", "fold") if may_go([], blocks, form, carriers, contiguous=False)
    ]


def blocks_that_can_go(anatomy: Anatomy, options: Options, form: str) -> list[int]:
    """Return the most of the blocks asked for that can go one after another in a form."""
    return all_that_may_go(layers_of(anatomy, options), form, carriers_of(anatomy))


def may_go(
    gone: Collection[int], blocks: Iterable[int], form: str, carriers: Carriers, *, contiguous: bool
) -> list[int]:
    """Return the blocks that may go next: something can carry what replaces the run that they make with those gone, and
    one stays, of a hybrid one of each kind.

    Args:
        gone: Blocks that are gone.
        blocks: Blocks that may be asked for.
        contiguous: Only next to those that are gone.
    """
    left = [block for block in blocks if block not in gone]
    left = [block for block in left if all(kind - {*gone, block} for kind in carriers.kept_from)]
    if contiguous and gone:
        left = [block for block in left if {block - 1, block + 1} & set(gone)]
    return [block for block in left if carriers.carry(run_with(gone, block), form)]


def all_that_may_go(blocks: Iterable[int], form: str, carriers: Carriers) -> list[int]:
    """Return the most blocks that can go one after another, in an order in which they can."""
    gone: list[int] = []
    candidates = list(blocks)
    while left := may_go(gone, candidates, form, carriers, contiguous=False):
        # Runs grow away from what carries them: a fold lies before its run, a linear map after it.
        gone.append(left[-1] if form == "linear" else left[0])
    return gone


def without(plan: Plan, run: Blocks) -> Plan:
    """Return `plan` without the edits that take blocks of this run away, or replace them."""
    return Plan(plan.model, tuple(edit for edit in plan.edits if not _takes(edit, run)))


def _takes(edit: Edit, run: Blocks) -> bool:
    if isinstance(edit, Linearize):
        return bool(set(edit.blocks) & set(run))
    return isinstance(edit, Drop) and not edit.site.part and edit.site.block in run


def dropped(plan: Plan, blocks: Iterable[int], anatomy: Anatomy) -> Plan:
    """Return `plan` with these blocks dropped too."""
    have = set(plan.dropped)
    new = (Drop(site) for block in blocks if (site := anatomy.site(block)) not in have)
    return Plan(plan.model, (*plan.edits, *new))


# ------------------------------------------------------------------------------------------------------------ the steps


@dataclass
class DepthSteps:
    """Blocks that go one after another, in one order or another, in one form or another.

    Args:
        session: Its options, task and anatomy; the model is left alone.
    """

    session: Session
    judge: Judge
    readings: DepthReadings
    _fits: dict[tuple[Plan, BlockRun], Linearize] = field(default_factory=dict)
    _read: dict[tuple[Plan, Blocks], Mapping[int, Similarity]] = field(default_factory=dict)

    @property
    def config(self) -> DepthConfig:
        """Return the options of the method."""
        return self.session.config(DepthConfig)

    @property
    def forms(self) -> list[str]:
        """Return the forms that are compared, as far as the model allows them; the one asked for first."""
        first, report = self.config.form, self.session.options.report
        beside = {"quick": (), "standard": ("drop",), "full": forms_of(self.session.loaded.anatomy)}[report]
        return list(dict.fromkeys((first, *beside)))

    def order(self, by: str, most: int | None = None) -> list[BlockStep]:
        """Return blocks in the order in which they go, each with what all that were left measured then.

        Args:
            by: `loss`, `linearity` or `cosine`.
            most: How many; None: as many as are asked for.
        """
        config, anatomy = self.config, self.session.loaded.anatomy
        blocks, carriers = layers_of(anatomy, self.session.options), carriers_of(anatomy)
        if not most:
            can = blocks_that_can_go(anatomy, self.session.options, config.form)
            most = config.blocks or len(can)
        steps: list[BlockStep] = []
        point, gone = self._start, list[int]()
        while len(gone) < most:
            left = may_go(gone, blocks, config.form, carriers, contiguous=config.contiguous)
            if not left:
                break
            measured = self._measured(by, point.plan, gone, left)
            block = min(measured, key=lambda number: (measured[number], number))
            steps.append(
                BlockStep(block=block, measured={str(number): value for number, value in measured.items()})
            )
            point = self._next(point, gone, block, config.form)
            gone.append(block)
        return steps

    def points(self, order: Sequence[int], form: str) -> list[DepthPoint]:
        """Return the same blocks gone in the same order in one form, as far as the form can."""
        points, gone = [self._start], list[int]()
        carriers = carriers_of(self.session.loaded.anatomy)
        for block in order:
            if not may_go(gone, [block], form, carriers, contiguous=False):
                break
            points.append(self._next(points[-1], gone, block, form))
            gone.append(block)
        return points

    @property
    def _start(self) -> DepthPoint:
        return DepthPoint(self.session.empty, {"blocks": 0.0})

    def _measured(self, by: str, plan: Plan, gone: Sequence[int], left: Sequence[int]) -> dict[int, float]:
        """Return a number for each of the blocks `left`: the lower, the sooner it goes."""
        if by == "loss":
            plans = self._plans(plan, gone, left, self.config.form)
            losses = self._losses(list(plans.values()), self.session.task.split("probe"))
            return {block: losses[plans[block]] for block in left}
        key = plan, tuple(left)
        if key not in self._read:  # both cheap measures come from one pass over `probe`
            self._read[key] = self.readings.similarity(plan, left)
        read = self._read[key]
        return {
            block: 1 - (read[block].linearity if by == "linearity" else read[block].cosine) for block in left
        }

    def _losses(self, plans: Sequence[Plan], examples: Sequence[int]) -> dict[Plan, float]:
        """Return mean nats a token; infinite where a plan makes the model give no numbers."""
        judged = self.judge(plans, examples, "depth")
        return {plan: loss_or_worst(judged[plan], self.session.loss_name) for plan in plans}

    def _plans(self, plan: Plan, gone: Sequence[int], left: Sequence[int], form: str) -> dict[int, Plan]:
        """Return `plan` with each of the blocks `left` gone too; what replaces a run is fitted for all of it."""
        if form == "drop":
            return {block: dropped(plan, [block], self.session.loaded.anatomy) for block in left}
        rank = self.config.rank if form == "linear" else None
        bases: dict[Plan, dict[int, BlockRun]] = {}
        for block in left:
            run = run_with(gone, block)
            bases.setdefault(without(plan, run), {})[block] = BlockRun(run, form, rank)
        plans: dict[int, Plan] = {}
        for base, runs in bases.items():
            missing = [run for run in runs.values() if (base, run) not in self._fits]
            if missing:
                self._fits |= {(base, run): edit for run, edit in self.readings.maps(base, missing).items()}
            plans |= {block: base + self._fits[base, run] for block, run in runs.items()}
        return {block: plans[block] for block in left}

    def _next(self, point: DepthPoint, gone: Sequence[int], block: int, form: str) -> DepthPoint:
        """Return the point where `block` is gone too: dropped, or its run replaced by a map if that does better."""
        run = run_with(gone, block)
        plan = self._plans(point.plan, gone, [block], form)[block]
        fell_back = tuple(before for before in point.fell_back if not set(before.blocks) & set(run))
        if form != "drop":
            instead = dropped(without(point.plan, run), run, self.session.loaded.anatomy)
            losses = self._losses([plan, instead], self.session.shuffled("select"))
            if not losses[plan] < losses[instead]:  # a map whose loss is not finite is not taken either
                lost = FellBackRecord(blocks=list(run), fitted=losses[plan], dropped=losses[instead])
                fell_back += (lost,)
                plan = instead
        share = (len(gone) + 1) / self.session.loaded.anatomy.num_blocks
        return DepthPoint(plan, {"blocks": share}, fell_back)
