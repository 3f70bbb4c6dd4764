"""What lies beside the weights of a checkpoint: tokenizer and generation config as they were, a config that releases of
before transformers 5 read rightly too, and files that their owner's umask opens."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from copy import deepcopy
from pathlib import Path

import pytest
from fixtures.folders import contents, questions, save_model, secateur, write_rows
from fixtures.rotary import ROTARY, rope
from fixtures.zoo import ZOO, tiny, variant
from transformers import AutoConfig, AutoTokenizer

import secateur as api
from secateur.checkpoint.companions import with_older_names
from secateur.checkpoint.save import save
from secateur.errors import ModelError
from secateur.hf.fingerprint import config_digest
from secateur.hf.load import load_model

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
OWN_FILES = {  # as they lie in folders of the hub, some of which transformers 5 writes otherwise, or never
    "tokenizer_config.json": '{ "tokenizer_class":"PreTrainedTokenizerFast", "unk_token":"w0", "eos_token":"w2",\n'
    '"model_max_length": 64,"clean_up_tokenization_spaces": false}',
    "special_tokens_map.json": '{"eos_token": "w2"}',
    "added_tokens.json": "{}\n\n",
    "tokenizer.model": "\0sentencepiece",
    "chat_template.jinja": TEMPLATE,
    "additional_chat_templates/tool_use.jinja": TEMPLATE + "tools",
    "generation_config.json": '{"eos_token_id": [2, 3],\n "temperature": 0.6, "bos_token_id": 1}',
}
STRANGERS = {
    "README.md": "# mine",
    "training_args.bin": "a pickle",
    "notes.txt": "mine",
    "model.gguf": "GGUF",
}


@pytest.fixture(scope="module")
def model(words, tmp_path_factory) -> Path:
    """A Llama with files of a tokenizer as an earlier release left them, and others that are none of it."""
    folder = save_model(tmp_path_factory.mktemp("model") / "m", tiny("llama"), words)
    for name, text in (OWN_FILES | STRANGERS).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("task") / "q.jsonl", questions())


def copied_from(model: Path, out: Path) -> None:
    written, read = contents(out), contents(model)
    for name in ("tokenizer.json", *OWN_FILES):
        assert written[name] == read[name], name
    for name, text in STRANGERS.items():
        assert name not in written or written[name] != text.encode()


PRUNE = ("--matrices", "down", "--layers", "1")
FINETUNE = ("--max-steps", "1", "--allow-small")


@pytest.mark.parametrize("edit", ["b1.down=3", "b1.mlp=drop"])
@pytest.mark.parametrize("how", [[], ["--zeroed"], ["--check", "digests", "--shard-size", "40KB"]])
def test_apply_copies_what_no_cut_touches(edit, how, model, tmp_path):
    done = secateur("apply", model, "--edit", edit, "-o", tmp_path / "out", *how)
    assert done.exit_code == 0, done.stderr
    copied_from(model, tmp_path / "out")
    again = secateur("apply", tmp_path / "out", "--edit", "b0.up=3", "-o", tmp_path / "again")
    assert again.exit_code == 0, again.stderr
    copied_from(model, tmp_path / "again")


@pytest.mark.slow
@pytest.mark.parametrize("typed", [("prune", *PRUNE), ("prune", *PRUNE, "--zeroed"), ("finetune", *FINETUNE)])
def test_so_do_those_who_have_the_model_in_memory(typed, model, task, tmp_path):
    verb, *more = typed
    done = secateur(verb, model, "--task", task, "-o", tmp_path / "out", "--device", "cpu", *more)
    assert done.exit_code == 0, done.stderr
    copied_from(model, tmp_path / "out")


@pytest.mark.slow
def test_healing_copies_them_from_what_is_healed(model, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(" ".join(f"w{(3 + i * j) % 90}" for j in range(60)) for i in range(160)))
    api.apply(str(model), ["b0=drop"], tmp_path / "cut")
    how = {"allow_small": True, "device": "cpu", "seqlen": 16, "epochs": 1, "lr": 1e-3, "stage": "end"}
    api.heal(tmp_path / "cut", f"text:{book}", tmp_path / "out", **how)
    copied_from(model, tmp_path / "out")


def test_a_model_of_the_package_gives_its_own(tmp_path):
    source = Path(load_model("builtin:facts").source)
    api.apply("builtin:facts", ["b1.down=3"], tmp_path / "out")
    written, read = contents(tmp_path / "out"), contents(source)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert written[name] == read[name]


def test_a_tokenizer_that_lies_nowhere_is_written(words, tmp_path):
    save(tiny("llama"), words, {}, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w3 w57").input_ids == [3, 57]


def test_the_code_of_a_tokenizer_comes_along(model, tmp_path):
    folder, out = Path(shutil.copytree(model, tmp_path / "m")), tmp_path / "out"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = {"AutoTokenizer": [None, "tokenization_mine.MineTokenizerFast"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"auto_map": named}))
    (folder / "tokenization_mine.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\nfrom .vowels import A\n\n\n"
        "class MineTokenizerFast(PreTrainedTokenizerFast):\n    pass\n"
    )
    (folder / "vowels.py").write_text("A = 'a'\n")
    (folder / "unrelated.py").write_text("raise SystemExit\n")
    api.apply(str(folder), ["b1.down=3"], out, trust_remote_code=True)
    assert {path.name for path in out.glob("*.py")} == {"tokenization_mine.py", "vowels.py"}
    found = AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    assert (type(found).__name__, found("w3 w57").input_ids) == ("MineTokenizerFast", [3, 57])


def test_a_file_of_the_tokenizer_that_cannot_be_read_is_told_at_once(model, monkeypatch):
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "special_tokens_map.json":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ModelError, match=r"special_tokens_map\.json cannot be read: Permission denied"):
        load_model(str(model))


# ------------------------------------------------------------------------------------------------- carved tokenizers


@pytest.fixture
def gpt2(tmp_path) -> Path:
    """A GPT-2 whose tokenizer_config.json names no class, as the published ones."""
    folder, words = tmp_path / "gpt2", [chr(code) for code in range(33, 127)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|endoftext|>"])}
    tiny("gpt2").save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    return folder


def test_a_carved_checkpoint_finds_the_class_that_its_config_implied(gpt2, tmp_path):
    out = tmp_path / "out"
    api.apply(str(gpt2), ["b1.mlp=drop"], out)
    found = [AutoTokenizer.from_pretrained(folder, **how) for folder, how in (
        (gpt2, {}), (out, {"trust_remote_code": False}), (out, {"trust_remote_code": True}))]  # fmt: skip
    found.append(load_model(str(out)).tokenizer)
    assert {type(one).__name__ for one in found} == {"GPT2Tokenizer"}
    assert {one.eos_token for one in found} == {"<|endoftext|>"}
    assert {tuple(one("a!b").input_ids) for one in found} == {(64, 0, 65)}
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (gpt2 / name).read_bytes()


def test_a_carved_checkpoint_of_before_is_still_read(model, tmp_path):
    """It named its model_type `secateur`."""
    out = tmp_path / "out"
    api.apply(str(model), ["b1.mlp=drop"], out)
    found = load_model(str(out)).fingerprint
    config = json.loads((out / "config.json").read_text())
    kept = {
        key: config[key] for key in ("architectures", "auto_map", "carving", "stock", "transformers_version")
    }
    (out / "config.json").write_text(json.dumps(kept | {"model_type": "secateur", "vocab_size": "words"}))
    assert load_model(str(out)).fingerprint == found


# -------------------------------------------------------------------------------------------------- config.json, twice

NAMES = {
    "rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_emb_base", "rotary_pct", "rope_local_base_freq",
}  # fmt: skip


@pytest.mark.parametrize("case", ROTARY)
def test_rotary_positions_are_stated_as_transformers_4_reads_them(case, words, tmp_path):
    name, changes, expected = ROTARY[case]
    folder = save_model(tmp_path / "m", variant(name, **deepcopy(changes)), words)
    assert not {"rope_theta", "rotary_emb_base"} & set(json.loads((folder / "config.json").read_text()))
    api.apply(str(folder), ["b1.down=3"], tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert {key: written[key] for key in expected} == expected
    assert NAMES & set(written) == NAMES & set(expected)
    assert written["torch_dtype"] == written["dtype"] == "float32"
    before, after = (AutoConfig.from_pretrained(place) for place in (folder, tmp_path / "out"))
    for parameters in (before.rope_parameters, after.rope_parameters):
        parameters.pop("type", None)  # what Phi-3 adds when it reads `type`
    assert after.rope_parameters == before.rope_parameters


@pytest.mark.parametrize("name", ZOO)
def test_transformers_5_reads_the_same_from_both_names(name, tmp_path):
    model = tiny(name)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(with_older_names(written)))
    found = type(model)(AutoConfig.from_pretrained(tmp_path))
    found.generation_config = model.generation_config
    if name == "phi3-long":
        found.config.rope_parameters.pop("type")  # what Phi-3 adds when it reads `type`
    assert config_digest(found) == config_digest(model)


def test_what_an_earlier_release_wrote_is_there_again(words, tmp_path):
    """A config.json of transformers 4, from which only what was cut differs."""
    folder = save_model(tmp_path / "m", variant("llama", **rope(rope_type="default")), words)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"], config["dtype"]
    own = {"rope_theta": 5e5, "torch_dtype": "float32", "transformers_version": "4.45.0"}
    (folder / "config.json").write_text(json.dumps(config | own))
    api.apply(str(folder), ["b0=drop"], tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    differ = {key for key in config | own if written.get(key) != (config | own)[key]}
    assert differ == {"num_hidden_layers", "transformers_version"}


# ------------------------------------------------------------------------------------------------------------- modes


def modes(folder: Path) -> tuple[set[int], set[int]]:
    """Of files, and of folders, the folder itself included."""
    paths = [folder, *folder.rglob("*")]
    found = [(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in paths]
    return {mode for is_dir, mode in found if not is_dir}, {mode for is_dir, mode in found if is_dir}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_and_folders_have_the_modes_of_the_umask(umask, model, tmp_path):
    loaded, before = load_model(str(model)), os.umask(umask)
    try:
        save(loaded.model, loaded.tokenizer, loaded.copied, tmp_path / "saved")
        api.apply(str(model), ["b1.down=3"], tmp_path / "out")
    finally:
        os.umask(before)
    for folder in ("saved", "out"):
        assert modes(tmp_path / folder) == ({0o666 & ~umask}, {0o777 & ~umask})


AS_ANOTHER = """
    import os, sys
    from typer.testing import CliRunner
    from secateur.cli.app import app

    def prune(out):
        words = ["prune", "m", "--task", "q.jsonl", "--matrices", "down", "--layers", "1", "-o", out, "--device", "cpu"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.stderr

    if os.getuid() == 0:
        prune("first")  # so that all is imported, perhaps from where only root may read
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    prune("out")
    os.listdir("out/additional_chat_templates")
"""


@pytest.mark.slow
def test_a_normal_users_prune_ends_with_a_checkpoint_that_others_can_read(model, task):
    place = Path(tempfile.mkdtemp(prefix="secateur-test-"))
    try:
        place.chmod(0o777)  # tmp_path is its owner's alone
        shutil.copytree(model, place / "m")
        shutil.copy(task, place)
        for path in [*place.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        command = [sys.executable, "-c", textwrap.dedent(AS_ANOTHER)]
        environment = os.environ | {"HOME": str(place), "HF_HOME": str(place / "hf")}
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, umask=0o022
        )
        assert done.returncode == 0, done.stderr
        assert modes(place / "out") == ({0o644}, {0o755})
        copied_from(model, place / "out")
    finally:
        shutil.rmtree(place)
