"""What OUT holds: the cut where it was shown to do what was asked for, else the unchanged model, and that is said."""

from __future__ import annotations

import json
import random

import pytest
from fixtures.folders import secateur, write_rows
from safetensors.torch import load_file

from secateur.checkpoint.plans import read_plan
from secateur.hf.source import local_source
from secateur.tasks import facts

FACTS = "builtin:facts"
UNSHOWN = ("--method", "directions", "--protocol", "paper", "--matrices", "attn", "--layers", "0:2")


def weights(folder) -> dict:
    return load_file(folder / "model.safetensors")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


ORIGINAL = weights(local_source(FACTS).folder)


@pytest.fixture(scope="module")
def unproven(tmp_path_factory):
    """A tenth of a matrix's directions, by prediction alone, which gains nothing."""
    out = tmp_path_factory.mktemp("unproven") / "out"
    return out, secateur("prune", FACTS, "--task", FACTS, *UNSHOWN, "-o", out)


def test_a_gain_that_test_does_not_show_is_not_handed_over(unproven):
    out, done = unproven
    assert done.exit_code == 0, done.output
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["verdict"] != "improves"
    assert verdict["cut"], "the verdict is about the cut"
    assert verdict["handed_over"]["holds"] == "original"
    assert same(weights(out), ORIGINAL)
    assert not read_plan(out).edits
    assert verdict["written"]["fingerprint"] == verdict["model"]["fingerprint"]


def test_it_is_said_everywhere_with_where_the_plan_lies(unproven):
    out, done = unproven
    card, page = ((out / name).read_text() for name in ("README.md", "report.html"))
    for said in (done.output, card, page):
        assert "The checkpoint holds the unchanged model" in " ".join(said.split())
        assert "unproven/plan.json" in said
    assert "Nothing in this checkpoint. Tried and set aside" in card
    assert f"checkpoint  {out}  (the unchanged model)" in done.output


def test_the_plan_that_was_set_aside_can_be_carried_out(unproven, tmp_path):
    out, _ = unproven
    aside = read_plan(out / "unproven")
    assert aside.removed
    done = secateur("apply", FACTS, "--plan", out / "unproven", "-o", tmp_path / "cut", "-q")
    assert done.exit_code == 0, done.output
    kept = secateur("prune", FACTS, "--task", FACTS, *UNSHOWN, "--keep-unproven", "-o", tmp_path / "kept")
    assert kept.exit_code == 0, kept.output
    assert read_plan(tmp_path / "kept") == aside
    assert same(weights(tmp_path / "kept"), weights(tmp_path / "cut"))
    assert "The checkpoint holds the cut model all the same" in " ".join(kept.output.split())


def test_the_plan_of_the_unchanged_model_says_where_the_other_lies(unproven, caplog, tmp_path):
    out, _ = unproven
    done = secateur("apply", FACTS, "--plan", out, "-o", tmp_path / "same", "-q")
    assert done.exit_code == 0, done.output
    assert f"the plan that was set aside there is {out / 'unproven'}" in caplog.text


def test_what_was_set_aside_is_no_run(unproven):
    out, _ = unproven
    shown = secateur("show", out / "unproven")
    assert shown.exit_code == 2
    assert f"set aside: secateur show {out}," in shown.stderr


@pytest.mark.slow
def test_with_a_ledger_elsewhere_show_says_so(tmp_path):
    words = (FACTS, "--task", FACTS, "--matrices", "gate", "--layers", "2", "--ledger", tmp_path / "l.sqlite")
    assert secateur("prune", *words, "-o", tmp_path / "out").exit_code == 0
    shown = secateur("show", tmp_path / "out")
    assert shown.exit_code == 2
    assert "was made with --ledger elsewhere" in shown.stderr
    assert secateur("show", tmp_path / "l.sqlite").exit_code == 0


@pytest.mark.slow
def test_a_cut_that_select_does_not_show_is_not_tested(tmp_path):
    """Answers that follow no rule: nothing can help, and the best of those tried is set aside."""
    task = write_rows(tmp_path / "q.jsonl", chance())
    words = ("prune", FACTS, "--task", task, "--matrices", "gate,o", "--layers", "1:3")
    done = secateur(*words, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    choice = verdict["search"]["choice"]
    assert (verdict["cut"], verdict["verdict"]) == ([], "no difference shown")
    assert not choice["shown"]
    assert choice["p_value"] >= 0.05
    assert same(weights(tmp_path / "out"), ORIGINAL)
    assert verdict["guards"] == [], "a model beside itself has none"
    assert choice["better"], "with another seed of the questions the best of those tried may be no better"
    assert f"the best of {choice['tried']}: p = " in " ".join(done.output.split())
    kept = secateur(*words, "--keep-unproven", "-o", tmp_path / "kept")
    assert kept.exit_code == 0, kept.output
    assert f"did not show a gain either (p = {choice['p_value']:.2g})" in " ".join(kept.output.split())
    assert str(read_plan(tmp_path / "kept")) == choice["best"] == str(read_plan(tmp_path / "out/unproven"))


def chance() -> list[dict]:
    """The embedded model's questions, with two answers of the world by lot."""
    draw, asked = random.Random(0), list(facts.examples())
    answers = sorted({example.answer for example in asked})
    pairs = [draw.sample(answers, 2) for _ in asked]
    return [
        {"id": example.id, "prompt": example.prompt, "answer": draw.choice(pair), "choices": pair}
        for example, pair in zip(asked, pairs, strict=True)
    ]


@pytest.mark.slow
def test_a_smaller_model_that_is_worse_is_handed_over_loudly(tmp_path):
    how = ("--method", "heads", "--target", "100%")
    done = secateur("prune", FACTS, "--task", FACTS, *how, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert verdict["verdict"] == "worse"
    assert verdict["handed_over"] == {"holds": "cut", "unproven": None, "edits": None}
    assert "THE CHECKPOINT HOLDS THE CUT MODEL" in " ".join(done.output.split())
    assert f"checkpoint  {tmp_path / 'out'}  (the cut model, WORSE than the original)" in done.output
    assert "> **WORSE THAN THE ORIGINAL.**" in (tmp_path / "out" / "README.md").read_text()
    assert '<header class="worse">' in (tmp_path / "out" / "report.html").read_text()
