"""Depth: whole blocks go, one after another; a linear map stands for them, or is folded into the network before them.

What goes next is chosen on `probe`, by the measured loss, by linearity or by cosine similarity, and maps are fitted
there; how far to go is chosen on `select`. Beside the form that is asked for, the others are measured at every depth,
and the orders in which cheaper measures would have taken blocks.
Sources: Razzhigaev et al. 2024 (arXiv 2405.12250); ReplaceMe (arXiv 2505.02819).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur import records
from secateur.core.noninferiority import MARGIN
from secateur.core.plan import Plan
from secateur.core.score import loss_or_worst
from secateur.errors import PlanError, SecateurError
from secateur.hf.anatomy import Anatomy
from secateur.methods.components import goal_of
from secateur.methods.curves import kept_share
from secateur.methods.depth_record import depth_record
from secateur.methods.found import Counted, Found
from secateur.options import Options, layers_of
from secateur.probes.maps import Run, fit_maps
from secateur.probes.similarity import Similarity, block_similarity
from secateur.search.depth import dropped, may_go, run_with, without
from secateur.search.iterative import Point
from secateur.session import Session

CHEAP = ("linearity", "cosine")  # measures that need no plan judged for every block that is left


def check(session: Session) -> None:
    """Raises `UnknownName` for layers, `PlanError` for what cannot be folded, `SecateurError` for sizes."""
    options, anatomy = session.options, session.loaded.anatomy
    blocks, most = layers_of(anatomy, options), most_blocks(anatomy, options)
    if options.blocks is not None and options.blocks > most:
        raise SecateurError(
            f"--blocks {options.blocks}: from 1 to {most} of the {len(blocks)} blocks may go."
        )
    if options.form == "fold" and not anatomy.foldable:
        raise PlanError(
            f"--form fold: {anatomy.architecture} has a norm after its feed-forward networks, so no linear map can be "
            "folded into them. Take --form linear, or drop."
        )
    if options.rank is not None and options.rank > anatomy.d_model:
        raise SecateurError(f"--rank {options.rank}: from 1 to {anatomy.d_model}, the width of this model.")


def most_blocks(anatomy: Anatomy, options: Options) -> int:
    """How many of the blocks asked for may go: one of all stays."""
    blocks = layers_of(anatomy, options)
    return len(blocks) - (len(blocks) == anatomy.num_blocks)


def search(session: Session) -> Found:
    """The plan, and every form at every depth for the report. `test` is not touched."""
    evaluator = session.judge()
    walk = _Walk(session, Counted(evaluator), evaluator.packing)
    options, goal, select = session.options, goal_of(session), session.shuffled("select")
    with session.timed("choose"):
        order = walk.order(options.by)
    with session.timed("analyze"):
        curves = {form: walk.points(order, form) for form in walk.forms}
        plans = dict.fromkeys(point.plan for points in curves.values() for point in points)
        outcomes = walk.judge(list(plans), select, "depth")
    points = curves[options.form]
    if options.blocks is not None and options.max_loss is None:
        number = len(points) - 1
    else:
        number = goal.choose(points, outcomes, [kept_share(session, point.plan) for point in points])
    with session.timed("analyze"):
        others = _other_orders(walk, max(1, number))
        outcomes |= walk.judge([p.plan for points_ in others.values() for p in points_], select, "depth")
        analysis = depth_record(session, curves, others, outcomes, order, goal.max_loss) | {"chosen": number}
    found = {
        "method": "depth",
        "by": options.by,
        "form": options.form,
        "proposed": walk.judge.tried,
        "order": [step["block"] for step in order],
    }
    margin = MARGIN if options.max_loss is None else options.max_loss
    base = records.base_record(outcomes[session.empty])
    return Found(
        points[number].plan,
        walk.judge.tried,
        walk.judge.evaluations,
        found,
        {"base": base, "depth": analysis},
        margin,
    )


def _other_orders(walk: _Walk, most: int) -> dict[str, list[Point]]:
    """By each cheap measure that was not asked for: the same form, as deep as what was chosen."""
    options = walk.session.options
    others = (by for by in CHEAP if by != options.by)
    return {by: walk.points(walk.order(by, most), options.form) for by in others}


@dataclass
class _Walk:
    session: Session
    judge: Counted
    packing: Any
    _fits: dict[tuple[Plan, Run], Any] = field(default_factory=dict)
    _read: dict[tuple[Plan, tuple[int, ...]], dict[int, Similarity]] = field(default_factory=dict)

    @property
    def forms(self) -> list[str]:
        """Those that the model allows; the one asked for first."""
        asked, anatomy = self.session.options.form, self.session.loaded.anatomy
        others = [form for form in ("drop", "linear", "fold") if form != "fold" or anatomy.foldable]
        return [asked, *(form for form in others if form != asked)]

    @property
    def probe(self) -> Sequence[int]:
        return self.session.task.split("probe")

    def order(self, by: str, most: int | None = None) -> list[dict[str, Any]]:
        """Blocks in the order in which they go, each with what all that were left measured then; `most` of them, or as
        many as are asked for."""
        options, anatomy = self.session.options, self.session.loaded.anatomy
        blocks, found = layers_of(anatomy, options), []
        most = most or options.blocks or most_blocks(anatomy, options)
        plan, gone = self.session.empty, []
        while len(gone) < most:
            left = may_go(gone, blocks, options.form, contiguous=options.contiguous)
            if not left or len(gone) + 1 == anatomy.num_blocks:
                break
            measured = self._measured(by, plan, gone, left)
            block = min(measured, key=lambda b: (measured[b], b))
            found.append({"block": block, "measured": {str(b): value for b, value in measured.items()}})
            gone.append(block)
            plan = self._plans(plan, gone[:-1], [block], options.form)[block]
        return found

    def _measured(self, by: str, plan: Plan, gone: Sequence[int], left: Sequence[int]) -> dict[int, float]:
        """The lower, the sooner a block goes."""
        session = self.session
        if by == "loss":
            plans = self._plans(plan, gone, left, session.options.form)
            judged = self.judge(list(plans.values()), self.probe, "depth")
            name = "text_loss" if session.task.kind == "text" else "loss"
            return {block: loss_or_worst(judged[plans[block]], name) for block in left}
        found = self._similarity(plan, tuple(left))
        return {block: 1 - vars(found[block])[by] for block in left}

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
        bases: dict[Plan, dict[int, Run]] = {}
        for block in left:
            run = run_with(gone, block)
            rank = self.session.options.rank if form == "linear" else None
            bases.setdefault(without(plan, run), {})[block] = Run(run, form, rank)
        found = {}
        for base, runs in bases.items():
            fitted = self._fitted(base, list(runs.values()))
            found |= {block: base + fitted[run] for block, run in runs.items()}
        return {block: found[block] for block in left}

    def _fitted(self, base: Plan, runs: Sequence[Run]) -> dict[Run, Any]:
        missing = [run for run in runs if (base, run) not in self._fits]
        session = self.session
        if missing:
            made = fit_maps(
                session.loaded,
                session.encoded,
                self.probe,
                missing,
                under=base,
                packing=self.packing,
                progress=session.progress,
            )
            self._fits |= {(base, run): edit for run, edit in made.items()}
        return {run: self._fits[base, run] for run in runs}

    def points(self, order: Sequence[dict[str, Any]], form: str) -> list[Point]:
        """The same blocks gone in the same order in one form, as far as the form can."""
        plan, gone, points = self.session.empty, [], [Point(self.session.empty, {"blocks": 0.0})]
        count = self.session.loaded.anatomy.num_blocks
        for step in order:
            block = step["block"]
            if not may_go(gone, [block], form, contiguous=False):
                break
            plan = self._plans(plan, gone, [block], form)[block]
            gone.append(block)
            points.append(Point(plan, {"blocks": len(gone) / count}))
        return points
