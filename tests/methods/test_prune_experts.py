"""`prune --method experts` and `probe --what experts` from end to end, on a small mixture."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from fixtures.folders import questions, refused, save_model, secateur, write_rows
from fixtures.zoo import tiny, variant
from transformers import AutoModelForCausalLM

from secateur.core.site import Site
from secateur.methods.registry import read_options
from secateur.probes.experts import router_mass
from secateur.session import open_session

COMMON = ("--limit", "120", "--quiet")


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """A mixture of 4 experts in each of 2 blocks, 2 for a token; one of groups; a dense model; a task."""
    place = tmp_path_factory.mktemp("experts")
    models = {"m": tiny("mixtral"), "grouped": variant("glm4-moe", n_group=2), "dense": tiny("llama")}
    for name, model in models.items():
        save_model(place / name, model, words)
    write_rows(place / "q.jsonl", questions())
    return place


def run(place, verb, model, *more):
    return secateur(verb, place / model, "--task", place / "q.jsonl", *COMMON, *more)


def test_equally_many_go_those_first_that_are_missed_least_and_transformers_loads_the_rest(place, tmp_path):
    out = tmp_path / "out"
    how = (
        "--allow-small",
        "--method",
        "experts",
        "--target",
        "25%",
        "--step",
        "25%",
        "--report",
        "full",
        "-o",
        out,
    )
    done = run(place, "prune", "m", *how)
    assert done.exit_code == 0, done.stderr + str(done.exception)
    plan, verdict, analysis = (
        json.loads((out / f"{name}.json").read_text()) for name in ("plan", "verdict", "analysis")
    )
    gone = [Site.parse(edit["site"]) for edit in plan["edits"]]
    assert [(site.block, site.unit) for site in gone] == [(0, "e"), (1, "e")]
    assert verdict["cut_summary"] == "2 of 8 experts"
    (reading,) = analysis["components"]["experts"]["readings"]
    for site in gone:
        of_block = {a: v for a, v in reading["expected_rise"].items() if Site.parse(a).block == site.block}
        assert min(of_block, key=of_block.__getitem__) == str(site)
    points = analysis["pruning"]["series"][0]["points"]
    assert analysis["pruning"]["unit"] == "expert"
    assert [point["experts_removed"] for point in points][:2] == [0, 0.25]
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.num_local_experts == 3
    kept = sum(parameter.numel() for parameter in model.parameters())
    whole = sum(parameter.numel() for parameter in tiny("mixtral").parameters())
    assert kept == verdict["parameters"]["after"]
    assert points[1]["parameters"] == pytest.approx(kept / whole)
    page = (out / "report.html").read_text()
    for words in ("How many experts can go", "Which experts are used", "−1 expert<"):
        assert words in page


def test_router_mass_is_what_the_routers_give(place):
    """Against one example after another, read off the routers without padding."""
    session = open_session(
        read_options(str(place / "m"), str(place / "q.jsonl"), method="experts", limit=120, allow_small=True),
        None,
    )
    examples, loaded = session.task.split("probe"), session.loaded
    found = router_mass(loaded, session.encoded, examples, packing=session.judge().packing)
    given: Counter[str] = Counter()

    def hook(block):
        def note(_module, _args, output):
            for weights, chosen in zip(output[1].tolist(), output[2].tolist(), strict=True):
                for weight, expert in zip(weights, chosen, strict=True):
                    given[f"b{block}.mlp.e{expert}"] += weight

        return note

    for block, layer in enumerate(loaded.model.model.layers):
        layer.mlp.gate.register_forward_hook(hook(block))
    for example in examples:
        ((prompt, answer),) = session.encoded[example].gold_alone.pairs
        with torch.no_grad():
            loaded.model(torch.tensor([[*prompt, *answer[:-1]]]))
    for block in range(2):
        mine = {site: weight for site, weight in given.items() if site.startswith(f"b{block}.")}
        total = sum(mine.values())
        for site, weight in mine.items():
            assert found.values[site] == pytest.approx(weight / total, rel=1e-4)
    assert set(found.values) == {f"b{block}.mlp.e{expert}" for block in range(2) for expert in range(4)}


def test_probe_shows_use_and_expected_rise_and_a_forecast_counts(place):
    done = run(place, "probe", "m", "--what", "experts", "--json")
    assert done.exit_code == 0, done.stderr + str(done.exception)
    found = json.loads(done.stdout)
    rows = found["rows"]
    assert [row["site"] for row in rows][:5] == [*(f"b0.mlp.e{n}" for n in range(4)), "b1.mlp.e0"]
    assert all({"importance", "expected_rise", "rank"} <= set(row) for row in rows)
    assert found["check"]["n"] == 8
    assert set(found["check"]["agreement"]) == {"importance", "expected_rise"}
    counted = run(place, "plan-cost", "m", "--method", "experts", "--allow-small")
    assert counted.exit_code == 0, counted.stderr + str(counted.exception)


def test_experts_compete_for_a_budget_with_everything_else(place, tmp_path):
    """Seven tenths of the parameters are experts', of which half can go: as many stay as routers need."""
    out = tmp_path / "out"
    how = ("--params", "60%", "--kinds", "heads,experts", "--allow-small", "-o", out)
    done = run(place, "prune", "m", *how)
    assert done.exit_code == 0, done.stderr + str(done.exception)
    gone = Counter(
        (site.block, site.unit)
        for edit in json.loads((out / "plan.json").read_text())["edits"]
        if (site := Site.parse(edit["site"]))
    )
    assert 1 <= gone[0, "e"] + gone[1, "e"] <= 4
    assert max(gone[0, "e"], gone[1, "e"]) <= 2
    parameters = json.loads((out / "verdict.json").read_text())["parameters"]
    assert parameters["after"] <= 0.6 * parameters["before"]
    refused(
        run(
            place,
            "prune",
            "m",
            "--params",
            "30%",
            "--kinds",
            "heads,experts",
            "--allow-small",
            "-o",
            tmp_path / "far",
        ),
        "with all of that gone",
    )


def test_where_no_expert_can_go_is_said(place, tmp_path):
    for model in ("dense", "grouped"):
        done = run(place, "prune", model, "--method", "experts", "--allow-small", "-o", tmp_path / "out")
        refused(done, "no expert of ", "can go", "Take --method heads.")
    refused(run(place, "probe", "dense", "--what", "experts"), "LlamaForCausalLM has no experts")
