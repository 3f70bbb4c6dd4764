"""The search on invented outcomes, in milliseconds, and on a model in which the truth was planted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from fixtures.zoo import tiny

from secateur.core.plan import Plan, Truncate
from secateur.core.readings import Readings
from secateur.core.score import METRICS, OUTCOME
from secateur.core.site import Site
from secateur.core.stats import paired_z
from secateur.hf.load import Loaded
from secateur.methods.laser.method import PAPER_FRACTIONS, SMALL_RANKS
from secateur.methods.laser.search import (
    compose,
    grid,
    grid_ranks,
    promising,
    screened,
)
from secateur.methods.registry import method_named, read_options
from secateur.search.evidence import Evidence
from secateur.search.race import Objective, Rules, race
from secateur.session import Session
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Example, Task

ACCURACY, LOSS = Objective(METRICS["accuracy"]), Objective(METRICS["loss"])
BASE = Plan("m")


def edit(text: str, rank: int = 1) -> Truncate:
    return Truncate(Site.parse(text), rank)


def plan(*edits: Truncate) -> Plan:
    return Plan("m", edits)


class Invented:
    """A judge whose outcomes are a table; it keeps account of all that it is asked."""

    def __init__(
        self, loss: Callable[[Plan], np.ndarray], correct: Callable[[Plan], np.ndarray] | None = None
    ):
        self._loss, self._correct = loss, correct
        self.asked: list[tuple[tuple[Plan, ...], tuple[int, ...]]] = []
        self.pairs: set[tuple[Plan, int]] = set()

    def __call__(
        self, plans: Sequence[Plan], examples: Sequence[int], stage: str
    ) -> Mapping[Plan, np.ndarray]:
        self.asked.append((tuple(plans), tuple(examples)))
        self.pairs |= {(p, e) for p in plans for e in examples}
        return {p: self._rows(p, list(examples)) for p in plans}

    def _rows(self, plan: Plan, examples: list[int]) -> np.ndarray:
        out = np.zeros(len(examples), OUTCOME)
        out["example"], out["tokens"] = examples, 1
        out["choice_loss"] = np.nan
        out["loss"] = self._loss(plan)[examples]
        out["correct"] = (self._correct or self._loss)(plan)[examples]
        return out


def noisy(
    means: Mapping[Plan, float], n: int, seed: int, own: float = 0.3, shared: float = 2.0
) -> dict[Plan, np.ndarray]:
    """Losses with the given means: what examples share is large, what plans have of their own is not."""
    rng = np.random.default_rng(seed)
    common = shared * rng.standard_normal(n)
    return {p: mean + common + own * rng.standard_normal(n) for p, mean in means.items()}


# --------------------------------------------------------------------------------------------------------------- grid


@pytest.mark.parametrize("full", [1, 2, 4, 16, 48, 64, 100, 768, 4096, 11008])
def test_ranks_of_the_paper_literally_and_with_the_small_ones(full):
    shares = [Fraction(text) for text in ("0.9", "0.8", "0.6", "0.4", "0.2", "0.1", "0.05", "0.01", "0.005")]
    literal = {math.floor(share * full) for share in shares}
    assert grid_ranks(full, PAPER_FRACTIONS, ()) == sorted(literal)
    both = grid_ranks(full)
    assert both == sorted(literal | {r for r in (0, 1, 2, 3, 5) if r < full})
    assert len(set(both)) == len(both)
    assert max(both) < full


def test_ranks_by_hand():
    assert grid_ranks(64) == [0, 1, 2, 3, 5, 6, 12, 25, 38, 51, 57]
    assert grid_ranks(4, PAPER_FRACTIONS, SMALL_RANKS) == [0, 1, 2, 3]
    assert grid_ranks(1) == [0]
    assert grid_ranks(10, (1.0, 0.5), ()) == [5]  # everything kept is no edit


def test_the_grid_is_every_rank_of_every_matrix_lowest_block_first():
    shapes = {Site(1, "down"): (4, 9), Site(0, "up"): (9, 4), Site(1, "q"): (64, 64)}
    found = grid(shapes, (0.5,), (1,))
    assert found == [
        Truncate(Site(0, "up"), 1),
        Truncate(Site(0, "up"), 2),
        Truncate(Site(1, "down"), 1),
        Truncate(Site(1, "down"), 2),
        Truncate(Site(1, "q"), 1),
        Truncate(Site(1, "q"), 32),
    ]


# ---------------------------------------------------------------------------------------------------------- objective


def test_larger_keys_are_better_whatever_the_metrics_direction_and_loss_breaks_ties():
    def rows(correct: Sequence[float], loss: Sequence[float], among: float = np.nan) -> np.ndarray:
        out = np.zeros(len(correct), OUTCOME)
        out["correct"], out["loss"], out["tokens"], out["choice_loss"] = correct, loss, 1, among
        return out

    assert ACCURACY.key(rows([1, 1], [9, 9])) > ACCURACY.key(rows([1, 0], [1, 1]))
    assert ACCURACY.key(rows([1, 0], [1, 1])) > ACCURACY.key(rows([0, 1], [1, 2]))
    assert LOSS.key(rows([0, 0], [1, 1])) > LOSS.key(rows([1, 1], [1, 2]))
    # with choices, by the gold one's likelihood among them, whatever that of its tokens by themselves
    assert ACCURACY.key(rows([1, 0], [3, 3], among=0.2)) > ACCURACY.key(rows([0, 1], [1, 1], among=0.3))


# --------------------------------------------------------------------------------------------------------------- race


FIELD = [BASE, *(plan(edit(f"b{block}.up", rank)) for block in range(6) for rank in range(5))]


def judge_of(table: Mapping[Plan, np.ndarray]) -> Invented:
    return Invented(table.__getitem__, lambda p: (table[p] < 0).astype(float))


@pytest.mark.parametrize("seed", range(5))
def test_whoever_was_dropped_was_significantly_worse_then_and_no_one_else(seed):
    means = {p: 0.05 * (i % 7) for i, p in enumerate(FIELD)}
    table, examples = noisy(means, 500, seed), list(range(500))
    found = race(FIELD, examples, judge_of(table), LOSS, Rules(first=16))
    assert found.dropped_after, "all alike: nothing was tested"
    counts = [count for _, count in found.rungs]
    for p in FIELD:
        last = found.dropped_after.get(p, 500)
        assert found.outcomes[p]["example"].tolist() == examples[:last]
        for count in (c for c in counts if c <= last and c < 500):
            running = [q for q in FIELD if found.dropped_after.get(q, 500) >= count]
            leader = min(running, key=lambda q: table[q][:count].mean())
            worse = paired_z(table[leader][:count] - table[p][:count]) < -3.0
            assert worse == (found.dropped_after.get(p) == count)


def test_examples_double_until_all_are_used_and_the_budget_is_what_was_asked():
    means = {p: 0.03 * i for i, p in enumerate(FIELD)}
    judge = judge_of(noisy(means, 300, 1))
    found = race(FIELD, list(range(300)), judge, LOSS, Rules(first=32))
    assert [len(examples) for _, examples in judge.asked] == [count for _, count in found.rungs]
    assert [len(plans) for plans, _ in judge.asked] == [running for running, _ in found.rungs]
    counts = [count for _, count in found.rungs]
    assert counts == [32, 64, 128, 256, 300]
    running = [r for r, _ in found.rungs]
    assert running == sorted(running, reverse=True)
    spent = sum(r * (b - a) for (r, b), a in zip(found.rungs, [0, *counts], strict=False))
    assert spent == len(judge.pairs) < len(FIELD) * 300 / 3


def test_the_exhaustive_search_judges_everybody_on_everything_at_once():
    judge = judge_of(noisy({p: i for i, p in enumerate(FIELD)}, 100, 0))
    found = race(FIELD, list(range(100)), judge, LOSS, Rules(z=math.inf))
    assert judge.asked == [(tuple(FIELD), tuple(range(100)))]
    assert (found.rungs, found.dropped_after, set(found.outcomes)) == ([(31, 100)], {}, set(FIELD))


@pytest.mark.parametrize("objective", [ACCURACY, LOSS], ids=["accuracy", "loss"])
def test_the_race_finds_the_exhaustive_winner_where_plans_differ(objective):
    spent = 0
    for seed in range(15):
        order = np.random.default_rng(seed).permutation(len(FIELD))
        means = {p: 0.15 * place for p, place in zip(FIELD, order, strict=True)}
        table = noisy(means, 400, seed)
        fast, slow = judge_of(table), judge_of(table)
        winner = race(FIELD, list(range(400)), slow, objective, Rules(z=math.inf)).winner
        assert race(FIELD, list(range(400)), fast, objective).winner == winner
        spent += len(fast.pairs) / len(slow.pairs)
    assert spent / 15 < 0.5


def test_of_plans_equally_good_in_truth_the_race_drops_few():
    """At z = 3, 30 rivals and 4 tests each of which compares with the luckiest: still only some in a hundred."""
    dropped = 0
    for seed in range(15):
        table = noisy(dict.fromkeys(FIELD, 0.0), 512, seed)
        dropped += len(race(FIELD, list(range(512)), judge_of(table), LOSS).dropped_after)
    assert dropped / (15 * len(FIELD)) < 0.12


def test_ties_go_to_the_one_named_first():
    judge = Invented(lambda p: np.zeros(50))
    assert race(FIELD, range(50), judge, ACCURACY).winner == BASE
    assert race(FIELD[::-1], range(50), judge, ACCURACY).winner == FIELD[-1]
    assert race([BASE, BASE, FIELD[1]], range(50), judge, LOSS).rungs[0] == (2, 32)


def test_a_race_of_one_and_one_of_few_examples():
    judge = Invented(lambda p: np.zeros(50))
    assert race([BASE], range(50), judge, LOSS).winner == BASE
    found = race(FIELD, [7, 3, 9], judge, LOSS)
    assert found.rungs == [(31, 3)]
    assert judge.asked[-1][1] == (7, 3, 9)


def test_who_is_left_alone_goes_to_the_end():
    table = {BASE: np.zeros(200), FIELD[1]: np.ones(200)}
    found = race([BASE, FIELD[1]], range(200), judge_of(table), LOSS)
    assert found.rungs == [(2, 32), (1, 200)]
    assert len(found.outcomes[BASE]) == 200


def test_no_example_but_those_given_is_looked_at():
    """Also not by composition, and the race takes them in the order given."""
    given = np.random.default_rng(0).permutation(300)[:90].tolist()
    judge = judge_of(noisy({p: 0.1 * i for i, p in enumerate(FIELD)}, 300, 2))
    race(FIELD, given, judge, LOSS)
    anything = Invented(lambda p: np.arange(300.0) % 7 - len(p))
    composed([edit("b0.up"), edit("b1.q", 2)], anything, LOSS, examples=given)
    for _, examples in judge.asked + anything.asked:
        assert list(examples) == given[: len(examples)]


# -------------------------------------------------------------------------------------------------------- composition


def additive(gains: Mapping[Truncate, float], n: int = 400, seed: int = 0, own: float = 0.1) -> Invented:
    """Each edit lowers the loss by its gain, with noise of its own per example."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(n)
    effect = {e: -gain + own * rng.standard_normal(n) for e, gain in gains.items()}
    return Invented(lambda p: common + sum(effect[e] for e in p.edits))


def composed(candidates, judge, objective, *, start=BASE, examples=range(400), **how) -> Plan:
    evidence = Evidence(objective.metric, np.arange(len(examples)), seed=0, draws=999)
    return compose(start, candidates, examples, judge, objective, evidence, **how)


@pytest.mark.parametrize("z", [3.0, math.inf])
def test_composition_takes_what_is_shown_to_help_the_best_first(z):
    gains = {edit("b1.up", 3): 0.4, edit("b0.down", 2): 0.3, edit("b0.q", 2): -0.2, edit("b1.v", 4): -0.02}
    judge = additive(gains)
    assert composed(gains, judge, LOSS, rules=Rules(z=z)) == plan(edit("b1.up", 3), edit("b0.down", 2))
    starts = list(dict.fromkeys(plans[0] for plans, _ in judge.asked if len(plans) > 1))
    assert starts[:3] == [BASE, plan(edit("b1.up", 3)), plan(edit("b1.up", 3), edit("b0.down", 2))]


def test_composition_judges_each_edit_beside_those_already_taken():
    """Two cuts that help alone and hurt together: only the better one is taken."""
    late, early = edit("b3.up"), edit("b1.up")
    effects = {(): 0.0, (early,): -1.0, (late,): -0.5, (early, late): +2.0}
    judge = Invented(lambda p: np.full(60, effects[p.edits]))
    assert composed([early, late], judge, LOSS, examples=range(60)) == plan(early)


def test_composition_goes_on_from_the_plan_given_and_leaves_its_matrices_alone():
    start, more, same = edit("b3.up", 2), edit("b1.up", 4), edit("b3.up", 3)
    judge = additive({start: 0.5, more: 0.5, same: 0.9})
    assert composed([more, same], judge, LOSS, start=plan(start)) == plan(start, more)


def test_luck_is_no_help():
    """Of 40 edits that do nothing the luckiest nearly always looks better; composition takes none of them."""
    taken = 0
    for seed in range(20):
        gains = {edit(f"b{b}.up", r): 0.0 for b in range(4) for r in range(10)}
        taken += composed(gains, additive(gains, seed=seed), LOSS) != BASE
    assert taken <= 4  # 5 % of 20 is 1; 4 is the 99th percentile


def test_what_is_promising_is_the_best_cut_of_each_matrix_that_is_no_worse():
    gains = {edit("b1.up", 1): 0.1, edit("b1.up", 3): 0.4, edit("b0.q"): 0.2, edit("b0.v"): -0.3}
    judge = additive(gains, own=0.01)
    raced = race([BASE, *map(plan, gains)], range(400), judge, LOSS, Rules(z=math.inf))
    assert promising(raced, BASE, LOSS, 9) == [edit("b1.up", 3), edit("b0.q")]
    assert promising(raced, BASE, LOSS, 1) == [edit("b1.up", 3)]


# ------------------------------------------------------------------------------------------------------ planted truth


def planted_(model: torch.nn.Module, loaded: Loaded, site: Site, rank: int) -> None:
    """Before: all of a matrix. After: `rank` strong components of it, and strong noise in all other directions."""
    matrix = loaded.anatomy.matrix(site)
    weight = model.get_parameter(matrix.weight)
    u, s, vh = torch.linalg.svd(matrix.read(weight).double(), full_matrices=False)
    s[:rank], s[rank:] = 12 * s[0], 0
    matrix.write_(weight, (u * s) @ vh)


def noise_(model: torch.nn.Module, loaded: Loaded, site: Site, rank: int, share: float) -> None:
    """Noise orthogonal to the `rank` components, each of its directions `share` times as strong as they are."""
    matrix = loaded.anatomy.matrix(site)
    weight = model.get_parameter(matrix.weight)
    u, s, vh = torch.linalg.svd(matrix.read(weight).double(), full_matrices=False)
    order = torch.randperm(len(s) - rank, generator=torch.Generator().manual_seed(1)) + rank
    noise = share * s[0] * u[:, rank:] @ vh[order]
    matrix.write_(weight, matrix.read(weight).double() + noise)


def session_with(as_loaded: Callable[..., Loaded], family: str, site: Site, rank: int, **options) -> Session:
    """A task whose gold answers are the clean model's, for the model with noise."""
    model = tiny(family)
    planted_(model, as_loaded(model), site, rank)
    prompts = np.random.default_rng(5).integers(3, 96, (300, 6)).tolist()
    with torch.no_grad():
        gold = model(torch.tensor(prompts)).logits[:, -1].argmax(-1).tolist()
    noise_(model, as_loaded(model), site, rank, 0.9)
    encoded = {
        i: Encoded(((tuple(p), (g,)),), 0, (1,)) for i, (p, g) in enumerate(zip(prompts, gold, strict=True))
    }
    examples = tuple(Example(f"p{i}", "", f"w{g}") for i, g in enumerate(gold))
    splits = {"probe": range(60), "select": range(60, 180), "test": range(180, 300)}
    task = Task("planted", "generation", examples, {k: tuple(v) for k, v in splits.items()})
    return Session(read_options("zoo", "planted", **options), as_loaded(model), task, encoded, None)


@pytest.mark.parametrize("exhaustive", [False, True], ids=["screened", "exhaustive"])
@pytest.mark.parametrize(
    ("family", "where", "rank"), [("llama", "b1.up", 3), ("gpt2", "b0.v", 5), ("bloom", "b1.down", 2)]
)
def test_the_planted_matrix_is_found_and_its_noise_removed(family, where, rank, exhaustive, as_loaded):
    site = Site.parse(where)
    session = session_with(as_loaded, family, site, rank, exhaustive=exhaustive)
    found = method_named("laser").search(session)
    assert Truncate(site, rank) in found.plan.edits
    judged = session.judge()([session.empty, found.plan], session.task.split("test"))
    before, after = (judged[p]["correct"].mean() for p in (session.empty, found.plan))
    assert before < 0.6
    assert after > 0.97


def test_a_share_bounds_every_round():
    table = noisy(dict.fromkeys(FIELD, 0.0), 256, 5)
    found = race(FIELD, list(range(256)), judge_of(table), LOSS, Rules(share=0.5, z=100))
    assert found.rungs == [(31, 32), (16, 64), (8, 128), (4, 256)]


def test_the_screen_keeps_those_that_are_predicted_best():
    edits = grid({Site(0, "q"): (20, 20)}, fractions=(), small=range(12))
    predicted = Readings("x", "nats", "probe", 1, True, "", {str(e): -float(e.rank) for e in edits})
    assert [edit.rank for edit in screened(predicted, edits, 4)] == [8, 9, 10, 11]
    assert screened(predicted, edits, 99) == edits
    assert len(screened(predicted, edits, 1)) == 1
