"""`--method directions`: a planted direction is found and taken out, each protocol does what it says, and which
directions go is what a slow count by hand gives."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.folders import questions, save_model, secateur, write_rows
from fixtures.zoo import tiny

from secateur.core.fitted import Fitted
from secateur.core.ledger import Ledger
from secateur.core.plan import Plan, RemoveDirections, Truncate
from secateur.core.score import METRICS, OUTCOME
from secateur.core.site import Site
from secateur.evaluation.batching import Packing
from secateur.methods.directions import readings
from secateur.methods.directions.effects import DirectionEffects, MatrixEffects, directions_effects
from secateur.methods.directions.pools import (
    POOLS,
    PROPOSED,
    Direction,
    Pool,
    counts,
    fixed_share,
    left,
    pools,
    proposals,
    removal,
    signed,
    weakest,
)
from secateur.methods.directions.readings import DirectionsReader, EffectsUnderPlan
from secateur.methods.directions.search import PATIENCE, ROUNDS, check, run
from secateur.methods.registry import method_named, read_options
from secateur.options import matrices_of
from secateur.session import Session, open_session
from secateur.surgery.materialize import cut
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Example, Task

PACKING = Packing(2048, 2048, pad=0)
search = method_named("directions").search

# ------------------------------------------------------------------------------------------------ values: which go


def drawn(seed: int, count: int = 40) -> list[Direction]:
    """Changes in tenths, so that many are equal and some are zero."""
    draw = np.random.default_rng(seed)
    sites = [Site(int(b), str(part)) for b, part in itertools.product((0, 1, 10), ("k", "v", "up"))]
    numbers = draw.permutation(len(sites) * 12)[:count]
    return [Direction(sites[n % 9], int(n) // 9, int(draw.integers(-9, 10)) / 10) for n in numbers]


def by_hand(directions, key):
    """Selection sort."""
    rest, found = list(directions), []
    while rest:
        first = rest[0]
        for one in rest[1:]:
            if (key(one), one.matrix, one.index) < (key(first), first.matrix, first.index):
                first = one
        rest.remove(first)
        found.append(first)
    return tuple(found)


@pytest.mark.parametrize("seed", range(6))
def test_pools_are_all_kinds_and_matrices(seed):
    directions = drawn(seed)
    for order, key in ((signed, lambda d: d.change), (weakest, lambda d: abs(d.change))):
        (whole,) = pools(directions, order, dynamic=False)
        assert (whole.name, whole.ordered) == ("all", by_hand(directions, key))
    found = {pool.name: pool for pool in pools(directions)}
    names = {"all"} | {d.matrix.part for d in directions} | {str(d.matrix) for d in directions}
    assert set(found) == names
    for name, pool in found.items():
        own = [d for d in directions if name in ("all", d.matrix.part, str(d.matrix))]
        assert pool.ordered == by_hand(own, lambda d: d.change)
        assert pool.harm == pytest.approx(sum(-d.change for d in own if d.change < 0))
        assert pool.harmful == sum(d.change < 0 for d in own)
        sums = [sum(d.change for d in pool.ordered[:n]) for n in range(len(own) + 1)]
        assert [pool.predicted(n) for n in range(len(own) + 1)] == sums
        assert pool.harmless == max(n for n, total in enumerate(sums) if total <= 0)
    harms = [pool.harm for pool in pools(directions)]
    assert harms == sorted(harms, reverse=True)
    for shuffled in (directions[::-1], sorted(directions, key=str)):
        assert pools(shuffled) == pools(directions)


def test_of_equal_pools_the_most_general_stands_and_no_more_than_a_few_are_judged():
    one = [Direction(Site(0, "k"), n, -1.0) for n in range(3)]
    assert [pool.name for pool in pools(one)] == ["all"]
    two = [*one, Direction(Site(1, "up"), 0, 1.0), Direction(Site(2, "up"), 0, 1.0)]
    assert [pool.name for pool in pools(two)] == ["all", "k", "b1.up", "b2.up", "up"]
    many = [Direction(Site(b, "k"), 0, -float(b)) for b in range(60)]
    assert [pool.name for pool in pools(many)] == ["all", *(f"b{b}.k" for b in range(59, 60 - POOLS, -1))]


def test_counts_grow_by_the_root_of_two_up_to_where_nothing_is_left_to_gain():
    def pool(*changes):
        return Pool("all", tuple(Direction(Site(0, "k"), n, c) for n, c in enumerate(changes)))

    assert counts(pool(*[-1] * 20, *[1] * 30)) == [1, 2, 3, 4, 6, 8, 11, 16, 20, 23, 32, 40]
    assert counts(pool(-3, 1, 1, 1, 1)) == [1, 2, 3, 4]
    assert counts(pool(-3, 4)) == [1]
    assert counts(pool(1, 2)) == counts(pool()) == []
    assert counts(pool(0, 0, 1)) == [1, 2]
    big = pool(*[-1] * 1000)
    assert counts(big)[-1] == 1000
    ratios = [b / a for a, b in itertools.pairwise(counts(big)) if a > 8]
    assert max(ratios) < 1.5


def test_a_round_judges_all_counts_of_few_pools_and_coarser_ones_of_many():
    few, many = (
        [Direction(Site(b, "k"), n, -1.0 - b) for b in range(blocks) for n in range(100)]
        for blocks in (2, 40)
    )
    assert proposals(pools(few)) == [(pool, count) for pool in pools(few) for count in counts(pool)]
    judged = proposals(pools(many))
    assert len(judged) == PROPOSED < sum(len(counts(pool, 2.0)) for pool in pools(many))
    by_pool = [
        [count for _, count in group] for _, group in itertools.groupby(judged, lambda pair: pair[0].name)
    ]
    assert by_pool[1] == [1, 2, 4, 8, 16, 32, 64, 100]
    assert [pool for pool, _ in itertools.groupby(judged, lambda pair: pair[0])] == pools(many)[
        : len(by_pool)
    ]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("key", [signed, weakest])
def test_a_fixed_share_is_of_each_matrix_or_of_all(share, key):
    directions = [Direction(Site(b, part), n, np.sin(7 * b + 3 * n + len(part)))
                  for b, part, n in itertools.product(range(2), ("k", "up"), range(20))]  # fmt: skip
    value = (lambda d: d.change) if key is signed else (lambda d: abs(d.change))
    each = fixed_share(directions, share, key)
    for site in {d.matrix for d in directions}:
        own = by_hand([d for d in directions if d.matrix == site], value)
        assert tuple(d for d in each if d.matrix == site) == own[: round(share * 20)]
    assert fixed_share(directions, share, key, overall=True) == list(
        by_hand(directions, value)[: round(share * 80)]
    )


def fold_of(*sites):
    return {site: Fitted.of({"mean": np.full(3, float(n))}) for n, site in enumerate(sites)}


def test_a_removal_adds_to_what_is_gone_and_folds_anew():
    k, v, up = Site(0, "k"), Site(0, "v"), Site(1, "up")
    old, new = fold_of(v, k, up), fold_of(k, v, up)
    base = Plan(
        "m",
        (
            RemoveDirections(k, (5,), True, old[k]),
            RemoveDirections(v, (1,), True, old[v]),
            Truncate(Site(1, "q"), 2),
        ),
    )
    more = [Direction(k, 2, -1.0), Direction(up, 3, -1.0), Direction(k, 7, 0.5)]
    assert removal(base, more, new, per_head=True) == Plan(
        "m",
        (RemoveDirections(k, (2, 5, 7), True, new[k]), RemoveDirections(v, (1,), True, old[v]),
         RemoveDirections(up, (3,), False, new[up]), Truncate(Site(1, "q"), 2)),
    )  # fmt: skip
    assert removal(base, [], new, per_head=True) == base
    still = left([*more, Direction(k, 5, -1e-18), Direction(v, 1, 0.0), Direction(v, 5, 0.0)], base)
    assert still == [*more, Direction(v, 5, 0.0)]


# ------------------------------------------------------------------------------------------------------ planted truth


def session_on(as_loaded, model, healthy=None, **options) -> Session:
    """A task whose gold answers are those of a healthy model."""
    prompts = np.random.default_rng(5).integers(3, 96, (200, 8)).tolist()
    with torch.no_grad():
        gold = (healthy or model)(torch.tensor(prompts)).logits[:, -1].argmax(-1).tolist()
    encoded = {
        i: Encoded(((tuple(p), (g,)),), 0, (1,)) for i, (p, g) in enumerate(zip(prompts, gold, strict=True))
    }
    examples = tuple(Example(f"p{i}", "", f"w{g}") for i, g in enumerate(gold))
    splits = {"probe": range(60), "select": range(60, 120), "test": range(120, 200)}
    task = Task("planted", "generation", examples, {k: tuple(v) for k, v in splits.items()})
    ledger = options.pop("ledger", None)
    return Session(
        read_options("zoo", "planted", method="directions", **options),
        as_loaded(model),
        task,
        encoded,
        ledger,
    )


def plant(as_loaded, family: str, text: str, head: int | None, strength: float):
    """A model, the same with one more singular direction, and that direction's number.

    It reads where the input varies most beside its mean, so that no bias could stand in for it, and writes anything.
    """
    healthy, sick = tiny(family), tiny(family)
    session, site = session_on(as_loaded, healthy), Site.parse(text)
    matrix = session.loaded.anatomy.matrix(site)
    seen = []
    layer = healthy.get_submodule(matrix.module)
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    healthy(torch.tensor([session.encoded[e].pairs[0][0] for e in session.task.split("probe")]))
    handle.remove()
    x = torch.cat(seen).double()
    w = matrix.read(healthy.get_parameter(matrix.weight)).double().clone()
    d = session.loaded.anatomy.d_head
    rows = columns = slice(None)
    if head is not None:
        rows, columns = (
            (rows, slice(head * d, head * d + d))
            if site.part == "o"
            else (slice(head * d, head * d + d), columns)
        )
    x, piece = x[:, columns], w[rows, columns]
    mean = x.mean(0) / x.mean(0).norm()
    x = (x - x.mean(0)) @ (torch.eye(len(mean), dtype=torch.float64) - torch.outer(mean, mean))
    v = torch.linalg.svd(x, full_matrices=False)[2][0]
    u = torch.from_numpy(np.random.default_rng(1).normal(size=len(piece)))
    u = u / u.norm()
    beside = piece - torch.outer(u, u @ piece)
    beside = beside - torch.outer(beside @ v, v)
    added = strength * torch.linalg.matrix_norm(piece, 2) * torch.outer(u, v)
    for model, what in ((healthy, beside), (sick, beside + added)):
        w[rows, columns] = what
        matrix.write_(model.get_parameter(matrix.weight), w.float())
    return healthy, sick, 0 if head is None else head * min(piece.shape)


def accuracy(session, plan, split="test"):
    return METRICS["accuracy"].mean(session.judge()([plan], session.task.split(split))[plan])


PLANTS = [("llama", "b1.down", None), ("gpt2", "b0.o", None), ("llama", "b1.v", 1), ("phi3", "b1.o", 2)]


@pytest.mark.parametrize(("family", "text", "head"), PLANTS, ids=str)
def test_a_planted_direction_is_found_alone_and_its_removal_heals(family, text, head, as_loaded):
    healthy, sick, number = plant(as_loaded, family, text, head, 30)
    few = {"matrices": ("v", "o", "down"), "layers": (int(text[1]), int(text[1]) + 1)}
    session = session_on(as_loaded, sick, healthy, per_head=head is not None, **few)
    check(session)
    found = search(session)
    (edit,) = found.plan.edits
    assert (str(edit.matrix), edit.directions, edit.per_head) == (text, (number,), head is not None)
    assert accuracy(session, session.empty) < 0.6
    assert accuracy(session, found.plan) > 0.98
    record = found.analysis.to_json()["directions"]
    assert record["protocol"] == "search"
    (step,) = record["chosen"]
    assert (step["added"], step["removed"]) == (1, 1)
    assert step["predicted"] < 0
    assert step["loss"] < step["loss_before"]
    assert step["value"] > step["value_before"]
    worst = min(record["matrices"], key=lambda one: min(one["effect"]))
    assert (worst["site"], worst["head"], worst["removed"]) == (text, head, [0])
    assert worst["effect"][0] == min(worst["effect"])
    assert found.search.rounds == 1
    assert search(session) == found, "the same seed, the same plan and records"


class OneByOne:
    """Readings under which one more direction hurts, whatever is gone: every round takes it."""

    def effects(self, plan):
        change = np.ones(16)
        change[number_gone(plan)] = -0.5
        piece = MatrixEffects(Site(0, "k"), None, np.ones(16), change, None, np.zeros(16))
        return EffectsUnderPlan(DirectionEffects("probe", 60, 60, False, (piece,)))

    def words(self, edit, numbers):
        return []


def number_gone(plan: Plan) -> int:
    return sum(len(edit.directions) for edit in plan.removed)


@pytest.mark.parametrize(("best", "tried"), [(0, PATIENCE), (2, 2 + PATIENCE), (ROUNDS, ROUNDS)], ids=str)
def test_rounds_end_where_two_of_them_did_no_better_on_the_other_half(best, tried, as_loaded):
    """On the half where plans are built each direction saves a tenth of a nat, on the other the first `best` do."""
    session = session_on(
        as_loaded, tiny("llama"), matrices="k", layers=(0, 1), objective="loss", dynamic=False
    )
    build = set(session.halves()[0])

    def judge(plans, examples, stage):
        return {plan: outcomes(number_gone(plan), examples) for plan in plans}

    def outcomes(gone, examples):
        rows = np.zeros(len(examples), OUTCOME)
        saved = [gone if e in build or gone <= best else 2 * best - gone for e in examples]
        noise = np.random.default_rng(gone).normal(size=len(examples))
        rows["example"], rows["tokens"] = examples, 1
        rows["loss"] = 9 - 0.1 * np.array(saved) + 0.01 * noise
        return rows

    found = run(session, judge, OneByOne())
    assert found.search.rounds == number_gone(found.plan) == best
    assert len(found.analysis.directions.path) == tried


def test_where_nothing_hurts_nothing_goes(as_loaded):
    session = session_on(as_loaded, tiny("llama"), matrices=("down", "o"))
    found = search(session)
    assert found.plan == session.empty
    assert found.search.rounds == 0
    assert found.analysis.to_json()["directions"]["chosen"] == []
    assert found.analysis.to_json()["directions"]["path"] != []
    assert all(one["removed"] == [] for one in found.analysis.to_json()["directions"]["matrices"])


@pytest.fixture(scope="module")
def sick():
    return {}


@pytest.fixture
def planted(as_loaded, sick):
    """A session on the same sick model under any options."""
    if not sick:
        sick["models"] = plant(as_loaded, "llama", "b1.down", None, 30)
    healthy, model, _ = sick["models"]
    few = {"matrices": ("v", "o", "down")}
    return lambda **options: session_on(as_loaded, model, healthy, **few | options)


def read_by_hand(session, **how):
    sites = matrices_of(session.loaded.anatomy, session.options)
    found = directions_effects(
        session.loaded, session.encoded, session.task.split("probe"), sites, packing=PACKING, **how
    )
    return {one.site: one.predicted for one in found.matrices}


def removed(plan):
    return {edit.matrix: set(edit.directions) for edit in plan.removed}


@pytest.mark.parametrize(
    "options", [{}, {"weakest": True}, {"target": 0.25}, {"second_order": True}], ids=str
)
def test_paper_takes_an_exact_share_of_each_matrix(options, planted):
    session = planted(protocol="paper", matrices=("attn", "down"), **options)
    check(session)
    changes = read_by_hand(session, second_order=options.get("second_order", False))
    share, expected = options.get("target", 0.1), {}
    for site, change in changes.items():
        order = np.argsort(np.abs(change) if "weakest" in options else change, kind="stable")
        expected[site] = set(order[: round(share * len(change))].tolist())
    assert removed(search(session).plan) == expected


@pytest.mark.parametrize("weak", [False, True])
def test_paper_overall_takes_its_share_of_one_list(weak, planted):
    session = planted(protocol="paper", overall=True, target=0.2, weakest=weak)
    changes = [(c, site, n) for site, change in read_by_hand(session).items() for n, c in enumerate(change)]
    changes.sort(key=lambda one: (abs(one[0]) if weak else one[0], *one[1:]))
    expected: dict[Site, set[int]] = {}
    for _, site, number in changes[: round(0.2 * len(changes))]:
        expected.setdefault(site, set()).add(number)
    assert removed(search(session).plan) == expected


@pytest.mark.parametrize("weak", [False, True])
def test_threshold_goes_as_far_as_the_prediction_allows_and_asks_nobody(weak, as_loaded):
    session = session_on(as_loaded, tiny("gpt2"), matrices=("v", "down"), protocol="threshold", weakest=weak)
    changes = [(c, site, n) for site, change in read_by_hand(session).items() for n, c in enumerate(change)]
    changes.sort(key=lambda one: (abs(one[0]) if weak else one[0], *one[1:]))
    sums = np.cumsum([c for c, _, _ in changes])
    found = search(session)
    count = sum(len(numbers) for numbers in removed(found.plan).values())
    assert 0 < count < len(changes)
    assert sums[count - 1] <= 0
    assert (sums[count:] > 0).all()
    assert {(site, n) for site, own in removed(found.plan).items() for n in own} == {
        c[1:] for c in changes[:count]
    }
    half = {"select": session.task.split("select")[:7]}
    other = replace(session, task=replace(session.task, splits=session.task.splits | half))
    assert search(other).plan == found.plan
    assert found.tried == 1


def test_removal_goes_as_far_as_the_bound_allows(as_loaded):
    how = {"matrices": ("v", "down"), "step": 0.2, "weakest": True}
    session = session_on(as_loaded, tiny("llama"), max_loss=0.4, **how)
    check(session)
    found = search(session)
    assert found.search.protocol == "removal"
    assert found.margin == 0.4
    record = found.analysis.to_json()["directions"]
    assert [step["removed"] for step in record["path"]] == [
        round(s * record["total"]) for s in (0.2, 0.4, 0.6, 0.8, 1)
    ]
    base = accuracy(session, session.empty, "select")
    allowed = [s for s in record["path"] if base - s["value"] <= 0.4 + 1e-9]
    assert record["chosen"][-1] == allowed[-1]
    assert sum(len(own) for own in removed(found.plan).values()) == allowed[-1]["removed"]
    assert accuracy(session, found.plan, "select") == allowed[-1]["value"]
    assert len(allowed) < len(record["path"])
    nothing = search(session_on(as_loaded, tiny("llama"), max_loss=0.0, **how | {"step": 0.5}))
    assert nothing.plan == session.empty


@pytest.mark.parametrize("weak", [None, False])
def test_removal_to_a_target_takes_that_share(weak, planted):
    """The weakest first, unless they are asked for by sign."""
    session = planted(target=0.3, matrices=("down",), weakest=weak)
    found = search(session)
    assert sum(len(own) for own in removed(found.plan).values()) == round(0.3 * 64)
    assert found.analysis.to_json()["directions"]["order"] == ("weakest" if weak is None else "signed")
    once = search(planted(target=0.3, matrices=("down",), rescore=False, weakest=weak))
    key = abs if weak is None else float
    order = [
        (key(c), site, n) for site, change in read_by_hand(session).items() for n, c in enumerate(change)
    ]
    first = {(site, n) for _, site, n in sorted(order)[: round(0.3 * 64)]}
    assert {(site, n) for site, own in removed(once.plan).items() for n in own} == first


def test_without_choosing_matrices_there_is_one_pool(planted):
    record = search(planted(dynamic=False, exhaustive=True, matrices=("down",))).analysis.to_json()[
        "directions"
    ]
    assert {step["pool"] for step in record["path"]} == {"all"}
    assert all(step["complete"] for step in record["path"])


def test_whitened_directions_keep_their_basis_and_spectrum(planted):
    """Over rounds the same directions are counted, and the record tells the singular values of W C^½."""
    session = planted(whitened=True, matrices=("down",), layers=(1, 2))
    found = search(session)
    assert found.plan.edits
    one = directions_effects(
        session.loaded, session.encoded, session.task.split("probe"),
        matrices_of(session.loaded.anatomy, session.options), packing=PACKING, whitened=True,
    ).matrices[0]  # fmt: skip
    (record,) = found.analysis.to_json()["directions"]["matrices"]
    np.testing.assert_allclose(record["sigma"], one.sigma, rtol=1e-5)
    assert record["sigma"] == sorted(record["sigma"], reverse=True)
    (fold,) = found.plan.fitted
    assert fold.arrays["u"].shape == (1, 32, 32)
    np.testing.assert_allclose(np.abs((fold.arrays["u"][0] * one.u).sum(0))[:8], 1, rtol=1e-4)
    assert accuracy(session, found.plan) > accuracy(session, session.empty) + 0.3


# -------------------------------------------------------------------------------------------- readings under a plan


@pytest.mark.parametrize("per_head", [False, True], ids=["whole", "per head"])
def test_what_is_gone_has_no_effect_any_more(per_head, as_loaded):
    session = session_on(as_loaded, tiny("llama").double(), matrices=("k", "o", "down"), per_head=per_head)
    sites = matrices_of(session.loaded.anatomy, session.options)
    read = DirectionsReader(session, session.judge(), sites).effects
    whole = read(session.empty)
    gone = [one for one in whole.directions if one.index % 3 == 0]
    plan = removal(session.empty, gone, whole.folds, per_head=per_head)
    after = read(plan)
    numbers = {(one.matrix, one.index) for one in gone}
    dead = [abs(one.change) for one in after.directions if (one.matrix, one.index) in numbers]
    alive = [abs(one.change) for one in after.directions if (one.matrix, one.index) not in numbers]
    assert max(dead) < 1e-6 * max(alive)
    assert len(left(after.directions, plan)) == len(alive)


def test_effects_under_a_plan_are_differences_in_the_cut_model(as_loaded):
    """d loss / d share of one more direction, its own mean read in the cut model; weights written by hand."""
    session = session_on(as_loaded, tiny("gpt2").double(), matrices=("k", "down", "o"))
    loaded, examples = session.loaded, session.task.split("probe")[:12]
    sites = matrices_of(session.loaded.anatomy, session.options)
    first = directions_effects(loaded, session.encoded, examples, sites, packing=PACKING)
    folds = readings.EffectsUnderPlan(first).folds
    plan = removal(
        session.empty,
        [Direction(Site(0, "k"), 1, 0.0), Direction(Site(1, "down"), 0, 0.0)],
        folds,
        per_head=False,
    )
    found = directions_effects(loaded, session.encoded, examples, sites, packing=PACKING, under=plan)

    model = cut(loaded, plan)
    prompts = torch.tensor([session.encoded[e].pairs[0][0] for e in examples])
    golds = torch.tensor([session.encoded[e].pairs[0][1][0] for e in examples])

    def loss():
        return float(torch.nn.functional.cross_entropy(model(prompts).logits[:, -1].double(), golds))

    with torch.no_grad():
        for site, index in ((Site(0, "k"), 0), (Site(0, "k"), 5), (Site(1, "down"), 3), (Site(1, "o"), 0)):
            matrix = loaded.anatomy.matrix(site)
            u = np.linalg.svd(matrix.read(loaded.model.get_parameter(matrix.weight)).numpy())[0][:, index]
            u = torch.from_numpy(u)
            weight, bias = model.get_parameter(matrix.weight), model.get_parameter(matrix.bias)
            part, before, constant = (
                torch.outer(u, u @ matrix.read(weight)),
                matrix.read(weight).clone(),
                bias.clone(),
            )
            mean = torch.from_numpy(found.of(site).mean_input)
            at = {}
            for share in (1e-4, -1e-4):
                matrix.write_(weight, before - share * part)
                bias.copy_(constant + share * matrix.in_output(part @ mean, weight))
                at[share] = loss()
            matrix.write_(weight, before)
            bias.copy_(constant)
            assert found.of(site).effect[index] == pytest.approx(
                (at[1e-4] - at[-1e-4]) / 2e-4, rel=1e-4, abs=1e-9
            )


def test_readings_are_remembered_and_not_taken_again(planted, tmp_path, monkeypatch):
    asked = []

    def counted(*args, **kwargs):
        asked.append(kwargs["under"])
        return directions_effects(*args, **kwargs)

    monkeypatch.setattr(readings, "directions_effects", counted)
    plans = []
    for _ in range(2):
        with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
            plans.append(search(planted(ledger=ledger, matrices=("down",))).plan)
    assert plans[0] == plans[1]
    assert plans[0].edits
    assert len(asked) == len(set(asked)) == 2  # the whole model, and the plan after one round
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        for other in ({"second_order": True}, {"per_head": True}, {"matrices": ("down", "o")}):
            before = len(asked)
            search(planted(ledger=ledger, **{"matrices": ("down",), "protocol": "threshold"} | other))
            assert len(asked) == before + 1


# ------------------------------------------------------------------------------------------------- on the command line


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("directions")
    save_model(place / "llama", tiny("llama"), words)
    save_model(place / "gpt2", tiny("gpt2"), words)
    write_rows(place / "q.jsonl", questions())
    return place


def prune_words(place, out, *more, model="llama"):
    words = [
        "prune",
        place / model,
        "--task",
        place / "q.jsonl",
        "--side",
        place / "q.jsonl",
        "-o",
        out,
        "--quiet",
    ]
    return [*words, "--method", "directions", "--allow-small", "--limit", "100", *more]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--protocol", "papr"], "unknown protocol 'papr'"),
        (["--matrices", "fc_inn"], "unknown matrix 'fc_inn'"),
        (["--layers", "1:7"], "layers 1:7 are not in this model"),
        (["--protocol", "search", "--max-loss", "0.1"], "--max-loss is for --protocol removal, not search"),
        (["--protocol", "paper", "--max-loss", "0.1"], "--max-loss is for --protocol removal, not paper"),
        (
            ["--protocol", "threshold", "--target", "10%"],
            "--target is for --protocol removal and paper, not threshold",
        ),
        (["--weakest"], "--weakest is for --protocol removal and threshold and paper, not search"),
        (["--overall"], "--overall is for --protocol paper, not search"),
        (["--step", "5%"], "--step is for --protocol removal, not search"),
        (
            ["--protocol", "paper", "--ranks-once"],
            "--ranks-once is for --protocol search and removal, not paper",
        ),
        (["--max-loss", "0.1", "--no-dynamic"], "--no-dynamic is for --protocol search, not removal"),
        (["--max-loss", "0.1", "--exhaustive"], "--exhaustive is for --protocol search, not removal"),
        (["--max-loss", "-1"], "--max-loss -1"),
        (["--target", "0%"], "--target 0"),
        (["--params", "50%"], "--params 50% is not for --method directions"),
        (["--portable"], "--portable is not for --method directions"),
        (["--grid", "paper"], "is not for --method directions"),
        (["--zeroed"], "b0.down has no bias that its directions could be folded into"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_before_anything_is_computed(more, says, place, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("it was computed")

    monkeypatch.setattr(readings, "directions_effects", refuse)
    monkeypatch.setattr("secateur.evaluation.evaluator.Evaluator.__call__", refuse)
    done = secateur(*prune_words(place, tmp_path / "out", *more))
    assert done.exit_code == 2, done.exception
    assert says in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--per-head", "--whitened", "--second-order", "--weakest", "--no-dynamic"])
def test_options_of_directions_are_for_directions(flag, place, tmp_path):
    words = [w for w in prune_words(place, tmp_path / "out", flag) if w not in ("--method", "directions")]
    done = secateur(*words)
    assert done.exit_code == 2
    assert f"{flag} is not for --method laser, but for directions" in " ".join(done.stderr.split())


def test_from_end_to_end_with_everything_beside_it(place, tmp_path):
    """Right answers that follow no rule: a share goes all the same, and the checkpoint is what was said."""
    out = tmp_path / "out"
    more = ("--per-head", "--matrices", "k,v,down", "--keep-unproven")
    typed = prune_words(place, out, "--protocol", "paper", "--target", "30%", *more)
    done = secateur(*typed)
    assert done.exit_code == 0, done.stderr + str(done.exception)
    verdict, plan = (json.loads((out / name).read_text()) for name in ("verdict.json", "plan.json"))
    record = json.loads((out / "analysis.json").read_text())["directions"]
    assert verdict["search"]["protocol"] == "paper"
    assert (
        verdict["cut_summary"]
        == f"{sum(len(e['directions']) for e in plan['edits'])} singular directions of 6 matrices"
    )
    assert "--method directions" in verdict["command"]
    assert "--protocol paper" in verdict["command"]
    assert "--per-head" in verdict["command"]
    gone = {(one["site"], one["head"]): one["removed"] for one in record["matrices"]}
    for edit in plan["edits"]:
        count = 8 if edit["per_head"] else 32
        listed = {(edit["matrix"], n // count if edit["per_head"] else None) for n in edit["directions"]}
        for site, head in listed:
            offset = (head or 0) * count
            assert [n - offset for n in edit["directions"] if 0 <= n - offset < count] == gone[site, head]
    words = {w["site"] for w in record["words"]}
    assert words <= {"b0.v", "b1.v", "b0.down", "b1.down"}
    assert words
    report = (out / "report.html").read_text()
    assert "b1.down" in report
    again = secateur(*typed)
    assert "already holds the result" in again.stdout
    for verb in ("show", "runs"):
        shown = secateur(verb, out if verb == "show" else tmp_path)
        assert shown.exit_code == 0, shown.stderr


def test_zeroed_where_every_bias_is_there(place, tmp_path):
    out = tmp_path / "out"
    done = secateur(
        *prune_words(place, out, "--zeroed", "--protocol", "paper", "--matrices", "k,down", model="gpt2")
    )
    assert done.exit_code == 0, done.stderr
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["loads"]["form"] == "zeroed"
    assert verdict["parameters"]["before"] == verdict["parameters"]["after"]


def test_the_probe_reads_heads_and_both_options(place):
    words = [
        "probe",
        place / "llama",
        "--task",
        place / "q.jsonl",
        "--what",
        "directions",
        "--quiet",
    ]
    words += ["--matrices", "k,down", "--per-head", "--second-order", "--whitened"]
    done = secateur(*words, "--json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["site"] for row in rows] == [
        "b0.down", "b0.k head 0", "b0.k head 1", "b1.down", "b1.k head 0", "b1.k head 1"
    ]  # fmt: skip
    session = open_session(
        read_options(str(place / "llama"), str(place / "q.jsonl"), method="directions", allow_small=True),
        None,
    )
    found = directions_effects(
        session.loaded, session.encoded, session.task.split("select"),
        [Site(b, p) for b in (0, 1) for p in ("down", "k")],
        packing=PACKING, per_head=True, second_order=True, whitened=True,
    )  # fmt: skip
    for row, one in zip(rows, found.matrices, strict=True):
        assert row["of"] == len(one.effect) == (32 if one.head is None else 8)
        assert min(row["values"]["curvature"]) >= 0
        np.testing.assert_allclose(row["values"]["sigma"], one.sigma, rtol=1e-3, atol=1e-6)
        assert row["harmful"] == sum(
            e + c < 0 for e, c in zip(row["values"]["effect"], row["values"]["curvature"], strict=True)
        )
        assert row["their_sum"] <= 0
    printed = secateur(*words)
    assert printed.exit_code == 0
    for row in rows:
        assert row["site"] in printed.stdout


def test_the_probe_reads_under_a_plan(place):
    """What is edited away has no effect left, and others have another one."""
    words = [
        "probe",
        place / "llama",
        "--task",
        place / "q.jsonl",
        "--what",
        "directions",
        "--json",
    ]
    words += ["--matrices", "k", "--layers", "0:2"]
    whole, under = (
        {row["site"]: row["values"]["effect"] for row in json.loads(secateur(*words, *more).stdout)["rows"]}
        for more in ([], ["--edit", "b0.k=without:0,3"])
    )
    for number in range(16):
        if number in (0, 3):
            assert abs(under["b0.k"][number]) < 1e-6
            assert abs(whole["b0.k"][number]) > 1e-5
    assert np.abs(np.subtract(whole["b1.k"], under["b1.k"])).max() > 1e-6
