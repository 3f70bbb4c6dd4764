"""Adapters: merged against formulas, what is left alone, stopped and resumed, cut models, refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import signal

import pytest
import torch
from fixtures.folders import questions, save_model, secateur, write_rows
from fixtures.zoo import tiny
from safetensors.torch import load_file
from test_finetune import drawn, same_weights, silent, stop_at
from test_heal import heal
from test_heal import place as made_place

import secateur as package
from secateur.errors import ModelError, TrainingError, UnknownName
from secateur.training.options import Tuning
from secateur.training.trainable_parameters import substitutes, trainable_parameters_of
from secateur.training.trainer import train

pytest.importorskip("peft")
FAST = Tuning(epochs=2, lr=3e-2, lora=3)
place = made_place  # the fixture
HOW = {"epochs": 2, "lr": 3e-2, "allow_small": True, "lora": 3}


def learn(model, folder, trainable, *, tuning=FAST, seed=0, progress=silent):
    return train(
        model,
        drawn(20),
        drawn(12, seed=1),
        tuning,
        seed=seed,
        folder=folder,
        progress=progress,
        trainable=trainable,
    )


def weights(folder):
    return load_file(folder / "model.safetensors")


def changed(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])  # separate, Conv1D and fused
def test_what_is_merged_computes_what_the_adapters_did_and_is_the_formula(name, as_loaded):
    model = tiny(name, torch.float64)
    loaded = as_loaded(model)
    trainable = trainable_parameters_of(loaded, Tuning(lora=3, lora_alpha=5.0, lora_targets=("v", "down")))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ids, expected = torch.randint(3, 96, (2, 7), generator=torch.Generator().manual_seed(0)), {}
    with torch.no_grad(), trainable.enabled(model, 0):
        for path in trainable.paths:
            layer = model.get_submodule(path)
            a, b = (m["default"].weight for m in (layer.lora_A, layer.lora_B))
            b.normal_(std=0.5)
            added = 5.0 / 3 * torch.einsum("or,ri->oi", b, a)
            weight = before[f"{path}.weight"]
            expected[f"{path}.weight"] = weight + (
                added if weight.shape == added.shape and name != "gpt2" else added.T
            )
        unmerged = model(input_ids=ids).logits
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, unmerged, rtol=1e-9, atol=1e-9)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert changed(before, after) == set(expected) == trainable.changed
    assert len(expected) == 2 * loaded.anatomy.num_blocks
    for weight, wanted in expected.items():
        torch.testing.assert_close(after[weight], wanted, rtol=1e-9, atol=1e-9)
    assert not hasattr(model, "peft_config")


def test_the_count_is_that_of_what_can_learn(as_loaded):
    model = tiny("gpt2")
    trainable = trainable_parameters_of(as_loaded(model), Tuning(lora=3, lora_targets=("mlp",)))
    expected = trainable.count(model)
    with trainable.enabled(model, 0):
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    blocks, width = model.config.n_layer, model.config.n_embd
    assert expected == blocks * 2 * 3 * 5 * width  # up and down, d_ff = 4 d_model
    assert trainable.adapters().to_json() == {"rank": 3, "alpha": 6.0, "layers": len(trainable.paths)}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_only_the_targets_change_and_one_seed_gives_one_model(name, tmp_path, as_loaded):
    models = [tiny(name) for _ in range(3)]
    trainables = [
        trainable_parameters_of(as_loaded(model), Tuning(lora=3, lora_targets=("attn",))) for model in models
    ]
    found = [
        learn(model, tmp_path / str(n), trainable, seed=n // 2)
        for n, (model, trainable) in enumerate(zip(models, trainables, strict=True))
    ]
    assert (
        changed(dict(tiny(name).named_parameters()), dict(models[0].named_parameters()))
        == trainables[0].changed
    )
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])
    assert found[0] == found[1]
    assert found[0].history[-1].train_loss < found[0].history[0].train_loss


@pytest.mark.parametrize("step", [2, 3, 6])
def test_stopped_it_goes_on_to_the_same_weights_from_adapters_alone(step, tmp_path, as_loaded):
    """In an epoch, at its end, and at the very end; with dropout, whose randomness must go on too."""
    whole, stopped, again = (tiny("gpt2") for _ in range(3))
    expected = learn(whole, tmp_path / "whole", trainable_parameters_of(as_loaded(whole), FAST))
    with pytest.raises(KeyboardInterrupt):
        learn(
            stopped,
            tmp_path / "stopped",
            trainable_parameters_of(as_loaded(stopped), FAST),
            progress=stop_at(step),
        )
    kept = load_file(tmp_path / "stopped" / f"checkpoint-{step}" / "trained.safetensors")
    assert kept
    assert all(".lora_" in name for name in kept)
    assert learn(again, tmp_path / "stopped", trainable_parameters_of(as_loaded(again), FAST)) == expected
    assert same_weights(again, whole)


# ----------------------------------------------------------------------------------------------------------- the verbs


@pytest.fixture
def model(tmp_path, words):
    return save_model(tmp_path / "model", tiny("llama"), words)


@pytest.fixture
def task(tmp_path):
    return write_rows(tmp_path / "task.jsonl", questions(260))


def test_a_fine_tuned_checkpoint_has_the_form_it_had(model, task, tmp_path):
    found = package.finetune(str(model), str(task), tmp_path / "out", lora_targets="o,down", **HOW)
    before, after = weights(model), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    blocks = package.load(str(model)).anatomy.num_blocks
    parts = ("self_attn.o_proj", "mlp.down_proj")
    wanted = {f"model.layers.{n}.{part}.weight" for n in range(blocks) for part in parts}
    assert changed(before, after) == wanted
    assert found.record["lora"] == {"rank": 3, "alpha": 6.0, "layers": 2 * blocks}
    assert found.record["trained_parameters"] == sum(3 * sum(before[name].shape) for name in wanted)
    assert found.record["command"].endswith("--lora 3 --lora-targets o,down")
    assert "adapters of rank 3" in (tmp_path / "out/README.md").read_text()
    assert not [p.name for p in (tmp_path / "out").iterdir() if "adapter" in p.name]


@pytest.mark.parametrize(
    ("edits", "how", "whole"),
    [
        (["b1.down=2"], {"factorize": True}, ("model.layers.1.mlp.down_proj",)),
        (["b0.attn.g1=drop", "b1.mlp.n3=drop"], {}, ()),
    ],
)
def test_on_a_carved_model_factors_are_trained_as_they_are(edits, how, whole, model, task, tmp_path):
    package.apply(str(model), edits, tmp_path / "cut", **how)
    loaded = package.load(str(tmp_path / "cut"))
    assert substitutes(loaded.model) == whole
    found = package.finetune(str(tmp_path / "cut"), str(task), tmp_path / "out", **HOW)
    before, after = weights(tmp_path / "cut"), weights(tmp_path / "out")
    matrices = {matrix.weight for matrix in loaded.anatomy.matrices.values()}
    factors = {name for name in before if name.startswith(whole)} if whole else set()
    assert changed(before, after) == matrices | factors
    assert found.record["lora"]["layers"] == len(matrices)
    package.load(str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"lora": 0}, TrainingError, "--lora 0: give a whole number, 1 or more, such as 8"),
        ({"lora_alpha": 0.0}, TrainingError, "--lora-alpha 0.0: give a number above 0"),
        ({"lora_targets": "gate,dwn"}, UnknownName, "down"),
        ({"lora": None, "lora_targets": "o"}, TrainingError, "give --lora RANK too"),
        ({"lora": None, "lora_alpha": 4.0}, TrainingError, "give --lora RANK too"),
    ],
)
def test_what_means_nothing_is_refused(more, error, says, model, task, tmp_path):
    with pytest.raises(error, match=says):
        package.finetune(str(model), str(task), tmp_path / "out", **(HOW | more))
    assert not (tmp_path / "out").exists()


def test_without_peft_it_is_said_what_to_install(model, task, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'secateur\[lora\]'"):
        package.finetune(str(model), str(task), tmp_path / "out", **HOW)


# ----------------------------------------------------------------------------------------------------------------- heal

LLAMA = "model.layers"


@pytest.mark.parametrize(
    ("form", "whole"),
    [
        pytest.param("linear", f"{LLAMA}.2.entry.", marks=pytest.mark.slow),
        ("fold", f"{LLAMA}.1.mlp.down_proj."),
        pytest.param("drop", f"{LLAMA}.0.", marks=pytest.mark.slow),
    ],
)
def test_healing_trains_what_stands_for_blocks_whole_and_adapters_beside(form, whole, place, tmp_path):
    how = {"lora": 2, "lora_targets": "o,down", "split": "probe,select", "epochs": 1, "lr": 1e-2}
    found = heal(place, form, tmp_path / "out", **how)
    before, after = weights(place / form), weights(tmp_path / "out")
    matrices = {
        f"{LLAMA}.{n}.{part}.weight" for n in range(3) for part in ("self_attn.o_proj", "mlp.down_proj")
    }
    replaced = {name for name in before if name.startswith(whole)}
    assert changed(before, after) == matrices | replaced
    layers, end = found.record["stages"]
    assert layers["lora"] is None
    assert end["lora"] == {"rank": 2, "alpha": 4.0, "layers": len(matrices - replaced)}
    assert end["trained_parameters"] == sum(before[n].numel() for n in replaced) + sum(
        2 * sum(before[n].shape) for n in matrices - replaced
    )
    assert "--lora 2 --lora-targets o,down" in found.record["command"]


@pytest.mark.slow
def test_killed_while_healing_it_ends_as_if_it_never_was(place, tmp_path):
    heal(place, "linear", tmp_path / "whole", lr=1e-2, lora=2)
    trainings = []

    def die_in_the_second_epoch_of_end(stage, done, total):
        if stage == "train" and done == 0:
            trainings.append(stage)
        if stage == "train" and len(trainings) == 2 and done == total - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        heal(place, "linear", tmp_path / "out", lr=1e-2, lora=2, progress=die_in_the_second_epoch_of_end)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    steps = []
    heal(place, "linear", tmp_path / "out", lr=1e-2, lora=2, progress=lambda *said: steps.append(said))
    assert min(done for name, done, _ in steps if name == "train") > 0, "it began anew"
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert one.keys() == other.keys()
    assert not changed(one, other)


def test_adapters_are_refused_where_none_would_be_trained(place, tmp_path):
    with pytest.raises(TrainingError, match="for the stage end"):
        heal(place, "linear", tmp_path / "out", stage="layers", lora=2)
    assert not (tmp_path / "out").exists()


def test_the_command_line_has_adapters(place, tmp_path):
    words = (
        "heal",
        place / "fold",
        "--task",
        f"text:{place / 'book.txt'}",
        "-o",
        tmp_path / "out",
        "--allow-small",
    )
    more = ("--stage", "end", "--max-steps", 1, "--lora", 2, "--lora-alpha", 3, "--seqlen", 16, "--json")
    ran = secateur(*words, *more)
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["stages"][0]["lora"] == {"rank": 2, "alpha": 3.0, "layers": 20}
