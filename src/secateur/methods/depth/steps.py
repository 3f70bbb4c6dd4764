"""Depth pruning step by step: what every block that is left measures, which goes, and what stands for it.

Orders are read and maps are fitted on `probe`. Whether a map is taken is decided on `select`, which it was not fitted
to: where its loss is no lower than without it, its run of blocks is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur.core.plan import Plan
from secateur.core.score import loss_or_worst
from secateur.methods.depth.carriers import blocks_that_can_go, carriers_of, forms_of
from secateur.methods.depth.runs import DepthPoint, FellBack, dropped, may_go, run_with, without
from secateur.methods.depth.similarity import Similarity, block_similarity
from secateur.methods.method import CountingJudge
from secateur.options import layers_of
from secateur.probes.maps import BlockRun, fit_maps
from secateur.session import Session


@dataclass
class DepthSearch:
    """Blocks that go one after another, in one order or another, in one form or another."""

    session: Session
    judge: CountingJudge
    packing: Any
    _fits: dict[tuple[Plan, BlockRun], Any] = field(default_factory=dict)
    _read: dict[tuple[Plan, tuple[int, ...]], dict[int, Similarity]] = field(default_factory=dict)

    @property
    def forms(self) -> list[str]:
        """Those that the model allows; the one asked for first."""
        asked, anatomy = self.session.options.config.form, self.session.loaded.anatomy
        return [asked, *(form for form in forms_of(anatomy) if form != asked)]

    @property
    def probe(self) -> Sequence[int]:
        return self.session.task.split("probe")

    def order(self, by: str, most: int | None = None) -> list[dict[str, Any]]:
        """Blocks in the order in which they go, each with what all that were left measured then; `most` of them, or as
        many as are asked for."""
        options, anatomy = self.session.options, self.session.loaded.anatomy
        blocks, found, carriers = layers_of(anatomy, options), [], carriers_of(anatomy)
        most = most or options.config.blocks or len(blocks_that_can_go(anatomy, options))
        at, gone = DepthPoint(self.session.empty, {"blocks": 0.0}), []
        while len(gone) < most:
            left = may_go(gone, blocks, options.config.form, carriers, contiguous=options.config.contiguous)
            if not left:
                break
            measured = self._measured(by, at.plan, gone, left)
            block = min(measured, key=lambda b: (measured[b], b))
            found.append({"block": block, "measured": {str(b): value for b, value in measured.items()}})
            at = self._next(at, gone, block, options.config.form)
            gone.append(block)
        return found

    def _measured(self, by: str, plan: Plan, gone: Sequence[int], left: Sequence[int]) -> dict[int, float]:
        """The lower, the sooner a block goes."""
        session = self.session
        if by == "loss":
            plans = self._plans(plan, gone, left, session.options.config.form)
            losses = self._losses(list(plans.values()), self.probe)
            return {block: losses[plans[block]] for block in left}
        found = self._similarity(plan, tuple(left))
        return {block: 1 - vars(found[block])[by] for block in left}

    def _losses(self, plans: Sequence[Plan], examples: Sequence[int]) -> dict[Plan, float]:
        """Mean nats a token; infinite where a plan makes the model give no numbers."""
        name = "text_loss" if self.session.task.kind == "text" else "loss"
        judged = self.judge(plans, examples, "depth")
        return {plan: loss_or_worst(judged[plan], name) for plan in plans}

    def _similarity(self, plan: Plan, left: tuple[int, ...]) -> dict[int, Similarity]:
        """Both of the cheap measures, in one pass over `probe`."""
        session = self.session
        if (plan, left) not in self._read:
            self._read[plan, left] = block_similarity(
                session.loaded,
                session.encoded,
                self.probe,
                left,
                under=plan,
                packing=self.packing,
                progress=session.progress,
            )
        return self._read[plan, left]

    def _plans(self, plan: Plan, gone: Sequence[int], left: Sequence[int], form: str) -> dict[int, Plan]:
        """`plan` with each of the blocks `left` gone too; what stands for a run is fitted for all of it."""
        if form == "drop":
            return {block: dropped(plan, [block]) for block in left}
        bases: dict[Plan, dict[int, BlockRun]] = {}
        for block in left:
            run = run_with(gone, block)
            rank = self.session.options.config.rank if form == "linear" else None
            bases.setdefault(without(plan, run), {})[block] = BlockRun(run, form, rank)
        found = {}
        for base, runs in bases.items():
            fitted = self._fitted(base, list(runs.values()))
            found |= {block: base + fitted[run] for block, run in runs.items()}
        return {block: found[block] for block in left}

    def _fitted(self, base: Plan, runs: Sequence[BlockRun]) -> dict[BlockRun, Any]:
        missing = [run for run in runs if (base, run) not in self._fits]
        session = self.session
        if missing:
            made = fit_maps(
                session.loaded,
                session.encoded,
                self.probe,
                missing,
                groups=session.task.groups(self.probe),
                under=base,
                packing=self.packing,
                progress=session.progress,
            )
            self._fits |= {(base, run): edit for run, edit in made.items()}
        return {run: self._fits[base, run] for run in runs}

    def points(self, order: Sequence[dict[str, Any]], form: str) -> list[DepthPoint]:
        """The same blocks gone in the same order in one form, as far as the form can."""
        points, gone = [DepthPoint(self.session.empty, {"blocks": 0.0})], []
        carriers = carriers_of(self.session.loaded.anatomy)
        for step in order:
            block = step["block"]
            if not may_go(gone, [block], form, carriers, contiguous=False):
                break
            points.append(self._next(points[-1], gone, block, form))
            gone.append(block)
        return points

    def _next(self, at: DepthPoint, gone: Sequence[int], block: int, form: str) -> DepthPoint:
        """`block` gone too: dropped, or for its run the map that was fitted, if that does better than dropping it."""
        run = run_with(gone, block)
        plan = self._plans(at.plan, gone, [block], form)[block]
        fell_back = tuple(one for one in at.fell_back if not set(one.blocks) & set(run))
        if form != "drop":
            instead = dropped(without(at.plan, run), run)
            losses = self._losses([plan, instead], self.session.shuffled("select"))
            if not losses[plan] < losses[instead]:  # nor is a map taken whose loss is not finite
                fell_back += (FellBack(run, losses[plan], losses[instead]),)
                plan = instead
        return DepthPoint(
            plan, {"blocks": (len(gone) + 1) / self.session.loaded.anatomy.num_blocks}, fell_back
        )
