"""Looks at a test split: each claim has its own p-value, a margin comes before the look, overlapping splits are one."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from secateur.core.comparison import compare
from secateur.core.ledger import Ledger
from secateur.core.noninferiority import bound_text
from secateur.core.plan import Plan, Truncate
from secateur.core.records.verdict import NonInferiorityRecord
from secateur.core.score import METRICS, OUTCOME
from secateur.core.site import Site
from secateur.core.stats import holm
from secateur.evaluation.measurement import Measurement
from secateur.evaluation.openings import record_opening, untested_opening
from secateur.evaluation.verdict import decide
from secateur.tasks.example import Example, Task, all_tested
from secateur.tasks.shots import with_shots
from secateur.tasks.splits import ExampleSource, make_task
from secateur.tasks.text import read_text

PLAN = Plan("m", (Truncate(Site(0, "down"), 1),))
OTHER = Plan("m", (Truncate(Site(1, "down"), 1),))


def questions(*numbers: int) -> Task:
    rows = tuple(Example(f"q{n}", f"what is {n}", f" {n}") for n in numbers)
    return Task("t", "generation", rows, all_tested(rows))


def outcomes(seed: int, n: int, loss: float = 0.0) -> np.ndarray:
    rng, rows = np.random.default_rng(seed), np.zeros(n, OUTCOME)
    rows["example"], rows["tokens"] = np.arange(n), 1
    rows["loss"] = 2 + np.random.default_rng(99).normal(0, 0.5, n) + rng.normal(loss, 0.1, n)
    rows["correct"] = rng.random(n) < 0.5
    rows["rank"] = rng.integers(0, 40, n)
    return rows


def verdict(ledger, task, before, after, *, metric="loss", plan=PLAN, margin=None, scope="s") -> dict:
    labels = ("",) * len(before)
    judge = SimpleNamespace(
        task=task,
        encoded={i: SimpleNamespace(pairs=[((0,), (1,))]) for i in range(len(task.examples))},
        loaded=SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: "x")),
    )
    sides = (Measurement(rows, (), (), labels) for rows in (before, after))
    how = {"ledger": ledger, "scope": scope, "seed": 0, "margin": margin}
    return decide(judge, *sides, plan, (), METRICS[metric], **how).to_json()


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "l.sqlite") as made:
        yield made


def test_a_second_metric_of_the_same_plan_is_an_opening_with_its_own_p(ledger):
    task, before, after = questions(*range(100)), outcomes(0, 100), outcomes(1, 100, loss=-0.3)
    after["rank"] = before["rank"]  # no top-10 answer changes
    first = verdict(ledger, task, before, after, metric="loss")
    second = verdict(ledger, task, before, after, metric="top10")
    assert first["p_value"] < 0.001
    assert (first["openings"], second["openings"]) == (1, 2)
    assert second["p_value_unadjusted"] == 1.0
    assert second["p_value"] == 1.0
    assert second["verdict"] == "no difference shown"


def test_each_p_is_corrected_for_the_others(ledger):
    task, before = questions(*range(60)), outcomes(0, 60)
    made = [
        verdict(ledger, task, before, outcomes(seed, 60, loss=0.03), plan=plan, metric=metric)
        for seed, (plan, metric) in enumerate([(PLAN, "loss"), (OTHER, "loss"), (PLAN, "accuracy")], start=1)
    ]
    raw = [one["p_value_unadjusted"] for one in made]
    assert [one["openings"] for one in made] == [1, 2, 3]
    for number, one in enumerate(made):
        assert one["p_value"] == pytest.approx(holm(raw[: number + 1])[number])
    again = verdict(ledger, task, before, outcomes(1, 60, loss=0.03))
    assert again["openings"] == 3
    assert again["p_value"] == pytest.approx(holm(raw)[0])


def test_other_metrics_have_their_interval_and_no_claim(ledger):
    task, before, after = questions(*range(100)), outcomes(0, 100), outcomes(1, 100)
    made = verdict(ledger, task, before, after, metric="loss")
    assert [row["metric"] for row in made["secondary"]] == ["accuracy", "top5", "top10"]
    for row in made["secondary"]:
        found = compare(METRICS[row["metric"]], before, after, np.arange(100), seed=0)
        assert row["difference"] == {"value": found.difference, "ci": list(found.difference_ci)}
        assert "p_value" not in row
        assert "test" not in row


def test_a_margin_named_after_the_look_claims_nothing(ledger):
    task, before, after = questions(*range(100)), outcomes(0, 100), outcomes(1, 100, loss=0.3)
    first = verdict(ledger, task, before, after, margin=0.02)
    second = verdict(ledger, task, before, after, margin=2.0)
    assert first["verdict"] == second["verdict"] == "worse"
    assert second["openings"] == 1
    asked = second["non_inferiority"]
    assert (asked["margin"], asked["decides"], asked["named_late"]) == (2.0, 0.02, True)
    assert asked["bound"] == first["non_inferiority"]["bound"] > -2.0
    assert "this margin was named after the split was opened" in bound_text(
        NonInferiorityRecord.model_validate(asked)
    )
    assert "about 0.020 nats, stands" in bound_text(NonInferiorityRecord.model_validate(asked))
    assert "fixed before test was opened" in bound_text(
        NonInferiorityRecord.model_validate(first["non_inferiority"])
    )


def test_a_margin_after_a_look_without_one_claims_nothing(ledger):
    task, before, after = questions(*range(100)), outcomes(0, 100), outcomes(1, 100, loss=0.3)
    record_opening(ledger, task, untested_opening("s", PLAN))
    made = verdict(ledger, task, before, after, margin=2.0)
    assert made["verdict"] == "worse"
    assert "which asked for no margin, stands" in bound_text(
        NonInferiorityRecord.model_validate(made["non_inferiority"])
    )
    another = verdict(ledger, task, before, after, plan=OTHER, margin=2.0)
    assert another["verdict"] == "not worse by more than 2.000 nats"


def test_the_same_verdict_again_is_the_same(ledger):
    """A run that was killed after it had opened test opens it again when it goes on."""
    task, before, after = questions(*range(100)), outcomes(0, 100), outcomes(1, 100, loss=0.3)
    made = [verdict(ledger, task, before, after, margin=0.5) for _ in range(2)]
    assert made[0] == made[1]
    assert made[0]["verdict"] == "not worse by more than 0.500 nats"


# ---------------------------------------------------------------------------------------------------- the same split?


def opened(ledger, *tasks: Task) -> list[int]:
    """How many openings each verdict counted, all of different plans."""
    counts = []
    for number, task in enumerate(tasks):
        n = len(task.examples)
        plan = Plan("m", (Truncate(Site(number, "down"), 1),))
        counts.append(verdict(ledger, task, outcomes(0, n), outcomes(1, n), plan=plan)["openings"])
    return counts


def test_a_tenth_of_the_smaller_splits_groups_makes_two_splits_one(ledger):
    assert opened(ledger, questions(*range(100)), questions(*range(95, 145))) == [1, 2]  # 5 of 50


def test_less_than_a_tenth_leaves_two(ledger):
    assert opened(ledger, questions(*range(100)), questions(*range(96, 146))) == [1, 1]  # 4 of 50


def test_splits_are_the_same_through_a_third(ledger):
    apart = [questions(*range(100)), questions(*range(200, 300))]
    between = questions(*range(90, 210))
    assert opened(ledger, *apart, between) == [1, 1, 3]
    assert opened(ledger, apart[0]) == [3]


def test_another_limit_is_the_same_split(ledger):
    rows = tuple(Example(f"q{n}", f"what is {n}", f" {n}") for n in range(1200))
    source = ExampleSource("q", "generation", rows)
    how = {"split_seed": 0, "allow_small": True, "shares": None}
    tasks = [make_task(source, None, limit=limit, **how) for limit in (1000, 1001)]
    assert tasks[0].split_hash("test") != tasks[1].split_hash("test")
    tested = [
        replace(task, examples=tuple(own := task.of(task.split("test"))), splits=all_tested(own))
        for task in tasks
    ]
    assert opened(ledger, *tested) == [1, 2]


def test_ids_and_shots_make_no_new_split(ledger):
    rows = [Example(f"q{n}", f"what is {n}", f" {n}", group=f"g{n // 2}") for n in range(60)]
    renamed = [replace(row, id=f"z{row.id}", group=f"z{row.group}") for row in rows]
    splits = {"probe": tuple(range(20)), "select": (), "test": tuple(range(20, 60))}
    plain, other = (Task("t", "generation", tuple(own), splits) for own in (rows, renamed))
    shown = with_shots(plain, 3, 0)
    assert shown.examples[30].prompt != plain.examples[30].prompt
    assert plain.group_digests("test") == shown.group_digests("test")
    assert sorted(plain.group_digests("test")) == sorted(other.group_digests("test"))


def test_chunks_of_another_length_are_of_the_same_text(tmp_path, words):
    path = tmp_path / "t.txt"
    path.write_text(" ".join(f"w{n % 90}" for n in range(5000)), encoding="utf-8")
    short, long = (
        Task("t", "text", (e := read_text(path, words, n).examples), all_tested(e)) for n in (16, 32)
    )
    a, b = set(short.group_digests("test")), set(long.group_digests("test"))
    assert len(a & b) == min(len(a), len(b))


# ------------------------------------------------------------------------------------------------- ledgers of before


def test_a_ledger_of_version_1_is_read_and_goes_on(tmp_path):
    """Its openings count; that they were of one metric or another it does not know."""
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as db:
        db.executescript(VERSION_1)
        db.execute("INSERT INTO scopes VALUES (1, 's')")
        db.execute("INSERT INTO plans VALUES (1, ?, ?)", (PLAN.identity, json.dumps(PLAN.to_json())))
        db.execute("INSERT INTO trials VALUES (1, 1, 1, 0.5)")
        db.execute("INSERT INTO outcomes VALUES (1, 7, 2.5, 1, NULL, 3, 4, 5)")
        task = questions(*range(100))
        db.execute("INSERT INTO openings VALUES (1, ?, 1, 1, 0.5, 'then')", (task.split_hash("test"),))
    db.close()
    with Ledger.open(path) as ledger:
        (row,) = ledger.known("s", PLAN, [7])
        assert (row["loss"], row["correct"], row["rank"], row["tokens"]) == (2.5, 1.0, 3, 5)
        assert np.isnan(row["choice_loss"])
        made = verdict(ledger, task, outcomes(0, 100), outcomes(1, 100, loss=0.3), margin=2.0)
    assert made["openings"] == 2
    assert made["non_inferiority"]["named_late"]


VERSION_1 = """
CREATE TABLE scopes (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE plans (id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
CREATE TABLE trials (
  id INTEGER PRIMARY KEY, scope INTEGER NOT NULL REFERENCES scopes, plan INTEGER NOT NULL REFERENCES plans,
  seconds REAL NOT NULL, UNIQUE (scope, plan));
CREATE TABLE outcomes (
  trial INTEGER NOT NULL REFERENCES trials, example INTEGER NOT NULL, loss REAL, correct REAL, correct_norm REAL,
  rank INTEGER NOT NULL, predicted INTEGER NOT NULL, tokens INTEGER NOT NULL, PRIMARY KEY (trial, example)
) WITHOUT ROWID;
CREATE TABLE memos (
  scope INTEGER NOT NULL REFERENCES scopes, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (scope, key)
) WITHOUT ROWID;
CREATE TABLE openings (
  id INTEGER PRIMARY KEY, split TEXT NOT NULL, scope INTEGER NOT NULL REFERENCES scopes,
  plan INTEGER NOT NULL REFERENCES plans, p_value REAL NOT NULL, at TEXT NOT NULL, UNIQUE (split, scope, plan));
CREATE TABLE runs (
  id TEXT PRIMARY KEY, created TEXT NOT NULL, command TEXT NOT NULL, status TEXT NOT NULL, out TEXT NOT NULL);
PRAGMA application_id = 6212222;
PRAGMA user_version = 1;
"""
