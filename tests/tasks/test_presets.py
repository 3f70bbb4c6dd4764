"""Presets, offline: records of the hub's shape give the prompts of the papers, as the shared files have
them."""

import json
from pathlib import Path

import pytest
from fixtures.places import SHARED

from secateur.errors import TaskError, UnknownName
from secateur.tasks.load import list_tasks, load_task
from secateur.tasks.presets import PRESETS, PROFESSIONS, SHORT_PROFESSIONS, read_preset, to_examples, unique


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
    examples = unique(tuple(made("fever", *({"claim": claim, "label": label} for claim, label in claims))))
    assert [example.id for example in examples] == ["fever-split-0"]


def test_a_changed_record_is_named():
    with pytest.raises(TaskError, match=r"aps/super_glue, split record 1: .*premise"):
        made("rte", {"premise": "a", "hypothesis": "b", "label": 0}, {"hypothesis": "b", "label": 0})


def test_a_hidden_label_is_no_answer():
    with pytest.raises(TaskError, match="label -1"):
        made("rte", {"premise": "a", "hypothesis": "b", "label": -1})


def test_without_a_network_the_error_says_what_to_do(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the datasets extra is not installed")
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match=r"hotpotqa/hotpot_qa cannot be loaded: .*hotpotqa:FILE\.jsonl"):
        read_preset(PRESETS["hotpotqa"])


# ------------------------------------------------------------------------------------ records from a file of one's own


def written(path: Path, *records: dict) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def read(preset: str, path: str) -> list:
    return load_task(f"{preset}:{path}", tokenizer=None, allow_small=True).examples


PAIR = {"premise": "It rains.", "hypothesis": "It is wet.", "idx": 0}


def pairs(count: int) -> list[dict]:
    return [PAIR | {"premise": f"It rains {n} times.", "label": n % 2} for n in range(count)]


def test_a_file_of_records_asks_as_the_preset_does(tmp_path):
    records = pairs(20)
    found = read("rte", written(tmp_path / "rte.jsonl", *records))
    asked = {(example.prompt, example.answer, example.choices) for example in found}
    assert asked == {(example.prompt, example.answer, example.choices) for example in made("rte", *records)}
    assert len({example.id for example in found}) == 20


def test_labels_in_words_are_those_of_superglue(tmp_path):
    said = [PAIR | {"label": word} for word in ("entailment", "contradiction", "neutral")]
    assert [example.answer for example in made("cb", *said)] == [" entails", " contradicts", " is neutral"]
    assert [example.answer for example in made("rte", PAIR | {"label": "not_entailment"})] == [" contradicts"]
    path = written(tmp_path / "cb.jsonl", PAIR | {"label": "maybe"})
    with pytest.raises(TaskError, match=r"cb\.jsonl, line 1: not as cb reads it .*label maybe"):
        read("cb", path)


def test_neither_the_order_of_lines_nor_a_files_name_changes_the_splits(tmp_path):
    records = pairs(30)
    one = load_task(f"rte:{written(tmp_path / 'a.jsonl', *records)}", tokenizer=None, allow_small=True)
    other = load_task(
        f"rte:{written(tmp_path / 'b.jsonl', *reversed(records))}", tokenizer=None, allow_small=True
    )
    assert one.hash == other.hash


def test_equal_records_have_ids_of_their_own_and_stay_together(tmp_path):
    record = PAIR | {"label": 0}
    task = load_task(
        f"rte:{written(tmp_path / 'rte.jsonl', *pairs(20), record, record)}", tokenizer=None, allow_small=True
    )
    twins = [number for number, example in enumerate(task.examples) if "It rains." in example.prompt]
    assert len({task.examples[n].id for n in twins}) == 2
    assert len(set(task.groups(twins))) == 1


def test_two_files_are_two_parts_and_must_not_share_a_question(tmp_path):
    train = written(tmp_path / "train.jsonl", *pairs(20))
    held = written(tmp_path / "val.jsonl", *({**pair, "hypothesis": "It is cold."} for pair in pairs(7)))
    how = {"tokenizer": None, "allow_small": True}
    task = load_task(f"rte:{train}", test_spec=f"rte:{held}", **how)
    assert [len(task.split(name)) for name in ("probe", "select", "test")] == [4, 16, 7]
    assert all("cold" in example.prompt for example in task.of(task.split("test")))
    with pytest.raises(TaskError, match="has the same"):
        load_task(f"rte:{train}", test_spec=f"rte:{train}", **how)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"line 2: not JSON"),
        ("[1]", r"line 2: .*(dictionary|object)"),
        (
            '{"premise": "a", "label": 0}',
            r"line 2: 'hypothesis' is missing; rte reads the fields of aps/super_glue",
        ),
        ('{"premise": "a", "hypothesis": "b", "label": -1}', r"line 2: .*label -1"),
        ('{"premise": "a", "hypothesis": "b", "label": 7}', r"line 2: not as rte reads it"),
        ('{"id": "1", "prompt": "a", "answer": " b"}', r"line 2: .*without rte: before it"),
    ],
)
def test_a_line_that_is_no_record_is_named(line, says, tmp_path):
    path = tmp_path / "rte.jsonl"
    path.write_text(json.dumps(PAIR | {"label": 0}) + f"\n{line}\n", encoding="utf-8")
    with pytest.raises(TaskError, match=says):
        read("rte", str(path))


def test_files_that_hold_no_records(tmp_path):
    with pytest.raises(TaskError, match="no examples of rte"):
        read("rte", written(tmp_path / "empty.jsonl"))
    with pytest.raises(TaskError, match="cannot be read"):
        read("rte", str(tmp_path / "absent.jsonl"))
    with pytest.raises(TaskError, match=r"rte\.txt holds no rows by its name\. Records are rows of a file"):
        read("rte", str(tmp_path / "rte.txt"))
    with pytest.raises(UnknownName, match="unknown task 'rt:"):
        read("rt", "file.jsonl")


@pytest.mark.parametrize("name", ["cb", "copa", "rte"])
def test_records_of_the_shared_files_ask_what_the_files_themselves_ask(name, tmp_path):
    """The files keep a record of SuperGLUE in `meta`; read as records, or as the questions they are, it is one task."""
    tasks = []
    for preset in (f"{name}:", ""):
        specs = []
        for part in ("train", "validation"):
            rows = shared(f"{name}_{part}")
            records = [row["meta"] for row in rows] if preset else rows
            specs.append(preset + written(tmp_path / f"{part}{len(preset)}.jsonl", *records))
        tasks.append(load_task(specs[0], test_spec=specs[1], tokenizer=None))
    asked = [
        {part: {(e.prompt, e.answer, e.choices) for e in task.of(task.split(part))} for part in ("test",)}
        for task in tasks
    ]
    assert asked[0] == asked[1]
    everything = [sorted((e.prompt, e.answer) for e in task.examples) for task in tasks]
    assert everything[0] == everything[1]


def test_every_preset_is_listed_and_near_names_are_offered():
    listed = {info.name: info for info in list_tasks()}
    assert set(PRESETS) <= set(listed)
    assert all(listed[name].needs and listed[name].kind == preset.kind for name, preset in PRESETS.items())
    with pytest.raises(UnknownName, match="Did you mean counterfact"):
        load_task("counterfac", tokenizer=None)
