"""Heads, feed-forward networks, or both: removed in steps, re-scored after each, as far as the task allows.

Importance is read on `probe`, how far to go is chosen on `select`. Beside the removal that is chosen from stand the
paper's, with ranks taken once, and random orders.
Source: Bansal et al. 2022 (arXiv 2212.09095).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from secateur import records
from secateur.core.noninferiority import MARGIN
from secateur.core.site import Site
from secateur.errors import PlanError
from secateur.hf.anatomy import Anatomy
from secateur.methods.components.importance import ImportanceReader, is_grouped, whole_ffns
from secateur.methods.components.record import pruning_record
from secateur.methods.method import CountingJudge, Proposal
from secateur.methods.removal import goal_of, kept_share, parameters_left
from secateur.options import layers_of
from secateur.search.removal import Goal, PrunableGroup, Pruner, Removal, advanced, steps
from secateur.session import Session
from secateur.surgery.operations import droppable
from secateur.surgery.portable import losses

LOG = logging.getLogger("secateur")


def check(session: Session) -> None:
    """Raises `UnknownName` for layers, `PlanError` for parts the model has none of, `SecateurError` for a share of the
    parameters that is out of reach."""
    everything = session.empty
    for kind in kinds_of(session):
        everything = advanced(everything, kind, 1.0, dict.fromkeys(kind.sites, 0.0))
    _goal(session).check_reach(kept_share(session, everything))


def _goal(session: Session) -> Goal:
    config = session.options.config
    return goal_of(session, config.max_loss, target=config.target, params=config.params)


def kinds_of(session: Session) -> list[PrunableGroup]:
    """The parts that may go. Raises `PlanError` where there are none, or a stock class could not hold what is left."""
    anatomy, method, portable = (
        session.loaded.anatomy,
        session.options.method,
        session.options.config.portable,
    )
    blocks = layers_of(anatomy, session.options)
    if portable:
        _check_portable(anatomy, method, blocks)
    found = []
    if method != "ffns":
        found.append(
            PrunableGroup("heads", _heads(anatomy, blocks), tuple(losses("g", anatomy)) if portable else ())
        )
    if method != "heads":
        ffns = _neurons(anatomy, blocks) if portable else whole_ffns(anatomy, blocks)
        found.append(PrunableGroup("ffns", ffns, tuple(losses("n", anatomy)) if portable else ()))
    for kind in found:
        if not kind.sites:
            raise PlanError(
                f"no {kind.name} of blocks {blocks.start}:{blocks.stop} can go: earlier cuts took all, or stored the "
                "matrices that they end in as two factors."
            )
    return found


def _check_portable(anatomy: Anatomy, method: str, blocks: range) -> None:
    """Raises `PlanError` where no cut of this kind leaves a stock model."""
    name, family = anatomy.architecture, anatomy.details
    if anatomy.carved:
        raise PlanError("--portable: this model has shapes of its own already; no plan makes it a stock one.")
    if len(blocks) < anatomy.num_blocks:
        raise PlanError(
            "--portable needs the same shape in every block, so it cannot be joined with --layers."
        )
    if method != "ffns" and not anatomy.free_heads:
        raise PlanError(
            f"--portable: {name} fixes the size of a head by their number, so a stock checkpoint has all of them. "
            "Take --method ffns, or leave out --portable."
        )
    if method != "heads" and family.width is None:
        raise PlanError(f"--portable: {name} fixes the width of its feed-forward networks.")


def _heads(anatomy: Anatomy, blocks: range) -> tuple[Site, ...]:
    """The heads, or KV groups, of these blocks that can go."""
    unit = "g" if is_grouped(anatomy) else "h"
    there = [block for block in blocks if droppable(Site(block, "attn"), anatomy)]
    counts = {block: anatomy.widths[block].num_kv_heads for block in there}
    return tuple(Site(block, "attn", unit, index) for block in there for index in range(counts[block]))


def _neurons(anatomy: Anatomy, blocks: range) -> tuple[Site, ...]:
    ffns = whole_ffns(anatomy, blocks)
    return tuple(Site(f.block, "mlp", "n", n) for f in ffns for n in range(anatomy.widths[f.block].d_ff))


def search(session: Session) -> Proposal:
    """All curves, and the furthest point that the goal allows. `test` is not touched."""
    options, evaluator, goal, kinds = session.options, session.judge(), _goal(session), kinds_of(session)
    snapped = _snapped(session, kinds)
    if options.config.target is not None and snapped:
        LOG.warning("--target %.0f%% is rounded to %s.", 100 * options.config.target, snapped)
    for kind in kinds:
        _say_what_stays(session, kind)
    judge, select, reader = (
        CountingJudge(evaluator),
        session.shuffled("select"),
        ImportanceReader(session, evaluator),
    )
    with session.timed("prune"):
        removals = _removals(session, kinds, reader, judge, select)
        plans = dict.fromkeys(point.plan for removal in removals for point in removal.points)
        outcomes = judge(list(plans), select, "prune")
        kept = [kept_share(session, point.plan) for point in removals[0].points]
        number = goal.choose(removals[0].points, outcomes, kept)
    with session.timed("analyze"):
        components = reader.components()
        pruning = pruning_record(session, goal, removals, outcomes, components)
    pruning |= {"chosen": {"order": removals[0].order, "point": number}, "snapped": snapped}
    orders = [removal.order for removal in removals]
    search = {
        "method": options.method,
        "proposed": judge.tried,
        "orders": orders,
        "step": options.config.step,
    }
    base = records.base_record(outcomes[session.empty])
    return Proposal(
        plan=removals[0].points[number].plan,
        tried=judge.tried,
        evaluations=judge.evaluations,
        search=search,
        analysis={"components": components, "pruning": pruning, "base": base},
        margin=MARGIN if options.config.max_loss is None else options.config.max_loss,
    )


def _say_what_stays(session: Session, kind: PrunableGroup) -> None:
    """A word about parts that are there and cannot go."""
    anatomy, part = session.loaded.anatomy, "attn" if kind.name == "heads" else "mlp"
    counts = {"attn": "num_heads", "mlp": "d_ff"}[part]
    there = [b for b in layers_of(anatomy, session.options) if vars(anatomy.widths[b])[counts]]
    stay = [str(Site(b, part)) for b in there if not droppable(Site(b, part), anatomy)]
    if stay:
        LOG.warning(
            "no %s of %s can go: the matrices they end in are stored as two factors by an earlier cut.",
            kind.name,
            ", ".join(stay),
        )


def _removals(
    session: Session,
    kinds: Sequence[PrunableGroup],
    reader: ImportanceReader,
    judge: CountingJudge,
    select: Sequence[int],
) -> list[Removal]:
    """Every order; first the one that is chosen from."""
    options = session.options
    pruner = Pruner(
        base=session.empty,
        kinds=kinds,
        shares=steps(options.config.step, options.config.target),
        read=reader.read,
        judge=judge,
        examples=select,
        count_parameters=lambda plan: parameters_left(session, plan),
        target=options.config.target or 1.0,
    )
    ranked = [
        pruner.by_importance(again=again) for again in (options.config.rescore, not options.config.rescore)
    ]
    return ranked + [pruner.at_random(seed, ranked[0]) for seed in range(options.config.random_orders)]


def _snapped(session: Session, kinds: Sequence[PrunableGroup]) -> str | None:
    """What shares are rounded to, where that is coarser than single heads or networks."""
    said = []
    if is_grouped(session.loaded.anatomy) and kinds[0].name == "heads":
        widths = session.loaded.anatomy.widths
        sizes = sorted({own.num_heads // own.num_kv_heads for own in widths if own.num_kv_heads})
        said.append(f"whole KV groups of {' or '.join(map(str, sizes))} query heads")
    if session.options.config.portable:
        said.append("the same number in every block")
    return ", ".join(said) or None
