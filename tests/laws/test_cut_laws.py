"""What must hold of every physical cut in every family: it computes what the mask computes, has the parameters that
were predicted, and generates with its cache what it generates without."""

from __future__ import annotations

import pytest
import torch
from fixtures.cuts import KINDS, drops, edits_of, factorized, possible
from fixtures.zoo import EVERY, OF_ALL_KINDS, ONE_OF_EACH_LAYOUT, ZOO, once_a_code, precision, tiny, variant
from torch import Tensor
from transformers import PreTrainedModel

from secateur.core.plan import Plan, Truncate
from secateur.core.site import Site
from secateur.errors import PlanError, UnknownName
from secateur.hf.anatomy import anatomy
from secateur.hf.families import FAMILIES, TOWERS
from secateur.hf.generation import positions
from secateur.hf.load import Loaded
from secateur.hf.modeling_secateur import LowRank
from secateur.surgery.mask import masked
from secateur.surgery.materialize import cut
from secateur.surgery.operations import resolve
from secateur.surgery.portable import portable_plan
from secateur.surgery.shape import Shape, shape_of, stock_config

TOKENS = torch.tensor([[5, 17, 40, 3, 88, 61, 23, 9, 71, 34], [90, 4, 4, 55, 12, 7, 66, 31, 8, 20]])
UNITS = {  # kinds that store nothing less where a norm takes these units together
    "heads": ("KV group", "KV groups everywhere", "heads everywhere"),
    "neurons": ("neurons", "neurons everywhere"),
}
CACHED = [  # kinds after which the cache holds other heads or other blocks
    "KV groups everywhere", "block 0", "mixed", "uneven heads", "last block linear", "folded and cut",
]  # fmt: skip
CACHED_ZOO = [
    *CACHED, "one head", "all heads of a block", "attention of block 0", "attention of block 1", "last block",
    "directions and parts", "all but one linear",
]  # fmt: skip
ONE_OF_EACH = [  # of families that are a line of the table: what reads another of its fields
    "one head", "KV groups everywhere", "heads everywhere", "attention of block 0", "FFN of block 0", "neurons",
    "neurons everywhere", "block 0", "last block", "mixed", "rank 3", "directions of heads",
    "directions and parts", "linear block 0", "folded and cut",
]  # fmt: skip
FIRST = [*ONE_OF_EACH[:4], "neurons everywhere", "block 0", "mixed", "directions and parts", "folded and cut"]
PADDING = [0]  # which takes no position where these begin behind it, so it must not be written
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def loaded_of(name: str, dtype: torch.dtype = torch.float64) -> Loaded:
    model = tiny(name, dtype)
    return Loaded(name, model, None, anatomy(model), name, None, None)  # type: ignore[arg-type]


def plan_of(kind: str, loaded: Loaded) -> Plan:
    return Plan(loaded.fingerprint, tuple(edits_of(kind, loaded.anatomy)))


def test_every_family_is_in_the_zoo_that_these_laws_hold_in():
    pairs = {name for name, family in FAMILIES.items() if family.encoder is not None}  # test_pair_laws.py
    assert {type(tiny(name)).__name__ for name in OF_ALL_KINDS} == {*FAMILIES, *TOWERS} - pairs


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(TOKENS).logits


ROUNDED = ["falcon-rw", "gemma3", "gpt2", "llama", "phi3"]  # also with what float32 rounds


@pytest.mark.parametrize("name", once_a_code(OF_ALL_KINDS))
def test_mask_and_cut_agree_and_the_parameters_are_those_predicted(name):
    with precision(name):
        loaded = loaded_of(name)
        for kind in KINDS if name in ONE_OF_EACH_LAYOUT else FIRST:
            check_cut(loaded, kind, torch.float64)


@pytest.mark.parametrize("name", ROUNDED)
def test_so_they_do_in_float32(name):
    loaded = loaded_of(name, torch.float32)
    for kind in KINDS if name in ONE_OF_EACH_LAYOUT else ONE_OF_EACH:
        check_cut(loaded, kind, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OF_ALL_KINDS.keys() - set(ONE_OF_EACH_LAYOUT)))
def test_so_do_cuts_of_the_other_kinds(name):
    with precision(name):
        loaded = loaded_of(name)
        for kind in KINDS if name in ZOO else ONE_OF_EACH:
            if kind not in FIRST:
                check_cut(loaded, kind, torch.float64)


def check_cut(loaded: Loaded, kind: str, dtype: torch.dtype) -> None:
    plan, whole = plan_of(kind, loaded), logits(loaded.model)
    with masked(loaded.model, resolve(plan, loaded.anatomy, loaded.fingerprint)):
        expected = logits(loaded.model)
    model = cut(loaded, plan, factorize=factorized(kind))
    distance = torch.linalg.norm(logits(model) - expected) / torch.linalg.norm(expected)
    assert distance <= TOLERANCE[dtype], kind
    assert torch.equal(logits(loaded.model), whole), "the original was changed"
    assert not torch.allclose(expected, whole, rtol=1e-3), "a cut that does nothing shows nothing"
    stored = sum(parameter.numel() for parameter in model.parameters())
    same_size = kind in ("one head", "uneven heads", "q alone") or kind.startswith("directions")
    same_size |= any(kind in UNITS[unit] for unit in loaded.anatomy.indivisible)
    assert same_size or stored < loaded.anatomy.num_parameters
    assert stored == shape_of(plan, loaded.anatomy, factorize=factorized(kind)).num_parameters(loaded.anatomy)
    assert stored == anatomy(model).num_parameters


@pytest.mark.parametrize("name", once_a_code(EVERY))
def test_cached_generation_is_uncached_generation_with_padding_on_the_left(name):
    loaded = loaded_of(name, torch.float32)
    for kind in (
        KINDS if name in ("llama", "gpt2") else CACHED_ZOO if name in ONE_OF_EACH_LAYOUT else CACHED[:3]
    ):
        check_generation(loaded, kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EVERY.keys() - {*ONE_OF_EACH_LAYOUT, "llama", "gpt2"}))
def test_so_it_is_after_cuts_of_the_other_kinds(name):
    loaded = loaded_of(name, torch.float32)
    for kind in CACHED[3:]:
        check_generation(loaded, kind)


def check_generation(loaded: Loaded, kind: str) -> None:
    model = cut(loaded, plan_of(kind, loaded), factorize=factorized(kind))
    begun = tuple(range(60, 68))  # so that all are in one regime where positions are rotated by length
    prompts = [(*begun, *rest) for rest in ((5, 6, 7, 8, 9), (11, 12), (20, 21, 22, 23, 24, 25, 26))]
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    made = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        suppress_tokens=PADDING if loaded.anatomy.details.counts_from_pad else None,
        **positions(loaded.anatomy.details, model, mask),
    )
    for prompt, tokens in zip(prompts, made[:, length:].tolist(), strict=True):
        banned = PADDING if loaded.anatomy.details.counts_from_pad else []
        assert tokens == uncached(model, prompt, tokens, banned), kind


@torch.no_grad()
def uncached(
    model: PreTrainedModel, prompt: tuple[int, ...], tokens: list[int], banned: list[int]
) -> list[int]:
    """The likeliest token after the prompt and after each of `tokens` but the last, by one pass without cache or
    padding: equal to `tokens` where greedy generation, token by token, gives these."""
    table = model(torch.tensor([[*prompt, *tokens[:-1]]]), use_cache=False).logits[0]
    table[:, banned] = -torch.inf
    return table[len(prompt) - 1 :].argmax(-1).tolist()


@pytest.mark.parametrize("name", once_a_code(OF_ALL_KINDS))
def test_a_cut_model_can_be_cut_again(name):
    """First an attention and a head, then in what is left a block, an FFN and neurons: as if all went at once."""
    loaded = loaded_of(name)

    def plan(of: str, *sites: str) -> Plan:
        return Plan(of, tuple(possible(drops(*sites), loaded.anatomy)))

    model = cut(loaded, plan(name, "b1.attn.h1", "b0.mlp"))
    again = Loaded("cut", model, None, anatomy(model), "cut", None, None)  # type: ignore[arg-type]
    twice = cut(again, plan("cut", "b0", "b1.mlp.n3", "b1.mlp.n0"))
    once = cut(loaded, plan(name, "b0", "b1.attn.h1", "b1.mlp.n3", "b1.mlp.n0"))
    with precision(name):
        torch.testing.assert_close(logits(twice), logits(once), rtol=1e-12, atol=1e-12)
    assert anatomy(twice).num_parameters == anatomy(once).num_parameters


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3", "mistral"])
def test_equal_shapes_are_stock_models(name):
    loaded = loaded_of(name)
    for kind in ("KV groups everywhere", "heads everywhere", "neurons everywhere", "block 0", "last block"):
        model = cut(loaded, plan_of(kind, loaded))
        assert type(model) is type(loaded.model), kind
        assert type(model.config) is type(loaded.model.config)
    for kind in ("uneven heads", "attention of block 0", "FFN of block 0", "rank 3"):
        reason = stock_config(shape_of(plan_of(kind, loaded), loaded.anatomy, factorize=True), loaded.anatomy)
        assert isinstance(reason, str)
        assert type(cut(loaded, plan_of(kind, loaded), factorize=True)).__name__ == "SecateurForCausalLM"


@pytest.mark.parametrize("name", ["gpt2", "gptj", "gpt-neox", "opt", "bloom", "falcon-7b", "phi"])
def test_families_that_derive_the_size_of_a_head_are_carved(name):
    loaded = loaded_of(name)
    reason = stock_config(shape_of(plan_of("heads everywhere", loaded), loaded.anatomy), loaded.anatomy)
    assert "fixes the size of a head" in reason


def test_uneven_groups_take_the_smaller_way_out():
    """4 + 2 heads: filled, 2 groups of 4; with keys repeated, 3 groups of 2, which is less. 4 + 1 heads: 2 groups of 4
    or 5 of 1, equally many numbers, of which the former keep less in the cache. 4 + 3: the fourth stays, silent."""
    model = variant("llama", num_attention_heads=8, num_key_value_heads=2, head_dim=8)
    loaded = Loaded("llama", model, None, anatomy(model), "l", None, None)  # type: ignore[arg-type]
    for gone, left in (
        ((6, 7), [(0, (0, 1)), (0, (2, 3)), (1, (4, 5))]),
        ((5, 6, 7), [(0, (0, 1, 2, 3)), (1, (4, 5, 6, 7))]),
        ((4,), [(0, (0, 1, 2, 3)), (1, (4, 5, 6, 7))]),
        ((0, 6), [(0, (1, 2, 3)), (1, (4, 5, 7))]),
        ((0, 1, 2, 3), [(1, (4, 5, 6, 7))]),
    ):
        shape = shape_of(Plan("l", tuple(drops(*(f"b0.attn.h{head}" for head in gone)))), loaded.anatomy)
        assert told(shape) == left


def told(shape: Shape) -> list[tuple[int, tuple[int, ...]]]:
    return [(group.kv, group.queries) for group in shape.blocks[0].groups or ()]


def test_factors_only_below_the_break_even_rank():
    loaded = loaded_of("llama")
    down = loaded.anatomy.matrices[Site(0, "down")]
    m, n = down.shape
    even = m * n // (m + n)
    for rank, smaller in ((even - 1, True), (even + 1, False)):
        plan = Plan("llama", (Truncate(Site(0, "down"), rank),))
        model = cut(loaded, plan, factorize=True)
        module = model.get_submodule(down.module)
        assert isinstance(module, LowRank) is smaller
        assert (sum(p.numel() for p in module.parameters()) < m * n) is smaller


def test_what_cannot_be_cut_is_refused():
    loaded = loaded_of("llama")
    for edits, error, words in (
        (drops("b0", "b1"), PlanError, "every block"),
        (drops("b7"), UnknownName, "b7"),
        (drops("b0.attn.g0", "b0.attn.h1"), PlanError, "goes whole"),
    ):
        with pytest.raises(error, match=words):
            cut(loaded, Plan("llama", tuple(edits)))
    model = variant("gpt2", scale_attn_by_inverse_layer_idx=True)
    scaled = Loaded("gpt2", model, None, anatomy(model), "g", None, None)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="number of its block"):
        cut(scaled, Plan("g", tuple(drops("b0"))))


def test_a_config_that_wants_heads_to_divide_the_width_gets_no_others():
    """3 groups of 2 are 6 heads, which Llama's config refuses at d_model 64; Qwen2's does not mind."""
    for family, fits in (("llama", False), ("qwen2", True)):
        model = variant(family, hidden_size=64, num_attention_heads=8, num_key_value_heads=4, head_dim=8)
        loaded = Loaded(family, model, None, anatomy(model), "m", None, None)  # type: ignore[arg-type]
        plan = Plan("m", tuple(drops(*(f"b{b}.attn.g{b}" for b in range(loaded.anatomy.num_blocks)))))
        assert isinstance(stock_config(shape_of(plan, loaded.anatomy), loaded.anatomy), dict) is fits
        assert (type(cut(loaded, plan)) is type(model)) is fits
        for count in (1, 2, 3):
            some = [f"b{b}.attn.g{g}" for b in range(loaded.anatomy.num_blocks) for g in range(count)]
            nearest = portable_plan(Plan("m", tuple(drops(*some[:-1]))), loaded)
            assert type(cut(loaded, nearest)) is type(model)
