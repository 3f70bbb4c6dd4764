"""The first screen of a page in words, and runs side by side."""

from __future__ import annotations

import json

import pytest
from fixtures import data_components, data_directions, data_report
from report.test_report import Page

from secateur import compare_runs
from secateur.core.records.analysis import ChangedExample
from secateur.core.records.verdict import VerdictRecord
from secateur.core.site import Site, in_words
from secateur.errors import SecateurError
from secateur.report.overview import costs, cut_words, hero, short_name, shortened, telling
from secateur.reporting import render


def example(kind: str, prompt: str = "q", **more: str) -> ChangedExample:
    fields = {"id": "1", "answer": "right", "before": "old", "after": "new"}
    return ChangedExample(kind=kind, prompt=prompt, **(fields | more))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("b14.gate", "layer 14, MLP gate projection"),
        ("b0.o", "layer 0, attention output projection"),
        ("b3", "layer 3"),
        ("b3.attn", "layer 3, attention"),
        ("b3.attn.h7", "layer 3, attention head 7"),
        ("b3.attn.g1", "layer 3, attention KV group 1"),
        ("b3.mlp.n871", "layer 3, MLP neuron 871"),
    ],
)
def test_addresses_in_words(address, words):
    assert Site.parse(address).words == words
    assert in_words(f"{address} gone; {address} → rank 1") == f"{words} gone; {words} → rank 1"


def test_only_addresses_turn_into_words():
    for text in ("ab3.gate", "b3.gated", "http://x/b3.gate.h", "club b", "b", "0b12"):
        assert in_words(text) == text


def test_three_answers_show_both_directions_and_short_prompts_first():
    many = [example("recovered", "q" * n) for n in (9, 3, 5, 4)]
    found = telling([*many, example("lost", "lost one"), example("changed", "q")])
    assert [(one.kind, len(one.prompt)) for one in found] == [("recovered", 3), ("recovered", 4), ("lost", 8)]
    assert [one.kind for one in telling([example("changed")])] == ["changed"]
    assert telling([]) == []


def test_a_long_prompt_keeps_its_end_where_the_question_stands():
    cut = shortened(example("lost", "x" * 500 + " question?", before="y" * 500))
    assert cut.prompt.startswith("…")
    assert cut.prompt.endswith(" question?")
    assert len(cut.prompt) < 200
    assert cut.before.endswith("…")


def test_answers_on_the_first_screen_are_inert_and_say_which_way_they_went():
    verdict = VerdictRecord.model_validate(data_report.facts()[0])
    attack = example("lost", "<script>x</script>", before="<b>", after="&amp;")
    head = hero(verdict, [attack, example("recovered")])
    assert "<script" not in head
    assert "&lt;script&gt;" in head
    text = Page(head).text
    assert "wrong → rightqold → new" in text
    assert "right → wrong<script>x</script><b> → &amp; right: right" in text
    assert "all 2" in text


def test_the_first_screen_says_what_was_cut_and_what_it_cost():
    verdict = VerdictRecord.model_validate(data_report.facts()[0])
    assert cut_words(verdict) == [
        (f"{in_words(item.site)}: {item.rank} of {item.full_rank} components kept", item.site)
        for item in verdict.cut
    ]
    names = [cost.name for cost in costs(verdict)]
    assert names[0] == "Parameters"
    assert {side.name for side in verdict.side_effects} <= set(names)
    small = VerdictRecord.model_validate(data_components.heads()[0])
    lines = {cost.name: cost for cost in costs(small)}
    assert small.gains is not None
    assert lines["Decoding"].change == f"{small.gains.decode.speedup:.2f}\u00a0×"
    assert lines["Parameters"].change.startswith("−")
    counted, first, *_ = cut_words(small)
    assert counted == (small.cut_summary, "")
    assert (first[0].startswith("layer 0: head"), first[1]) == (True, "b0")


def test_the_side_task_that_lost_most_comes_first():
    record = data_report.facts()[0]
    side = record["side_effects"][0]
    lost = side | {
        "name": "lost",
        "unit": "share",
        "higher_is_better": True,
        "before": {"value": 0.9, "ci": None},
        "after": {"value": 0.1, "ci": None},
        "difference": {"value": -0.8, "ci": [-0.9, -0.7]},
        "gained": False,
    }
    record["side_effects"] = [*record["side_effects"], lost]
    first = next(
        cost for cost in costs(VerdictRecord.model_validate(record)) if cost.name in ("lost", side["name"])
    )
    assert (first.name, first.worse, first.change) == ("lost", True, "−80.0\u00a0points")


@pytest.mark.parametrize(("ends", "worse"), [([2.5, 3.9], True), ([0.9, 3.9], False), ([0.2, 0.4], False)])
def test_text_that_got_worse_is_marked(ends, worse):
    record = data_report.facts()[0]
    (text,) = [side for side in record["side_effects"] if side["unit"] == "perplexity"][:1]
    text |= {"ratio": {"value": sum(ends) / 2, "ci": ends}, "difference": None}
    shown = {cost.name: cost.worse for cost in costs(VerdictRecord.model_validate(record))}
    assert shown[text["name"]] == worse


def test_contents_list_every_section():
    page = Page(render(*data_components.heads()))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    sections = [f"#{attributes['id']}" for tag, attributes in page.tags if tag == "section"]
    assert len(sections) > 5
    assert links[: len(sections)] == sections


def test_names_of_models():
    assert short_name("/data/models/smollm2") == "smollm2"
    assert short_name("./smollm2/") == "smollm2"
    assert short_name("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"


# Runs side by side


@pytest.fixture
def folders(tmp_path):
    made = []
    for name, build in (
        ("a", data_report.facts),
        ("b", data_components.heads),
        ("c", data_directions.nothing),
    ):
        verdict, plan, _ = build()
        (tmp_path / name).mkdir()
        (tmp_path / name / "verdict.json").write_text(json.dumps(verdict), encoding="utf-8")
        (tmp_path / name / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        made.append(tmp_path / name)
    return made


def test_runs_are_compared_by_the_numbers_of_their_verdicts(folders, tmp_path):
    found = compare_runs(folders, tmp_path / "page.html")
    assert [run["run"] for run in found["runs"]] == ["a", "b", "c"]
    for run, folder in zip(found["runs"], folders, strict=True):
        verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
        assert run["verdict"] == verdict["verdict"]
        assert run["after"]["value"] == verdict["after"]["value"]
        assert run["parameters"]["after"] == verdict["parameters"]["after"]
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "3 runs compared" in page.text
    assert sum(tag == "tr" for tag, _ in page.tags) == 1 + 3
    assert found["report"] == str(tmp_path / "page.html")


def test_folders_of_one_name_are_told_apart(folders, tmp_path):
    (tmp_path / "y").mkdir()
    moved = folders[2].rename(tmp_path / "y" / "a")
    assert [run["run"] for run in compare_runs([folders[0], moved], tmp_path / "p.html")["runs"]] == [
        f"{tmp_path.name}/a",
        "y/a",
    ]


def test_what_cannot_be_compared_is_said(folders, tmp_path):
    with pytest.raises(SecateurError, match="given twice"):
        compare_runs([folders[0], folders[0]], tmp_path / "p.html")
    with pytest.raises(SecateurError, match="two folders or more"):
        compare_runs(folders[:1], tmp_path / "p.html")
    (folders[1] / "verdict.json").unlink()
    with pytest.raises(SecateurError, match=r"verdict\.json is missing"):
        compare_runs(folders, tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()
