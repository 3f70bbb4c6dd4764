"""Two processes that train one model: against one with batches of twice the size, killed, refused, silent."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from fixtures.folders import questions, save_model, write_rows
from fixtures.zoo import tiny, variant
from safetensors.torch import load_file
from test_heal import affine

import secateur as package
from secateur.core import distributed as launched
from secateur.core.plan import Plan
from secateur.errors import TrainingError
from secateur.options import Options
from secateur.training import distributed
from secateur.training.commands import command_line, finetune_command
from secateur.training.options import Tuning

ROUNDING = (
    1e-4  # the norms of a Llama compute in float32 whatever the model's dtype; on an EPYC 4e-6 was seen
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


def two(*words):
    """`secateur WORDS` in two processes."""
    command = [*TORCHRUN, "-m", "secateur", *map(str, words)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=240)


def weights(folder):
    return load_file(folder / "model.safetensors")


def distance(one, other, start):
    """Of two trained models, against how far training went."""
    moved = sum(float((one[n] - start[n]).square().sum()) for n in one)
    return (sum(float((one[n] - other[n]).square().sum()) for n in one) / moved) ** 0.5


@pytest.mark.slow
def test_two_fine_tune_as_one_with_batches_of_twice_the_size(tmp_path, words):
    """In float64, where the steps of the two are those of the one but for the rounding of norms."""
    model = save_model(tmp_path / "model", tiny("llama"), words)
    task = write_rows(tmp_path / "task.jsonl", questions(320))
    how = ("finetune", model, "--task", task, "--epochs", "2", "--lr", "3e-3", "--dtype", "float64")
    ran = two(*how, "--batch-size", 4, "-o", tmp_path / "two", "--json")
    assert ran.returncode == 0, ran.stderr
    record = json.loads(ran.stdout)  # once, and nothing else
    one = package.finetune(
        str(model), str(task), tmp_path / "one", epochs=2, lr=3e-3, batch_size=8, dtype="float64"
    )
    assert record["trained_on"]["examples"] % 8 == 0, "else two fill the last step of an epoch up"
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}
    assert not (tmp_path / "two.run").exists()
    assert record["trained_on"]["examples_per_step"] == 8 == one.record["trained_on"]["examples_per_step"]
    assert [row["step"] for row in record["epochs"]] == [row["step"] for row in one.record["epochs"]]
    first, second = (r["epochs"][0]["select_loss"] for r in (record, one.record))
    assert first == pytest.approx(second, abs=1e-9), "untrained they are one model"
    for ours, theirs in zip(record["epochs"], one.record["epochs"], strict=True):
        assert ours["select_loss"] == pytest.approx(theirs["select_loss"], rel=1e-6)
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-6)
    apart = distance(weights(tmp_path / "two"), weights(tmp_path / "one"), weights(model))
    assert apart < ROUNDING, "the steps were others"
    assert record["command"].startswith("torchrun --nproc-per-node 2 -m secateur finetune")


@pytest.mark.slow
def test_two_heal_as_one(tmp_path, words):
    model = save_model(tmp_path / "model", variant("llama", num_hidden_layers=4), words)
    task = write_rows(tmp_path / "task.jsonl", questions(300))
    loaded = package.load(str(model))
    plan = Plan(loaded.fingerprint, (affine([2], "linear", scale=0.4),))
    package.apply(str(model), plan, tmp_path / "cut")
    how = (
        "heal",
        tmp_path / "cut",
        "--task",
        task,
        "--epochs",
        "1",
        "--lr",
        "3e-3",
        "--device",
        "cpu",
        "--lora",
        2,
    )
    ran = two(*how, "--batch-size", 4, "-o", tmp_path / "two", "--json", "--bf16")
    assert ran.returncode == 0, ran.stderr
    record = json.loads(ran.stdout)
    more = {"epochs": 1, "lr": 3e-3, "batch_size": 8, "device": "cpu", "lora": 2, "bf16": True}
    one = package.heal(tmp_path / "cut", str(task), tmp_path / "one", **more).record
    for ours, theirs in zip(record["stages"], one["stages"], strict=True):
        assert ours["tokens"] == pytest.approx(theirs["tokens"], rel=0.1)
        for row, other in zip(ours["epochs"], theirs["epochs"], strict=True):
            assert row["select_loss"] == pytest.approx(other["select_loss"], rel=0.02)
    assert weights(tmp_path / "two").keys() == weights(tmp_path / "one").keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{"stage": "both"}, {"stage": "end", "lora": 4, "temperature": 2.0, "lr": 1e-2}], ids=str
)
def test_the_weights_of_two_that_heal_are_those_of_one(how, tmp_path, words):
    """In float64; without a word between the two they end 0.5 to 0.7 apart."""
    model = save_model(tmp_path / "model", variant("llama", num_hidden_layers=4), words)
    task = write_rows(tmp_path / "task.jsonl", questions(320))
    plan = Plan(package.load(str(model)).fingerprint, (affine([2], "linear", scale=0.4),))
    package.apply(str(model), plan, tmp_path / "cut")
    how = {"epochs": 2, "lr": 3e-3, "device": "cpu", "dtype": "float64"} | how
    typed = [word for name, value in how.items() for word in (f"--{name}", value)]
    ran = two(
        "heal", tmp_path / "cut", "--task", task, *typed, "--batch-size", 4, "-o", tmp_path / "two", "-q"
    )
    assert ran.returncode == 0, ran.stderr
    one = package.heal(tmp_path / "cut", str(task), tmp_path / "one", batch_size=8, **how)
    assert one.record["trained_on"]["examples"] % 8 == 0
    assert not any(stage["epochs"][0]["kept"] for stage in one.record["stages"]), "nothing moved"
    apart = distance(weights(tmp_path / "two"), weights(tmp_path / "one"), weights(tmp_path / "cut"))
    assert apart < ROUNDING, "the steps were others"


@pytest.mark.slow
def test_a_mistake_is_said_once_and_both_end_with_its_code(tmp_path, words):
    model = save_model(tmp_path / "model", tiny("llama"), words)
    task = write_rows(tmp_path / "task.jsonl", questions(300))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    ran = two("finetune", model, "--task", task, "-o", tmp_path / "out", "--device", "cpu")
    assert ran.returncode != 0
    assert ran.stderr.count("is not a checkpoint that secateur wrote") == 1
    assert ran.stderr.count("exitcode  : 2") >= 1
    assert "exitcode  : 1" not in ran.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_alone_nothing_is_waited_for(monkeypatch):
    monkeypatch.setenv("RANK", "3")  # of something else: a scheduler's, without the rest
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (launched.world(), launched.rank(), launched.is_main()) == (1, 0, True)
    distributed.join("cpu")
    assert not torch.distributed.is_initialized()
    assert distributed.from_main(lambda: 5) == 5
    assert distributed.sum_over_processes(1, 2.5) == [1, 2.5]
    assert (distributed.any_process(True), distributed.any_process(False)) == (True, False)
    assert "processes" not in finetune_command(Options("m", "t"), Tuning()).to_json()


def test_several_are_part_of_the_command_and_train_refuses_them(monkeypatch, tmp_path):
    told = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert (launched.world(), launched.rank(), launched.is_main()) == (3, 1, False)
    line = command_line(finetune_command(Options("m", "t"), Tuning()))
    assert line == "torchrun --nproc-per-node 3 -m secateur finetune m --task t"
    with pytest.raises(TrainingError, match="3 were launched"):
        package.train("text:book.txt", str(tmp_path), tmp_path / "out", device="cpu")


KILLED = """
import os, signal, sys
import secateur
from secateur.core.distributed import rank
model, task, out = sys.argv[1:]

def die(stage, done, total):
    if rank() == 1 and stage == "train" and done == total - 1:
        os.kill(os.getpid(), signal.SIGKILL)

secateur.finetune(model, task, out, epochs=2, lr=3e-3, batch_size=8, device="cpu", progress=die)
"""


@pytest.mark.slow
def test_one_of_two_killed_they_go_on_together_to_the_same_weights(tmp_path, words):
    model = save_model(
        tmp_path / "model", tiny("gpt2"), words
    )  # with dropout: each process has its own randomness
    task = write_rows(tmp_path / "task.jsonl", questions(260))
    (tmp_path / "killed.py").write_text(KILLED)
    out, env = tmp_path / "out", os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, str(tmp_path / "killed.py"), str(model), str(task), str(out)]
    killed = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240)
    assert killed.returncode != 0
    assert not out.exists()
    (kept,) = (tmp_path / "out.run").glob("train-*/checkpoint-*/complete")
    assert len(list(kept.parent.glob("rng_state*"))) == 2
    how = (
        "finetune",
        model,
        "--task",
        task,
        "--epochs",
        2,
        "--lr",
        "3e-3",
        "--batch-size",
        8,
        "--device",
        "cpu",
    )
    for folder in (out, tmp_path / "whole"):
        ran = two(*how, "-o", folder)
        assert ran.returncode == 0, ran.stderr
    one, other = weights(out), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in one)
