"""Healing: depths on planted cuts, objectives against loops, what is trained and what is not, stopped and resumed."""

from __future__ import annotations

import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from fixtures.folders import questions, save_model, secateur, write_rows
from fixtures.places import SHARED
from fixtures.zoo import tiny, variant
from safetensors.torch import load_file

import secateur as package
from secateur.core.fitted import Fitted
from secateur.core.plan import Drop, Linearize, Plan
from secateur.core.site import Site
from secateur.errors import ModelError, TaskError, TrainingError, UnknownName
from secateur.hf.anatomy import anatomy
from secateur.surgery.materialize import cut
from secateur.training.answers import collate
from secateur.training.objectives import (
    DepthPair,
    Distillation,
    depth_pairs,
    kl_divergence,
    recorded_outputs,
    relative_error,
)
from secateur.training.trainable_parameters import parameters_under

HOW = {"allow_small": True, "device": "cpu", "seqlen": 16}
FAST = {"epochs": 2, "lr": 3e-3}


def affine(blocks, form, *, width=32, scale=0.0, seed=0, rank=None, bias=True):
    """A map that changes nothing, or by `scale` of something random."""
    draw = np.random.default_rng(seed)
    if rank is not None:
        arrays = {name: scale * draw.normal(size=(rank, width)) for name in "ab"} | {"bias": np.zeros(width)}
    else:
        arrays = {"weight": np.eye(width) + scale * draw.normal(size=(width, width)) / math.sqrt(width)}
        arrays |= {"bias": scale * draw.normal(size=width)} if bias else {}
    kept = {name: array.astype(np.float32) for name, array in arrays.items()}
    return Linearize(tuple(blocks), form, Fitted.of(kept))


def idle_(model, gone):
    """Blocks of a Llama or a GPT-2 that add nothing to the stream."""
    for block in gone:
        own = model.transformer.h[block] if hasattr(model, "transformer") else model.model.layers[block]
        attention, network = (own.attn, own.mlp) if hasattr(own, "attn") else (own.self_attn, own.mlp)
        for module in (attention, network):
            out = [m for n, m in module.named_modules() if n in ("o_proj", "down_proj", "c_proj")]
            for linear in out:
                for parameter in linear.parameters():
                    parameter.data.zero_()
    return model


# --------------------------------------------------------------------------------------------------------------- depths

CUTS = {
    "a drop": (lambda b: (Drop(Site(2)),), [2]),
    "the last two dropped": (lambda b: (Drop(Site(3)), Drop(Site(4))), [3, 4]),
    "the first dropped": (lambda b: (Drop(Site(0)),), [0]),
    "a linear run": (lambda b: (affine([1, 2], "linear"),), [1, 2]),
    "the first linear": (lambda b: (affine([0], "linear"),), [0]),
    "the last linear": (lambda b: (affine([4], "linear"),), [4]),
    "two linear runs": (lambda b: (affine([1], "linear"), affine([3], "linear", seed=1)), [1, 3]),
    "two maps at one place": (lambda b: (affine([1], "linear"), affine([2], "linear", seed=1)), [1, 2]),
    "of low rank": (lambda b: (affine([2], "linear", rank=3),), [2]),
    "a fold": (lambda b: (affine([1, 2], "fold", bias=b),), [1, 2]),
    "a fold and a drop": (lambda b: (affine([2], "fold", bias=b), Drop(Site(4))), [2, 4]),
    "a drop, then linear": (lambda b: (Drop(Site(1)), affine([2], "linear")), [1, 2]),
    "nothing": (lambda b: (), []),
}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("edits", "gone"), CUTS.values(), ids=CUTS)
def test_where_blocks_that_add_nothing_went_every_depth_agrees(name, edits, gone, as_loaded):
    """Then the cut model computes what the original does, so that the streams at every depth named must be equal; and
    every other block of the original changes its stream, so that a depth off by one would not be."""
    layers = {"n_layer": 5} if name == "gpt2" else {"num_hidden_layers": 5}
    teacher = idle_(variant(name, **layers).double(), gone)
    loaded = as_loaded(teacher)
    plan = Plan(loaded.fingerprint, edits(name == "gpt2"))
    student = cut(loaded, plan)
    parts = anatomy(student)
    known = depth_pairs(plan, loaded.anatomy, parts)
    ids = torch.randint(3, 96, (2, 6), generator=torch.Generator().manual_seed(0))
    blocks = loaded.anatomy.blocks
    with torch.no_grad(), recorded_outputs(student, [d.path for d in known]) as found:
        student(input_ids=ids)
    with torch.no_grad(), recorded_outputs(teacher, blocks) as wanted:
        teacher(input_ids=ids)
    real = torch.ones(2, 6, dtype=torch.bool)
    for depth in known:
        assert relative_error(found[depth.path], wanted[blocks[depth.original]], real) < 1e-24, depth
        for other, path in enumerate(blocks):
            if not set(range(min(other, depth.original) + 1, max(other, depth.original) + 1)) <= set(gone):
                assert relative_error(found[depth.path], wanted[path], real) > 1e-4, (depth, other)
    kept = [block for block in range(5) if block not in gone]
    assert {depth.original for depth in known} >= {max(kept[-1], *gone, 0)} | (
        {3} if 4 in kept and 3 in kept else set()
    )
    assert len(parts.blocks) <= len(known) <= len(parts.blocks) + 2


def test_what_replaced_blocks_is_named(as_loaded):
    loaded = as_loaded(variant("llama", num_hidden_layers=5))
    layer = "model.layers"

    def replaced(*edits):
        plan = Plan(loaded.fingerprint, edits)
        return [d for d in depth_pairs(plan, loaded.anatomy, anatomy(cut(loaded, plan))) if d.replacements]

    assert replaced(Drop(Site(2))) == [DepthPair(f"{layer}.1", 2, (f"{layer}.1",))]
    assert replaced(Drop(Site(0))) == []
    assert replaced(affine([2, 3], "linear")) == [DepthPair(f"{layer}.2.entry", 3, (f"{layer}.2.entry",))]
    assert replaced(affine([4], "linear")) == [DepthPair("model.norm.entry", 4, ("model.norm.entry",))]
    assert replaced(affine([0], "linear")) == [DepthPair(f"{layer}.0.entry", 0, (f"{layer}.0.entry",))]
    assert replaced(affine([2], "fold", bias=False)) == [
        DepthPair(f"{layer}.1", 2, (f"{layer}.1.mlp.down_proj",))
    ]
    assert replaced() == []
    names = ["model.layers.1.mlp.up.weight", "model.layers.10.mlp.up.weight"]
    assert parameters_under(("model.layers.1",), names) == set(names[:1])


# ----------------------------------------------------------------------------------------------------------- objectives


def samples(count=4, seed=0):
    draw = np.random.default_rng(seed)
    return [(tuple(draw.integers(3, 96, 3 + n % 4).tolist()), 1) for n in range(count)]


@pytest.mark.parametrize("temperature", [None, 1.0, 2.5])
def test_the_objective_is_that_of_loops_over_tokens(temperature, as_loaded):
    loaded = as_loaded(variant("llama", num_hidden_layers=3).double())
    plan = Plan(loaded.fingerprint, (affine([1], "linear", scale=0.3),))
    student = cut(loaded, plan)
    known = depth_pairs(plan, loaded.anatomy, anatomy(student))
    batch = collate(samples())
    with torch.no_grad():
        found = Distillation(loaded, known, 0.7, temperature)(student, batch)
    up, down, total, tokens = np.zeros(len(known)), np.zeros(len(known)), 0.0, 0
    for ids, _ in samples():  # each alone, without padding
        row = torch.tensor([ids])
        with torch.no_grad(), recorded_outputs(student, [d.path for d in known]) as ours:
            own = student(input_ids=row).logits[0].numpy()
        with torch.no_grad(), recorded_outputs(loaded.model, loaded.anatomy.blocks) as theirs:
            target = loaded.model(input_ids=row).logits[0].numpy()
        for number, depth in enumerate(known):
            for t in range(len(ids)):
                a = ours[depth.path][0, t].numpy()
                b = theirs[loaded.anatomy.blocks[depth.original]][0, t].numpy()
                up[number] += sum((a - b) ** 2)
                down[number] += sum(b**2)
        for t in range(len(ids)):
            if temperature is not None:
                p, q = (np.exp(z[t] / temperature) / np.exp(z[t] / temperature).sum() for z in (target, own))
                total += temperature**2 * sum(p * np.log(p / q))
                tokens += 1
    expected = 0.7 * (up / down).sum() + (total / tokens if tokens else 0.0)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert expected > 1e-3


def test_nothing_is_left_to_learn_from_oneself():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(kl_divergence(logits, logits + 3.0, 2.0)) == pytest.approx(0, abs=1e-12)
    assert float(kl_divergence(logits, -logits, 1.0)) > 0.1


def test_dropout_is_off_while_healing(as_loaded):
    loaded = as_loaded(variant("gpt2", n_layer=3))
    plan = Plan(loaded.fingerprint, (affine([1], "linear"),))
    student = cut(loaded, plan).train()
    goal = Distillation(loaded, depth_pairs(plan, loaded.anatomy, anatomy(student)), 1.0, 1.0)
    assert float(goal(student, collate(samples()))) == float(goal(student.train(), collate(samples())))


# ------------------------------------------------------------------------------------------------------- the whole verb


def own_words(model):
    """What the teacher itself says, so that nothing predicts it better."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        starts = torch.randint(3, 96, (160, 1))
        texts = model.generate(starts, max_new_tokens=60, min_new_tokens=60, do_sample=True, top_k=0)
    return "\n\n".join(" ".join(f"w{t}" for t in row) for row in texts.tolist())


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """A Llama of four blocks, of which block 2 adds nothing; a bad map for it in each form."""
    place = tmp_path_factory.mktemp("heal")
    model = idle_(variant("llama", num_hidden_layers=4), [2])
    save_model(place / "model", model, words)
    save_model(place / "other", tiny("llama"), words)
    write_rows(place / "q.jsonl", questions(300))
    (place / "book.txt").write_text(own_words(model), encoding="utf-8")
    loaded = package.load(str(place / "model"))
    edits = {
        "linear": affine([2], "linear", scale=0.4),
        "low": affine([2], "linear", scale=0.6, rank=2),
        "fold": affine([2], "fold", scale=0.8, bias=False),
        "drop": Drop(Site(1)),
        "first": Drop(Site(0)),
    }
    for name, edit in edits.items():
        package.apply(str(place / "model"), Plan(loaded.fingerprint, (edit,)), place / name)
    return place


def weights(folder):
    return load_file(folder / "model.safetensors")


def heal(place, name, out, **more):
    return package.heal(place / name, f"text:{place / 'book.txt'}", out, **(HOW | FAST | more))


@pytest.mark.parametrize(
    ("form", "trained"),
    [
        pytest.param(
            "linear",
            ["model.layers.2.entry.0.bias", "model.layers.2.entry.0.weight"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "low", [f"model.layers.2.entry.0.{name}" for name in ("a", "b", "bias")], marks=pytest.mark.slow
        ),
        pytest.param("fold", ["model.layers.1.mlp.down_proj.weight"], marks=pytest.mark.slow),
    ],
)
def test_the_first_stage_trains_what_stands_for_blocks_and_nothing_else(place, tmp_path, form, trained):
    more = {"epochs": 6, "lr": 1e-2, "split": "probe,select"}  # all of it: nothing is chosen
    out = tmp_path / "out"
    found = heal(place, form, out, stage="layers", **more)
    before, after = weights(place / form), weights(out)
    assert before.keys() == after.keys()
    assert sorted(n for n in before if not torch.equal(before[n], after[n])) == trained
    (stage,) = found.record["stages"]
    assert stage["trained_parameters"] == sum(before[n].numel() for n in trained)
    unhealed, healed = (distance(place / "model", folder, form) for folder in (place / form, out))
    assert healed < 0.5 * unhealed, "it is hardly nearer to its teacher"


def distance(teacher, folder, form):
    """Relative error of the stream after block 2, on tokens that nobody learned."""
    original, student = package.load(str(teacher)), package.load(str(folder))
    path = "model.layers.1" if form == "fold" else "model.layers.2.entry"
    ids = torch.randint(3, 96, (20, 12), generator=torch.Generator().manual_seed(9))
    with torch.no_grad(), recorded_outputs(student.model, [path]) as ours:
        student.model(input_ids=ids)
    with torch.no_grad(), recorded_outputs(original.model, ["model.layers.2"]) as theirs:
        original.model(input_ids=ids)
    return float(relative_error(ours[path], theirs["model.layers.2"], torch.ones(20, 12, dtype=torch.bool)))


def test_a_drop_is_healed_by_the_block_before_it(place, tmp_path):
    heal(place, "drop", tmp_path / "out", stage="layers")
    before, after = weights(place / "drop"), weights(tmp_path / "out")
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {n for n in before if n.startswith("model.layers.0.")}


@pytest.mark.slow
def test_both_stages_train_everything_and_the_record_says_what_eval_says(place, tmp_path):
    out = tmp_path / "out"
    found = heal(place, "linear", out, epochs=4)
    record = found.record
    assert [stage["stage"] for stage in record["stages"]] == ["layers", "end"]
    assert [stage["depths"] for stage in record["stages"]] == [1, 4]
    before, after = weights(place / "linear"), weights(out)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    folders = {"teacher": place / "model", "unhealed": place / "linear", "healed": out}
    for side, folder in folders.items():
        said = package.evaluate(str(folder), f"text:{place / 'book.txt'}", split="select", **HOW)["scores"]
        for row in record["scores"]:
            (score,) = [score for score in said if score["metric"] == row["metric"]]
            assert row[side]["value"] == pytest.approx(score["value"], abs=1e-6), (side, row["metric"])
    loss = record["scores"][-1]
    assert loss["gain"]["value"] == pytest.approx(loss["healed"]["value"] - loss["unhealed"]["value"])
    assert loss["gap"]["value"] == pytest.approx(loss["healed"]["value"] - loss["teacher"]["value"])
    assert record["tokens"] == sum(stage["tokens"] for stage in record["stages"]) > 1000
    assert record["fingerprint"] == package.load(str(out)).fingerprint
    card = (out / "README.md").read_text()
    assert record["command"] in card
    assert f"{loss['unhealed']['value']:.4g}" in card
    assert f"{loss['teacher']['value']:.4g}" in card
    assert heal(place, "linear", out, epochs=4).already


def test_tokens_are_those_that_were_read(place, tmp_path):
    """Every chunk has 16, but the last of a text."""
    found = heal(place, "fold", tmp_path / "out", stage="end", epochs=3)
    count = found.record["trained_on"]["examples"]
    assert 3 * 16 * (count - 1) < found.record["tokens"] <= 3 * 16 * count


def test_a_stage_that_helps_nothing_changes_nothing(place, tmp_path, caplog):
    heal(place, "linear", tmp_path / "out", stage="end", lr=3.0, epochs=1)
    before, after = weights(place / "linear"), weights(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "did not lower the loss" in caplog.text
    record = json.loads((tmp_path / "out" / "heal.json").read_text())
    assert [row["kept"] for row in record["stages"][0]["epochs"]] == [True, False]


def test_a_healed_fold_loads_in_stock_transformers(place, tmp_path):
    from transformers import LlamaForCausalLM

    heal(place, "fold", tmp_path / "out")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 3
    ids = torch.tensor([[5, 6, 7]])
    cached = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(cached, model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False))


def stop_at(stage, step):
    """Ctrl-C in the given training; the first stage's steps are counted before those of the second."""
    seen = []

    def progress(name, done, total):
        if name == "train" and done == 0:
            seen.append(name)
        if name == "train" and done == step and len(seen) == stage:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


@pytest.mark.parametrize(("stage", "step"), [pytest.param(1, 2, marks=pytest.mark.slow), (2, 3)])
def test_stopped_in_either_stage_it_goes_on_to_the_same_weights(place, tmp_path, stage, step):
    heal(place, "linear", tmp_path / "whole", lr=1e-3)
    with pytest.raises(KeyboardInterrupt):
        heal(place, "linear", tmp_path / "out", lr=1e-3, progress=stop_at(stage, step))
    assert not (tmp_path / "out").exists()
    steps = []
    again = heal(place, "linear", tmp_path / "out", lr=1e-3, progress=lambda *said: steps.append(said))
    first = next(done for name, done, _ in steps if name == "train")
    assert first == step, "it did not go on from where it was"
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "out.run").exists()
    assert again.record["tokens"] == json.loads((tmp_path / "whole/heal.json").read_text())["tokens"]


def test_what_is_refused(place, tmp_path):
    with pytest.raises(ModelError, match="is not the model that"):
        heal(place, "linear", tmp_path / "out", teacher=str(place / "other"))
    with pytest.raises(TrainingError, match=r"plan\.json"):
        heal(place, "model", tmp_path / "out")
    with pytest.raises(TrainingError, match="--stage end"):
        heal(place, "first", tmp_path / "out")
    with pytest.raises(UnknownName, match="layers"):
        heal(place, "linear", tmp_path / "out", stage="layer")
    with pytest.raises(TaskError, match="never trained on"):
        heal(place, "linear", tmp_path / "out", split="test")
    for wrong in ({"temperature": 0.0}, {"temperature": math.inf}, {"hidden": -1.0}, {"lr": 0.0}):
        with pytest.raises(TrainingError):
            heal(place, "linear", tmp_path / "out", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_moved_is_said_and_can_be_named(place, tmp_path):
    copy = tmp_path / "cut"
    copy.mkdir()
    for file in (place / "linear").iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    (copy / "tensors").symlink_to(place / "linear" / "tensors")
    plan = json.loads((copy / "plan.json").read_text())
    plan["provenance"]["command"]["model"] = str(tmp_path / "gone")
    (copy / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ModelError, match="--teacher where it is"):
        package.heal(copy, str(place / "q.jsonl"), tmp_path / "out", **HOW)
    found = package.heal(
        copy, str(place / "q.jsonl"), tmp_path / "out", teacher=str(place / "model"), max_steps=1, **HOW
    )
    assert found.record["teacher"]["name"] == str(place / "model")


def test_the_command_line(place, tmp_path):
    words = ("heal", place / "fold", "--task", place / "q.jsonl", "-o", tmp_path / "out", "--allow-small")
    ran = secateur(*words, "--epochs", "1", "--lr", "1e-3", "--stage", "end", "--device", "cpu", "-q")
    assert ran.exit_code == 0, ran.output
    for word in ("teacher", "unhealed", "healed", "tokens", str(tmp_path / "out")):
        assert word in ran.output
    told = secateur(*words, "--epochs", "1", "--lr", "1e-3", "--stage", "end", "--device", "cpu", "--json")
    assert json.loads(told.output)["already"] is True
    record = json.loads((tmp_path / "out/heal.json").read_text())
    assert record["command"] == (
        f"secateur heal {place / 'fold'} --task {place / 'q.jsonl'} --stage end --allow-small --epochs 1 --lr 0.001"
    )


@pytest.mark.slow
def test_on_stories_a_drop_is_worse_than_a_linear_map_and_that_is_worse_than_one_healed(tmp_path):
    """The paper's ordering, on a model by somebody else: one block of five goes, chosen by loss."""
    if not SHARED.exists():
        pytest.skip("needs ../shared/data")
    model, task = str(SHARED / "models/stories260K"), f"text:{SHARED / 'text_tinystories_train.jsonl'}"
    for form in ("drop", "linear"):
        how = {"method": "depth", "blocks": 1, "form": form, "by": "loss", "limit": 300, "report": "quick"}
        package.prune(model, task, tmp_path / form, **how)
    healed = package.heal(tmp_path / "linear", task, tmp_path / "healed", stage="end", limit=300, lr=1e-3)
    (score,) = healed.record["scores"]
    assert score["metric"] == "text_loss"
    loss = {"healed": score["healed"]["value"], "linear": score["unhealed"]["value"]}
    said = package.evaluate(str(tmp_path / "drop"), task, split="select", limit=300)["scores"]
    (dropped,) = [row["value"] for row in said if row["metric"] == "text_loss"]
    assert score["teacher"]["value"] < loss["healed"] < loss["linear"] < dropped
    assert score["gain"]["ci"][1] < 0, "no more than chance"
