"""What users get wrong: one clear message on stderr, exit code 2, nothing left behind; through the real commands."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import struct

import pytest
import torch
from fixtures.folders import contents, questions, refused, save_model, secateur, write_rows
from fixtures.forked import limited
from fixtures.zoo import CONTEXT, VOCAB_SIZE, tiny
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from secateur.core.ledger import Ledger


@pytest.fixture(scope="module")
def model(tmp_path_factory, words):
    return save_model(tmp_path_factory.mktemp("model") / "m", tiny("llama"), words)


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "copy")


@pytest.fixture
def task(tmp_path):
    return write_rows(tmp_path / "q.jsonl", questions())


@pytest.fixture
def out(tmp_path):
    return tmp_path / "made" / "out"


def nothing_at(out):
    assert not out.exists()
    assert not out.with_name(out.name + ".run").exists()


def refused_prune(out, model, task, *more, says):
    refused(secateur("prune", model, "--task", task, "-o", out, *more), *says)
    nothing_at(out)


# ------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["--method", "lasr"], ["unknown method 'lasr'", "Did you mean laser?"]),
        (["--objective", "acuracy"], ["unknown --objective 'acuracy'", "Did you mean accuracy"]),
        (["--objective", "text_loss"], ["--objective text_loss", "choice task", "it may be accuracy"]),
        (["--matrices", "dwon"], ["unknown matrix 'dwon'", "Did you mean down"]),
        (["--matrices", ","], ["--matrices names none", "gate"]),
        (["--layers", "1:7"], ["layers 1:7", "blocks 0 to 1"]),
        (["--layers", "a:b"], ["--layers 'a:b'", "FROM:TO"]),
        (["--layers", "²"], ["--layers '²'", "FROM:TO"]),
        (["--batch-size", "-3"], ["--batch-size '-3'", "auto"]),
        (["--dtype", "float23"], ["unknown dtype 'float23'", "float32"]),
        (["--device", "cudda"], ["unknown device 'cudda'", "cuda"]),
        (["--revision", "main"], ["revision (main)", "local folder"]),
        (["--side", "nothing.jsonl"], ["nothing.jsonl", "cannot be read"]),
        (["--test-task", "builtin:fact"], ["unknown builtin task 'fact'", "Did you mean facts?"]),
        (["--chat"], ["chat template", "--chat"]),
    ],
)
def test_options(typed, says, model, task, out):
    refused_prune(out, model, task, *typed, says=says)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("builtin:fact", ["no built-in model 'fact'", "Did you mean facts?"]),
        ("./nowhere", ["no folder './nowhere'"]),
        ("facts", ["no folder 'facts'", "Did you mean builtin:facts?"]),
    ],
)
def test_unknown_model(name, says, task, out):
    refused_prune(out, name, task, says=says)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("builtin:fact", ["unknown builtin task 'fact'", "Did you mean facts?"]),
        ("counterfct", ["unknown task 'counterfct'", "Did you mean counterfact"]),
        ("nowhere.jsonl", ["nowhere.jsonl", "No such file"]),
        ("text:nowhere.txt", ["nowhere.txt", "No such file"]),
    ],
)
def test_unknown_task(name, says, model, out):
    refused_prune(out, model, name, says=says)


def test_unknown_family(copy, task, out):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"architectures": ["LlammaForCausalLM"]}))
    refused_prune(out, copy, task, says=["LlammaForCausalLM", "Did you mean LlamaForCausalLM"])


def test_names_of_the_other_verbs(model, task):
    refused(secateur("eval", model, "--task", task, "--split", "tset"), "unknown split 'tset'", "test")
    refused(secateur("probe", model, "--task", task, "--split", "tset"), "unknown split 'tset'", "test")
    refused(secateur("probe", model, "--task", task, "--what", "spektrum"), "'spektrum'", "spectrum")
    refused(secateur("probe", model, "--task", task, "--split", "test"), "test is for the one verdict")
    for what in ("spectrum", "curves"):
        refused(
            secateur("probe", model, "--task", task, "--what", what, "--edit", "b0.up=3"), "leave out --plan"
        )
    refused(secateur("probe", model, "--task", task, "--what", "tail"), "--edit", "b2.gate=5")
    refused(secateur("eval", model, "--task", task, "--split", "test"), "--ledger")


def test_a_verb_that_does_not_exist():
    result = secateur("prnue")
    assert result.exit_code == 2
    assert "prune" in result.stderr


# ---------------------------------------------------------------------------------------------------- task data


def bad_rows(change):
    rows = questions()
    rows[4] = rows[4] | change
    return rows


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (bad_rows({"id": "q1"}), ["line 5", "id 'q1' was already used in line 2"]),
        (bad_rows({"answer": " w1 w2"}), ["line 5", "not one of the choices"]),
        ([{"id": "a", "prompt": "w3"}], ["line 1", "'answer' is missing"]),
        (bad_rows({"prompt": " ".join(["w5"] * CONTEXT)}), ["'q4'", f"context of {CONTEXT}"]),
        (questions(60), ["select 24", "need 50 each", "at least 125 groups"]),
        ([], ["no examples"]),
    ],
)
def test_task_files(rows, says, model, tmp_path, out):
    refused_prune(out, model, write_rows(tmp_path / "bad.jsonl", rows), says=says)


def test_broken_line(model, task, out):
    lines = task.read_text().split("\n")
    task.write_text("\n".join([*lines[:6], '{"id": "x", "prompt": ', *lines[6:]]))
    refused_prune(out, model, task, says=[f"{task}, line 7", "not JSON"])


def test_an_answer_that_tokenizes_to_nothing(copy, tmp_path, out):
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB_SIZE)}, unk_token="w0"))
    inner.normalizer = normalizers.Replace("~", "")
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0").save_pretrained(copy)
    rows = [row | {"choices": None} for row in questions()]
    rows[7]["answer"] = " ~"
    path = write_rows(tmp_path / "q.jsonl", rows)
    refused_prune(out, copy, path, says=["'q7'", "' ~'", "tokenizes to nothing"])


def test_a_broken_side_or_paraphrase_is_found_before_the_search(model, task, tmp_path, out):
    long = questions(3)
    long[0]["prompt"] = " ".join(["w5"] * CONTEXT)
    side = write_rows(tmp_path / "side.jsonl", long)
    refused_prune(out, model, task, "--side", side, says=["'q0'", f"context of {CONTEXT}"])
    rows = [row | {"paraphrases": [" ".join(["w5"] * CONTEXT)]} for row in questions()]
    path = write_rows(tmp_path / "p.jsonl", rows)
    refused_prune(out, model, path, says=["#0'", f"context of {CONTEXT}"])


# ------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value, copy, task, out):
    file, name = copy / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(file)
    tensors[name][3, 2] = value
    save_file(tensors, file, metadata={"format": "pt"})
    refused_prune(out, copy, task, says=[name, "NaN or infinity"])


def test_truncated_weights(copy, task, out):
    os.truncate(copy / "model.safetensors", 20_000)
    refused_prune(out, copy, task, says=["model.safetensors", "truncated"])


def test_missing_shard(words, tmp_path, task, out):
    folder = save_model(tmp_path / "sharded", tiny("llama"), words, max_shard_size="20kB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused_prune(out, folder, task, says=[shard.name, "missing"])


class Opened:
    """What a pickle could do: make a folder. Nothing may ever do it."""

    def __init__(self, where):
        self.where = str(where)

    def __reduce__(self):
        return os.mkdir, (self.where,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_never_opened(name, copy, task, out, tmp_path):
    (copy / "model.safetensors").unlink()
    torch.save(Opened(tmp_path / "ran"), copy / name)
    refused_prune(out, copy, task, says=[name, "pickle"])
    assert not (tmp_path / "ran").exists()


def test_code_of_a_checkpoint_is_never_run_unasked(copy, task, out, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (copy / "config.json").write_text(json.dumps(config | own))
    (copy / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    refused_prune(out, copy, task, says=["trust_remote_code", "--trust-remote-code"])
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------ plans and edits


def refused_apply(out, model, *more, says):
    refused(secateur("apply", model, "-o", out, *more), *says)
    nothing_at(out)


def test_plan_for_another_model(model, words, tmp_path, out):
    made = secateur("apply", model, "--edit", "b1.down=3", "-o", tmp_path / "cut")
    assert made.exit_code == 0, made.stderr
    other = save_model(tmp_path / "other", tiny("llama-tied-biased"), words)
    refused_apply(out, other, "--plan", tmp_path / "cut", says=["fingerprint"])
    plan = tmp_path / "cut" / "plan.json"
    refused_apply(out, other, "--plan", plan, says=["this plan is for the model with fingerprint"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", ["cannot be read as JSON"]),
        ("[]", ["not a plan", "list"]),
        ("{}", ["version None", "reads version 1"]),
        ('{"version": 1, "model": "x", "edits": [{}]}', ["not a plan"]),
        ('{"version": 1, "model": "x", "edits": [{"kind": "trunkate"}]}', ["'trunkate'", "truncate"]),
    ],
)
def test_broken_plans(text, says, model, tmp_path, out):
    (tmp_path / "plan.json").write_text(text)
    refused_apply(out, model, "--plan", tmp_path / "plan.json", says=["plan.json", *says])


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        ([], ["nothing to apply", "--edit"]),
        (["--edit", "b1.down"], ["'b1.down' is not an edit", "b2.gate=5"]),
        (["--edit", "b1.dwon=3"], ["'b1.dwon' is not a site"]),
        (["--edit", "b1=3"], ["only a matrix can be truncated"]),
        (["--edit", "b7.down=3"], ["b7.down"]),
        (["--edit", "b1.down=33"], ["at most 32"]),
        (["--edit", "b1.down=3", "--edit", "b1.down=4"], ["two edits claim b1.down"]),
        (["--edit", "b1.down=3", "--plan", "x"], ["--plan or --edit, not both"]),
        (["--plan", "nowhere.json"], ["nowhere.json", "cannot be read"]),
    ],
)
def test_edits(edits, says, model, out):
    refused_apply(out, model, *edits, says=says)


# ------------------------------------------------------------------------------------------------ output and ledger


def test_output_in_use(model, task, out):
    run = out.with_name("out.run")
    run.mkdir(parents=True)
    with open(run / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(secateur("prune", model, "--task", task, "-o", out), "in use", run / "lock")
    assert not out.exists()


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_what_secateur_did_not_write_is_left_alone(more, model, task, out):
    out.mkdir(parents=True)
    (out / "thesis.txt").write_text("mine")
    refused(secateur("prune", model, "--task", task, "-o", out, *more), "left alone", out)
    refused(secateur("apply", model, "--edit", "b0.q=1", "-o", out, *more), "left alone", out)
    assert contents(out.parent) == {"out/thesis.txt": b"mine"}


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_no_name_for_a_folder(name, model, task):
    refused(secateur("prune", model, "--task", task, "-o", name), "no name for a new folder")


def test_the_model_is_never_overwritten(copy, task):
    before = contents(copy.parent)
    refused(
        secateur("prune", copy, "--task", task, "-o", copy, "--overwrite"),
        "itself, which this command reads and never overwrites",
    )
    refused(
        secateur("apply", copy, "--edit", "b0.q=1", "-o", copy, "--overwrite"),
        "itself, which this command reads and never overwrites",
    )
    assert contents(copy.parent) == before


def test_a_place_where_nothing_can_be_written(model, task, tmp_path):
    (tmp_path / "file").write_text("")
    refused(secateur("prune", model, "--task", task, "-o", tmp_path / "file" / "out"), "cannot write")


def test_ledger_of_another_version(model, task, tmp_path, out):
    path = tmp_path / "shared.sqlite"
    Ledger.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    refused_prune(out, model, task, "--ledger", path, says=["version 99", "reads versions 1 to 2"])
    refused(secateur("runs", path), "version 99")
    assert path.read_bytes() == before


def test_ledger_that_is_damaged_or_none(model, task, tmp_path, out):
    path = tmp_path / "shared.sqlite"
    path.write_bytes(b"not a ledger at all" * 100)
    for words in (["prune", model, "--task", task, "-o", out], ["eval", model, "--task", task]):
        refused(secateur(*words, "--ledger", path), path, "not a ledger")
    nothing_at(out)
    assert path.read_bytes() == b"not a ledger at all" * 100
    refused(secateur("show", tmp_path), "is no run", "secateur runs")
    refused(secateur("report", tmp_path), "verdict.json")


def test_a_ledger_damaged_within(model, task, tmp_path, out):
    path = tmp_path / "shared.sqlite"
    Ledger.open(path).close()
    size = path.stat().st_size
    with path.open("r+b") as file:  # the page of the first table; the header stays whole
        file.seek(4096)
        file.write(struct.pack(">Q", 2**63) * ((size - 4096) // 8))
    refused(secateur("prune", model, "--task", task, "-o", out, "--ledger", path), "damaged")
    assert not out.exists()


# ------------------------------------------------------------------------------------------------------- disk full


@pytest.mark.parametrize("limit", [40_000, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_space_for_the_checkpoint(limit, model, tmp_path, out, forks):
    """1,000 bytes stop config.json or the tokenizer, 40,000 the weights."""
    done = forks.run(tmp_path, ["apply", model, "--edit", "b1.down=3", "-o", out], limited(limit))
    assert done.returncode == 2, done.stderr
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr
    nothing_at(out)


def test_no_space_is_seen_before_anything_is_written(model, out, monkeypatch):
    usage = shutil.disk_usage(model)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused_apply(out, model, "--edit", "b1.down=3", says=["0.000 GB free", "another -o"])


@pytest.mark.slow
def test_no_space_for_the_report_after_a_search(model, task, tmp_path, out, forks):
    """The report is the longest file; then what was judged is kept, and with room the same command goes on."""
    words = ["prune", model, "--task", task, "--layers", "1", "--matrices", "down", "--side", task, "-o", out]
    first = secateur(*words)
    assert first.exit_code == 0, first.stderr
    shutil.rmtree(out)  # the ledger knows all outcomes, so that only the report is longer than the limit
    done = forks.run(tmp_path, words, limited(600_000))
    assert done.returncode == 2, done.stderr
    assert "no space left" in done.stderr
    assert not out.exists()
    assert sorted(p.name for p in out.with_name("out.run").iterdir()) == ["ledger.sqlite", "lock"]
    again = secateur(*words)
    assert again.exit_code == 0, again.stderr
    assert (out / "report.html").exists()
