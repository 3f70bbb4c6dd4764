"""What healing tells: sides, texts, test where a ledger notes it, and a page with other healed cuts on its curves."""

from __future__ import annotations

import json
import math

import plotly.graph_objects as go
import pytest
import torch
from fixtures.folders import questions, save_model, secateur, write_rows
from fixtures.planted import spoken
from fixtures.zoo import variant
from transformers import AutoModelForCausalLM

import secateur as package
from secateur.core.ledger import Ledger
from secateur.core.plan import Drop, Plan
from secateur.core.site import Site
from secateur.errors import SecateurError
from secateur.methods.depth.records import DepthRecord
from secateur.methods.depth.report import order_section, replacing
from secateur.options import Options
from secateur.report.frame import PageSection
from secateur.training.cards import healing_sentence
from secateur.training.commands import command_line, heal_command
from secateur.training.heal import form_of
from secateur.training.options import Healing, Tuning
from secateur.training.records.heal import HealRecord
from secateur.training.report.heal_figures import depth_section, epochs_section
from secateur.training.report.heal_page import heal_sections, hero, render_heal

HOW = {"allow_small": True, "device": "cpu", "seqlen": 24, "limit": 600}
FAST = {"epochs": 2, "lr": 3e-3, "stage": "end"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """A Llama of four blocks; two linear cuts of it by `prune`, healed; the second opened test."""
    place = tmp_path_factory.mktemp("healed")
    model = variant("llama", num_hidden_layers=4)
    save_model(place / "model", model, words)
    write_rows(place / "q.jsonl", questions(60))
    lines = [row["text"] for row in spoken(model, 400, 40)]
    (place / "words.txt").write_text("\n\n".join(lines), encoding="utf-8")
    how = {"method": "depth", "form": "linear", "by": "cosine", "report": "full", **HOW}
    for blocks in (1, 2):
        package.prune(str(place / "model"), task(place), place / f"cut{blocks}", blocks=blocks, **how)
    heal(place, 1, "one", side=[str(place / "q.jsonl")])
    heal(place, 2, "two", ledger=place / "cut2.run/ledger.sqlite")
    return place


@pytest.mark.slow
def test_show_tells_what_healing_gained(place):
    assert json.loads(secateur("show", place / "two", "--json").stdout) == json.loads(
        (place / "two/heal.json").read_text(encoding="utf-8")
    )
    said = " ".join(secateur("show", place / "one").stdout.split())
    assert json.loads((place / "one/heal.json").read_text(encoding="utf-8"))["sentence"] in said
    for name, said in (("heal.json", "{"), ("train.json", '[{"q": 1}]'), ("finetune.json", '{"format": 99}')):
        (place / f"other-{name}").mkdir()
        (place / f"other-{name}" / name).write_text(said, encoding="utf-8")
        told = secateur("show", place / f"other-{name}")
        assert told.exit_code == 2
        assert "is no run" in told.output


def test_what_healing_did_to_others_is_said_where_it_is_worse(place):
    record = json.loads((place / "one/heal.json").read_text(encoding="utf-8"))
    [side] = record["sides"]
    assert side["higher_is_better"]
    for ends, said in (([-0.3, -0.1], True), ([-0.3, 0.1], False), ([0.1, 0.3], False)):
        changed = record | {"sides": [side | {"gain": {"value": sum(ends) / 2, "ci": ends}}]}
        assert ("Worse for it: q, accuracy -20.0 points [-30.0, -10.0]." in sentence_of(changed)) == said
        lower = changed | {"sides": [changed["sides"][0] | {"higher_is_better": False}]}
        assert ("Worse for it" in sentence_of(lower)) == (ends[0] > 0)


def sentence_of(record):
    read = HealRecord.model_validate(record)
    return healing_sentence(read.scores, read.sides, read.tokens, read.seconds)


def task(place):
    return f"text:{place / 'words.txt'}"


def heal(place, blocks, out, **more):
    return package.heal(place / f"cut{blocks}", task(place), place / out, **(HOW | FAST | more))


def told(place, name, file="heal.json"):
    return json.loads((place / name / file).read_text(encoding="utf-8"))


def folders(place, blocks, out):
    return {"teacher": place / "model", "unhealed": place / f"cut{blocks}", "healed": place / out}


def test_sides_are_measured_as_eval_measures_them(place):
    """All examples of the side task, here summed from the splits that eval takes one by one."""
    (side,) = told(place, "one")["sides"]
    assert (side["name"], side["metric"], side["n"]) == ("q", "accuracy", 60)
    for name, folder in folders(place, 1, "one").items():
        right = 0.0
        for split in ("probe", "select", "test"):
            found = package.evaluate(
                str(folder), str(place / "q.jsonl"), split=split, ledger=place / "looked.sqlite",
                allow_small=True, device="cpu", trust_remote_code=True,
            )  # fmt: skip
            right += (
                next(s["value"] for s in found["scores"] if s["metric"] == "accuracy")
                * found["scores"][0]["n"]
            )
        assert side[name]["value"] == pytest.approx(right / 60), name


def test_texts_are_what_each_model_generates(place):
    samples = told(place, "two")["samples"]
    assert len(samples) == 3
    for name, folder in folders(place, 2, "two").items():
        tokenizer = package.load(str(place / "model")).tokenizer
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        for one in samples:
            ids = torch.tensor([tokenizer(one["prompt"])["input_ids"]])
            made = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :]
            assert one[name] == tokenizer.decode(made, skip_special_tokens=True), name


def test_test_is_opened_once_and_noted_and_only_where_asked_for(place):
    assert told(place, "one")["test"] is None
    record = told(place, "two")
    test = record["test"]
    for name, folder in folders(place, 2, "two").items():
        found = package.evaluate(
            str(folder),
            task(place),
            split="test",
            ledger=place / "looked.sqlite",
            trust_remote_code=True,
            **HOW,
        )
        (score,) = (s["value"] for s in found["scores"] if s["metric"] == "text_loss")
        assert test["scores"][0][name]["value"] == pytest.approx(score, abs=1e-6), name
    assert test["openings"] == 2, "the cut's own opening and this one"
    with Ledger.open(place / "cut2.run/ledger.sqlite") as ledger:
        split = next(iter(ledger._db.execute("SELECT DISTINCT split FROM openings")))[0]
        p_values = [opening.p_value for opening in ledger.openings(split)]
    assert len(p_values) == 2
    assert p_values[1] == test["p_value_unadjusted"]
    smaller, larger = sorted(p_values)
    holm = {smaller: min(1, 2 * smaller), larger: min(1, max(2 * smaller, larger))}
    assert test["p_value"] == pytest.approx(holm[p_values[1]])
    assert test["sentence"] in (place / "two/README.md").read_text()
    assert heal(place, 2, "two", ledger=place / "cut2.run/ledger.sqlite").already


def test_what_is_gone_and_the_curves_of_the_cut(place):
    record = told(place, "two")
    assert record["gone"]["form"] == "linear"
    assert record["depth"] == told(place, "cut2", "analysis.json")["depth"]
    assert sorted(step["block"] for step in record["depth"]["order"]) == record["gone"]["blocks"]
    points = next(one["points"] for one in record["depth"]["series"] if one["form"] == "linear")
    assert record["scores"][0]["teacher"]["value"] == pytest.approx(points[0]["value"], abs=1e-6)
    assert record["scores"][0]["unhealed"]["value"] == pytest.approx(points[2]["value"], abs=1e-4)


def test_curves_of_another_task_are_not_shown(place, tmp_path):
    other = package.heal(
        place / "cut1", str(place / "q.jsonl"), tmp_path / "out", allow_small=True, max_steps=1, device="cpu"
    )
    assert other.record["depth"] is None
    assert "Without whole blocks" not in (tmp_path / "out/report.html").read_text()
    with pytest.raises(SecateurError, match="not of one original on one task"):
        package.report(place / "one", also=[tmp_path / "out"])


@pytest.mark.parametrize(
    ("edits", "form"),
    [
        ([Drop(Site(1)), Drop(Site(2))], "drop"),
        ([Drop(Site.parse("b1.mlp"))], None),
        ([], None),
    ],
)
def test_the_form_of_a_plan(edits, form):
    assert form_of(Plan("x", tuple(edits))) == form


def test_the_command_is_what_one_would_type():
    healing = Healing(stage="end", side=("a.jsonl", "text:b"), ledger="l.sqlite")
    options = Options(model="cut", task="q.jsonl", side=healing.side)
    line = command_line(heal_command(options, Tuning(lr=1e-4), healing, None))
    assert line == (
        "secateur heal cut --task q.jsonl --stage end --side a.jsonl --side text:b --ledger l.sqlite"
    )


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_page_has_the_numbers_and_figures_that_plotly_knows(place):
    record, also = told(place, "two"), told(place, "one")
    sections = heal_sections(HealRecord.model_validate(record), [HealRecord.model_validate(also)])
    figures = {k: f for part in sections if isinstance(part, PageSection) for k, f in part.figures().items()}
    bodies = [part.body if isinstance(part, PageSection) else (part,) for part in sections]
    page = "".join(piece for body in bodies for piece in body if isinstance(piece, str))
    for figure in figures.values():
        go.Figure(data=figure.data, layout=figure.layout)
        assert figure.rows
    assert set(figures) == {"epochs-0", "depth-0", "depth-1"}
    row = record["scores"][0]
    for side in ("teacher", "unhealed", "healed"):
        assert f"{row[side]['value']:.3f}" in page
        assert record["samples"][0][side] in page
    assert f"{record['tokens']:,}" in page
    assert f"test {record['test']['n']:,}" not in page
    assert f"<b>{record['test']['verdict']}</b>" in page


def test_healed_cuts_are_points_on_the_curves(place):
    record, also = told(place, "two"), told(place, "one")
    records = (HealRecord.model_validate(one) for one in (record, also))
    figures = depth_section(next(records), list(records)).figures()
    (line,) = [t for t in figures["depth-0"].data if "healed" in str(t.get("text"))]
    assert line["x"] == [0, 1, 2]
    expected = [record["depth"]["series"][0]["points"][0]["value"]]
    expected += [one["scores"][0]["healed"]["value"] for one in (also, record)]
    assert line["y"] == expected
    (line,) = [t for t in figures["depth-1"].data if "healed" in str(t.get("text"))]
    assert line["y"][1:] == pytest.approx([math.exp(value) for value in expected[1:]])


def test_report_writes_the_page_again_also_with_others(place):
    before = (place / "two/report.html").read_text()
    ran = secateur("report", place / "two", "--also", place / "one")
    assert ran.exit_code == 0, ran.output
    assert (place / "two/report.html").read_text() != before
    package.report(place / "two")
    assert (place / "two/report.html").read_text() == before
    ran = secateur("report", place / "cut1", "--also", place / "one")
    assert ran.exit_code == 2
    assert "--also is for what secateur heal wrote" in " ".join(ran.output.split())


def test_losses_of_both_stages_stand_one_after_the_other(place):
    record = told(place, "two")
    (stage,) = record["stages"]
    record["stages"] = [stage, stage | {"stage": "layers"}]
    figures = epochs_section(HealRecord.model_validate(record)).figures()
    first, second = (
        t for t in figures["epochs-0"].data if t["mode"] == "lines+markers" and "select" in t["text"][0]
    )
    assert second["x"][0] == first["x"][-1] == stage["epochs"][-1]["step"]
    assert first["y"] == [row["select_loss"] for row in stage["epochs"]]


@pytest.mark.parametrize(
    ("back", "word", "kind"),
    [
        ({"value": 0.614, "ci": [0.5, 0.7]}, "61 % came back", "better"),
        ({"value": 0.1, "ci": [-0.1, 0.3]}, "10 % came back", "neutral"),
        ({"value": -0.2, "ci": [-0.3, -0.1]}, "nothing came back", "worse"),
        (None, "no loss to heal", "neutral"),
    ],
)
def test_the_head_says_how_much_came_back(place, back, word, kind):
    record = told(place, "one")
    record["scores"][0]["recovered"] = back
    head = hero(HealRecord.model_validate(record))
    assert word in head
    assert f'class="{kind}"' in head


def test_markup_in_a_record_becomes_text(place):
    def poison(value):
        if isinstance(value, dict):
            return {k: v if k in KEPT else poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return f"{value}<script>hacked()</script>" if isinstance(value, str) else value

    hostile = poison(told(place, "two"))
    page = render_heal(HealRecord.model_validate(hostile))
    assert "<script>hacked()" not in page
    assert page.count("&lt;script&gt;hacked()") > 10


KEPT = ("metric", "unit", "form", "by", "stage", "metric_unit", "side_units", "verdict", "series")


# ---------------------------------------------------------------------------------------------------- where depth loses


def curves(metric="text_loss", higher_is_better=False, **over):
    """A depth record of the given differences to a drop, by form."""
    series = []
    for form, gaps in ({"drop": [None] * 3} | over).items():
        points = [
            {
                "blocks_removed": n,
                "parameters": 1 - n / 8,
                "value": 2.0,
                "loss": 2.0,
                "over_drop": gap and {"value": gap[0], "ci": gap[1:]},
                "sides": {},
                "sample": "",
            }
            for n, gap in enumerate((None, *gaps))
        ]
        series.append({"form": form, "points": points})
    asked = {
        "by": "loss",
        "form": "drop",
        "contiguous": False,
        "rank": None,
        "blocks": None,
        "max_loss": None,
    }
    judged = {"metric": metric, "metric_unit": "nats/token", "higher_is_better": higher_is_better}
    seen = {"num_blocks": 8, "side_units": {}, "prompt": "", "order": [], "series": series, "chosen": 0}
    return DepthRecord.model_validate(asked | judged | seen)


def test_where_replacing_loses_is_said():
    better = [(-0.3, [-0.4, -0.2]), (-0.2, [-0.3, -0.1])]
    assert replacing(curves(linear=[(g, *c) for g, c in better])) == (
        "Replacing does no worse than dropping at any depth."
    )
    said = replacing(
        curves(linear=[(-0.3, -0.4, -0.2), (0.2, 0.1, 0.3), (0.5, 0.4, 0.6)], fold=[(0.01, -0.1, 0.1)])
    )
    assert "A linear map loses to dropping</b> with 2, 3 blocks gone: at 3 " in said
    assert "+0.500 [+0.400 to +0.600] against the drop." in said
    assert "Folding them loses to dropping</b> with 1 block gone" in said
    assert said.endswith("(not beyond chance).")
    right = curves("accuracy", True, linear=[(0.1, 0.05, 0.2)])
    assert "no worse" in replacing(right), "more accuracy is better"
    assert replacing(curves()) == ""


def test_a_form_is_compared_to_a_drop_of_the_same_blocks(place):
    record = told(place, "cut2", "analysis.json")["depth"]
    points = {one["form"]: one["points"] for one in record["series"]}
    for form in ("linear", "fold"):
        for number, point in enumerate(points[form]):
            if number == 0:
                assert point["over_drop"] is None
                continue
            gap = point["value"] - points["drop"][number]["value"]
            assert point["over_drop"]["value"] == pytest.approx(gap, abs=1e-9)
            low, high = point["over_drop"]["ci"]
            assert low <= point["over_drop"]["value"] <= high
    assert all(point["over_drop"] is None for point in points["drop"])


def test_the_order_of_another_measure_is_that_of_a_run_by_it(place, tmp_path):
    how = {"method": "depth", "form": "linear", "blocks": 2, "report": "full", **HOW}
    package.prune(str(place / "model"), task(place), tmp_path / "out", by="linearity", **how)
    asked = told(tmp_path, "out", "analysis.json")["depth"]
    by_cosine = told(place, "cut2", "analysis.json")["depth"]
    (other,) = by_cosine["other_orders"]
    assert other["by"] == "linearity"
    assert other["blocks"] == [step["block"] for step in asked["order"]]
    points = asked["series"][0]["points"]
    assert [p["value"] for p in other["points"]] == pytest.approx([p["value"] for p in points])
    (back,) = asked["other_orders"]
    assert back["blocks"] == [step["block"] for step in by_cosine["order"]]
    section = order_section(DepthRecord.model_validate(by_cosine))
    assert len(section.figures()) == 2
    assert "by linearity: " + ", ".join(f"b{b}" for b in other["blocks"]) in section.body[0]


def test_samples_of_every_form_stand_in_the_page(place):
    page = (place / "cut2/report.html").read_text()
    record = told(place, "cut2", "analysis.json")["depth"]
    for one in record["series"]:
        for point in one["points"]:
            assert point["sample"] in page
    perplexity = math.exp(record["series"][0]["points"][1]["value"])
    assert f"<td>{perplexity:.1f}" in page or f"<td>{perplexity:.2f}" in page
