"""BERT and RoBERTa from folders: pruned, judged, written, and read again by plain transformers; and what is refused."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.folders import refused, save_model, secateur, write_rows
from fixtures.zoo import CONTEXT, variant
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast, dynamic_module_utils

import secateur as api
from secateur.errors import ModelError
from secateur.hf.load import load_model
from secateur.result import Result
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.tasks.encode import encode
from secateur.tasks.example import Example

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
COUNTRIES = [
    a + b for a in ("Al", "Bor", "Cen", "Dra", "El", "Fen") for b in ("dia", "land", "mark", "nia", "stan")
]
CITIES = ["Oslo", "Rome", "Tern", "Venberg", "Quistadorf"]  # of one token and of several


def byte_level() -> PreTrainedTokenizerFast:
    """As RoBERTa's: every text stands between <s> and </s>. But its mask leaves the space before it alone."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(
        [f"The capital of {name} is Oslo or Rome or Tern." for name in COUNTRIES], trainer
    )
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="<mask>", **names)


def pieces() -> PreTrainedTokenizerFast:
    """As BERT's: words and pieces of them, between [CLS] and [SEP]."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [
        *special,
        *"thecapitalofisor.",
        *COUNTRIES,
        "The",
        "capital",
        "of",
        "is",
        "Oslo",
        "Rome",
        "Tern",
        "Ven",
        "##berg",
    ]
    vocabulary = {
        word: number for number, word in enumerate(dict.fromkeys([*words, "Quis", "##ta", "##dorf"]))
    }
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="[MASK]", **names)


def rows() -> list[dict[str, Any]]:
    draw = random.Random(0)
    made = []
    for name in COUNTRIES:
        choices = draw.sample(CITIES, 3)
        made.append(
            {
                "id": name,
                "prompt": f"The capital of {name} is <mask>.",
                "answer": choices[0],
                "choices": choices,
            }
        )
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, tokenizer, words = tmp_path_factory.mktemp("masked"), byte_level(), pieces()
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    save_model(place / "roberta", variant("roberta", **sizes, max_position_embeddings=CONTEXT + 2), tokenizer)
    save_model(place / "bert", variant("bert", vocab_size=len(words)), words)
    sizes = {"cls_token_id": 0, "sep_token_id": 2} | sizes
    save_model(place / "modernbert", variant("modernbert", **sizes), tokenizer)
    write_rows(place / "capitals.jsonl", rows())
    write_rows(
        place / "text.jsonl", [{"text": f"{number} of {name}."} for name in COUNTRIES for number in range(9)]
    )
    return place


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of checkpoints goes into a folder of its own."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def prune(place: Path, name: str, out: Path, **options: Any) -> Result:
    how: dict[str, Any] = {"allow_small": True, "device": "cpu"} | options
    return api.prune(str(place / name), str(place / "capitals.jsonl"), out, **how)


def same_logits(place: Path, name: str, result: Result, **how: Any) -> str:
    """The class that plain transformers reads, which computes what the original does with the plan's mask."""
    loaded = load_model(str(place / name), device="cpu")
    model = AutoModelForMaskedLM.from_pretrained(result.out, **how)
    ids = loaded.tokenizer("The capital of Eldia is Oslo.", return_tensors="pt")
    with torch.no_grad(), masked(loaded.model, resolve(result.plan, loaded.anatomy, loaded.fingerprint)):
        expected = loaded.model(**{key: ids[key] for key in ("input_ids", "attention_mask")}).logits
        found = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    return type(model).__name__


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_laser_from_folder_to_folder(name, place, tmp_path):
    result = prune(
        place,
        name,
        tmp_path / "out",
        method="laser",
        objective="loss",
        matrices=("down",),
        keep_unproven=True,
    )
    assert result.plan.edits
    assert same_logits(place, name, result) == ("BertForMaskedLM" if name == "bert" else "RobertaForMaskedLM")
    verdict = json.loads((tmp_path / "out/verdict.json").read_text())
    assert verdict["n"] == 15
    assert verdict["gains"]["kv_bytes_per_token"] is None
    assert verdict["side_effects"] == []
    places = {one["place"]: one for one in verdict["loads"]["where"]}
    assert places["transformers"]["how"] == "AutoModelForMaskedLM.from_pretrained(FOLDER)"
    assert not places["vLLM"]["loads"]
    assert "pipeline_tag: fill-mask" in (tmp_path / "out/README.md").read_text()
    told = api.evaluate(str(result.out), str(place / "capitals.jsonl"), allow_small=True, device="cpu")
    assert {score["metric"] for score in told["scores"]} == {
        "accuracy",
        "accuracy_norm",
        "choice_loss",
        "loss",
    }
    again = api.evaluate(
        str(place / name), str(place / "capitals.jsonl"), plan=result.plan, allow_small=True, device="cpu"
    )
    for score, other in zip(told["scores"], again["scores"], strict=True):
        assert score["value"] == pytest.approx(other["value"], abs=1e-5)


METHODS: dict[str, dict[str, Any]] = {  # each with a goal that some cut meets, whatever the data say
    "heads": {"step": 0.5, "random_orders": 0, "params": 0.95},
    "ffns": {"random_orders": 0, "max_loss": 0.9},
    "components": {"step": 0.5, "random_orders": 0, "report": "full", "params": 0.9},
    "attention": {"attentions": 1},
    "depth": {"blocks": 1, "by": "linearity", "form": "linear"},
    "directions": {"matrices": ("down",), "layers": (0, 1), "max_loss": 0.9},
    "budget": {"params": 0.8},
}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_cuts_it(method, place, tmp_path, modules):
    result = prune(place, "roberta", tmp_path / "out", method=method, **METHODS[method])
    assert result.plan.edits
    same_logits(place, "roberta", result, trust_remote_code=True)
    assert "secateur bench" not in (tmp_path / "out/report.html").read_text(), "which is refused for it"


@pytest.mark.parametrize(("name", "how"), [("roberta", {}), ("bert", METHODS["heads"] | {"method": "heads"})])
def test_text_is_a_task_by_its_pseudo_log_likelihood(name, how, place, tmp_path, modules):
    """One mask at a time; so it is as a side task, which nothing is written after."""
    text = f"text:{place / 'text.jsonl'}"
    options = {"seqlen": 12, "limit": 24, "allow_small": True, "device": "cpu", "side": [text]} | how
    result = api.prune(str(place / name), text, tmp_path / "out", **options)
    same_logits(place, name, result, trust_remote_code=True)
    verdict = json.loads((tmp_path / "out/verdict.json").read_text())
    assert verdict["metric"] == "text_loss"
    assert [effect["unit"] for effect in verdict["side_effects"]] == ["perplexity"]
    kept = tmp_path / "ledger.sqlite"
    read = {"seqlen": 12, "limit": 24, "allow_small": True, "device": "cpu", "split": "test", "ledger": kept}
    told = api.evaluate(str(result.out), text, **read)
    assert told["scores"][0]["value"] == pytest.approx(verdict["after"]["value"], abs=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_apply_carves_what_no_config_states(name, place, tmp_path, modules):
    sites = ("b0.attn.h1=drop", "b1.attn=drop", "b0.mlp.n3=drop")
    result = api.apply(str(place / name), sites, tmp_path / "out", device="cpu")
    assert same_logits(place, name, result, trust_remote_code=True) == "SecateurForCausalLM"
    again = load_model(str(result.out), device="cpu").anatomy
    assert [width.num_heads for width in again.widths] == [3, 0]
    config = json.loads((result.out / "config.json").read_text())
    assert config["auto_map"].keys() == {"AutoConfig", "AutoModelForMaskedLM"}


def test_a_first_block_gets_the_norm_that_its_class_lacks(place, tmp_path, modules):
    """ModernBERT's first attention reads the embeddings as they are; what stands first after a cut does not."""
    result = api.apply(
        str(place / "modernbert"), ("b0=drop", "b1.attn.h2=drop"), tmp_path / "out", device="cpu"
    )
    assert same_logits(place, "modernbert", result, trust_remote_code=True) == "SecateurForCausalLM"
    words = ["apply", place / "modernbert", "--edit", "b0=drop", "--portable", "-o", tmp_path / "portable"]
    refused(secateur(*words), "the nearest plan that a stock ModernBertForMaskedLM can hold", "takes nothing")
    options = {"by": "cosine", "form": "fold", "blocks": 1}
    folded = prune(place, "modernbert", tmp_path / "folded", method="depth", **options)
    assert same_logits(place, "modernbert", folded, trust_remote_code=True)


def test_the_forecast_needs_no_weights_and_no_tokenizer(place, tmp_path):
    (tmp_path / "config.json").write_bytes((place / "roberta/config.json").read_bytes())
    words = ["--task", place / "capitals.jsonl", "--allow-small", "--no-calibrate", "--json"]
    told = secateur("plan-cost", tmp_path, *words)
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["stages"]


def test_what_is_not_for_it_is_refused_in_a_line(place, tmp_path):
    model, task = place / "roberta", ["--task", place / "capitals.jsonl", "--allow-small"]
    out = ["-o", tmp_path / "out"]
    for words, piece in (
        (
            ["eval", model, *task, "--shots", 2],
            "--shots is not for RobertaForMaskedLM, a masked language model",
        ),
        (["eval", model, *task, "--chat"], "chat"),
        (["bench", model, "--against", model], "timing of prompts"),
        (["chat", model, "--prompt", "Hello", "--json"], "chat is not for"),
        (["finetune", model, *task, *out], "finetune"),
        (["prune", model, *task, *out, "--kv-bytes", 0.5], "--kv-bytes is not for"),
    ):
        refused(secateur(*words), piece)
    assert not (tmp_path / "out").exists()


def test_heads_that_were_trained_beside_it_are_left_out(place, tmp_path):
    """As on the hub: a pooler, next sentences, positions, and an unembedding that is stored once."""
    folder = Path(shutil.copytree(place / "bert", tmp_path / "bert"))
    weights = load_file(folder / "model.safetensors")
    assert "cls.predictions.decoder.weight" not in weights
    beside = {"bert.pooler.dense.weight": torch.ones(32, 32), "cls.seq_relationship.bias": torch.ones(2)}
    positions = {"bert.embeddings.position_ids": torch.arange(CONTEXT)[None]}
    save_file(weights | beside | positions, folder / "model.safetensors", {"format": "pt"})
    loaded = load_model(str(folder), device="cpu")
    assert loaded.fingerprint == load_model(str(place / "bert"), device="cpu").fingerprint
    save_file(
        weights | {"bert.encoder.layer.9.x": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelError, match=r"1 unexpected \(bert\.encoder\.layer\.9\.x\)"):
        load_model(str(folder), device="cpu")


def test_the_space_before_a_mask_is_its_answers(place):
    """The row is the sentence itself, but for the answer's tokens."""
    tokenizer = load_model(str(place / "roberta"), device="cpu").tokenizer
    for answer in CITIES:
        encoded = encode(
            Example("m", "The capital of Eldia is <mask>.", answer), tokenizer, context=None, masked=True
        )
        (row, ids), places = encoded.pairs[0], encoded.masks[0]
        filled = list(row)
        for place_of, token in zip(places, ids, strict=True):
            filled[place_of] = token
        assert filled == tokenizer.encode(f"The capital of Eldia is {answer}.")
