"""Statistics against enumeration, double loops, published figures, and simulations with fixed seeds."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from fixtures.marks import slow_but
from scipy import optimize, stats

from secateur.core.baseline import baseline_text, no_room
from secateur.core.comparison import balanced_accuracy, compare, constant_predictor, verdict_word
from secateur.core.records.verdict import BaselineRecord
from secateur.core.score import METRICS, OUTCOME
from secateur.core.stats import (
    DRAWS,
    bootstrap_mean,
    effective_n,
    holm,
    mcnemar,
    mean_interval,
    paired_z,
    rank_correlation,
    resample,
    sign_flip,
    tango,
    tango_counts,
    wilson,
)
from secateur.errors import SecateurError


def bootstrap_p(x, groups, *, weights=None, draws=DRAWS, seed) -> float:
    return resample([x], groups, weights, draws, seed).p_value(0)


def pairs(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.repeat([1.0, 0.0, 1.0, 0.0], [both, gained, lost, neither])
    after = np.repeat([1.0, 1.0, 0.0, 0.0], [both, gained, lost, neither])
    return before, after


def outcomes(*, correct=None, loss=None, tokens=None) -> np.ndarray:
    n = len(correct if correct is not None else loss)
    rows = np.zeros(n, dtype=OUTCOME)
    rows["example"] = np.arange(n)
    rows["correct"] = np.nan if correct is None else correct
    rows["loss"] = 1.0 if loss is None else loss
    rows["tokens"] = 1 if tokens is None else tokens
    return rows


# ---------------------------------------------------------------- proportions


@pytest.mark.parametrize(("k", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)])
def test_wilson_published(k, n, low, high):
    """Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3."""
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (29, 100), (1, 1), (999, 1000)])
def test_wilson_of_whole_numbers_is_scipys(k, n):
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_takes_fractions_as_they_are():
    """29 of 100 as .29 · 100 = 28.999…, and an effective size between two whole ones."""
    assert wilson(0.29 * 100, 100) == pytest.approx((0.2101, 0.3854), abs=5e-5)
    low, high = wilson(20.5, 40.5)
    assert wilson(20, 40)[0] < low < wilson(21, 41)[0]
    assert wilson(20, 40)[1] < high < wilson(21, 41)[1]
    # the limits solve |p̂ − p| = z √(p (1 − p) / n)
    for end in (low, high):
        assert abs(20.5 / 40.5 - end) == pytest.approx(1.9599640 * math.sqrt(end * (1 - end) / 40.5))


@pytest.mark.parametrize("counts", [(3, 0, 0, 2), (1, 4, 1, 2), (0, 3, 3, 0), (2, 0, 7, 1), (5, 9, 2, 1)])
def test_mcnemar_by_enumeration(counts):
    gained, lost = counts[1:3]
    flips = itertools.product((-1, 1), repeat=gained + lost)
    expected = np.mean([abs(sum(signs)) >= abs(gained - lost) for signs in flips])
    assert mcnemar(*pairs(*counts)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("counts", "level", "expected", "digits"),
    [
        # Fagerland, Lydersen & Laake 2014 (Statistics in Medicine 33:2850): airway hyper-responsiveness,
        # 21 children before and after transplantation
        ((1, 1, 7, 12), 0.95, (-0.517, -0.026), 3),
        # PropCIs (R), scoreci.mp(25, 28, 618, conf.level = .9)
        ((300, 28, 25, 265), 0.90, (-0.0148, 0.0247), 4),
    ],
)
def test_tango_published(counts, level, expected, digits):
    assert tango(*pairs(*counts), level) == pytest.approx(expected, abs=0.51 * 10**-digits)


def _score_test(gained: int, lost: int, n: int, delta: float) -> float:
    """T(Δ) with the restricted maximum of the likelihood found by search instead of by formula."""

    def negative(q21: float) -> float:
        q12, rest = q21 + delta, 1 - 2 * q21 - delta
        cells = ((gained, q12), (lost, q21), (n - gained - lost, rest))
        return -sum(count * math.log(max(q, 1e-300)) for count, q in cells if count)

    low, high = max(0.0, -delta), (1 - delta) / 2
    q21 = optimize.minimize_scalar(negative, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (gained - lost - n * delta) / math.sqrt(n * (2 * q21 + delta * (1 - delta)))


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize(("gained", "lost", "n"), [(9, 4, 40), (2, 11, 30), (5, 5, 60), (30, 3, 200)])
def test_tango_inverts_the_score_test(gained, lost, n, level):
    z = stats.norm.ppf((1 + level) / 2)
    low, high = tango_counts(gained, lost, n, level)
    assert _score_test(gained, lost, n, low) == pytest.approx(z, abs=1e-4)
    assert _score_test(gained, lost, n, high) == pytest.approx(-z, abs=1e-4)


def test_tango_at_the_borders():
    """No discordant pair, or only such: the limits are z²/(n + z²) and (n − z²)/(n + z²)."""
    z2 = stats.norm.ppf(0.975) ** 2
    assert tango_counts(0, 0, 50) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)))
    assert tango_counts(30, 0, 30) == pytest.approx(((30 - z2) / (30 + z2), 1.0))
    assert tango_counts(0, 30, 30) == pytest.approx((-1.0, -(30 - z2) / (30 + z2)))


@pytest.mark.parametrize(
    ("p", "most"), [((0.1, 0.1), 0.97), ((0.25, 0.05), 0.97), ((0.02, 0.01), 0.997), ((0.5, 0.4), 0.97)]
)
def test_tango_covers(p, most):
    """Exact coverage at n = 60, summed over the tables; with few discordant pairs it covers more."""
    n, covered = 60, 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            weight = stats.multinomial.pmf([gained, lost, n - gained - lost], n, [*p, 1 - sum(p)])
            if weight > 1e-6:
                low, high = tango_counts(gained, lost, n)
                covered += weight * (low <= p[0] - p[1] <= high)
    assert 0.935 < covered < most


# ---------------------------------------------------------------- permutation, racing, correction


def _flip_all(sums: np.ndarray) -> float:
    draws = [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=len(sums))]
    return float(np.mean(np.array(draws) >= abs(sums.sum()) - 1e-9))


def test_sign_flip_exact():
    rng = np.random.default_rng(0)
    groups = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 6, 7])
    for differences in (rng.normal(0.4, 1, 12), rng.integers(-1, 2, 12).astype(float), np.full(12, 0.1)):
        sums = np.array([differences[groups == g].sum() for g in range(8)])
        assert sign_flip(differences, groups, seed=0) == pytest.approx(_flip_all(sums))


def test_sign_flip_of_single_pairs_is_mcnemar():
    before, after = pairs(100, 40, 21, 300)
    assert sign_flip(after - before, np.arange(len(after)), seed=0) == pytest.approx(mcnemar(before, after))


def test_sign_flip_drawn_agrees_with_convolution():
    """The same data, once as whole numbers (exact) and once shrunk (drawn)."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(80), 3)
    differences = rng.choice([-1.0, 0.0, 1.0], 240, p=[0.1, 0.75, 0.15])
    exact = sign_flip(differences, groups, seed=0)
    drawn = sign_flip(differences * 0.3, groups, draws=20_000, seed=0)
    assert 0.001 < exact < 0.5
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))
    assert drawn == sign_flip(differences * 0.3, groups, draws=20_000, seed=0)


def test_sign_flip_never_reaches_zero():
    assert sign_flip(np.full(200, 0.3), np.arange(200), draws=999, seed=0) == 1 / 1000
    assert sign_flip(np.zeros(5), np.arange(5), seed=0) == 1.0


def test_clusters_matter_under_the_null():
    """Five copies of each of 40 answers: by example the null is rejected too often, by group it is not."""
    rng, groups, naive, grouped = np.random.default_rng(2), np.repeat(np.arange(40), 5), 0, 0
    for _ in range(300):
        differences = np.repeat(rng.choice([-1.0, 0.0, 1.0], 40, p=[0.25, 0.5, 0.25]), 5)
        naive += sign_flip(differences, np.arange(200), seed=0) < 0.05
        grouped += sign_flip(differences, groups, seed=0) < 0.05
    assert naive > 90
    assert grouped <= 24  # 5 % of 300 is 15; 24 is the 99th percentile


def test_paired_z():
    assert paired_z(np.zeros(10)) == 0.0
    assert paired_z(np.array([])) == 0.0
    assert paired_z(np.full(4, 0.2)) == pytest.approx(2.0)
    assert paired_z(np.full(16, -1e-200)) == pytest.approx(-4.0)
    gains = np.random.default_rng(0).normal(0.3, 1, 50)
    t = stats.ttest_1samp(gains, 0).statistic
    assert paired_z(gains) == pytest.approx(t / math.sqrt(1 + (t * t - 1) / 50))
    gained, lost = 12, 5
    assert paired_z(np.repeat([1.0, -1.0, 0.0], [gained, lost, 9])) == pytest.approx(7 / math.sqrt(17))


def test_holm():
    p = [0.01, 0.04, 0.03, 0.005, 0.9]
    assert holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.9])
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


# ---------------------------------------------------------------- bootstrap


def _slow_bootstrap(x, w, groups, draws, seed):
    """Mean, standard error and |t*|, by loops over members of groups."""
    names = sorted(set(groups.tolist()))
    members = {g: np.flatnonzero(groups == g) for g in names}

    def fit(chosen):
        index = np.concatenate([members[g] for g in chosen])
        mean = (w[index] * x[index]).sum() / w[index].sum()
        residuals = [(w[members[g]] * (x[members[g]] - mean)).sum() for g in chosen]
        square = sum(r * r for r in residuals) * len(chosen) / (len(chosen) - 1)
        return mean, math.sqrt(square) / w[index].sum()

    mean, se = fit(names)
    rng, t = np.random.default_rng(seed), []
    for _ in range(draws):
        mean_star, se_star = fit([names[i] for i in rng.integers(0, len(names), len(names))])
        t.append(abs(mean_star - mean) / se_star)
    return mean, se, np.array(t)


def test_bootstrap_against_double_loop():
    """Another stream of draws, so equal up to Monte Carlo error; the means' part is exact."""
    rng = np.random.default_rng(3)
    groups = rng.permutation(np.repeat(np.arange(40), rng.integers(1, 5, 40)))
    w = rng.integers(1, 9, groups.size).astype(float)
    x = rng.exponential(size=groups.size) - 0.8 + 0.5 * rng.normal(size=40)[groups]
    mean, se, t = _slow_bootstrap(x, w, groups, 4000, 7)
    low, high = bootstrap_mean(x, groups, weights=w, seed=1)
    assert (low + high) / 2 == pytest.approx(mean, rel=1e-9)
    assert (high - low) / 2 == pytest.approx(np.quantile(t, 0.95) * se, rel=0.06)
    slow_p = (1 + (t >= abs(mean) / se).sum()) / 4001
    assert bootstrap_p(x, groups, weights=w, seed=1) == pytest.approx(slow_p, abs=0.03)


def test_bootstrap_in_chunks_is_the_same(monkeypatch):
    x, groups = np.random.default_rng(0).normal(size=300), np.repeat(np.arange(100), 3)
    whole = bootstrap_mean(x, groups, seed=5, draws=500)
    monkeypatch.setattr("secateur.core.stats._CHUNK", 700)
    assert bootstrap_mean(x, groups, seed=5, draws=500) == pytest.approx(whole, rel=1e-12)
    assert bootstrap_mean(x, groups, seed=6, draws=500) != pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("shape", ["normal", "skewed", "sparse"])
def test_bootstrap_covers_and_is_calibrated(shape):
    """60 groups of 3 with a common part: 95 % intervals cover 92–98.5 %, p is uniform in the tail, and the
    interval leaves 0 out exactly where p < .05."""
    rng, groups, n = np.random.default_rng(4), np.repeat(np.arange(60), 3), 400
    rejected = disagreed = 0
    for seed in range(n):
        base = {
            "normal": lambda: rng.normal(size=60),
            "skewed": lambda: rng.exponential(size=60) - 1,
            "sparse": lambda: (rng.random(60) < 0.25) * rng.normal(size=60) * 2,
        }[shape]()
        x = np.repeat(base, 3) + 0.3 * rng.normal(size=180)
        low, high = bootstrap_mean(x, groups, seed=seed, draws=499)
        p = bootstrap_p(x, groups, seed=seed, draws=499)
        rejected += p < 0.05
        disagreed += (p < 0.05) != (low > 0 or high < 0) and abs(p - 0.05) > 0.003
    assert disagreed == 0
    assert 0.015 * n <= rejected <= 0.08 * n


def test_naive_bootstrap_is_too_narrow():
    x = np.repeat(np.random.default_rng(5).normal(size=80), 6)
    low, high = bootstrap_mean(x, np.repeat(np.arange(80), 6), seed=0)
    naive_low, naive_high = bootstrap_mean(x, np.arange(480), seed=0)
    assert (high - low) / (naive_high - naive_low) == pytest.approx(math.sqrt(6), rel=0.1)


def test_bootstrap_without_variance():
    groups = np.arange(20)
    assert bootstrap_mean(np.full(20, 1.7), groups, seed=0) == pytest.approx((1.7, 1.7))
    assert bootstrap_p(np.zeros(20), groups, seed=0) == 1.0
    assert bootstrap_p(np.full(20, 0.1), groups, seed=0) == pytest.approx(1 / (1 + DRAWS))
    assert bootstrap_p(np.full(3, 0.1), np.arange(3), seed=0) == 0.25  # three groups cannot show more
    one = np.zeros(40)
    one[3] = 5.0  # one example changed: never significant, and the interval is finite
    low, high = bootstrap_mean(one, np.arange(40), seed=0)
    assert bootstrap_p(one, np.arange(40), seed=0) > 0.3
    assert low < 0 < high < math.inf


# ---------------------------------------------------------------- few groups


def _covered(compared, truth: float, n: int) -> float:
    """How often the interval of `before` holds the truth, over `n` draws of `compared(seed)`."""
    found = [compared(seed).before.ci for seed in range(n)]
    return float(np.mean([low <= truth <= high for low, high in found]))


LOSSES = {
    "normal": (lambda rng, size: rng.normal(2, 0.3, size), 2.0),
    "gamma": (lambda rng, size: rng.gamma(2, 1, size), 2.0),
    "exponential": (lambda rng, size: rng.gamma(1, 2, size), 2.0),
    "log-normal": (lambda rng, size: rng.lognormal(0, 0.5, size), math.exp(0.125)),
}


@pytest.mark.parametrize("groups", slow_but([10], [10, 20, 50]))
@pytest.mark.parametrize("shape", LOSSES)
def test_intervals_of_a_mean_loss_cover_and_stay_above_zero(shape, groups, monkeypatch):
    """Losses of whole groups, three examples each: at least 93 % of 95 % intervals hold the true mean."""
    monkeypatch.setattr("secateur.core.comparison.DRAWS", 999)
    draw, truth = LOSSES[shape]
    labels = np.repeat(np.arange(groups), 3)

    def compared(seed: int):
        rng = np.random.default_rng(seed)
        loss = np.repeat(draw(rng, groups), 3)
        found = compare(METRICS["loss"], *[outcomes(loss=loss)] * 2, labels, seed=seed)
        assert found.before.ci[0] > 0
        return found

    assert _covered(compared, truth, 1000) >= 0.93 - 0.013  # two standard errors of a share of 1,000


@pytest.mark.parametrize("groups", slow_but([10], [10, 20, 50]))
@pytest.mark.parametrize(("share", "alike"), [(0.5, 0.1), (0.5, 0.4), (0.8, 0.4), (0.95, 0.1), (0.95, 0.4)])
def test_intervals_of_a_clustered_share_cover_and_stay_inside(share, alike, groups):
    """Groups of ten whose own shares are beta distributed, with intraclass correlation `alike`."""
    labels = np.repeat(np.arange(groups), 10)
    scale = (1 - alike) / alike

    def compared(seed: int):
        rng = np.random.default_rng(seed)
        own = rng.beta(share * scale, (1 - share) * scale, groups)
        correct = (rng.random(10 * groups) < own[labels]).astype(float)
        found = compare(METRICS["accuracy"], *[outcomes(correct=correct)] * 2, labels, seed=seed)
        assert 0 <= found.before.ci[0] <= found.before.ci[1] <= 1
        return found

    assert _covered(compared, share, 600) >= 0.93 - 0.016


@pytest.mark.parametrize("groups", range(1, 10))
@pytest.mark.parametrize("metric", ["accuracy", "loss", "text_loss"])
def test_under_ten_groups_there_is_no_interval(metric, groups):
    """A p-value there is, from the exact sign flips, which are weighted as the metric is."""
    rng, labels = np.random.default_rng(0), np.arange(10 * groups) // 10
    tokens = rng.integers(1, 60, labels.size)
    rows = [
        outcomes(
            correct=rng.integers(0, 2, labels.size).astype(float),
            loss=2 + rng.normal(0, 0.3, labels.size),
            tokens=tokens,
        )
        for _ in range(2)
    ]
    found = compare(METRICS[metric], *rows, labels, seed=0)
    assert (found.before.ci, found.after.ci, found.difference_ci) == (None, None, None)
    assert found.to_json()["difference"]["ci"] is None
    change = METRICS[metric].values(rows[1]) - METRICS[metric].values(rows[0])
    change = change * (tokens if metric == "text_loss" else 1)
    assert found.p_value == pytest.approx(_flip_all(np.bincount(labels, weights=change)))


# ---------------------------------------------------------------- compare


def test_compare_pairs():
    before, after = pairs(100, 40, 21, 300)
    found = compare(
        METRICS["accuracy"], outcomes(correct=before), outcomes(correct=after), np.arange(461), seed=0
    )
    assert (found.test, found.num_better, found.num_worse) == ("exact McNemar", 40, 21)
    assert found.p_value == pytest.approx(stats.binomtest(40, 61).pvalue)
    assert found.difference == pytest.approx(19 / 461)
    assert found.difference_ci == tango(before, after)
    assert (found.before.ci, found.after.ci) == (wilson(121, 461), wilson(140, 461))
    assert found.gained
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["after"]["value"] == pytest.approx(
        140 / 461
    )


def test_compare_groups_of_correct_answers():
    rng = np.random.default_rng(6)
    groups = np.repeat(np.arange(100), 3)
    before = np.repeat((rng.random(100) < 0.4).astype(float), 3)
    after = np.maximum(before, np.repeat((rng.random(100) < 0.2).astype(float), 3))
    found = compare(METRICS["accuracy"], outcomes(correct=before), outcomes(correct=after), groups, seed=0)
    sums = (after - before).reshape(100, 3).sum(1)
    assert found.test == "sign-flip permutation by group"
    assert found.p_value == pytest.approx(2.0 ** (1 - (sums > 0).sum()))
    assert (found.before.n, found.before.groups) == (300, 100)
    p = before.mean()  # fully dependent triples: as wide as 100 examples, not 300
    assert np.ptp(found.before.ci) == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 100), rel=0.08)
    assert found.difference_ci[0] > 0


def test_compare_groups_with_one_failure_keeps_a_narrow_interval():
    groups, before = np.repeat(np.arange(420), 2), np.zeros(840)
    after = np.ones(840)
    after[:2] = 0.0  # one whole group of 420 is wrong
    found = compare(METRICS["accuracy"], outcomes(correct=before), outcomes(correct=after), groups, seed=0)
    assert found.after.ci == pytest.approx(wilson(419, 420), abs=1e-6)
    assert found.difference_ci[0] > 0.97


@pytest.mark.parametrize("share", [0.5, 0.97])
def test_intervals_of_clustered_shares_cover(share):
    """Groups of 1 to 4 dependent examples: the interval covers the true share in about 95 % of 400 draws."""
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(400):
        groups = np.repeat(np.arange(120), rng.integers(1, 5, size=120))
        own = rng.random(groups.size) < 0.4  # 40 % answer for themselves, the others as their group does
        correct = np.where(own, rng.random(groups.size) < share, (rng.random(120) < share)[groups])
        low, high = wilson(correct.mean() * (n := effective_n(correct, groups)), n)
        covered += low <= share <= high
    assert 0.93 <= covered / 400 <= 0.99


def test_compare_groups_without_variance_counts_groups():
    groups, ones = np.repeat(np.arange(30), 2), np.ones(60)
    found = compare(METRICS["accuracy"], outcomes(correct=ones), outcomes(correct=ones), groups, seed=0)
    assert found.before.ci == wilson(30, 30)
    assert found.difference_ci == tango_counts(0, 0, 30)
    assert found.p_value == 1.0
    worse = compare(METRICS["accuracy"], outcomes(correct=ones), outcomes(correct=0 * ones), groups, seed=0)
    assert worse.difference_ci == tango_counts(0, 30, 30)
    assert worse.p_value == pytest.approx(2.0**-29)


@pytest.mark.parametrize("weighted", [False, True])
def test_compare_losses(weighted):
    rng = np.random.default_rng(7)
    groups, tokens = np.repeat(np.arange(80), 2), rng.integers(1, 20, 160)
    before = 3 + rng.normal(size=160)
    after = before - 0.2 - 0.3 * rng.normal(size=160)
    metric = METRICS["text_loss" if weighted else "loss"]
    found = compare(
        metric, outcomes(loss=before, tokens=tokens), outcomes(loss=after, tokens=tokens), groups, seed=3
    )
    weights = tokens if weighted else np.ones(160)
    assert found.difference == pytest.approx(np.average(after - before, weights=weights))
    assert found.after.value == pytest.approx(np.average(after, weights=weights))
    assert found.difference_ci == pytest.approx(
        bootstrap_mean(after - before, groups, weights=weights, seed=3)
    )
    assert found.p_value == bootstrap_p(after - before, groups, weights=weights, seed=3)
    assert found.gained  # a loss that falls
    assert found.difference < 0
    assert found.test == "paired bootstrap, by group"
    assert np.ptp(found.difference_ci) < np.ptp(found.before.ci) / 2  # pairing pays


def test_compare_refuses_what_is_not_there():
    rows = outcomes(loss=np.ones(60))
    with pytest.raises(SecateurError, match="accuracy before the cut: 60 of 60 values are not finite"):
        compare(METRICS["accuracy"], rows, rows, np.arange(60), seed=0)
    broken = rows.copy()
    broken["loss"][4] = np.inf
    with pytest.raises(SecateurError, match="loss after the cut: 1 of 60"):
        compare(METRICS["loss"], rows, broken, np.arange(60), seed=0)
    shifted = rows.copy()
    shifted["example"] += 1
    with pytest.raises(AssertionError):
        compare(METRICS["loss"], rows, shifted, np.arange(60), seed=0)


def test_compare_is_calibrated_on_a_null():
    """Two models equally good, independent answers: the share of p < .05 is at most 5 %."""
    rng, n = np.random.default_rng(8), 400
    hits = 0
    for _ in range(n):
        before, after = ((rng.random(200) < 0.5).astype(float) for _ in range(2))
        found = compare(
            METRICS["accuracy"], outcomes(correct=before), outcomes(correct=after), np.arange(200), seed=0
        )
        hits += found.p_value < 0.05
    assert 0.02 * n <= hits <= 0.07 * n


def test_verdict_word():
    assert verdict_word(0.01, True, False) == "improves"
    assert verdict_word(0.01, True, True) == "no difference shown"
    assert verdict_word(0.01, False, True) == "worse"
    assert verdict_word(0.05, True, False) == "no difference shown"
    assert verdict_word(0.2, False, False) == "no difference shown"


# ---------------------------------------------------------------- the guard


def labels(rng, n: int, shares: dict[str, float]) -> np.ndarray:
    return rng.choice(list(shares), n, p=list(shares.values()))


def test_balanced_accuracy():
    gold, said = ["a", "a", "a", "b"], ["a", "a", "b", "b"]
    assert balanced_accuracy(gold, said) == pytest.approx((2 / 3 + 1) / 2)
    assert balanced_accuracy(gold, ["a"] * 4) == 0.5


def test_guard_fires_on_lasers_cells():
    """FEVER: 50.2 % → 56.2 % by always giving the majority answer; a complement: 37.1 % → 62.9 %."""
    rng = np.random.default_rng(9)
    gold = np.repeat(["true", "false"], [562, 438])
    coin = labels(rng, 1000, {"true": 0.5, "false": 0.5})
    found = constant_predictor(gold, coin, np.full(1000, "true"))
    assert found.fired
    assert (found.majority_baseline, found.modal_share_after, found.balanced_after) == (0.562, 1.0, 0.5)
    gold = np.repeat(["true", "false"], [629, 371])
    assert constant_predictor(gold, np.full(1000, "false"), np.full(1000, "true")).fired
    json.dumps(found.to_json(), allow_nan=False)


def test_guard_fires_on_uninformed_collapse():
    """Nearly constant, 85 % one answer, and blind to the gold answer: fires nearly always."""
    fired = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        gold = labels(rng, 600, {"a": 0.56, "b": 0.44})
        before = labels(rng, 600, {"a": 0.4, "b": 0.6})
        fired += constant_predictor(gold, before, labels(rng, 600, {"a": 0.85, "b": 0.15})).fired
    assert fired >= 190


def test_guard_is_silent_on_a_shift_that_is_no_collapse():
    """70 % of one answer where gold has 56 % is not half way to "always"; 95 % is, but the base gave more."""
    rng = np.random.default_rng(12)
    gold = np.repeat(["a", "b"], [560, 440])
    shifted = labels(rng, 1000, {"a": 0.7, "b": 0.3})
    assert not constant_predictor(gold, labels(rng, 1000, {"a": 0.3, "b": 0.7}), shifted).fired
    nearly = labels(rng, 1000, {"a": 0.95, "b": 0.05})
    assert not constant_predictor(gold, np.full(1000, "a"), nearly).fired
    assert constant_predictor(gold, shifted, nearly).fired


def test_guard_is_silent_when_generic_answers_go():
    """Facts: 40 objects, the base says "the" to 45 %, the cut model to 5 %; or to 90 % and then 60 %."""
    rng = np.random.default_rng(10)
    gold = np.array([f"o{i}" for i in rng.zipf(1.5, 500) % 40])
    for share_before, share_after in ((0.45, 0.05), (0.9, 0.6)):
        before = np.where(rng.random(500) < share_before, "the", gold)
        after = np.where(rng.random(500) < share_after, "the", gold)
        assert not constant_predictor(gold, before, after).fired


def test_guard_is_silent_on_lopsided_tasks_and_real_gains():
    rng = np.random.default_rng(11)
    lopsided = np.repeat(["a", "b"], [950, 50])
    noisy = np.where(rng.random(1000) < 0.1, np.where(lopsided == "a", "b", "a"), lopsided)
    assert not constant_predictor(lopsided, noisy, lopsided).fired
    even = np.repeat(["a", "b"], [500, 500])  # from always b to 92 % a, where every b it says is right
    informed = np.where((even == "b") & (rng.random(1000) < 0.16), "b", "a")
    found = constant_predictor(even, np.full(1000, "b"), informed)
    assert found.answer_after > 0.9
    assert not found.fired
    assert "balanced accuracy rises" in found.detail


def test_guard_not_applicable_without_shared_answers():
    gold = [f"answer {i}" for i in range(100)]
    found = constant_predictor(gold, ["x"] * 100, ["y"] * 100)
    assert not found.applicable
    assert not found.fired
    assert found.detail.startswith("not applicable")


def test_guard_by_group_needs_more():
    """The same rise of balanced accuracy, once from 1,000 independent examples and once from 10 groups."""
    gold = np.repeat(["a", "b"], [500, 500])
    after = np.where(np.arange(1000) < 900, "a", "b")  # 100 of the 500 b are found
    before = np.full(1000, "b")
    assert not constant_predictor(gold, before, after).fired
    assert constant_predictor(gold, before, after, groups=np.arange(1000) // 100).fired


# ---------------------------------------------------------------- many means and correlations at once


def test_the_interval_of_a_mean_is_students_where_every_value_is_a_group():
    values = np.random.default_rng(0).normal(0.3, 2.0, 40)
    found = mean_interval(values, np.arange(40))
    np.testing.assert_allclose(found, stats.ttest_1samp(values, 0).confidence_interval(0.95), rtol=1e-12)
    assert mean_interval(values[:9], np.arange(9)) is None


def test_the_interval_of_a_clustered_mean_covers_it():
    """Twenty groups of five alike values with weights; intervals that took each value for its own would cover half."""
    rng, groups = np.random.default_rng(1), np.repeat(np.arange(20), 5)
    weights = np.tile([1.0, 2.0, 1.0, 3.0, 1.0], 20)
    inside = 0
    for _ in range(1000):
        low, high = mean_interval(
            0.5 + rng.normal(0, 1, 20)[groups] + rng.normal(0, 0.2, 100), groups, weights
        )
        inside += low <= 0.5 <= high
    assert 930 <= inside <= 970


def test_the_interval_of_a_rank_correlation_covers_it():
    """Normal pairs, whose Spearman correlation is 6/π · arcsin(r/2)."""
    rng, truth = np.random.default_rng(2), 6 / math.pi * math.asin(0.7 / 2)
    inside = 0
    for _ in range(1000):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 20).T
        rho, (low, high) = rank_correlation(x, y)
        assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
        inside += low <= truth <= high
    assert 935 <= inside <= 980
    assert rank_correlation([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]) is None
    assert rank_correlation([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) is None


def test_a_score_with_too_little_left_to_gain_is_warned_of() -> None:
    """16 examples show 22 points: four times in five where one answer in ten changes, 2.8 · √(0.1 / 16)."""
    record = BaselineRecord(
        split="select", metric="accuracy", n=16, value=1.0, ci=[0.806, 1.0], chance=0.25, majority=None, given=None,
        accuracy_norm=None, warning=None,
    )  # fmt: skip
    said = "16 examples show a change from 22.1 points on, where a cut changes one answer in ten."
    assert baseline_text(record).endswith(said)
    words = no_room(record)
    assert words is not None
    assert "100.0 % are right, 0.0 points are left, and 16 examples show gains from 22.1 points on" in words
    assert no_room(record.model_copy(update={"value": 0.77})) is None
    assert no_room(record.model_copy(update={"metric": "loss"})) is None
