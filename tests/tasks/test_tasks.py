"""Task files, texts, generators, splits: what is read, what is refused in which words, what never moves."""

import bz2
import gzip
import json
import logging
import lzma
import random
import re
from itertools import islice
from pathlib import Path

import pytest
from fixtures.places import SHARED
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from secateur.errors import TaskError, UnknownName
from secateur.tasks import arithmetic, shapes
from secateur.tasks.example import Example
from secateur.tasks.load import BUILTINS, list_tasks, load_task
from secateur.tasks.splits import MIN_GROUPS, ExampleSource, make_task
from secateur.tasks.text import cut


def byte_tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    """One token per byte; `bos` is put before every text by default."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({"<s>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(bos=True)


def rows(count: int, **more) -> list[dict]:
    return [{"id": f"e{i}", "prompt": f"question {i} is", "answer": f" {i}"} | more for i in range(count)]


def write(path: Path, items: list[dict]) -> str:
    path.write_text("\n".join(json.dumps(item) for item in items) + "\n", encoding="utf-8")
    return str(path)


def ids(task, split):
    return {example.id for example in task.of(task.split(split))}


# --- files


def test_reads_every_field(tmp_path, tokenizer):
    full = {
        "id": "rome",
        "prompt": "The capital of Italy is",
        "answer": " Rome",
        "choices": [" Paris", " Rome"],
        "paraphrases": ["Italy's capital is"],
        "meta": {"frequency": 3},
        "group": "italy",
    }
    others = rows(300, choices=[f" {i}" for i in range(300)])
    task = load_task(write(tmp_path / "capitals.jsonl", [full, *others]), tokenizer=tokenizer)
    example = next(e for e in task.examples if e.id == "rome")
    assert (example.prompt, example.answer, example.choices, example.gold) == (
        "The capital of Italy is",
        " Rome",
        (" Paris", " Rome"),
        1,
    )
    assert (example.paraphrases, example.group, example.meta) == (
        ("Italy's capital is",),
        "italy",
        {"frequency": 3},
    )
    assert (task.name, task.kind) == ("capitals", "choice")


GOOD = {"id": "a", "prompt": "p", "answer": " x"}
BROKEN = {
    "no answer": ({"id": "b", "prompt": "p"}, "'answer' is missing; the row has id, prompt"),
    "no prompt": (
        {"id": "b", "answer": "p"},
        r"'prompt' \(or 'question'\) is missing; the row has id, answer",
    ),
    "empty prompt": (GOOD | {"id": "b", "prompt": " "}, "'prompt' is empty"),
    "empty answer": (GOOD | {"id": "b", "answer": ""}, "'answer' is empty"),
    "null answer": (GOOD | {"id": "b", "answer": None}, "'answer' is null, and text is wanted"),
    "broken number": (GOOD | {"id": "b", "answer": 7.5}, "'answer' is the number 7.5, and text is wanted"),
    "several answers": (GOOD | {"id": "b", "answer": [" x"]}, "'answer' is a list, and text is wanted"),
    "two answers": (
        GOOD | {"id": "b", "completion": " x"},
        "'answer' and 'completion' could each be the answer",
    ),
    "two prompts": (
        GOOD | {"id": "b", "question": "q"},
        "'prompt' and 'question' could each be the question",
    ),
    "broken number for id": (GOOD | {"id": 3.5}, "'id' is the number 3.5, and text is wanted"),
    "named choices": (GOOD | {"id": "b", "choices": {"text": [" x"]}}, "'choices' is an object, and a list"),
    "number in choices": (
        GOOD | {"id": "b", "choices": [" x", 2]},
        r"'choices\[2\]' is the number 2, and text",
    ),
    "one choice": (GOOD | {"id": "b", "choices": [" x"]}, "'choices' has 1 of the least 2"),
    "letter beyond": (GOOD | {"id": "b", "answer": "C", "choices": [" x", " y"]}, "beyond .* A to B"),
    "place beyond": (
        GOOD | {"id": "b", "answer": 2, "choices": [" x", " y"]},
        "the answer 2 is beyond the 2 choices, whose places are 0 to 1; where yours count from 1, take 1 off",
    ),
    "no place": (GOOD | {"id": "b", "answer": "--1", "choices": [" x", " y"]}, "is not one of the choices"),
    "no number": (
        GOOD | {"id": "b", "answer": "9" * 5000, "choices": [" x", " y"]},
        "is not one of the choices",
    ),
    "place before": (GOOD | {"id": "b", "answer": -1, "choices": [" x", " y"]}, "the answer -1 is beyond"),
    "no object": ("b", "the row is text, and an object is wanted"),
    "misspelled key": (GOOD | {"id": "b", "paraphrase": []}, "Did you mean paraphrases"),
    "not a choice": (GOOD | {"id": "b", "choices": [" y", " z"]}, "is not one of the choices.*A to B"),
    "case alone tells two apart": (
        GOOD | {"id": "b", "choices": ["x", "X"]},
        "it may be 'x' or 'X', which case or white space alone tell apart",
    ),
    "a choice or a place": (
        GOOD | {"id": "b", "answer": "1", "choices": [" 1", " 2"]},
        "the answer '1' may be the choice ' 1', or point at ' 2'",
    ),
    "a choice or a letter": (
        GOOD | {"id": "b", "answer": "B", "choices": ["b", "a"]},
        "the answer 'B' may be the choice 'b', or point at 'a'",
    ),
    "choice twice": (GOOD | {"id": "b", "choices": [" x", " x"]}, "a choice is given twice"),
    "empty paraphrase": (GOOD | {"id": "b", "paraphrases": ["q", ""]}, r"'paraphrases\[2\]' is empty"),
    "duplicate id": (GOOD, "id 'a' was already used in line 1"),
    "mixed kinds": (
        GOOD | {"id": "b", "choices": [" x", " y"]},
        "it has choices, and the rows before have none",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_line_is_named_with_its_fault(case, tmp_path, tokenizer):
    broken, message = BROKEN[case]
    file = write(tmp_path / "t.jsonl", [GOOD, GOOD | {"id": "c"}, broken])
    with pytest.raises(TaskError, match=rf"t\.jsonl, line 3: .*{message}") as caught:
        load_task(file, tokenizer=tokenizer)
    if case not in ("duplicate id", "mixed kinds"):
        assert str(caught.value).endswith("; see docs/tasks.md.")
        shows_a_right_row = case in (
            "no answer", "no prompt", "two answers", "two prompts", "no object", "misspelled key"
        )  # fmt: skip
        assert bool(re.search(r" Right would be \{.*\}; see", str(caught.value))) == shows_a_right_row


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": "a", "prompt": \n', "line 1: not JSON"),
        (b"\n\n", "no examples"),
        (json.dumps(GOOD).encode() + b'\n{"id": "\xff\xfe"}\n', "line 2: not UTF-8: the byte 0xff"),
        (b'{"id": "\\ud800", "prompt": "p", "answer": " x"}', "line 1: not JSON"),
        (b'{"prompt": "p", "answer": " x", "answer": " y"}', "line 1: not JSON \\('answer' is given twice"),
        (b'{"prompt": "p", "answer": NaN}', "line 1: not JSON \\(NaN is no value"),
        (b'{"prompt": "p", "answer": ' + b"[" * 100_000, "line 1: not JSON \\(it is nested too deeply"),
        (b'{"prompt": "p", "answer": " x"} trailing', "line 1: not JSON \\(more after the end"),
        (b'{"id": "a",\n "prompt": "p"\n}\n', r"line 1: a JSON object over several lines\. .* jq -c \. "),
        (json.dumps(GOOD).encode() + b'\n{"id": "b",\n "prompt": "p"}', "line 2: a JSON object over several"),
        (json.dumps(GOOD).encode() + b"\n[1, 2]\n", "line 2: the row is a list, and an object is wanted"),
    ],
)
def test_broken_files(content, message, tmp_path, tokenizer):
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(TaskError, match=message):
        load_task(str(tmp_path / "t.jsonl"), tokenizer=tokenizer)


SHAPES = {  # how a file begins, what it is called, and what to do
    "lists.jsonl": (b"[1, 2]\n[3, 4]\n", "is JSON lists, one a line", "Give every value its name"),
    "q.parquet": (b"PAR1\x15\x00", "is a Parquet file", r"read_parquet\(FILE\)\.to_json"),
    "parquet.jsonl": (b"PAR1\x15\x00", "is a Parquet file", r"read_parquet\(FILE\)\.to_json"),
    "data.arrow": (b"ARROW1\x00\x00", "is an Arrow file", r"read_feather\(FILE\)\.to_json"),
    "q.jsonl.gz": (gzip.compress(b"{}"), "is packed by gzip", "Unpack it"),
    "packed.jsonl": (gzip.compress(b"{}"), "is packed by gzip", "Unpack it"),
    "q.bz2": (bz2.compress(b"{}"), "is packed by bzip2", "Unpack it"),
    "q.xz": (lzma.compress(b"{}"), "is packed by xz", "Unpack it"),
    "q.jsonl.zst": (b"\x28\xb5\x2f\xfd\x04", "is packed by zstd", "Unpack it"),
    "q.xlsx": (b"PK\x03\x04\x14", "is a spreadsheet", r"Save the sheet as CSV \(in Excel: Save as\)\."),
    "q.zip": (b"PK\x03\x04\x14", "is a zip archive", "Unpack it"),
    "weights.bin": (b"\x00\x01\x02", "is no text", "Name another file"),
    "folder.jsonl": (None, "is a folder", r"Name a file in it: .*folder\.jsonl/b\.csv, or"),
}


@pytest.mark.parametrize("prefix", ["", "text:", "cb:"])
@pytest.mark.parametrize("name", SHAPES)
def test_files_of_another_form_are_named_with_what_is_wanted(name, prefix, tmp_path, tokenizer):
    content, what, how = SHAPES[name]
    path = tmp_path / name
    if content is None:
        path.mkdir()
        (path / "b.csv").touch()
        (path / "a.txt").touch()
    else:
        path.write_bytes(content)
    wanted = {
        "": "A task is a file of questions with their answers, such as ",
        "text:": r"Text is a \.txt file, or rows with \"text\" ",
        "cb:": "Records are rows of a file ",
    }
    with pytest.raises(TaskError, match=rf"^{re.escape(str(path))} {what}\. .*{how}.*{wanted[prefix]}.*\.$"):
        load_task(f"{prefix}{path}", tokenizer=tokenizer)


@pytest.mark.parametrize("content", [b"[Chapter 1]\n", b"{braces}\n", b'{"a": 1}\n', b"\xef\xbb\xbf[1]\n"])
def test_plain_text_may_begin_as_anything(content, tmp_path, tokenizer):
    path = tmp_path / "t.txt"
    path.write_bytes(content * 4000)
    assert load_task(f"text:{path}", tokenizer=tokenizer, seqlen=8, allow_small=True).examples


def test_a_file_that_is_not_there_is_named_with_the_nearest_one(tmp_path, tokenizer):
    (tmp_path / "cities_ok.csv").touch()
    near = rf" Did you mean {re.escape(str(tmp_path / 'cities_ok.csv'))}, beside it\?$"
    for prefix in ("", "text:"):
        with pytest.raises(TaskError, match=rf"citis_ok\.csv: cannot be read \(.*\)\.{near}"):
            load_task(f"{prefix}{tmp_path / 'citis_ok.csv'}", tokenizer=tokenizer)
    with pytest.raises(TaskError, match=r"other\.csv: cannot be read \([^()]*\)\.$"):
        load_task(str(tmp_path / "other.csv"), tokenizer=tokenizer)


def test_missing_file_and_unknown_names(tmp_path, tokenizer):
    with pytest.raises(TaskError, match=r"no\.jsonl: cannot be read"):
        load_task(str(tmp_path / "no.jsonl"), tokenizer=tokenizer)
    with pytest.raises(UnknownName, match="Did you mean facts"):
        load_task("builtin:fact", tokenizer=tokenizer)
    with pytest.raises(UnknownName, match="unknown task 'nonesuch'"):
        load_task("nonesuch", tokenizer=tokenizer)
    for name, says in (("story.txt", "text:"), ("task.yaml", "lm_eval:")):
        (tmp_path / name).write_text("once: upon a time")
        with pytest.raises(TaskError, match=f"written {says}{re.escape(str(tmp_path / name))}"):
            load_task(str(tmp_path / name), tokenizer=tokenizer)


def test_schema_file_is_the_models():
    file = Path(shapes.__file__).with_name("task.schema.json")
    assert file.read_text(encoding="utf-8") == shapes.schema_text()


def test_byte_order_mark_blank_lines_and_crlf(tmp_path, tokenizer):
    lines = "\r\n\r\n".join(json.dumps(row) for row in rows(250))
    (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert len(load_task(str(tmp_path / "t.jsonl"), tokenizer=tokenizer).examples) == 250


# --- splits


def test_shares_disjoint_complete_and_groups_whole(tmp_path, tokenizer):
    items = [row | {"group": f"g{i // 3}"} for i, row in enumerate(rows(1500))]
    task = load_task(write(tmp_path / "t.jsonl", items), tokenizer=tokenizer)
    groups = {name: {task.examples[i].group for i in task.split(name)} for name in task.splits}
    assert {name: len(found) for name, found in groups.items()} == {"probe": 50, "select": 200, "test": 250}
    assert sum(len(indices) for indices in task.splits.values()) == 1500
    assert not groups["probe"] & groups["select"]
    assert not groups["test"] & (groups["probe"] | groups["select"])


def test_splits_forget_the_order_of_the_file(tmp_path, tokenizer):
    items = [row | {"group": f"g{i // 2}"} for i, row in enumerate(rows(700))]
    first = load_task(write(tmp_path / "t.jsonl", items), tokenizer=tokenizer)
    random.Random(1).shuffle(items)
    again = load_task(write(tmp_path / "u.jsonl", items), tokenizer=tokenizer)
    assert first.hash == again.hash
    assert first.split_hash("test") == again.split_hash("test")
    other = load_task(str(tmp_path / "t.jsonl"), tokenizer=tokenizer, split_seed=1)
    assert ids(other, "test") != ids(first, "test")


def test_test_split_is_not_the_tail_of_the_file(tmp_path, tokenizer):
    task = load_task(write(tmp_path / "t.jsonl", rows(1000)), tokenizer=tokenizer)
    late = sum(int(name[1:]) >= 300 for name in ids(task, "test"))
    assert 320 < late < 380  # expected 350 of 500, standard deviation 7


def test_too_small_is_refused_with_the_number_needed(tmp_path, tokenizer, caplog):
    file = write(tmp_path / "t.jsonl", rows(400))
    smallest = load_task(write(tmp_path / "u.jsonl", rows(125)), tokenizer=tokenizer)
    assert len(smallest.split("select")) == MIN_GROUPS
    with pytest.raises(TaskError, match="at least 125 groups"):
        load_task(write(tmp_path / "v.jsonl", rows(120)), tokenizer=tokenizer)
    with caplog.at_level(logging.WARNING, logger="secateur"):
        task = load_task(write(tmp_path / "v.jsonl", rows(120)), tokenizer=tokenizer, allow_small=True)
    assert len(task.split("select")) == 48
    assert "select 48" in caplog.text
    with pytest.raises(TaskError, match="Nothing is left for"):
        load_task(write(tmp_path / "w.jsonl", rows(2)), tokenizer=tokenizer, allow_small=True)
    with pytest.raises(TaskError, match="sum to 1"):
        load_task(file, tokenizer=tokenizer, shares=(0.5, 0.5, 0.5))


def test_two_files(tmp_path, tokenizer):
    train = write(tmp_path / "train.jsonl", rows(90))
    held = [{"id": f"v{i}", "prompt": f"other {i} is", "answer": " x"} for i in range(50)]
    task = load_task(train, test_spec=write(tmp_path / "test.jsonl", held), tokenizer=tokenizer)
    assert ids(task, "test") == {row["id"] for row in held}
    assert (len(task.split("probe")), len(task.split("select"))) == (18, 72)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "e7"}, "same id as 'e7'"),
        ({"prompt": "question 7 is"}, "same prompt as 'e7'"),
        ({"group": "e7"}, "same group as 'e7'"),
        ({"choices": [" x", " y"]}, "choice task"),
    ],
)
def test_two_files_that_share_or_differ(change, message, tmp_path, tokenizer):
    held = [{"id": f"v{i}", "prompt": f"other {i} is", "answer": " x"} for i in range(50)]
    held = [row | change for row in held] if "choices" in change else [*held[:-1], held[-1] | change]
    with pytest.raises(TaskError, match=message):
        load_task(
            write(tmp_path / "a.jsonl", rows(90)),
            test_spec=write(tmp_path / "b.jsonl", held),
            tokenizer=tokenizer,
        )


def test_limit_keeps_whole_groups_and_nests(tmp_path, tokenizer):
    items = [row | {"group": f"g{i // 4}"} for i, row in enumerate(rows(4000))]
    file = write(tmp_path / "t.jsonl", items)
    small, large = (load_task(file, tokenizer=tokenizer, limit=n) for n in (1002, 2000))
    assert len(small.examples) == 1000
    assert len(large.examples) == 2000
    assert {e.id for e in small.examples} < {e.id for e in large.examples}
    assert len({e.group for e in small.examples}) == 250
    with pytest.raises(TaskError, match="limit of 0"):
        load_task(file, tokenizer=tokenizer, limit=0)


# --- text


def test_txt_in_chunks_of_seqlen_with_bos(tmp_path, tokenizer):
    text = "".join(chr(97 + i % 26) for i in range(9 * 27500 + 1))
    (tmp_path / "t.txt").write_text(text)
    task = load_task(f"text:{tmp_path / 't.txt'}", tokenizer=tokenizer, seqlen=10)
    assert task.kind == "text"
    chunks = [e for _, e in sorted((e.id, e) for e in task.examples)]
    assert all(e.tokens[0] == tokenizer.bos_token_id and len(e.tokens) <= 10 for e in chunks)
    joined = [token for e in chunks for token in e.tokens[1:]]
    assert joined == tokenizer.encode(text, add_special_tokens=False)
    sizes = [sum(e.group == chunks[i].group for e in chunks[i : i + 10]) for i in range(0, 500, 10)]
    assert sizes == [10] * 50
    assert chunks[9].group != chunks[10].group


def test_chunks_without_bos_drop_a_rest_of_one_token():
    assert list(cut(range(7), 3, ())) == [(0, 1, 2), (3, 4, 5)]
    assert list(cut(range(7), 3, (99,))) == [(99, 0, 1), (99, 2, 3), (99, 4, 5), (99, 6)]


def test_documents_are_the_groups(tmp_path):
    items = [{"id": f"d{i}", "text": f"{i} " + "word " * (3 + i % 5), "url": "x"} for i in range(250)]
    file = write(tmp_path / "t.jsonl", items)
    task = load_task(f"text:{file}", tokenizer=byte_tokenizer(bos=False), seqlen=8)
    assert {e.group for e in task.examples} == {row["id"] for row in items}
    assert all(len(e.tokens) <= 8 for e in task.examples)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"id": "a", "txt": "x"}], "line 1: 'text' is missing"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], "line 2: id 'a' was already used in line 1"),
        ([{"text": ""}], "no text"),
    ],
)
def test_broken_text(items, message, tmp_path, tokenizer):
    with pytest.raises(TaskError, match=message):
        load_task(f"text:{write(tmp_path / 't.jsonl', items)}", tokenizer=tokenizer)


def export(seed: int, count: int) -> list[dict]:
    """As WikiText is exported: a line of an article is a row, headings recur, many rows are empty."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        rows += [{"text": ""}, {"text": " = = Reception = = \n"}, {"text": " \n"}]
        rows += [{"text": f" Article {seed} line {number} says {draw.random()} . \n"}]
    return rows


def documents_of(task) -> list[str]:
    """The text of every document, sorted."""
    groups: dict[str, list] = {}
    for example in task.examples:
        groups.setdefault(example.group, []).append(example)
    found = []
    for examples in groups.values():
        tokens = [t for e in sorted(examples, key=lambda e: e.id) for t in e.tokens[1:]]
        found.append(byte_tokenizer(bos=True).decode(tokens))
    return sorted(found)


def test_empty_rows_are_left_out_and_equal_ones_count_once(tmp_path, tokenizer, caplog):
    rows = export(0, 260)
    task = load_task(f"text:{write(tmp_path / 'wiki.jsonl', rows)}", tokenizer=tokenizer)
    assert documents_of(task) == sorted({row["text"] for row in rows if row["text"].strip()})
    assert len(caplog.messages) == 1
    assert "of 1040 documents 520 are empty and left out and 259 repeat another" in caplog.text
    random.Random(1).shuffle(rows)
    assert load_task(f"text:{write(tmp_path / 'wiki2.jsonl', rows)}", tokenizer=tokenizer).hash == task.hash


def test_equal_documents_of_different_names_count_once_whatever_their_order(tmp_path, tokenizer, caplog):
    rows = [{"id": f"d{n:03d}", "text": f"line {n // 2}" + " " * (n % 2)} for n in range(600)]
    task = load_task(f"text:{write(tmp_path / 't.jsonl', rows)}", tokenizer=tokenizer)
    assert sorted({e.group for e in task.examples}) == [f"d{n:03d}" for n in range(0, 600, 2)]
    assert "of 600 documents 300 repeat another" in caplog.text
    again = load_task(f"text:{write(tmp_path / 'u.jsonl', rows[::-1])}", tokenizer=tokenizer)
    assert again.hash == task.hash


def test_text_that_is_also_in_the_test_file_is_not_chosen_by(tmp_path, tokenizer, caplog):
    first, second = (
        write(tmp_path / "train.jsonl", export(0, 80)),
        write(tmp_path / "test.jsonl", export(1, 60)),
    )
    task = load_task(f"text:{first}", test_spec=f"text:{second}", tokenizer=tokenizer)
    assert "1 training examples repeat a chunk of the test text" in caplog.text
    assert len(task.split("test")) == 61
    assert len(task.split("probe")) + len(task.split("select")) == 80
    with pytest.raises(TaskError, match="Test data must not be seen before"):
        load_task(f"text:{first}", test_spec=f"text:{first}", tokenizer=tokenizer)
    named = [
        row | {"id": str(n)} for n, row in enumerate(export(2, 80)) if row["text"].startswith(" Article")
    ]
    other = [
        row | {"id": str(n)} for n, row in enumerate(export(3, 80)) if row["text"].startswith(" Article")
    ]
    with pytest.raises(TaskError, match="the same id"):
        load_task(
            f"text:{write(tmp_path / 'named.jsonl', named)}",
            test_spec=f"text:{write(tmp_path / 'other.jsonl', other)}",
            tokenizer=tokenizer,
        )


def test_seqlen_of_one_is_refused(tmp_path, tokenizer):
    (tmp_path / "t.txt").write_text("abc")
    with pytest.raises(TaskError, match="at least 2"):
        load_task(f"text:{tmp_path / 't.txt'}", tokenizer=tokenizer, seqlen=1)


# --- generators


@pytest.mark.parametrize(("name", "below", "sign"), [("int-sum", 100, "+"), ("int-mult", 20, "x")])
def test_arithmetic_is_right_and_pairs_stay_together(name, below, sign, tokenizer):
    task = load_task(f"builtin:{name}", tokenizer=tokenizer)
    asked = set()
    for example in task.examples:
        left, right = (int(word) for word in example.prompt.removesuffix(" =").split(f" {sign} "))
        assert int(example.answer) == (left + right if sign == "+" else left * right)
        assert example.answer[0] == " "
        asked.add((left, right))
    assert asked == {(i, j) for i in range(below) for j in range(below)}
    where = {example.id: split for split in task.splits for example in task.of(task.split(split))}
    assert all(where[f"{name}-{i}-{j}"] == where[f"{name}-{j}-{i}"] for i, j in asked)


def test_other_texts_of_arithmetic_leave_pairs_out_and_hear_the_answer_before():
    def told(rng, problem, before):
        return "none" if before is None else f"after {before}"

    unseen = frozenset((i, j) for i in range(20) for j in range(20) if (i * j) % 3)
    texts = list(islice(arithmetic.texts(0, slip=told, noise=1.0, sums=0.0, unseen=unseen), 200))
    for text in texts:
        problems = re.findall(r"(\d+) x (\d+) = (none|(?:after )+none)", text)
        assert [len(said.split()) for *_, said in problems] == list(range(1, arithmetic.PROBLEMS + 1))
        assert not unseen & {(int(i), int(j)) for i, j, _ in problems}
    clean = " ".join(islice(arithmetic.texts(0, noise=0.0, sums=0.0), 200))
    assert all(int(i) * int(j) == int(said) for i, j, said in re.findall(r"(\d+) x (\d+) = (\d+)", clean))


@pytest.mark.parametrize("name", BUILTINS)
def test_every_generator_loads_with_the_default_splits(name, tokenizer):
    tokenizer = None if name == "gridworld" else tokenizer  # whose models have none
    task = load_task(f"builtin:{name}", tokenizer=tokenizer)
    assert task.hash == load_task(f"builtin:{name}", tokenizer=tokenizer).hash
    assert all(e.prompt == e.prompt.rstrip() for e in task.examples)
    assert all(e.answer.startswith(" ") == task.answers for e in task.examples)
    assert any(info.name == f"builtin:{name}" and info.kind == task.kind for info in list_tasks())


# --- real files


@pytest.mark.parametrize("name", ["counterfact", "hotpotqa_dev", "truthfulqa_pairs", "winogrande_validation"])
def test_shared_files(name, tokenizer):
    file = SHARED / f"{name}.jsonl"
    if not file.exists():
        pytest.skip("shared data not here")
    task = load_task(str(file), tokenizer=tokenizer)
    count = len(file.read_text(encoding="utf-8").strip().split("\n"))
    assert len(task.examples) == count == sum(len(indices) for indices in task.splits.values())


def test_shared_train_and_validation(tokenizer):
    if not (SHARED / "rte_train.jsonl").exists():
        pytest.skip("shared data not here")
    for name, tested in (("cb", 56), ("copa", 100), ("rte", 277)):
        files = [str(SHARED / f"{name}_{part}.jsonl") for part in ("train", "validation")]
        task = load_task(files[0], test_spec=files[1], tokenizer=tokenizer)
        assert len(task.split("test")) == tested


def test_the_same_prompt_is_never_in_two_splits():
    rows = [Example(f"e{n}", f"prompt {n // 3}", " a") for n in range(900)]
    task = make_task(
        ExampleSource("t", "generation", tuple(rows)),
        None,
        split_seed=0,
        limit=None,
        allow_small=False,
        shares=None,
    )
    where: dict[str, set[str]] = {}
    for name, split in task.splits.items():
        for example in task.of(split):
            where.setdefault(example.prompt, set()).add(name)
    assert len(where) == 300
    assert all(len(splits) == 1 for splits in where.values())
    assert len({example.group for example in task.examples}) == 300
