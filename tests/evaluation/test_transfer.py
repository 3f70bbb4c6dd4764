"""A plan measured on another task, and in a model of other weights: the numbers of `eval`, counted, and refitted."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from fixtures.folders import questions, refused, save_model, secateur, write_rows
from fixtures.zoo import tiny

import secateur as package
from secateur.core.fitted import Fitted
from secateur.core.plan import Drop, Linearize, Plan, RemoveDirections
from secateur.core.records.comparison import TransferRecord
from secateur.core.site import Site
from secateur.errors import ModelError, PlanError, TaskError
from secateur.hf.fingerprint import fingerprint

PLAN = ("b1.mlp=drop", "b0.down=4")


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """A model and its cut, a sibling with other weights, one of other shapes, two tasks."""
    place = tmp_path_factory.mktemp("transfer")
    save_model(place / "m", tiny("llama"), words)
    sibling = tiny("llama")
    with torch.no_grad():
        for parameter in sibling.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    save_model(place / "sibling", sibling, words)
    save_model(place / "other", tiny("gpt2-untied-wide"), words)
    write_rows(place / "a.jsonl", questions(seed=1))
    write_rows(place / "b.jsonl", questions(seed=2))
    package.apply(str(place / "m"), list(PLAN), place / "cut")
    return place


def moved(place, plan, model, task="b", ledger="l.sqlite", **more):
    found = package.transfer(plan, model, task=str(place / f"{task}.jsonl"), ledger=place / ledger, **more)
    return TransferRecord.model_validate(found)


def test_on_another_task_it_says_what_eval_says_of_each(place):
    record = moved(place, place / "cut", str(place / "m"))
    measured = [
        package.evaluate(
            str(place / "m"), str(place / "b.jsonl"), split="test", plan=plan, ledger=place / "e.sqlite"
        )
        for plan in (None, list(PLAN))
    ]
    before, after = ({s["metric"]: s["value"] for s in found["scores"]} for found in measured)
    assert (record.metric, record.before.value, record.after.value) == (
        "accuracy",
        before["accuracy"],
        after["accuracy"],
    )
    assert record.difference.value == pytest.approx(after["accuracy"] - before["accuracy"])
    assert record.difference.ci[0] <= record.difference.value <= record.difference.ci[1]
    losses = {row.metric: row for row in record.secondary}
    assert losses["loss"].after.value == pytest.approx(after["loss"])
    assert losses["loss"].before.value != losses["loss"].after.value
    assert (record.sibling, record.refitted, record.task) == (False, [], "b")
    assert record.verdict in ("improves", "worse", "no difference shown")


def test_every_plan_that_is_looked_at_is_counted(place):
    first = moved(place, place / "cut", str(place / "m"), ledger="counted.sqlite")
    again = moved(place, place / "cut", str(place / "m"), ledger="counted.sqlite")
    sibling = moved(place, place / "cut", str(place / "sibling"), ledger="counted.sqlite")
    assert [one.openings for one in (first, again, sibling)] == [1, 1, 2]


def test_a_sibling_gets_the_same_edits(place):
    record = moved(place, place / "cut", str(place / "sibling"))
    found = package.evaluate(
        str(place / "sibling"),
        str(place / "b.jsonl"),
        split="test",
        plan=list(PLAN),
        ledger=place / "e.sqlite",
    )
    assert record.after.value == found["scores"][0]["value"]
    assert (record.sibling, record.made_for) == (True, fingerprint(tiny("llama")))


def test_linear_maps_are_fitted_to_the_sibling(place):
    """A map that is wrong everywhere is replaced by one that stands for the block."""
    wrong = Fitted.of({"weight": np.zeros((32, 32), np.float32), "bias": np.full(32, 9.0, np.float32)})
    plan = Plan(fingerprint(tiny("llama")), (Linearize((1,), "linear", wrong),))
    here, there = moved(place, plan, str(place / "m")), moved(place, plan, str(place / "sibling"))
    assert there.refitted == ["b1 linear"]
    losses = [{row.metric: row for row in one.secondary}["loss"] for one in (here, there)]
    assert losses[0].difference.value > 3 * abs(losses[1].difference.value)


def test_biases_of_directions_are_refused_elsewhere(place):
    fold = Fitted.of({"mean": np.zeros(32, np.float32)})
    plan = Plan(fingerprint(tiny("llama")), (RemoveDirections(Site(0, "q"), (1,), fold=fold),))
    assert moved(place, plan, str(place / "m")).verdict
    with pytest.raises(PlanError, match="its bias was fitted to the model"):
        moved(place, plan, str(place / "sibling"))


def test_what_cannot_be_measured_is_refused(place, tmp_path):
    task = str(place / "b.jsonl")
    with pytest.raises(PlanError, match="cuts nothing"):
        package.transfer(Plan("x"), str(place / "m"), task=task, ledger=tmp_path / "l")
    with pytest.raises(TaskError, match="--ledger"):
        package.transfer(place / "cut", str(place / "m"), task=task)
    with pytest.raises(ModelError, match="Give MODEL"):
        package.transfer(Plan("x", (Drop(Site(1)),)), task=task, ledger=tmp_path / "l")
    with pytest.raises(PlanError, match=r"none\.json"):
        package.transfer(place / "none.json", str(place / "m"), task=task, ledger=tmp_path / "l")
    deep = Plan("x", (Drop(Site(7, "mlp")),))
    with pytest.raises(package.SecateurError, match=r"no b7\.mlp"):
        package.transfer(deep, str(place / "other"), task=task, ledger=tmp_path / "l")
    assert not (tmp_path / "l").exists()
    refused(secateur("transfer", place / "cut", place / "m", "--task", task), "--ledger")


def test_the_command_knows_the_model_and_prints_the_word(place):
    words = ["transfer", place / "cut", "--task", place / "b.jsonl", "--ledger", place / "cli.sqlite"]
    told = secateur(*words)
    assert told.exit_code == 0, told.stderr
    record = json.loads(secateur(*words, "--json").stdout)
    assert record["model"] == str(place / "m")
    assert told.stdout.startswith(f"{record['verdict']}  b0.down → rank 4; b1.mlp gone: on b, in ")
    assert f"accuracy on {record['n']} test examples" in told.stdout
    elsewhere = secateur(*words[:2], place / "sibling", *words[2:])
    assert "made for other weights" in elsewhere.stdout


def test_a_checkpoint_is_asked_as_its_run_asked(place, tmp_path):
    """The join of the run is taken, unless another is given."""
    rows = [{**row, "choices": [c.strip() for c in row["choices"]]} for row in questions(seed=3)]
    task = str(
        write_rows(tmp_path / "bare.jsonl", [{**row, "answer": row["answer"].strip()} for row in rows])
    )
    out = tmp_path / "cut"
    shutil.copytree(place / "cut", out)
    record = json.loads((out / "plan.json").read_text())
    record["provenance"]["command"]["join"] = " w7 "
    (out / "plan.json").write_text(json.dumps(record))

    def loss(found):
        return {score["metric"]: score["value"] for score in found["scores"]}["loss"]

    taken, told, none = (
        loss(package.evaluate(str(out), task, **more)) for more in ({}, {"join": " w7 "}, {"join": " "})
    )
    assert taken == told != none
    moved_taken, moved_told, moved_none = (
        package.transfer(out, str(place / "m"), task=task, ledger=tmp_path / "l.sqlite", **more)["secondary"]
        for more in ({}, {"join": " w7 "}, {"join": " "})
    )
    assert moved_taken == moved_told != moved_none
