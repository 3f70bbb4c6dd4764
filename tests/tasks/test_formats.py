"""Tasks as people have them: what each tool writes is read, what means nothing is refused with its line."""

from __future__ import annotations

import csv
import json
import logging
import random
import statistics
import time
import tracemalloc
from pathlib import Path

import pytest
from fixtures.folders import questions, refused, save_model, secateur, write_rows
from fixtures.zoo import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from secateur.errors import SecateurError, TaskError, UnknownName
from secateur.tasks.encode import encode
from secateur.tasks.load import describe, files_of, load_side, load_task
from secateur.tasks.questions import QuestionRules, classify_notice, is_glued
from secateur.tasks.rows import MAX_LINE

ROME = ("The capital of Italy is", " Rome", (" Paris", " Rome", " Oslo"))


def examples(spec: str | Path, **more) -> dict[str, object]:
    """The examples of a task by their prompts."""
    return {example.prompt: example for example in load_side(str(spec), tokenizer=None, **more).examples}


def is_rome(example) -> bool:
    return (example.prompt, example.answer, example.choices) == ROME


def table(path: Path, *rows: list[str], delimiter: str = ",", **how) -> Path:
    with path.open("w", newline="", encoding=how.pop("encoding", "utf-8")) as file:
        csv.writer(file, delimiter=delimiter, **how).writerows(rows)
    return path


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------- files as tools write them

FRAME = {
    "question": ["The capital of Italy is", 'He said "1, 2"\nand'],
    "choices": [[" Paris", " Rome", " Oslo"], [" 3", " four, five"]],
    "answer": [1, 0],
}


@pytest.mark.parametrize("index", [True, False])
def test_a_table_as_pandas_writes_it(index, tmp_path):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(FRAME).to_csv(tmp_path / "q.csv", index=index)
    pandas.DataFrame(FRAME).to_csv(tmp_path / "q.tsv", index=index, sep="\t")
    for name in ("q.csv", "q.tsv"):
        found = examples(tmp_path / name)
        assert is_rome(found["The capital of Italy is"])
        assert found['He said "1, 2"\nand'].choices == (" 3", " four, five")
        assert found['He said "1, 2"\nand'].answer == " 3"


@pytest.mark.parametrize(
    ("name", "how"), [("q.jsonl", {"lines": True}), ("q.json", {"indent": 1}), ("q.json", {})]
)
def test_json_as_pandas_writes_it(name, how, tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(FRAME | {"id": [7, 8], "group": ["a", None]})
    frame.to_json(tmp_path / name, orient="records", **how)
    found = examples(tmp_path / name)
    assert is_rome(found["The capital of Italy is"])
    assert {(example.id, example.group) for example in found.values()} == {("7", "a"), ("8", "8")}


def test_places_that_became_floats_in_a_column_with_gaps(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(FRAME | {"answer": [1.0, 0.0]})
    frame.to_csv(tmp_path / "q.csv")
    frame.to_json(tmp_path / "q.jsonl", orient="records", lines=True)
    assert is_rome(examples(tmp_path / "q.csv")[ROME[0]])
    assert is_rome(examples(tmp_path / "q.jsonl")[ROME[0]])


def test_a_data_set_as_datasets_saves_it(tmp_path, caplog):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict(FRAME | {"source": ["atlas", "book"]})
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=made, test=made.select([0])).save_to_disk(tmp_path / "two")
    made.to_json(tmp_path / "lines.json")
    assert is_rome(examples(tmp_path / "one")[ROME[0]])
    assert is_rome(examples(tmp_path / "lines.json")[ROME[0]])
    assert is_rome(examples(f"hf:{tmp_path / 'one'}")[ROME[0]])
    assert len(examples(f"hf:{tmp_path / 'two'}:train")) == 2
    assert len(examples(f"hf:{tmp_path / 'two'}:test")) == 1
    assert files_of(str(tmp_path / "one")) == [tmp_path / "one"]
    assert files_of(f"hf:{tmp_path / 'two'}:test") == [tmp_path / "two"]
    assert caplog.text == ""  # `tasks --check` names other columns
    with pytest.raises(
        TaskError, match=r"has the splits train, test: say which, such as --task hf:.*two:train"
    ):
        examples(tmp_path / "two")
    with pytest.raises(TaskError, match=r"there is no split 'dev'; it has train, test"):
        examples(f"hf:{tmp_path / 'two'}:dev")
    with pytest.raises(TaskError, match=r"it has no splits; leave out :dev"):
        examples(f"hf:{tmp_path / 'one'}:dev")
    (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(b"broken")
    with pytest.raises(TaskError, match="cannot be read as a saved data set"):
        examples(tmp_path / "one")


def test_names_of_data_sets(tmp_path):
    for name in ("gsm8k", "a/b/c/d", ":train"):
        with pytest.raises(UnknownName, match="hf:OWNER/NAME"):
            files_of(f"hf:{name}")
    with pytest.raises(UnknownName, match="no such folder"):
        files_of("hf:./absent")
    with pytest.raises(TaskError, match="not a folder that a Dataset's save_to_disk wrote"):
        files_of(f"hf:{tmp_path}")
    assert files_of("hf:openai/gsm8k/main:test") == []


def test_the_fields_of_arc_and_commonsense_qa(tmp_path):
    datasets = pytest.importorskip("datasets")
    choices = {"text": list(ROME[2]), "label": ["1", "2", "3"]}
    rows = [{"id": "a", "question": ROME[0], "choices": choices, "answerKey": "2"}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "arc")
    assert is_rome(examples(tmp_path / "arc")[ROME[0]])


def conversation(*turns: tuple[str, object]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_an_openai_fine_tuning_file(tmp_path):
    """As the OpenAI cookbook writes one: a system turn, several turns, a weight, parts of text."""
    first = conversation(("system", "Be brief."), ("user", "Capital of Italy?"), ("assistant", "Rome"))
    more = [("user", "Hi"), ("assistant", "Hello."), ("user", [{"type": "text", "text": "And of Norway?"}])]
    second = conversation(*more, ("assistant", "Oslo"), ("user", "Thanks"))
    second["messages"][1]["weight"] = 0
    found = examples(lines(tmp_path / "chat.jsonl", first, second))
    plain = "System: Be brief.\nUser: Capital of Italy?\nAssistant:"
    assert (found[plain].answer, found[plain].choices) == (" Rome", None)
    assert found[plain].turns == (("system", "Be brief."), ("user", "Capital of Italy?"))
    last = found["User: Hi\nAssistant: Hello.\nUser: And of Norway?\nAssistant:"]
    assert last.answer == " Oslo"
    assert last.turns == (("user", "Hi"), ("assistant", "Hello."), ("user", "And of Norway?"))


def chatting() -> PreTrainedTokenizerFast:
    words = ["<s>", "<system>", "<user>", "<assistant>", "Be", "brief.", "Capital", "of", "Italy?", "Rome"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<s>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    return tokenizer


def test_a_conversation_goes_through_the_chat_template_turn_by_turn(tmp_path):
    turns = [("system", "Be brief."), ("user", "Capital of Italy?"), ("assistant", "Rome")]
    (example,) = examples(lines(tmp_path / "chat.jsonl", conversation(*turns))).values()
    tokenizer = chatting()
    encoded = encode(example, tokenizer, context=None, chat=True)
    context, answer = encoded.pairs[0]
    assert tokenizer.decode(context) == "<system> Be brief. <user> Capital of Italy? <assistant>"
    assert tokenizer.decode(answer) == "Rome"


# ------------------------------------------------------------------------------------------------------- other shapes


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("question,A,B,C,answer", "The capital of Italy is, Paris, Rome, Oslo,B"),
        ("question,A,B,C,answer", "The capital of Italy is, Paris, Rome, Oslo,(b)"),
        ("question,A,B,C,answer", "The capital of Italy is, Paris, Rome, Oslo, Rome"),
        ("question,A,B,C,answer", "The capital of Italy is, Paris, Rome, Oslo,1"),
        ("prompt,option1,option2,option3,answer", "The capital of Italy is, Paris, Rome, Oslo,2"),
        ("prompt,choice_a,choice_b,choice_c,completion", "The capital of Italy is, Paris, Rome, Oslo,B."),
        ("answer,question,choices", "B,The capital of Italy is, Paris| Rome| Oslo"),
        ("answer,question,options", "1,The capital of Italy is,\"[' Paris', ' Rome', ' Oslo']\""),
        ('question;"A";B;C;answer', "The capital of Italy is; Paris; Rome; Oslo;B"),
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_choices_in_a_table(header, row, ends, tmp_path):
    (tmp_path / "q.csv").write_bytes(b"\xef\xbb\xbf" + f"{header}{ends}{row}{ends}{ends}".encode())
    assert is_rome(examples(tmp_path / "q.csv")[ROME[0]])


def test_rows_of_a_table_with_fewer_choices(tmp_path):
    rows = (["question", "A", "B", "C", "answer"], ["one", "x", "y", "", "B"], ["two", "x", "y", "z", "C"])
    found = examples(table(tmp_path / "q.csv", *rows))
    assert (found["one"].choices, found["one"].answer) == (("x", "y"), "y")
    assert (found["two"].choices, found["two"].answer) == (("x", "y", "z"), "z")


def test_numbers_in_a_list_in_a_cell_are_text(tmp_path):
    found = examples(table(tmp_path / "q.csv", ["question", "choices", "answer"], ["3 + 4 =", "[7, 8]", "7"]))
    assert (found["3 + 4 ="].choices, found["3 + 4 ="].answer) == (("7", "8"), "7")


def test_a_text_that_is_also_a_place_is_the_text(tmp_path):
    (example,) = examples(
        lines(tmp_path / "q.jsonl", {"prompt": "2 - 1 =", "choices": ["2", "1", "0"], "answer": "0"})
    ).values()
    assert example.gold == 2


def test_prompt_and_completion_and_a_number_as_an_answer(tmp_path):
    rows = ({"prompt": "3 + 4 =", "completion": " 7"}, {"question": "3 + 5 =", "answer": 8})
    found = examples(lines(tmp_path / "q.jsonl", *rows))
    assert (found["3 + 4 ="].answer, found["3 + 5 ="].answer) == (" 7", "8")


def test_rows_of_text_are_a_text_wherever_they_are(tmp_path, words):
    rows = [[f"w{n % 90} w{n % 7} w{n % 11}"] for n in range(300)]
    path = table(tmp_path / "t.csv", ["text"], *rows)
    task = load_task(str(path), tokenizer=words)
    same = load_task(f"text:{path}", tokenizer=words)
    assert task.kind == "text"
    assert task.hash == same.hash
    assert describe(str(path)) == "a table (CSV) of plain text"


def test_examples_without_an_id_are_named_by_their_content(tmp_path):
    rows = [{"prompt": f"q{n % 200}", "answer": " a"} for n in range(260)]
    first = load_task(str(lines(tmp_path / "a.jsonl", *rows)), tokenizer=None)
    random.Random(1).shuffle(rows)
    again = load_task(str(lines(tmp_path / "b.jsonl", *rows)), tokenizer=None)
    assert first.hash == again.hash
    assert len({example.id for example in first.examples}) == 260
    twice = [example for example in first.examples if example.prompt == "q3"]
    assert len({example.group for example in twice}) == 1  # the same question is in one split
    other = load_task(
        str(table(tmp_path / "c.csv", ["prompt", "answer"], *([r["prompt"], r["answer"]] for r in rows))),
        tokenizer=None,
    )
    assert {e.id for e in other.examples} == {e.id for e in first.examples}


# ------------------------------------------------------------------------------------------------------ space before


def test_a_missing_space_is_said_once_and_mended_by_join(tmp_path, caplog):
    rows = [{"question": f"Number {n} is", "choices": ["odd", "even"], "answer": n % 2} for n in range(130)]
    path = str(lines(tmp_path / "q.jsonl", *rows))
    with caplog.at_level(logging.WARNING, logger="secateur"):
        plain = load_task(path, tokenizer=None)
    assert len(caplog.messages) == 1
    assert "in 130 of 130 rows nothing stands between prompt and answer" in caplog.text
    assert "'Number 0 isodd'" in caplog.text
    assert '--join " "' in caplog.text
    caplog.clear()
    joined = load_task(path, tokenizer=None, rules=QuestionRules(join=" "))
    assert not caplog.messages
    assert {e.choices for e in joined.examples} == {(" odd", " even")}
    for split in ("probe", "select", "test"):  # a space moves nothing to another split
        assert [e.prompt for e in joined.of(joined.split(split))] == [
            e.prompt for e in plain.of(plain.split(split))
        ]


def test_join_leaves_what_is_apart_already(tmp_path):
    rows = [{"prompt": "a ", "answer": "b"}, {"prompt": "c", "answer": " d"}, {"prompt": "e", "answer": "f"}]
    found = examples(lines(tmp_path / "q.jsonl", *rows), rules=QuestionRules(join="\\n"))
    assert [found[p].answer for p in ("a ", "c", "e")] == ["b", " d", "\nf"]


@pytest.mark.parametrize(
    ("prompt", "answer", "glued"),
    [
        ("The capital is", "Rome", True),
        ("What is it?", "Rome", True),
        ("3 + 4 =", "7", False),
        ("The capital is", " Rome", False),
        ("The capital is ", "Rome", False),
        ("('", "Rome", False),
        ("意大利的首都是", "罗马", False),
        ("เมืองหลวง", "โรม", False),
        ("Столица", "Рим", True),
    ],
)
def test_only_words_that_are_written_apart_are_noticed(prompt, answer, glued):
    assert is_glued(prompt, answer) is glued


@pytest.mark.parametrize(
    "header",
    [
        "ID;Question;Option A;Option B;Option C;Correct answer",
        " id ;QUESTION;option_a;option_b;option_c;correct",
        "Id;Prompt;A;B;C;Label",
        "id;question;choice-1;choice-2;choice-3;correct_answer",
    ],
)
def test_columns_are_found_by_their_names_in_any_spelling(header, tmp_path):
    (tmp_path / "q.csv").write_text(
        f"\ufeff{header}\n7;{ROME[0]};{';'.join(ROME[2])}; Rome\n", encoding="utf-8"
    )
    found = examples(tmp_path / "q.csv")
    assert is_rome(found[ROME[0]])
    assert found[ROME[0]].id == "7"
    row = dict(zip(header.split(";"), ["7", ROME[0], *ROME[2], " Rome"], strict=True))
    assert is_rome(examples(lines(tmp_path / "q.jsonl", row))[ROME[0]])


def test_a_synonym_beside_the_answer_is_kept_aside(tmp_path):
    (found,) = examples(lines(tmp_path / "q.jsonl", {"Question": "q", "answer": " x", "Label": 3})).values()
    assert (found.answer, found.meta) == (" x", {"Label": 3})


def test_a_text_column_is_found_in_any_spelling(tmp_path, words):
    (tmp_path / "t.csv").write_text("ID,Text\n4,w5 w6 w7\n")
    assert describe(str(tmp_path / "t.csv")) == "a table (CSV) of plain text"
    (chunk,) = load_side(str(tmp_path / "t.csv"), tokenizer=words).examples
    assert words.decode(chunk.tokens) == "w5 w6 w7"
    lines(tmp_path / "t.jsonl", {"ID": 4, " TEXT": "w5 w6 w7"})
    assert load_side(str(tmp_path / "t.jsonl"), tokenizer=words).examples == (chunk,)


@pytest.mark.parametrize(
    ("answer", "choices", "taken"),
    [
        ("Billing", ["shipping", "billing", "technical"], "billing"),
        ("technical ", ["shipping", "billing", "technical"], "technical"),
        ("Rome", [" Paris", " Rome"], " Rome"),
        ("A", ["b", "A"], "A"),
        ("a", ["A", "B"], "A"),
        (1, [" 1", " 2"], " 2"),  # a number is a place, as in the files of data sets
    ],
)
def test_an_answer_is_a_choice_but_for_case_and_spaces(answer, choices, taken, tmp_path):
    (found,) = examples(
        lines(tmp_path / "q.jsonl", {"prompt": "q", "choices": choices, "answer": answer})
    ).values()
    assert found.answer == taken


def test_answers_that_differ_in_case_and_spaces_are_counted_once(tmp_path, caplog):
    labels = {" Shipping": 3, " shipping": 5, " shipping ": 2, " billing": 6, "technical": 9}
    rows = [
        {"prompt": f"w{n} {label}:", "answer": label} for label, count in labels.items() for n in range(count)
    ]
    examples(lines(tmp_path / "q.jsonl", *rows))
    notice, _ = caplog.messages  # the other one is of the space that is missing
    assert (
        "5 different answers, 3 when case and spaces at the ends are ignored: ' shipping' 5, ' Shipping' 3, "
        in notice
    )
    assert "' shipping ' 2. " in notice
    assert notice.endswith(
        "choose among them instead of writing: add to every row a column choices with  billing| shipping|technical."
    )
    assert classify_notice([f" town {n}" for n in range(40)] * 2) == ""
    caplog.clear()
    examples(
        lines(tmp_path / "one.jsonl", {"prompt": "a:", "answer": " x"}, {"prompt": "b:", "answer": " y"})
    )
    assert caplog.messages == []


def test_labels_beside_texts_are_said_not_to_be_read(tmp_path, words, caplog):
    (tmp_path / "t.csv").write_text("text,Label\nw5 w6 w7,w8\n")
    assert load_side(str(tmp_path / "t.csv"), tokenizer=words).kind == "text"
    assert "read as plain text, and label is not read. For questions, rename text → question." in caplog.text


# ---------------------------------------------------------------------------------------------------------- bad input

TABLES = {
    "a cell missing": (
        ["question,A,B,answer", "q,x,y,A", "r,x,y"],
        "line 3",
        "3 cells, and the header has 4 columns",
    ),
    "a column missing": (
        ["question,A,B", "q,x,y"],
        "the header",
        "'answer' is missing; the header has question, A, B. Right would be the columns question,A,B,answer with",
    ),
    "no header": (
        ["What is it,Nothing", "q,x"],
        "the header",
        "'prompt' (or 'question') and 'answer' are missing; the header has What is it, Nothing. Right",
    ),
    "columns to rename": (
        ["ID;Question text;A;B;Right Answr", "1;q;x;y;A"],
        "the header",
        "the header has id, Question text, A, B, Right Answr. Rename: Question text → question, Right Answr → answer.",
    ),
    "two synonyms": (
        ["question,label,correct", "q,x,y"],
        "the header",
        "'correct' and 'label' could each be the answer; leave one out",
    ),
    "a number for a label": (["question,label", "q,1"], "line 2", "'label' is '1' and there are no choices"),
    "columns twice but for case": (["question,Answer,ANSWER", "q,x,y"], "the header", "'answer' is missing"),
    "a letter beyond": (["question,A,B,answer", "q,x,y,C"], "line 2", "the answer 'C' is beyond the choices"),
    "a place beyond": (
        ["question,A,B,answer", "q,x,y,2"],
        "line 2",
        "beyond the 2 choices, whose places are 0 to 1",
    ),
    "a label beyond": (
        ["question,option1,option2,answer", "q,x,y,3"],
        "line 2",
        "beyond the choices, which are 1, 2",
    ),
    "an empty answer": (["question,answer", "q,x", "r,"], "line 3", "'answer' is empty"),
    "two answers": (
        ["question,answer,completion", "q,x,y"],
        "the header",
        "could each be the answer; leave one out",
    ),
    "a column twice": (["question,answer,answer", "q,x,y"], "line 1", "the column 'answer' is there twice"),
    "an open quotation mark": (["question,answer", '"q,x', "r,y"], "line 2", "Close every quotation mark"),
    "an array of numpy": (["question,choices,answer", "q,\"['x' 'y']\",0"], "line 2", "has no commas"),
    "no list": (["question,choices,answer", "q,x,0"], "line 2", "write Paris|Rome, or a column for each"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_broken_table_is_refused_with_its_line(case, tmp_path):
    content, where, says = TABLES[case]
    path = tmp_path / "q.csv"
    path.write_text("\n".join(content) + "\n")
    with pytest.raises(TaskError) as caught:
        examples(path)
    assert str(caught.value).startswith(f"{path}, {where}: ")
    assert says in str(caught.value)


IMAGE = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "data:"}}]
CONVERSATIONS = {
    "an image": (conversation(("user", IMAGE), ("assistant", "A cat")), "'messages[1]' holds 'image_url'"),
    "no answer": (conversation(("user", "Hi")), "lacks the answer, which is a turn of the assistant"),
    "the answer alone": (
        conversation(("assistant", "Hi")),
        "lacks the answer, which is a turn of the assistant",
    ),
    "a tool's turn": (conversation(("tool", "7"), ("assistant", "7")), "'messages[1]' is of the role 'tool'"),
    "a tool's call": (
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [{}]}]},
        "'messages[2]' calls a tool",
    ),
    "an empty turn": (
        conversation(("user", " "), ("assistant", "7")),
        "the content of 'messages[1]' is empty",
    ),
    "no turns": ({"messages": {"user": "Hi"}}, "'messages' is an object, and a list of turns is wanted"),
}


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_a_broken_conversation_is_refused_with_its_line(case, tmp_path):
    broken, says = CONVERSATIONS[case]
    good = conversation(("user", "Hi"), ("assistant", "Hello"))
    with pytest.raises(TaskError, match=r"chat\.jsonl, line 2: .* Right would be \{\"messages\": ") as caught:
        examples(lines(tmp_path / "chat.jsonl", good, broken))
    assert says in str(caught.value)


def test_a_broken_json_list_is_refused_with_its_item_and_line(tmp_path):
    good = '{"prompt": "a",\n "answer": " b"}'
    for content, says in (
        (f'[{good},\n{{"prompt": "a"}}]', r"item 2 \(line 3\): 'answer' is missing"),
        (f'[{good},\n{{"prompt": "a"', r"item 2 \(line 3\): not JSON"),
        (f"[{good}\n{good}]", r"item 1 \(line 1\): not JSON \(a comma or \] is wanted"),
        (f"[{good}, 7]", r"item 2 \(line 2\): the row is the number 7"),
        ("[]", "no examples in it"),
    ):
        (tmp_path / "q.json").write_text(content)
        with pytest.raises(TaskError, match=says):
            examples(tmp_path / "q.json")


@pytest.mark.parametrize("name", ["q.csv", "q.tsv", "q.jsonl", "q.json"])
def test_an_empty_file(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(TaskError, match=r"no examples in it\. Wanted are rows such as .* docs/tasks\.md"):
        examples(tmp_path / name)


@pytest.mark.parametrize(("code", "hint"), [("latin1", "iconv -f latin1"), ("utf-16", "iconv -f utf-16")])
@pytest.mark.parametrize("name", ["q.csv", "q.jsonl"])
def test_other_encodings_are_named(code, hint, name, tmp_path):
    row = "question,answer\n" if name == "q.csv" else '{"prompt": "a", "answer": " b"}\n'
    (tmp_path / name).write_bytes((row + row.replace("a", "é")).encode(code))
    line = "line 2" if code == "latin1" else "line 1"
    with pytest.raises(TaskError, match=f"{line}: not UTF-8: the byte 0x.*{hint}"):
        examples(tmp_path / name)


@pytest.mark.parametrize("name", ["q.csv", "q.jsonl"])
def test_a_line_of_100_mb_is_refused_and_not_held(name, tmp_path):
    good = b"prompt,answer\n" if name == "q.csv" else b'{"prompt": "a", "answer": " b"}\n'
    with (tmp_path / name).open("wb") as file:
        file.write(good)
        for _ in range(100):
            file.write(b"x" * 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(TaskError, match=rf"{name}, line 2: longer than {MAX_LINE >> 20} MB"):
            examples(tmp_path / name)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 3 * MAX_LINE


def test_a_json_list_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.tasks.rows.MAX_LIST", 2**20)
    (tmp_path / "q.json").write_bytes(b"[" + b" " * 2**21 + b"]")
    with pytest.raises(TaskError, match=r"a JSON list of 2 MB.*at most 1 MB.*jq -c '\.\[\]'"):
        examples(tmp_path / "q.json")


def test_options_of_reading_that_do_not_fit(tmp_path):
    path = lines(tmp_path / "q.jsonl", {"question": "a", "choices": ["b", "c"], "answer": "b"})
    for rules, says in (
        ({"extract": "("}, "is no regular expression"),
        ({"max_new_tokens": 3}, "--max-new-tokens is for --extract"),
        ({"extract": "number"}, "--extract is for answers that are written"),
    ):
        with pytest.raises(SecateurError, match=says):
            examples(path, rules=QuestionRules(**rules))


# ----------------------------------------------------------------------------------------------- through the commands


@pytest.fixture(scope="module")
def model(tmp_path_factory, words):
    """A model without its weights."""
    folder = save_model(tmp_path_factory.mktemp("model") / "m", tiny("llama"), words)
    (folder / "model.safetensors").unlink()
    return folder


def test_a_broken_row_is_said_before_weights_are_read(tmp_path, words, monkeypatch):
    def read(*_, **__):
        raise LookupError("weights are read")

    monkeypatch.setattr("secateur.session.load_model", read)
    whole = save_model(tmp_path / "m", tiny("llama"), words)
    good = write_rows(tmp_path / "good.jsonl", questions())
    reached = secateur("prune", whole, "--task", good, "-o", tmp_path / "out")
    assert "weights are read" in str(reached.exception)
    path = table(tmp_path / "q.csv", ["question", "A", "B", "answer"], ["w5 w6", "w7", "w8", "C"])
    result = secateur("prune", whole, "--task", path, "-o", tmp_path / "out")
    refused(result, "q.csv, line 2: the answer 'C' is beyond", "docs/tasks.md")
    assert "Right would be" not in result.output  # the columns are right
    assert not (tmp_path / "out").exists()


def test_a_json_list_and_answers_by_place_are_read(model, tmp_path):
    """Case 18: both were refused once."""
    rows = [row | {"answer": row["choices"].index(row["answer"])} for row in questions()]
    plain = load_task(str(write_rows(tmp_path / "q.jsonl", questions())), tokenizer=None)
    for name, content in (("list.json", json.dumps(rows)), ("list.jsonl", json.dumps(rows, indent=1))):
        (tmp_path / name).write_text(content)
        assert load_task(str(tmp_path / name), tokenizer=None).hash == plain.hash


def test_check_says_what_was_understood(model, tmp_path, words):
    rows = questions(200)
    header = ["id", "question", "A", "B", "answer"]
    cells = [[r["id"], r["prompt"], *r["choices"], "AB"[r["choices"].index(r["answer"])]] for r in rows]
    path = table(tmp_path / "q.csv", header, *cells)
    shown = secateur("tasks", "--check", path, "--model", model)
    assert shown.exit_code == 0, shown.output
    for says in (
        "a table (CSV) of questions with choices", "200 (choice; accuracy decides)",
        "calibration (probe) 20, validation (select) 80, test 100",
        "chance (50.0 %)", "choices: ",
    ):  # fmt: skip
        assert says in shown.stdout, shown.stdout
    found = json.loads(secateur("tasks", "--check", path, "--model", model, "--json").stdout)
    by_id = {row["id"]: row for row in rows}
    assert [one["split"] for one in found["rendered"]] == ["test", "select", "probe"]
    first = found["rendered"][0]
    assert f"{first['prompt']} → {' + '.join(map(repr, first['answer']))}\n" in shown.stdout
    for one in found["rendered"]:
        row = by_id[one["id"]]
        assert one["prompt"] == words.decode(words.encode(row["prompt"]))
        assert " ".join(one["answer"]) == words.decode(words.encode(row["answer"]))
        assert one["choices"] == row["choices"]
    lengths = sorted(len(words.encode(row["prompt"])) for row in rows)
    middle = statistics.median(lengths)
    assert found["prompt_tokens"] == {"least": lengths[0], "median": middle, "most": lengths[-1]}
    assert found["problems"] == []


def test_check_names_what_is_never_read_and_how_to_classify(model, tmp_path):
    rows = [{"prompt": f"w{n}", "answer": " w7" if n % 2 else " w8", "topic": "x"} for n in range(3, 60)]
    path = lines(tmp_path / "q.jsonl", *rows)
    shown = secateur("tasks", "--check", path, "--model", model)
    assert "never read             topic\n" in shown.stdout
    found = json.loads(secateur("tasks", "--check", path, "--model", model, "--json").stdout)
    assert found["unread"] == ["topic"]
    assert (
        "2 different answers in 57 examples, each to be written. To choose among them"
        in found["problems"][-1]
    )
    assert found["problems"][-1].endswith("a column choices with  w7| w8.")


def test_check_needs_no_model_for_the_format(model, tmp_path):
    path = write_rows(tmp_path / "q.jsonl", questions(200))
    shown = secateur("tasks", "--check", path)
    assert shown.exit_code == 0, shown.output
    for says in (
        "JSON lines of questions with choices",
        "calibration (probe) 20, validation (select) 80, test 100",
        "chance (50.0 %)",
        "--model MODEL adds",
    ):
        assert says in shown.stdout
    assert "tokens of a prompt" not in shown.stdout
    plain, whole = (
        json.loads(secateur("tasks", "--check", path, "--json", *more).stdout)
        for more in ((), ("--model", model))
    )
    of_tokens = {"model", "prompt_tokens", "answer_tokens", "context", "rendered"}
    assert {name for name in whole if plain[name] != whole[name]} == of_tokens
    (tmp_path / "t.txt").write_text("w5 w6 w7")
    refused(secateur("tasks", "--check", f"text:{tmp_path / 't.txt'}"), "is plain text", "give --model")
    table(tmp_path / "q.csv", ["Frage", "answer"], ["w5", "w6"])
    refused(
        secateur("tasks", "--check", tmp_path / "q.csv"),
        "q.csv, the header: 'prompt' (or 'question') is missing",
    )


def test_check_says_what_would_stop_a_search(model, tmp_path):
    rows = [
        {"prompt": "w5 " * 80, "answer": " w6"},
        *({"prompt": f"w{n}", "answer": " w7"} for n in range(8, 40)),
    ]
    path = lines(tmp_path / "q.jsonl", *rows)
    found = json.loads(secateur("tasks", "--check", path, "--model", model, "--json").stdout)
    small, _, long = found["problems"]
    assert "need 50 groups of examples each, about 125 in one file, and there are select 13, test 17" in small
    assert "1 of 33 examples are longer than the model's context of 64 tokens" in long


# --------------------------------------------------------------------------------------------------- without a network


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A hub that nobody answers at, and empty caches."""
    datasets = pytest.importorskip("datasets")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("hf:nobody/nothing:test", "nobody/nothing"),
        ("cb", "aps/super_glue"),
        ("lm_eval:TASK", "its data"),
        ("boolq", "its data"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # lm_eval and datasets warn at will
def test_without_a_network_one_line_says_what_is_missing(spec, name, no_network, tmp_path, capfd):
    if spec.startswith("lm_eval"):
        pytest.importorskip("lm_eval")
        config = {"task": "t", "dataset_path": "nobody/nothing", "output_type": "multiple_choice"}
        config |= {"test_split": "test", "doc_to_text": "q", "doc_to_choice": "c", "doc_to_target": "t"}
        (tmp_path / "task.yaml").write_text(json.dumps(config))
        spec = f"lm_eval:{tmp_path / 'task.yaml'}"
    capfd.readouterr()
    started = time.monotonic()
    with pytest.raises(TaskError) as caught:
        load_task(spec, tokenizer=None)
    assert time.monotonic() - started < 30
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    assert f"http://127.0.0.1:9 does not answer, and there is no copy in {tmp_path / 'cache'}" in message
    assert capfd.readouterr() == ("", "")


def test_what_was_changed_while_offline_is_put_back(no_network):
    import datasets
    import huggingface_hub

    from secateur.tasks.hub import hub_or_cache

    before = logging.getLogger("datasets").level
    with hub_or_cache():
        assert datasets.config.HF_HUB_OFFLINE
        assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert logging.getLogger("datasets").level == before
