"""Answers found in what a model writes: the rule itself, and the harness's own scores on the same texts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fixtures.folders import write_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import secateur
from secateur.core.baseline import decides_text
from secateur.core.records.verdict import BaselineRecord
from secateur.errors import TaskError
from secateur.evaluation.batching import Packing
from secateur.evaluation.generate import answers_within
from secateur.hf.anatomy import anatomy
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import Loaded
from secateur.tasks.encode import encode
from secateur.tasks.extract import Extraction, extraction_of
from secateur.tasks.harness import read_harness
from secateur.tasks.load import load_side
from secateur.tasks.questions import QuestionRules
from secateur.tasks.splits import make_task


@pytest.mark.parametrize(
    ("rule", "text", "gold", "agrees"),
    [
        ("number", "Half of 48 is 24. 48 + 24 = 72.", " 72", True),
        ("number", "Half of 48 is 24. 48 + 24 = 72.", "Natalia sold 48 / 2 = 24.\n#### 72", True),
        ("number", "It is $1,200.50 in all", "1200.5", True),
        ("number", "It is -3", "3", False),
        ("number", "None at all", "3", False),
        ("number", "72 or 73", "72", False),  # the last one counts
        (r"answer is \(?([A-D])", "So the answer is (B). Or is the answer is C", "B", True),
        (r"answer is \(?([A-D])", "B", "B", False),
        (r"(yes|no)|(maybe)", "well, maybe", "maybe", True),
        (r"\w+", " Rome is it", " Rome", True),
    ],
)
def test_what_is_found_in_a_text(rule, text, gold, agrees):
    assert extraction_of(rule).agrees(text, gold) is agrees


def test_the_end_of_a_text_and_what_is_not_compared():
    rule = Extraction(r"\w+\.?", last=True, until=("\n\n", "Q:"), ignored=(r"\.$",), ignore_case=True)
    assert rule.agrees("so it is ROME.\n\nQ: Oslo", "Rome")
    assert not rule.agrees("so it is ROME. Oslo", "Rome")
    assert Extraction(ignore_punctuation=True).agrees("R.o-m,e", "Rome")
    with pytest.raises(TaskError, match=r"'\[' is no regular expression"):
        extraction_of("[")


LETTERS = "abcdefgh"


def lettered() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A random model that writes letters, digits and spaces."""
    signs = [*LETTERS, *"0123456789", " ", "\n", ":", "Q", "A"]
    inner = Tokenizer(models.BPE({"<s>": 0, "</s>": 1} | {sign: i + 2 for i, sign in enumerate(signs)}, []))
    inner.pre_tokenizer = pre_tokenizers.Split(pattern="", behavior="isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(signs) + 2, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, initializer_range=0.6, eos_token_id=1, bos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), tokenizer


FILTERS = {
    "first match": [{"function": "regex", "regex_pattern": "([a-h])"}, {"function": "take_first"}],
    "last match": [
        {"function": "regex", "regex_pattern": "([a-h])|([0-9])", "group_select": -1},
        {"function": "take_first"},
    ],
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.filterwarnings("ignore")  # lm_eval and datasets warn at will
def test_written_answers_score_as_in_the_harness(name, tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    documents = [{"q": f"{n % 10}{LETTERS[n % 7]}", "gold": f"{LETTERS[n % 8].upper()}:"} for n in range(40)]
    (tmp_path / "docs.json").write_text("\n".join(map(json.dumps, documents)))
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    config = {
        "task": "written",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.json")}, "cache_dir": str(tmp_path)},
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "Q:{{q}}\nA:",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "generation_kwargs": {"until": ["\n", "Q"], "max_gen_toks": 8, "do_sample": False},
        "filter_list": [{"name": name, "filter": FILTERS[name]}],
        "metric_list": [metric | {"ignore_case": True, "regexes_to_ignore": [":"]}],
    }
    path = str(tmp_path / "task.yaml")
    (tmp_path / "task.yaml").write_text(json.dumps(config))  # JSON is YAML
    model, tokenizer = lettered()
    theirs = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=64),
        tasks=[path], task_manager=TaskManager(include_defaults=False), log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    samples = sorted(theirs["samples"]["written"], key=lambda sample: sample["doc_id"])

    source = read_harness(path)
    assert (source.kind, source.max_new_tokens) == ("generation", 8)
    task = make_task(source, None, split_seed=0, limit=None, allow_small=True, shares=None)
    encoded = {i: encode(e, tokenizer, context=64) for i, e in enumerate(task.examples)}
    loaded = Loaded("letters", model, tokenizer, anatomy(model), fingerprint(model), None, None)
    ours = answers_within(loaded, task, range(40), encoded, Packing(512, 512, 0))
    by_id = {example.id: hit for example, hit in zip(task.examples, ours, strict=True)}
    expected = [sample["exact_match"] for sample in samples]
    assert [by_id[f"written-eval-{n}"] for n in range(40)] == expected
    assert 0 < np.mean(expected) < 1, "equality would say nothing"


def test_an_extracted_answer_decides(tmp_path):
    """The facts' answers are single words: the first word that the model writes is right where its token is."""
    facts = load_side("builtin:facts", tokenizer=None, limit=260)
    rows = [{"id": e.id, "prompt": e.prompt, "answer": e.answer, "group": e.group} for e in facts.examples]
    path = write_rows(tmp_path / "facts.jsonl", rows)
    how = {"split": "select", "allow_small": True}
    plain = secateur.evaluate("builtin:facts", str(path), **how)
    found = secateur.evaluate("builtin:facts", str(path), extract=r"\w+", max_new_tokens=3, **how)
    assert plain["scores"][0]["metric"] == found["scores"][0]["metric"] == "accuracy"
    assert 0 < plain["scores"][0]["value"] == found["scores"][0]["value"] < 1
    never = secateur.evaluate("builtin:facts", str(path), extract="number", max_new_tokens=3, **how)
    assert never["scores"][0]["value"] == 0.0
    told = [decides_text(BaselineRecord.model_validate(one["baseline"])) for one in (plain, found)]
    assert told[0].endswith("by the likeliest answer as a whole")
    assert told[1].endswith("by the answer that is found in the text that the model writes")


@pytest.mark.slow
def test_a_verdict_on_written_answers_from_a_table(tmp_path):
    """A table without ids and spaces, answers looked for in what the model writes: the cut of the demo is found."""
    facts = load_side("builtin:facts", tokenizer=None, limit=400)
    lines = ["prompt,answer", *(f"{example.prompt},{example.answer.strip()}" for example in facts.examples)]
    (tmp_path / "facts.csv").write_text("\n".join(lines))
    how = {"join": " ", "extract": r"\w+", "max_new_tokens": 3, "matrices": ("gate",), "layers": (2, 3)}
    result = secateur.prune("builtin:facts", tmp_path / "facts.csv", tmp_path / "out", **how)
    assert result.verdict["verdict"] == "improves"
    assert (result.verdict["metric"], result.verdict["n"]) == ("accuracy", 200)
    assert "--extract '\\w+' --max-new-tokens 3" in (tmp_path / "out" / "README.md").read_text()


def test_the_rule_is_part_of_the_task(tmp_path):
    path = str(
        write_rows(tmp_path / "q.jsonl", [{"prompt": f"{n} + 1 =", "answer": f" {n + 1}"} for n in range(9)])
    )
    hashes = {
        load_side(path, tokenizer=None, rules=QuestionRules(**how)).hash
        for how in (
            {},
            {"extract": "number"},
            {"extract": r"\d+"},
            {"extract": "number", "max_new_tokens": 9},
        )
    }
    assert len(hashes) == 4
