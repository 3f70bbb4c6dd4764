"""Gradient importance of heads and neurons against finite differences, and against plain autograd one example at a
time, in every family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.zoo import ZOO, by_layout, tiny
from torch import Tensor

from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.evaluation.batching import Packing
from secateur.evaluation.forward import Forward
from secateur.hf.load import Loaded
from secateur.probes.heads import head_importance, neuron_importance, weighted_inputs
from secateur.tasks.encode import Encoded

PACKING = Packing(768, 512, 0)
DOUBLE = {
    "falcon",
    "gpt2",
    "gpt_neox",
    "opt",
    "phi",
}  # the others norm, turn or attend in float32 in any model
SHORT = {0: Encoded((((5, 9, 17, 30), (41, 8)),), 0, (1,))}
MIXED = {  # lengths that differ, a gold answer beside a longer wrong one, one token, a chunk of text
    0: Encoded((((7, 3, 22), (5,)), ((7, 3, 22), (50, 51, 52, 53))), 0, (1, 1)),
    1: Encoded((((7, 3), (60, 61)), ((11, 12, 13, 14, 15, 16), (70, 71, 72))), 1, (1, 1)),
    2: Encoded((((90,), tuple(range(20, 39))),), 0, (1,)),
    3: Encoded((((33,), (44,)),), 0, (1,)),
}


def importance(loaded: Loaded, part: str, encoded=MIXED, packing=PACKING) -> np.ndarray:
    """(blocks, units), in the order of the addresses."""
    probe, unit = (head_importance, "attn.h") if part == "o" else (neuron_importance, "mlp.n")
    packing = replace(packing, switches=loaded.anatomy.switches)
    readings = probe(loaded, encoded, list(encoded), packing=packing)
    units = units_of(loaded, part)
    return np.array(
        [[readings.values[f"b{b}.{unit}{i}"] for i in range(units)] for b in range(loaded.anatomy.num_blocks)]
    )


def units_of(loaded: Loaded, part: str) -> int:
    return loaded.anatomy.num_heads if part == "o" else loaded.anatomy.d_ff


def tolerance(loaded: Loaded, exact: float, rounded: float) -> float:
    return exact if loaded.anatomy.family in DOUBLE else rounded


@contextmanager
def scaled(loaded: Loaded, block: int, head: int, position: int, factor: float) -> Iterator[None]:
    width = loaded.anatomy.d_head
    where = (0, position, slice(head * width, (head + 1) * width))

    def scale(module, args):
        x = args[0].clone()
        x[where] = x[where] * factor
        return (x,)

    path = loaded.anatomy.matrices[Site(block, "o")].module
    handle = loaded.model.get_submodule(path).register_forward_pre_hook(scale)
    yield
    handle.remove()


def answer_loss(loaded: Loaded, encoded: Encoded) -> Tensor:
    context, answer = encoded.pairs[encoded.gold]
    logits = loaded.model(torch.tensor([[*context, *answer[:-1]]])).logits[0, len(context) - 1 :].double()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(answer))


@pytest.mark.parametrize("name", by_layout())
def test_heads_against_finite_differences(name, as_loaded):
    """Scaling a head's output at one position by 1 ± ε changes the loss by ±ε A·dL/dA."""
    loaded = as_loaded(tiny(name, torch.float64))
    step = tolerance(loaded, 1e-4, 3e-2)
    tokens = SHORT[0].longest - 1
    expected = np.zeros((loaded.anatomy.num_blocks, loaded.anatomy.num_heads))
    for block, head in np.ndindex(expected.shape):
        for position in range(tokens):
            losses = []
            for sign in (1, -1):
                with torch.no_grad(), scaled(loaded, block, head, position, 1 + sign * step):
                    losses.append(float(answer_loss(loaded, SHORT[0])))
            expected[block, head] += abs(losses[0] - losses[1]) / (2 * step) / tokens
    error = tolerance(loaded, 1e-6, 5e-3)
    np.testing.assert_allclose(
        importance(loaded, "o", SHORT), expected, rtol=error, atol=error * expected.max()
    )


def plain(loaded: Loaded, part: str, encoded=MIXED) -> np.ndarray:
    """One example at a time, every position, gradients of everything, sums as loops would make them."""
    loaded.model.requires_grad_(True)
    total, tokens = np.zeros((loaded.anatomy.num_blocks, units_of(loaded, part))), 0
    for example in encoded.values():
        seen: dict[int, Tensor] = {}
        handles = []
        for block in range(loaded.anatomy.num_blocks):
            module = loaded.model.get_submodule(loaded.anatomy.matrices[Site(block, part)].module)
            handles.append(module.register_forward_pre_hook(_retain(seen, block)))
        answer_loss(loaded, example).backward()
        for handle in handles:
            handle.remove()
        for block, a in seen.items():
            length = len(example.pairs[example.gold][0]) + len(example.pairs[example.gold][1]) - 1
            for t in range(length):
                x, g = (v.reshape(length, -1)[t].chunk(total.shape[1]) for v in (a.detach(), a.grad))
                total[block] += [abs(float(u @ v)) for u, v in zip(x, g, strict=True)]
        tokens += length
    loaded.model.zero_grad()
    loaded.model.requires_grad_(False)
    return total / tokens


def _retain(seen: dict[int, Tensor], block: int):
    def hook(module, args):
        args[0].retain_grad()
        seen[block] = args[0]

    return hook


@pytest.mark.parametrize("part", ["o", "down"])
@pytest.mark.parametrize("name", sorted(ZOO))
def test_against_plain_autograd_one_example_at_a_time(name, part, as_loaded):
    loaded = as_loaded(tiny(name, torch.float64))
    expected = plain(loaded, part)
    assert (expected > 0).mean() > (0.99 if part == "o" else 0.5)  # a ReLU may leave neurons at zero
    error = tolerance(loaded, 1e-9, 1e-4)
    np.testing.assert_allclose(importance(loaded, part), expected, rtol=error, atol=error * expected.max())


def test_low_precision_is_summed_in_float32(as_loaded):
    exact, low = (as_loaded(tiny("llama", dtype)) for dtype in (torch.float64, torch.bfloat16))
    expected = importance(exact, "o")
    np.testing.assert_allclose(importance(low, "o"), expected, rtol=0.1, atol=0.03 * expected.max())


@pytest.mark.parametrize("part", ["o", "down"])
def test_batches_do_not_matter(part, as_loaded):
    loaded = as_loaded(tiny("falcon-40b", torch.float64))
    joined = importance(loaded, part)
    apart = importance(loaded, part, packing=Packing(1, 1, 0))
    np.testing.assert_allclose(apart, joined, rtol=1e-9)


def test_when_memory_runs_out_batches_halve_and_nothing_changes(as_loaded, monkeypatch):
    loaded = as_loaded(tiny("llama", torch.float64))
    expected = importance(loaded, "o", packing=Packing(256, 256, 0))
    own, tried = Forward.logits, []

    def scarce(self, batch, **options):
        tried.append(batch.num_tokens)
        if batch.num_tokens > 30:
            raise torch.OutOfMemoryError("30 tokens at most")
        return own(self, batch, **options)

    monkeypatch.setattr(Forward, "logits", scarce)
    np.testing.assert_allclose(
        importance(loaded, "o", packing=Packing(256, 256, 0)), expected, rtol=1e-9, atol=0
    )
    assert max(tried) > 30


def test_a_planted_useless_head_and_neuron_come_out_at_zero(as_loaded):
    model = tiny("llama", torch.float64)
    model.model.layers[1].self_attn.o_proj.weight[:, 8:16] = 0
    model.model.layers[0].mlp.down_proj.weight[:, 17] = 0
    loaded = as_loaded(model)
    heads = head_importance(loaded, MIXED, list(MIXED), packing=PACKING)
    neurons = neuron_importance(loaded, MIXED, list(MIXED), packing=PACKING)
    assert heads.ranked()[0] == ("b1.attn.h1", 0.0)
    assert neurons.ranked()[0] == ("b0.mlp.n17", 0.0)
    assert heads.ranked()[1][1] > 0
    assert neurons.ranked()[1][1] > 0


HIDDEN = {  # what a network of a block gives to its down projection, and that matrix, one row for each neuron
    "llama": lambda block, x: (
        block.mlp.act_fn(block.mlp.gate_proj(x)) * block.mlp.up_proj(x),
        block.mlp.down_proj.weight.T,
    ),
    "gpt2": lambda block, x: (block.mlp.act(block.mlp.c_fc(x)), block.mlp.c_proj.weight),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_weights_times_inputs_are_those_of_each_token_alone(name, as_loaded):
    """Summed token by token over examples that are run one by one, without padding."""
    loaded = as_loaded(tiny(name, torch.float64))
    blocks = [loaded.model.get_submodule(path) for path in loaded.anatomy.blocks]
    squares = [torch.zeros(loaded.anatomy.d_ff, dtype=torch.float64) for _ in blocks]
    entered = {}
    for number, block in enumerate(blocks):
        block.mlp.register_forward_pre_hook(lambda _, args, at=number: entered.__setitem__(at, args[0][0]))
    for example in MIXED.values():
        [(prompt, answer)] = example.gold_alone.pairs
        loaded.model(torch.tensor([[*prompt, *answer[:-1]]]))
        for number, block in enumerate(blocks):
            for x in entered[number]:
                squares[number] += HIDDEN[name](block, x)[0] ** 2
    found = weighted_inputs(loaded, MIXED, list(MIXED), range(len(blocks)), packing=PACKING)
    for number, block in enumerate(blocks):
        weights = HIDDEN[name](block, x)[1]
        expected = [float(squares[number][n].sqrt() * weights[n].abs().sum()) for n in range(len(weights))]
        assert found[number] == pytest.approx(expected, rel=1e-9)


def test_the_model_is_left_as_it_was(as_loaded):
    loaded = as_loaded(tiny("gpt2"))
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    first, second = (importance(loaded, "o") for _ in range(2))
    assert np.array_equal(first, second)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert not parameter.requires_grad
    for module in loaded.model.modules():
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__


def test_a_projection_that_does_not_run_as_a_module_is_refused(as_loaded):
    """BLOOM trained in slices can use its output projection's weight behind the module's back."""
    model = tiny("bloom")
    for block in model.transformer.h:
        block.self_attention.pretraining_tp, block.self_attention.slow_but_exact = 2, True
    with pytest.raises(ModelError, match=r"transformer\.h\.0\.self_attention\.dense never ran"):
        head_importance(as_loaded(model), MIXED, list(MIXED), packing=PACKING)
