"""Several tasks as one: balanced in every split and every beginning of one, each example of its own kind."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest
from fixtures.folders import questions, save_model, write_rows
from fixtures.zoo import tiny

from secateur.core.plan import Plan, Truncate
from secateur.core.score import METRICS
from secateur.core.site import Site
from secateur.errors import SecateurError, TaskError
from secateur.evaluation.evaluator import Evaluator
from secateur.options import Options
from secateur.session import open_session, session_on
from secateur.tasks.example import SPLITS, Example, Task
from secateur.tasks.joint import MIXED, alone, check_apart, distinct, joint, whole_test


def made(name: str, sizes: dict[str, list[int]], kind: str = "generation", new: int = 0) -> Task:
    """A task whose splits have groups of these sizes."""
    examples, splits = [], {}
    for split, groups in sizes.items():
        first = len(examples)
        for number, size in enumerate(groups):
            group = f"{split}{number}"
            examples += [
                Example(f"{group}.{i}", f"{name} {group} {i}", " x", group=group) for i in range(size)
            ]
        splits[split] = tuple(range(first, len(examples)))
    return Task(name, kind, tuple(examples), splits, new)


def ones(probe: int, select: int, test: int) -> dict[str, list[int]]:
    return {"probe": [1] * probe, "select": [1] * select, "test": [1] * test}


BIG = made("big", {"probe": [3] * 9, "select": [2, 5] * 7, "test": [1] * 90})
SMALL = made("small", ones(10, 23, 31))


def names(task: Task, indices) -> list[str]:
    return [task.examples[i].task for i in indices]


def test_every_task_counts_alike_in_every_split_and_every_beginning():
    task = joint([BIG, SMALL, made("third", ones(20, 30, 40))], 0)
    for split, size in zip(SPLITS, (10, 23, 31), strict=True):
        assert Counter(names(task, task.split(split))) == dict.fromkeys(("big", "small", "third"), size)
        for end in range(len(task.split(split))):
            counts = Counter(names(task, task.split(split)[:end]))
            spread = [counts[name] for name in ("big", "small", "third")]
            assert max(spread) - min(spread) <= 1


def test_splits_stay_what_they_were():
    task = joint([BIG, SMALL], 0)
    for own in (BIG, SMALL):
        for split in SPLITS:
            was = {f"{own.name}/{e.id}" for e in own.of(own.split(split))}
            now = {e.id for e in task.of(task.split(split)) if e.task == own.name}
            assert now <= was
            assert now
    groups = [{e.group for e in task.of(task.split(split))} for split in SPLITS]
    assert not groups[0] & groups[1]
    assert not groups[1] & groups[2]
    assert not groups[0] & groups[2]


def test_whole_groups_but_for_one():
    """Groups of 2 and 5 that must make 23: at most one is cut short, and its rest is in no split."""
    task = joint([BIG, SMALL], 0)
    sizes = Counter(e.group for e in BIG.of(BIG.split("select")))
    taken = Counter(e.group.removeprefix("big/") for e in task.of(task.split("select")) if e.task == "big")
    assert sum(taken.values()) == 23
    assert sum(taken[group] != sizes[group] for group in taken) <= 1


def test_the_seed_of_the_splits_draws():
    def drawn(seed):
        task = joint([BIG, SMALL], seed)
        return [e.id for e in task.of(task.split("test"))]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert joint([BIG, SMALL], 0).hash == joint([BIG, SMALL], 0).hash != joint([BIG, SMALL], 1).hash


def test_the_mean_is_the_mean_over_tasks():
    task = joint([BIG, SMALL], 0)
    value = np.random.default_rng(0).random(len(task.examples))
    for split in SPLITS:
        whole = np.mean(value[list(task.split(split))])
        own = [
            np.mean([value[i] for i in task.split(split) if task.examples[i].task == n])
            for n in ("big", "small")
        ]
        assert whole == pytest.approx(np.mean(own), abs=1e-12)


def test_a_member_keeps_all_its_test_examples_and_its_name_for_openings():
    task = joint([BIG, SMALL], 0)
    for own, member in zip((BIG, SMALL), task.members, strict=True):
        assert len(whole_test(task, member)) == len(own.split("test"))
        assert alone(task, member).split_hash("test") == own.split_hash("test")
    assert task.members[0].left_out == (17, 26, 59)
    assert task.members[1].left_out == (0, 0, 0)


def test_what_is_left_out_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        joint([BIG, SMALL], 0)
    assert "10, 23, 31 examples of each task in probe, select, test" in caplog.text
    assert "left out: big 17, 26, 59 (each is tested on all it has)" in caplog.text


def test_names_are_distinct():
    assert distinct(["a", "a", "a (2)", "b", "a"]) == ["a", "a (2)", "a (2) (2)", "b", "a (3)"]
    assert len({e.id for e in joint([SMALL, SMALL], 0).examples}) == 2 * 64


def test_what_one_is_tested_on_another_must_not_choose_by():
    other = made("other", ones(10, 23, 31))
    stolen = Example("s", SMALL.examples[SMALL.split("test")[0]].prompt, " x")
    leaking = Task("other", "generation", (*other.examples, stolen), dict(other.splits) | {"select": (64,)})
    check_apart([SMALL, other])
    check_apart([SMALL, SMALL])  # the same splits: nothing crosses
    with pytest.raises(TaskError, match=r"other: example 's' of select asks the same as 'test0\.0' of small"):
        check_apart([SMALL, leaking])


def test_kinds():
    text, choice = made("t", ones(5, 5, 5), "text"), made("c", ones(5, 5, 5), "choice")
    assert (joint([text, choice], 0).kind, joint([text, choice], 0).primary_metric) == (MIXED, "loss")
    assert (joint([SMALL, choice], 0).kind, joint([SMALL, choice], 0).primary_metric) == (MIXED, "accuracy")
    assert (joint([text, text], 0).kind, joint([text, text], 0).primary_metric) == ("text", "loss")
    assert joint([SMALL, BIG], 0).kind == "generation"


# --------------------------------------------------------------------------------------------------- with a model


TEXTS = {"words.jsonl": 12, "more.jsonl": 7}  # words of a text


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """A tiny model, two tasks with choices, one of free answers, and text."""
    place = tmp_path_factory.mktemp("joint")
    save_model(place / "m", tiny("llama"), words)
    write_rows(place / "a.jsonl", questions(300))
    write_rows(place / "b.jsonl", questions(260, seed=1))
    free = [{k: row[k] for k in ("id", "prompt", "answer")} for row in questions(260, seed=2)]
    write_rows(place / "free.jsonl", free)
    draw = np.random.default_rng(0)
    for name, size in TEXTS.items():
        rows = [
            {"id": f"d{i}", "text": " ".join(f"w{t}" for t in draw.integers(3, 90, size))} for i in range(260)
        ]
        write_rows(place / name, rows)
    return place


def opened(place, *specs, **more):
    first, *rest = (f"text:{place / spec}" if spec in TEXTS else str(place / spec) for spec in specs)
    return open_session(
        Options(model=str(place / "m"), task=first, more_tasks=tuple(rest), seqlen=16, **more), None
    )


def test_mixed_kinds_are_judged_as_each_by_itself(place):
    """Every outcome of the joint task against a session on its task alone; also where one generates."""
    specs = ("a.jsonl", "free.jsonl", "words.jsonl")
    both = opened(place, *specs)
    plan = Plan(both.loaded.fingerprint, (Truncate(Site.parse("b1.down"), 2),))
    test = both.task.split("test")
    got = both.judge()([plan], test)[plan]
    seen = 0
    for spec in specs:
        single = opened(place, spec)
        ids = {e.id: i for i, e in enumerate(single.task.examples)}
        name = single.task.name
        rows = [n for n, i in enumerate(test) if both.task.examples[i].task == name]
        same = [ids[both.task.examples[test[n]].id.removeprefix(f"{name}/")] for n in rows]
        want = single.judge()([plan], same)[plan]
        for column in set(want.dtype.names) - {"example"}:
            np.testing.assert_allclose(got[column][rows], want[column], rtol=1e-5, atol=1e-6, err_msg=column)
        seen += len(rows)
    assert seen == len(test)


def test_tasks_may_generate_different_numbers_of_tokens(place):
    plain = opened(place, "free.jsonl")
    tasks = [Task(f"n{new}", "generation", plain.task.examples, plain.task.splits, new) for new in (0, 2, 6)]
    both = session_on(plain.options, plain.loaded, joint(tasks, 0))
    plan, select = both.empty, both.task.split("select")
    got = both.judge()([plan], select)[plan]["correct"]
    assert 0 < got.sum() < len(got)
    for new, task in zip((0, 2, 6), tasks, strict=True):
        own = Evaluator(plain.loaded, task, plain.encoded)
        want = own([plan], task.split("select"))[plan]["correct"].mean()
        assert (
            np.mean([c for c, i in zip(got, select, strict=True) if both.task.examples[i].task == f"n{new}"])
            == want
        )


def test_objectives_that_all_kinds_have(place):
    mixed = opened(place, "a.jsonl", "words.jsonl")
    assert mixed.objective.metric is METRICS["loss"]
    with pytest.raises(TaskError, match="accuracy does not exist for a choice and text task; it may be loss"):
        _ = opened(place, "a.jsonl", "words.jsonl", objective="accuracy").objective
    texts = opened(place, "words.jsonl", "more.jsonl")
    assert texts.objective.metric is METRICS["loss"]
    with pytest.raises(TaskError, match="text_loss does not exist for a text task; it may be loss"):
        _ = opened(place, "words.jsonl", "more.jsonl", objective="text_loss").objective
    answers = opened(place, "a.jsonl", "free.jsonl")
    assert answers.objective.metric is METRICS["accuracy"]
    with pytest.raises(TaskError, match="accuracy_norm does not exist for a choice and generation task"):
        _ = opened(place, "a.jsonl", "free.jsonl", objective="accuracy_norm").objective


def test_the_order_of_a_race_is_shuffled_and_balanced(place):
    session = opened(place, "a.jsonl", "b.jsonl")
    order = session.shuffled("select")
    assert sorted(order) == sorted(session.task.split("select"))
    assert order != list(session.task.split("select"))
    for end in range(0, len(order) + 1, 2):
        assert names(session.task, order[:end]).count("a") == end // 2
    assert order == opened(place, "a.jsonl", "b.jsonl").shuffled("select")


def test_too_long_examples_are_left_out_of_each_task_first(place, words):
    """So that the tasks still count alike."""
    rows = questions(260, seed=3)
    for row in rows[::3]:
        row["prompt"] += " w5" * 200
    write_rows(place / "long.jsonl", rows)
    with pytest.raises(TaskError, match="more than the model's context"):
        opened(place, "a.jsonl", "long.jsonl")
    session = opened(place, "a.jsonl", "long.jsonl", skip_long=True)
    for split in SPLITS:
        counts = Counter(names(session.task, session.task.split(split)))
        assert counts["a"] == counts["long"] > 0


def test_what_is_refused():
    with pytest.raises(SecateurError, match="--test-task is for one --task"):
        Options(model="m", task="a", more_tasks=("b",), test_task="c")
    with pytest.raises(SecateurError, match="a --task is given twice: a, b, a"):
        Options(model="m", task="a", more_tasks=("b", "a"))
    line = Options(model="m", task="a", more_tasks=("b c",), seed=1).command_line()
    assert line == "secateur prune m --task a --task 'b c' --seed 1"
