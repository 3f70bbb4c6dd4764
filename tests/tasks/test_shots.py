"""Few-shot prompts: from the probe split only, never from an example's own group, the same in whatever order."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from fixtures.folders import questions, save_model, secateur, write_rows
from fixtures.zoo import tiny

from secateur.errors import TaskError
from secateur.options import Options
from secateur.session import open_session
from secateur.tasks.encode import encode
from secateur.tasks.example import Example, Task
from secateur.tasks.load import load_task
from secateur.tasks.shots import demonstrations, with_shots

SHOTS = (1, 2, 5)


def made(kind: str = "choice", count: int = 90, per_group: int = 2) -> Task:
    """Questions whose number can be read off their prompt, `per_group` of them in each group; a third a split."""
    choices = {"choice": (" no", " yes"), "generation": None}[kind]
    examples = tuple(
        Example(
            id=f"e{n}",
            prompt=f"Q{n}:",
            answer=(" no", " yes")[n % 2],
            choices=choices,
            paraphrases=(f"P{n}?",),
            group=f"g{n // per_group}",
        )
        for n in range(count)
    )
    third = count // 3
    splits = {
        name: tuple(range(third * i, third * (i + 1))) for i, name in enumerate(("probe", "select", "test"))
    }
    return Task("made", kind, examples, splits, 0)


def shown_numbers(example: Example) -> list[int]:
    """The questions that a prompt shows before its own, read from the text alone."""
    *shown, _ = example.prompt.split("\n\n")
    return [int(block.split(":")[0].removeprefix("Q")) for block in shown]


@pytest.mark.parametrize("kind", ["choice", "generation"])
@pytest.mark.parametrize("shots", SHOTS)
def test_demonstrations_are_solved_questions_of_the_probe_split_and_of_other_groups(kind, shots):
    plain = made(kind)
    probe = set(plain.split("probe"))
    for before, after in zip(plain.examples, with_shots(plain, shots, 0).examples, strict=True):
        numbers = shown_numbers(after)
        assert len(numbers) == shots
        assert set(numbers) <= probe
        groups = [plain.examples[n].group for n in numbers]
        assert len({*groups, before.group}) == shots + 1
        texts = [f"Q{n}:{(' no', ' yes')[n % 2]}\n\n" for n in numbers]
        assert after.prompt == "".join(texts) + before.prompt


def test_nothing_but_the_prompts_changes():
    plain = made()
    shot = with_shots(plain, 2, 0)
    assert (shot.name, shot.kind, shot.splits) == ("made (2-shot)", plain.kind, plain.splits)
    same = [replace(e, prompt="", paraphrases=()) for e in plain.examples]
    assert [replace(e, prompt="", paraphrases=(), shown=0) for e in shot.examples] == same
    for before, after in zip(plain.examples, shot.examples, strict=True):
        assert after.prompt[after.shown :] == before.prompt
    assert shot.hash != plain.hash
    assert with_shots(plain, 0, 0) is plain


def test_other_phrasings_are_asked_after_the_same_demonstrations_and_shown_in_none():
    for example in with_shots(made(), 3, 0).examples:
        prefix = example.prompt[: example.prompt.rindex("Q")]
        assert example.paraphrases == (f"{prefix}P{example.id[1:]}?",)
        assert "P" not in prefix


def test_a_draw_hangs_on_seed_example_shots_and_the_probe_split_alone():
    """Not on the order of examples, nor on what else there is to ask."""
    plain = made()
    expected = {e.id: e.prompt for e in with_shots(plain, 5, 7).examples}
    assert expected == {e.id: e.prompt for e in with_shots(plain, 5, 7).examples}
    last = len(plain.examples) - 1
    turned = replace(
        plain,
        examples=plain.examples[::-1],
        splits={name: tuple(last - i for i in split) for name, split in reversed(plain.splits.items())},
    )
    assert {e.id: e.prompt for e in with_shots(turned, 5, 7).examples} == expected
    fewer = plain.without({i for name in ("select", "test") for i in plain.split(name)[::2]})
    assert all(expected[e.id] == e.prompt for e in with_shots(fewer, 5, 7).examples)


def test_seeds_and_examples_draw_differently_and_evenly():
    plain = made(count=300, per_group=1)
    zero, one = (with_shots(plain, 5, seed) for seed in (0, 1))
    assert sum(a.prompt == b.prompt for a, b in zip(zero.examples, one.examples, strict=True)) == 0
    draws = [tuple(shown_numbers(e)) for e in zero.examples]
    assert all(a != b for a, b in pairwise(draws))
    counts = [sum(n in draw for draw in draws) for n in plain.split("probe")]
    assert min(counts) >= 3  # 300 draws of 5 from 100: 15 each, with a deviation of 3.8
    assert max(counts) <= 30


def test_a_choice_in_the_question_is_shown_with_the_right_one_in_it():
    """WinoGrande's form: contexts, and one continuation after each."""
    rows = [
        replace(
            e,
            prompt=f"Q{n}:",
            contexts=(f"Q{n}: A", f"Q{n}: B"),
            answer=" ran.",
            choices=("A", "B"),
            label=n % 2,
        )
        for n, e in enumerate(made().examples)
    ]
    plain = replace(made(), examples=tuple(rows))
    for before, after in zip(plain.examples, with_shots(plain, 2, 0).examples, strict=True):
        texts = [f"Q{n}: {'AB'[n % 2]} ran.\n\n" for n in shown_numbers(after)]
        assert after.contexts == tuple("".join(texts) + context for context in before.contexts)


@pytest.mark.parametrize("chat", [False, True])
def test_the_encoding_is_that_of_a_prompt_written_by_hand(chat, words):
    """Choices and gold answer are those of the bare example; the context is what one types."""
    rows = questions(60)
    examples = tuple(Example(r["id"], r["prompt"], r["answer"], tuple(r["choices"])) for r in rows)
    splits = {"probe": tuple(range(20)), "select": tuple(range(20, 40)), "test": tuple(range(40, 60))}
    plain = Task("words", "choice", examples, splits, 0)
    tokenizer = words if not chat else _with_template(words)
    for before, after in zip(examples, with_shots(plain, 2, 0).examples, strict=True):
        first, second = demonstrations(plain, before, 2, 0)
        typed = f"{first.prompt}{first.answer}\n\n{second.prompt}{second.answer}\n\n{before.prompt}"
        by_hand = encode(replace(before, prompt=typed), tokenizer, context=None, chat=chat)
        found = encode(after, tokenizer, context=None, chat=chat)
        assert found == by_hand
        bare = encode(before, tokenizer, context=None, chat=chat)
        assert [tail for _, tail in found.pairs] == [tail for _, tail in bare.pairs]
        assert len(found.pairs[0][0]) > len(bare.pairs[0][0])


def _with_template(words):
    from copy import deepcopy

    own = deepcopy(words)
    own.chat_template = "{% for m in messages %}w3 {{ m['content'] }} w4 {% endfor %}"
    return own


def test_too_few_groups_are_refused_with_what_to_do():
    small = made(count=30, per_group=2)  # 5 groups in probe
    with pytest.raises(
        TaskError, match=r"5 shots for example 'e0' need 5 other groups .* has 4\. Give fewer"
    ):
        with_shots(small, 5, 0)
    assert len(with_shots(small, 4, 0).examples) == 30
    with pytest.raises(TaskError, match="give 0 or more"):
        with_shots(small, -1, 0)


def test_text_has_no_demonstrations():
    text = Task("book", "text", (Example("c", "", "", tokens=(1, 2, 3)),), {"probe": (0,)}, 0)
    with pytest.raises(TaskError, match="Leave out --shots"):
        with_shots(text, 1, 0)


# ------------------------------------------------------------------------------------------------------ in a session


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("shots")
    save_model(place / "m", tiny("llama"), words)
    write_rows(place / "q.jsonl", questions())
    tested = [row | {"id": f"t{row['id']}", "prompt": f"w90 {row['prompt']}"} for row in questions(60)]
    write_rows(place / "t.jsonl", tested)
    return place


def options(place, **more):
    return Options(model=str(place / "m"), task=str(place / "q.jsonl"), **more)


def test_a_session_asks_with_shots_and_a_test_file_never_demonstrates(place):
    """With a test file of its own too, what is shown comes from the probe split of the other."""
    session = open_session(options(place, shots=2, test_task=str(place / "t.jsonl")), None)
    assert session.task.name == "q (2-shot)"
    plain = load_task(
        str(place / "q.jsonl"), tokenizer=session.loaded.tokenizer, test_spec=str(place / "t.jsonl")
    )
    probe = {e.prompt + e.answer for e in plain.of(plain.split("probe"))}
    for example in session.task.examples:
        *shown, _ = example.prompt.split("\n\n")
        assert len(shown) == 2
        assert set(shown) <= probe
    bare = open_session(options(place, test_task=str(place / "t.jsonl")), None)
    assert bare.scope != session.scope


def test_the_seed_of_the_search_draws_no_other_demonstrations_and_that_of_the_splits_does(place):
    hashes = [open_session(options(place, shots=1, **more), None).task.hash for more in ({}, {"seed": 5})]
    assert hashes[0] == hashes[1]
    assert open_session(options(place, shots=1, split_seed=1), None).task.hash != hashes[0]


def test_shots_belong_to_the_command(place):
    asked = options(place, shots=5)
    assert asked.command()["shots"] == 5
    assert "--shots 5" in asked.command_line()
    assert "--shots" not in options(place).command_line()


def test_eval_takes_shots(place):
    words = ["eval", place / "m", "--task", place / "q.jsonl", "--json"]
    with_some, without = (secateur(*words, *more) for more in (["--shots", "2"], []))
    assert with_some.exit_code == 0, with_some.stderr
    found = json.loads(with_some.stdout)
    assert found["task"] == "q (2-shot)"
    assert found["scores"] != json.loads(without.stdout)["scores"]


def test_prune_searches_and_proves_with_shots(place):
    """The verdict is about the prompts that eval asks at the same number of shots, side effects are without any."""
    small = ["--matrices", "down", "--layers", "1", "--side", place / "t.jsonl", "--shots", "2"]
    done = secateur("prune", place / "m", "--task", place / "q.jsonl", "-o", place / "out", *small, "--json")
    assert done.exit_code == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["task"]["name"] == "q (2-shot)"
    assert not any("shot" in effect["name"] for effect in verdict["side_effects"])
    eval_words = [
        "eval",
        place / "m",
        "--task",
        place / "q.jsonl",
        "--split",
        "test",
        "--ledger",
        place / "l.sqlite",
    ]
    scores = json.loads(secateur(*eval_words, "--shots", "2", "--json").stdout)["scores"]
    assert next(s["value"] for s in scores if s["metric"] == "accuracy") == verdict["before"]["value"]
    command = json.loads((place / "out/plan.json").read_text())["provenance"]["command"]
    assert command["shots"] == 2
