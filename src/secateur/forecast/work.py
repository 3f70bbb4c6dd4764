"""What a method will ask of a model, before it asks: plans to judge, passes to read by. Plain values; counts only.

Where a search decides as it goes there are three answers: the least it can ask, the most, and what searches have asked
in the mean so far. Knows shapes and the options; never weights, and no seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from secateur.core.site import Site
from secateur.evaluation.measurement import GENERATED_TOKENS
from secateur.methods.laser.probe import MAX_PROBED
from secateur.methods.laser.search import COMPOSED, KEPT_BY_SCREEN, SHOWN_EXAMPLES, candidates
from secateur.session import Session
from secateur.tasks.joint import tested

LEAST, EXPECTED, MOST = LUCKS = ("least", "expected", "most")
FIRST_RUNG = 32  # examples, as in `search.laser.race`
SURVIVING = 0.55  # of the runners after each rung: median of a few races on small models, see docs/scale.md
ADDED = 2  # times that composition tries the best cuts beside those taken: once it adds one, once none
CONTINUED = 32  # chunks of text that the verdict continues
CUT_MATRICES = 2  # that a composed plan has, of which all ranks are shown


CHORES = ("behavior", "sides read", "reload", "report", "statistics")


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
        return (self.last - self.first) * sum(plans.count for plans in self.plans)


@dataclass(frozen=True)
class Read:
    """A reading named `what` on the first `examples` of a place, `times` over, of `parts`: sites, or blocks as sites.
    Under a plan matrices are decomposed for the plan, too. `anew`: these are no decompositions that could be kept. Some
    are no readings, but take their time: `CHORES`."""

    stage: str
    what: str
    place: str
    examples: int
    parts: tuple[Site, ...]
    times: float = 1.0
    decomposes: bool = False
    under: bool = False
    anew: bool = False


@dataclass(frozen=True)
class Generated:
    """Greedy text: `rows` prompts side by side, `tokens` each, under `plans` plans."""

    stage: str
    rows: int
    tokens: int
    plans: float


Work = Judged | Read | Generated


@dataclass(frozen=True)
class Watched:
    """A side effect: its place, how many examples it has, whether text is continued, whether it is `test` in other
    words."""

    name: str
    examples: int
    continued: bool
    phrasings: bool


def empty(count: float = 1.0) -> Plans:
    """The model as it is."""
    return Plans(count, 0)


def raced(
    stage: str,
    plans: Sequence[Plans],
    n: int,
    luck: str,
    *,
    exhaustive: bool = False,
    surviving: float = SURVIVING,
) -> Iterator[Judged]:
    """A race on `select`, rung by rung. Least: all but the leader drop at the first rung. Most: nobody does."""
    total = sum(one.count for one in plans)
    share, at, count = 1.0, 0, n if exhaustive else min(FIRST_RUNG, n)
    while total:
        yield Judged(stage, "select", at, count, scaled(plans, share), decomposes=True)
        if count == n:
            return
        share = {LEAST: 0.0, EXPECTED: share * surviving, MOST: share}[luck]
        share = max(share, min(1.0, 1 / total))
        at, count = count, n if share * total <= 1 else min(2 * count, n)


def scaled(plans: Sequence[Plans], share: float) -> tuple[Plans, ...]:
    return tuple(replace(one, count=one.count * share) for one in plans)


def laser(session: Session, sides: Sequence[Watched], luck: str) -> Iterator[Work]:
    """Screen, race, composition, and what the report shows of the search."""
    options, n = session.options, len(session.task.split("select"))
    grid = by_matrix(session)
    total = sum(one.count for one in grid)
    kept = 1.0 if options.config.exhaustive else math.ceil(KEPT_BY_SCREEN * total) / total
    if not options.config.exhaustive:
        probed = min(MAX_PROBED, len(session.task.split("probe")))
        sites = tuple(one.edited[0] for one in grid)
        yield Read("screen", "truncation effects", "probe", probed, sites, decomposes=True)
    yield from raced("race", (empty(), *scaled(grid, kept)), n, luck, exhaustive=options.config.exhaustive)
    if options.config.compose:
        beside = min(COMPOSED, len(grid))
        tried = sum({LEAST: [], EXPECTED: [beside] * ADDED, MOST: range(beside)}[luck])
        one_each = [replace(one, count=tried / len(grid)) for one in grid]
        yield Judged("compose", "select", 0, n, tuple(one_each), decomposes=True)
    yield from _shown(session, grid, kept, luck)


def by_matrix(session: Session) -> tuple[Plans, ...]:
    """LASER's grid: of every matrix its ranks."""
    ranks: dict[Site, list[int]] = {}
    for edit in candidates(session.loaded.anatomy, session.options):
        ranks.setdefault(edit.matrix, []).append(edit.rank)
    return tuple(
        Plans(len(own), site.block, (site,), sum(own) / len(own)) for site, own in sorted(ranks.items())
    )


def _shown(session: Session, grid: Sequence[Plans], kept: float, luck: str) -> Iterator[Work]:
    """Curves of the matrices that were cut, as far as the race did not judge them, and what their parts answer."""
    shown = min(SHOWN_EXAMPLES, len(session.task.split("select")))
    cut = {LEAST: 1, EXPECTED: min(CUT_MATRICES, len(grid)), MOST: len(grid)}[luck] / len(grid)
    tails = 0 if session.task.kind == "text" else 2
    plans = [replace(one, count=cut * (one.count * (1 - kept) + tails)) for one in grid]
    yield Judged("analyze", "select", 0, shown, tuple(plans), decomposes=True)


def proof(session: Session, sides: Sequence[Watched]) -> Iterator[Work]:
    """The verdict: both models on `test` and on each side, and what could be had without cutting."""
    n, kind = len(tested(session.task)), session.task.kind
    alternative = 0 if kind == "text" else 1  # one token banned, or a bias per answer
    yield Judged("verify", "test", 0, n, (empty(2 + alternative),))
    for what in ("reload", "report", "sides read"):
        yield Read("verify", what, "test", n, ())
    yield Read("verify", "statistics", "test", n, (), times=3 + len(sides))
    for side in sides:
        yield Judged("sides", side.name, 0, side.examples, (empty(2),))
        if side.continued:
            yield Generated("sides", min(CONTINUED, side.examples), GENERATED_TOKENS, 2)
