"""Fine-tuning: the loss, the steps and the weights against plain PyTorch; stopped anywhere and gone on; refusals."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from fixtures.folders import contents, questions, save_model, secateur, write_rows
from fixtures.forked import limited
from fixtures.zoo import by_layout, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur as package
from secateur.checkpoint.folder import Folder
from secateur.errors import OutputError, SecateurError, TaskError, TrainingError, UnknownName
from secateur.options import Options
from secateur.session import open_session
from secateur.training import state, trainer
from secateur.training.answers import answer_losses, collate
from secateur.training.commands import command_line, finetune_command
from secateur.training.options import Tuning, splits_of
from secateur.training.trainer import AnswerTrainer, newest_checkpoint, train

FAST = Tuning(epochs=2, lr=3e-3, batch_size=8)
HOW = {"epochs": 2, "lr": 3e-3, "allow_small": True}


def silent(*said):
    pass


def drawn(count, seed=0):
    """Questions of 3 to 6 tokens with answers of 1 to 3, in the vocabulary of the zoo."""
    draw = random.Random(seed)
    lengths = [(draw.randint(3, 6), draw.randint(1, 3)) for _ in range(count)]
    return [(tuple(draw.randrange(3, 96) for _ in range(q + a)), q) for q, a in lengths]


def slow_losses(model, sample):
    """−log p of each answer token of one sample: alone in its batch, numpy, one position at a time."""
    ids, start = sample
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().numpy()
    found = []
    for position in range(start, len(ids)):
        row = logits[position - 1]
        found.append(math.log(sum(np.exp(row - row.max()))) + row.max() - row[ids[position]])
    return found


def learn(model, folder, tuning=FAST, *, seed=0, learned=None, select=None, progress=silent):
    learned, select = learned or drawn(20), select or drawn(12, seed=1)
    return train(model, learned, select, tuning, seed=seed, folder=folder, progress=progress)


def same_weights(one, other):
    theirs = dict(other.named_parameters())
    return all(torch.equal(parameter, theirs[name]) for name, parameter in one.named_parameters())


# ------------------------------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "opt", "falcon-rw", "gemma3"])
def test_a_padded_batch_has_the_losses_of_its_samples_alone(name):
    model, samples = tiny(name, torch.float64), drawn(9)
    batch = collate(samples)
    with torch.no_grad():
        found = answer_losses(model(input_ids=batch["input_ids"]).logits, batch["labels"])
    expected = [loss for sample in samples for loss in slow_losses(model, sample)]
    near = 1e-6 if name == "bloom" else 1e-9  # its softmax is of float32, over rows of another length
    torch.testing.assert_close(found, torch.tensor(expected), rtol=near, atol=near)


def test_only_the_answer_has_labels():
    batch = collate([((5, 6, 7, 8), 2), ((9, 10), 1)])
    assert batch["labels"].tolist() == [[-100, -100, 7, 8], [-100, 10, -100, -100]]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]


def test_the_history_is_the_mean_over_answer_tokens_whatever_the_batches(tmp_path):
    learned, select = drawn(20), drawn(12, seed=1)
    found = learn(tiny("llama", torch.float64), tmp_path, learned=learned, select=select)
    model = tiny("llama", torch.float64)
    for part, samples in (("train", learned), ("select", select)):
        losses = [loss for sample in samples for loss in slow_losses(model, sample)]
        assert vars(found.history[0])[f"{part}_loss"] == pytest.approx(np.mean(losses), abs=1e-9)
    assert [row.step for row in found.history] == [0, 3, 6]
    assert [row.epoch for row in found.history] == [0, 1, 2]


def test_training_lowers_the_loss_of_what_is_learned(tmp_path):
    found = learn(tiny("llama"), tmp_path, Tuning(epochs=6, lr=1e-2, split=("probe", "select")))
    losses = [row.train_loss for row in found.history]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.5


# ----------------------------------------------------------------------------------------------------------- the steps


def plain_adamw(model, batches, tuning, total):
    """Adam with decoupled weight decay from its formulas (Loshchilov, Hutter 2019), after clipping at norm 1."""
    parameters = list(model.requires_grad_(True).parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    warm = math.ceil(total * tuning.warmup)
    for step, (ids, labels) in enumerate(batches):
        logits = model(input_ids=ids).logits.log_softmax(-1)
        spots = [(r, c) for r in range(len(ids)) for c in range(ids.shape[1]) if labels[r, c] != -100]
        loss = -sum(logits[r, c - 1, labels[r, c]] for r, c in spots) / len(spots)
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        rate = tuning.lr * (step / warm if step < warm else (total - step) / (total - warm))
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                g = g * min(1.0, 1.0 / (norm + 1e-6))
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                if p.dim() > 1:
                    p.mul_(1 - rate * tuning.weight_decay)
                corrected = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                p.sub_(rate * corrected[0] / (corrected[1].sqrt() + 1e-8))
    return model


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(epochs=1, lr=1e-2, batch_size=8, max_steps=1),
        Tuning(epochs=2, lr=1e-2, batch_size=8, weight_decay=0.1, warmup=0.3),
    ],
)
def test_the_steps_are_those_of_a_plain_loop(tuning, tmp_path, monkeypatch):
    batches, compute = [], AnswerTrainer.compute_loss

    def seen(self, model, inputs, **rest):
        batches.append((inputs["input_ids"].clone(), inputs["labels"].clone()))
        return compute(self, model, inputs, **rest)

    monkeypatch.setattr(AnswerTrainer, "compute_loss", seen)
    model = tiny("llama", torch.float64)
    learned = drawn(20)
    found = learn(model, tmp_path, Tuning(**{**vars(tuning), "split": ("probe", "select")}), learned=learned)
    assert len(batches) == found.best == (tuning.max_steps or 6)
    plain = plain_adamw(tiny("llama", torch.float64), batches, tuning, len(batches))
    for (name, ours), (_, theirs) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-7, atol=1e-9, msg=name)
    if len(batches) == 6:  # every epoch sees every sample once, and the second in another order
        epochs = [torch.cat([ids.flatten() for ids, _ in batches[k : k + 3]]) for k in (0, 3)]
        wanted = sorted([t for ids, _ in learned for t in ids])
        assert [sorted(t for t in epoch.tolist() if t) for epoch in epochs] == [wanted, wanted]
        assert epochs[0].tolist() != epochs[1].tolist()


def test_the_epoch_with_the_lowest_loss_on_select_is_kept(tmp_path):
    """Learned to the letter, the questions of select get worse sooner or later."""
    model = tiny("llama")
    found = learn(model, tmp_path, Tuning(epochs=8, lr=2e-2))
    losses = {row.step: row.select_loss for row in found.history if row.step}
    assert found.best == min(losses, key=losses.get)
    assert found.best != max(losses), "the last epoch is the best: choose another case"
    ours = [loss for sample in drawn(12, seed=1) for loss in slow_losses(model, sample)]
    assert np.mean(ours) == pytest.approx(losses[found.best], abs=1e-5)
    last = tiny("llama")
    both = learn(last, tmp_path / "both", Tuning(epochs=8, lr=2e-2, split=("probe", "select")))
    assert both.best == max(losses)
    assert not same_weights(model, last)


def test_one_seed_gives_one_model_and_leaves_the_callers_randomness_alone(tmp_path):
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    models = [tiny("gpt2") for _ in range(3)]  # with dropout
    for number, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        learn(model, tmp_path / str(number), seed=seed)
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


# -------------------------------------------------------------------------------------------------- stopped and gone on


def stop_at(step):
    def progress(stage, done, total):
        if stage == "train" and done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_ctrl_c_finishes_the_step_and_goes_on_from_it(step, tmp_path):
    """In an epoch, at the end of one (3), and at the very end (6); with dropout, whose randomness must go on too."""
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell began this in the background
    whole, stopped = tiny("gpt2"), tiny("gpt2")
    expected = learn(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(stopped, tmp_path / "stopped", progress=stop_at(step))
    assert newest_checkpoint(tmp_path / "stopped").endswith(f"checkpoint-{step}")
    steps = []
    again = tiny("gpt2")
    found = learn(again, tmp_path / "stopped", progress=lambda *said: steps.append(said))
    done = [done for stage, done, _ in steps if stage == "train"]
    assert min(done, default=6) == step, "it began before where it was stopped"
    assert found == expected
    assert same_weights(again, whole)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("name", by_layout(first=("gpt-neox", "bloom", "llama-tied-biased")))
def test_every_family_goes_on_from_its_checkpoint(name, tmp_path):
    whole, again = tiny(name), tiny(name)
    expected = learn(whole, tmp_path / "whole")
    assert expected.history[-1].train_loss < expected.history[0].train_loss
    with pytest.raises(KeyboardInterrupt):
        learn(tiny(name), tmp_path / "stopped", progress=stop_at(4))
    assert learn(again, tmp_path / "stopped") == expected
    assert same_weights(again, whole)


def test_after_the_last_of_max_steps_nothing_more_is_done(tmp_path):
    """4 steps end within an epoch of 3: the Trainer, left to itself, would do a fifth when it is asked to go on."""
    tuning, models = Tuning(epochs=9, lr=3e-3, max_steps=4), [tiny("gpt2") for _ in range(2)]
    found = [learn(model, tmp_path, tuning) for model in models]
    assert found[0] == found[1]
    assert [row.step for row in found[1].history] == [0, 3, 4]
    assert same_weights(*models)


KILLED = """
import os, signal
import secateur, transformers
from pathlib import Path
from secateur.checkpoint.folder import Folder
from secateur.training import train as verb, trainer

def die(*said, **more):
    os.kill(os.getpid(), signal.SIGKILL)

def at_step(step):
    def progress(stage, done, total):
        if stage == "train" and done == step:
            die()
    return {"progress": progress}

def half_saved():
    save, saved = trainer.AnswerTrainer._save_rng_state, []
    def dying(self, folder):
        saved.append(folder)
        die() if len(saved) == 2 else save(self, folder)
    trainer.AnswerTrainer._save_rng_state = dying
    return {}

def before(place, name):
    setattr(place, name, die)
    return {}

deaths = {
    "untouched": dict,
    "first step": lambda: at_step(1),
    "in the second epoch": lambda: at_step(6),
    "half a checkpoint": half_saved,
    "after training": lambda: before(verb, "save_and_reload"),
    "before the rename": lambda: before(Folder, "publish"),
}
for number, (name, prepare) in enumerate(deaths.items()):
    for again in (False, True):
        child = os.fork()
        if child == 0:
            os.chdir(Path(out))
            more = {} if again else prepare()
            secateur.finetune(model, task, str(number), epochs=2, lr=3e-3, **more)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(name, "again" if again else "first", code, flush=True)
"""


def test_killed_at_any_moment_it_ends_as_if_it_never_was(tmp_path, words, forks):
    model = save_model(tmp_path / "model", tiny("gpt2"), words)
    task = write_rows(tmp_path / "task.jsonl", questions(300))
    asked = f"model, task, out = {str(model)!r}, {str(task)!r}, {str(tmp_path)!r}\n"
    done = forks.run(tmp_path, None, asked + KILLED)
    assert done.returncode == 0, done.stderr
    codes = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert codes == [0, 0] + [-signal.SIGKILL, 0] * 5, done.stdout + done.stderr
    expected = contents(tmp_path / "0")
    for number in range(1, 6):
        assert contents(tmp_path / str(number)) == expected, done.stdout
        assert not (tmp_path / f"{number}.run").exists()


# ------------------------------------------------------------------------------------------------------ the whole verb


@pytest.fixture
def model(tmp_path, words):
    return save_model(tmp_path / "model", tiny("llama"), words)


@pytest.fixture
def task(tmp_path):
    return write_rows(tmp_path / "task.jsonl", questions(260))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The embedded model, fine-tuned."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    return package.finetune("builtin:facts", "builtin:facts", out, epochs=2, lr=1e-3)


def test_the_record_says_what_evaluate_says(tuned):
    before = package.evaluate("builtin:facts", "builtin:facts")["scores"]
    after = package.evaluate(str(tuned.out), "builtin:facts")["scores"]
    for row in tuned.record["scores"]:
        for side, scores in (("before", before), ("after", after)):
            (score,) = [score for score in scores if score["metric"] == row["metric"]]
            assert row[side].keys() == score.keys()
            assert row[side]["ci"] == pytest.approx(score["ci"]), (row["metric"], side)
            assert row[side]["value"] == pytest.approx(score["value"]), (row["metric"], side)
    loss = tuned.record["scores"][1]
    best = next(row for row in tuned.record["epochs"] if row["kept"])
    assert loss["metric"] == "loss"
    assert tuned.record["fingerprint"] == package.load(str(tuned.out)).fingerprint
    assert tuned.record["model"]["fingerprint"] == package.load("builtin:facts").fingerprint
    assert best["select_loss"] == min(row["select_loss"] for row in tuned.record["epochs"])
    assert loss["after"]["value"] < loss["before"]["value"] - 0.3, "it learned next to nothing"


def test_show_says_what_was_gained(tuned):
    assert json.loads(secateur("show", tuned.out, "--json").stdout) == tuned.record
    assert "facts" in secateur("show", tuned.out).stdout


def test_the_folder_is_a_stock_checkpoint_with_the_originals_config(tuned):
    made = AutoModelForCausalLM.from_pretrained(tuned.out)
    assert AutoTokenizer.from_pretrained(tuned.out)("a")
    files = {path.name for path in tuned.out.iterdir()}
    assert {"model.safetensors", "config.json", "finetune.json", "README.md"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    original = package.load("builtin:facts").model
    assert type(made) is type(original)
    volatile = ("_name_or_path", "transformers_version")
    said = [{k: v for k, v in m.config.to_dict().items() if k not in volatile} for m in (made, original)]
    assert said[0] == said[1]
    card = (tuned.out / "README.md").read_text()
    assert tuned.record["command"] in card
    assert tuned.record["fingerprint"] in card
    assert not tuned.out.with_name("out.run").exists()


def test_pruning_takes_it_on_the_same_splits(tuned, tmp_path):
    words = {"matrices": ("down",), "layers": (2, 3), "limit": 400}
    cut = package.prune(str(tuned.out), "builtin:facts", tmp_path / "cut", **words)
    assert cut.verdict["model"]["fingerprint"] == tuned.record["fingerprint"]
    whole = open_session(Options(str(tuned.out), "builtin:facts"), None)
    assert whole.task.hash == tuned.record["task"]["hash"]


def test_the_same_command_is_recognized_and_another_refused(tuned):
    again = {"epochs": 2, "lr": 1e-3}
    found = package.finetune("builtin:facts", "builtin:facts", tuned.out, **again)
    assert (found.already, found.record) == (True, tuned.record)
    with pytest.raises(OutputError, match="epochs 2, now 3"):
        package.finetune("builtin:facts", "builtin:facts", tuned.out, epochs=3, lr=1e-3)
    with pytest.raises(OutputError, match="itself, which this command reads and never overwrites"):
        package.finetune(str(tuned.out), "builtin:facts", tuned.out)


def test_the_command_line_in_the_record_is_the_command(tuned):
    assert tuned.record["command"] == (
        "secateur finetune builtin:facts --task builtin:facts --epochs 2 --lr 0.001"
    )
    options = Options("m x", "t", chat=True, limit=9, test_task="u")
    line = command_line(finetune_command(options, Tuning(("probe", "select"), bf16=True)))
    wanted = ("'m x'", "--chat", "--limit 9", "--test-task u", "--split probe,select", "--bf16")
    assert all(word in line for word in wanted)
    assert "seed" not in line


@pytest.mark.parametrize("split", ["probe", "select", "probe,select"])
def test_what_is_learned_are_the_right_answers_of_the_split(split, model, task, tmp_path, monkeypatch):
    seen = {}

    def looked(model, learned, select, tuning, **rest):
        seen.update(learned=learned, select=select)
        return train(model, learned, select, tuning, **rest)

    monkeypatch.setattr(state, "train", looked)
    found = package.finetune(str(model), str(task), tmp_path / "out", split=split, **HOW)
    session = open_session(Options(str(model), str(task), allow_small=True), None)

    def asked(names):
        encode = session.loaded.tokenizer.encode
        examples = [e for name in names for e in session.task.of(session.task.split(name))]
        return {(tuple(encode(e.prompt + e.answer)), len(encode(e.prompt))) for e in examples}

    told = {name: set(samples) for name, samples in seen.items()}
    assert told == {"learned": asked(split.split(",")), "select": asked(["select"])}
    assert not asked(["test"]) & told["learned"]
    chosen_by = "loss on select" if split == "probe" else "last epoch"
    assert found.record["trained_on"]["chosen_by"] == chosen_by
    assert found.record["epochs"][-1]["kept"] or split == "probe"


def test_of_text_every_token_but_the_first_is_learned(model, tmp_path, monkeypatch):
    text = tmp_path / "book.txt"
    text.write_text(" ".join(f"w{3 + n % 7}" for n in range(4000)))
    seen = []
    monkeypatch.setattr(
        state,
        "train",
        lambda model, learned, *rest, **more: seen.extend(learned) or train(model, learned, *rest, **more),
    )
    how = {"epochs": 3, "lr": 1e-2, "seqlen": 8, "allow_small": True}
    found = package.finetune(str(model), f"text:{text}", tmp_path / "out", **how)
    assert {start for _, start in seen} == {1}
    (score,) = found.record["scores"]
    assert score["metric"] == "text_loss"
    assert score["before"]["value"] == pytest.approx(found.record["epochs"][0]["select_loss"], abs=1e-5)
    assert score["after"]["value"] < score["before"]["value"] - 1


def test_a_model_in_half_precision_is_trained_in_float32_and_written_as_it_was(words, task, tmp_path):
    folder = save_model(tmp_path / "half", tiny("llama", torch.bfloat16), words)
    trained_as = []

    class Seen(AnswerTrainer):
        def training_step(self, model, *args, **kwargs):
            trained_as.append({p.dtype for p in model.parameters()})
            return super().training_step(model, *args, **kwargs)

    original, trainer.AnswerTrainer = trainer.AnswerTrainer, Seen
    try:
        package.finetune(str(folder), str(task), tmp_path / "out", bf16=True, **HOW)
    finally:
        trainer.AnswerTrainer = original
    assert trained_as
    assert all(dtypes == {torch.float32} for dtypes in trained_as)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert made.dtype == torch.bfloat16
    wide = package.finetune(str(folder), str(task), tmp_path / "wide", dtype="float32", **HOW)
    assert AutoModelForCausalLM.from_pretrained(wide.out).dtype == torch.float32


def test_mixed_precision_computes_in_bfloat16(tmp_path):
    plain, mixed = tiny("llama"), tiny("llama")
    learn(plain, tmp_path / "plain")
    found = learn(mixed, tmp_path / "mixed", Tuning(**{**vars(FAST), "bf16": True}))
    assert not same_weights(plain, mixed)
    assert found.history[-1].train_loss < found.history[0].train_loss
    with torch.no_grad():  # and out of training the model computes as any other
        fresh = tiny("llama")
        fresh.load_state_dict(mixed.state_dict())
        ids = torch.tensor([[5, 6, 7]])
        assert torch.equal(mixed(input_ids=ids).logits, fresh(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("edits", "how"), [(["b0.attn.g1=drop", "b1.mlp.n3=drop"], {}), (["b1.down=2"], {"factorize": True})]
)
def test_a_carved_model_is_trained_in_its_shapes(edits, how, model, task, tmp_path):
    package.apply(str(model), edits, tmp_path / "cut", **how)
    before = package.load(str(tmp_path / "cut"))
    assert before.anatomy.carved
    found = package.finetune(str(tmp_path / "cut"), str(task), tmp_path / "out", **HOW)
    after = package.load(str(tmp_path / "out"))
    assert found.record["model"]["carved"]
    shapes = [{n: p.shape for n, p in m.model.named_parameters()} for m in (before, after)]
    assert shapes[0] == shapes[1]
    assert not same_weights(before.model, after.model)
    assert (tmp_path / "out" / "modeling_secateur.py").exists()
    assert "trust_remote_code" in (tmp_path / "out" / "README.md").read_text()


# ---------------------------------------------------------------------------------------------------- the command line


def test_the_command_prints_tables_or_json_and_nothing_else(model, task, tmp_path):
    words = ["finetune", model, "--task", task, "--epochs", 1, "--allow-small"]
    done = secateur(*words, "-o", tmp_path / "a", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["out"] == str(tmp_path / "a")
    assert told["provenance"]["command"]["epochs"] == 1
    done = secateur(*words, "-o", tmp_path / "a")
    assert "already holds" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines() if line]
    assert lines[2][:3] == ["measured", "before", "after"]
    assert lines[3][:3] == ["accuracy", "on", "validation"]
    assert lines[-1][0] == "checkpoint"
    assert [line[0] for line in lines if line[0] in "01"] == ["0", "1"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--split", "test"], "test is for the one verdict"),
        (["--split", "prob"], "unknown split 'prob' to train on. Did you mean probe?"),
        (["--split", ""], "unknown split ''"),
        (["--epochs", "0"], "--epochs 0: give a whole number, 1 or more"),
        (["--lr", "0"], "--lr 0.0: give a number above 0, such as 5e-5"),
        (["--lr", "nan"], "--lr nan"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--warmup", "1"], "--warmup 1.0: give a number from 0 to below 1"),
        (["--weight-decay", "-1"], "--weight-decay -1.0"),
        (["--max-steps", "0"], "--max-steps 0"),
        (["--limit", "2"], "too few groups"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(more, says, model, task, tmp_path):
    done = secateur("finetune", model, "--task", task, "-o", tmp_path / "out", "--allow-small", *more)
    assert done.exit_code == 2, done.stdout
    assert says in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.run").exists()


def test_a_loss_that_is_not_finite_is_named_with_its_step(model, task, tmp_path):
    done = secateur(
        "finetune", model, "--task", task, "-o", tmp_path / "out", "--allow-small", "--lr", "1e30"
    )
    assert done.exit_code == 2
    assert "the loss is nan at step 2: training with --lr 1e+30 went astray" in done.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.run").exists()


def test_a_training_that_lowers_no_loss_says_so(model, task, tmp_path, caplog):
    package.finetune(str(model), str(task), tmp_path / "out", epochs=1, lr=0.5, allow_small=True)
    assert "no epoch has a lower loss on the validation split than the original" in caplog.text


def test_an_option_of_prune_alone_is_refused(model, task, tmp_path):
    with pytest.raises(UnknownName, match="finetune has no option 'matrices'"):
        package.finetune(str(model), str(task), tmp_path / "out", matrices=("down",))


def test_splits_are_in_the_order_of_a_task():
    assert splits_of("select, probe") == splits_of(["probe", "select"]) == ("probe", "select")
    with pytest.raises(TaskError):
        Tuning(splits_of("probe,test"))


@pytest.mark.parametrize("limit", [pytest.param(30_000, marks=pytest.mark.slow), 150_000])
def test_no_space_while_training_is_said_and_with_room_it_goes_on(limit, model, tmp_path, forks):
    """30,000 bytes stop the weights of a checkpoint, 150,000 the optimizer's state."""
    write_rows(tmp_path / "task.jsonl", questions(260))
    words = ["finetune", model, "--task", "task.jsonl", "-o", "out", "--epochs", "1"]
    done = forks.run(tmp_path, words, limited(limit))
    assert done.returncode == 2, done.stderr
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "out.run").rglob("checkpoint-*"))


def test_no_space_is_seen_before_training(model, task, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"needs up to 0\.001 GB .* has 0\.000 GB free"):
        package.finetune(str(model), str(task), tmp_path / "out", **HOW)
    assert not (tmp_path / "out.run").exists()


def test_memory_that_runs_out_is_said_and_what_was_done_is_kept(model, task, tmp_path, monkeypatch):
    step = AnswerTrainer.training_step

    def short(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(AnswerTrainer, "training_step", short)
    with pytest.raises(TrainingError, match="out of memory with --batch-size 8"):
        package.finetune(str(model), str(task), tmp_path / "out", **HOW)
    monkeypatch.undo()
    started = []
    package.finetune(
        str(model), str(task), tmp_path / "out", progress=lambda *said: started.append(said), **HOW
    )
    assert min(done for stage, done, _ in started if stage == "train") == 4


def test_another_training_does_not_go_on_from_this_one(model, task, tmp_path):
    """What differs in the command, the model's weights or the task begins anew, and what was kept of the first goes."""
    with pytest.raises(KeyboardInterrupt):
        package.finetune(str(model), str(task), tmp_path / "out", progress=stop_at(2), **HOW)
    run = Folder.at(tmp_path / "out", reads=[]).run
    (first,) = run.glob("train-*")
    with pytest.raises(KeyboardInterrupt):
        package.finetune(str(model), str(task), tmp_path / "out", progress=stop_at(1), seed=1, **HOW)
    (second,) = run.glob("train-*")
    assert first != second
    started = []
    package.finetune(
        str(model), str(task), tmp_path / "out", seed=1, progress=lambda *said: started.append(said), **HOW
    )
    assert min(done for stage, done, _ in started if stage == "train") == 1
    assert not run.exists()


def test_errors_are_of_the_family():
    assert issubclass(TrainingError, SecateurError)
