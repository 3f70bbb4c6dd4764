"""Verbs that take a cut model, once each on SmolLM2-135M-Instruct: see `test_smollm2.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fixtures.smollm2 import CAPITALS, FEW, MODEL, run, verdict_of
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.llm


@pytest.fixture(scope="module")
def shortened(side: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks dropped by cosine, by a recipe."""
    folder = tmp_path_factory.mktemp("depth")
    recipe = {"model": str(MODEL), "task": str(CAPITALS), "out": "out", "method": "depth", "by": "cosine"}
    recipe |= {"form": "drop", "blocks": 2, "side": [str(side)], "limit": 60, "allow_small": True}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    run("run", folder / "recipe.yaml", "--quiet")
    return folder / "out"


def test_two_blocks_less_are_smaller_and_load_as_they_are(shortened):
    found = verdict_of(shortened)
    assert found.parameters.after < found.parameters.before
    model = AutoModelForCausalLM.from_pretrained(shortened)
    tokenizer = AutoTokenizer.from_pretrained(shortened)
    assert model.config.num_hidden_layers == 28
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()


def test_what_was_cut_is_shown_listed_measured_and_talked_to(shortened):
    assert json.loads(run("show", shortened, "--json"))
    assert "depth" in run("runs", shortened.parent)
    assert json.loads(run("transfer", shortened, "--task", CAPITALS, *FEW, "--json", "--quiet"))
    words = ("--prompt", "The capital of France is", "--max-new-tokens", "4", "--json", "--quiet")
    assert json.loads(run("chat", shortened, "--against", MODEL, *words))
    assert "config.json" in run("push", shortened, "me/cut", "--dry-run")


def test_what_was_cut_can_be_healed_and_the_whole_fine_tuned(shortened, side, tmp_path):
    few = ("--task", CAPITALS, *FEW, "--max-steps", "2", "--lora", "2", "--quiet")
    run("heal", shortened, *few, "--side", side, "-o", tmp_path / "healed")
    run("finetune", MODEL, *few, "-o", tmp_path / "tuned")
    for out, blocks in (("healed", 28), ("tuned", 30)):
        assert AutoModelForCausalLM.from_pretrained(tmp_path / out).config.num_hidden_layers == blocks


def test_what_was_cut_can_be_read_applied_and_exported(shortened, tmp_path):
    run("report", shortened)
    run("apply", MODEL, "--plan", shortened, "-o", tmp_path / "again", "--quiet")
    run("bench", shortened, "--against", MODEL, "--prompt", "32", "--new", "4", "--repeats", "2", "--quiet")
    run("export", shortened, "--gguf", "--type", "f16", "-o", tmp_path / "cut.gguf", "--quiet")
    from secateur import load

    assert load(str(tmp_path / "cut.gguf")).anatomy.num_blocks == 28
