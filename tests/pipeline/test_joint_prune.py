"""Several tasks pruned for at once: what is found, what is said of each, what harm does; and one plan for each."""

from __future__ import annotations

import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures.folders import contents, questions, save_model, secateur, write_rows
from fixtures.zoo import tiny

import secateur as api
from secateur.core.comparison import verdict_word
from secateur.core.ledger import Ledger
from secateur.core.plan import Plan, Truncate
from secateur.core.records.verdict import HandedOverRecord, ModelRecord, SearchRecord, VerdictRecord
from secateur.core.score import METRICS, OUTCOME
from secateur.core.site import Site
from secateur.core.stats import mcnemar
from secateur.errors import OutputError, TaskError
from secateur.evaluation.measurement import Measurement, SplitResult
from secateur.evaluation.openings import record_opening, untested_opening
from secateur.evaluation.verdict import decide
from secateur.inputs import folder_name
from secateur.records import sentence
from secateur.tasks.example import Example, Task
from secateur.tasks.joint import alone, joint, whole_test

SMALL = {"matrices": ("down", "v"), "layers": (1, 2), "keep_unproven": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """A tiny model; two tasks; the first once more with every right answer wrong and every wrong one right."""
    place = tmp_path_factory.mktemp("prune")
    save_model(place / "m", tiny("llama"), words)
    rows = questions()
    write_rows(place / "a.jsonl", rows)
    write_rows(place / "b.jsonl", questions(280, seed=1))
    opposite = [row | {"answer": next(c for c in row["choices"] if c != row["answer"])} for row in rows]
    write_rows(place / "opposite.jsonl", opposite)
    write_rows(place / "side.jsonl", questions(20, seed=5))
    return place


def told(folder, name):
    """A record without what tells the time."""
    record = json.loads((folder / name).read_text())
    record.pop("seconds", None)
    record.get("provenance", {}).pop("created", None)
    return record


def specs(place, *names):
    return [str(place / f"{name}.jsonl") for name in names]


def prune(place, names, out, **more):
    options = SMALL | {"side": (str(place / "side.jsonl"),)} | more
    return api.prune(str(place / "m"), specs(place, *names), out, **options)


@pytest.fixture(scope="module")
def both(place, tmp_path_factory):
    return prune(place, ("a", "b"), tmp_path_factory.mktemp("both") / "out")


# ------------------------------------------------------------------------------------------------------ what is found


def test_what_helps_one_as_much_as_it_harms_the_other_is_not_chosen(place, tmp_path):
    """Of two choices what is right for the one task is wrong for the other, so whatever a cut gains in accuracy on the
    one it loses on the other; the first alone is cut."""
    assert prune(place, ("a",), tmp_path / "alone", matrices=("down",)).plan.edits
    together = prune(place, ("a", "opposite"), tmp_path / "together", matrices=("down",))
    assert together.plan.edits == ()
    assert together.verdict["verdict"] == "no difference shown"
    assert together.verdict["before"]["value"] == pytest.approx(0.5, abs=1e-12)


@pytest.mark.slow
def test_a_matrix_of_noise_that_harms_both_is_found(tmp_path):
    """`b4.down` of the model that knows facts and copies does nothing much; noise in its place spoils both tasks."""
    loaded = api.load("builtin:components")
    weight = loaded.parameter(loaded.anatomy.matrix(Site.parse("b4.down")).weight)
    with torch.no_grad():
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        weight.copy_(noise * 300 / noise.norm())
    save_model(tmp_path / "noisy", loaded.model, loaded.tokenizer)
    tasks = ["builtin:facts", "builtin:recall"]
    options = {"matrices": ("down",), "layers": (3, 6), "limit": 260}
    result = api.prune(str(tmp_path / "noisy"), tasks, tmp_path / "out", **options)
    verdict = result.verdict
    assert verdict["verdict"] == "improves"
    assert "b4.down" in {str(edit.matrix) for edit in result.plan.truncated}
    assert [row["name"] for row in verdict["tasks"]] == ["facts", "recall"]
    for row in verdict["tasks"]:
        assert row["gained"]
        assert row["p_value"] < 1e-4


# -------------------------------------------------------------------------------------------------------- what is said


def test_the_verdict_tells_every_task(place, both):
    """Member rows against a model that is measured by itself, on the whole test split of its own task."""
    verdict = told(both.out, "verdict.json")
    assert verdict["task"]["name"] == "a + b"
    assert verdict["n"] == 2 * 130
    assert verdict["command"].startswith(f"secateur prune {place / 'm'} --task {place / 'a.jsonl'} --task ")
    for name, row in zip("ab", verdict["tasks"], strict=True):
        own = {"split": "test", "ledger": both.out.parent / "eval.sqlite"}
        spec = specs(place, name)[0]
        for which, model in (("before", place / "m"), ("after", both.out)):
            want = api.evaluate(str(model), spec, **own)["scores"][0]
            assert (row[which]["value"], row["n"]) == (pytest.approx(want["value"], abs=1e-12), want["n"])
        assert (
            f"{name} {100 * row['before']['value']:.1f} → {100 * row['after']['value']:.1f} %"
            in verdict["sentence"]
        )
    assert verdict["tasks"][1]["left_out"] == {"probe": 2, "select": 8, "test": 10}
    card, page = ((both.out / name).read_text() for name in ("README.md", "report.html"))
    assert "## Task by task" in card
    assert 'id="tasks"' in page
    assert "as many of a as of b" in page


class Two:
    """decide() on written-down answers to tasks of 200 and 300 yes/no questions; the judge is asked for its task."""

    def __init__(self, folder) -> None:
        choices = ("yes", "no")
        self.gold = {}
        tasks = []
        for name, count in (("a", 200), ("b", 300)):
            gold = np.arange(count) % 2
            rows = tuple(Example(f"{i}", f"{name} {i}?", choices[g], choices) for i, g in enumerate(gold))
            tasks.append(Task(name, "choice", rows, {"probe": (), "select": (), "test": tuple(range(count))}))
        self.members = tasks
        self.task = joint(tasks, 0)
        self.judge = SimpleNamespace(task=self.task)
        self.ledger = Ledger.open(folder / "ledger.sqlite")
        self.edits = 0

    def witness(self, right: dict[str, np.ndarray]) -> Measurement:
        """`right`: per task whether each of its test questions is answered right."""
        task, rows = self.task, np.zeros(len(self.task.examples), OUTCOME)
        rows["example"], rows["tokens"], rows["loss"] = np.arange(len(rows)), 1, 1.0
        for member in task.members:
            rows["correct"][list(whole_test(task, member))] = right[member.name]
        golds = [e.gold for e in task.examples]
        said = [
            e.choices[g if c else 1 - g]
            for e, g, c in zip(task.examples, golds, rows["correct"], strict=True)
        ]
        labels = np.array(said)

        def answers(indices):
            return SplitResult(rows[list(indices)], tuple(labels[list(indices)]))

        test = answers(task.split("test"))
        members = tuple(answers(whole_test(task, member)) for member in task.members)
        return Measurement(test.outcomes, (), (), test.labels, members)

    def __call__(self, before, after, margin=None) -> dict:
        self.edits += 1
        plan = Plan("model", (Truncate(Site.parse("b0.q"), self.edits),))
        witnesses = self.witness(before), self.witness(after)
        how = {"ledger": self.ledger, "scope": "s", "seed": 0, "margin": margin}
        found = decide(self.judge, *witnesses, plan, (), METRICS["accuracy"], **how)
        verdict = VerdictRecord.model_construct(
            **dict(found),
            cut=[1],
            search=SearchRecord(method="laser"),
            handed_over=HandedOverRecord(holds="cut", unproven=None, edits=None),
            model=ModelRecord.model_construct(),
        )
        return found.to_json() | {"sentence": sentence(verdict)}


@pytest.fixture
def two(tmp_path):
    found = Two(tmp_path)
    yield found
    found.ledger.close()


def right(a: int, b: int) -> dict[str, np.ndarray]:
    """The first so many questions of each task are answered right."""
    return {"a": np.arange(200) < a, "b": np.arange(300) < b}


def fired(found):
    return [guard["name"] for guard in found["guards"] if guard["fired"]]


def test_a_gain_in_both_improves(two):
    found = two(right(100, 150), right(140, 210))
    assert (found["verdict"], fired(found)) == ("improves", [])
    for row, (was, now, n) in zip(found["tasks"], ((100, 140, 200), (150, 210, 300)), strict=True):
        alone_p = mcnemar(np.arange(n) < was, np.arange(n) < now)
        assert row["p_value_unadjusted"] == pytest.approx(alone_p, rel=1e-12)
        assert row["before"]["value"] == was / n
        assert row["after"]["value"] == now / n
    small, large = sorted(row["p_value_unadjusted"] for row in found["tasks"])
    assert sorted(row["p_value"] for row in found["tasks"]) == pytest.approx(
        [2 * small, max(2 * small, large)]
    )


def test_harm_to_one_is_worse_whatever_the_mean_gains(two):
    found = two(right(100, 150), right(180, 130))
    assert found["gained"]
    assert found["p_value"] < 1e-6
    assert (found["verdict"], fired(found)) == ("worse", ["harm to b"])
    assert "a 50.0 → 90.0 % (better), b 50.0 → 43.3 % (worse)" in found["sentence"]
    assert "The checkpoint holds the cut model all the same." in found["sentence"]


def test_harm_that_may_be_chance_is_no_harm(two):
    """4 of 200 lost: p = .125 alone."""
    found = two(right(100, 150), right(96, 250))
    assert (found["verdict"], fired(found)) == ("improves", [])
    assert found["tasks"][0]["p_value"] >= 0.05


def test_harm_within_the_margin(two):
    """9 of 300 lost are significant and within 10 points: neither worse nor said to improve."""
    found = two(right(100, 150), right(140, 141), margin=0.10)
    assert fired(found) == ["harm to b"]
    assert found["tasks"][1]["within_margin"]
    assert found["verdict"] == "not worse by more than 10.0 points"
    beyond = two(right(100, 150), right(140, 100), margin=0.10)
    assert not beyond["tasks"][1]["within_margin"]
    assert beyond["verdict"] == "worse"


def test_words():
    assert verdict_word(0.01, True, True, "not worse by", harmed=True) == "worse"
    assert verdict_word(0.50, True, True, None, harmed=True) == "worse"


def test_a_constant_answer_in_one_task_is_seen(two):
    """b collapses to "yes", which is right as often as before; a gains. The mean alone would look fine."""
    before, after = right(100, 150), right(160, 0)
    before["b"], after["b"] = np.arange(300) % 4 < 2, np.arange(300) % 2 == 0
    found = two(before, after)
    assert fired(found) == ["constant predictor on b"]
    assert found["verdict"] == "no difference shown"


def test_openings_are_counted_with_those_of_the_members(two):
    first = two(right(100, 150), right(140, 210))
    assert first["openings"] == 1
    for task, member in zip(two.members, two.task.members, strict=True):
        assert alone(two.task, member).split_hash("test") == task.split_hash("test")
        (seen,) = {one.claim for one in two.ledger.openings(task.split_hash("test"))}
        assert seen[2] == "accuracy"
    record_opening(two.ledger, two.members[0], untested_opening("another scope", Plan("model")))
    second = two(right(100, 150), right(140, 210))
    assert second["openings"] == 3
    assert second["p_value"] >= 2 * second["p_value_unadjusted"]


# ----------------------------------------------------------------------------------------------------- again, and each


def test_same_seed_same_result(place, both, tmp_path):
    again = prune(place, ("a", "b"), tmp_path / "out")
    for name in ("verdict.json", "plan.json", "analysis.json"):
        assert told(again.out, name) == told(both.out, name)


def test_interrupted_and_resumed(place, both, tmp_path, monkeypatch):
    """Interrupted while judging; nothing is judged twice, and the end is the same."""
    record, calls = Ledger.record, []

    def dying(self, *args, **how):
        record(self, *args, **how)
        calls.append(len(args[2]))
        if len(calls) == 25:
            raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "record", dying)
    with pytest.raises(KeyboardInterrupt):
        prune(place, ("a", "b"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = prune(place, ("a", "b"), tmp_path / "out")
    for name in ("verdict.json", "plan.json", "analysis.json"):
        assert told(result.out, name) == told(both.out, name)
    with Ledger.open(tmp_path / "out.run/ledger.sqlite", create=False) as ledger:
        scopes = [row[0] for row in ledger._read("SELECT name FROM scopes")]
        assert sum(calls) == sum(ledger.evaluations(scope) for scope in scopes)


@pytest.mark.slow
def test_each_is_what_separate_prunes_are(place, tmp_path):
    results = api.prune_each(
        str(place / "m"), specs(place, "a", "b"), tmp_path / "out", **SMALL, side=(str(place / "side.jsonl"),)
    )
    assert [result.out.name for result in results] == ["a", "b"]
    for name in ("a", "b"):
        single = prune(place, (name,), tmp_path / "single" / name).out
        for file in ("verdict.json", "plan.json", "analysis.json"):
            assert told(tmp_path / "out" / name, file) == told(single, file)
        files = contents(tmp_path / "out" / name)
        assert files["model.safetensors"] == contents(single)["model.safetensors"]
    again = api.prune_each(
        str(place / "m"), specs(place, "a", "b"), tmp_path / "out", **SMALL, side=(str(place / "side.jsonl"),)
    )
    assert all(result.already for result in again)


def test_each_on_the_command_line(place, tmp_path, monkeypatch):
    words = ["prune", place / "m", "--each", "-o", tmp_path / "out", "--matrices", "v", "--layers", "1"]
    words += [
        "--side",
        place / "side.jsonl",
        *(w for spec in specs(place, "a", "b") for w in ("--task", spec)),
    ]
    done = secateur(*words, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["task"]["name"] for one in found] == ["a", "b"]
    assert [one["out"] for one in found] == [str(tmp_path / "out" / name) for name in "ab"]
    monkeypatch.setenv("COLUMNS", "60")
    told_again = secateur(*words)
    assert told_again.stdout.count("already holds the result") == 2
    said = " ".join(told_again.stdout.split())
    for one in found:
        name = one["task"]["name"]
        assert f"{name}: {one['verdict']} {one['sentence']} checkpoint {one['out']}" in said


def test_what_each_refuses(place, both, tmp_path):
    with pytest.raises(OutputError, match="is a checkpoint; --each makes a folder of several"):
        api.prune_each(str(place / "m"), specs(place, "a"), both.out)
    with pytest.raises(TaskError, match="no task is given"):
        api.prune(str(place / "m"), [], tmp_path / "out")
    with pytest.raises(TaskError):  # the second task is read before the first is searched
        api.prune_each(
            str(place / "m"), [*specs(place, "a"), str(place / "no.jsonl")], tmp_path / "out", **SMALL
        )
    assert not (tmp_path / "out" / "a").exists()


def test_names_of_folders():
    told = {
        "builtin:facts": "facts",
        "data/q.jsonl": "q",
        "text:a b.txt": "a-b",
        "lm_eval:x/y.yaml": "y",
        "..": "task",
    }
    assert {spec: folder_name(spec) for spec in told} == told


KILLED = """
import os, signal
import secateur
from secateur.core.ledger import Ledger
record, calls = Ledger.record, []
def dying(self, *args, **how):
    record(self, *args, **how)
    calls.append(1)
    if "/b.run/" in str(self.path) and len(calls) > 30:
        os.kill(os.getpid(), signal.SIGKILL)
Ledger.record = dying
m, a, b, side, out = WORDS
secateur.prune_each(m, [a, b], out, matrices=("down", "v"), layers=(1, 2), side=(side,), keep_unproven=True)
"""


@pytest.mark.slow
def test_each_killed_in_the_second_goes_on_there(place, tmp_path, forks):
    words = [str(place / "m"), *specs(place, "a", "b"), str(place / "side.jsonl"), str(tmp_path / "out")]
    killed = forks.run(tmp_path, None, KILLED.replace("WORDS", repr(words)))
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "out/a").exists()
    assert not (tmp_path / "out/b").exists()
    first, second = api.prune_each(words[0], words[1:3], tmp_path / "out", **SMALL, side=(words[3],))
    assert (first.already, second.already) == (True, False)
    single = prune(place, ("b",), tmp_path / "single")
    for file in ("verdict.json", "plan.json", "analysis.json"):
        assert told(second.out, file) == told(single.out, file)
