"""Depth: whole blocks go, one after another; a linear map stands for them, or is folded into the network before them.

What goes next is chosen on `probe`, by the measured loss, by linearity or by cosine similarity, and maps are fitted
there; how far to go is chosen on `select`. Beside the form that is asked for, the others are measured at every depth,
and the orders in which cheaper measures would have taken blocks.
Sources: Razzhigaev et al. 2024 (arXiv 2405.12250); ReplaceMe (arXiv 2505.02819).
"""

from __future__ import annotations

import logging

from secateur import records
from secateur.core.noninferiority import MARGIN
from secateur.errors import PlanError, SecateurError
from secateur.hf.anatomy import Anatomy
from secateur.methods.depth.carriers import blocks_that_can_go
from secateur.methods.depth.record import depth_record
from secateur.methods.depth.runs import DepthPoint, FellBack
from secateur.methods.depth.steps import DepthSearch
from secateur.methods.method import CountingJudge, Proposal
from secateur.methods.removal import goal_of, kept_share
from secateur.options import Options, layers_of
from secateur.session import Session

LOG = logging.getLogger("secateur")
CHEAP = ("linearity", "cosine")  # measures that need no plan judged for every block that is left
FEW = 20
"""Tokens for each dimension of the stream; with fewer, a warning. Origin (docs/methods.md): from 10 to 20 on, maps give
back about as much as ever in domain, but on other text only later."""


def check(session: Session) -> None:
    """Raises `UnknownName` for layers, `PlanError` for what cannot be folded, `SecateurError` for sizes."""
    options, anatomy = session.options, session.loaded.anatomy
    if options.config.form == "fold" and not anatomy.foldable:
        raise PlanError(
            f"--form fold: {anatomy.architecture} has a norm after its feed-forward networks, so no linear map can be "
            "folded into them. Take --form linear, or drop."
        )
    if options.config.rank is not None and options.config.rank > anatomy.d_model:
        raise SecateurError(
            f"--rank {options.config.rank}: from 1 to {anatomy.d_model}, the width of this model."
        )
    _check_number(anatomy, options)


NEEDS = {  # what stops a block from going
    "drop": "one block of a model stays",
    "fold": "one block stays, and the block before those that go needs a feed-forward network stored as whole matrices",
    "linear": "one block stays, and where a map would lie there may be none of an earlier cut",
}


def _check_number(anatomy: Anatomy, options: Options) -> None:
    """Raises `SecateurError` where fewer blocks can go than are asked for, or none."""
    blocks, can = layers_of(anatomy, options), len(blocks_that_can_go(anatomy, options))
    form, number = options.config.form, options.config.blocks
    if not can:
        raise PlanError(f"--form {form}: no block of {blocks.start}:{blocks.stop} can go ({NEEDS[form]}).")
    if number is not None and number > can:
        raise SecateurError(
            f"--blocks {number}: from 1 to {can} of the {len(blocks)} blocks may go ({NEEDS[form]})."
        )


def search(session: Session) -> Proposal:
    """The plan, and every form at every depth for the report. `test` is not touched."""
    evaluator = session.judge()
    walk = DepthSearch(session, CountingJudge(evaluator), evaluator.packing)
    options, goal, select = (
        session.options,
        goal_of(session, session.options.config.max_loss),
        session.shuffled("select"),
    )
    _say_few_tokens(session)
    with session.timed("choose"):
        order = walk.order(options.config.by)
    if options.config.blocks is not None and len(order) < options.config.blocks:
        LOG.warning("only %d of %d blocks could go in one run.", len(order), options.config.blocks)
    with session.timed("analyze"):
        curves = {form: walk.points(order, form) for form in walk.forms}
        plans = dict.fromkeys(point.plan for points in curves.values() for point in points)
        outcomes = walk.judge(list(plans), select, "depth")
    points = curves[options.config.form]
    if options.config.blocks is not None and options.config.max_loss is None:
        number = len(points) - 1
    else:
        number = goal.choose(points, outcomes, [kept_share(session, point.plan) for point in points])
    for one in points[number].fell_back:
        LOG.warning("%s", _dropped_instead(one, options.config.form))
    with session.timed("analyze"):
        others = _other_orders(walk, max(1, number))
        outcomes |= walk.judge([p.plan for points_ in others.values() for p in points_], select, "depth")
        analysis = depth_record(session, curves, others, outcomes, order, goal.max_loss) | {"chosen": number}
        analysis |= {"fit_tokens": fit_tokens(session), "d_model": session.loaded.anatomy.d_model}
    found = {
        "method": "depth",
        "by": options.config.by,
        "form": options.config.form,
        "proposed": walk.judge.tried,
        "order": [step["block"] for step in order],
        "fell_back": [one.to_json() for one in points[number].fell_back],
    }
    margin = MARGIN if options.config.max_loss is None else options.config.max_loss
    base = records.base_record(outcomes[session.empty])
    return Proposal(
        points[number].plan,
        walk.judge.tried,
        walk.judge.evaluations,
        found,
        {"base": base, "depth": analysis},
        margin,
    )


def fit_tokens(session: Session) -> int:
    """How many tokens of `probe` maps are fitted to, and linearity is read on."""
    return sum(session.encoded[example].gold_alone.longest - 1 for example in session.task.split("probe"))


def _say_few_tokens(session: Session) -> None:
    options, d = session.options, session.loaded.anatomy.d_model
    tokens = fit_tokens(session)
    if tokens >= FEW * d or (options.config.form == "drop" and options.config.by != "linearity"):
        return
    LOG.warning(
        "maps and linearity scores are fitted to %s tokens of probe, %.1f for each of the %d dimensions; with fewer "
        "than %d what they give back is less, and less sure on other text. Give more text, or longer chunks.",
        f"{tokens:,}",
        tokens / d,
        d,
        FEW,
    )


def _dropped_instead(one: FellBack, form: str) -> str:
    """That a run is dropped although a map was asked for."""
    what = "folded map" if form == "fold" else "linear map"
    return (
        f"{one}: dropped, because the {what} fitted on probe does no better on select ({one.fitted:.4f} nats/token "
        f"against {one.dropped:.4f})."
    )


def _other_orders(walk: DepthSearch, most: int) -> dict[str, list[DepthPoint]]:
    """By each cheap measure that was not asked for: the same form, as deep as what was chosen."""
    options = walk.session.options
    others = (by for by in CHEAP if by != options.config.by)
    return {by: walk.points(walk.order(by, most), options.config.form) for by in others}
