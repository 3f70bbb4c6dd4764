"""--bf16 in all three trainings: it computes in bfloat16, near float32; weights stay float32; resumed to the bit."""

from __future__ import annotations

import math

import pytest
import test_heal
import test_train
import torch
from fixtures.zoo import tiny
from safetensors.torch import load_file
from test_finetune import FAST, learn, same_weights, stop_at

from secateur.training.options import Tuning

MIXED = Tuning(**{**vars(FAST), "bf16": True})
NEAR = 0.02  # relative, of losses: bfloat16 has 8 bits, 0.4 % a number, and errors of many average out
healing_place, training_place = test_heal.place, test_train.place  # fixtures


def changed(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_near(mixed, plain):
    assert mixed != plain, "nothing was computed in bfloat16"
    for ours, theirs in zip(mixed, plain, strict=True):
        assert math.isfinite(ours)
        assert ours == pytest.approx(theirs, rel=NEAR)


@pytest.mark.parametrize("name", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_fine_tuned_losses_are_near_and_it_is_resumed_to_the_bit(name, tmp_path):
    """GPT-2 with dropout."""
    plain, mixed, again = (tiny(name) for _ in range(3))
    losses = []
    for model, tuning, folder in ((plain, FAST, "plain"), (mixed, MIXED, "mixed")):
        found = learn(model, tmp_path / folder, tuning)
        losses.append([row.select_loss for row in found.history])
    assert_near(*reversed(losses))
    assert {p.dtype for p in mixed.parameters()} == {torch.float32}
    with pytest.raises(KeyboardInterrupt):
        learn(tiny(name), tmp_path / "stopped", MIXED, progress=stop_at(4))
    assert learn(again, tmp_path / "stopped", MIXED) == found
    assert same_weights(again, mixed)


@pytest.mark.slow
def test_healed_losses_are_near_and_it_is_resumed_to_the_bit(healing_place, tmp_path):
    place, losses = healing_place, {}
    how = {"stage": "end", "lr": 1e-3}
    for out, bf16 in (("plain", False), ("mixed", True)):
        record = test_heal.heal(place, "linear", tmp_path / out, bf16=bf16, **how).record
        losses[out] = [row["select_loss"] for stage in record["stages"] for row in stage["epochs"]]
    assert_near(losses["mixed"], losses["plain"])
    mixed = weights(tmp_path / "mixed")
    assert {tensor.dtype for tensor in mixed.values()} == {torch.float32}
    assert changed(mixed, weights(tmp_path / "plain")), "healed in float32"
    stop = test_heal.stop_at(1, 3)
    with pytest.raises(KeyboardInterrupt):
        test_heal.heal(place, "linear", tmp_path / "out", bf16=True, progress=stop, **how)
    test_heal.heal(place, "linear", tmp_path / "out", bf16=True, **how)
    assert not changed(mixed, weights(tmp_path / "out"))


def test_losses_of_a_training_from_nothing_are_near_and_it_is_resumed_to_the_bit(training_place, tmp_path):
    place, losses = training_place, {}
    how = {"steps": 12, "save_steps": (), "regulariser": "cosine"}
    for out, bf16 in (("plain", False), ("mixed", True)):
        record = test_train.train(place, tmp_path / out, bf16=bf16, **how).record
        losses[out] = [row["held_out_loss"] for row in record["losses"]]
    assert_near(losses["mixed"], losses["plain"])
    assert losses["mixed"][-1] < losses["mixed"][0]
    mixed = weights(tmp_path / "mixed")
    assert {tensor.dtype for tensor in mixed.values()} == {torch.float32}
    with pytest.raises(KeyboardInterrupt):
        test_train.train(place, tmp_path / "out", bf16=True, progress=test_train.stop_at(7), **how)
    test_train.train(place, tmp_path / "out", bf16=True, **how)
    assert not changed(mixed, weights(tmp_path / "out"))
