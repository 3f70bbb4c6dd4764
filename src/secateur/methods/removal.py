"""Goal, parameters left, side tasks, and which parts can go, for methods that remove parts as far as a bound allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from secateur.core.noninferiority import MARGIN
from secateur.core.plan import Linearize, Plan
from secateur.core.score import METRICS
from secateur.core.site import Site
from secateur.evaluation.batching import Packing
from secateur.hf.anatomy import Anatomy
from secateur.options import layers_of
from secateur.probes.maps import BlockRun, fit_maps
from secateur.search.removal import Goal
from secateur.session import Session
from secateur.side_tasks import side_effects
from secateur.surgery.operations import droppable, droppable_experts
from secateur.surgery.shape import shape_of

Blocks = tuple[int, ...]  # side by side, in ascending order


def goal_of(
    session: Session, max_loss: float | None, *, target: float | None = None, params: float | None = None
) -> Goal:
    """Return the goal that the user set; where nothing is set, to go as far as the default margin allows."""
    free = target is None and params is None
    bound = MARGIN if max_loss is None and free else max_loss
    return Goal(session.objective.metric, bound, target, params)


def side_values(
    session: Session, plans: Sequence[Plan]
) -> tuple[dict[Plan, dict[str, float]], dict[str, str]]:
    """Return each side task's metric under each plan, and its unit, by the names of the side tasks."""
    values: dict[Plan, dict[str, float]] = {plan: {} for plan in plans}
    units = {}
    for side in side_effects(session):
        if side.phrasings:  # of the test questions, which are not looked at yet
            continue
        metric = METRICS[side.task.primary_metric]
        units[side.name] = metric.unit
        judge = session.on(side.task).judge()
        for plan, outcomes in judge(plans, range(len(side.task.examples)), "side effects").items():
            values[plan][side.name] = metric.mean(outcomes)
    return values, units


def fitted_maps(
    session: Session,
    plan: Plan,
    runs: Sequence[BlockRun],
    packing: Packing,
    examples: Sequence[int] | None = None,
) -> Mapping[BlockRun, Linearize]:
    """Return a map for each of `runs`, fitted on `examples` (None: all of `probe`) in the model that `plan` leaves."""
    examples = session.task.split("probe") if examples is None else examples
    return fit_maps(
        session.loaded,
        session.encoded,
        examples,
        runs,
        groups=session.task.groups(examples).tolist(),
        under=plan,
        packing=packing,
        progress=session.progress,
    )


def parameters_left(session: Session, plan: Plan) -> int:
    """Return the number of parameters that a plan leaves."""
    return shape_of(plan, session.loaded.anatomy).num_parameters(session.loaded.anatomy)


def kept_share(session: Session, plan: Plan) -> float:
    """Return the fraction of the model's parameters that a plan leaves."""
    return parameters_left(session, plan) / session.loaded.anatomy.num_parameters


# ---------------------------------------------------------------------------------------------------- parts and runs


def is_grouped(anatomy: Anatomy) -> bool:
    """Tell whether query heads share keys, so that only whole groups can leave."""
    return any(width.num_heads != width.num_kv_heads for width in anatomy.widths)


def heads_of(session: Session) -> tuple[Site, ...]:
    """Return the heads of the blocks asked for that can go; of grouped-query attention whole KV groups."""
    anatomy = session.loaded.anatomy
    return tuple(
        whole.beside(whole.part, "g" if is_grouped(anatomy) else "h", index)
        for whole in anatomy.attentions(layers_of(anatomy, session.options))
        if droppable(whole, anatomy)
        for index in range(anatomy.heads(whole)[1])
    )


def experts_of(session: Session) -> tuple[Site, ...]:
    """Return the experts of the blocks asked for, where some can go."""
    anatomy = session.loaded.anatomy
    return tuple(
        Site(block, "mlp", "e", index)
        for block in layers_of(anatomy, session.options)
        if droppable_experts(anatomy, block)
        for index in range(anatomy.widths[block].num_experts)
    )


def experts_left(session: Session, plan: Plan) -> list[Site]:
    """Return the experts of which one more can go after `plan`."""
    anatomy, gone = session.loaded.anatomy, set(plan.dropped)
    counts = Counter(site.block for site in gone if site.unit == "e")
    return [
        site
        for site in experts_of(session)
        if site not in gone and counts[site.block] < droppable_experts(anatomy, site.block)
    ]


@dataclass(frozen=True)
class Carriers:
    """Places that can carry the maps that replace runs of blocks.

    Args:
        folds: Blocks into whose network a map can be folded.
        entries: Blocks that a map can lie before; the number of blocks stands for the final norm.
        kept_from: Sets of blocks of each of which one has to stay.
    """

    folds: frozenset[int]
    entries: frozenset[int]
    kept_from: tuple[frozenset[int], ...]

    def carry(self, run: Blocks, form: str) -> bool:
        """Tell whether `form` can replace this run, whose neighbors stay."""
        return form == "drop" or (run[0] - 1 in self.folds if form == "fold" else run[-1] + 1 in self.entries)


def carriers_of(anatomy: Anatomy) -> Carriers:
    """Return what of this model can carry a fold or a map.

    In a model that was cut a network may be gone or stored as two factors, and a map may lie where another would.
    """
    whole = {site.block for site in anatomy.matrices if site.part == "down"}
    ends = {**dict(enumerate(anatomy.blocks)), anatomy.num_blocks: anatomy.final_norm}
    free = {number for number, path in ends.items() if path is not None and path not in anatomy.entered}
    if anatomy.num_encoder:  # of which no map is fitted
        free = set()
    folds = frozenset(whole if anatomy.foldable else ())
    return Carriers(folds, frozenset(free), anatomy.kept_from)


def run_with(gone: Collection[int], block: int) -> Blocks:
    """Return the blocks that are gone around `block`, with it: one run."""
    first = last = block
    while first - 1 in gone:
        first -= 1
    while last + 1 in gone:
        last += 1
    return tuple(range(first, last + 1))
