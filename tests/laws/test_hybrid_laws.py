"""Hold hybrids to their word: blocks of which some have another mixer than attention, which stays as it is."""

from __future__ import annotations

import pytest
import torch
from fixtures.cuts import drops
from fixtures.zoo import HYBRIDS, tiny, variant
from torch import Tensor
from transformers import PreTrainedModel

from secateur.core.plan import Plan, Truncate
from secateur.core.site import Site
from secateur.errors import ModelError, PlanError, UnknownName
from secateur.evaluation.generate import greedy
from secateur.gains.cost import cost
from secateur.hf.anatomy import anatomy
from secateur.hf.load import Loaded
from secateur.hf.readable import readable_of
from secateur.surgery.mask import masked
from secateur.surgery.materialize import cut
from secateur.surgery.operations import droppable, resolve
from secateur.surgery.shape import heads_gone

GATED = ["qwen3-next", "qwen3.5"]
LONG = (
    torch.arange(2 * 100).reshape(2, 100) * 7 % 90 + 3
)  # beyond the 64 positions of a chunk of linear attention
MIXED_FIRST = {
    "granite-hybrid": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "lfm2": ["conv", "full_attention", "conv", "full_attention"],
    "olmo-hybrid": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "qwen3-next": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "qwen3.5": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
}


def loaded_of(model: PreTrainedModel) -> Loaded:
    return Loaded("zoo", model, None, anatomy(model), "zoo", None, None)  # type: ignore[arg-type]


def mixer_first(name: str, dtype: torch.dtype = torch.float64) -> Loaded:
    """Blocks 0 and 2 have no heads, as in released models, that begin with such a block."""
    return loaded_of(variant(name, num_hidden_layers=4, layer_types=MIXED_FIRST[name]).to(dtype))


def plan_of(*sites: str) -> Plan:
    return Plan("zoo", tuple(drops(*sites)))


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: Tensor = LONG) -> Tensor:
    return model(tokens).logits


def distance(found: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected))


@pytest.mark.parametrize("name", sorted(MIXED_FIRST))
def test_blocks_go_from_texts_longer_than_a_chunk_and_the_cache_counts_on(name):
    """A model whose first block has no heads, cut to one of either kind, and to more; cached as uncached."""
    loaded = mixer_first(name)
    networks = [] if loaded.anatomy.routing else ["b2.mlp.n3", "b0.mlp"]
    for sites in (["b0", "b3"], ["b1", "b2"], ["b1.attn", "b3.attn.h1", *networks]):
        plan = plan_of(*sites)
        with masked(loaded.model, resolve(plan, loaded.anatomy, "zoo")):
            expected = logits(loaded.model)
        model = cut(loaded, plan)
        assert distance(logits(model), expected) <= 1e-10, sites
        kinds = model.config.layer_types
        assert kinds == [kind for b, kind in enumerate(MIXED_FIRST[name]) if f"b{b}" not in sites]
        if len(kinds) == 2:
            assert type(model) is type(loaded.model)
        made = model.generate(
            LONG[:1, :70], max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        again = logits(model, made[:, :-1])[0, 69:].argmax(-1)
        assert made[0, 70:].tolist() == again.tolist(), sites


@pytest.mark.parametrize("name", sorted(HYBRIDS))
def test_rows_do_not_see_the_padding_behind_them_nor_before_them_where_that_is_said(name):
    model = tiny(name, torch.float64)
    padded = LONG.clone()
    padded[1, 70:] = 0
    assert distance(logits(model, padded)[1, :70], logits(model, padded[1:, :70])[0]) <= 1e-10
    ids = torch.cat([torch.zeros(1, 5, dtype=torch.long), LONG[1:, :70]], dim=1)
    mask = (torch.arange(75)[None] >= 5).long()
    with torch.no_grad():
        left = model.float()(ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    apart = distance(left[0, 5:], logits(model, LONG[1:, :70])[0])
    assert (apart < 1e-5) == anatomy(model).pads_left, apart


@pytest.mark.parametrize("name", ["bamba", "lfm2-biased"])
def test_prompts_are_generated_from_apart_where_padding_would_be_seen(name, as_loaded, monkeypatch):
    loaded, rows = as_loaded(tiny(name)), []
    generate = loaded.model.generate

    def noted(attention_mask, **how):
        rows.append(attention_mask.tolist())
        return generate(attention_mask=attention_mask, **how)

    monkeypatch.setattr(loaded.model, "generate", noted)
    prompts = [LONG[0, :length].tolist() for length in (7, 7, 9)]
    alone = [greedy(loaded, [prompt], 3, 100)[0] for prompt in prompts]
    del rows[:]
    assert greedy(loaded, prompts, 3, 100) == alone
    padded = [0, 0, *[1] * 7]
    assert rows == ([[padded, padded, [1] * 9]] if name == "bamba" else [[[1] * 9], [[1] * 7] * 2])


def test_a_mixer_has_no_parts():
    loaded = mixer_first("qwen3.5")
    for edit in (Truncate(Site(0, "q"), 2), *drops("b2.attn", "b0.attn.h1", "b0.attn.g0")):
        with pytest.raises(UnknownName, match=r"has no attention with heads but gated linear.*\(1, 3\)"):
            resolve(Plan("zoo", (edit,)), loaded.anatomy, "zoo")
    assert [own.num_heads for own in loaded.anatomy.widths] == [0, 4, 0, 4]
    assert not droppable(Site(0, "attn"), loaded.anatomy)
    assert heads_gone(plan_of("b0", "b1.attn"), loaded.anatomy) == {Site(1, "attn", "h", h) for h in range(4)}
    with pytest.raises(UnknownName, match=r"block 1 has no attention with heads but a short convolution"):
        loaded_of(tiny("lfm2")).anatomy.matrix(Site(1, "o"))


def test_one_block_of_each_kind_stays():
    anatomy_ = mixer_first("olmo-hybrid").anatomy
    for sites in (["b1", "b3"], ["b0", "b2", "b3"]):
        with pytest.raises(PlanError, match="Keep at least one of each kind"):
            resolve(plan_of(*sites), anatomy_, "zoo")
    assert droppable(Site(1), anatomy_)
    assert not droppable(Site(1), loaded_of(tiny("olmo-hybrid")).anatomy)
    with pytest.raises(ModelError, match="no block with attention"):
        anatomy(variant("lfm2", layer_types=["conv"] * 3))
    plain = anatomy(variant("lfm2", layer_types=["full_attention"] * 3))
    assert plain.kept_from == (frozenset(range(3)),)


@pytest.mark.parametrize("name", GATED)
def test_the_gate_goes_with_its_head_and_is_not_truncated_with_the_queries(name):
    loaded = loaded_of(tiny(name, torch.float64))
    matrix = loaded.anatomy.matrix(Site(0, "q"))
    whole = loaded.model.get_parameter(matrix.weight).clone()
    gates = whole.unflatten(0, (4, 2, 16))[:, 1]
    plan = Plan("zoo", (Truncate(Site(0, "q"), 2), *drops("b0.attn.g0")))
    with masked(loaded.model, resolve(plan, loaded.anatomy, "zoo")):
        changed = loaded.model.get_parameter(matrix.weight)
        assert torch.equal(changed.unflatten(0, (4, 2, 16))[:, 1], gates)
        assert torch.linalg.matrix_rank(changed.unflatten(0, (4, 2, 16))[:, 0].flatten(0, 1)) == 2
        expected = logits(loaded.model)
    model = cut(loaded, plan, factorize=True)
    left = model.get_parameter(matrix.weight)
    assert torch.equal(left.unflatten(0, (2, 2, 16))[:, 1], gates[2:])
    assert distance(logits(model), expected) <= 1e-10


def test_a_norm_after_a_part_is_not_the_one_before_it():
    """In OLMo-hybrid and OLMo 2 attention has a norm after it that elsewhere is the one before the network."""
    for name, entries in (
        ("olmo-hybrid", ["mlp.up_proj", "post_attention_layernorm", "mlp.up_proj"]),
        ("olmo2", ["mlp.up_proj", "mlp.up_proj"]),
        ("gemma2", ["pre_feedforward_layernorm"] * 2),
        ("lfm2", ["ffn_norm"] * 3),
    ):
        blocks = readable_of(loaded_of(tiny(name))).stacks[0].blocks
        found = [block.parts[-1].readers[0].enters for block in blocks]
        assert found == [f"layers.{number}.{entry}" for number, entry in enumerate(entries)]


def test_lists_of_block_numbers_are_renumbered():
    for name, key in (("lfm2-biased", "full_attn_idxs"), ("bamba", "attn_layer_indices")):
        assert cut(loaded_of(tiny(name)), plan_of("b0")).config.to_dict()[key] == [1]


def test_a_state_in_the_cache_is_counted_whatever_the_length():
    loaded = mixer_first("qwen3.5", torch.float32)
    short, long = (cost(loaded, LONG[:, :length]) for length in (10, 90))
    states = 4 * (
        (2 * 2 * 6 + 4 * 8) * 4 + 4 * 6 * 8
    )  # bytes: the last 4 inputs of the convolution; (heads, k, v)
    assert [own.state for own in short.attended] == [states, 0, states, 0]
    held = 4 * 2 * 2 * 16  # bytes of keys and values of 2 groups
    assert [own.held for own in long.attended] == [0, held, 0, held]
    assert short.cache_bytes == 2 * (2 * states + 2 * 10 * held)
    assert long.cache_bytes == 2 * (2 * states + 2 * 90 * held)
    assert short.attended == long.attended
