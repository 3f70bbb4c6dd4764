"""Of a multimodal model the language model is cut, everything else is written back, and transformers reads it."""

from __future__ import annotations

import json

import pytest
import torch
from fixtures.folders import save_model
from fixtures.zoo import MULTIMODAL, by_layout, tiny
from transformers import AutoModelForImageTextToText, PreTrainedModel

from secateur import api
from secateur.core.plan import Drop, Plan, Truncate
from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.hf.families import FAMILIES, TOWERS
from secateur.hf.load import Loaded, load_model
from secateur.hf.recognize import family_of
from secateur.surgery.materialize import cut

TOKENS = torch.arange(2 * 12).reshape(2, 12) * 7 % 90 + 6  # none of them stands for a piece of an image
PROCESSOR = '{"size": {"height": 8, "width": 8}}'
PLANS = {
    "a head and a rank": (Drop(Site.parse("b0.attn.g1")), Truncate(Site.parse("b1.down"), 3)),
    "a block": (Drop(Site.parse("b0")),),
}


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(TOKENS).logits


@pytest.fixture(params=by_layout(MULTIMODAL, ("gemma3-vision", "qwen2-vl")))
def loaded(request: pytest.FixtureRequest, words, tmp_path) -> Loaded:
    folder = save_model(tmp_path / "whole", tiny(request.param), words)
    (folder / "preprocessor_config.json").write_text(PROCESSOR)
    return load_model(str(folder), device="cpu")


@pytest.mark.parametrize("edits", PLANS.values(), ids=PLANS.keys())
def test_what_is_written_is_the_cut_model_with_the_rest_untouched(edits, loaded, tmp_path):
    able = [edit for edit in edits if isinstance(edit, Drop) or edit.matrix in loaded.anatomy.matrices]
    plan, out = Plan(loaded.fingerprint, tuple(able)), tmp_path / "out"
    api.apply(loaded.source, plan, out, device="cpu", factorize=True)
    expected = logits(cut(loaded, plan, factorize=True))
    assert not torch.allclose(expected, logits(loaded.model), atol=1e-3), (
        "a cut that does nothing shows nothing"
    )
    again = AutoModelForImageTextToText.from_pretrained(out, trust_remote_code=True)
    torch.testing.assert_close(logits(again), expected)
    torch.testing.assert_close(logits(api.load(out, device="cpu").model), expected)
    before, after = loaded.model.state_dict(), again.state_dict()
    others = [name for name in before if not name.startswith((loaded.anatomy.details.tower, "lm_head"))]
    assert len(others) > 10
    assert all(torch.equal(before[name], after[name]) for name in others)
    assert (out / "preprocessor_config.json").read_text() == PROCESSOR


def test_a_language_model_that_is_not_cut_is_named():
    config = {"model_type": "llava", "text_config": {"model_type": "deepseek_v32"}}
    with pytest.raises(ModelError, match=r"Llava.*: its language model is of type 'deepseek_v32'"):
        family_of("LlavaForConditionalGeneration", config)


def test_the_default_language_model_of_a_config_that_does_not_say_it():
    found = family_of("Gemma3ForConditionalGeneration", {"model_type": "gemma3", "text_config": {}})
    assert found.blocks == "model.language_model.layers"
    assert found.slots == FAMILIES["Gemma3ForCausalLM"].slots


def test_a_language_model_is_of_the_variant_that_its_config_states():
    text = {"model_type": "deepseek_v3", "q_lora_rank": None}
    found = family_of("LlavaForConditionalGeneration", {"model_type": "llava", "text_config": text})
    assert found.slots["q"].module == "self_attn.q_proj"
    assert found.blocks == "model.language_model.layers"


def test_every_multimodal_architecture_finds_a_family():
    for architecture in TOWERS:
        found = family_of(architecture, {"text_config": {"model_type": "llama"}})
        assert (found.tower, found.architecture) == (TOWERS[architecture], architecture)


def test_the_config_of_a_shorter_language_model_keeps_the_other_one(words, tmp_path):
    folder = save_model(tmp_path / "whole", tiny("gemma3-vision"), words)
    before = json.loads((folder / "config.json").read_text())
    api.apply(folder, ["b0=drop"], tmp_path / "out", device="cpu")
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert after["text_config"]["num_hidden_layers"] == before["text_config"]["num_hidden_layers"] - 1
    assert after["vision_config"].items() >= before["vision_config"].items()
