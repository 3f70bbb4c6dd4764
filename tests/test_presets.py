"""Presets, offline: records of the hub's shape give the prompts of the papers, as the shared files have
them."""

import json
from pathlib import Path

import pytest

from secateur.errors import TaskError, UnknownName
from secateur.tasks.load import list_tasks, load_task
from secateur.tasks.presets import PRESETS, PROFESSIONS, SHORT_PROFESSIONS, _unique, read_preset, to_examples

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"


def shared(name: str) -> list[dict]:
    file = SHARED / f"{name}.jsonl"
    if not file.exists():
        pytest.skip("shared data not here")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").strip().split("\n")]


def made(name: str, *records: dict) -> list:
    return list(to_examples(PRESETS[name], "split", records))


def entailment(row):
    labels = {"entailment": 0, "contradiction": 1, "not_entailment": 1, "neutral": 2}
    return row["meta"] | {"label": labels[row["meta"]["label"]]}


def statement(row):
    meta = row["meta"]
    answers = {"choices": [meta["statement"]], "labels": [meta["label"]]}
    return {"question": meta["question"], "mc2_targets": answers}


REBUILT = {  # file: (preset, a record of the hub's shape from what the file keeps in `meta`)
    "cb_train": ("cb", entailment),
    "cb_validation": ("cb", entailment),
    "rte_train": ("rte", entailment),
    "copa_train": ("copa", lambda row: row["meta"]),
    "copa_validation": ("copa", lambda row: row["meta"]),
    "fever_paper_dev": ("fever", lambda row: row["meta"]),
    "hotpotqa_dev": ("hotpotqa", lambda row: {"question": row["meta"]["question"], "answer": row["answer"]}),
    "truthfulqa_pairs": ("truthfulqa", statement),
}


@pytest.mark.parametrize("file", REBUILT)
def test_prompts_are_those_of_the_shared_files(file):
    preset, record = REBUILT[file]
    rows = shared(file)
    examples = made(preset, *map(record, rows))
    assert len(examples) == len(rows)
    for example, row in zip(examples, rows, strict=True):
        assert (example.prompt, example.answer) == (row["prompt"], row["answer"])
        assert example.choices == (None if row["choices"] is None else tuple(row["choices"]))


def test_counterfact():
    for row in shared("counterfact")[:500]:
        subject = row["meta"]["subject"]
        asked = {
            "prompt": row["prompt"].replace(subject, "{}", 1),
            "subject": subject,
            "target_true": {"str": row["answer"][1:]},
            "target_new": {"str": row["meta"]["target_new"][1:]},
        }
        (example,) = made(
            "counterfact", {"requested_rewrite": asked, "paraphrase_prompts": row["paraphrases"]}
        )
        assert (example.prompt, example.answer) == (row["prompt"], row["answer"])
        assert example.paraphrases == tuple(row["paraphrases"])


def test_big_bench():
    row = shared("bigbench_epistemic_reasoning")[0]
    (example,) = made("epistemic-reasoning", {"inputs": row["prompt"], "targets": [row["answer"][1:]]})
    assert (example.prompt, example.answer, example.choices) == (
        row["prompt"],
        row["answer"],
        tuple(row["choices"]),
    )
    several = {"inputs": "x is", "targets": ["a", "b"]}
    one = {"inputs": "The native language of Ada is ", "targets": ["English"]}
    (example,) = made("wikidata-qa", several, one)
    assert (example.prompt, example.answer) == ("The native language of Ada is", " English")


def test_biographies():
    record = {"hard_text": "She writes poems", "profession": PROFESSIONS.index("poet"), "gender": 1}
    (example,) = made("bios-gender", record)
    text = "Consider the following text: She writes poems. "
    assert example.prompt == text + "Is the person in this text male or female? The person is"
    assert example.answer == " female"
    (example,) = made("bios-profession", record, record | {"profession": PROFESSIONS.index("nurse")})
    question = "What is the profession of the person in this text? The profession of this person is"
    assert (example.prompt, example.answer) == (text + question, " poet")
    assert len(PROFESSIONS) == 28
    assert set(SHORT_PROFESSIONS) < set(PROFESSIONS)


def test_answers_to_one_question_are_one_group():
    record = {"question": "Why?", "mc2_targets": {"choices": ["Because", "Never."], "labels": [1, 0]}}
    first, second = made("truthfulqa", record)
    assert first.group == second.group
    assert (first.id != second.id, first.answer, second.answer) == (True, " true", " false")


def test_repeated_claims_count_once_and_contradicted_ones_not_at_all():
    claims = [
        ("a", "SUPPORTS"),
        ("b", "REFUTES"),
        ("a", "SUPPORTS"),
        ("b", "SUPPORTS"),
        ("c", "NOT ENOUGH INFO"),
    ]
    examples = _unique(tuple(made("fever", *({"claim": claim, "label": label} for claim, label in claims))))
    assert [example.id for example in examples] == ["fever-split-0"]


def test_a_changed_record_is_named():
    with pytest.raises(TaskError, match=r"aps/super_glue, split record 1: .*premise"):
        made("rte", {"premise": "a", "hypothesis": "b", "label": 0}, {"hypothesis": "b", "label": 0})


def test_a_hidden_label_is_no_answer():
    with pytest.raises(TaskError, match="label -1"):
        made("rte", {"premise": "a", "hypothesis": "b", "label": -1})


def test_without_a_network_the_error_says_what_to_do(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the hub extra is not installed")
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match=r"hotpotqa/hotpot_qa cannot be loaded from the hub .*FILE\.jsonl"):
        read_preset(PRESETS["hotpotqa"])


def test_every_preset_is_listed_and_near_names_are_offered():
    listed = {info.name: info for info in list_tasks()}
    assert set(PRESETS) <= set(listed)
    assert all(listed[name].needs and listed[name].kind == preset.kind for name, preset in PRESETS.items())
    with pytest.raises(UnknownName, match="Did you mean counterfact"):
        load_task("counterfac", tokenizer=None)
