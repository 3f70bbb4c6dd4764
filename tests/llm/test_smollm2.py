"""Every verb once on SmolLM2-135M-Instruct, dequantized from Q4_1: that each ends well, and that its numbers are sane.

`make llm-smoke` runs these alone, after `make llm`. What is read and searched is small: few blocks, few examples. What
is done with a cut model is in `test_smollm2_cut.py`, which another process runs beside.
"""

from __future__ import annotations

import json

import pytest
from fixtures.smollm2 import CAPITALS, FEW, GGUF, MODEL, run, verdict_of

pytestmark = pytest.mark.llm


def test_it_knows_the_capital_of_france():
    found = json.loads(run("eval", MODEL, "--task", CAPITALS, "--json", "--quiet"))
    accuracy = next(score for score in found["scores"] if score["metric"] == "accuracy")
    assert 0.7 < accuracy["value"] < 1.0


def test_a_dry_run_says_how_long_it_takes():
    found = json.loads(run("prune", MODEL, "--task", CAPITALS, "--dry-run", "--json", "-o", "nowhere"))
    assert 10 < found["total"]["counts"]["expected"]["seconds"] < 3600
    assert found["baseline"]["value"] > 0.6


def test_laser_ends_with_a_verdict(side, tmp_path):
    out = tmp_path / "out"
    how = ("--layers", "28:30", "--matrices", "down", "--side", side, "--limit", "130")
    run("prune", MODEL, "--task", CAPITALS, *how, "--quiet", "-o", out)
    found = verdict_of(out)
    assert found.verdict in ("improves", "no difference shown", "worse")
    assert found.model.num_blocks == 30
    assert (out / "report.html").stat().st_size < 2e6


def test_kv_groups_go_by_what_the_model_does_without_them(side, tmp_path):
    out = tmp_path / "out"
    how = ("--method", "heads", "--layers", "27:30", "--target", "20%", "--step", "0.2", *FEW)
    run("prune", MODEL, "--task", CAPITALS, "--side", side, *how, "--quiet", "-o", out)
    assert verdict_of(out).cut
    assert all(cut.site.split(".")[0] in ("b27", "b28", "b29") for cut in verdict_of(out).cut)


def test_directions_of_one_block(side, tmp_path):
    out = tmp_path / "out"
    how = ("--method", "directions", "--matrices", "v", "--layers", "28:29", *FEW)
    run("prune", MODEL, "--task", CAPITALS, "--side", side, *how, "--quiet", "-o", out)
    assert verdict_of(out).verdict


def test_blocks_are_nearly_linear():
    how = ("--what", "linearity", "--task", CAPITALS, "--layers", "27:30", "--limit", "60")
    found = json.loads(run("probe", MODEL, *how, "--json", "--quiet"))
    rows = found["models"][0]["rows"]
    assert [row["site"] for row in rows] == ["b27", "b28", "b29"]
    assert all(0.5 < row["cosine"] <= 1 for row in rows)


def test_a_file_and_a_search_are_told_beforehand():
    checked = json.loads(run("tasks", "--check", CAPITALS, "--model", MODEL, "--json"))
    assert checked["examples"] == len(CAPITALS.read_text(encoding="utf-8").splitlines())
    forecast = json.loads(run("plan-cost", MODEL, "--task", CAPITALS, "--layers", "28:30", "--json"))
    counts = forecast["total"]["counts"]
    assert 0 < counts["least"]["seconds"] <= counts["expected"]["seconds"] <= counts["most"]["seconds"]


def test_all_kinds_of_edits_compete(side, tmp_path):
    how = ("--params", "0.985", "--layers", "29:30", *FEW)
    run("prune", MODEL, "--task", CAPITALS, "--side", side, *how, "--quiet", "-o", tmp_path / "out")
    found = verdict_of(tmp_path / "out")
    assert found.parameters.after <= 0.985 * found.parameters.before


def test_a_map_of_a_block_is_checked_by_removal(tmp_path):
    how = ("--layers", "29:30", "--what", "heads,ffns", "--checks", "1", "--limit", "60")
    found = json.loads(run("map", MODEL, "--task", CAPITALS, *how, "-o", tmp_path, "--json", "--quiet"))
    assert {kind["kind"] for kind in found["kinds"]} == {"heads", "ffns"}
    read = {name.split(".")[0] for kind in found["kinds"] for name in kind["readings"]["in_block"]}
    assert read == {"b29"}
    assert all(kind["check"] for kind in found["kinds"])
    assert (tmp_path / "map.html").stat().st_size < 2e6


def test_a_gguf_file_is_a_model():
    found = json.loads(run("eval", GGUF, "--task", CAPITALS, *FEW, "--json", "--quiet"))
    assert next(score for score in found["scores"] if score["metric"] == "accuracy")["value"] > 0.7
