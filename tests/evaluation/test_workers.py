"""Work in portions: everything is handed out once, nothing is lost, and a worker stays where its activations are."""

from __future__ import annotations

import random

import pytest

from secateur.core.plan import Plan, Truncate
from secateur.core.site import Site
from secateur.evaluation.workers import Portions, Work, work_on

EXAMPLES = ((0, 1), (2, 3, 4, 5))


def plan(block: int, rank: int) -> Plan:
    return Plan("model", (Truncate(Site(block, "up"), rank),))


def plans(blocks: int = 3, ranks: int = 8) -> list[Plan]:
    return [plan(block, rank) for block in range(blocks) for rank in range(ranks)]


def lowest(plan: Plan) -> int:
    return plan.lowest_block.block if plan.edits else 0


def test_work_is_every_plan_on_every_shard_from_the_lowest_block_upwards():
    mixed = plans()
    random.Random(0).shuffle(mixed)
    both = Plan("model", (*plan(2, 1).edits, Truncate(Site(1, "down"), 1)))
    work = work_on([*mixed, both, Plan("model")], EXAMPLES, lowest)
    assert [(piece.examples, len(piece.plans)) for piece in work] == [
        (examples, count) for examples in EXAMPLES for count in (9, 9, 8)
    ]
    for piece in work:
        assert len({lowest(p) for p in piece.plans}) == 1
    assert both in work[1].plans
    assert Plan("model") in work[0].plans


@pytest.mark.parametrize("seed", range(20))
def test_everything_comes_once_whoever_dies(seed):
    """Workers finish, or die with all they hold, in any order; what was lost is handed out again."""
    draw = random.Random(seed)
    work = work_on(plans(), EXAMPLES, lowest)
    portions, held, done = Portions(work, 3, seconds=1.0), [], []
    while portions or held:
        if portions and (not held or draw.random() < 0.5):
            held.append(portions.next(draw.randrange(5)))
        else:
            portion = held.pop(draw.randrange(len(held)))
            if draw.random() < 0.3:
                portions.again(portion)
            else:
                portions.took(portion, draw.random())
                done += [(p, portion.work.examples) for p in portion.work.plans]
    wanted = [(p, piece.examples) for piece in work for p in piece.plans]
    assert sorted(done, key=str) == sorted(wanted, key=str)


def test_a_worker_stays_with_its_block_and_begins_where_it_began_before():
    work = work_on(plans(blocks=4), EXAMPLES[:1], lowest)
    for _ in range(2):
        portions = Portions(work, 2, seconds=0.0)  # one plan at a time
        blocks = [[lowest(portions.next(worker).work.plans[0]) for worker in (0, 1)] for _ in range(16)]
        assert blocks == [[0, 2]] * 8 + [[1, 3]] * 8


def test_who_has_nothing_left_helps_where_most_is_left():
    work = [Work(tuple(plans(1, 2)), (0,)), Work(tuple(plan(1, r) for r in range(9)), (0,))]
    portions = Portions(work, 2, seconds=0.0)
    assert [portions.next(0).piece for _ in range(2)] == [0, 0]
    portions.next(1)
    assert portions.next(0).piece == 1


def test_portions_grow_with_the_pace_and_shrink_towards_the_end():
    portions = Portions([Work(tuple(plans(1, 100)), (0, 1))], 2, seconds=1.0)
    first = portions.next(0)
    assert len(first.work.plans) == 1, "nobody knows yet how long a plan takes"
    portions.took(first, 0.1)
    assert len(portions.next(0).work.plans) == 10
    portions.took(first, 0.01)
    assert len(portions.next(0).work.plans) == 89 // 4
    left = [len(portions.next(0).work.plans) for _ in iter(lambda: bool(portions), False)]
    assert left[-1] == 1
    assert sum(left) == 100 - 1 - 10 - 22


def test_what_was_lost_comes_first_and_plan_by_plan():
    """So that it shows which plan kills."""
    portions = Portions([Work(tuple(plans(1, 12)), (0,))], 1, seconds=1.0)
    portions.took(portions.next(0), 0.2)
    lost = portions.next(0)
    assert len(lost.work.plans) == 5
    portions.again(lost)
    again = [portions.next(1).work.plans for _ in range(5)]
    assert again == [(p,) for p in lost.work.plans]
    assert len(portions.next(1).work.plans) > 1
