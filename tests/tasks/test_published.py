"""Checkpoints in the forms in which people publish them: they are read as transformers reads them, in memory and from
disk, or refused with words that say what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures.folders import questions, refused, save_model, secateur, write_rows
from fixtures.zoo import CONTEXT, tiny
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from secateur.errors import ModelError
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import load_model
from secateur.hf.weights import is_offloaded

Tensors = dict[str, Tensor]
LAYOUTS = (
    "gpt2", "gptj", "gpt-neox", "opt", "bloom", "falcon-7b", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3",
    "phi", "phi3",
)  # fmt: skip
TIED = ("gpt2", "opt", "bloom", "falcon-7b", "qwen2", "gemma2", "gemma3")
MASK = torch.ones(CONTEXT, CONTEXT).tril().bool()[None, None]
MASKED, ROTATIONS = torch.tensor(-1e9), torch.ones(4)


@pytest.fixture
def published(words, tmp_path) -> Callable[[str, Callable[[Tensors], Tensors]], Path]:
    """Writes a model of the zoo with its tensors as `change` makes them."""

    def write(name: str, change: Callable[[Tensors], Tensors]) -> Path:
        folder = save_model(tmp_path / name, tiny(name), words)
        changed = change(load_file(folder / "model.safetensors"))
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        return folder

    return write


def read_both(folder: Path) -> set[str]:
    """Fingerprints: in memory, and with its weights left in the file."""
    here = load_model(str(folder), device="cpu")
    there = load_model(str(folder), device_map="disk", offload_folder=str(folder.with_name("offload")))
    assert is_offloaded(there.model)
    return {here.fingerprint, there.fingerprint}


# ------------------------------------------------------------------------------------------------- names and constants


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_without_the_prefix_of_the_base_model(name, published):
    prefix = f"{tiny(name).base_model_prefix}."
    folder = published(name, lambda tensors: {key.removeprefix(prefix): t for key, t in tensors.items()})
    assert read_both(folder) == {fingerprint(tiny(name))}


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("gpt2", {"transformer.h.{}.attn.bias": MASK, "transformer.h.{}.attn.masked_bias": MASKED}),
        ("gptj", {"transformer.h.{}.attn.bias": MASK, "transformer.h.{}.attn.masked_bias": MASKED}),
        ("gpt-neox", {"gpt_neox.layers.{}.attention.bias": MASK, "gpt_neox.layers.{}.attention.masked_bias": MASKED}),
        ("gpt-neox", {"gpt_neox.layers.{}.attention.rotary_emb.inv_freq": ROTATIONS}),
        ("llama", {"model.layers.{}.self_attn.rotary_emb.inv_freq": ROTATIONS}),
        ("mistral", {"model.layers.{}.self_attn.rotary_emb.inv_freq": ROTATIONS}),
        ("phi", {"model.layers.{}.self_attn.rotary_emb.inv_freq": ROTATIONS}),
    ],
)  # fmt: skip
def test_constants_beside_the_weights_are_no_weights(name, constants, prefix, published):
    def change(tensors: Tensors) -> Tensors:
        added = {key.format(b): t.clone() for key, t in constants.items() for b in (0, 1)}
        return {key.removeprefix(prefix): tensor for key, tensor in (tensors | added).items()}

    assert read_both(published(name, change)) == {fingerprint(tiny(name))}


@pytest.mark.parametrize(
    "stranger",
    ["transformer.h.0.attn.extra", "transformer.h.0.mlp.bias", "transformer.attn.bias", "attn.masked_bias"],
)
def test_other_tensors_beyond_the_config_stay_refused(stranger, published):
    folder = published("gptj", lambda tensors: tensors | {stranger: torch.zeros(2)})
    with pytest.raises(ModelError, match=rf"1 unexpected \(.*{stranger}\)"):
        load_model(str(folder), device="cpu")


def test_a_cut_leaves_the_masks_out(published, tmp_path):
    folder = published("gptj", lambda tensors: tensors | {"transformer.h.0.attn.bias": MASK})
    done = secateur("apply", folder, "--edit", "b1.down=3", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert set(load_file(tmp_path / "out/model.safetensors")) == set(tiny("gptj").state_dict())


# ------------------------------------------------------------------------------------------------------------ ties


def embedding_of(name: str) -> str:
    model = tiny(name)
    return next(key for key, p in model.named_parameters() if p is model.get_input_embeddings().weight)


@pytest.mark.parametrize("name", TIED)
def test_a_tied_embedding_may_be_stored_twice_or_as_the_unembedding_alone(name, published):
    own = embedding_of(name)
    folder = published(name, lambda tensors: tensors | {"lm_head.weight": tensors[own].clone()})
    assert read_both(folder) == {fingerprint(tiny(name))}
    tensors = load_file(folder / "model.safetensors")
    del tensors[own]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert read_both(folder) == {fingerprint(tiny(name))}


def with_own_unembedding(name: str, published: Callable) -> Path:
    own = embedding_of(name)
    return published(name, lambda tensors: tensors | {"lm_head.weight": tensors[own].flip(0).contiguous()})


@torch.no_grad()
def logits(folder: Path) -> Tensor:
    return AutoModelForCausalLM.from_pretrained(folder)(torch.arange(3, 15)[None]).logits


@pytest.mark.parametrize("name", TIED)
def test_an_unembedding_of_its_own_under_a_config_that_ties_is_kept(name, published):
    folder = with_own_unembedding(name, published)
    (one,) = read_both(folder)
    assert one != fingerprint(tiny(name))
    loaded = load_model(str(folder), device="cpu")
    assert not loaded.anatomy.tied
    tokens = torch.arange(3, 15)[None]
    assert torch.equal(loaded.model(tokens).logits, logits(folder))


@pytest.mark.parametrize("how", [[], ["--zeroed"], ["--check", "digests"]])
@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_applied_to_it_the_config_says_what_the_files_hold(name, how, published, tmp_path):
    folder, out = with_own_unembedding(name, published), tmp_path / "out"
    before = logits(folder)
    done = secateur("apply", folder, "--edit", "b1.o=3", "-o", out, *how)
    assert done.exit_code == 0, done.stderr
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    written, read = load_file(out / "model.safetensors"), load_file(folder / "model.safetensors")
    for key in ("lm_head.weight", embedding_of(name)):
        assert torch.equal(written[key], read[key])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder)
        path = "model.layers.1.self_attn.o_proj" if name == "qwen2" else "transformer.h.1.attn.c_proj"
        weight = expected.get_parameter(f"{path}.weight")
        u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
        weight.copy_(u[:, :3] * s[:3] @ v[:3])
        after = expected(torch.arange(3, 15)[None]).logits
    assert torch.dist(after, before) > 0.1
    torch.testing.assert_close(logits(out), after)


@pytest.mark.slow
def test_pruned_it_ends_with_a_checkpoint(published, tmp_path):
    folder, task = with_own_unembedding("gpt2", published), write_rows(tmp_path / "q.jsonl", questions())
    done = secateur(
        "prune", folder, "--task", task, "--matrices", "down", "--layers", "1", "-o", tmp_path / "out"
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False


# ------------------------------------------------------------------------------------------- what else is in the folder


@pytest.fixture
def folder(words, tmp_path) -> Path:
    return save_model(tmp_path / "m", tiny("llama"), words)


@pytest.fixture
def sharded(words, tmp_path) -> Path:
    return save_model(tmp_path / "s", tiny("llama"), words, max_shard_size="40KB")


def is_refused(model: Path | str, *pieces: object) -> None:
    """By `eval`."""
    task = write_rows(Path(model).absolute().with_name("q.jsonl"), questions())
    refused(secateur("eval", model, "--task", task, "--device", "cpu"), *pieces)


def test_an_adapters_config_beside_merged_weights(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    is_refused(
        folder,
        "a whole model, and adapter_config.json",
        "merged into the model already, remove adapter_config.json",
    )


def test_two_sets_of_weights(folder, sharded):
    shutil.copy(folder / "model.safetensors", sharded)
    first = min(path.name for path in sharded.glob("model-*"))
    is_refused(sharded, "two sets of weights", "model.safetensors,", "model.safetensors.index.json", first)
    (sharded / "model.safetensors").unlink()
    assert load_model(str(sharded), device="cpu").fingerprint == fingerprint(tiny("llama"))


@pytest.mark.parametrize("index", [{"weight_map": {"a": "model-00001-of-00002.safetensors"}},
                                   {"weight_map": {"a": "model.safetensors"}}])  # fmt: skip
def test_an_old_index_without_its_shards_does_no_harm(index, folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_both(folder) == {fingerprint(tiny("llama"))}


def test_other_copies_of_the_weights_do_no_harm(folder):
    save_file({"tok_embeddings.weight": torch.zeros(2, 2)}, folder / "consolidated.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert read_both(folder) == {fingerprint(tiny("llama"))}
    (folder / "model.safetensors").unlink()
    is_refused(folder, "only pickled weights (pytorch_model.bin)")
    (folder / "pytorch_model.bin").unlink()
    is_refused(folder, "no safetensors weights", "consolidated.safetensors has another name")


def test_an_index_that_says_another_file(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    files = index["weight_map"]
    one, other = sorted(set(files.values()))[:2]
    tensor = min(key for key, file in files.items() if file == one)

    def write(changed: dict[str, str]) -> None:
        (sharded / "model.safetensors.index.json").write_text(json.dumps(index | {"weight_map": changed}))

    write(files | {tensor: other})
    is_refused(sharded, f"{other} lacks {tensor}", f"which {one} holds")
    write(files | {"surprise": other})
    is_refused(sharded, f"{other} lacks surprise, which model.safetensors.index.json says it holds.")
    write({key: file for key, file in files.items() if key != tensor})
    is_refused(sharded, f"{one} holds {tensor}, which model.safetensors.index.json does not name")


def test_weights_elsewhere_are_refused_not_passed_by(folder):
    shutil.copy(folder / "model.safetensors", folder / "shard-00001-model-00001-of-00001.safetensors")
    is_refused(folder, "a distributed checkpoint (shard-00001-model-00001-of-00001.safetensors)")
    (folder / "shard-00001-model-00001-of-00001.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    is_refused(folder, "weights are in other.safetensors", "transformers_weights")


def test_a_pointer_of_git_lfs(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 538\n"
    (folder / "model.safetensors").write_text(pointer)
    is_refused(folder, "model.safetensors", "Git LFS", "git lfs pull")


# ------------------------------------------------------------------------------------------------ what is no checkpoint


def test_a_folder_that_hides_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gpt2").mkdir()
    Path("owner/model").mkdir(parents=True)
    for name in ("gpt2", "owner/model"):
        is_refused(
            name, f"{name} is no checkpoint", f"If the hub model {name} is meant, this folder hides it"
        )
    result = secateur("eval", "./gpt2", "--task", "q.jsonl")
    assert "hub" not in result.stderr


def test_gguf_beside_safetensors_does_no_harm_and_a_broken_one_is_refused(folder, tmp_path):
    file = tmp_path / "model-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    is_refused(file, file, "truncated")
    shutil.copy(file, folder)
    assert read_both(folder) == {fingerprint(tiny("llama"))}
    (folder / "model.safetensors").unlink()
    is_refused(folder, folder / file.name, "truncated")


def test_a_folder_of_the_hubs_cache_or_of_a_training(folder, tmp_path):
    cache = tmp_path / "hub" / "models--org--tiny"
    inner = cache / "snapshots" / ("0123456789" * 4)
    shutil.copytree(folder, inner)
    is_refused(cache, "a folder of the hub's cache", f"{inner} or org/tiny")
    assert load_model(str(inner), device="cpu").fingerprint == fingerprint(tiny("llama"))
    shutil.copytree(folder, tmp_path / "run" / "checkpoint-500")
    is_refused(tmp_path / "run", "no checkpoint", f"Did you mean {tmp_path}/run/checkpoint-500?")
