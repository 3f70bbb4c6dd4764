"""Not worse by more than a margin: bounds against independent slow code, coverage by simulation, and every word."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from fixtures import data_report
from scipy import optimize, stats

from secateur.checkpoint.card import model_card
from secateur.core.comparison import compare, constant_predictor, verdict_word
from secateur.core.ledger import Ledger
from secateur.core.noninferiority import NonInferiority, bound_text, margin_text, non_inferiority
from secateur.core.plan import Plan, Truncate
from secateur.core.records.verdict import (
    GgufRecord,
    HandedOverRecord,
    ModelRecord,
    NonInferiorityRecord,
    SearchRecord,
    VerdictRecord,
)
from secateur.core.score import METRICS, OUTCOME
from secateur.core.site import Site
from secateur.core.stats import DRAWS, effective_n, resample
from secateur.errors import SecateurError
from secateur.evaluation.measurement import Measurement
from secateur.evaluation.verdict import decide
from secateur.records import sentence
from secateur.report.overview import hero
from secateur.tasks.example import Example, Task


def in_words(record: dict) -> str:
    """The words for plain JSON, in which an older version wrote nothing about earlier looks."""
    return bound_text(NonInferiorityRecord.model_validate(record))


def outcomes(*, correct=None, loss=None, tokens=None) -> np.ndarray:
    n = len(correct if correct is not None else loss)
    rows = np.zeros(n, dtype=OUTCOME)
    rows["example"] = np.arange(n)
    rows["correct"] = np.nan if correct is None else correct
    rows["loss"] = 1.0 if loss is None else loss
    rows["tokens"] = 1 if tokens is None else tokens
    return rows


def pairs(n: int, gained: int, lost: int, both: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """0/1 outcomes before and after: so many gained, lost, right both times; the others wrong both times."""
    counts = [gained, lost, both, n - gained - lost - both]
    return (
        outcomes(correct=np.repeat([0.0, 1.0, 1.0, 0.0], counts)),
        outcomes(correct=np.repeat([1.0, 0.0, 1.0, 0.0], counts)),
    )


def bound_of(
    before, after, groups=None, *, metric="accuracy", margin=0.02, openings=1, seed=0
) -> NonInferiority:
    groups = np.arange(len(before)) if groups is None else groups
    return non_inferiority(
        METRICS[metric], before, after, groups, margin=margin, openings=openings, seed=seed
    )


# ---------------------------------------------------------------- Tango, by maximizing over the nuisance parameter


def score_statistic(gained: int, lost: int, n: int, delta: float) -> float:
    """z of H0: P(gained) − P(lost) = delta. The nuisance P(lost) is the maximum of the trinomial likelihood, found by
    search: nothing of Tango's closed form."""

    def minus_log_likelihood(p_lost: float) -> float:
        terms = ((gained, p_lost + delta), (lost, p_lost), (n - gained - lost, 1 - 2 * p_lost - delta))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in terms if k)

    low, high = max(0.0, -delta), (1 - delta) / 2
    found = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-13}
    )
    p_lost = min((found.x, low, high), key=minus_log_likelihood)
    variance = n * (2 * p_lost + delta - delta * delta)
    return (gained - lost - n * delta) / math.sqrt(variance)


def slow_tango(gained: int, lost: int, n: int, level: float) -> float:
    """The delta below the estimate at which the score statistic is the normal quantile of a one-sided test."""
    z, end = stats.norm.ppf(level), (gained - lost) / n
    return optimize.brentq(
        lambda d: score_statistic(gained, lost, n, d) - z, -1 + 1e-9, end - 1e-9, xtol=1e-12
    )


@pytest.mark.parametrize("openings", [1, 3])
@pytest.mark.parametrize(
    ("gained", "lost", "n"),
    [(3, 7, 120), (0, 5, 60), (6, 0, 40), (40, 52, 461), (0, 0, 50), (9, 9, 18), (2, 30, 33)],
)
def test_tango_bound_against_the_likelihood(gained, lost, n, openings):
    found = bound_of(*pairs(n, gained, lost), openings=openings)
    assert found.bound == pytest.approx(slow_tango(gained, lost, n, 1 - 0.05 / openings), abs=2e-6)
    assert found.method == "Tango score interval"


@pytest.mark.parametrize("n", [10, 132, 133, 500])
@pytest.mark.parametrize("both", [0, 1])
def test_no_discordant_pair(n, both):
    """−z² / (n + z²), whether everything was right or everything wrong; 133 equal answers show 2 points."""
    found = bound_of(*pairs(n, 0, 0, both * n))
    assert found.bound == pytest.approx(-(1.6448536**2) / (n + 1.6448536**2), abs=1e-6)
    assert found.shown == (n >= 133)


def test_all_lost_or_all_gained():
    """Lost: the estimate is −1, and nothing lies below it. Gained: the bound is far from 1."""
    assert bound_of(*pairs(10, 0, 10)).bound == pytest.approx(-1, abs=1e-9)
    gained = bound_of(*pairs(10, 10, 0)).bound
    assert gained == pytest.approx(slow_tango(10, 0, 10, 0.95), abs=2e-6)
    assert 0.4 < gained < 0.6


def test_tango_bound_is_the_interval_of_compare_one_sided():
    """At openings=2 the one-sided level is 97.5 %, so the bound is the end of compare()'s two-sided 95 % interval."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(70), 3)
    for labels in (groups, np.arange(210)):
        before = outcomes(correct=(rng.random(210) < 0.6).astype(float))
        after = outcomes(correct=(rng.random(210) < 0.6).astype(float))
        both = compare(METRICS["accuracy"], before, after, labels, seed=0)
        found = bound_of(before, after, labels, openings=2)
        assert found.bound == pytest.approx(both.difference_ci[0], abs=1e-9)
        assert found.level == 0.975


def test_clusters_widen_the_bound():
    before, after = pairs(400, 6, 12, 200)
    lost_together = np.arange(400) // 4
    assert effective_n(after["correct"] - before["correct"], lost_together) < 200
    assert bound_of(before, after, lost_together).bound < bound_of(before, after).bound - 0.005


# ---------------------------------------------------------------- bootstrap, by a loop over resamples


def ratio_and_error(gain, weights, groups, chosen) -> tuple[float, float]:
    """Σwx / Σw over the chosen groups, and its linearized standard error."""
    total = sum(weights[groups == g].sum() for g in chosen)
    mean = sum((weights * gain)[groups == g].sum() for g in chosen) / total
    squares = sum((weights * (gain - mean))[groups == g].sum() ** 2 for g in chosen)
    return mean, math.sqrt(squares) / total


def slow_bootstrap(gain, weights, groups, level: float, draws: int) -> float:
    rng, labels = np.random.default_rng(99), np.unique(groups)
    mean, error = ratio_and_error(gain, weights, groups, labels)
    t = []
    for _ in range(draws):
        m, e = ratio_and_error(gain, weights, groups, rng.choice(labels, labels.size))
        t.append((m - mean) / e)
    return mean - sorted(t)[math.ceil(level * draws) - 1] * error


@pytest.mark.parametrize("weighted", [False, True])
def test_bootstrap_bound_against_a_loop(weighted):
    """Other random numbers, so equal up to the error of a quantile of 2,000 draws: .04 standard errors or so."""
    rng = np.random.default_rng(4)
    groups, tokens = rng.permutation(np.repeat(np.arange(45), 2)), rng.integers(1, 30, 90)
    before, harm = 3 + rng.normal(size=90), 0.1 * rng.lognormal(0, 1, 90)
    metric = METRICS["text_loss" if weighted else "loss"]
    rows = outcomes(loss=before, tokens=tokens), outcomes(loss=before + harm, tokens=tokens)
    found = non_inferiority(metric, *rows, groups, margin=0.3, seed=1)
    weights = tokens if weighted else np.ones(90)
    slow = slow_bootstrap(-harm, weights, groups, 0.95, 2000)
    error = ratio_and_error(-harm, weights, groups, np.unique(groups))[1]
    assert abs(found.bound - slow) < 0.25 * error
    symmetric = -np.average(harm, weights=weights) - 1.645 * error
    assert found.bound < symmetric - 0.3 * error  # the long tail of harm is on the side that matters
    assert found.method == "paired bootstrap"
    assert found == non_inferiority(metric, *rows, groups, margin=0.3, seed=1)


def test_bootstrap_bound_exactly_where_resamples_can_be_enumerated():
    """Five groups have 5⁵ equally likely resamples: the quantile is known, and 10,000 draws come near it.

    So few groups get no bound from `non_inferiority`; the resampling below it is the same for any number."""
    gain = np.array([-0.4, -0.1, 0.0, 0.1, 0.3])
    mean, error = ratio_and_error(gain, np.ones(5), np.arange(5), range(5))
    t = []
    for number in range(5**5):
        chosen = [number // 5**k % 5 for k in range(5)]
        m, e = ratio_and_error(gain, np.ones(5), np.arange(5), chosen)
        t.append((m - mean) / e if e > 1e-12 else math.copysign(math.inf, m - mean) if m != mean else 0.0)
    t = np.clip(t, -max(x for x in np.abs(t) if x < math.inf), max(x for x in np.abs(t) if x < math.inf))
    low, high = (mean - np.quantile(t, level, method="higher") * error for level in (0.957, 0.943))
    assert low <= resample([gain], np.arange(5), None, DRAWS, 5).lower(0, 0.95) <= high


def test_loss_that_did_not_move_or_moved_everywhere_alike():
    loss = np.linspace(1, 3, 40)
    same = bound_of(outcomes(loss=loss), outcomes(loss=loss), metric="loss")
    assert same.bound == 0.0
    assert same.shown
    shifted = bound_of(outcomes(loss=loss), outcomes(loss=loss + 0.01), metric="loss")
    assert shifted.bound == pytest.approx(-0.01)


def test_too_few_groups_or_too_many_openings_bound_nothing():
    loss = np.linspace(1, 3, 20)
    rows = outcomes(loss=loss), outcomes(loss=loss - 1)
    for found in (bound_of(*rows, np.arange(20) % 9, metric="loss"), bound_of(*pairs(9, 9, 0))):
        assert found.bound == -math.inf
        assert found.method == "none, too few groups"
        assert not found.shown
    assert bound_of(*rows, np.arange(20) // 2, metric="loss").shown
    assert (
        bound_of(*rows, np.arange(20) // 2, metric="loss", openings=52).bound == -math.inf
    )  # .05 / 52 < 2⁻¹⁰
    assert bound_of(*rows, np.arange(20), metric="loss", openings=DRAWS).to_json()["bound"] is None


@pytest.mark.parametrize("margin", [-0.01, math.nan, math.inf])
def test_a_margin_that_bounds_nothing_is_refused(margin):
    with pytest.raises(SecateurError, match="0 or more"):
        bound_of(*pairs(50, 1, 1), margin=margin)


def test_values_that_are_not_finite_are_refused():
    broken = outcomes(loss=[1.0, np.inf, 2.0])
    with pytest.raises(SecateurError, match="loss after the cut: 1 of 3"):
        bound_of(outcomes(loss=np.ones(3)), broken, metric="loss")
    with pytest.raises(SecateurError, match="accuracy before the cut: 3 of 3"):
        bound_of(broken, broken)


def test_openings_lower_the_level_and_the_bound():
    rng = np.random.default_rng(2)
    loss = 2 + rng.normal(size=100)
    losses = outcomes(loss=loss), outcomes(loss=loss + 0.05 * rng.normal(size=100))
    for rows, metric in ((pairs(200, 3, 5), "accuracy"), (losses, "loss")):
        found = [bound_of(*rows, metric=metric, openings=k) for k in (1, 2, 5)]
        assert [f.level for f in found] == pytest.approx([0.95, 0.975, 0.99])
        assert found[0].bound > found[1].bound > found[2].bound


# ---------------------------------------------------------------- coverage


def trial_pairs(rng, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A true loss of exactly 5 points: 4 % gained, 9 % lost."""
    kind = rng.choice(4, n, p=[0.04, 0.09, 0.5, 0.37])
    return outcomes(correct=np.isin(kind, (1, 2)) * 1.0), outcomes(correct=np.isin(kind, (0, 2)) * 1.0)


def trial_losses(rng, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A true loss of exactly .05 nats, normal."""
    loss = 2 + rng.normal(size=n)
    return outcomes(loss=loss), outcomes(loss=loss + 0.05 + 0.2 * rng.normal(size=n))


def trial_skewed(rng, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The same, with a long tail of examples that are hurt."""
    loss = 2 + rng.normal(size=n)
    return outcomes(loss=loss), outcomes(
        loss=loss + 0.05 + 0.1 * (rng.lognormal(0, 0.75, n) - math.exp(0.28125))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trial", "metric", "tries"),
    [(trial_pairs, "accuracy", 1000), (trial_losses, "loss", 200), (trial_skewed, "loss", 200)],
)
def test_a_margin_that_is_just_missed_is_shown_once_in_twenty(trial, metric, tries):
    """The true loss equals the margin: `shown` is an error, 5 % of the time by design (3.3 standard errors allowed)."""
    rng = np.random.default_rng(12)
    shown = sum(bound_of(*trial(rng, 200), metric=metric, margin=0.05).shown for _ in range(tries))
    assert 0.01 * tries <= shown <= (0.05 + 3.3 * math.sqrt(0.05 * 0.95 / tries)) * tries


def test_a_margin_of_groups_is_kept():
    """Groups of 4 that rise and fall together: with the groups ignored the claim would be wrong far too often."""
    rng, tries, groups = np.random.default_rng(13), 600, np.repeat(np.arange(100), 4)
    wrong = {"groups": 0, "ignored": 0}
    for _ in range(tries):
        before, after = (rows[groups] for rows in trial_pairs(rng, 100))
        before["example"] = after["example"] = np.arange(400)
        wrong["groups"] += bound_of(before, after, groups, margin=0.05).shown
        wrong["ignored"] += bound_of(before, after, margin=0.05).shown
    assert wrong["groups"] <= 0.08 * tries
    assert wrong["ignored"] > 0.15 * tries


def test_power_grows_with_n():
    rng = np.random.default_rng(14)
    shown = [sum(bound_of(*trial_pairs(rng, n), margin=0.10).shown for _ in range(100)) for n in (100, 800)]
    assert shown[0] < 70
    assert shown[1] > 95


# ---------------------------------------------------------------- words


def test_words_in_order():
    within = "not worse by more than 2.0 points"
    cases = {  # p, gained, guard fired, shown
        (0.01, True, False, True): "improves",
        (0.01, True, False, False): "improves",
        (0.01, False, False, True): within,  # significantly worse, and within the margin
        (0.50, False, False, True): within,
        (0.50, True, False, True): within,
        (0.01, False, False, False): "worse",
        (0.50, False, False, False): "no difference shown",
        (0.05, True, False, False): "no difference shown",
        (0.01, True, True, True): within,  # fired, but the original was as hollow
        (0.01, True, True, False): "no difference shown",
        (0.01, False, True, False): "worse",
    }
    for (p, gained, fired, shown), word in cases.items():
        assert verdict_word(p, gained, fired, within if shown else None) == word


@pytest.mark.parametrize(
    ("margin", "unit", "words"),
    [
        (0.02, "share", "2.0 points"),
        (0.07, "share", "7.0 points"),
        (0.0025, "share", "0.25 points"),
        (0.0, "share", "0.0 points"),
        (0.02, "nats/token", "0.020 nats"),
        (0.0005, "nats/token", "0.0005 nats"),
        (1.5, "nats/token", "1.500 nats"),
    ],
)
def test_margins_are_never_rounded_to_another_one(margin, unit, words):
    assert margin_text(margin, unit) == words
    assert NonInferiority(margin, unit, 0.0, 0.95, "").word == f"not worse by more than {words}"


@pytest.mark.parametrize(
    ("bound", "level", "said"),
    [
        (
            -0.013,
            0.95,
            "with 95 % confidence (one-sided) the loss is at most 1.3 points, within the margin of 2.0 fixed before",
        ),
        (0.004, 0.95, "the gain is at least 0.4 points, within the margin of 2.0"),
        (-0.031, 0.95, "the loss may be up to 3.1 points, not within the margin of 2.0"),
        (-0.01996, 0.95, "loss is at most 1.996 points, within"),
        (-0.019999, 0.95, "loss is at most 1.9999 points, within"),
        (-0.02, 0.95, "loss may be up to 2.0 points, not within"),
        (
            -0.013,
            0.975,
            "97.5 % confidence (one-sided; 95 % over 2 openings of this split) the loss is at most 1.3 points",
        ),
        (-0.013, 1 - 0.05 / 6, "99.1667 % confidence (one-sided; 95 % over 6 openings of this split)"),
        (-math.inf, 0.95, "too few groups for a one-sided 95 % bound"),
    ],
)
def test_bounds_in_words(bound, level, said):
    record = NonInferiority(0.02, "share", bound, level, "Tango score interval").to_json()
    json.dumps(record, allow_nan=False)
    assert said in in_words(record)
    assert record["shown"] == (bound > -0.02)


# ---------------------------------------------------------------- the guard


def test_a_collapse_is_hollow_and_a_change_of_constants_is_not():
    rng = np.random.default_rng(3)
    gold = np.array(["yes"] * 60 + ["no"] * 40)
    able = np.where(rng.random(100) < 0.6, gold, rng.permutation(gold))
    yes, no = np.full(100, "yes"), np.full(100, "no")
    collapse = constant_predictor(gold, able, yes)
    assert (collapse.fired, collapse.constant_before, collapse.hollow) == (True, False, True)
    change = constant_predictor(gold, no, yes)
    assert (change.fired, change.constant_before, change.hollow) == (True, True, False)
    nearly = yes.copy()
    nearly[-20:] = "no"  # says yes 80 % of the time, and tells half of the others: that is lost
    lost = constant_predictor(gold, nearly, yes)
    assert (lost.fired, lost.constant_before, lost.hollow) == (True, True, True)
    kept = constant_predictor(gold, able, able)
    assert (kept.fired, kept.constant_before, kept.hollow) == (False, False, False)


# ---------------------------------------------------------------- the verdict


CHOICES = ("yes", "no")


class Case:
    """decide() on written-down answers: 300 yes/no questions, 60 % yes. The judge is asked for its task alone."""

    def __init__(self, folder) -> None:
        self.gold = np.array([0] * 180 + [1] * 120)
        examples = tuple(
            Example(f"q{i}", f"Question {i}?", CHOICES[g], CHOICES) for i, g in enumerate(self.gold)
        )
        splits = {"probe": (), "select": (), "test": tuple(range(300))}
        self.judge = SimpleNamespace(task=Task("words", "choice", examples, splits))
        self.ledger = Ledger.open(folder / "ledger.sqlite")
        self.edits = 0
        self.file: GgufRecord | None = None

    def witness(self, said) -> Measurement:
        rows = outcomes(correct=(np.asarray(said) == self.gold) * 1.0, loss=np.ones(300))
        return Measurement(rows, (), (), tuple(CHOICES[s] for s in said))

    def __call__(self, before, after, *, margin=0.02, cut=True) -> dict:
        self.edits += cut
        plan = Plan("model", (Truncate(Site.parse("b0.q"), self.edits),) if cut else ())
        witnesses = self.witness(before), self.witness(after)
        metric = METRICS["accuracy"]
        found = decide(
            self.judge, *witnesses, plan, (), metric, ledger=self.ledger, scope="s", seed=0, margin=margin
        )
        handed_over = HandedOverRecord(holds="cut" if cut else "original", unproven=None, edits=None)
        verdict = VerdictRecord.model_construct(
            **dict(found),
            cut=[1] * cut,
            search=SearchRecord(method="heads"),
            handed_over=handed_over,
            model=ModelRecord.model_construct(gguf=self.file),
        )
        about = {"cut": [1] * cut, "search": {"method": "heads"}, "handed_over": handed_over.to_json()}
        return found.to_json() | about | {"sentence": sentence(verdict)}


def test_a_gain_on_rounded_weights_may_be_noise_that_is_gone(case):
    before = np.where(np.arange(300) % 4 == 0, 1 - case.gold, case.gold)
    assert case(before, case.gold)["verdict"] == "improves"
    for kind, said in (("Q4_1", True), ("F16", False)):
        case.file = GgufRecord(file="m.gguf", type=kind, sha256="0" * 64, transformers="5")
        assert ("quantization noise" in case(before, case.gold)["sentence"]) == said
    case.file = GgufRecord(file="m.gguf", type="Q4_1", sha256="0" * 64, transformers="5")
    assert "quantization" not in case(case.gold, before)["sentence"], "no gain"


@pytest.fixture
def case(tmp_path):
    found = Case(tmp_path)
    yield found
    found.ledger.close()


def flipped(answers: np.ndarray, which) -> np.ndarray:
    found = answers.copy()
    found[which] = 1 - found[which]
    return found


def test_verdict_not_worse(case):
    before = flipped(case.gold, np.r_[0:40, 200:240])
    found = case(before, flipped(before, [100]))  # one right answer of 300 lost
    assert found["verdict"] == "not worse by more than 2.0 points"
    bound = found["non_inferiority"]
    assert bound["bound"] == pytest.approx(slow_tango(0, 1, 300, 0.95), abs=2e-6)
    assert (bound["shown"], bound["unit"], bound["margin"], bound["level"]) == (True, "share", 0.02, 0.95)
    assert (
        f"with 95 % confidence (one-sided) the loss is at most {-100 * bound['bound']:.1f} points, within"
        in found["sentence"]
    )
    assert "all the same" not in found["sentence"]


def test_verdict_significantly_worse_within_the_margin_gives_both(case):
    before = case.gold
    found = case(before, flipped(before, np.r_[0:6, 200:206]), margin=0.10)  # 12 lost, none gained
    assert found["p_value"] < 0.001
    assert not found["gained"]
    assert found["verdict"] == "not worse by more than 10.0 points"
    low, high = (100 * end for end in found["difference"]["ci"])
    assert high < 0
    assert f"[{low:+.1f}, {high:+.1f}]" in found["sentence"]


def test_verdict_beyond_the_margin(case):
    lost = flipped(case.gold, np.r_[0:6, 200:206])
    worse = case(case.gold, lost)
    assert worse["verdict"] == "worse"
    assert "not within the margin of 2.0" in worse["sentence"]
    assert (
        "THE CHECKPOINT HOLDS THE CUT MODEL, worse than the margin of 2.0 points allows." in worse["sentence"]
    )


def test_verdict_open(case):
    mixed = flipped(case.gold, np.r_[0:20, 200:220])
    other = flipped(case.gold, np.r_[4:20, 200:216, 60:69])  # 8 gained, 9 lost
    found = case(mixed, other)
    assert found["verdict"] == "no difference shown"
    assert not found["non_inferiority"]["shown"]


def test_verdict_improves_although_not_worse_is_shown_too(case):
    before = flipped(case.gold, np.r_[0:30, 200:230])
    found = case(before, case.gold)
    assert (found["verdict"], found["non_inferiority"]["shown"]) == ("improves", True)


def test_verdict_without_margin_is_as_before(case):
    before = flipped(case.gold, np.r_[0:40])
    found = case(before, flipped(before, [100]), margin=None)
    assert (found["verdict"], found["non_inferiority"]) == ("no difference shown", None)
    assert "margin" not in found["sentence"]


def test_verdict_where_nothing_was_cut_asks_nothing(case):
    found = case(case.gold, case.gold, cut=False)
    assert (found["verdict"], found["non_inferiority"]) == ("no difference shown", None)


def test_verdict_counts_openings(case):
    """The same outcome twice: shown at 95 %, no longer at the level of the second opening."""
    before = flipped(case.gold, np.r_[0:40, 200:240])
    after = flipped(before, [100, 101])
    first, second = case(before, after, margin=0.0225), case(before, after, margin=0.0225)
    assert first["verdict"] == "not worse by more than 2.25 points"
    assert (second["verdict"], second["openings"]) == ("no difference shown", 2)
    assert second["non_inferiority"]["level"] == 0.975
    assert "with 97.5 % confidence (one-sided; 95 % over 2 openings of this split)" in second["sentence"]


def test_verdict_of_a_collapse_is_not_called_harmless(case):
    """Accuracy stays, the answers do not: 60 % by telling some apart, then 60 % by saying yes all the time."""
    able = flipped(case.gold, np.r_[0:60, 200:260])
    assert (able == case.gold).mean() == 0.6
    found = case(able, np.zeros(300, dtype=int), margin=0.25)
    assert found["non_inferiority"]["shown"]
    assert found["guards"][0]["fired"]
    assert found["verdict"] == "no difference shown"


def test_verdict_of_a_constant_that_was_one_before(case):
    """What was hollow before and is as hollow now lost nothing: the claim stands, the guard beside it."""
    found = case(np.ones(300, dtype=int), np.zeros(300, dtype=int))
    assert found["guards"][0]["fired"]
    assert found["guards"][0]["constant_before"]
    assert found["verdict"] == "not worse by more than 2.0 points"  # and not "improves", from 40 to 60 %


def test_report_shows_the_word_green_with_its_sign_and_the_bound(case):
    found = case(case.gold, flipped(case.gold, [100]))
    page = hero(VerdictRecord.model_validate(data_report.facts()[0] | found | {"cut": []}))
    assert '<header class="better">' in page
    assert "✓</span>not worse by more than 2.0 points</h1>" in page
    assert in_words(found["non_inferiority"]) in page


def test_model_card_says_the_bound(case):
    before = flipped(case.gold, np.r_[0:40, 200:240])
    verdict = (
        data_report.facts()[0]
        | case(before, flipped(before, [100]))
        | {
            "search": {"method": "heads"},
            "cut": [],
            "cut_summary": "nothing",
            "loads": {"form": "stock", "why": "", "where": []},
            "baseline": {"metric": "accuracy", "split": "select", "n": 300, "value": 0.9, "ci": [0.8, 0.95]}
            | dict.fromkeys(("chance", "majority", "given", "accuracy_norm", "warning")),
        }
    )
    card = model_card(VerdictRecord.model_validate(verdict), Plan("f"))
    assert "**not worse by more than 2.0 points**" in card
    assert f"- Tango score interval: {in_words(verdict['non_inferiority'])}" in card
