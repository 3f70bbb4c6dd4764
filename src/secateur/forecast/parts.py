"""What taking out heads, networks or whole blocks will ask of a model. Counts only, as in `methods/forecast.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from secateur.core.site import Site
from secateur.forecast.work import (
    EXPECTED,
    LEAST,
    MOST,
    Generated,
    Judged,
    Plans,
    Read,
    Watched,
    Work,
    empty,
    scaled,
)
from secateur.hf.anatomy import Anatomy
from secateur.methods.components.readings import MAX_PROBED, whole_ffns
from secateur.methods.components.search import groups_of
from secateur.methods.depth.readings import SAMPLE
from secateur.methods.depth.search import CHEAP
from secateur.methods.depth.steps import Carriers, blocks_that_can_go, carriers_of, forms_of, may_go
from secateur.options import layers_of
from secateur.search.removal import PrunableGroup, steps
from secateur.session import Session


def lowest(blocks: Sequence[int], taken: float, luck: str) -> int:
    """The lowest block touched where a share `taken` of every block's worth of parts is gone: the highest it can be,
    its mean where parts go in no order, the lowest."""
    first, count = blocks[0], len(blocks)
    if luck == MOST:
        return first
    if luck == LEAST:
        return first + max(0, count - max(1, round(taken * count)))
    return first + min(count - 1, int(1 / max(taken, 1 / count)) // 2)


# ---------------------------------------------------------------------------------------------------------- components


def components(session: Session, sides: Sequence[Watched], luck: str) -> Iterator[Work]:
    """Every order, every step of it, and what the report shows of heads and networks."""
    options, kinds = session.options, groups_of(session)
    stops = [
        (kind, gone) for kind in kinds for gone in _stops(kind, options.config.step, options.config.target)
    ]
    points = [_taken(session.loaded.anatomy, kind, gone, luck) for kind, gone in stops]
    tries = len(kinds)  # each step of an order by importance judges the next step of either kind
    for kind, gone in stops:
        yield _ranked(session, "prune", kind.name, len(kind.sites), gone, luck)
    n = len(session.task.split("select"))
    ranked = 1 if luck == LEAST else 2  # ranks once may be the very order of ranks taken again
    orders = ranked * tries + options.config.random_orders
    same = int(tries == 1 < ranked)  # the first stop of both orders by importance
    asked = (empty(), *scaled(points[:1], orders - same), *scaled(points[1:-1], orders), points[-1])
    yield Judged("prune", "select", 0, n, asked)
    yield from _reported(session, [kind.name for kind in kinds], luck)
    for side in sides:
        if not side.phrasings:
            shown = (empty(), *scaled(points[:1], ranked - same), *scaled(points[1:-1], ranked), points[-1])
            yield Judged("analyze", side.name, 0, side.examples, shown)


def _stops(kind: PrunableGroup, step: float, target: float | None) -> list[int]:
    """How many parts are gone at each stop; one that takes nothing more is none."""
    gone = dict.fromkeys(round(share * len(kind.sites)) for share in steps(step, target))
    return [count for count in gone if count]


def _taken(anatomy: Anatomy, kind: PrunableGroup, gone: int, luck: str) -> Plans:
    """One plan without so many parts of a kind: they are zeros in an output projection of every block it touches."""
    blocks = sorted({site.block for site in kind.sites})
    each = len(kind.sites) / len(blocks)
    part = "o" if kind.name == "heads" else "down"
    taken = min(1.0, gone / each / len(blocks)) if each == 1 else min(1.0, gone / len(blocks))
    low = lowest(blocks, taken, luck)
    return Plans(1, low, tuple(Site(block, part) for block in blocks if block >= low)[:gone])


def _ranked(session: Session, stage: str, kind: str, parts: int, gone: int, luck: str) -> Work:
    """The reading before a stop: one pass with gradients, or every network that is left taken out in its turn."""
    probed = min(MAX_PROBED, len(session.task.split("probe")))
    if kind == "heads" or session.options.config.portable:
        what = "head importance" if kind == "heads" else "neuron importance"
        return Read(stage, what, "probe", probed, ())
    networks = whole_ffns(session.loaded.anatomy, layers_of(session.loaded.anatomy, session.options))
    low = networks[-1].block if gone <= 1 else lowest([site.block for site in networks], gone / parts, luck)
    plans = (Plans(1, min(low, site.block), (Site(site.block, "down"),)) for site in networks)
    return Judged(stage, "probe", 0, probed, scaled((empty(), *plans), 1 - max(0, gone - 1) / parts))


def _reported(session: Session, known: Sequence[str], luck: str) -> Iterator[Work]:
    """What the record says of the whole model: both importances, as far as they are not read yet, and behavior."""
    anatomy = session.loaded.anatomy
    heads = sum(own.num_heads for own in anatomy.widths)
    if "heads" not in known and heads:
        yield _ranked(session, "analyze", "heads", heads, 1, luck)
    if "ffns" not in known and whole_ffns(anatomy, layers_of(anatomy, session.options)):
        yield _ranked(session, "analyze", "ffns", session.loaded.anatomy.num_blocks, 1, luck)
    for what in ("behavior", "sides read"):
        yield Read("analyze", what, "probe", 0, ())


# --------------------------------------------------------------------------------------------------------------- depth


@dataclass(frozen=True)
class _Depth:
    """How deep a walk goes, and what its steps ask."""

    session: Session
    blocks: Sequence[int]
    luck: str

    @property
    def _carriers(self) -> Carriers:
        return carriers_of(self.session.loaded.anatomy)

    @property
    def can(self) -> list[int]:
        """The blocks that may go, now or after others."""
        form, anatomy = self.session.options.config.form, self.session.loaded.anatomy
        first = may_go([], self.blocks, form, self._carriers, contiguous=False)
        return sorted({*first, *blocks_that_can_go(anatomy, self.session.options, form)})

    @property
    def most(self) -> int:
        can = len(
            blocks_that_can_go(
                self.session.loaded.anatomy, self.session.options, self.session.options.config.form
            )
        )
        return min(self.session.options.config.blocks or can, can)

    def without(self, gone: int, form: str, count: float = 1.0) -> Plans:
        """Plans without so many blocks."""
        low = lowest(self.blocks, gone / len(self.blocks), self.luck)
        return Plans(count, *self._touched(low, form))

    def _touched(self, block: int, form: str) -> tuple[int, tuple[Site, ...]]:
        """The lowest block that a plan without `block` and what follows touches, and what it writes: a fold goes into
        the network before."""
        if form != "fold":
            return block, ()
        folds = self._carriers.folds
        before = max((fold for fold in folds if fold < block), default=min(folds))
        return before, (Site(before, "down"),)

    def _first(self, form: str) -> tuple[Site, ...]:
        """A block for which a map can be fitted alone."""
        every = range(self.session.loaded.anatomy.num_blocks)
        return (Site(max(may_go([], every, form, self._carriers, contiguous=False))),)

    def steps(self, by: str, most: int) -> Iterator[Work]:
        """Before each block goes: what all that are left measure."""
        n, form = len(self.session.task.split("probe")), self.session.options.config.form
        for gone in range(most):
            left = tuple(map(Site, self.can[: len(self.can) - gone]))
            if by != "loss":
                yield Read("choose", "similarity", "probe", n, left)
                continue
            if form != "drop":
                alone = tuple(site for site in left if self._carriers.carry((site.block,), form))
                yield Read("choose", "maps", "probe", n, alone or self._first(form))
            single = [Plans(1, *self._touched(site.block, form)) for site in left]
            yield Judged(
                "choose",
                "probe",
                0,
                n,
                tuple(single) if not gone else (self.without(gone + 1, form, len(left)),),
            )

    def points(self, form: str, most: int, *, fitted: bool) -> Iterator[Work]:
        """The same order in one form: a fit and a plan for every depth."""
        n, probed = (len(self.session.task.split(name)) for name in ("select", "probe"))
        if form != "drop" and not fitted:
            yield Read("analyze", "maps", "probe", probed, self._first(form), times=most)
        depths = range(1, most + 1)
        plans = [self.without(gone, form) for gone in depths]
        if form != "drop" and self.luck != LEAST:  # beside a map, the run that it stands for dropped
            plans += [self.without(gone, "drop") for gone in depths[1:]]
        yield Judged("analyze", "select", 0, n, tuple(plans))


def depth(session: Session, sides: Sequence[Watched], luck: str) -> Iterator[Work]:
    """The order, every form at every depth, what cheaper orders would have taken, and a sample of each plan."""
    options, anatomy = session.options, session.loaded.anatomy
    walk = _Depth(session, layers_of(anatomy, options), luck)
    forms = forms_of(anatomy)
    yield from walk.steps(options.config.by, walk.most)
    for form in forms:
        yield from walk.points(
            form, walk.most, fitted=form == options.config.form and options.config.by == "loss"
        )
    plans = [empty(), *(walk.without(g, form) for form in forms for g in range(1, walk.most + 1))]
    for side in sides:
        if not side.phrasings:
            yield Judged("analyze", side.name, 0, side.examples, tuple(plans))
    yield Read("analyze", "sides read", "probe", 0, ())
    yield Generated("analyze", 1, SAMPLE, len(plans))
    chosen = {LEAST: 1, EXPECTED: max(1, walk.most // 2), MOST: walk.most}[luck]
    for by in CHEAP:
        if by != options.config.by:
            yield from walk.steps(by, chosen)
            yield from walk.points(options.config.form, chosen, fitted=False)
