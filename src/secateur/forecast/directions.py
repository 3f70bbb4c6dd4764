"""What removing directions will ask of a model. Counts only, as in `methods/forecast.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from secateur.core.site import Site
from secateur.forecast.work import EXPECTED, LEAST, MOST, Judged, Plans, Read, Watched, Work, empty, raced
from secateur.hf.anatomy import Anatomy
from secateur.methods.directions.pools import GROWTH, POOLS
from secateur.methods.directions.readings import MAX_PROBED
from secateur.methods.directions.search import ROUNDS
from secateur.options import matrices_of
from secateur.search.removal import steps
from secateur.session import Session

ROUNDS_WALKED = {LEAST: 1, EXPECTED: 4, MOST: ROUNDS}  # expected: of one search, see docs/scale.md
HARMLESS = {LEAST: 0.1, EXPECTED: 0.7, MOST: 1.0}  # of a pool's directions, by the prediction
SURVIVING = 0.75  # after a rung: plans of nested pools are much alike


def directions(session: Session, sides: Sequence[Watched], luck: str) -> Iterator[Work]:
    """By the protocol: rounds of races, one walk, or one plan."""
    options = session.options
    sites = tuple(matrices_of(session.loaded.anatomy, options))
    n, protocol = len(session.task.split("select")), session.options.config.chosen_protocol
    reading = Read(
        "choose",
        "direction effects",
        "probe",
        min(MAX_PROBED, len(session.task.split("probe"))),
        sites,
        decomposes=True,
        anew=options.config.per_head or options.config.whitened,
    )
    if protocol == "search":
        rounds = ROUNDS_WALKED[luck] if options.config.rescore else 1
        pools = _pools(session.loaded.anatomy, sites, luck, dynamic=options.config.dynamic)
        n = math.ceil(n / 2)  # rounds are built on one half and confirmed on the other
        for number in range(rounds):
            yield replace(reading, under=number > 0)
            yield from raced(
                "choose",
                (empty(), *pools),
                n,
                luck,
                exhaustive=options.config.exhaustive,
                surviving=SURVIVING,
            )
        path = _removed(session.loaded.anatomy, sites, rounds)
        yield Judged("choose", "select", 0, n, (empty(), path), decomposes=True)
        return
    points = len(steps(options.config.step, options.config.target)) if protocol == "removal" else 1
    for number in range(points if options.config.rescore and protocol == "removal" else 1):
        yield replace(reading, under=number > 0)
    whole = _removed(session.loaded.anatomy, sites, points)
    yield Judged("choose", "select", 0, n, (empty(), whole), decomposes=True)


def _removed(anatomy: Anatomy, sites: Sequence[Site], count: float) -> Plans:
    """Plans that take directions out of all of `sites`; half of them, in the mean."""
    rank = sum(min(anatomy.matrix(site).shape) for site in sites) / len(sites) / 2
    return Plans(count, min(site.block for site in sites), tuple(sites), rank)


def _pools(anatomy: Anatomy, sites: Sequence[Site], luck: str, *, dynamic: bool) -> list[Plans]:
    """All matrices, those of each kind and each alone, as many as a round takes; each in its numbers of directions."""
    pools = [tuple(sites)]
    if dynamic:
        kinds = [tuple(s for s in sites if s.part == kind) for kind in dict.fromkeys(s.part for s in sites)]
        alone = [(site,) for site in sites]
        room = max(1, POOLS - 1 - len(kinds))
        pools += [*kinds, *alone[:: max(1, math.ceil(len(alone) / room))]]
    distinct = list(dict.fromkeys(pools))[:POOLS]
    return [_removed(anatomy, own, _numbers(anatomy, own, luck)) for own in distinct]


def _numbers(anatomy: Anatomy, sites: Sequence[Site], luck: str) -> int:
    """How many counts a pool is tried at: 1, 2, 3, 4, 6, 8, ... up to what is harmless, and two more."""
    most = HARMLESS[luck] * sum(min(anatomy.matrix(site).shape) for site in sites)
    powers = range(max(1, math.ceil(math.log(max(most, GROWTH), GROWTH))))
    return len({round(GROWTH**power) for power in powers}) + 2
