"""What is kept inside the lowest edited block changes no score, in any family, and is what one would name by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from fixtures.zoo import FEWEST, by_layout, tiny

from secateur.core.plan import Drop, Plan, Truncate
from secateur.core.site import Site
from secateur.evaluation.activation_cache import NOTHING, find_unchanged
from secateur.evaluation.evaluator import Evaluator, Limits
from secateur.evaluation.forward import Forward
from secateur.hf.anatomy import anatomy
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import Loaded
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Task

ROWS = {
    i: Encoded(((tuple(range(3 + i, 12 + i)), (7, 5)), (tuple(range(3 + i, 9 + i)), (11,))), 0, (1, 1))
    for i in range(5)
}
TASK = Task("rows", "choice", (), {"probe": (), "select": tuple(ROWS), "test": ()})


def loaded_of(name: str, dtype: torch.dtype = torch.float64) -> Loaded:
    model = tiny(name, dtype)
    return Loaded(name, model, None, anatomy(model), fingerprint(model), None, None)


def plans_of(loaded: Loaded) -> list[Plan]:
    """Two ranks of every matrix, alone, with its neighbor, and with a matrix of the last block."""
    empty, sites = Plan(loaded.fingerprint), sorted(loaded.anatomy.matrices)
    groups = (
        {(site,) for site in sites} | set(itertools.pairwise(sites)) | {(s, sites[-1]) for s in sites[:-1]}
    )
    return [
        Plan(empty.model, tuple(Truncate(s, rank) for s in group))
        for group in sorted(groups)
        for rank in (1, 3)
    ]


@pytest.mark.parametrize("name", by_layout(first=FEWEST))
def test_reuse_inside_a_block_changes_no_score(name):
    loaded = loaded_of(name)
    plans = plans_of(loaded)
    together = Evaluator(loaded, TASK, ROWS)(plans, list(ROWS))
    without = Evaluator(loaded, TASK, ROWS, limits=Limits(cache_bytes=0))
    for plan in plans:
        alone = without([plan], list(ROWS))[plan]  # a plan judged by itself finds nothing kept
        # GPT-J turns queries and keys in float32, whatever the model's dtype
        np.testing.assert_allclose(together[plan]["loss"], alone["loss"], rtol=1e-7, atol=0)
        assert np.array_equal(together[plan]["rank"], alone["rank"])


@pytest.mark.parametrize("name", ["mixtral", "minimax-m2"])
def test_reuse_beside_a_network_that_loses_experts_changes_no_score(name):
    loaded = loaded_of(name)
    experts = [Drop(Site(block, "mlp", "e", number)) for block, number in ((0, 1), (0, 2), (1, 0))]
    edits = [(one,) for one in experts]
    edits += [(experts[0], Truncate(Site(0, "o"), rank)) for rank in (1, 3)]
    edits += [(Truncate(Site(0, "down", "e", 3), rank), experts[2]) for rank in (1, 3)]
    plans = [Plan(loaded.fingerprint, some) for some in edits]
    together = Evaluator(loaded, TASK, ROWS)(plans, list(ROWS))
    without = Evaluator(loaded, TASK, ROWS, limits=Limits(cache_bytes=0))
    for plan in plans:
        alone = without([plan], list(ROWS))[plan]
        np.testing.assert_allclose(together[plan]["loss"], alone["loss"], rtol=1e-7, atol=0)
    assert len({together[plan]["loss"].sum() for plan in plans}) == len(plans)


def test_beyond_the_bound_nothing_is_kept_and_no_score_changes():
    loaded = loaded_of("llama")
    plans = plans_of(loaded)
    enough, little = (
        Evaluator(loaded, TASK, ROWS, limits=Limits(max_tokens=24, cache_bytes=size))
        for size in (2**30, 5000)
    )
    expected, found = enough(plans, list(ROWS)), little(plans, list(ROWS))
    for plan in plans:
        np.testing.assert_allclose(found[plan]["loss"], expected[plan]["loss"], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "part", "live", "dead"),
    [
        ("llama", "q", {"self_attn.k_proj", "self_attn.v_proj"}, {"input_layernorm"}),
        (
            "llama",
            "up",
            {"self_attn", "mlp.act_fn"},
            {"mlp.gate_proj", "input_layernorm", "post_attention_layernorm"},
        ),
        ("phi", "o", {"mlp"}, {f"self_attn.{x}_proj" for x in "qkv"} | {"input_layernorm"}),
        ("gpt2", "down", {"attn"}, {"ln_1", "ln_2", "mlp.c_fc", "mlp.act"}),
        ("bloom", "k", set(), {"input_layernorm"}),  # one fused module
    ],
)
def test_what_is_unchanged_is_what_one_would_name(name, part, live, dead):
    loaded = loaded_of(name)
    block = loaded.anatomy.blocks[1]
    module = loaded.anatomy.matrix(Site(1, part)).module
    found = find_unchanged(Forward(loaded.model, loaded.anatomy), loaded.model, block, (module,))
    assert found.given == (module,)
    assert {path.removeprefix(block + ".") for path in found.live} == live
    assert {path.removeprefix(block + ".") for path in found.dead} == dead


def test_an_edited_module_behind_another_is_not_given_its_old_input():
    loaded = loaded_of("llama")
    q, down = (loaded.anatomy.matrix(Site(0, part)).module for part in ("q", "down"))
    forward = Forward(loaded.model, loaded.anatomy)
    found = find_unchanged(forward, loaded.model, loaded.anatomy.blocks[0], (q, down))
    assert found.given == (q,)


def test_a_module_that_is_never_called_allows_no_reuse():
    """Its weight would be used behind our back, as BLOOM does with `slow_but_exact`."""
    loaded = loaded_of("llama")
    loaded.model.model.layers[0].unused = torch.nn.Linear(2, 2)
    forward = Forward(loaded.model, loaded.anatomy)
    found = find_unchanged(forward, loaded.model, "model.layers.0", ("model.layers.0.unused",))
    assert found == NOTHING
