"""Sequence classifiers from folders: pruned on labelled text, judged, written, and read again by plain transformers;
and what is refused."""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.folders import refused, save_model, secateur, write_rows
from fixtures.zoo import CONTEXT, classifier
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, dynamic_module_utils

import secateur as api
from secateur.hf.load import load_model
from secateur.result import Result
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve

LABELS = ("bad", "so-so", "good")
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]


def framed() -> PreTrainedTokenizerFast:
    """Words between [CLS] and [SEP], the second text of a pair with types of its own, as BERT's."""
    words = {word: number for number, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(4, 96))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def sentence(draw: random.Random) -> str:
    return " ".join(f"w{draw.randrange(4, 96)}" for _ in range(draw.randrange(3, 8)))


def rows(count: int = 36) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [{"text": sentence(draw), "label": draw.choice(LABELS)} for _ in range(count)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, words: PreTrainedTokenizerFast) -> Path:
    place, tokenizer = tmp_path_factory.mktemp("classifiers"), framed()
    save_model(place / "bert", classifier("bert"), tokenizer)
    save_model(place / "roberta", classifier("roberta", max_position_embeddings=CONTEXT + 1), tokenizer)
    save_model(place / "llama", classifier("llama"), words)
    found = rows()
    write_rows(place / "rows.jsonl", found)
    draw = random.Random(1)
    pairs = [
        {"premise": one["text"], "hypothesis": sentence(draw), "label": draw.randrange(3)} for one in found
    ]
    write_rows(place / "pairs.jsonl", pairs)
    with (place / "rows.csv").open("w", newline="") as file:
        table = csv.writer(file, delimiter=",")
        table.writerow(["Sentence", "Label"])
        table.writerows([one["text"], one["label"].upper()] for one in found)
    return place


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of checkpoints goes into a folder of its own."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def same_logits(place: Path, name: str, result: Result, **how: Any) -> str:
    """The class that plain transformers reads, which computes what the original does with the plan's mask."""
    loaded = load_model(str(place / name), device="cpu")
    model = AutoModelForSequenceClassification.from_pretrained(result.out, **how)
    assert model.config.id2label == dict(enumerate(LABELS))
    told = loaded.tokenizer(["w5 w17 w40", "w5 w6 w7 w90 w88"], ["w8 w9", "w4"], padding=name != "llama")
    texts = {key: told[key] for key in ("input_ids", "token_type_ids", "attention_mask") if key in told}
    if name == "llama":
        texts = {"input_ids": [[5, 17, 40, 0, 0], [5, 6, 7, 90, 88]]}  # padded with its padding
    if name == "roberta":
        texts.pop("token_type_ids", None)
    given = {key: torch.tensor(value) for key, value in texts.items()}
    with torch.no_grad(), masked(loaded.model, resolve(result.plan, loaded.anatomy, loaded.fingerprint)):
        expected, found = loaded.model(**given).logits, model(**given).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    return type(model).__name__


def prune(place: Path, name: str, task: str, out: Path, **options: Any) -> Result:
    how: dict[str, Any] = {"allow_small": True, "device": "cpu"} | options
    return api.prune(str(place / name), str(place / task), out, **how)


def test_laser_on_pairs_from_folder_to_folder(place, tmp_path):
    options = {"objective": "loss", "matrices": ("down",), "keep_unproven": True}
    result = prune(place, "bert", "pairs.jsonl", tmp_path / "out", method="laser", **options)
    assert result.plan.edits
    assert same_logits(place, "bert", result) == "BertForSequenceClassification"
    verdict = json.loads((tmp_path / "out/verdict.json").read_text())
    assert (verdict["n"], verdict["side_effects"]) == (18, [])
    assert verdict["gains"]["kv_bytes_per_token"] is None
    assert verdict["baseline"]["chance"] == pytest.approx(1 / 3)
    assert verdict["baseline"]["majority"]["answer"] in LABELS
    analysis = json.loads((tmp_path / "out/analysis.json").read_text())
    tails = analysis["laser"]["tail"] if "laser" in analysis else analysis["tail"]
    assert {answer for one in tails for answer, _ in one["answers"]} <= set(LABELS)
    assert all(one["cosine"] is None for one in tails)
    places = {one["place"]: one for one in verdict["loads"]["where"]}
    assert places["transformers"]["how"] == "AutoModelForSequenceClassification.from_pretrained(FOLDER)"
    assert not places["vLLM"]["loads"]
    assert "pipeline_tag: text-classification" in (tmp_path / "out/README.md").read_text()
    asked = {"allow_small": True, "device": "cpu"}
    told = api.evaluate(str(result.out), str(place / "pairs.jsonl"), **asked)
    again = api.evaluate(str(place / "bert"), str(place / "pairs.jsonl"), plan=result.plan, **asked)
    assert {"accuracy", "loss"} == {score["metric"] for score in told["scores"]}
    assert [one["metric"] for one in verdict["secondary"]] == ["accuracy"]
    for score, other in zip(told["scores"], again["scores"], strict=True):
        assert score["value"] == pytest.approx(other["value"], abs=1e-5)


CASES: list[
    tuple[str, str, dict[str, Any]]
] = [  # each with a goal that some cut meets, whatever the data say
    ("roberta", "heads", {"step": 0.5, "random_orders": 0, "params": 0.95}),
    ("llama", "heads", {"step": 0.5, "random_orders": 0, "params": 0.95}),
    ("llama", "depth", {"blocks": 1, "by": "linearity", "form": "linear"}),
    ("bert", "depth", {"blocks": 1, "form": "drop"}),
    ("roberta", "ffns", {"random_orders": 0, "max_loss": 0.9}),
    ("llama", "components", {"step": 0.5, "random_orders": 0, "report": "full", "params": 0.9}),
    ("bert", "attention", {"attentions": 1}),
    ("llama", "directions", {"matrices": ("down",), "layers": (0, 1), "max_loss": 0.9}),
    ("bert", "budget", {"params": 0.8}),
]


def marked() -> list[Any]:
    """The cases, of which those after the first three are slow."""
    marks = [()] * 3 + [(pytest.mark.slow,)] * (len(CASES) - 3)
    return [pytest.param(*case, marks=marks[at], id=f"{case[0]}-{case[1]}") for at, case in enumerate(CASES)]


@pytest.mark.parametrize(("name", "method", "options"), marked())
def test_every_method_cuts_it(name, method, options, place, tmp_path, modules):
    result = prune(place, name, "rows.csv", tmp_path / "out", method=method, **options)
    assert result.plan.edits
    same_logits(place, name, result, trust_remote_code=True)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_apply_carves_what_no_config_states(name, place, tmp_path, modules):
    first, left = {"bert": ("h1", 3), "llama": ("g1", 2)}[name]
    sites = (f"b0.attn.{first}=drop", "b1.attn=drop", "b0.mlp.n3=drop")
    result = api.apply(str(place / name), sites, tmp_path / "out", device="cpu")
    assert same_logits(place, name, result, trust_remote_code=True) == "SecateurForCausalLM"
    refused(
        secateur(
            "heal", result.out, "--task", place / "rows.jsonl", "-o", tmp_path / "healed", "--allow-small"
        ),
        "heal, which teaches texts token by token, is not",
    )
    again = load_model(str(result.out), device="cpu").anatomy
    assert ([width.num_heads for width in again.widths], again.labels) == ([left, 0], LABELS)
    config = json.loads((result.out / "config.json").read_text())
    assert config["auto_map"].keys() == {"AutoConfig", "AutoModelForSequenceClassification"}
    twice = api.apply(str(result.out), ("b0.mlp.n7=drop",), tmp_path / "twice", device="cpu")
    assert load_model(str(twice.out), device="cpu").anatomy.labels == LABELS


def test_rows_of_python_and_what_is_understood_of_them(place):
    """Names and numbers of labels, in columns of several names, mean the same."""
    by_name = api.evaluate(str(place / "llama"), rows(), allow_small=True, device="cpu")
    renamed = [{"sentence": one["text"], "answer": LABELS.index(one["label"])} for one in rows()]
    write_rows(place / "renamed.jsonl", renamed)
    by_number = api.evaluate(
        str(place / "llama"), str(place / "renamed.jsonl"), allow_small=True, device="cpu"
    )
    assert [one["value"] for one in by_name["scores"]] == [one["value"] for one in by_number["scores"]]
    words = ["tasks", "--check", place / "rows.csv", "--model", place / "llama", "--json"]
    told = json.loads(secateur(*words).stdout)
    assert told["format"] == "a table (CSV) of texts with their labels"
    assert (told["kind"], told["examples"]) == ("choice", 36)
    assert {label for one in told["rendered"] for label in one["answer"]} <= set(LABELS)


def test_the_forecast_needs_no_weights_and_no_tokenizer(place, tmp_path):
    for name in ("roberta", "llama"):
        (tmp_path / "config.json").write_bytes((place / name / "config.json").read_bytes())
        words = ["--task", place / "rows.jsonl", "--allow-small", "--no-calibrate", "--json"]
        told = secateur("plan-cost", tmp_path, *words)
        assert told.exit_code == 0, told.stderr
        assert json.loads(told.stdout)["stages"]


def test_rows_that_no_label_fits_are_refused_in_a_line(place, tmp_path):
    for row, piece in (
        (
            {"text": "w5", "label": "great"},
            "line 2: the label 'great' is none of the model's; the model has bad, so-so",
        ),
        ({"text": "w5", "label": 3}, "line 2: the label 3 is none of the model's"),
        ({"text": "w5", "label": -1}, "the label -1 is none"),
        ({"text": "w5", "label": None}, "the label is null"),
        ({"text": " ", "label": "bad"}, "line 2: 'text' is empty"),
        ({"text": 5, "label": "bad"}, "'text' is the number 5, and text is wanted"),
        ({"text": "w5", "sentence2": "", "label": "bad"}, "'sentence2' is empty"),
        ({"text": "w5", "prompt": "w6", "label": "bad"}, "'text' and 'prompt' could each be the text"),
        ({"text": "w5", "mood": "bad"}, "no column is the label (label, answer); the row has text, mood"),
        ({"words": "w5", "label": "bad"}, "no column is the text"),
    ):
        task = write_rows(tmp_path / "rows.jsonl", [{"text": "w5", "label": "bad"}, row])
        refused(secateur("eval", place / "llama", "--task", task, "--allow-small"), piece)


def test_what_is_not_for_it_is_refused_in_a_line(place, tmp_path):
    model, task = place / "llama", ["--task", place / "rows.jsonl", "--allow-small"]
    out = ["-o", tmp_path / "out"]
    for words, piece in (
        (["eval", model, "--task", f"text:{place / 'rows.jsonl'}", "--allow-small"], "is no labelled text"),
        (["eval", model, "--task", "builtin:facts", "--allow-small"], "is no labelled text"),
        (
            ["eval", model, *task, "--shots", 2],
            "--shots is not for LlamaForSequenceClassification, a sequence",
        ),
        (["eval", model, *task, "--chat"], "chat"),
        (["eval", model, *task, "--join", " "], "the model gives labels"),
        (["bench", model, "--against", model], "timing of prompts"),
        (["chat", model, "--prompt", "Hello", "--json"], "chat is not for"),
        (["finetune", model, *task, *out], "finetune"),
        (["export", model, "--gguf", *out], "without the head of a sequence classifier"),
        (["prune", model, *task, *out, "--objective", "accuracy_norm"], "does not exist for a label task"),
        (["prune", model, *task, *out, "--kv-bytes", 0.5], "--kv-bytes is not for"),
    ):
        refused(secateur(*words), piece)
    assert not (tmp_path / "out").exists()


def test_models_of_another_problem_are_refused_before_their_weights_are_read(place, tmp_path):
    shutil.copytree(place / "bert", tmp_path, dirs_exist_ok=True)
    config = json.loads((place / "bert/config.json").read_text())
    for changes, piece in (
        ({"problem_type": "regression"}, "problem_type 'regression'"),
        ({"problem_type": "multi_label_classification"}, "problem_type 'multi_label_classification'"),
        ({"id2label": {"0": "score"}, "label2id": {"score": 0}}, "1 label, as for regression"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        refused(secateur("plan-cost", tmp_path, "--task", place / "rows.jsonl", "--allow-small"), piece)
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"architectures": ["DebertaForSequenceClassification"]})
    )
    refused(secateur("plan-cost", tmp_path, "--task", place / "rows.jsonl"), "unknown family Deberta")
