"""What surrounds a training: precision put back, seconds over all sittings, devices, full memory and disks."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from fixtures.folders import contents, save_model, secateur
from fixtures.zoo import tiny

import secateur as package
from secateur.checkpoint.folder import copy_folder
from secateur.core.plan import Drop, Plan
from secateur.core.site import Site
from secateur.errors import ModelError, TrainingError
from secateur.training import train as pretraining
from secateur.training.distributed import join
from secateur.training.state import in_float32


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "gemma3"])
def test_in_float32_gives_every_parameter_and_buffer_back(name):
    """Buffers bitwise: rotary frequencies are float32 in a bfloat16 model too."""
    model = tiny(name, torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    parameters = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    assert buffers
    with in_float32(model) as wide:
        assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for key, buffer in model.named_buffers():
        assert buffer.dtype == buffers[key].dtype, key
        assert torch.equal(buffer, buffers[key]), key
    assert all(torch.equal(p, parameters[key]) for key, p in model.named_parameters())


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """A model, a text in its words, and a tokenizer alone."""
    place = tmp_path_factory.mktemp("around")
    save_model(place / "model", tiny("llama"), words)
    words.save_pretrained(place / "words")
    draw = random.Random(0)
    lines = [" ".join(f"w{draw.randrange(3, 90)}" for _ in range(24)) for _ in range(150)]
    (place / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    loaded = package.load(str(place / "model"))
    package.apply(str(place / "model"), Plan(loaded.fingerprint, (Drop(Site(1)),)), place / "cut")
    return place


def pretrain(place, out, **more):
    size = {"layers": 2, "d_model": 16, "heads": 2, "context": 32, "seqlen": 12}
    how = size | {"steps": 3, "batch_size": 4, "device": "cpu"} | more
    return package.train(str(place / "text.txt"), how.pop("tokenizer", str(place / "words")), out, **how)


def heal(place, out, **more):
    how = {
        "seqlen": 16,
        "allow_small": True,
        "epochs": 2,
        "batch_size": 8,
        "lr": 1e-3,
        "device": "cpu",
        "stage": "end",
    }
    return package.heal(place / "cut", f"text:{place / 'text.txt'}", out, **(how | more))


def stop_at(step):
    def progress(name, done, total):
        if name == "train" and done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


@pytest.mark.parametrize("verb", [pretrain, heal])
def test_seconds_are_those_of_all_sittings_as_tokens_are(verb, place, tmp_path):
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        verb(place, tmp_path / "out", progress=stop_at(1))
    taken = time.perf_counter() - start
    (marked,) = (tmp_path / "out.run").rglob("checkpoint-1/complete")
    assert 0 < float(marked.read_text()) < taken
    marked.write_text("1000.5")  # as if it had been slow
    start = time.perf_counter()
    record = verb(place, tmp_path / "out").record
    assert 1000.5 < record["seconds"] < 1000.5 + time.perf_counter() - start
    if verb is heal:
        assert f"{record['tokens']:,} tokens read in {record['seconds']:.0f} s" in record["sentence"]


def launched(monkeypatch, **told):
    known = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for name, value in (known | told).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def one_gpu(monkeypatch):
    """A machine that says it has one; what is asked of it, and of the other processes, in order."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **how: asked.append("met"))
    return asked


def test_processes_on_the_cpu_leave_the_gpu_alone(monkeypatch, one_gpu):
    launched(monkeypatch, RANK="1", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
    join("cpu")
    assert one_gpu == ["met"]


@pytest.mark.parametrize("told", [{"LOCAL_WORLD_SIZE": "2"}, {"RANK": "1", "LOCAL_RANK": "1"}])
def test_more_processes_than_gpus_are_refused_also_where_one_speaks(monkeypatch, one_gpu, told):
    launched(monkeypatch, **told)
    with pytest.raises(TrainingError, match="2 processes on a machine with 1 GPU"):
        join("auto")
    assert not one_gpu
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    join("auto")
    assert one_gpu == [int(told.get("LOCAL_RANK", 0)), "met"]


def test_memory_that_runs_out_while_pretraining_is_said(place, tmp_path, monkeypatch):
    def short(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pretraining.PretrainingTrainer, "training_step", short)
    with pytest.raises(TrainingError, match="out of memory with --batch-size 4"):
        pretrain(place, tmp_path / "out")


@pytest.mark.parametrize("given", [None, ":16:8"])
def test_the_workspace_of_cublas_is_fixed_from_the_start_and_put_back(place, tmp_path, monkeypatch, given):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if given:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    found = {}

    def see(name, *counts):
        found[name] = os.environ.get("CUBLAS_WORKSPACE_CONFIG")

    pretrain(place, tmp_path / "out", progress=see)
    assert found["load"] == found["train"] == (given or ":4096:8"), "before anything is computed"
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == given


def test_a_copied_folder_is_the_folder_and_a_full_disk_is_said(tmp_path):
    source = tmp_path / "source"
    (source / "templates").mkdir(parents=True)
    (source / "weights").write_bytes(bytes(range(256)) * 40)
    (source / "templates" / "one.jinja").write_text("{{ x }}")
    copy_folder(source, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)
    code = """
        import resource, sys
        from pathlib import Path
        from secateur.checkpoint.folder import copy_folder
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
        copy_folder(Path(sys.argv[1]), Path(sys.argv[2]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(source), str(tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "OutputError: no space left" in done.stderr


def test_a_tokenizer_with_code_of_its_own_is_refused_and_not_run(place, tmp_path):
    folder = tmp_path / "words"
    shutil.copytree(place / "words", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "mine.Mine"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="code of its own, and train runs none"):
        pretrain(place, tmp_path / "out", tokenizer=str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("rank", "says"), [("0", True), ("1", False)])
def test_of_several_processes_one_says_that_it_was_interrupted(monkeypatch, rank, says):
    def stop(*words, **options):
        raise KeyboardInterrupt

    launched(monkeypatch, RANK=rank, LOCAL_RANK=rank)
    monkeypatch.setattr("secateur.training.verbs.finetune", stop)
    ran = secateur("finetune", "model", "--task", "task.jsonl", "-o", "out", "-q")
    assert ran.exit_code == 130
    assert ("interrupted" in ran.output) == says
