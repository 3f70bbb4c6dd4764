"""`prune --method attention`: an attention that adds nothing costs nothing, numbers are those of other verbs."""

from __future__ import annotations

import json

import pytest
import torch
from fixtures.folders import questions, refused, save_model, secateur, write_rows
from fixtures.zoo import variant

import secateur as api

COMMON = ("--method", "attention", "--allow-small", "--limit", "90", "--quiet", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """A model whose attention of block 1 adds nothing to the stream, with a task."""
    place = tmp_path_factory.mktemp("attention")
    model = variant("llama", num_hidden_layers=3)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    save_model(place / "m", model, words)
    write_rows(place / "q.jsonl", questions())
    return place


def prune(place, out, *more):
    return secateur("prune", place / "m", "--task", place / "q.jsonl", "-o", out, *COMMON, *more)


def test_an_attention_that_adds_nothing_costs_nothing(place, tmp_path):
    ran = prune(place, tmp_path / "out", "--attentions", "3")
    assert ran.exit_code == 0, ran.output
    points = json.loads((tmp_path / "out/analysis.json").read_text())["attentions"]
    at = next(number for number, point in enumerate(points) if point["block"] == 1)
    assert points[at]["loss"] == pytest.approx(points[at - 1]["loss"], abs=1e-6)
    verdict = json.loads((tmp_path / "out/verdict.json").read_text())
    assert sorted(cut["site"] for cut in verdict["cut"]) == ["b0.attn", "b1.attn", "b2.attn"]
    assert verdict["candidates_tried"] == 3 + 2 + 1
    assert '<section id="attentions">' in (tmp_path / "out/report.html").read_text()


def test_a_point_is_what_eval_measures(place, tmp_path):
    assert prune(place, tmp_path / "out", "--attentions", "1").exit_code == 0
    point = json.loads((tmp_path / "out/analysis.json").read_text())["attentions"][1]
    found = api.evaluate(
        str(place / "m"), str(place / "q.jsonl"), plan=[f"b{point['block']}.attn=drop"],
        allow_small=True, limit=90, device="cpu",
    )  # fmt: skip
    assert found["scores"][0]["value"] == pytest.approx(point["value"], abs=1e-6)


def test_a_forecast_counts_what_it_asks(place, tmp_path):
    asked = (str(place / "m"), str(place / "q.jsonl"))
    how = {"method": "attention", "attentions": 2, "allow_small": True, "limit": 90, "device": "cpu"}
    told = api.plan_cost(*asked, calibrate=False, **how)
    stages = {row["stage"]: row["counts"]["expected"] for row in told["stages"]}
    tried = api.prune(*asked, tmp_path / "out", **how).verdict["candidates_tried"]
    assert stages["choose"]["plans"] == tried == 3 + 2


def test_more_than_there_are_is_refused_before_weights_are_read(place, tmp_path):
    refused(prune(place, tmp_path / "out", "--attentions", "4"), "--attentions 4", "Give 1 to 3")
