"""`prune --method depth` from end to end: planted blocks go first and leave no trace, forms are told apart, and what
cannot be done is refused before anything is computed."""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from folders import contents, questions, save_model, secateur, write_rows
from transformers import AutoModelForCausalLM
from zoo import tiny, variant

import secateur as api
from secateur.core.fitted import Fitted
from secateur.core.plan import Drop, Linearize, Plan, RemoveDirections, Truncate
from secateur.core.site import Site
from secateur.errors import PlanError, UnknownName
from secateur.reports.chart import Figure
from secateur.reports.depth import SECTIONS
from secateur.reports.page import render
from secateur.search import depth

COMMON = ("--allow-small", "--limit", "90", "--quiet", "--device", "cpu")
TOKENS = torch.arange(2 * 12).reshape(2, 12) * 7 % 96


def affine_(model, block: int):
    """GPT-2's block adds one constant vector to the stream, whatever it reads."""
    own = model.transformer.h[block]
    own.attn.c_proj.weight.data.zero_()
    own.mlp.c_proj.weight.data.zero_()
    return model


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("depth")
    models = {
        "planted": affine_(variant("gpt2", n_layer=4), 2),
        "llama": variant("llama", num_hidden_layers=4),
        "gemma3": tiny("gemma3"),
    }
    for name, model in models.items():
        save_model(place / name, model, words)
    save_model(place / "exact", models["planted"].double(), words)
    write_rows(place / "q.jsonl", questions())
    draw = np.random.default_rng(0)
    lines = [" ".join(f"w{t}" for t in draw.integers(3, 90, 40)) for _ in range(120)]
    (place / "words.txt").write_text("\n\n".join(lines), encoding="utf-8")
    return place


def prune(place, model, out, *more, task="q.jsonl"):
    file = f"text:{place / task}" if task.endswith(".txt") else place / task
    return secateur("prune", place / model, "--task", file, "-o", out, "--method", "depth", *COMMON, *more)


def told(folder, name):
    return json.loads((folder / name).read_text())


@torch.no_grad()
def logits(folder, **how):
    model = AutoModelForCausalLM.from_pretrained(folder, **how)
    return model(TOKENS).logits


@pytest.mark.parametrize("by", ["linearity", "cosine"])  # what a random model loses by loss is chance
@pytest.mark.parametrize("form", ["fold", "linear"])
def test_an_affine_block_goes_first_and_leaves_no_trace(place, tmp_path, by, form):
    ran = prune(place, "exact", tmp_path / "out", "--by", by, "--form", form, "--blocks", "1")
    assert ran.exit_code == 0, ran.output
    assert told(tmp_path / "out", "plan.json")["edits"][0]["blocks"] == [2]
    how = {} if form == "fold" else {"trust_remote_code": True}
    cut = logits(tmp_path / "out", dtype=torch.float64, **how)
    whole = logits(place / "exact", dtype=torch.float64)
    assert float((cut - whole).norm() / whole.norm()) < 1e-10
    assert told(tmp_path / "out", "verdict.json")["loads"]["form"] == (
        "stock" if form == "fold" else "carved"
    )
    measured = told(tmp_path / "out", "analysis.json")["depth"]["order"][0]["measured"]
    assert min(measured, key=measured.get) == "2"


def test_every_form_at_every_depth(place, tmp_path):
    ran = prune(place, "llama", tmp_path / "out", "--blocks", "2", "--seqlen", "32", task="words.txt")
    assert ran.exit_code == 0, ran.output
    record, plan = told(tmp_path / "out", "analysis.json")["depth"], told(tmp_path / "out", "plan.json")
    assert [series["form"] for series in record["series"]] == ["fold", "drop", "linear"]
    gone = [step["block"] for step in record["order"]]
    assert sorted(b for edit in plan["edits"] for b in edit["blocks"]) == sorted(gone)
    assert record["chosen"] == 2
    assert len(gone) == 2
    for series in record["series"]:
        assert [point["blocks_removed"] for point in series["points"]] == [0, 1, 2]
        assert all(isinstance(point["sample"], str) for point in series["points"])
        assert series["points"][0]["value"] == record["series"][0]["points"][0]["value"]
    one = record["series"][1]["points"][1]  # dropped, judged again from outside on the same split
    found = api.evaluate(
        str(place / "llama"), f"text:{place / 'words.txt'}", plan=[f"b{gone[0]}=drop"],
        allow_small=True, limit=90, seqlen=32, device="cpu",
    )  # fmt: skip
    assert found["scores"][0]["value"] == pytest.approx(one["value"], abs=1e-6)
    config = told(tmp_path / "out", "config.json")
    page = (tmp_path / "out/report.html").read_text()
    for words in (
        "Without whole blocks",
        "2 of 4 blocks gone, folded into the network before",
        "Which block goes next",
    ):
        assert words in page
    assert config["num_hidden_layers"] == 2
    assert "auto_map" not in config


def test_the_same_command_gives_the_same_folder(place, tmp_path):
    for name in ("a", "b"):
        ran = prune(place, "llama", tmp_path / name, "--form", "linear", "--rank", "4", "--max-loss", "1")
        assert ran.exit_code == 0, ran.output
    first, second = (contents(tmp_path / name) for name in ("a", "b"))
    assert {k: v for k, v in first.items() if "tensors" in k or "safetensors" in k} == {
        k: v for k, v in second.items() if "tensors" in k or "safetensors" in k
    }
    assert told(tmp_path / "a", "plan.json")["edits"] == told(tmp_path / "b", "plan.json")["edits"]


def test_without_a_number_as_far_as_the_margin_allows(place, tmp_path):
    prune(place, "planted", tmp_path / "out", "--max-loss", "0.001", "--objective", "loss")
    record = told(tmp_path / "out", "analysis.json")["depth"]
    points = record["series"][0]["points"]
    allowed = [n for n, p in enumerate(points) if p["value"] <= points[0]["value"] + 0.001]
    assert record["chosen"] == max(allowed) >= 1, "an affine block costs nothing"


def test_one_run(place, tmp_path):
    ran = prune(
        place, "llama", tmp_path / "out", "--blocks", "3", "--contiguous", "--by", "cosine", "--form", "drop"
    )
    assert ran.exit_code == 0, ran.output
    gone = [step["block"] for step in told(tmp_path / "out", "analysis.json")["depth"]["order"]]
    for number in range(1, 4):
        some = sorted(gone[:number])
        assert some == list(range(some[0], some[0] + number))


@pytest.mark.parametrize(
    ("model", "more", "says"),
    [
        ("gemma3", (), "norm after its feed-forward networks"),
        ("llama", ("--blocks", "4"), "--blocks 4: from 1 to 3"),
        ("llama", ("--by", "lost"), "loss"),
        ("llama", ("--form", "folds"), "fold"),
        ("llama", ("--rank", "3"), "--form linear"),
        ("llama", ("--target", "50%"), "--target 0.5 is not for --method depth"),
    ],
)
def test_what_cannot_be_done_is_refused(place, tmp_path, model, more, says):
    ran = prune(place, model, tmp_path / "out", *more)
    assert ran.exit_code != 0
    assert says in " ".join(ran.output.split())
    assert not (tmp_path / "out").exists()


def test_runs_are_joined_and_never_fold_into_nothing():
    assert depth.run_with({1, 2, 5}, 3) == (1, 2, 3)
    assert depth.run_with({1, 3}, 2) == (1, 2, 3)
    assert depth.run_with(set(), 4) == (4,)
    assert depth.may_go([], range(4), "fold", contiguous=False) == [1, 2, 3]
    assert depth.may_go([1], range(4), "fold", contiguous=False) == [2, 3]
    assert depth.may_go([1], range(4), "linear", contiguous=False) == [0, 2, 3]
    assert depth.may_go([1], range(5), "drop", contiguous=True) == [0, 2]


def test_figures_are_plotly_figures_and_samples_are_escaped(place, tmp_path):
    ran = prune(place, "llama", tmp_path / "out", "--blocks", "1", "--side", place / "q.jsonl")
    assert ran.exit_code == 0, ran.output
    verdict, plan, analysis = (told(tmp_path / "out", f"{n}.json") for n in ("verdict", "plan", "analysis"))
    for series in analysis["depth"]["series"]:
        for point in series["points"]:
            point["sample"] = "<script>alert(1)</script>"
    page = render(verdict, plan, analysis)
    assert "<script>alert(1)</script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    figures: dict[str, Figure] = {}
    assert all(section(verdict, plan, analysis, figures) for section in SECTIONS)
    assert len(figures) == 4  # accuracy, loss, the side, the choice
    for figure in figures.values():
        go.Figure(data=figure.data, layout=figure.layout)  # raises for what plotly does not know
        assert figure.rows


class TestTheEdit:
    @staticmethod
    def of(*blocks, form="linear"):
        return Linearize(blocks, form, Fitted.of({"weight": np.eye(4), "bias": np.zeros(4)}))

    def test_json_and_back(self):
        plan = Plan("x", (self.of(2, 3), Drop(Site.parse("b5.mlp"))))
        again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
        assert again == plan
        assert again.identity == plan.identity
        assert again.linearized[0].fitted.arrays is None
        full = again.with_fitted({one.digest: one for one in plan.fitted})
        assert np.array_equal(full.linearized[0].fitted.arrays["weight"], np.eye(4))

    @pytest.mark.parametrize(
        "other",
        [Drop(Site.parse("b2")), Drop(Site.parse("b3.attn.h1")), Truncate(Site.parse("b2.up"), 3)],
    )
    def test_nothing_else_may_change_what_goes(self, other):
        with pytest.raises(PlanError):
            Plan("x", (self.of(2, 3), other))

    def test_a_fold_holds_the_matrix_before_it(self):
        fold = self.of(2, 3, form="fold")
        for other in (Truncate(Site.parse("b1.down"), 3), Drop(Site.parse("b1.mlp")), Drop(Site.parse("b1"))):
            with pytest.raises(PlanError):
                Plan("x", (fold, other))
        kept = Plan("x", (fold, RemoveDirections(Site.parse("b1.up"), (0,)), Drop(Site.parse("b1.attn"))))
        assert kept.blocks_gone == {2, 3}
        assert kept.lowest_block == 1

    def test_what_is_no_run(self):
        for blocks in ((), (1, 3), (2, 1)):
            with pytest.raises(PlanError):
                self.of(*blocks)
        with pytest.raises(PlanError, match="block 0"):
            self.of(0, form="fold")
        with pytest.raises(UnknownName):
            self.of(1, form="fould")

    def test_words(self):
        plan = Plan("x", (self.of(4), self.of(1, 2, form="fold")))
        assert plan.told == ["b1 to b2 folded into b0.down", "b4 linear"]
