"""Mixtures of experts: what is cut of them is written, read back by transformers alone, and counted as it runs."""

from __future__ import annotations

import pytest
import torch
from fixtures.cuts import drops
from fixtures.folders import contents, save_model
from fixtures.zoo import MIXTURES, tiny
from transformers import AutoModelForCausalLM

from secateur import api
from secateur.checkpoint.save import save_and_reload
from secateur.core.form import Form
from secateur.core.plan import Plan
from secateur.errors import UnknownName
from secateur.gains.cost import cost, random_tokens
from secateur.hf.load import load_model
from secateur.surgery.materialize import cut
from secateur.surgery.operations import resolve
from secateur.surgery.spectra import decompose

TOKENS = torch.arange(2 * 12).reshape(2, 12) * 7 % 96


STOCK = ("b0", "b1.attn.g1", "b1.mlp.e1")
HYBRID = ("b0", "b2.attn.g1", "b1.mlp.e1", "b2.mlp.e0")
EVEN = ("b0", "b1.attn.g1", "b1.attn.g2", "b1.mlp.e1")  # of four heads two, which divide the stream
UNEVEN = ("b1.mlp.e0", "b1.mlp.e2", "b0.attn")


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_what_is_written_is_the_cut_model(name, words, tmp_path):
    """Transformers alone reads fewer experts, by the number in the config; that of a carved model by its operations."""
    loaded = load_model(str(save_model(tmp_path / "whole", tiny(name), words)), device="cpu")
    stock = HYBRID if name in ("lfm2-moe", "qwen3-next", "qwen3.5-moe") else STOCK
    stock = EVEN if name == "deepseek-v2" else stock
    both = name in ("mixtral", "ernie4.5-moe", "qwen3-next", "gpt-oss")
    for sites in (stock, UNEVEN) if both else (stock,):
        plan, out = Plan(loaded.fingerprint, tuple(drops(*sites))), tmp_path / str(len(sites[0]))
        save_and_reload(loaded, plan, out, rows=[range(8)], form=Form(), decompose=decompose)
        again, made = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True), cut(loaded, plan)
        with torch.no_grad():
            torch.testing.assert_close(again(TOKENS).logits, made(TOKENS).logits)
        assert type(made).__name__ == (
            "SecateurForCausalLM" if sites == UNEVEN else type(loaded.model).__name__
        )
        assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in made.parameters())


@pytest.mark.parametrize(
    ("name", "edits"),
    [
        ("mixtral", ["b0=drop"]),
        ("mixtral", [f"{site}=drop" for site in UNEVEN]),
        ("qwen3-moe", ["b0.mlp.e1=drop", "b1.mlp.e2=drop", "b0.q=2"]),
        ("granitemoe", ["b0.mlp.e1=drop", "b1.mlp.e2=drop"]),
        ("glm4-moe", ["b1.mlp.e0=drop"]),
        ("gpt-oss", ["b0.attn.h1=drop", "b1.attn.g0=drop", "b1.mlp.e0=drop", "b0.e2.up=3"]),
    ],
)
def test_apply_writes_what_prune_would_have_written(name, edits, words, tmp_path):
    """Every file: each expert by itself, as transformers stores it, with the numbers that are left."""
    folder = save_model(tmp_path / "whole", tiny(name, torch.bfloat16), words)
    whole = load_model(str(folder), device="cpu")
    plan = Plan(whole.fingerprint, api.read_edits(edits))
    api.apply(str(folder), plan, tmp_path / "out", device="cpu")
    save_and_reload(whole, plan, tmp_path / "saved", rows=[range(8)], form=Form(), decompose=decompose)
    ours, theirs = contents(tmp_path / "out"), contents(tmp_path / "saved")
    assert set(ours) - set(theirs) == {"README.md", "plan.json"}
    assert {name: ours[name] for name in theirs} == theirs


def test_a_network_of_experts_goes_by_experts(as_loaded):
    loaded = as_loaded(tiny("olmoe"))
    with pytest.raises(
        UnknownName, match=r"b0.mlp: .* a mixture of experts, of which whole experts go, such as b0.mlp.e0"
    ):
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


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3"])
def test_latent_attention_loses_heads_and_the_cache_keeps_its_codes(name, words, tmp_path):
    """Heads go in a stock checkpoint, whose cache is that of before; only whole attentions make it smaller."""
    loaded = load_model(str(save_model(tmp_path / "whole", tiny(name), words)), device="cpu")
    head = loaded.anatomy.widths[0].head
    config = loaded.model.config
    assert head.cached(4) == head.cached(1) == config.kv_lora_rank + config.qk_rope_head_dim
    heads = Plan(loaded.fingerprint, tuple(drops(*(f"b{b}.attn.h{h}" for b in (0, 1) for h in (0, 3)))))
    save_and_reload(loaded, heads, tmp_path / "out", rows=[range(8)], form=Form(), decompose=decompose)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (type(again), again.config.num_attention_heads) == (type(loaded.model), 2)
    assert again.config.qk_rope_head_dim == config.qk_rope_head_dim
    assert again.model.layers[0].self_attn.kv_b_proj.weight.shape == (2 * (head.key + head.value), 24)
    with torch.no_grad():
        before, after = (m(TOKENS, use_cache=True).past_key_values for m in (loaded.model, again))
    assert before.layers[0].keys.shape == after.layers[0].keys.shape == (2, 1, 12, config.kv_lora_rank)
