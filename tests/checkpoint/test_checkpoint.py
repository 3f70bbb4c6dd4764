"""What is written: a stock checkpoint that computes, bit for bit, what the cut model in memory did."""

from __future__ import annotations

import json
import os
import shutil
import stat

import pytest
import torch
import transformers
from fixtures.folders import contents, questions, save_model, secateur, write_rows
from fixtures.zoo import VOCAB_SIZE, by_layout, tiny
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from secateur import api
from secateur.checkpoint.folder import Folder, finite, write_json
from secateur.checkpoint.loadability import STOCK
from secateur.checkpoint.save import assert_same
from secateur.core.plan import Plan, parse_edits
from secateur.core.site import in_words
from secateur.errors import OutputError
from secateur.hf.fingerprint import config_digest
from secateur.hf.load import load_model
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve

ROWS = torch.arange(2 * 12).reshape(2, 12) * 7 % VOCAB_SIZE


def logits_of_masked(folder, edits, dtype="auto"):
    """The original with the plan applied in memory; no file is involved."""
    loaded = load_model(str(folder), dtype=dtype)
    plan = Plan(loaded.fingerprint, parse_edits(edits))
    with torch.inference_mode(), masked(loaded.model, resolve(plan, loaded.anatomy, loaded.fingerprint)):
        return loaded.model(input_ids=ROWS).logits


def logits_of_stock(folder, **how):
    model = AutoModelForCausalLM.from_pretrained(folder, **how).eval()
    with torch.inference_mode():
        return model(input_ids=ROWS).logits


@pytest.mark.parametrize("name", by_layout())
def test_every_family_is_written_and_read_by_the_stock_classes(name, words, tmp_path):
    model = save_model(tmp_path / "m", tiny(name), words)
    edits = ["b0.q=2", "b1.down=3", "b1.v=tail:2"]
    made = api.apply(str(model), edits, tmp_path / "out")
    assert made.verdict is None
    stock = logits_of_stock(tmp_path / "out")
    assert torch.equal(stock, logits_of_masked(model, edits))
    assert not torch.equal(stock, logits_of_stock(model)), "nothing was cut"
    before, after = load_model(str(model)), load_model(str(tmp_path / "out"))
    assert config_digest(after.model) == config_digest(before.model)
    assert after.anatomy.num_parameters == before.anatomy.num_parameters
    assert type(after.model) is type(before.model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_bfloat16_stays_bfloat16(name, words, tmp_path):
    model = save_model(tmp_path / "m", tiny(name, torch.bfloat16), words)
    api.apply(str(model), ["b1.down=3"], tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as tensors:
        assert {tensors.get_tensor(key).dtype for key in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    stock = logits_of_stock(tmp_path / "out")
    assert stock.dtype == torch.bfloat16
    assert torch.equal(stock, logits_of_masked(model, ["b1.down=3"]))


def test_dtype_is_also_what_is_written(words, tmp_path):
    model = save_model(tmp_path / "m", tiny("llama", torch.bfloat16), words)
    done = secateur("apply", model, "--edit", "b1.down=3", "--dtype", "float32", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert torch.equal(
        logits_of_stock(tmp_path / "out"), logits_of_masked(model, ["b1.down=3"], dtype="float32")
    )
    assert load_model(str(tmp_path / "out")).model.dtype == torch.float32


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "gpt2-untied-wide"])
def test_tied_embeddings_stay_tied(name, words, tmp_path):
    """A tied model does not grow by a copy of its embeddings, an untied one keeps both."""
    model = save_model(tmp_path / "m", tiny(name), words)
    api.apply(str(model), ["b1.down=3"], tmp_path / "out")
    was, now = ((folder / "model.safetensors").stat().st_size for folder in (model, tmp_path / "out"))
    assert abs(now - was) < 256  # the header may say a little more or less, no tensor has come or gone
    first, second = (AutoModelForCausalLM.from_pretrained(f) for f in (model, tmp_path / "out"))
    tied = [m.get_input_embeddings().weight is m.get_output_embeddings().weight for m in (first, second)]
    assert tied[0] == tied[1] == (name != "gpt2-untied-wide")


def test_a_sharded_model_and_its_cut_are_the_same_model(words, tmp_path):
    sharded = save_model(tmp_path / "sharded", tiny("llama"), words, max_shard_size="20kB")
    whole = save_model(tmp_path / "whole", tiny("llama"), words)
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    for folder in (sharded, whole):
        api.apply(str(folder), ["b1.down=3"], tmp_path / f"{folder.name}-cut")
    first, second = (contents(tmp_path / f"{name}-cut")["model.safetensors"] for name in ("sharded", "whole"))
    assert first == second


def test_an_empty_plan_writes_the_very_model(words, tmp_path):
    model = save_model(tmp_path / "m", tiny("llama"), words)
    loaded = load_model(str(model))
    api.apply(str(model), Plan(loaded.fingerprint), tmp_path / "out")
    assert load_model(str(tmp_path / "out")).fingerprint == loaded.fingerprint
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (model / weights).read_bytes()


def test_what_apply_leaves(words, tmp_path):
    """Tokenizer, generation config, plan and a card that claims nothing; no run folder, no verdict."""
    source = tiny("llama")
    source.generation_config = GenerationConfig(max_new_tokens=7, bos_token_id=1, eos_token_id=2)
    model = save_model(tmp_path / "m", source, words)
    api.apply(str(model), ["b1.down=3"], tmp_path / "out")
    assert not (tmp_path / "out.run").exists()
    assert GenerationConfig.from_pretrained(tmp_path / "out").max_new_tokens == 7
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("w5 w9 w77")["input_ids"] == words("w5 w9 w77")["input_ids"]
    plan = json.loads((tmp_path / "out/plan.json").read_text())
    assert Plan.from_json(plan).edits == parse_edits(["b1.down=3"])
    assert plan["provenance"]["verified"] is False
    assert set(plan["provenance"]["versions"]) >= {"secateur", "torch"}
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "Nothing was verified" in card
    assert "b1.down" in card
    assert not list((tmp_path / "out").glob("verdict*"))


def test_show_says_of_what_apply_made_that_nothing_was_judged(words, tmp_path):
    save_model(tmp_path / "m", tiny("llama"), words)
    api.apply(str(tmp_path / "m"), ["b0.up=1"], tmp_path / "out")
    told = secateur("show", tmp_path / "out")
    assert told.exit_code == 2
    assert "made by `secateur apply`, which judges nothing" in " ".join(told.output.split())


def test_apply_twice_and_otherwise(words, tmp_path):
    model = save_model(tmp_path / "m", tiny("llama"), words)
    first = api.apply(str(model), ["b1.down=3"], tmp_path / "out")
    before = contents(tmp_path)
    again = api.apply(str(model), ["b1.down=3"], tmp_path / "out")
    assert (first.already, again.already) == (False, True)
    assert contents(tmp_path) == before
    with pytest.raises(OutputError, match="another command"):
        api.apply(str(model), ["b1.down=4"], tmp_path / "out")
    replaced = api.apply(str(model), ["b1.down=4"], tmp_path / "out", overwrite=True)
    assert replaced.plan.edits == parse_edits(["b1.down=4"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"]


def test_a_plan_file_does_the_same_as_its_edits(words, tmp_path):
    model = save_model(tmp_path / "m", tiny("llama"), words)
    api.apply(str(model), ["b1.down=3", "b0.q=2"], tmp_path / "first")
    api.apply(str(model), tmp_path / "first", tmp_path / "second")
    first, second = (contents(tmp_path / name)["model.safetensors"] for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask(umask, words, tmp_path):
    model = save_model(tmp_path / "m", tiny("llama"), words)
    before = os.umask(umask)
    try:
        api.apply(str(model), ["b1.down=3"], tmp_path / "out")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {0o666 & ~umask}


# --------------------------------------------------------------------------------------- the verdict on what is written


@pytest.fixture(scope="module")
def pruned(words, tmp_path_factory):
    """A bfloat16 model, pruned; its scores are those of the rounded weights in the files."""
    place = tmp_path_factory.mktemp("pruned")
    save_model(place / "m", tiny("llama", torch.bfloat16), words)
    write_rows(place / "q.jsonl", questions())
    small = ["--matrices", "down,v", "--layers", "1", "--side", place / "q.jsonl", "--objective", "loss"]
    small.append("--keep-unproven")
    done = secateur("prune", place / "m", "--task", place / "q.jsonl", "-o", place / "out", *small)
    assert done.exit_code == 0, done.stderr
    return place


def test_the_verdict_is_that_of_the_files(pruned, tmp_path):
    """A fresh `eval` of the checkpoint finds what the verdict says the cut model scores."""
    looked = ["eval", pruned / "out", "--task", pruned / "q.jsonl", "--split", "test", "--json"]
    found = json.loads(secateur(*looked, "--ledger", tmp_path / "l.sqlite").stdout)
    verdict = json.loads((pruned / "out/verdict.json").read_text())
    assert verdict["cut"], "this task's loss is lowered by cutting; else nothing would be compared"
    loss = next(score for score in found["scores"] if score["metric"] == "loss")
    assert loss["value"] == pytest.approx(verdict["after"]["value"], rel=1e-12)
    assert verdict["after"]["value"] != verdict["before"]["value"]
    assert verdict["written"]["fingerprint"] == load_model(str(pruned / "out")).fingerprint
    assert verdict["model"]["dtype"] == "bfloat16"


def test_the_plan_of_a_checkpoint_makes_it_again(pruned, tmp_path):
    """`apply --plan OUT` on the original gives the same weights, from the plan alone."""
    done = secateur("apply", pruned / "m", "--plan", pruned / "out", "-o", tmp_path / "again")
    assert done.exit_code == 0, done.stderr
    first, second = (contents(folder)["model.safetensors"] for folder in (pruned / "out", tmp_path / "again"))
    assert first == second


def test_the_card_says_what_the_verdict_says(pruned):
    verdict = json.loads((pruned / "out/verdict.json").read_text())
    card = (pruned / "out/README.md").read_text()
    assert verdict["sentence"] in card
    assert verdict["model"]["fingerprint"] in card
    assert verdict["task"]["hash"] in card
    told = Plan.from_json(json.loads((pruned / "out/plan.json").read_text())).descriptions
    assert told, "nothing was cut"
    loads = f"transformers: `{STOCK}`, read back (transformers {transformers.__version__})"
    edits = [f"{in_words(words)} (`{words}`)" for words in told]
    assert all(f"\n- {words}\n" in card for words in (*edits, loads))
    assert f"{verdict['parameters']['after']:,} stored now" in card
    assert "base_model" not in card  # a folder is no model on the hub


# ------------------------------------------------------------------------------------------------------ the folder


def test_a_checkpoint_that_computes_something_else_is_not_published():
    logits = [torch.ones(3, 5)]
    assert_same(logits, [logits[0] + 1e-7], "folder")
    for other in (logits[0] + 1e-3, logits[0] * float("nan")):
        with pytest.raises(OutputError, match="does not reproduce"):
            assert_same(logits, [other], "folder")


def test_a_wrong_checkpoint_leaves_nothing(words, tmp_path, monkeypatch):
    """The model that is read back is another one: the command fails and OUT does not appear."""
    model = save_model(tmp_path / "m", tiny("llama"), words)
    monkeypatch.setattr(
        "secateur.surgery.materialize.CutTensors.__call__", lambda self, name: None
    )  # forgets the cut
    with pytest.raises(OutputError, match="does not reproduce"):
        api.apply(str(model), ["b1.down=3"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_an_empty_folder_may_be_filled(words, tmp_path):
    (tmp_path / "out").mkdir()
    model = save_model(tmp_path / "m", tiny("llama"), words)
    api.apply(str(model), ["b1.down=3"], tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").exists()


def test_a_failed_second_rename_puts_the_old_result_back(tmp_path, monkeypatch):
    folder = Folder.at(tmp_path / "out", reads=[])
    old = {"provenance": {"command": {"old": 1}}}
    write_json_in(tmp_path / "out", old)
    rename = os.rename

    def failing(source, target):
        if str(source).endswith("staging"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OutputError, match="no space left"):
        publish_new(folder)
    assert json.loads((tmp_path / "out/plan.json").read_text()) == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def publish_new(folder):
    with folder.claimed({"new": 1}, overwrite=True):
        write_json_in(folder.staging, {"new": 1})
        folder.publish()


def write_json_in(folder, value):
    folder.mkdir(parents=True)
    write_json(folder / "plan.json", value)


def test_json_has_no_numbers_that_json_does_not_know(tmp_path):
    value = {"a": [1.5, float("nan"), (float("inf"),)], 3: {"b": float("-inf")}}
    assert finite(value) == {"a": [1.5, None, [None]], "3": {"b": None}}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == finite(value)


def test_two_that_claim_one_folder(tmp_path):
    first, second = (Folder.at(tmp_path / "out", reads=[]) for _ in range(2))
    with first.claimed({}, overwrite=False):
        with pytest.raises(OutputError, match="in use"), second.claimed({}, overwrite=False):
            pass
        assert (tmp_path / "out.run/lock").exists()
    with second.claimed({}, overwrite=False):
        shutil.rmtree(tmp_path / "out.run")  # a user tidies up amid a run: that is no reason to fail
    assert not (tmp_path / "out.run").exists()
