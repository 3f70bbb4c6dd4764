"""Tokenizers and configs as they are met, through the real commands: ended texts, ids without a row, answers that join
their prompts."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
from fixtures.encoders import ENCODERS
from fixtures.folders import questions, save_model, secateur, write_rows
from fixtures.marks import slow_but
from fixtures.zoo import VOCAB_SIZE, tiny, variant
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from secateur.errors import ModelError
from secateur.hf.blank import Size, fresh_mistral
from secateur.hf.readable import load_readable

CHAT = "w9 {{ messages[0].content }} w8 "


@pytest.fixture(scope="module")
def usual(tmp_path_factory, words):
    """The words' tokenizer with BOS before every text, and a chat template."""
    return save_model(tmp_path_factory.mktemp("usual") / "m", tiny("llama"), around(words, "w1 $A"))


def around(words, form):
    """The same tokenizer, which puts something around every text."""
    made = copy.deepcopy(words)
    names = [(f"w{number}", number) for number in range(1, 5)]
    made._tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=names)
    made.chat_template = CHAT
    return made


@pytest.fixture
def altered(usual, tmp_path):
    """A copy of the usual folder with other entries in one of its JSON files."""

    def alter(file="config.json", **entries):
        folder = shutil.copytree(usual, tmp_path / "altered")
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))
        return folder

    return alter


@pytest.fixture
def task(tmp_path):
    return write_rows(tmp_path / "q.jsonl", questions())


def measured(model, task, *more):
    """Every metric that `eval` gives, with its interval."""
    done = secateur("eval", model, "--task", task, "--json", *more)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["scores"]


def refused(words, *pieces):
    done = secateur(*words)
    assert done.exit_code == 2, done
    assert done.stderr.count("\n") == 1
    for piece in pieces:
        assert str(piece) in done.stderr, done.stderr


# ------------------------------------------------------------------------------------------- texts that are ended


@pytest.mark.parametrize("more", slow_but([("--shots", 2)], [(), ("--shots", 2), ("--chat",)]), ids=str)
def test_numbers_are_those_of_a_tokenizer_that_ends_no_text(more, usual, words, tmp_path, task):
    ending = save_model(tmp_path / "ending", tiny("llama"), around(words, "w1 $A w2"))
    assert measured(ending, task, *more) == measured(usual, task, *more)
    wrapping = save_model(tmp_path / "wrapping", tiny("llama"), around(words, "w3 $A w4"))
    assert measured(wrapping, task, *more) != measured(usual, task, *more)
    opened = save_model(tmp_path / "opened", tiny("llama"), around(words, "w3 $A"))
    assert measured(wrapping, task, *more) == measured(opened, task, *more)


def test_text_is_that_of_a_tokenizer_that_ends_no_text(usual, words, tmp_path):
    rows = [{"text": row["prompt"] + row["answer"]} for row in questions(900)]
    text = f"text:{write_rows(tmp_path / 't.jsonl', rows)}"
    ending = save_model(tmp_path / "ending", tiny("llama"), around(words, "w1 $A w2"))
    assert measured(ending, text) == measured(usual, text)


# ----------------------------------------------------------------------------------------------- ids without a row


@pytest.mark.parametrize(
    "verb", [("eval",), ("plan-cost",), ("prune", "-o", "out"), ("probe", "--what", "heads")], ids=str
)
def test_a_padding_id_beyond_the_vocabulary(verb, altered, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = altered(pad_token_id=VOCAB_SIZE)
    says = ["config.json", f"pad_token_id {VOCAB_SIZE}", f"vocab_size {VOCAB_SIZE}"]
    refused([verb[0], model, "--task", task, *verb[1:]], *says)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox", "bloom"])
def test_a_padding_id_beyond_the_vocabulary_is_read_where_the_model_reserves_no_row_for_it(
    family, words, task, tmp_path
):
    plain = save_model(tmp_path / "plain", tiny(family), words)
    padded = save_model(tmp_path / "padded", variant(family, pad_token_id=VOCAB_SIZE), words)
    assert measured(padded, task) == measured(plain, task)


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("config.json", {"bos_token_id": 96, "eos_token_id": [2, 97]}),
        ("config.json", {"pad_token_id": -1}),
        ("generation_config.json", {"pad_token_id": 96, "bos_token_id": 500, "eos_token_id": [2, 96]}),
        ("generation_config.json", {"suppress_tokens": [96, 97], "begin_suppress_tokens": [500]}),
        ("generation_config.json", {"forced_eos_token_id": 96, "decoder_start_token_id": 96}),
        (
            "generation_config.json",
            {"repetition_penalty": 1.8, "do_sample": True, "temperature": 0.7, "top_k": 20},
        ),
    ],
    ids=str,
)
def test_what_is_set_aside_changes_nothing(file, entries, usual, altered, tmp_path):
    """Of this preset the first ten greedy tokens are generated."""
    rows = [{"inputs": row["prompt"], "targets": [row["answer"].strip()]} for row in questions()]
    task = f"wikidata-qa:{write_rows(tmp_path / 'w.jsonl', rows)}"
    assert measured(altered(file, **entries), task) == measured(usual, task)


@pytest.mark.parametrize("stated", ["</s>", [2, "</s>"], [[2], [3]]], ids=str)
def test_ends_that_are_no_token_ids(stated, altered, task):
    model = altered("generation_config.json", eos_token_id=stated)
    refused(["eval", model, "--task", task], "generation_config.json has eos_token_id", stated)


@pytest.mark.parametrize("where", ["prompt", "answer", "template", "text"])
def test_a_token_added_without_resizing_is_refused_by_name(where, words, tmp_path):
    tokenizer = around(words, "w1 $A")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|added|>"]})
    if where == "template":
        tokenizer.chat_template = CHAT + " <|added|>"
    model = save_model(tmp_path / "m", tiny("llama"), tokenizer)
    rows = [{"id": row["id"], "prompt": row["prompt"], "answer": row["answer"]} for row in questions()]
    if where in ("prompt", "answer"):
        rows[77][where] += " <|added|>"
    says = ["<|added|>", f"id {VOCAB_SIZE}", f"vocab_size is {VOCAB_SIZE}"]
    if where == "text":
        task = f"text:{write_rows(tmp_path / 't.jsonl', [{'text': row['prompt'] + ' <|added|>'} for row in rows])}"
        refused(["eval", model, "--task", task], "text-", *says)
        return
    task = write_rows(tmp_path / "q.jsonl", rows)
    if where == "template":
        measured(model, task)
        refused(["eval", model, "--task", task, "--chat"], *says)
    else:
        refused(["eval", model, "--task", task], "'q77'", *says)


def test_a_beginning_of_text_without_a_row(words, tmp_path, task):
    tokenizer = copy.deepcopy(words)
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    model = save_model(tmp_path / "m", tiny("llama"), tokenizer)
    refused(["probe", model, "--task", task, "--what", "induction"], f"id {VOCAB_SIZE}", "vocab_size")


@pytest.mark.parametrize(
    ("name", "key"), [("bert", "pad_token_id"), ("t5", "pad_token_id"), ("t5", "decoder_start_token_id")]
)
def test_ids_of_an_encoder_without_a_row(name, key, words, tmp_path):
    folder = save_model(tmp_path / "m", ENCODERS[name](), words)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: config["vocab_size"]}))
    with pytest.raises(ModelError, match=rf"config\.json .*{key} {config['vocab_size']}"):
        load_readable(str(folder))


def test_a_model_from_nothing_has_a_row_for_every_id(words):
    gaps = copy.deepcopy(words)
    inner = json.loads(gaps._tokenizer.to_str())
    inner["model"]["vocab"]["w95"] = 200
    gaps._tokenizer = gaps._tokenizer.from_str(json.dumps(inner))
    model = fresh_mistral(Size(layers=1, d_model=16, heads=2), gaps, 0)
    assert model.config.vocab_size == 201 > len(gaps)


# ------------------------------------------------------------------------------- answers that join their prompts


def joining(words):
    """A tokenizer in which `w5` and `w5 w6` without the space between them are one token each."""
    inner = Tokenizer(
        models.BPE({"w": 3, "5": 4, "6": 5, " ": 6, "w5": 7, "w56": 8}, [("w", "5"), ("w5", "6")])
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="w2")


@pytest.mark.parametrize(
    ("answer", "warned"), [("6", None), ("66", True), (" 6", False)], ids=["all of it", "a part", "nothing"]
)
def test_an_answer_within_the_prompts_last_token(answer, warned, words, tmp_path, caplog):
    """`w5` + `66` are w56 and 6: as in the evaluation harness, 6 is asked for after w5, and that is said."""
    model = save_model(tmp_path / "m", tiny("llama"), joining(words))
    rows = [
        {"id": f"q{n}", "prompt": "w" * (1 + n % 7) + "6" * n + " w5", "answer": answer} for n in range(40)
    ]
    words = ["eval", model, "--task", write_rows(tmp_path / "q.jsonl", rows), "--allow-small"]
    if warned is None:
        refused(words, "the answer '6' and the end of its prompt", "w5' are one token", "word's border")
        return
    assert secateur(*words).exit_code == 0
    assert ("in 40 of 40 examples" in caplog.text) == warned
