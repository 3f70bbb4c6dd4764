"""Ablation against copies of the model with the weights really zeroed, in every family and for every kind of part."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fixtures.zoo import by_layout, tiny
from transformers import PreTrainedModel

from secateur.core.plan import Drop, Plan
from secateur.core.score import METRICS
from secateur.core.site import Site
from secateur.errors import PlanError, UnknownName
from secateur.evaluation.evaluator import Evaluator, Limits
from secateur.evaluation.forward import Forward
from secateur.evaluation.generate import greedy
from secateur.hf.load import Loaded
from secateur.probes.ablation import ablation_importance
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Example, Task

CHOICES = {
    i: Encoded(
        ((tuple(range(3 + i, 12 + i)), (7, 5)), (tuple(range(3 + i, 9 + i)), (11 + i,))), i % 2, (1, 1)
    )
    for i in range(5)
}
TEXTS = {i: Encoded((((4 + i,), tuple(range(9 * i, 9 * i + 5 + 7 * i))),), 0, (1,)) for i in range(3)}


def plan_without(loaded: Loaded, site: Site | None) -> Plan:
    whole = Plan(loaded.fingerprint)
    return whole if site is None else whole + Drop(site)


def without(loaded: Loaded, site: Site):
    operations = resolve(plan_without(loaded, site), loaded.anatomy, loaded.fingerprint)
    return masked(loaded.model, operations)


def ablated_outcomes(judge: Evaluator, sites, examples) -> dict[Site | None, np.ndarray]:
    plans = {site: plan_without(judge.loaded, site) for site in (None, *sites)}
    found = judge(plans.values(), examples)
    return {site: found[plan] for site, plan in plans.items()}


def judge_of(loaded: Loaded, kind: str = "choice", encoded=CHOICES, **options) -> Evaluator:
    examples = tuple(Example(f"e{i}", "", "") for i in range(1 + max(encoded)))
    task = Task("rows", kind, examples, {"probe": (), "select": tuple(encoded), "test": ()})
    return Evaluator(loaded, task, encoded, **options)


def sites_of(loaded: Loaded) -> list[Site]:
    """One of each kind in each block."""
    kinds = [
        ("",),
        ("attn",),
        ("mlp",),
        ("attn", "h", 1),
        ("attn", "h", 3),
        ("attn", "g", 0),
        ("mlp", "n", 5),
    ]
    return [Site(block, *kind) for block in range(loaded.anatomy.num_blocks) for kind in kinds]


def really_without(loaded: Loaded, site: Site) -> PreTrainedModel:
    """A copy with zeros written. Where a block has norms after its parts, a block is taken out instead."""
    model = copy.deepcopy(loaded.model)
    if loaded.anatomy.final_norm is None and not site.part:
        model.model.decoder.layers[site.block].forward = lambda hidden_states, *args, **kwargs: hidden_states
        return model
    parts = {"": ("o", "down"), "attn": ("o",), "mlp": ("down",)}[site.part]
    for part in parts:
        matrix = loaded.anatomy.matrices[Site(site.block, part)]
        module = model.get_submodule(matrix.module)
        weight = module.weight.data.T if matrix.transposed else module.weight.data  # (out, in)
        if not site.unit:
            weight.zero_()
            if module.bias is not None:
                module.bias.data.zero_()
            continue
        d_head, queries = loaded.anatomy.d_head, loaded.anatomy.num_heads // loaded.anatomy.num_kv_heads
        width = {"h": d_head, "g": d_head * queries, "n": 1}[site.unit]
        weight[:, site.index * width : (site.index + 1) * width] = 0
    return model


def judged(loaded: Loaded, model: PreTrainedModel, kind: str = "choice", encoded=CHOICES) -> np.ndarray:
    other = Loaded("copy", model, loaded.tokenizer, loaded.anatomy, "copy", None, None)
    plan = Plan("copy")
    return judge_of(other, kind, encoded)([plan], list(encoded))[plan]


def assert_same(found: np.ndarray, expected: np.ndarray, rtol: float) -> None:
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=rtol, atol=0)
    for column in ("example", "correct", "correct_norm", "rank", "predicted", "tokens"):
        np.testing.assert_array_equal(found[column], expected[column])


@pytest.mark.parametrize("name", by_layout())
def test_every_part_against_a_copy_with_zeroed_weights(name, as_loaded):
    loaded = as_loaded(tiny(name, torch.float64))
    found = ablated_outcomes(judge_of(loaded), sites_of(loaded), list(CHOICES))
    assert set(found) == {None, *sites_of(loaded)}
    eager = loaded.model.config._attn_implementation == "eager"
    for site, rows in found.items():
        model = loaded.model if site is None else really_without(loaded, site)
        assert_same(rows, judged(loaded, model), 1e-6 if eager else 1e-9)
    losses = [rows["loss"].mean() for site, rows in found.items() if site is None or site.unit != "g"]
    assert len(set(losses)) == len(
        losses
    )  # each part does something else; one group may be all of an attention


@pytest.mark.parametrize("name", ["gpt2", "opt-projected", "bloom", "falcon-7b"])
def test_on_text(name, as_loaded):
    loaded = as_loaded(tiny(name, torch.float64))
    sites = [Site(1, "mlp"), Site(0, "attn"), Site(1)]
    found = ablated_outcomes(judge_of(loaded, "text", TEXTS), sites, list(TEXTS))
    readings = ablation_importance(judge_of(loaded, "text", TEXTS), sites, list(TEXTS), split="select")
    assert list(readings) == ["text_loss"]
    dense = METRICS["text_loss"].mean(judged(loaded, loaded.model, "text", TEXTS))
    for site in sites:
        expected = judged(loaded, really_without(loaded, site), "text", TEXTS)
        assert_same(found[site], expected, 1e-6)
        gain = METRICS["text_loss"].mean(expected) - dense
        assert readings["text_loss"].values[str(site)] == pytest.approx(gain, rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "opt-projected", "falcon-7b", "gemma3"])
@pytest.mark.parametrize("site", ["b0", "b0.attn", "b0.mlp", "b1.attn.h2", "b1"])
def test_cached_generation_goes_on_without_the_part(name, site, as_loaded):
    """A part of block 0 that is away must not stop the cache from counting, with padding on the left."""
    loaded = as_loaded(tiny(name))
    prompts = [(5, 6, 7, 8, 9), (11, 12), (20, 21, 22, 23, 24, 25, 26)]
    with without(loaded, Site.parse(site)):
        found = greedy(loaded, prompts, 6, 256)
        uncached = [alone(loaded.model, prompt, 6) for prompt in prompts]
    assert found == uncached
    assert greedy(loaded, prompts, 6, 256) == [alone(loaded.model, prompt, 6) for prompt in prompts]


def alone(model: PreTrainedModel, prompt: tuple[int, ...], count: int) -> list[int]:
    """Greedy tokens without cache, batch or padding, up to the end of sequence (2)."""
    tokens: list[int] = []
    for _ in range(count):
        logits = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0, -1]
        if int(logits.argmax()) == 2:
            break
        tokens.append(int(logits.argmax()))
    return tokens


def test_generation_accuracy_is_of_the_ablated_model(as_loaded):
    """The answer is what the ablated model says: right without the part, wrong with it."""
    loaded = as_loaded(tiny("llama"))
    context, site = (5, 6, 7, 8), Site(0, "mlp")
    with without(loaded, site):
        said = alone(loaded.model, context, 4)
    assert said != alone(loaded.model, context, 4)
    example = Example("e", "", " ".join(f"w{token}" for token in said))
    task = Task("say", "generation", (example,), {"probe": (), "select": (0,), "test": ()}, max_new_tokens=4)
    judge = Evaluator(loaded, task, {0: Encoded(((context, tuple(said)),), 0, (1,))})
    found = ablated_outcomes(judge, [site], [0])
    assert found[None]["correct"] == [0]
    assert found[site]["correct"] == [1]
    assert ablation_importance(judge, [site], [0], split="select")["accuracy"].values == {"b0.mlp": -1.0}


def test_a_planted_dead_part_is_worth_nothing_and_the_directions_agree(as_loaded):
    model = tiny("llama", torch.float64)
    model.model.layers[1].mlp.down_proj.weight.zero_()
    loaded = as_loaded(model)
    sites = [Site(block, part) for block in range(2) for part in ("attn", "mlp")]
    found = ablation_importance(judge_of(loaded), sites, list(CHOICES), split="probe")
    assert set(found) == {"accuracy", "loss"}
    outcomes = ablated_outcomes(judge_of(loaded), sites, list(CHOICES))
    for name, readings in found.items():
        assert (readings.low_is_removable, readings.split, readings.n) == (True, "probe", 5)
        for site in sites:
            expected = METRICS[name].gain(outcomes[None], outcomes[site]).mean()
            assert readings.values[str(site)] == pytest.approx(expected, abs=1e-12)
    assert found["loss"].values["b1.mlp"] == 0
    assert len({v for v in found["loss"].values.values() if v}) == 3


def test_batches_order_and_memory_do_not_matter(as_loaded, monkeypatch):
    loaded = as_loaded(tiny("phi", torch.float64))
    sites = sites_of(loaded)
    expected = ablated_outcomes(judge_of(loaded), sites, list(CHOICES))
    small = judge_of(loaded, limits=Limits(max_tokens=16))
    backwards = ablated_outcomes(small, sites[::-1], [3, 0, 4, 1, 2])
    own = Forward.logits

    def scarce(self, batch, **options):
        if batch.num_tokens > 40:
            raise torch.OutOfMemoryError("40 tokens at most")
        return own(self, batch, **options)

    monkeypatch.setattr(Forward, "logits", scarce)
    halved = ablated_outcomes(judge_of(loaded), sites, list(CHOICES))
    for site, rows in expected.items():
        assert_same(backwards[site], rows[[3, 0, 4, 1, 2]], 1e-9)
        assert_same(halved[site], rows, 1e-9)


def test_the_model_is_left_as_it_was(as_loaded):
    loaded = as_loaded(tiny("mistral"))
    judge = judge_of(loaded)
    before = judge([Plan(loaded.fingerprint)], list(CHOICES))
    ablated_outcomes(judge, sites_of(loaded), list(CHOICES))
    for module in loaded.model.modules():
        assert "forward" not in module.__dict__
    after = judge_of(loaded)([Plan(loaded.fingerprint)], list(CHOICES))
    for plan, rows in before.items():
        assert np.array_equal(rows, after[plan])


@pytest.mark.parametrize("site", ["b2", "b2.mlp", "b0.attn.h4", "b1.attn.g2", "b0.mlp.n40"])
def test_what_is_not_there_is_refused(site, as_loaded):
    with pytest.raises(UnknownName, match=site.replace(".", r"\.")):
        ablation_importance(judge_of(as_loaded(tiny("llama"))), [Site.parse(site)], [0], split="select")


def test_a_matrix_is_no_part():
    with pytest.raises(PlanError, match="truncated"):
        Drop(Site.parse("b0.down"))
