"""`secateur train`: the first step against plain PyTorch, checkpoints at chosen steps, resuming, refusals."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from fixtures.folders import contents, secateur
from fixtures.places import SHARED
from safetensors.torch import load_file
from transformers import MistralForCausalLM

import secateur as package
from secateur.errors import ModelError, SecateurError, TrainingError, UnknownName
from secateur.hf.blank import fresh_mistral
from secateur.hf.size import Size
from secateur.training import train as pretraining
from secateur.training.objectives import LinearityRegulariser

SIZE = {"layers": 2, "d_model": 16, "heads": 2, "context": 32}
HOW = SIZE | {"steps": 6, "save_steps": (0, 3), "seqlen": 12, "batch_size": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """A text in the words of the zoo in which every word tells the next one."""
    place = tmp_path_factory.mktemp("train")
    words.save_pretrained(place / "words")
    draw = np.random.default_rng(0)
    lines = []
    for start in draw.integers(0, 40, 150):
        lines.append(" ".join(f"w{3 + (start + 7 * n) % 40}" for n in range(24)))
    (place / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    return place


def train(place, out, **more):
    return package.train(f"text:{place / 'text.txt'}", str(place / "words"), out, **(HOW | more))


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_every_checkpoint_is_a_model_and_the_untrained_one_is_that_of_the_seed(place, tmp_path, words):
    found = train(place, tmp_path / "out")
    fresh = dict(fresh_mistral(Size(**SIZE), words, 0).named_parameters())
    zero = weights(tmp_path / "out/step-0")
    assert zero.keys() == fresh.keys()
    assert all(torch.equal(zero[name], fresh[name]) for name in zero)
    folders = [tmp_path / "out" / name for name in ("step-0", "step-3", ".")]
    for folder, row in zip(folders, found.record["losses"], strict=True):
        loaded = package.load(str(folder))
        assert loaded.anatomy.num_blocks == 2
        assert loaded.anatomy.family == "mistral"
        assert row["held_out_loss"] > 0
    assert [row["step"] for row in found.record["losses"]] == [0, 3, 6]
    assert package.load(str(tmp_path / "out")).fingerprint == found.record["fingerprint"]
    assert not torch.equal(weights(folders[1])["lm_head.weight"], weights(folders[2])["lm_head.weight"])


@pytest.mark.parametrize("kind", ["none", "cosine", "mse"])
def test_the_first_step_is_that_of_plain_pytorch(place, tmp_path, words, kind, monkeypatch):
    """AdamW after clipping, on cross-entropy plus the regulariser; with one step there is no schedule yet."""
    batches, compute = [], pretraining.PretrainingTrainer.compute_loss

    def seen(self, model, inputs, *args, **rest):
        batches.append({name: tensor.clone() for name, tensor in inputs.items()})
        return compute(self, model, inputs, *args, **rest)

    monkeypatch.setattr(pretraining.PretrainingTrainer, "compute_loss", seen)
    how = {"steps": 1, "save_steps": (), "warmup": 0.0, "regulariser": kind, "weight": 0.7}
    train(place, tmp_path / "out", **how)
    (batch,) = batches
    model = fresh_mistral(Size(**SIZE), words, 0).train()
    labels = batch["input_ids"].masked_fill(~batch["real"], -100)
    term = LinearityRegulariser(model, 0.7, kind) if kind != "none" else None
    loss = model(input_ids=batch["input_ids"], labels=labels).loss
    loss = loss if term is None else loss + term.loss(batch["real"])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=1e-3).step()
    found = weights(tmp_path / "out")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-5, atol=2e-6, msg=name)


def test_it_learns_what_follows_what_and_the_held_out_loss_says_what_the_model_does(place, tmp_path):
    found = train(place, tmp_path / "out", steps=150, save_steps=(), lr=1e-2)
    losses = [row["held_out_loss"] for row in found.record["losses"]]
    assert losses[0] == pytest.approx(np.log(96), abs=0.3)
    assert losses[-1] < 1.0, "every word tells the next one"
    model = MistralForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = model(torch.tensor([[3, 10, 17, 24, 31]])).logits[0, -1]
    assert int(logits.argmax()) == 38


def stop_at(step):
    def progress(name, done, total):
        if name == "train" and done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


@pytest.mark.parametrize("step", [2, 3, 6])
def test_stopped_it_goes_on_to_the_same_checkpoints(place, tmp_path, step):
    how = {"regulariser": "cosine"}
    whole = train(place, tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        train(place, tmp_path / "out", progress=stop_at(step), **how)
    assert not (tmp_path / "out").exists()
    said = []
    again = train(place, tmp_path / "out", progress=lambda *words: said.append(words), **how)
    assert min((done for name, done, _ in said if name == "train"), default=6) == step
    for folder in (".", "step-0", "step-3"):
        one, other = weights(tmp_path / "whole" / folder), weights(tmp_path / "out" / folder)
        assert all(torch.equal(one[name], other[name]) for name in one), folder
    same = ("losses", "tokens", "fingerprint")
    assert {key: again.record[key] for key in same} == {key: whole.record[key] for key in same}
    assert not (tmp_path / "out.run").exists()


def test_the_same_command_does_nothing_twice_and_another_seed_gives_another_model(place, tmp_path):
    first = train(place, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert train(place, tmp_path / "out").already
    assert contents(tmp_path / "out") == before
    assert train(place, tmp_path / "other", seed=1).record["fingerprint"] != first.record["fingerprint"]


def test_tokens_are_those_that_were_read(place, tmp_path):
    found = train(place, tmp_path / "out", steps=5, save_steps=())
    assert 5 * 4 * 12 * 0.9 < found.record["tokens"] <= 5 * 4 * 12
    sequences = found.record["sequences"]
    assert sequences["held_out"] == pytest.approx(sum(sequences.values()) / 10, rel=0.35)


def test_what_is_refused(place, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UnknownName, match="cosine"):
        train(place, out, regulariser="cosin")
    with pytest.raises(TrainingError, match="0 to the last of the 6"):
        train(place, out, save_steps=(7,))
    with pytest.raises(TrainingError, match="--context"):
        train(place, out, seqlen=33)
    with pytest.raises(TrainingError, match="0 or more"):
        train(place, out, regulariser="mse", weight=-1.0)
    with pytest.raises(ModelError, match="even, whole"):
        train(place, out, heads=3)
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError, match="no tokenizer"):
        package.train(str(place / "text.txt"), str(tmp_path / "none"), out, **HOW)
    with pytest.raises(SecateurError, match="too few to hold some out"):
        train(_short(place, tmp_path), out)
    assert not out.exists()


def _short(place, tmp_path):
    short = tmp_path / "short"
    short.mkdir()
    (short / "words").symlink_to(place / "words")
    (short / "text.txt").write_text("w3 w4 w5", encoding="utf-8")
    return short


def test_the_command_line(place, tmp_path):
    words = ["train", f"text:{place / 'text.txt'}", "--tokenizer", place / "words", "-o", tmp_path / "out"]
    words += [
        "--layers",
        2,
        "--d-model",
        16,
        "--heads",
        2,
        "--steps",
        3,
        "--save-steps",
        "0,2",
        "--seqlen",
        12,
    ]
    words += ["--regulariser", "cosine", "--device", "cpu"]
    ran = secateur(*words, "-q")
    assert ran.exit_code == 0, ran.output
    assert "loss on held-out text" in ran.output
    record = json.loads((tmp_path / "out/train.json").read_text())
    assert record["command"] in (tmp_path / "out/README.md").read_text()
    for word in ("--regulariser cosine", "--save-steps 0,2", "--layers 2", "--heads 2", "--seqlen 12"):
        assert word in record["command"]
    assert "--weight " not in record["command"]
    again = json.loads(secateur(*words, "--json").output)
    assert again["already"] is True
    assert secateur(*words[:-3], "--save-steps", "a").exit_code == 2


@pytest.mark.slow
def test_the_cosine_regulariser_does_what_it_says_on_stories(tmp_path):
    """Neighboring streams are more alike at the end of a training with it than of one without."""
    if not SHARED.exists():
        pytest.skip("needs ../shared/data")
    (tmp_path / "a.txt").write_text((SHARED / "text_tinystories_valid.txt").read_text()[:150_000])
    size = {"layers": 3, "d_model": 32, "heads": 2, "seqlen": 64, "steps": 150, "device": "cpu"}
    apart = {}
    for kind in ("none", "cosine"):
        out = tmp_path / kind
        package.train(
            str(tmp_path / "a.txt"), str(SHARED / "models/stories260K"), out, regulariser=kind, **size
        )
        model = package.load(str(out)).model
        regulariser = LinearityRegulariser(model.train(), 1.0)
        with torch.no_grad():
            model(input_ids=torch.arange(3, 67)[None])
            apart[kind] = float(regulariser.loss())
    assert apart["cosine"] < 0.7 * apart["none"]
