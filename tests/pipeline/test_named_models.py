"""Models of the kinds that the papers and their readers name go through `prune` and `apply`, from folder to folder.

Masked language models, decision transformers and encoder-decoders have tests of their own, with tasks of their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.folders import questions, save_model, write_rows
from fixtures.zoo import tiny
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerBase

from secateur import api
from secateur.core.site import Site
from secateur.errors import SecateurError
from secateur.hf.load import load_model
from secateur.result import Result
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve

NAMES = ["gemma3-vision", "gptj", "llama", "olmo2", "qwen3-moe", "smollm3"]
METHODS: dict[str, dict[str, Any]] = {
    "laser": {"matrices": ("o",), "objective": "loss", "keep_unproven": True},
    "heads": {"step": 0.5, "random_orders": 0, "params": 0.97},
    "depth": {"blocks": 1, "by": "cosine", "form": "drop"},
}
TOKENS = torch.arange(2 * 12).reshape(2, 12) * 7 % 90 + 6  # none of them stands for a piece of an image
PARAMETERS = [  # LASER with each of them always, the others with one in turn, and with all by `make test-all`
    pytest.param(name, how, marks=[] if 0 in (turn, (turn + number) % 6) else pytest.mark.slow)
    for turn, how in enumerate([*METHODS, "apply"])
    for number, name in enumerate(NAMES)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, words: PreTrainedTokenizerBase) -> Path:
    place = tmp_path_factory.mktemp("named")
    for name in NAMES:
        save_model(place / name, tiny(name), words)
    write_rows(place / "q.jsonl", questions(40))
    write_rows(place / "side.jsonl", questions(6, seed=1))
    return place


@torch.no_grad()
def same_logits(folder: Path, result: Result) -> None:
    """Plain transformers computes what the original does under the plan's mask."""
    loaded = load_model(str(folder), device="cpu")
    whole = loaded.model(TOKENS).logits
    with masked(loaded.model, resolve(result.plan, loaded.anatomy, loaded.fingerprint)):
        expected = loaded.model(TOKENS).logits
    assert not torch.allclose(expected, whole, atol=1e-4), "a cut that does nothing shows nothing"
    auto = AutoModelForImageTextToText if loaded.anatomy.details.tower else AutoModelForCausalLM
    found = auto.from_pretrained(result.out, trust_remote_code=True)(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "how"), PARAMETERS)
def test_from_folder_to_folder(name: str, how: str, place: Path, tmp_path: Path) -> None:
    folder, out = place / name, tmp_path / "out"
    if how == "apply":
        result = api.apply(str(folder), ("b0.attn.h1=drop", "b1.o=3"), out, device="cpu")
    else:
        options = {"allow_small": True, "device": "cpu", "side": [str(place / "side.jsonl")]} | METHODS[how]
        result = api.prune(str(folder), str(place / "q.jsonl"), out, method=how, **options)
    assert result.plan.edits
    same_logits(folder, result)


def test_laser_searches_matrices_of_experts_where_it_is_asked_to(place: Path, tmp_path: Path) -> None:
    model, task = str(place / "qwen3-moe"), str(place / "q.jsonl")
    asked = METHODS["laser"] | {"matrices": ("experts.down", "o"), "allow_small": True, "device": "cpu"}
    expected = api.plan_cost(model, task, method="laser", calibrate=False, **asked)
    result = api.prune(
        model, task, tmp_path / "out", method="laser", side=[str(place / "side.jsonl")], **asked
    )
    screen = json.loads((tmp_path / "out/analysis.json").read_text())["screen"]
    looked_at = {Site.parse(truncation["site"]) for truncation in screen}
    assert {site.name for site in looked_at} == {"experts.down", "o"}
    assert {stage["stage"] for stage in expected["stages"]} >= {"load", "screen", "race"}
    assert "the best of the experts in each place" in (tmp_path / "out/report.html").read_text()
    same_logits(place / "qwen3-moe", result)


def test_directions_of_experts_are_removed_without_a_fold(place: Path, tmp_path: Path) -> None:
    model, task = str(place / "qwen3-moe"), str(place / "q.jsonl")
    asked: dict[str, Any] = {
        "matrices": ("experts.up",),
        "protocol": "paper",
        "keep_unproven": True,
        "allow_small": True,
        "device": "cpu",
    }
    result = api.prune(
        model, task, tmp_path / "out", method="directions", side=[str(place / "side.jsonl")], **asked
    )
    assert result.plan.removed
    assert all(edit.matrix.unit == "e" and edit.fold is None for edit in result.plan.removed)
    same_logits(place / "qwen3-moe", result)
    with pytest.raises(
        SecateurError, match=r"--whitened is read of linear layers, and b0.e0.up is an expert's"
    ):
        api.prune(
            model,
            task,
            tmp_path / "no",
            method="directions",
            whitened=True,
            **asked | {"protocol": "threshold"},
        )
