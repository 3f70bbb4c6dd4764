"""Loading: what comes back, and one clear error for each way a checkpoint can be broken or out of reach."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from fixtures.zoo import VOCAB_SIZE, tiny
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from secateur.errors import ModelError, UnknownName
from secateur.hf.anatomy import anatomy
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import load_model
from secateur.hf.source import builtin_names, place_of

STORIES = Path("../shared/data/models/stories260K")


def save_tokenizer(folder: Path) -> None:
    words = {f"w{number}": number for number in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)


@pytest.mark.parametrize("typed", ["smolm2-135m", "models/smolm2-135m"])
def test_a_model_that_is_not_there_is_named_with_the_nearest_one(typed, tmp_path, monkeypatch):
    """Also where the name could be one of the hub."""
    (tmp_path / "smollm2-135m").mkdir()
    (tmp_path / "models" / "smollm2-135m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    near = typed.replace("smolm", "smollm")
    with pytest.raises(
        (ModelError, UnknownName), match=rf"there is no folder .*Did you mean {near}, beside it\?$"
    ):
        load_model(typed)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "llama"
    tiny("llama").save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A whole checkpoint of its own for each test to break."""
    return Path(shutil.copytree(pristine, tmp_path / "llama"))


@pytest.fixture
def sharded(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    tiny("llama").save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def refused(folder: Path | str, pattern: str, error: type[Exception] = ModelError, **options: Any) -> None:
    with pytest.raises(error, match=pattern):
        load_model(str(folder), device="cpu", **options)


def test_a_folder_comes_back_bit_for_bit(folder):
    loaded = load_model(str(folder), device="cpu")
    assert loaded.fingerprint == fingerprint(tiny("llama"))
    assert loaded.anatomy == anatomy(tiny("llama"))
    assert (loaded.name, loaded.source, loaded.revision) == (str(folder), str(folder), None)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer("w3 w17")["input_ids"] == [3, 17]


def test_shards_and_a_single_file_are_the_same_model(sharded):
    assert load_model(str(sharded), device="cpu").fingerprint == fingerprint(tiny("llama"))


@pytest.mark.parametrize("name", ["gpt2", "bloom", "falcon-40b", "gemma3", "opt-projected", "phi3"])
def test_other_families_load_too(name, tmp_path):
    tiny(name).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu")
    assert loaded.fingerprint == fingerprint(tiny(name))
    assert loaded.anatomy == anatomy(tiny(name))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_dtype_is_what_was_asked(folder, dtype):
    model = load_model(str(folder), dtype=dtype, device="cpu").model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_a_family_of_which_the_code_does_not_run_in_float64_is_refused_in_it(tmp_path):
    tiny("xglm").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    refused(tmp_path, "XGLMForCausalLM does not run in float64: take --dtype float32", dtype="float64")


def test_dtype_auto_is_as_stored(tmp_path):
    tiny("qwen2", torch.bfloat16).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu")
    assert loaded.fingerprint == fingerprint(tiny("qwen2", torch.bfloat16))


def test_loading_is_silent_and_leaves_verbosity_alone(sharded, capfd):
    transformers.utils.logging.set_verbosity_info()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_model(str(sharded), device="cpu")
        assert transformers.utils.logging.get_verbosity() == transformers.utils.logging.INFO
    finally:
        transformers.utils.logging.set_verbosity_warning()
    assert capfd.readouterr() == ("", "")
    assert not caught
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_a_real_pretrained_model():
    if not STORIES.is_dir():
        pytest.skip(f"{STORIES} is not here")
    loaded = load_model(str(STORIES), device="cpu")
    assert (loaded.anatomy.num_blocks, loaded.anatomy.num_kv_heads, loaded.anatomy.tied) == (5, 4, True)
    prompt = loaded.tokenizer("Once upon a time", return_tensors="pt")
    told = loaded.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "there was a" in loaded.tokenizer.decode(told[0])


def test_every_built_in_model_loads():
    assert "facts" in builtin_names()
    for name in builtin_names():
        loaded = load_model(f"builtin:{name}", device="cpu")
        assert len(loaded.tokenizer) <= loaded.anatomy.vocab_size


def test_unknown_names_get_the_nearest():
    refused("builtin:fact", r"no built-in model 'fact'\. Did you mean facts\?", UnknownName)
    refused("facts", "Did you mean builtin:facts", UnknownName)
    refused("./nowhere", r"no folder '\./nowhere'", UnknownName)
    refused("/no/such/folder", "no folder", UnknownName)
    refused("not a name", "neither a folder nor a hub name", UnknownName)
    refused("", "no folder", UnknownName)


def test_unknown_dtype_and_device(folder):
    refused(folder, "unknown dtype 'bfloat61'.*bfloat16", UnknownName, dtype="bfloat61")
    with pytest.raises(UnknownName, match=r"unknown device 'gpu'.*cpu"):
        load_model(str(folder), device="gpu")
    with pytest.raises(ModelError, match="no device cuda:99"):
        load_model(str(folder), device="cuda:99")


def test_a_revision_of_a_folder_makes_no_sense(folder):
    refused(folder, r"revision \(main\) names a commit on the hub", revision="main")


def test_a_file_is_not_a_model(folder):
    refused(folder / "model.safetensors", "is a file; MODEL is the folder around it")


def test_config_missing_broken_or_nonsense(folder):
    edit_config(folder, num_attention_heads="eight")
    refused(folder, "config.json of .* cannot be used: .*num_attention_heads")
    edit_config(folder, num_attention_heads=0)
    refused(folder, "cannot be (used|loaded)")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"')
    refused(folder, r"config\.json: cannot be read as JSON")
    (folder / "config.json").write_text("[]")
    refused(folder, "not a JSON object")
    (folder / "config.json").unlink()
    refused(folder, r"no checkpoint: it has no config\.json")


def test_config_without_architecture(folder):
    edit_config(folder, architectures=None)
    assert load_model(str(folder), device="cpu").anatomy.architecture == "LlamaForCausalLM"
    edit_config(folder, architectures=None, model_type="nothing")
    refused(folder, "names no architecture .*'nothing'")


def test_truncated_weights_name_the_file(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    refused(folder, r"model\.safetensors .*truncated")
    path.write_bytes(data[:60])
    refused(folder, r"model\.safetensors ends within its header \(60 bytes\)")
    path.write_bytes(b"")
    refused(folder, r"model\.safetensors ends within its header \(0 bytes\)")


def test_missing_and_truncated_shards_name_the_shard(sharded):
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    second.write_bytes(second.read_bytes()[:-1])
    refused(sharded, f"{second.name} .*truncated")
    second.unlink()
    refused(sharded, f"shard {second.name} is missing")
    shutil.copy(first, second)
    refused(sharded, rf"is in two shards of .*, {first.name} and {second.name}")
    (sharded / "model.safetensors.index.json").write_text("{}")
    refused(sharded, "no weight_map")


def test_pickles_are_refused_unopened(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    refused(folder, "no safetensors weights")
    torch.save(weights, folder / "pytorch_model.bin")
    refused(folder, r"only pickled weights \(pytorch_model\.bin\).*convert it once")
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    refused(folder, "a pickle under another name")


def test_a_header_whose_length_begins_like_a_pickle_is_none(folder):
    """The length's first byte is 0x80 in one file of 32 (lengths are multiples of 8)."""
    weights = load_file(folder / "model.safetensors")
    for padding in range(0, 256):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt", "note": "x" * padding})
        if (folder / "model.safetensors").read_bytes()[0] == 0x80:
            break
    assert (folder / "model.safetensors").read_bytes()[0] == 0x80
    assert load_model(str(folder)).anatomy.num_blocks == 2


def test_missing_unexpected_and_misshapen_tensors_are_named(folder):
    q, gate = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.gate_proj.weight"

    def damage(weights: dict[str, torch.Tensor]) -> None:
        del weights[q]
        weights["model.layers.0.surprise.weight"] = torch.zeros(2)
        weights[gate] = torch.zeros(3, 32)

    edit_weights(folder, damage)
    wrong = rf"1 of the wrong shape \({gate} \(3, 32\) for \(40, 32\)\)"
    refused(folder, rf"1 missing \({q}\); 1 unexpected \(model.layers.0.surprise.weight\); {wrong}")


def test_fewer_blocks_than_the_config_says(folder):
    edit_config(folder, num_hidden_layers=3)
    refused(folder, r"9 missing \(model\.layers\.2\.")
    edit_config(folder, num_hidden_layers=1)
    refused(folder, r"9 unexpected \(model\.layers\.1\.")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_name_the_tensor(folder, value):
    def damage(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.1.mlp.down_proj.weight"][3, 5] = value

    edit_weights(folder, damage)
    refused(folder, r"model\.layers\.1\.mlp\.down_proj\.weight holds NaN or infinity")


def test_weights_too_large_for_float16_say_so(folder):
    edit_weights(folder, lambda weights: weights["lm_head.weight"].fill_(1e6))
    load_model(str(folder), device="cpu")
    refused(folder, r"lm_head\.weight holds .*bfloat16", dtype="float16")


def test_tokenizer_missing_or_broken(folder):
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "tokenizer of .* cannot be read")
    (folder / "tokenizer.json").write_text('{"a": 1}')
    refused(folder, "tokenizer of .* cannot be read")
    (folder / "tokenizer.json").unlink()
    refused(folder, r"has no tokenizer \(none of tokenizer\.json")


def test_code_in_a_checkpoint_is_not_run_unasked(folder):
    ran = folder / "ran"
    (folder / "custom.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    edit_config(
        folder, model_type="custom", auto_map={"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"}
    )
    refused(folder, "trust_remote_code; nothing of it was run")
    edit_config(folder, architectures=["CustomForCausalLM"])
    refused(folder, "CustomForCausalLM is also no family")
    refused(folder, "unknown family CustomForCausalLM", trust_remote_code=True)
    assert not ran.exists()


CUSTOM = """
from transformers import LlamaConfig, LlamaForCausalLM as Stock


class CustomConfig(LlamaConfig):
    model_type = "custom"


class LlamaForCausalLM(Stock):
    config_class = CustomConfig
"""


def test_trusted_code_of_a_known_family_is_read(folder):
    (folder / "modeling_custom.py").write_text(CUSTOM)
    names = {
        "AutoConfig": "modeling_custom.CustomConfig",
        "AutoModelForCausalLM": "modeling_custom.LlamaForCausalLM",
    }
    edit_config(folder, model_type="custom", auto_map=names)
    loaded = load_model(str(folder), device="cpu", trust_remote_code=True)
    assert type(loaded.model).__module__.startswith("transformers_modules.")
    assert loaded.fingerprint == fingerprint(tiny("llama"))


KINDS = {
    "Afmoe": (transformers.AfmoeConfig, "AfmoeForCausalLM", "a mixture of experts"),
    "Longcat Flash": (transformers.LongcatFlashConfig, "LongcatFlashForCausalLM", "a mixture of experts"),
    "Dbrx": (transformers.DbrxConfig, "DbrxForCausalLM", "a mixture of experts"),
    "LongT5": (transformers.LongT5Config, "LongT5ForConditionalGeneration", "an encoder-decoder"),
    "Bert": (transformers.BertConfig, "BertModel", "not a causal language model with its head, nor a masked"),
    "Bert that looks back": (
        lambda **how: transformers.BertConfig(is_decoder=True, **how),
        "BertForMaskedLM",
        "is_decoder",
    ),
    "Albert": (
        transformers.AlbertConfig,
        "AlbertForMaskedLM",
        r"unknown family AlbertForMaskedLM\. .secateur models",
    ),
    "Tagger": (transformers.LlamaConfig, "LlamaForTokenClassification", "not a causal language model"),
    "Classifier": (
        transformers.AlbertConfig,
        "AlbertForSequenceClassification",
        r"unknown family AlbertForSequenceClassification\. .secateur models",
    ),
    "Headless": (transformers.LlamaConfig, "LlamaModel", "not a causal language model"),
    "Gemma3n": (transformers.Gemma3nConfig, "Gemma3nForConditionalGeneration", "a multimodal model"),
    "Idefics2": (transformers.Idefics2Config, "Idefics2ForConditionalGeneration", "a multimodal model"),
    "CpmAnt": (
        transformers.CpmAntConfig,
        "CpmAntForCausalLM",
        r"unknown family CpmAntForCausalLM\. .secateur models",
    ),
    "Mamba": (
        transformers.MambaConfig,
        "MambaForCausalLM",
        "keeps a state in place of attention, and is not read",
    ),
    "Bert that looks ahead": (transformers.BertConfig, "BertLMHeadModel", "no is_decoder, without which"),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_not_cut_is_refused_by_kind_before_its_weights_are_read(kind, tmp_path):
    config, architecture, pattern = KINDS[kind]
    config(architectures=[architecture]).save_pretrained(tmp_path)
    refused(tmp_path, pattern)


def test_experts_are_refused_in_memory_too():
    config = transformers.AfmoeConfig(
        vocab_size=96, hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_experts=2, head_dim=8,
    )  # fmt: skip
    with pytest.raises(ModelError, match="AfmoeForCausalLM is a mixture of experts of which a gate"):
        anatomy(transformers.AfmoeForCausalLM(config))


def test_cross_attention_is_refused_by_name():
    config = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=4, add_cross_attention=True)
    with pytest.raises(ModelError, match=r"transformer\.h\.0\.crossattention"):
        anatomy(transformers.GPT2LMHeadModel(config))


def test_quantized_checkpoints_are_refused(folder):
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refused(folder, r"quantized \(bitsandbytes\).*original float checkpoint")
    edit_config(folder, quantization_config=None, quantization={"bits": 4, "group_size": 64})
    refused(folder, "quantized")


def test_integer_weights_are_refused(folder):
    edit_weights(folder, lambda w: w.update({"lm_head.weight": w["lm_head.weight"].to(torch.float8_e4m3fn)}))
    edit_config(folder, dtype="float8_e4m3fn")
    refused(folder, "float8_e4m3fn: quantized|cannot be (used|loaded)")


def test_adapters_are_refused(folder, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(tmp_path / "adapter", r"unmerged adapter.*merge_and_unload")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(
        folder,
        r"whole model, and adapter_config\.json of .*merged .* already, remove adapter_config\.json; if",
    )
    (folder / "adapter_model.safetensors").write_bytes(b"")
    refused(folder, r"remove adapter_config\.json and adapter_model\.safetensors; if not, merge")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """The four questions that the hub's client asks, answered from a folder. `models`: name → folder."""

    models: dict[str, Path]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0].removeprefix("/api/models").lstrip("/")
        name = "/".join(path.split("/")[:2])
        rest = path.split("/")[2:]
        if name not in self.models:
            return self.reply(401, b"", {"X-Error-Code": "RepoNotFound"}, body)
        if rest[:1] in (["resolve"], ["revision"]) and rest[1] not in ("main", COMMIT):
            return self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
        folder = self.models[name]
        if rest[:1] == ["resolve"]:
            return self.file(folder / "/".join(rest[2:]), body)
        files = [
            {"type": "file", "path": name, "rfilename": name, "size": p.stat().st_size, "oid": "0" * 40}
            for p in sorted(folder.rglob("*"))
            if p.is_file() and (name := str(p.relative_to(folder)))
        ]
        told = files if rest[:1] == ["tree"] else {"id": name, "sha": COMMIT, "siblings": files}
        return self.reply(200, json.dumps(told).encode(), {"Content-Type": "application/json"}, body)

    def file(self, path: Path, body: bool) -> None:
        if not path.exists():
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        self.reply(200, path.read_bytes(), {"ETag": f'"{path.name}"'}, body)

    def reply(self, code: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for key, value in ({"X-Repo-Commit": COMMIT, "Content-Length": str(len(data))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def hub(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.HTTPServer]:
    """A hub on this machine with owner/llama and owner/adapter, and an empty cache of its own."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    whole = shutil.copytree(pristine, tmp_path / "whole")
    for name in ("additional_chat_templates/tools.jinja", "tokenizer.model.v3", "onnx/model.json"):
        (whole / name).parent.mkdir(exist_ok=True)
        (whole / name).write_text("{{ messages }}")
    handler = type(
        "Handler", (Hub,), {"models": {"owner/llama": whole, "owner/adapter": tmp_path / "adapter"}}
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_name_is_fetched_at_one_commit_and_then_comes_from_the_cache(hub):
    loaded = load_model("owner/llama", device="cpu")
    assert loaded.fingerprint == fingerprint(tiny("llama"))
    assert (loaded.name, loaded.revision) == ("owner/llama", COMMIT)
    hub.shutdown()
    hub.server_close()
    again = load_model("owner/llama", revision="main", device="cpu")
    assert replace(again, model=None, tokenizer=None) == replace(loaded, model=None, tokenizer=None)


def test_all_files_of_a_hub_models_tokenizer_come_along(hub, tmp_path):
    loaded = load_model("owner/llama", device="cpu")
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "tokenizer.model.v3")
    own = {name: (tmp_path / "whole" / name).read_bytes() for name in names}
    assert loaded.copied == own | {"additional_chat_templates/tools.jinja": b"{{ messages }}"}
    assert not (Path(loaded.source) / "onnx").exists()


def test_an_adapter_beside_a_hub_model_is_told_too(hub, tmp_path):
    (tmp_path / "whole" / "adapter_config.json").write_text("{}")
    refused("owner/llama", r"whole model, and adapter_config\.json")


def test_names_that_the_hub_does_not_know(hub):
    refused("owner/nothing", "no folder and no hub model named 'owner/nothing'", UnknownName)
    refused("owner/llama", "no revision 'v9' on the hub", UnknownName, revision="v9")
    refused("owner/adapter", r"has no config\.json: no model, or only an adapter")


def test_a_hub_out_of_reach_says_what_to_do(hub):
    hub.shutdown()
    hub.server_close()
    refused("owner/llama", "hub cannot be reached.*path of a checkpoint folder")


def test_a_hub_model_that_cannot_be_had_is_told_before_anything_is_imported(hub, tmp_path):
    assert place_of("owner/llama").name == "models--owner--llama"
    with pytest.raises(UnknownName, match="no hub model named 'owner/nothing'"):
        place_of("owner/nothing")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ModelError, match=f"no copy of it in {tmp_path / 'cache'}"):
        place_of("owner/llama")
    (tmp_path / "cache" / "models--owner--llama").mkdir(parents=True)
    assert place_of("owner/llama").is_dir()
