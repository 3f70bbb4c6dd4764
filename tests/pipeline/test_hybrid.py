"""Hybrids from folders: pruned in depth, by heads, by rank; judged, written, and read again by plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.folders import questions, refused, save_model, secateur, write_rows
from fixtures.zoo import variant
from transformers import AutoModelForCausalLM

import secateur as api
from secateur.hf.load import load_model
from secateur.result import Result
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve

TOKENS = torch.arange(2 * 30).reshape(2, 30) * 7 % 90 + 3
KINDS = {"lfm2": "conv", "qwen3.5": "linear_attention"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, words) -> Path:
    """Models of which blocks 0 and 2 have no heads, a task of questions, and a text."""
    place = tmp_path_factory.mktemp("hybrid")
    for name, kind in KINDS.items():
        layers = [kind, "full_attention"] * 2
        save_model(place / name, variant(name, num_hidden_layers=4, layer_types=layers), words)
    rows = questions()
    write_rows(place / "q.jsonl", rows)
    write_rows(place / "text.jsonl", [{"text": row["prompt"]} for row in rows[:40]])
    return place


def prune(place: Path, name: str, out: Path, **options: Any) -> Result:
    how = {"allow_small": True, "device": "cpu", "limit": 100, "side": (str(place / "text.jsonl"),)}
    return api.prune(str(place / name), str(place / "q.jsonl"), out, objective="loss", **how | options)


@pytest.mark.parametrize(
    ("name", "options", "gone"),
    [
        ("lfm2", {"method": "depth", "blocks": 2, "form": "drop"}, 2),
        ("lfm2", {"method": "heads", "target": 0.5}, 0),
        ("qwen3.5", {"method": "depth", "blocks": 2, "form": "linear"}, 2),
        ("qwen3.5", {"method": "laser", "matrices": ("q", "o"), "keep_unproven": True}, 0),
    ],
    ids=["depth", "heads", "maps", "laser"],
)
def test_what_is_pruned_loads_in_plain_transformers_with_the_logits_of_the_mask(
    name, options, gone, place, tmp_path
):
    result = prune(place, name, tmp_path / "out", **options)
    assert result.plan.edits
    loaded = load_model(str(place / name), device="cpu")
    carved = {} if options.get("form") != "linear" else {"trust_remote_code": True}
    model = AutoModelForCausalLM.from_pretrained(result.out, **carved)
    with torch.no_grad(), masked(loaded.model, resolve(result.plan, loaded.anatomy, loaded.fingerprint)):
        expected = loaded.model(TOKENS).logits
        found = model(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert model.config.num_hidden_layers == 4 - gone
    assert set(model.config.layer_types) == {KINDS[name], "full_attention"}
    verdict = json.loads((tmp_path / "out/verdict.json").read_text())
    assert verdict["model"]["without_heads"] == [0, 2]
    page = (tmp_path / "out/report.html").read_text()
    assert 'title="b0.attn.h' not in page
    assert 'title="b0.q"' not in page
    assert verdict["parameters"]["after"] == sum(parameter.numel() for parameter in model.parameters())
    if options["method"] == "heads":
        assert verdict["cut_summary"] == "2 of 4 KV groups"
        assert model.config.num_attention_heads == 2


def test_readings_are_of_the_heads_there_are_and_apply_refuses_others(place, tmp_path):
    task = ("--task", place / "q.jsonl", "--limit", "40")
    out = tmp_path / "read"
    done = secateur("probe", place / "qwen3.5", *task, "--what", "heads", "--quiet", "-o", out)
    assert done.exit_code == 0, done.stderr + str(done.exception)
    every = {f"b{block}.attn.h{head}" for block in (1, 3) for head in range(4)}
    (reading,) = json.loads((out / "probe.json").read_text())["components"]["heads"]["readings"]
    assert set(reading["values"]) == every
    refused(
        secateur("apply", place / "qwen3.5", "--edit", "b2.q=5", "-o", tmp_path / "cut"),
        "b2.q: block 2 has no attention with heads but gated linear attention",
    )


def test_apply_writes_a_stock_model_of_the_blocks_that_are_left(place, tmp_path):
    edits = (
        "--edit",
        "b0=drop",
        "--edit",
        "b3.mlp.n2=drop",
        "--edit",
        "b1.mlp.n0=drop",
        "--edit",
        "b2.mlp.n5=drop",
    )
    done = secateur("apply", place / "lfm2", *edits, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr + str(done.exception)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "Lfm2ForCausalLM"
    assert model.config.layer_types == ["full_attention", "conv", "full_attention"]
    assert (model.config.intermediate_size, model.config.block_auto_adjust_ff_dim) == (31, False)
