"""Every verb once on SmolLM2-135M-Instruct, dequantized from Q4_1: that each ends well, and that its numbers are sane.

`make llm-smoke` runs these alone, after `make llm`. What is read and searched is small: few blocks, few examples.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fixtures.folders import secateur
from transformers import AutoModelForCausalLM, AutoTokenizer

from secateur.core.records.verdict import VerdictRecord

pytestmark = pytest.mark.llm
FEW = ("--limit", "60", "--allow-small")
ONE_PROCESS = pytest.mark.xdist_group("two blocks less")  # these share what took long to make
ROOT = Path(__file__).parents[2]
MODEL, CAPITALS = ROOT / "models" / "smollm2-135m", ROOT / "examples" / "capitals.jsonl"
GGUF = ROOT / "models" / "smollm2-135m-gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module", autouse=True)
def fetched() -> None:
    if not MODEL.is_dir() or not GGUF.is_file():
        pytest.skip(f"there is no {MODEL}, or no {GGUF}: `make llm` fetches both", allow_module_level=True)


@pytest.fixture(scope="session")
def side(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few questions to watch, in place of passages of text, which take a minute each time."""
    rows = CAPITALS.read_text(encoding="utf-8").splitlines(keepends=True)
    file = tmp_path_factory.mktemp("side") / "side.jsonl"
    file.write_text("".join(rows[:12]), encoding="utf-8")
    return file


def run(*words: object) -> str:
    """Run the command, which must end well, and return what it printed."""
    done = secateur(*words)
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.stdout


def verdict_of(out: Path) -> VerdictRecord:
    return VerdictRecord.model_validate_json((out / "verdict.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")  # tests of another module may come between
def shortened(side: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks dropped by cosine, by a recipe."""
    folder = tmp_path_factory.mktemp("depth")
    recipe = {"model": str(MODEL), "task": str(CAPITALS), "out": "out", "method": "depth", "by": "cosine"}
    recipe |= {"form": "drop", "blocks": 2, "side": [str(side)], "limit": 60, "allow_small": True}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    run("run", folder / "recipe.yaml", "--quiet")
    return folder / "out"


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


@ONE_PROCESS
def test_two_blocks_less_are_smaller_and_load_as_they_are(shortened):
    found = verdict_of(shortened)
    assert found.parameters.after < found.parameters.before
    model = AutoModelForCausalLM.from_pretrained(shortened)
    tokenizer = AutoTokenizer.from_pretrained(shortened)
    assert model.config.num_hidden_layers == 28
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()


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
    how = ("--what", "linearity", "--task", CAPITALS, "--layers", "27:30", *FEW)
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
    how = ("--layers", "29:30", "--what", "heads,ffns", "--checks", "1", *FEW)
    found = json.loads(run("map", MODEL, "--task", CAPITALS, *how, "-o", tmp_path, "--json", "--quiet"))
    assert {kind["kind"] for kind in found["kinds"]} == {"heads", "ffns"}
    read = {name.split(".")[0] for kind in found["kinds"] for name in kind["readings"]["in_block"]}
    assert read == {"b29"}
    assert all(kind["check"] for kind in found["kinds"])
    assert (tmp_path / "map.html").stat().st_size < 2e6


@ONE_PROCESS
def test_what_was_cut_is_shown_listed_measured_and_talked_to(shortened):
    assert json.loads(run("show", shortened, "--json"))
    assert "depth" in run("runs", shortened.parent)
    assert json.loads(run("transfer", shortened, "--task", CAPITALS, *FEW, "--json", "--quiet"))
    words = ("--prompt", "The capital of France is", "--max-new-tokens", "4", "--json", "--quiet")
    assert json.loads(run("chat", shortened, "--against", MODEL, *words))
    assert "config.json" in run("push", shortened, "me/cut", "--dry-run")


@ONE_PROCESS
def test_what_was_cut_can_be_healed_and_the_whole_fine_tuned(shortened, side, tmp_path):
    few = ("--task", CAPITALS, *FEW, "--max-steps", "2", "--lora", "2", "--quiet")
    run("heal", shortened, *few, "--side", side, "-o", tmp_path / "healed")
    run("finetune", MODEL, *few, "-o", tmp_path / "tuned")
    for out, blocks in (("healed", 28), ("tuned", 30)):
        assert AutoModelForCausalLM.from_pretrained(tmp_path / out).config.num_hidden_layers == blocks


@ONE_PROCESS
def test_what_was_cut_can_be_read_applied_and_exported(shortened, tmp_path):
    run("report", shortened)
    run("apply", MODEL, "--plan", shortened, "-o", tmp_path / "again", "--quiet")
    run("bench", shortened, "--against", MODEL, "--prompt", "32", "--new", "4", "--repeats", "2", "--quiet")
    run("export", shortened, "--gguf", "--type", "f16", "-o", tmp_path / "cut.gguf", "--quiet")
    from secateur import load

    assert load(str(tmp_path / "cut.gguf")).anatomy.num_blocks == 28


def test_a_gguf_file_is_a_model():
    found = json.loads(run("eval", GGUF, "--task", CAPITALS, *FEW, "--json", "--quiet"))
    assert next(score for score in found["scores"] if score["metric"] == "accuracy")["value"] > 0.7
