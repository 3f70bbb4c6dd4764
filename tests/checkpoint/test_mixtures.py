"""Mixtures of experts: what is cut of them is written, read back by transformers alone, and counted as it runs."""

from __future__ import annotations

import pytest
import torch
from fixtures.cuts import drops
from fixtures.folders import save_model
from fixtures.zoo import MIXTURES, tiny
from transformers import AutoModelForCausalLM

from secateur import api
from secateur.checkpoint.save import save_and_reload
from secateur.core.form import Form
from secateur.core.plan import Plan
from secateur.errors import ModelError, UnknownName
from secateur.gains.cost import cost, random_tokens
from secateur.hf.load import load_model
from secateur.surgery.materialize import cut
from secateur.surgery.operations import resolve
from secateur.surgery.spectra import decompose

TOKENS = torch.arange(2 * 12).reshape(2, 12) * 7 % 96


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_what_is_written_is_the_cut_model(name, words, tmp_path):
    loaded = load_model(str(save_model(tmp_path / "whole", tiny(name), words)), device="cpu")
    plan = Plan(loaded.fingerprint, tuple(drops("b0", "b1.attn.g1")))
    save_and_reload(loaded, plan, tmp_path / "out", rows=[range(8)], form=Form(), decompose=decompose)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS).logits, cut(loaded, plan)(TOKENS).logits)


def test_apply_says_that_it_cannot_write_them(words, tmp_path):
    folder = save_model(tmp_path / "whole", tiny("mixtral"), words)
    with pytest.raises(ModelError, match=r"Mixtral.*apply cannot write it tensor by tensor. prune writes it"):
        api.apply(folder, ["b0=drop"], tmp_path / "out", device="cpu")


def test_a_network_of_experts_is_no_part_that_can_go(as_loaded):
    loaded = as_loaded(tiny("olmoe"))
    with pytest.raises(UnknownName, match=r"b0.mlp: a network of OlmoeForCausalLM is a mixture of experts"):
        resolve(Plan(loaded.fingerprint, tuple(drops("b0.mlp"))), loaded.anatomy, loaded.fingerprint)


def test_a_token_costs_the_experts_that_it_goes_through(as_loaded):
    """Of 4 experts each token goes through 2, so half of their products count; a step of 3 tokens reads 1 − ½³."""
    loaded = as_loaded(tiny("mixtral"))
    found = cost(loaded, random_tokens(96, 3, 5))
    experts = [p for name, p in loaded.model.named_parameters() if p.dim() == 3]
    rest = [p for name, p in loaded.model.named_parameters() if p.dim() < 3 and "embed" not in name]
    products = sum(p.numel() for p in rest if p.dim() == 2 and p is not loaded.model.lm_head.weight)
    half = sum(p.numel() for p in experts) / 2
    assert found.matmul_flops == 2 * (15 * (products + half) + 3 * loaded.model.lm_head.weight.numel())
    assert found.weight_bytes == 4 * (sum(p.numel() for p in rest) + 2 * half * (1 - 0.5**3))
