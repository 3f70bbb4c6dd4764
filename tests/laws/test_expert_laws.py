"""Hold masks and cuts of experts to their word: the mask computes what the router computes that never chooses them, the
cut computes what the mask does and has the parameters that were predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures.cuts import drops
from fixtures.zoo import MIXTURES, tiny, variant
from torch import Tensor, nn

from secateur.core.fitted import Fitted
from secateur.core.form import Form
from secateur.core.plan import Plan, RemoveDirections, Truncate
from secateur.core.site import Site
from secateur.errors import PlanError, UnknownName
from secateur.hf.anatomy import anatomy
from secateur.hf.load import Loaded
from secateur.surgery.mask import masked
from secateur.surgery.materialize import cut
from secateur.surgery.operations import resolve
from secateur.surgery.portable import portable_plan
from secateur.surgery.shape import shape_of, stock_config

TOKENS = torch.tensor([[5, 17, 40, 3, 88, 61, 23, 9, 71, 34], [90, 4, 4, 55, 12, 7, 66, 31, 8, 20]])


def loaded_of(model: nn.Module) -> Loaded:
    return Loaded("zoo", model, None, anatomy(model), "zoo", None, None)  # type: ignore[arg-type]


def plan_of(loaded: Loaded, *sites: str) -> Plan:
    return Plan(loaded.fingerprint, tuple(drops(*sites)))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(TOKENS).logits


def masked_logits(loaded: Loaded, *plans: Plan) -> Tensor:
    """Under one mask within the other."""
    if not plans:
        return logits(loaded.model)
    with masked(loaded.model, resolve(plans[0], loaded.anatomy, loaded.fingerprint)):
        return masked_logits(loaded, *plans[1:])


def mixed(loaded: Loaded) -> list[int]:
    return [block for block, width in enumerate(loaded.anatomy.widths) if width.num_experts]


def distance(found: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected))


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_mask_and_cut_agree_and_the_parameters_are_those_predicted(name):
    """One expert of each block, which a stock class holds; two of the last and an attention, which a carved does."""
    loaded = loaded_of(tiny(name, torch.float64))
    whole, blocks = logits(loaded.model), mixed(loaded)
    equal = [f"b{block}.mlp.e{(1 - block) % 4}" for block in blocks]
    uneven = [f"b{blocks[-1]}.mlp.e0", f"b{blocks[-1]}.mlp.e3", "b0.attn"]
    for sites, left, stock in (
        (equal, [3] * len(blocks), True),
        (uneven, [4] * (len(blocks) - 1) + [2], False),
    ):
        plan = plan_of(loaded, *sites)
        expected, model = masked_logits(loaded, plan), cut(loaded, plan)
        assert distance(logits(model), expected) <= 1e-10, sites
        assert distance(expected, whole) > 1e-3, "a cut that does nothing shows nothing"
        assert torch.equal(logits(loaded.model), whole), "the original was changed"
        found = anatomy(model)
        assert [found.widths[block].num_experts for block in blocks] == left
        stored = sum(parameter.numel() for parameter in model.parameters())
        assert stored == shape_of(plan, loaded.anatomy).num_parameters(loaded.anatomy) == found.num_parameters
        assert (type(model) is type(loaded.model)) == stock, sites


@pytest.mark.parametrize("name", ["mixtral", "ernie4.5-moe"])
def test_a_cut_model_can_be_cut_again(name):
    loaded = loaded_of(tiny(name, torch.float64))
    again = loaded_of(cut(loaded, plan_of(loaded, "b1.mlp.e1", "b0.attn.h1")))
    twice = cut(again, plan_of(again, "b0", "b1.mlp.e1"))
    once = cut(loaded, plan_of(loaded, "b0", "b1.mlp.e1", "b1.mlp.e2"))
    torch.testing.assert_close(logits(twice), logits(once), rtol=1e-12, atol=1e-12)
    assert anatomy(twice).num_parameters == anatomy(once).num_parameters


def test_every_second_network_a_mixture_is_still_that_network_when_a_block_goes():
    loaded = loaded_of(variant("qwen3-moe", num_hidden_layers=4, decoder_sparse_step=2).double())
    assert mixed(loaded) == [1, 3]
    plan = plan_of(loaded, "b0")
    model = cut(loaded, plan)
    assert model.config.mlp_only_layers == [1]
    assert distance(logits(model), masked_logits(loaded, plan)) <= 1e-10


@pytest.mark.parametrize("name", ["mixtral", "minimax-m2"])
def test_a_mask_within_another_adds_to_it(name):
    loaded = loaded_of(tiny(name, torch.float64))
    first, second = plan_of(loaded, "b0.mlp.e1", "b1.attn.h0"), plan_of(loaded, "b0.mlp.e3")
    together = masked_logits(loaded, plan_of(loaded, "b0.mlp.e1", "b0.mlp.e3", "b1.attn.h0"))
    assert torch.equal(masked_logits(loaded, first, second), together)
    assert torch.equal(masked_logits(loaded, second, first), together)
    assert not torch.equal(masked_logits(loaded, second), together)


# -------------------------------------------------------------------------------------------- against routers by hand


def softmax_first(scores: Tensor, bias: Tensor | None, normalized: bool) -> tuple[Tensor, Tensor]:
    weights, chosen = scores.softmax(-1).topk(2)
    return weights / weights.sum(-1, keepdim=True) if normalized else weights, chosen


def largest_first(scores: Tensor, bias: Tensor | None, normalized: bool) -> tuple[Tensor, Tensor]:
    values, chosen = scores.topk(2)
    return values.softmax(-1), chosen


def sigmoid_with_bias(scores: Tensor, bias: Tensor | None, normalized: bool) -> tuple[Tensor, Tensor]:
    assert bias is not None
    gone = scores.isinf()
    chosen = (scores.sigmoid() + bias).masked_fill(gone, -torch.inf).topk(2)[1]
    weights = scores.sigmoid().gather(-1, chosen)
    return weights / weights.sum(-1, keepdim=True), chosen


@pytest.mark.parametrize(
    ("name", "router", "rule", "normalized"),
    [
        ("mixtral", "mlp.gate", softmax_first, True),
        ("olmoe", "mlp.gate", softmax_first, False),
        ("granitemoe", "block_sparse_moe.router", largest_first, True),
        ("gpt-oss", "mlp.router", largest_first, True),
        ("glm4-moe", "mlp.gate", sigmoid_with_bias, True),
    ],
)
def test_the_logit_of_an_expert_that_is_gone_is_minus_infinity(name, router, rule, normalized):
    """A hook puts that into the router's own logits and chooses again by the family's rule, written out here."""
    model = tiny(name)
    loaded, block = loaded_of(model), 1
    module = model.get_submodule(f"{loaded.anatomy.blocks[block]}.{router}")
    bias = dict(module.named_buffers()).get("e_score_correction_bias")
    if bias is not None:
        bias.copy_(torch.tensor([0.3, -0.2, 0.1, 0.4]))
    before = logits(model)

    def again(gone: list[int]) -> Tensor:
        def hook(_: nn.Module, args: object, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
            scores = output[0].float().clone()
            scores[:, gone] = -torch.inf
            return (scores, *rule(scores, bias, normalized))

        handle = module.register_forward_hook(hook)
        try:
            return logits(model)
        finally:
            handle.remove()

    torch.testing.assert_close(again([]), before, rtol=1e-5, atol=1e-5)
    expected = again([1, 2])
    found = masked_logits(loaded, plan_of(loaded, "b1.mlp.e1", "b1.mlp.e2"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, before, rtol=1e-2, atol=1e-2)


# ----------------------------------------------------------------------------------------------- matrices of one expert


@pytest.mark.parametrize("name", ["mixtral", "granitemoe", "ernie4.5-moe", "gpt-oss"])
def test_matrices_of_an_expert_are_truncated_alone(name):
    """Against numpy's decomposition of slices of the stored tensors; also beside an expert that goes."""
    loaded, by_hand = loaded_of(tiny(name, torch.float64)), tiny(name, torch.float64)
    path = f"{loaded.anatomy.blocks[1]}.{loaded.anatomy.details.experts.network}.experts"
    fused, down = (by_hand.get_parameter(f"{path}.{kind}") for kind in ("gate_up_proj", "down_proj"))
    d_ff = fused.shape[1] // 2
    gate, up = slice(d_ff), slice(d_ff, None)
    if name == "gpt-oss":  # stored (in, out), gate and up in turn
        fused, down = fused.mT, down.mT
        gate, up = slice(None, None, 2), slice(1, None, 2)
        d_ff = down.shape[2]
    fused[2, gate] = kept(fused[2, gate], slice(3))
    fused[0, up] = kept(fused[0, up], [1, *range(3, min(d_ff, 32))])
    down[0] = kept(down[0], slice(-2, None))
    edits = (
        Truncate(Site.parse("b1.e2.gate"), 3),
        RemoveDirections(Site.parse("b1.e0.up"), (0, 2)),
        Truncate(Site.parse("b1.e0.down"), 2, "tail"),
    )
    plan = Plan("zoo", edits)
    found = masked_logits(loaded, plan)
    assert distance(found, logits(by_hand)) <= 1e-10
    assert distance(found, logits(loaded.model)) > 1e-3
    both = Plan("zoo", (*edits, *drops("b1.mlp.e1")))
    for one in (plan, both):
        model = cut(loaded, one, factorize=True)
        assert distance(logits(model), masked_logits(loaded, one)) <= 1e-10
        stored = sum(parameter.numel() for parameter in model.parameters())
        assert stored == shape_of(one, loaded.anatomy, factorize=True).num_parameters(loaded.anatomy)


def kept(matrix: Tensor, components: slice | list[int]) -> Tensor:
    u, sigma, vh = np.linalg.svd(matrix.numpy(), full_matrices=False)
    return torch.from_numpy((u * sigma)[:, components] @ vh[components])


def test_edits_of_an_expert_that_goes_are_refused():
    for site in ("b1.mlp.e2", "b1"):
        with pytest.raises(
            PlanError, match=rf"b1.e2.gate → rank 3, but {site} goes whole. Keep one of them."
        ):
            Plan("zoo", (Truncate(Site.parse("b1.e2.gate"), 3), *drops(site)))
    loaded = loaded_of(tiny("mixtral"))
    mean = Fitted.of({"mean": np.ones(32)})
    for edit, message in (
        (Truncate(Site.parse("b0.e4.up"), 3), "this model has no matrix b0.e4.up. Did you mean"),
        (Truncate(Site.parse("b0.e1.up"), 33), "b0.e1.up is 40 × 32, its rank is at most 32"),
        (RemoveDirections(Site.parse("b0.e1.up"), (0,), fold=mean), "of an expert is not folded"),
    ):
        with pytest.raises((PlanError, UnknownName), match=message):
            resolve(Plan("zoo", (edit,)), loaded.anatomy, "zoo")


# ------------------------------------------------------------------------------------------------------------ refused


def test_what_cannot_go_is_refused_in_one_line():
    cases = (
        (tiny("mixtral"), ["b0.mlp.e0", "b0.mlp.e1", "b0.mlp.e2"],
         "b0.mlp: 3 of its experts are to go, and at most 2 can: its router needs 2 to choose from. Keep as many."),
        (tiny("mixtral"), ["b0.mlp.e4"], "this model has no b0.mlp.e4: it has 4 experts there, counted from 0."),
        (tiny("llama"), ["b0.mlp.e0"], "this model has no b0.mlp.e0: it has 0 experts there, counted from 0."),
        (tiny("dots1"), ["b0.mlp.e0"], "this model has no b0.mlp.e0: it has 0 experts there, counted from 0."),
        (variant("glm4-moe", n_group=2), ["b1.mlp.e0"],
         "b1.mlp: 1 of its experts are to go, and at most 0 can: its router looks at 2 groups of equally many. "
         "Keep all."),
        (variant("dots1", num_experts_per_tok=1), ["b1.mlp.e0", "b1.mlp.e1", "b1.mlp.e2"],
         "b1.mlp: 3 of its experts are to go, and at most 2 can: its router needs 2 to choose from. Keep as many."),
    )  # fmt: skip
    for model, sites, message in cases:
        loaded = loaded_of(model)
        with pytest.raises((PlanError, UnknownName)) as error:
            resolve(plan_of(loaded, *sites), loaded.anatomy, loaded.fingerprint)
        assert str(error.value) == message


def test_a_portable_plan_drops_equally_many():
    """Two of block 0 and one of block 1 become one of each, of those that were to go; edits within them go along."""
    loaded = loaded_of(tiny("mixtral"))
    edits = drops("b0.mlp.e1", "b0.mlp.e2", "b1.mlp.e3", "b0.attn.g1")
    within = Truncate(Site.parse("b1.e0.up"), 2)
    found = portable_plan(Plan("zoo", (*edits, within)), loaded)
    assert isinstance(stock_config(shape_of(found, loaded.anatomy), loaded.anatomy), dict)
    gone = {str(site) for site in found.dropped}
    assert gone - {"b1.mlp.e3"} in ({"b0.mlp.e1"}, {"b0.mlp.e2"})
    assert found.truncated == (within,)


def test_experts_are_not_zeroed():
    from secateur.checkpoint.save import check_form

    loaded = loaded_of(tiny("mixtral"))
    with pytest.raises(PlanError, match="an expert cannot be zeroed: its router would go on choosing it"):
        check_form(Form(zeroed=True), resolve(plan_of(loaded, "b0.mlp.e1"), loaded.anatomy, "zoo"))
