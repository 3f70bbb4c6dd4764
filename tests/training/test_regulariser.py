"""The regulariser: values and gradients against a loop over tokens; padding, checkpointing, compiling, the Trainer."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from fixtures.zoo import by_layout, tiny
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from transformers import TrainingArguments

import secateur
from secateur.errors import ModelError, TrainingError, UnknownName
from secateur.training.objectives import LinearityRegulariser, RegularisedTrainer

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")


def trainable(name, dtype=torch.float64):
    """Of the zoo, in training mode; without dropout, so that two passes are one."""
    model = tiny(name, dtype).train().requires_grad_(True)
    for module in model.modules():
        for rate in ("p", "dropout", "hidden_dropout", "attention_dropout"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model


def tokens(rows=3, length=7, seed=0):
    return torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(seed))


def states(model, ids, mask=None):
    """h₀ … h_L from the list that transformers gathers, its last one (after the final norm) by a hook of the test."""
    last = []
    blocks = next(m for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList))
    handle = blocks[-1].register_forward_hook(
        lambda m, a, o: last.append(o[0] if isinstance(o, tuple) else o)
    )
    found = model(
        input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
    ).hidden_states
    handle.remove()
    assert len(found) == len(blocks) + 1
    return [*found[:-1], last[0]]


def by_hand(streams, real, kind):
    """One token and one pair of neighbors at a time."""
    total = 0.0
    spots = [(r, t) for r in range(real.shape[0]) for t in range(real.shape[1]) if real[r, t]]
    for before, after in pairwise(streams):
        for r, t in spots:
            a, b = before[r, t], after[r, t]
            cosine = sum(a * b) / (sum(a * a).sqrt() * sum(b * b).sqrt())
            total = total + (1 - cosine if kind == "cosine" else sum((b - a) * (b - a))) / len(spots)
    return total


def gradients(model, loss):
    return dict(
        zip(
            (n for n, _ in model.named_parameters()),
            torch.autograd.grad(loss, list(model.parameters()), allow_unused=True),
            strict=True,
        )
    )


def assert_equal_gradients(one, other, **tolerance):
    assert one.keys() == other.keys()
    assert any(g is not None and g.abs().max() > 1e-4 for g in one.values()), "gradients of nothing"
    for name, gradient in one.items():
        theirs = other[name]
        if gradient is None or theirs is None:
            assert gradient is theirs, name
        else:
            torch.testing.assert_close(gradient, theirs, msg=lambda said, n=name: f"{n}: {said}", **tolerance)


# ------------------------------------------------------------------------------------------------ values and gradients


@pytest.mark.parametrize("kind", ["cosine", "mse"])
@pytest.mark.parametrize("name", by_layout(first=("llama", "gpt2")))
def test_value_and_gradients_are_those_of_a_loop_over_tokens(name, kind):
    """In every family, with two rows padded on the right. A final norm, or OPT-350M's projection, has no part in it."""
    model, ids = trainable(name), tokens()
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0]])
    regulariser = LinearityRegulariser(model, weight=0.7, kind=kind)
    model(input_ids=ids, attention_mask=mask)
    found = regulariser.loss()
    regulariser.remove()
    expected = 0.7 * by_hand(states(model, ids, mask), mask, kind)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert found > 0.01
    assert_equal_gradients(gradients(model, found), gradients(model, expected), rtol=1e-7, atol=1e-10)


def test_padding_says_nothing_on_either_side_and_a_mask_can_be_given():
    model, ids = trainable("llama"), tokens(1, 5)
    regulariser = LinearityRegulariser(model)
    model(input_ids=ids)
    alone = regulariser.loss()
    for left in (False, True):
        pads, ones = torch.zeros((1, 3), dtype=torch.long), torch.ones((1, 5), dtype=torch.long)
        joined = [pads, ids] if left else [ids, pads]
        mask = torch.cat([pads, ones] if left else [ones, pads], 1)
        model(input_ids=torch.cat(joined, 1), attention_mask=mask)
        torch.testing.assert_close(regulariser.loss(), alone, rtol=1e-6, atol=0)
    model(input_ids=torch.cat([ids, pads], 1))
    assert not torch.isclose(regulariser.loss(), alone)
    model(input_ids=torch.cat([ids, pads], 1))
    torch.testing.assert_close(regulariser.loss(torch.arange(8)[None] < 5), alone, rtol=1e-6, atol=0)


def test_weight_scales_and_zero_is_nothing():
    model, ids = trainable("mistral"), tokens()
    found = []
    for weight in (0.0, 0.5, 2.0):
        regulariser = LinearityRegulariser(model, weight=weight)
        model(input_ids=ids)
        found.append(float(regulariser.loss().detach()))
        regulariser.remove()
    assert found[0] == 0
    assert found[2] == pytest.approx(4 * found[1])


def test_in_evaluation_it_is_zero_and_hears_nothing():
    model, ids = trainable("llama"), tokens()
    regulariser = LinearityRegulariser(model.eval())
    model(input_ids=ids)
    assert float(regulariser.loss()) == 0
    assert regulariser._stream == [None] * 3


def test_loss_is_for_one_forward_pass():
    model, ids = trainable("llama"), tokens()
    regulariser = LinearityRegulariser(model)
    with pytest.raises(TrainingError, match="saw 0 of 3"):
        regulariser.loss()
    model(input_ids=ids)
    first = regulariser.loss()
    with pytest.raises(TrainingError, match="once after each"):
        regulariser.loss()
    model(input_ids=tokens(seed=1))
    model(input_ids=ids)
    assert torch.equal(regulariser.loss(), first), "not of the last pass"


def test_refusals():
    model = trainable("llama")
    with pytest.raises(UnknownName, match="mean cosine"):
        LinearityRegulariser(model, kind="cosin")
    for weight in (-1, math.nan, math.inf):
        with pytest.raises(TrainingError, match="0 or more"):
            LinearityRegulariser(model, weight=weight)
    with pytest.raises(ModelError):
        LinearityRegulariser(torch.nn.Linear(3, 3))


def test_removed_it_leaves_nothing_behind():
    model = trainable("llama")
    regulariser = LinearityRegulariser(model)
    count = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    regulariser.remove()
    assert count == 5
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---------------------------------------------------------------------------------------------------- ways of training


def whole_loss(model, regulariser, ids):
    loss = model(input_ids=ids, labels=ids).loss
    return loss + regulariser.loss()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_gradient_checkpointing_changes_no_gradient(name, reentrant):
    """The backward pass runs every block again, and hooks with it in some versions of transformers."""
    model, ids = trainable(name), tokens()
    regulariser = LinearityRegulariser(model)
    expected = gradients(model, whole_loss(model, regulariser, ids))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:  # which knows backward() only
        whole_loss(model, regulariser, ids).backward()
        found = {n: p.grad for n, p in model.named_parameters()}
    else:
        found = gradients(model, whole_loss(model, regulariser, ids))
    assert_equal_gradients(found, expected, rtol=1e-9, atol=1e-12)
    assert regulariser._stream == [None] * len(regulariser._stream), "the second run of blocks was heard"


def test_hooks_that_fire_again_in_the_backward_pass_are_not_heard():
    """As in transformers that checkpoint a block's whole call: here by torch itself, around each block."""
    model, ids = trainable("llama"), tokens()
    regulariser = LinearityRegulariser(model)
    expected = gradients(model, whole_loss(model, regulariser, ids))
    fired = []
    for number, block in enumerate(list(model.model.layers)):
        block.register_forward_hook(lambda m, a, o, n=number: fired.append(n))
        model.model.layers[number] = Around(block)
    with set_checkpoint_early_stop(False):
        found = gradients(model, whole_loss(model, regulariser, ids))
    assert sorted(fired) == [0, 0, 1, 1], "the blocks did not run twice: this test shows nothing"
    found = {name.replace(".inner.", "."): gradient for name, gradient in found.items()}
    assert_equal_gradients(found, expected, rtol=1e-9, atol=1e-12)
    assert regulariser._stream == [None] * 3


class Around(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return checkpoint(self.inner, *args, use_reentrant=False, **kwargs)


COMPILED = """
import torch
from test_regulariser import assert_equal_gradients, gradients, tokens, trainable, whole_loss
from secateur.training.objectives import LinearityRegulariser

for checkpointing in (False, True):
    for in_place in (False, True):
        torch._dynamo.reset()
        model = trainable("mistral", torch.float32)
        regulariser = LinearityRegulariser(model)
        expected = [gradients(model, whole_loss(model, regulariser, tokens(seed=s))) for s in range(3)]
        if checkpointing:
            model.gradient_checkpointing_enable()
        if in_place:
            model.compile(backend="aot_eager")
        compiled = model if in_place else torch.compile(model, backend="aot_eager")
        for seed in range(3):
            found = gradients(model, whole_loss(compiled, regulariser, tokens(seed=seed)))
            assert_equal_gradients(found, expected[seed], rtol=1e-4, atol=1e-6)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
        print(checkpointing, in_place, dict(torch._dynamo.utils.counters["graph_break"]), flush=True)
"""


@pytest.mark.slow
def test_compiled_it_has_the_same_gradients():
    """In a process of its own, as torch's compiler keeps state and warns."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(COMPILED)],
        capture_output=True, text=True, cwd=here, timeout=280,
        env=os.environ | {"PYTHONPATH": str(here.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0] == "False False {}", "a graph break where there is no checkpointing"


def test_under_bf16_autocast_the_term_is_computed_in_float32():
    model, ids = trainable("llama", torch.float32), tokens()
    regulariser = LinearityRegulariser(model)
    model(input_ids=ids)
    exact = regulariser.loss()
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids)
        found = regulariser.loss()
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids)
    assert torch.equal(found, regulariser.loss()), "autocast reaches into the term"
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(exact.detach()), rel=0.02)
    narrow = trainable("llama", torch.bfloat16)
    regulariser = LinearityRegulariser(narrow)
    narrow(input_ids=ids)
    loss = regulariser.loss()
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.05)
    assert all(p.grad.isfinite().all() for p in narrow.parameters() if p.grad is not None)


def test_descending_on_it_alone_lowers_it():
    model, ids = trainable("llama", torch.float32), tokens(8, 16)
    regulariser, losses = LinearityRegulariser(model), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(10):
        model(input_ids=ids)
        loss = regulariser.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] * 0.9


# ---------------------------------------------------------------------------------------------------------- the Trainer


def trained(model, tmp_path, rows, **arguments):
    """One step of plain SGD by the Trainer: the change of the weights is the gradient, times −1."""
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0.0,
        optim="sgd", use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, logging_strategy="no",
        dataloader_pin_memory=False, **arguments,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row.clone(), "attention_mask": torch.ones_like(row)} for row in rows]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    regulariser = LinearityRegulariser(model)
    RegularisedTrainer(model=model, args=args, train_dataset=data, regulariser=regulariser).train()
    regulariser.remove()
    return {n: before[n] - p.detach() for n, p in model.named_parameters()}


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("batches", [1, 2, 4])
def test_the_trainer_takes_the_step_of_the_whole_batch(tmp_path, batches, counts, monkeypatch):
    """Accumulated over batches or not, and whether the model counts its own tokens or leaves that to the Trainer."""
    rows, expected = tokens(8, 9), trainable("llama")
    monkeypatch.setattr(type(expected), "accepts_loss_kwargs", counts, raising=False)
    regulariser = LinearityRegulariser(expected)
    wanted = gradients(expected, whole_loss(expected, regulariser, rows))
    found = trained(
        trainable("llama"), tmp_path, rows,
        per_device_train_batch_size=8 // batches, gradient_accumulation_steps=batches,
    )  # fmt: skip
    assert_equal_gradients(found, wanted, rtol=1e-7, atol=1e-9)


def test_the_trainers_evaluation_is_without_it(tmp_path):
    model, rows = trainable("llama"), tokens(8, 9)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data = [{"input_ids": row, "labels": row.clone()} for row in rows]
    trainer = RegularisedTrainer(
        model=model, args=args, eval_dataset=data, regulariser=LinearityRegulariser(model, weight=9.0)
    )
    with torch.no_grad():
        expected = float(model(input_ids=rows, labels=rows).loss)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_the_front_door_has_it():
    assert secateur.LinearityRegulariser is LinearityRegulariser
    assert secateur.RegularisedTrainer is RegularisedTrainer
