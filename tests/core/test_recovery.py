"""The share that came back: against a plain bootstrap of whole groups, and where there is nothing to say."""

from __future__ import annotations

import random

import numpy as np
import pytest

from secateur.core.comparison import recovered
from secateur.core.score import METRICS, OUTCOME


def outcomes(losses, tokens=None, correct=None):
    found = np.zeros(len(losses), OUTCOME)
    found["example"], found["loss"] = np.arange(len(losses)), losses
    found["tokens"] = 1 if tokens is None else tokens
    found["correct"] = 0 if correct is None else correct
    return found


@pytest.fixture
def three():
    """Original, cut and healed on 240 examples of 80 groups that share much; 60 % came back."""
    draw = np.random.default_rng(3)
    groups = np.repeat(np.arange(80), 3)
    base = 1.5 + draw.normal(size=80)[groups] * 0.3
    lost = 1.0 + 0.8 * draw.normal(size=80)[groups] + 0.2 * draw.normal(size=240)
    back = 0.6 * lost + 0.5 * draw.normal(size=80)[groups] + 0.2 * draw.normal(size=240)
    tokens = draw.integers(1, 20, 240)
    return (*(outcomes(x, tokens) for x in (base, base + lost, base + lost - back)), groups)


def slow(original, cut, healed, groups, *, weighted):
    """The ratio, and the middle 95 % of ratios over groups drawn with replacement, in plain Python."""

    def ratio(rows):
        w = [int(cut["tokens"][r]) if weighted else 1 for r in rows]
        up = sum(k * (cut["loss"][r] - healed["loss"][r]) for k, r in zip(w, rows, strict=True))
        down = sum(k * (cut["loss"][r] - original["loss"][r]) for k, r in zip(w, rows, strict=True))
        return up / down

    members = {g: [r for r in range(len(groups)) if groups[r] == g] for g in set(groups.tolist())}
    chance = random.Random(1)
    drawn = sorted(
        ratio([r for g in chance.choices(list(members), k=len(members)) for r in members[g]])
        for _ in range(1500)
    )
    return ratio(range(len(groups))), (drawn[37], drawn[1462])


@pytest.mark.parametrize("name", ["loss", "text_loss"])
def test_value_and_interval_are_those_of_a_plain_bootstrap_over_groups(three, name):
    value, (low, high) = recovered(METRICS[name], *three)
    expected, (below, above) = slow(*three, weighted=name == "text_loss")
    assert value == pytest.approx(expected, rel=1e-12)
    assert low < value < high
    assert (low, high) == pytest.approx((below, above), abs=0.15 * (above - below))
    alone = recovered(METRICS[name], *three[:3], np.arange(240))[1]
    assert high - low > 1.3 * (alone[1] - alone[0]), "groups were taken for independent examples"


def test_the_direction_is_the_metrics_own():
    right = np.arange(200) % 10
    original, cut, healed = (
        outcomes(np.zeros(200), correct=right < most)
        for most in (8, 4, 7)  # 80 %, 40 %, 70 %
    )
    value, (low, high) = recovered(METRICS["accuracy"], original, cut, healed, np.arange(200))
    assert value == pytest.approx(0.75)
    assert 0.6 < low < 0.75 < high < 0.9


def test_all_none_and_more_than_all(three):
    original, cut, _, groups = three
    metric = METRICS["loss"]
    assert recovered(metric, original, cut, original, groups) == (1.0, pytest.approx((1.0, 1.0)))
    assert recovered(metric, original, cut, cut, groups) == (0.0, pytest.approx((0.0, 0.0)))
    assert recovered(metric, original, cut, outcomes(original["loss"] - 1, original["tokens"]), groups)[0] > 1


def test_where_nothing_is_shown_to_be_lost_there_is_no_share(three):
    original, cut, healed, groups = three
    metric = METRICS["loss"]
    noise = np.random.default_rng(0).normal(size=240)
    assert recovered(metric, original, outcomes(original["loss"] + noise), healed, groups) is None
    assert recovered(metric, cut, original, healed, groups) is None, "the cut was better"
