"""GGUF files as MODEL, and as what `export` writes: tiny ones, made here, without a network."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.folders import refused, secateur, write_rows
from fixtures.gguf_files import byte_level, llama_folder, llama_gguf
from fixtures.gguf_files import smollm2_gguf as smollm2_gguf
from torch import Tensor
from transformers import AutoModelForCausalLM

from secateur import api
from secateur.errors import ModelError
from secateur.hf import gguf_input
from secateur.hf.gguf_header import read_header
from secateur.hf.load import Loaded, load_model

gguf = pytest.importorskip("gguf")
TEXTS = ("in 1234, 12 and 123", "    def f():\n        return 1", "two  spaces", "½ a", "<s>the end</s>")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "secateur" / "gguf"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with `float`, the checkpoint, and `tiny-f32.gguf`, which was made of it."""
    return llama_gguf(tmp_path_factory.mktemp("gguf")).parent


@torch.no_grad()
def logits(loaded: Loaded) -> Tensor:
    return loaded.model(torch.arange(3, 43)[None]).logits


def questions(folder: Path) -> Path:
    rows = [
        {
            "id": f"q{i}",
            "prompt": f"{i} and {i % 7}:",
            "answer": " a" if i % 3 else " b",
            "choices": [" a", " b"],
        }
        for i in range(60)
    ]
    return write_rows(folder / "q.jsonl", rows)


# -------------------------------------------------------------------------------------------------------- what is read


def test_a_file_is_the_checkpoint_that_it_was_made_of(made):
    whole, read = (
        load_model(str(made / "float"), device="cpu"),
        load_model(str(made / "tiny-f32.gguf"), device="cpu"),
    )
    assert read.fingerprint == whole.fingerprint, "float32 loses nothing"
    torch.testing.assert_close(logits(read), logits(whole), rtol=0, atol=0)
    assert read.model.dtype == torch.float32
    assert "quantization_config" not in read.model.config.to_dict()
    for text in TEXTS:
        assert read.tokenizer.encode(text) == whole.tokenizer.encode(text), text
    assert read.gguf is not None
    assert read.gguf.words == "tiny-f32.gguf, stored as F32"
    assert whole.gguf is None


def test_it_is_read_once_and_again_where_that_was_damaged(made, cache, monkeypatch):
    first = load_model(str(made / "tiny-f32.gguf"), device="cpu")
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    assert first.source == str(folder)
    with monkeypatch.context() as patch:
        patch.setattr(gguf_input, "read_gguf", lambda *_: pytest.fail("it was read before"))
        assert load_model(str(made / "tiny-f32.gguf"), device="cpu").fingerprint == first.fingerprint
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert load_model(str(made / "tiny-f32.gguf"), device="cpu").fingerprint == first.fingerprint


@pytest.mark.parametrize(("kind", "near"), [("f16", 1e-2), ("q8_0", 5e-2)])
def test_types_lose_what_they_say(made, kind, near, tmp_path):
    told = api.export(made / "float", tmp_path / "x.gguf", type=kind)
    assert 1e-5 < told["difference"] < near
    assert told["instead"] == []
    read = load_model(str(tmp_path / "x.gguf"), device="cpu")
    assert read.gguf is not None
    assert read.gguf.type == kind.upper()
    whole = load_model(str(made / "float"), device="cpu")
    relative = torch.linalg.norm(logits(read) - logits(whole)) / torch.linalg.norm(logits(whole))
    assert relative < near


ROPE = {
    "llama3": {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
}  # fmt: skip
CONFIGS = {
    "untied": {"tie_word_embeddings": False},
    "heads of another size": {"head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3 positions": {"rope_parameters": ROPE["llama3"], "head_dim": 64},
    "linear positions": {"rope_parameters": ROPE["linear"]},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_leaves_out_is_restored(name, tmp_path):
    file = llama_gguf(tmp_path, **CONFIGS[name])
    whole, read = load_model(str(tmp_path / "float"), device="cpu"), load_model(str(file), device="cpu")
    assert read.fingerprint == whole.fingerprint
    torch.testing.assert_close(logits(read), logits(whole), rtol=1e-5, atol=1e-5)


def test_transformers_alone_would_compute_something_else(tmp_path):
    file = llama_gguf(tmp_path, **CONFIGS["llama3 positions"])
    alone = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    alone_says = alone(torch.arange(3, 43)[None]).logits
    assert not torch.allclose(
        alone_says, logits(load_model(str(tmp_path / "float"), device="cpu")), atol=1e-3
    )


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "falcon"])
def test_tokens_are_those_of_the_rules_that_the_file_names(pre, tmp_path):
    file, expected = llama_gguf(tmp_path, pre=pre), byte_level(pre)
    assert read_header(file).text("tokenizer.ggml.pre") == pre
    tokenizer = load_model(str(file), device="cpu").tokenizer
    for text in TEXTS:
        assert tokenizer.encode(text) == expected.encode(text), text


def test_digits_stand_alone_in_smollm_and_not_in_gpt_2():
    assert len(byte_level("smollm").encode("123")) == 3
    assert len(byte_level("gpt-2").encode("123")) == 1


def changed(file: Path, key: str, value: str) -> Path:
    """The same file with another text, of the same length, for a key."""
    header, content = read_header(file), file.read_bytes()
    old = str(header.values[key])
    assert len(old) == len(value)
    before = key.encode() + struct.pack("<IQ", 8, len(old)) + old.encode()
    assert content.count(before) == 1
    place = file.with_name(f"changed-{file.name}")
    place.write_bytes(content.replace(before, before[: -len(old)] + value.encode()))
    return place


def test_a_pre_tokenizer_that_is_not_known_is_named(made, caplog):
    file = changed(made / "tiny-f32.gguf", "tokenizer.ggml.pre", "vikiny")
    with caplog.at_level("INFO", "secateur"):
        load_model(str(file), device="cpu")
    first, second = caplog.messages
    assert first.startswith("changed-tiny-f32.gguf, stored as F32 (as float32: ")
    assert "names its pre-tokenizer vikiny, whose rules are not known here" in second


# ------------------------------------------------------------------------------------------------- which file is meant


def test_a_folder_with_one_file_and_with_several(made, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    shutil.copy(made / "tiny-f32.gguf", folder / "a.gguf")
    one = load_model(str(folder), device="cpu")
    shutil.copy(made / "tiny-f32.gguf", folder / "b.gguf")
    task = questions(tmp_path)
    refused(secateur("eval", folder, "--task", task), "2 GGUF files", "--gguf-file", "a.gguf, b.gguf")
    refused(secateur("eval", folder, "--task", task, "--gguf-file", "c.gguf"), "has no c.gguf", "a.gguf")
    refused(secateur("eval", folder, "--task", task, "--gguf-file", "../c"), "--gguf-file '../c'")
    refused(secateur("eval", folder / "a.gguf", "--task", task, "--gguf-file", "a.gguf"), "is neither")
    assert api.load(folder, gguf_file="b.gguf", device="cpu").fingerprint == one.fingerprint
    refused(secateur("eval", folder, "--task", task, "--revision", "main"), "local folder")


def test_safetensors_are_read_before_a_gguf_beside_them(made, tmp_path):
    shutil.copytree(made / "float", tmp_path / "both")
    shutil.copy(made / "tiny-f32.gguf", tmp_path / "both" / "model.gguf")
    assert load_model(str(tmp_path / "both"), device="cpu").gguf is None


def test_a_file_in_a_repository_of_the_hub(made, tmp_path, monkeypatch):
    commit = "0123456789" * 4
    place = tmp_path / "hub" / "models--org--tiny"
    (place / "snapshots" / commit).mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    shutil.copy(made / "tiny-f32.gguf", place / "snapshots" / commit / "tiny.gguf")
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(file_download.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("secateur.hf.source._is_reachable", lambda name, revision: False)
    loaded = api.load("org/tiny", gguf_file="tiny.gguf", device="cpu")
    assert (loaded.name, loaded.revision) == ("org/tiny/tiny.gguf", commit)
    told = secateur(
        "apply", "org/tiny", "--gguf-file", "tiny.gguf", "--edit", "b1=drop", "-o", tmp_path / "out"
    )
    assert told.exit_code == 0, told.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: org/tiny\n" in card
    provenance = json.loads((tmp_path / "out" / "plan.json").read_text())["provenance"]
    assert provenance["command"]["model"] == loaded.name
    assert provenance["gguf"]["file"] == "tiny.gguf"


# ----------------------------------------------------------------------------------------------------- what is refused


def test_broken_files(made, tmp_path):
    whole = (made / "tiny-f32.gguf").read_bytes()
    task, file = questions(tmp_path), tmp_path / "x.gguf"
    middle = len(whole) // 2
    cases = {
        whole[:4]: "truncated", whole[:100]: "truncated", whole[:middle]: "truncated", whole[:-1]: "truncated",
        b"": "no GGUF file", b"PK" + whole[2:]: "no GGUF file", whole[:4] + b"\x01" + whole[5:]: "version 1",
        b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
        whole[:16] + b"\xff" * 7 + whole[23:]: "x.gguf",
    }  # fmt: skip
    for content, words in cases.items():
        file.write_bytes(content)
        refused(secateur("eval", file, "--task", task), file, words)


def test_a_header_that_is_damaged_anywhere_brings_no_other_error(made, tmp_path):
    whole = bytearray((made / "tiny-f32.gguf").read_bytes())
    end = min(tensor.offset for tensor in read_header(made / "tiny-f32.gguf").tensors)
    draw = np.random.default_rng(0)
    for _ in range(200):
        damaged, at = bytearray(whole), int(draw.integers(4, end))
        damaged[at] = int(draw.integers(256))
        file = tmp_path / "x.gguf"
        file.write_bytes(damaged)
        with contextlib.suppress(ModelError):
            read_header(file)


def test_what_transformers_cannot_read(made, tmp_path):
    task = questions(tmp_path)
    file = changed(made / "tiny-f32.gguf", "general.architecture", "llamb")
    refused(
        secateur("eval", file, "--task", task),
        "transformers",
        "architecture llamb",
        "original float checkpoint",
    )


def test_a_piece_of_several_and_tensors_that_would_be_left_out(made, tmp_path):
    task = questions(tmp_path)
    split, more = tmp_path / "m-00001-of-00002.gguf", tmp_path / "more.gguf"
    for file, add in (
        (split, lambda writer: writer.add_uint16("split.count", 2)),
        (more, lambda writer: writer.add_tensor("blk.0.attn_sinks.weight", np.zeros(4, np.float32))),
    ):
        writer = gguf.GGUFWriter(file, "llama")
        for key, field in gguf.GGUFReader(made / "tiny-f32.gguf").fields.items():
            if key.startswith(("llama.", "tokenizer.")):
                writer.add_key_value(key, field.contents(), field.types[0], sub_type=field.types[-1])
        for tensor in gguf.GGUFReader(made / "tiny-f32.gguf").tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        add(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    refused(secateur("eval", split, "--task", task), "one of 2 pieces", "llama-gguf-split --merge")
    refused(secateur("eval", more, "--task", task), "would leave out", "blk.0.attn_sinks.weight")


def test_without_the_package(made, tmp_path, monkeypatch):
    from secateur.hf import gguf_header

    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    gguf_header._read.cache_clear()
    refused(
        secateur("eval", made / "tiny-f32.gguf", "--task", questions(tmp_path)), "pip install secateur[gguf]"
    )


# ------------------------------------------------------------------------------------------------------- the whole way


def test_a_prune_of_a_file_says_so_and_goes_on(made, tmp_path):
    file, task, out = made / "tiny-f32.gguf", questions(tmp_path), tmp_path / "out"
    words = [
        "prune",
        file,
        "--task",
        task,
        "--method",
        "depth",
        "--blocks",
        "1",
        "--form",
        "drop",
        "--allow-small",
    ]
    first = secateur(*words, "-o", out)
    assert first.exit_code == 0, first.stderr
    record = json.loads((out / "verdict.json").read_text())["model"]["gguf"]
    assert record["file"] == "tiny-f32.gguf"
    assert record["type"] == "F32"
    assert "The model is tiny-f32.gguf, stored as F32 (SHA-256" in (out / "README.md").read_text()
    assert "already holds the result" in secateur(*words, "-o", out).stdout
    told = secateur("export", out, "--gguf", "--type", "q8_0", "-o", tmp_path / "cut.gguf", "--json")
    assert told.exit_code == 0, told.stderr
    cut = load_model(str(tmp_path / "cut.gguf"), device="cpu")
    assert cut.anatomy.num_blocks == 1
    header = read_header(tmp_path / "cut.gguf")
    assert header.text("secateur.cut") == json.loads((out / "verdict.json").read_text())["cut"][0]["edit"]
    assert header.text("secateur.cut_from") == load_model(str(file), device="cpu").fingerprint


# -------------------------------------------------------------------------------------------------------------- export


def test_export_refuses(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = made / "float"
    refused(secateur("export", folder), "--gguf")
    refused(secateur("export", folder, "--gguf", "--type", "q4"), "unknown --type 'q4'", "q8_0")
    refused(secateur("export", folder, "--gguf", "-o", tmp_path), "is a folder")
    refused(secateur("export", folder, "--gguf", "-o", "no/x.gguf"), "there is no folder no")
    Path("x.gguf").write_text("kept")
    refused(secateur("export", folder, "--gguf", "-o", "x.gguf"), "is there already", "--overwrite")
    assert Path("x.gguf").read_text() == "kept"
    refused(secateur("export", "builtin:facts", "--gguf"), "WordLevel")
    carved = secateur("apply", folder, "--edit", "b0.attn.g1=drop", "-o", "carved")
    assert carved.exit_code == 0, carved.stderr
    refused(secateur("export", "carved", "--gguf"), "--portable")
    assert not list(tmp_path.glob("*.partial"))
    done = secateur("export", folder, "--gguf", "--type", "f32")
    assert done.exit_code == 0, done.stderr
    assert Path("float-f32.gguf").exists()


def test_a_file_that_does_not_agree_is_not_left(made, tmp_path, monkeypatch):
    from secateur.hf import gguf_output

    monkeypatch.setattr(gguf_output, "_rotary_pairs", lambda name, tensor, config: tensor.float().numpy())
    file = tmp_path / "x.gguf"
    refused(secateur("export", made / "float", "--gguf", "-o", file), "logits differ", "not written")
    assert not list(tmp_path.glob("x.gguf*"))


def test_matrices_without_whole_blocks_are_said(tmp_path):
    folder = llama_folder(tmp_path / "narrow", intermediate_size=40)
    told = api.export(folder, tmp_path / "x.gguf", type="q8_0")
    assert told["instead"] == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]
    assert told["tensors"]["f16"] == 2


# -------------------------------------------------------------------------------------------------------- the real one


@pytest.mark.llm
def test_smollm2_is_the_folder_that_was_made_of_it(smollm2_gguf):
    folder = smollm2_gguf.parents[1] / "smollm2-135m"
    whole, read = load_model(str(folder), device="cpu"), load_model(str(smollm2_gguf), device="cpu")
    assert read.fingerprint == whole.fingerprint
    assert read.gguf is not None
    assert read.gguf.words == f"{smollm2_gguf.name}, dequantized from Q4_1"
    assert [read.tokenizer.encode(text) for text in TEXTS] == [whole.tokenizer.encode(text) for text in TEXTS]
    assert read.tokenizer.encode("12345") == [33, 34, 35, 36, 37]
