"""`secateur chat`: both answers side by side, once or in a loop, greedy as the evaluation generates."""

from __future__ import annotations

import json

import pytest
from fixtures.folders import secateur
from transformers import AutoTokenizer
from typer.testing import CliRunner

from secateur import load
from secateur.cli.app import app
from secateur.cli.terminal import Terminal
from secateur.errors import TaskError
from secateur.evaluation.generate import greedy, reply
from secateur.hf.chat import conversation_ids
from secateur.hf.source import local_source

FACTS = "builtin:facts"
MESSAGES = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
TEMPLATE = MESSAGES + "{% if add_generation_prompt %}says{% endif %}"


@pytest.fixture(scope="module")
def model():
    return load(FACTS)


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(local_source(FACTS).folder)


def test_one_prompt_is_answered_by_both_models_as_the_evaluation_generates(model):
    done = secateur(
        "chat",
        FACTS,
        "--against",
        "builtin:recall",
        "--prompt",
        "Nils eats",
        "--max-new-tokens",
        "6",
        "--json",
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["prompt"] == "Nils eats"
    assert [answer["model"] for answer in found["answers"]] == [FACTS, "builtin:recall"]
    prompt = model.tokenizer("Nils eats")["input_ids"]
    (expected,) = greedy(model, [prompt], 6, 1000)
    assert found["answers"][0]["tokens"] == len(expected)
    assert found["answers"][0]["answer"].strip() == model.tokenizer.decode(expected).strip()
    assert found["answers"][0]["chat_template"] is False


def test_a_conversation_ends_with_the_input(model):
    said = "Nils eats\n/new\n\nUma keeps\n"
    done = CliRunner().invoke(app, ["chat", FACTS, "--max-new-tokens", "3", "-q"], input=said)
    assert done.exit_code == 0, done.output
    assert "no chat template, so what you write is continued" in done.stdout
    assert done.stdout.count(f"{FACTS}  (3 tokens") == 2


def test_interrupting_leaves_cleanly(monkeypatch):
    def interrupted(prompt: str = "") -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    done = CliRunner().invoke(app, ["chat", FACTS, "-q"])
    assert done.exit_code == 0, done.output


def test_json_needs_a_prompt():
    done = secateur("chat", FACTS, "--json")
    assert (done.exit_code, "--json answers one --prompt TEXT" in done.stderr) == (2, True)


def test_a_template_sees_the_whole_conversation_and_a_model_without_one_the_last_message(tokenizer):
    messages = [
        {"role": "user", "content": "Nils eats"},
        {"role": "assistant", "content": "beans"},
        {"role": "user", "content": "Uma keeps"},
    ]
    assert conversation_ids(tokenizer, messages) == tokenizer("Uma keeps")["input_ids"]
    tokenizer.chat_template = TEMPLATE
    told = tokenizer("user Nils eats assistant beans user Uma keeps says", add_special_tokens=False)[
        "input_ids"
    ]
    assert conversation_ids(tokenizer, messages) == told


def test_the_answer_comes_in_pieces_and_is_the_whole(model):
    pieces: list[str] = []
    tokens = reply(model, [{"role": "user", "content": "Nils eats"}], 8, pieces.append)
    assert len(pieces) > 2
    assert "".join(pieces).split() == model.tokenizer.decode(tokens).split()


def test_an_answer_is_as_long_as_the_context_has_room_and_a_full_context_is_said(model):
    context = model.anatomy.context
    word = "Nils "
    long = [{"role": "user", "content": word * (context - 2)}]
    assert 0 < len(reply(model, long, 50, lambda text: None)) <= 3
    with pytest.raises(TaskError, match="Ask something shorter"):
        reply(model, [{"role": "user", "content": word * (context + 1)}], 5, lambda text: None)


def test_what_a_model_says_cannot_move_the_cursor(capsys):
    from secateur.cli.chat import Reply, _side_by_side

    Terminal().print(_side_by_side([Reply("m", "a\x1b[2Jb")]))
    assert "\x1b[2J" not in capsys.readouterr().out
