"""Iterative pruning on invented outcomes, in milliseconds: what goes at each step, in which order, where it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest

from secateur.core.plan import Drop, Plan
from secateur.core.score import METRICS, OUTCOME
from secateur.core.site import Site
from secateur.errors import SecateurError
from secateur.search.removal import (
    ONCE,
    RANDOM,
    RESCORED,
    Goal,
    PrunableGroup,
    Pruner,
    Removal,
    RemovalPoint,
    steps,
)

BASE = Plan("m")


def heads(blocks: int, each: int) -> tuple[Site, ...]:
    return tuple(Site(b, "attn", "h", h) for b in range(blocks) for h in range(each))


def ffns(blocks: int) -> tuple[Site, ...]:
    return tuple(Site(b, "mlp") for b in range(blocks))


def dropping(*sites: Site) -> Plan:
    return Plan("m", tuple(map(Drop, sites)))


def first_to_last(plan: Plan, kind: str) -> dict[Site, float]:
    """Every part is worth its place in the model."""
    every = {"heads": heads(9, 60), "ffns": ffns(9)}[kind]
    return {site: float(number) for number, site in enumerate(every)}


class Judge:
    """Every example has the loss that a function of the plan says; keeps account of what it is asked."""

    def __init__(self, loss: Callable[[Plan], float]) -> None:
        self._loss, self.asked = loss, []

    def __call__(
        self, plans: Sequence[Plan], examples: Sequence[int], stage: str
    ) -> Mapping[Plan, np.ndarray]:
        self.asked.append((tuple(plans), tuple(examples)))
        return {plan: outcomes(loss=self._loss(plan), n=len(examples)) for plan in plans}


def outcomes(*, loss: float = 0.0, right: int = 0, n: int = 100) -> np.ndarray:
    out = np.zeros(n, OUTCOME)
    out["example"], out["tokens"], out["loss"] = range(n), 1, loss
    out["correct"][:right] = 1
    return out


def pruner(*kinds: PrunableGroup, shares: Sequence[float] | None = None, **given) -> Pruner:
    def forbidden(*_):
        raise AssertionError("one kind alone is removed without judging")

    defaults = {"read": first_to_last, "judge": forbidden, "count_parameters": lambda plan: 1000 - len(plan)}
    return Pruner(BASE, kinds, steps(0.1) if shares is None else shares, examples=(4, 2), **defaults | given)


def added(removal: Removal) -> list[set[Site]]:
    """What went at each step."""
    return [set(b.plan.dropped) - set(a.plan.dropped) for a, b in pairwise(removal.points)]


# -------------------------------------------------------------------------------------------------------------- steps


def test_steps_are_multiples_up_to_everything_with_the_target_among_them():
    tenths = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert steps(0.1) == tenths
    assert steps(0.3) == [0.3, 0.6, 0.9, 1.0]
    assert steps(1.0) == [1.0]
    assert steps(0.1, 0.7) == tenths
    assert steps(0.25, 0.6) == [0.25, 0.5, 0.6, 0.75, 1.0]
    assert len(steps(1 / 3)) == 3
    assert len(steps(0.01)) == 100


# --------------------------------------------------------------------------------------------------------------- kind


def test_the_least_important_go_first_and_ties_in_the_order_of_their_addresses():
    kind = PrunableGroup("heads", heads(1, 4))
    worth = dict(zip(kind.sites, (2.0, 1.0, 1.0, 0.5), strict=True))
    order = [kind.sites[3], kind.sites[1], kind.sites[2], kind.sites[0]]
    for count in range(5):
        assert kind.next_to_go(set(), count / 4, worth) == order[:count]
    assert PrunableGroup("heads", kind.sites[::-1]).next_to_go(set(), 0.5, worth) == order[:2]


def test_what_is_gone_counts_towards_the_share():
    kind = PrunableGroup("heads", heads(2, 5))
    gone = {kind.sites[9], kind.sites[4]}
    assert kind.next_to_go(gone, 0.2, first_to_last(BASE, "heads")) == []
    assert kind.next_to_go(gone, 0.4, first_to_last(BASE, "heads")) == list(kind.sites[:2])
    assert kind.next_to_go(gone, 0.1, first_to_last(BASE, "heads")) == []
    assert set(kind.next_to_go(gone, 1.0, first_to_last(BASE, "heads"))) == set(kind.sites) - gone


@pytest.mark.parametrize(("total", "share", "count"), [(48, 0.1, 5), (7, 0.5, 4), (7, 0.1, 1), (3, 0.1, 0)])
def test_a_share_is_rounded_to_whole_parts(total, share, count):
    kind = PrunableGroup("heads", heads(1, total))
    worth = dict.fromkeys(kind.sites, 0.0)
    assert len(kind.next_to_go(set(), share, worth)) == count


def test_uniform_takes_as_many_from_every_block_whatever_they_are_worth_and_leaves_one():
    kind = PrunableGroup("heads", heads(3, 4), removable_counts=(0, 1, 2, 3))
    worth = {site: site.block * 100.0 - site.index for site in kind.sites}
    for share in (0.25, 0.5, 0.75, 1.0):
        going = kind.next_to_go(set(), share, worth)
        each = min(round(4 * share), 3)
        assert sorted(going) == sorted(Site(b, "attn", "h", 3 - i) for b in range(3) for i in range(each))


# ------------------------------------------------------------------------------------------------------------ removal


@pytest.mark.parametrize(("total", "step"), [(48, 0.1), (7, 0.1), (7, 0.3), (1, 0.1), (10, 0.15)])
def test_points_go_from_nothing_to_everything_and_each_holds_the_one_before(total, step):
    kind = PrunableGroup("heads", heads(1, total))
    walked = pruner(kind, shares=steps(step), read=lambda *_: dict.fromkeys(kind.sites, 0.0))
    removal = walked.by_importance(again=True)
    assert removal.points[0] == RemovalPoint(BASE, {"heads": 0.0})
    assert set(removal.points[-1].plan.dropped) == set(kind.sites)
    assert all(added(removal)), "a point that removes nothing more"
    for before, after in pairwise(removal.points):
        assert set(before.plan.dropped) < set(after.plan.dropped)
        assert abs(len(after.plan) - after.shares["heads"] * total) <= 0.5


def test_ten_percent_of_forty_eight_heads_at_a_time():
    removal = pruner(PrunableGroup("heads", heads(6, 8))).by_importance(again=True)
    assert [len(point.plan) for point in removal.points] == [0, 5, 10, 14, 19, 24, 29, 34, 38, 43, 48]


def test_a_target_between_steps_is_a_point():
    removal = pruner(PrunableGroup("heads", heads(2, 8)), shares=steps(0.5, 0.7)).by_importance(again=True)
    assert [len(point.plan) for point in removal.points] == [0, 8, 11, 16]
    assert removal.points[2].shares == {"heads": 0.7}


def test_only_some_numbers_may_go():
    """Of four a block, two may go or three: half a step short of two nothing goes yet."""
    kind = PrunableGroup("heads", heads(3, 4), removable_counts=(0, 2, 3))
    importance = {site: float(site.index) for site in kind.sites}
    counts = [len(kind.next_to_go(set(), share, importance)) for share in (0.25, 0.5, 0.75, 1.0)]
    assert counts == [0, 6, 9, 9]


def test_uniform_points_leave_one_in_every_block():
    removal = pruner(PrunableGroup("heads", heads(3, 4), removable_counts=(0, 1, 2, 3))).by_importance(
        again=True
    )
    counts = [[sum(s.block == b for s in p.plan.dropped) for b in range(3)] for p in removal.points]
    assert counts == [[0] * 3, [1] * 3, [2] * 3, [3] * 3]


class Fickle:
    """Reads the parts in order while nothing is gone, and backwards thereafter."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []

    def __call__(self, plan: Plan, kind: str) -> dict[Site, float]:
        self.asked.append((len(plan), kind))
        worth = first_to_last(plan, kind)
        return {site: -value for site, value in worth.items()} if plan.edits else worth


def test_re_scoring_listens_to_a_read_that_changes_its_mind_and_ranks_once_do_not():
    kind, again, once = PrunableGroup("heads", heads(1, 9)), Fickle(), Fickle()
    thirds = [1 / 3, 2 / 3, 1.0]
    rescored = pruner(kind, shares=thirds, read=again).by_importance(again=True)
    by_once = pruner(kind, shares=thirds, read=once).by_importance(again=False)
    s = kind.sites
    assert (rescored.order, by_once.order) == (RESCORED, ONCE)
    assert added(rescored) == [set(s[:3]), set(s[6:]), set(s[3:6])]
    assert added(by_once) == [set(s[:3]), set(s[3:6]), set(s[6:])]
    assert again.asked == [(0, "heads"), (3, "heads"), (6, "heads")]
    assert once.asked == [(0, "heads")], "ranks were taken more than once"


def test_random_orders_are_the_same_again_and_others_for_other_seeds():
    kind = PrunableGroup("heads", heads(6, 8))
    like = pruner(kind).by_importance(again=True)
    found = [pruner(kind).at_random(seed, like) for seed in range(6)]
    assert found == [pruner(kind).at_random(seed, like) for seed in range(6)]
    assert len({removal.points[5].plan for removal in found}) == 6
    for seed, removal in enumerate(found):
        assert (removal.order, removal.seed) == (RANDOM, seed)
        assert [p.shares for p in removal.points] == [p.shares for p in like.points]
        assert [len(p.plan) for p in removal.points] == [len(p.plan) for p in like.points]
        assert all(set(a.plan.dropped) < set(b.plan.dropped) for a, b in pairwise(removal.points))


def test_random_orders_favor_no_part():
    """Over 300 seeds each of 8 heads goes first about 37 times; 6 standard deviations are 34."""
    kind = PrunableGroup("heads", heads(1, 8))
    like = pruner(kind, shares=[1 / 8, 1.0]).by_importance(again=True)
    first = [pruner(kind).at_random(seed, like).points[1].plan.dropped[0].index for seed in range(300)]
    assert np.bincount(first, minlength=8).max() < 72
    assert np.bincount(first, minlength=8).min() > 10


def test_random_orders_of_uniform_kinds_are_uniform():
    kind = PrunableGroup("heads", heads(3, 4), removable_counts=(0, 1, 2, 3))
    like = pruner(kind).by_importance(again=True)
    for point in pruner(kind).at_random(5, like).points:
        assert len({sum(s.block == b for s in point.plan.dropped) for b in range(3)}) == 1


# ------------------------------------------------------------------------------------------------------------- greedy


def both(shares: Sequence[float], loss: Callable[[Plan], float], weigh=None, **given) -> tuple[Pruner, Judge]:
    judge = Judge(loss)
    kinds = (PrunableGroup("heads", heads(2, 2)), PrunableGroup("ffns", ffns(2)))
    weigh = weigh or (lambda plan: 1000 - sum(100 if s.part == "mlp" else 10 for s in plan.dropped))
    return pruner(*kinds, shares=shares, judge=judge, count_parameters=weigh, **given), judge


def costing(head: float, ffn: float) -> Callable[[Plan], float]:
    return lambda plan: 1 + sum(ffn if site.part == "mlp" else head for site in plan.dropped)


def path(removal: Removal) -> list[tuple[float, float]]:
    return [(point.shares["heads"], point.shares["ffns"]) for point in removal.points]


@pytest.mark.parametrize(
    ("head", "ffn", "first"),
    [
        (0.1, 0.9, "ffns"),
        (0.1, 1.1, "heads"),
        (0.0, 0.1, "heads"),
        (0.1, -0.1, "ffns"),
        (-0.2, -0.1, "ffns"),  # where both help, what frees more
        (-0.3, -0.1, "heads"),
    ],
)
def test_the_kind_goes_that_costs_least_loss_per_parameter(head, ffn, first):
    """A step frees 20 parameters of heads or 100 of a network, so the even price is 5 steps of heads to one."""
    found = path(both([0.5, 1.0], costing(head, ffn))[0].by_importance(again=True))
    heads_first = [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (1.0, 0.5), (1.0, 1.0)]
    ffns_first = [(0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (0.5, 1.0), (1.0, 1.0)]
    assert found == (heads_first if first == "heads" else ffns_first)


def test_greedy_judges_every_option_of_every_step_on_all_examples_and_takes_the_cheapest():
    """Beside a loss in which the price of one part depends on all that are gone, by brute force."""
    rng = np.random.default_rng(3)
    prices: dict[Plan, float] = {}

    def loss(plan: Plan) -> float:
        return prices.setdefault(plan, float(rng.uniform(1, 2)))

    pruned, judge = both([0.25, 0.5, 0.75, 1.0], loss)
    removal = pruned.by_importance(again=True)
    for before, after in pairwise(removal.points):
        options = [
            RemovalPoint(dropping(*before.plan.dropped, *more), after.shares) for more in _nexts(before.plan)
        ]
        size = pruned.count_parameters(before.plan)
        price = {}
        for option in options:
            cost, freed = (
                prices[option.plan] - prices[before.plan],
                size - pruned.count_parameters(option.plan),
            )
            price[option.plan] = cost / freed if cost > 0 else cost * freed
        assert after.plan == min(price, key=price.get)
    assert all(examples == (4, 2) for _, examples in judge.asked)
    assert set(removal.points[-1].plan.dropped) == {*heads(2, 2), *ffns(2)}


def _nexts(plan: Plan) -> list[list[Site]]:
    """One head more, or one network more, in their order."""
    left = [[s for s in every if s not in plan.dropped] for every in (heads(2, 2), ffns(2))]
    return [sites[:1] for sites in left if sites]


def test_steps_that_move_no_whole_part_are_passed_over():
    """At 10 % of 2 networks nothing goes; the option is the next share at which one does."""
    found = path(both(steps(0.1), costing(1.0, 0.0))[0].by_importance(again=True))
    assert [ffn for _, ffn in found[:3]] == [0.0, 0.3, 0.8]
    assert len(set(found)) == len(found)


def test_greedy_random_orders_follow_its_shares():
    pruned, _ = both([0.5, 1.0], costing(0.1, 0.6))
    like = pruned.by_importance(again=True)
    drawn = pruned.at_random(1, like)
    assert path(drawn) == path(like)
    for one, other in zip(drawn.points, like.points, strict=True):
        count = [sum(s.part == "mlp" for s in point.plan.dropped) for point in (one, other)]
        assert count[0] == count[1]
        assert len(one.plan) == len(other.plan)


def test_with_a_target_both_kinds_reach_it_before_either_goes_on():
    pruned, _ = both([0.25, 0.5, 0.75, 1.0], costing(0.0, 5.0), target=0.5)
    removal = pruned.by_importance(again=True)
    assert (0.5, 0.5) in path(removal)
    chosen = Goal(METRICS["loss"], target=0.5).choose(removal.points, {}, [1.0] * len(removal.points))
    assert path(removal)[chosen] == (0.5, 0.5)
    assert set(removal.points[-1].plan.dropped) == {*heads(2, 2), *ffns(2)}


# --------------------------------------------------------------------------------------------------------------- goal

KIND = PrunableGroup("heads", heads(1, 10))
WALK = pruner(KIND).by_importance(again=True).points
KEPT = [1 - 0.05 * number for number in range(11)]
RIGHT = [90, 90, 91, 89, 88, 87, 90, 60, 50, 40, 10]
BY_PLAN = {
    p.plan: outcomes(right=right, loss=1 + i / 100)
    for i, (p, right) in enumerate(zip(WALK, RIGHT, strict=True))
}


def chosen(metric: str = "accuracy", **how) -> int:
    return Goal(METRICS[metric], **how).choose(WALK, BY_PLAN, KEPT)


@pytest.mark.parametrize(
    ("how", "point"),
    [
        ({}, 10),
        ({"max_loss": 0.0}, 6),  # the furthest that holds, though some before it do not
        ({"max_loss": 0.02}, 6),
        ({"max_loss": 0.3}, 7),
        ({"max_loss": 0.4}, 8),
        ({"max_loss": 1.0}, 10),
        ({"target": 0.5}, 5),
        ({"target": 0.55}, 5),
        ({"target": 1.0}, 10),
        ({"params": 0.8}, 4),
        ({"params": 0.79}, 5),
        ({"params": 0.5}, 10),
        ({"params": 1.0}, 0),
        ({"target": 0.3, "params": 0.8}, 3),
        ({"target": 0.5, "params": 0.8}, 4),
        ({"target": 0.5, "max_loss": 0.02}, 4),
        ({"target": 0.5, "max_loss": 0.0}, 2),
        ({"target": 0.8, "max_loss": 0.02}, 6),
        ({"params": 0.75, "max_loss": 0.01}, 3),
        ({"params": 0.75, "max_loss": 0.05}, 5),
        ({"target": 0.4, "params": 0.9, "max_loss": 0.5}, 2),
    ],
)
def test_the_furthest_point_that_all_bounds_allow(how, point):
    assert chosen(**how) == point


def test_of_a_loss_more_is_worse():
    assert chosen("loss", max_loss=0.05) == 5
    assert chosen("loss", max_loss=0.0) == 0


def test_a_loss_of_exactly_the_bound_is_allowed_whatever_rounding_says():
    """.9 − .88 is .020000000000000018 in floating point."""
    assert 0.9 - 0.88 > 0.02
    assert chosen(max_loss=0.02, target=0.4) == 4


def test_where_everything_costs_too_much_nothing_goes():
    worse = {point.plan: outcomes(right=0 if point.plan.edits else 9) for point in WALK}
    for metric, how in (("accuracy", {"max_loss": 0.02}), ("accuracy", {"max_loss": 0.0, "target": 0.9})):
        assert Goal(METRICS[metric], **how).choose(WALK, worse, KEPT) == 0


def test_parameters_out_of_reach_are_an_error_that_says_what_can_be_had():
    with pytest.raises(SecateurError, match=r"50\.0% of the parameters are left.*--method components"):
        chosen(params=0.49)


def test_outcomes_are_only_looked_at_where_a_loss_is_bounded():
    assert Goal(METRICS["accuracy"], target=0.3).choose(WALK, {}, KEPT) == 3
