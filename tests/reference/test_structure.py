"""Proofs of a model's structure on a tiny random copy hold for every layout, and fail for planted wrong anatomies."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from fixtures.folders import refused, secateur
from fixtures.zoo import by_layout, tiny, variant
from transformers import PreTrainedModel

import secateur as package
from secateur.core.records.probe import EditProofRecord
from secateur.core.site import Site
from secateur.hf import recognize
from secateur.hf.anatomy import Anatomy, anatomy
from secateur.hf.blank import blank_model, tiny_config, tiny_copy
from secateur.hf.families import FAMILIES
from secateur.hf.matrices import Matrix
from secateur.probes import structure


def proofs(model: PreTrainedModel, kinds: Collection[str] | None = None) -> dict[str, EditProofRecord]:
    return {edit.edit: edit for edit in structure.prove(model, kinds).edits}


@pytest.mark.parametrize("name", [*by_layout(), "qwen3-moe", "deepseek-v2", "deepseek-v3", "roberta"])
def test_families_are_proved(name):
    found = proofs(tiny(name, torch.float64))
    assert [edit for edit in found.values() if not edit.proved] == []
    assert {"q", "k", "v", "o", "heads", "attentions", "block 0"} <= found.keys()


def test_a_model_of_one_block_is_proved_without_maps_and_drops_of_it():
    found = proofs(variant("llama", num_hidden_layers=1).double())
    assert all(edit.proved for edit in found.values())
    assert {"q", "heads", "neurons"} < found.keys()
    assert not {"block 0", "linear maps", "folded maps"} & found.keys()


def test_what_is_compared():
    found = proofs(tiny("llama", torch.float64))
    for kind in ("q", "k", "v", "heads", "KV groups"):
        assert found[kind].differences.keys() == {"cut", "parameters", "idle", "cache", "attention"}
    for kind in ("gate", "up", "neurons"):
        assert found[kind].differences.keys() == {"cut", "parameters", "idle", "cache", "activation"}
    for kind in ("attentions", "feed-forward networks", "block 0"):
        assert found[kind].differences.keys() == {"cut", "parameters", "idle", "cache", "stream"}


# ------------------------------------------------------------------------------------------------ planted errors

Moved = Mapping[Site, Matrix]


def swapped(one: str, other: str) -> Callable[[Moved], Moved]:
    """Each takes the other's place in the parameters, where the shapes are the same."""

    def change(matrices: Moved) -> Moved:
        places = {one: other, other: one}
        return {
            site: replace(matrices[Site(site.block, places[site.part])], site=site)
            if site.part in places
            else matrix
            for site, matrix in matrices.items()
        }

    return change


def misordered(kind: str) -> Callable[[Moved], Moved]:
    """The rows of heads 0 and 1, of 8 numbers each, are taken for each other's."""

    def change(matrices: Moved) -> Moved:
        rows = ((8, 16), (0, 8), (16, 32))
        return {s: replace(m, rows=rows) if s.part == kind else m for s, m in matrices.items()}

    return change


@pytest.mark.parametrize(
    ("change", "caught"),
    [
        (swapped("q", "k"), {"q", "k"}),
        (swapped("k", "v"), {"k", "v"}),
        (swapped("gate", "up"), {"gate", "up"}),
        (misordered("q"), {"q"}),
        (misordered("v"), {"v"}),
    ],
    ids=["q and k", "k and v", "gate and up", "heads of q", "heads of v"],
)
def test_matrices_in_the_wrong_place_are_caught(change, caught, monkeypatch):
    def wrong(model: PreTrainedModel) -> Anatomy:
        right = anatomy(model)
        return replace(right, matrices=change(right.matrices))

    monkeypatch.setattr(structure, "anatomy", wrong)
    model = variant("llama", num_key_value_heads=4, head_dim=8).double()
    found = proofs(model)
    assert caught <= {name for name, edit in found.items() if not edit.proved}


@pytest.mark.parametrize(("name", "layout"), [("gpt2", "grouped"), ("gpt-neox", "stacked")])
def test_a_fused_matrix_of_another_layout_is_caught(name, layout, monkeypatch):
    model = tiny(name, torch.float64)
    right = FAMILIES[type(model).__name__]
    slots = {
        kind: replace(slot, layout=layout) if kind in "qkv" else slot for kind, slot in right.slots.items()
    }
    monkeypatch.setattr(
        recognize, "ARCHITECTURES", {**FAMILIES, right.architecture: replace(right, slots=slots)}
    )
    failed = {kind for kind, edit in proofs(model).items() if not edit.proved}
    assert {"q", "k", "v"} <= failed


def test_keys_of_the_wrong_group_are_caught(monkeypatch):
    """Heads that read the keys of group 0 are said to be of group 1."""

    def wrong(model: PreTrainedModel) -> Anatomy:
        right = anatomy(model)
        rows = ((8, 16), (0, 8))
        matrices = {s: replace(m, rows=rows) if s.part in "kv" else m for s, m in right.matrices.items()}
        return replace(right, matrices=matrices)

    monkeypatch.setattr(structure, "anatomy", wrong)
    failed = {kind for kind, edit in proofs(variant("llama", head_dim=8).double()).items() if not edit.proved}
    assert {"k", "v", "KV groups"} <= failed


PARTS = {"attentions", "feed-forward networks"}
OF_STREAM = {*PARTS, "folded blocks", "linear maps"}


@pytest.mark.parametrize(
    ("name", "forgotten", "caught"),
    [
        ("gemma2", {"after": {}}, {*PARTS, "folded blocks"}),
        ("gemma2", {"after": {"mlp": "post_feedforward_layernorm"}}, {"attentions"}),
        ("olmo2", {"after": {}}, {*PARTS, "folded blocks"}),
        ("roberta", {"post_norm": False}, {*PARTS, "folded blocks"}),
    ],
    ids=["both norms", "one norm", "norms of a post-norm model", "norms of the stream"],
)
def test_a_norm_that_was_forgotten_is_caught(name, forgotten, caught, monkeypatch):
    model = variant(name, num_hidden_layers=3).double()
    right = FAMILIES[type(model).__name__]
    wrong = {**FAMILIES, right.architecture: replace(right, **forgotten)}
    monkeypatch.setattr(recognize, "ARCHITECTURES", wrong)
    found = proofs(model, OF_STREAM)
    assert caught == {kind for kind, edit in found.items() if not edit.proved}
    assert all(found[kind].differences["stream"] > 1e-3 for kind in caught)


def test_a_residual_scale_that_was_forgotten_is_caught(monkeypatch):
    """The fold goes wrong by its bias alone: a linear map and a scale can change places."""

    def wrong(model: PreTrainedModel) -> Anatomy:
        return replace(anatomy(model), residual_scale=1.0, foldable=True)

    monkeypatch.setattr(structure, "anatomy", wrong)
    model = variant("granite", num_hidden_layers=3, mlp_bias=True, residual_multiplier=0.4).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    found = proofs(model, OF_STREAM)
    assert {kind for kind, edit in found.items() if not edit.proved} == {*PARTS, "folded blocks"}


def test_a_map_of_what_enters_a_block_is_compared_with_what_leaves_it(monkeypatch):
    """A map that is made of something else is caught: here of what enters the block before."""
    model = variant("llama", num_hidden_layers=3).double()

    def wrong(model: PreTrainedModel) -> Anatomy:
        right = anatomy(model)
        first, second, third = right.blocks
        return replace(right, blocks=(second, first, third))

    monkeypatch.setattr(structure, "anatomy", wrong)
    assert not proofs(model, OF_STREAM)["linear maps"].proved


def test_a_number_of_parameters_that_is_not_the_predicted_one_is_caught(monkeypatch):
    monkeypatch.setattr(structure, "shape_of", lambda plan, parts, factorize: Counted())
    assert not any(edit.proved for edit in proofs(tiny("llama", torch.float64)).values())


class Counted:
    def num_parameters(self, parts: Anatomy) -> int:
        return parts.num_parameters + 1


# ------------------------------------------------------------------------------------------------------ the copy

REAL = {  # config.json as published, as far as it is of consequence
    "smollm2-135m": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048, "head_dim": 128,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "intermediate_size": 6144, "vocab_size": 151936,
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "hidden_size": 2048,
        "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": None,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_group": 1,
        "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1, "intermediate_size": 10944, "topk_group": 1, "vocab_size": 102400,
    },
    "gemma-3-1b": {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_size": 1152, "head_dim": 256,
        "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 6912,
        "sliding_window": 512, "vocab_size": 262144,
    },
}  # fmt: skip


def written(place: Any, config: Mapping[str, object]) -> str:
    (place / "config.json").write_text(json.dumps(config))
    return str(place)


@pytest.mark.parametrize("name", REAL)
def test_the_copy_of_a_real_config_is_tiny_and_of_its_kind(name, tmp_path):
    blank = blank_model(written(tmp_path, REAL[name]), ruler=True)
    model = tiny_copy(blank, tiny_config(blank, structure.WINDOW))
    parts, stated = anatomy(model), REAL[name]
    assert type(model).__name__ == stated["architectures"][0]
    assert parts.num_parameters < 2e7
    assert parts.d_head == stated.get("head_dim", 10 if parts.details.latent else 64)
    assert (parts.num_kv_heads < parts.num_heads) is (
        stated["num_key_value_heads"] < stated["num_attention_heads"]
    )
    kinds = getattr(model.config, "layer_types", None)
    if name == "gemma-3-1b":
        assert set(kinds) == {"sliding_attention", "full_attention"}
        assert model.config.sliding_window == structure.WINDOW < 14
    if name == "qwen3-30b-a3b":
        assert parts.widths[0].num_experts == 16  # of which 8 are chosen
    assert not any((parameter == 1).all() or (parameter == 0).all() for parameter in model.parameters())


def test_the_verb(tmp_path):
    """Without weights or a tokenizer; a family that is proved ends with 0."""
    done = secateur("models", written(tmp_path, REAL["smollm2-135m"]), "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["architecture"], found["blocks"]) == ("LlamaForCausalLM", 3)
    assert all(edit["proved"] for edit in found["edits"])


def test_what_differs_is_told_with_code_1(tmp_path, monkeypatch):
    monkeypatch.setattr(structure, "shape_of", lambda plan, parts, factorize: Counted())
    place = written(tmp_path, REAL["smollm2-135m"])
    done = secateur("models", place)
    assert done.exit_code == 1
    assert "LlamaForCausalLM (llama), a tiny random copy of 3 blocks" in done.stdout
    assert "DIFFERS" in done.stdout
    assert not any(edit["proved"] for edit in package.check_structure(place)["edits"])


def test_what_has_no_copy_is_refused(tmp_path):
    refused(secateur("models", tmp_path / "none"), "none")
    broken = written(tmp_path, REAL["smollm2-135m"] | {"num_key_value_heads": 2})
    refused(secateur("models", broken), "9 query heads cannot share 2 key/value heads")
