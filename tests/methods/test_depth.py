"""`prune --method depth` from end to end: planted blocks go first and leave no trace, forms are told apart, and what
cannot be done is refused before anything is computed."""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from fixtures.folders import contents, questions, save_model, secateur, write_rows
from fixtures.marks import slow_but
from fixtures.planted import affine_, silenced, spoken
from fixtures.zoo import tiny, variant
from transformers import AutoModelForCausalLM

import secateur as api
from secateur.core.fitted import Fitted
from secateur.core.plan import Drop, Linearize, Plan, RemoveDirections, Truncate
from secateur.core.records.analysis import AnalysisRecord
from secateur.core.records.verdict import VerdictRecord
from secateur.core.site import Site
from secateur.errors import PlanError, UnknownName
from secateur.methods.depth import steps as depth
from secateur.methods.depth.report import sections
from secateur.reporting import render

COMMON = ("--allow-small", "--limit", "90", "--quiet", "--device", "cpu")
TOKENS = torch.arange(2 * 12).reshape(2, 12) * 7 % 96


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("depth")
    models = {
        "planted": affine_(variant("gpt2", n_layer=4), 2),
        "loud": affine_(variant("gpt2", n_layer=4), 2, times=6),
        "llama": variant("llama", num_hidden_layers=4),
        "gemma3": tiny("gemma3"),
    }
    for name, model in models.items():
        save_model(place / name, model, words)
    for name in ("planted", "llama"):
        write_rows(place / f"{name}.jsonl", spoken(models[name]))
    write_rows(place / "quiet.jsonl", spoken(silenced(models["loud"], 2)))
    save_model(place / "exact", models["planted"].double(), words)
    write_rows(place / "q.jsonl", questions())
    draw = np.random.default_rng(0)
    lines = [" ".join(f"w{t}" for t in draw.integers(3, 90, 40)) for _ in range(120)]
    (place / "words.txt").write_text("\n\n".join(lines), encoding="utf-8")
    return place


def prune(place, model, out, *more, task="q.jsonl"):
    file = place / task if task == "q.jsonl" else f"text:{place / task}"
    return secateur("prune", place / model, "--task", file, "-o", out, "--method", "depth", *COMMON, *more)


def told(folder, name):
    return json.loads((folder / name).read_text())


@torch.no_grad()
def logits(folder, **how):
    model = AutoModelForCausalLM.from_pretrained(folder, **how)
    return model(TOKENS).logits


@pytest.mark.parametrize(
    "by", slow_but(["linearity"], ["linearity", "cosine"])
)  # by loss is chance at random
@pytest.mark.parametrize("form", ["fold", "linear"])
def test_an_affine_block_goes_first_and_leaves_no_trace(place, tmp_path, by, form):
    how = ("--by", by, "--form", form, "--blocks", "1")
    ran = prune(place, "exact", tmp_path / "out", *how, task="planted.jsonl")
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
    how = ("--blocks", "2", "--seqlen", "32", "--report", "full")
    ran = prune(place, "llama", tmp_path / "out", *how, task="llama.jsonl")
    assert ran.exit_code == 0, ran.output
    record, plan = told(tmp_path / "out", "analysis.json")["depth"], told(tmp_path / "out", "plan.json")
    assert [series["form"] for series in record["series"]] == ["fold", "drop", "linear"]
    gone = [step["block"] for step in record["order"]]
    assert Plan.from_json(plan).blocks_gone == set(map(Site, gone))
    assert record["chosen"] == 2
    assert len(gone) == 2
    for series in record["series"]:
        assert [point["blocks_removed"] for point in series["points"]] == [0, 1, 2]
        assert all(isinstance(point["sample"], str) for point in series["points"])
        assert series["points"][0]["value"] == record["series"][0]["points"][0]["value"]
    one = record["series"][1]["points"][1]  # dropped, judged again from outside on the same split
    found = api.evaluate(
        str(place / "llama"), f"text:{place / 'llama.jsonl'}", plan=[f"b{gone[0]}=drop"],
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


@pytest.mark.parametrize("form", ["fold", "linear"])
def test_a_map_that_does_worse_than_dropping_is_not_taken(place, tmp_path, form, caplog):
    """On text that is foretold best without block 2, the map that stands for it exactly is worse than nothing."""
    how = ("--by", "linearity", "--form", form, "--blocks", "1")
    ran = prune(place, "loud", tmp_path / "out", *how, task="quiet.jsonl")
    assert ran.exit_code == 0, ran.output
    plan, analysis = (told(tmp_path / "out", f"{name}.json") for name in ("plan", "analysis"))
    assert plan["edits"] == [{"kind": "drop", "site": "b2"}]
    record = analysis["depth"]
    points = {series["form"]: series["points"] for series in record["series"]}
    (fell_back,) = points[form][1]["fell_back"]
    assert fell_back["blocks"] == [2]
    assert fell_back["dropped"] < fell_back["fitted"]
    assert fell_back["fitted"] == pytest.approx(points[form][0]["value"], abs=1e-5), (
        "as the original, to rounding"
    )
    assert fell_back["dropped"] == points["drop"][1]["value"] == points[form][1]["value"]
    assert told(tmp_path / "out", "verdict.json")["search"]["fell_back"] == [fell_back]
    assert "b2: dropped, because the" in caplog.text
    page = (tmp_path / "out/report.html").read_text()
    assert "Dropped instead" in page
    assert f"fitted to {record['fit_tokens']} tokens of the calibration split" in page
    found = api.evaluate(
        str(place / "loud"), f"text:{place / 'quiet.jsonl'}", plan=["b2=drop"],
        allow_small=True, limit=90, device="cpu",
    )  # fmt: skip
    assert found["scores"][0]["value"] == pytest.approx(fell_back["dropped"], abs=1e-6)


def test_a_map_that_does_better_is_taken(place, tmp_path, caplog):
    ran = prune(
        place, "planted", tmp_path / "out", "--by", "linearity", "--blocks", "1", task="planted.jsonl"
    )
    assert ran.exit_code == 0, ran.output
    assert told(tmp_path / "out", "plan.json")["edits"][0]["kind"] == "linearize"
    assert told(tmp_path / "out", "verdict.json")["search"]["fell_back"] == []
    assert "dropped, because" not in caplog.text


@pytest.mark.parametrize(
    ("more", "warns"),
    [((), True), (("--form", "drop"), False), (("--form", "drop", "--by", "linearity"), True)],
)
def test_few_tokens_to_fit_are_told(place, tmp_path, caplog, more, warns):
    prune(place, "planted", tmp_path / "out", "--blocks", "1", *more, task="planted.jsonl")
    record = told(tmp_path / "out", "analysis.json")["depth"]
    assert record["fit_tokens"] == 9 * 23, "9 texts of 24 words, the last of which is never read"
    assert record["d_model"] == 32
    assert ("207 tokens of probe, 6.5 for each of the 32 dimensions" in caplog.text) == warns


def test_enough_tokens_are_not_spoken_of(place, tmp_path, caplog):
    words = ["prune", place / "planted", "--task", f"text:{place / 'planted.jsonl'}", "-o", tmp_path / "out"]
    secateur(
        *words, "--method", "depth", "--blocks", "1", "--form", "drop", "--by", "linearity", "--allow-small"
    )
    assert told(tmp_path / "out", "analysis.json")["depth"]["fit_tokens"] == 30 * 23
    assert "tokens of probe" not in caplog.text


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
        ("llama", ("--target", "50%"), "--target 50% is not for --method depth"),
    ],
)
def test_what_cannot_be_done_is_refused(place, tmp_path, model, more, says):
    ran = prune(place, model, tmp_path / "out", *more)
    assert ran.exit_code != 0
    assert says in " ".join(ran.output.split())
    assert not (tmp_path / "out").exists()


def test_runs_are_joined_and_something_carries_what_stands_for_them():
    assert depth.run_with({1, 2, 5}, 3) == (1, 2, 3)
    assert depth.run_with({1, 3}, 2) == (1, 2, 3)
    assert depth.run_with(set(), 4) == (4,)
    four = (frozenset(range(4)),)
    whole = depth.Carriers(frozenset(range(4)), frozenset(range(5)), (frozenset(range(5)),))
    assert depth.may_go([], range(4), "fold", whole, contiguous=False) == [1, 2, 3]
    assert depth.may_go([1], range(4), "fold", whole, contiguous=False) == [2, 3]
    assert depth.may_go([1], range(4), "linear", whole, contiguous=False) == [0, 2, 3]
    assert depth.may_go([1], range(5), "drop", whole, contiguous=True) == [0, 2]
    cut = depth.Carriers(
        folds=frozenset({0, 2, 3}), entries=frozenset({0, 1, 2}), kept_from=four
    )  # of four blocks, cut before
    assert depth.may_go([], range(4), "fold", cut, contiguous=False) == [1, 3]
    assert depth.may_go([1], range(4), "fold", cut, contiguous=False) == [2, 3]
    assert depth.may_go([], range(4), "linear", cut, contiguous=False) == [0, 1]
    assert depth.may_go([], range(4), "drop", cut, contiguous=False) == [0, 1, 2, 3]
    hybrid = depth.Carriers(whole.folds, whole.entries, (frozenset({0, 1, 3}), frozenset({2})))
    assert depth.may_go([], range(4), "drop", hybrid, contiguous=False) == [0, 1, 3]
    assert depth.may_go([0, 1], range(4), "drop", hybrid, contiguous=False) == []
    assert depth.all_that_may_go(range(4), "drop", hybrid) == [0, 1]


@pytest.mark.parametrize("form", ["fold", "linear", "drop"])
def test_all_that_may_go_is_the_most_that_any_order_reaches(form):
    """Against every order, of four blocks with every way in which some of them carry nothing."""

    def deepest(gone, carriers):
        left = depth.may_go(gone, range(4), form, carriers, contiguous=False) if len(gone) < 3 else []
        return max((deepest([*gone, block], carriers) for block in left), default=len(gone))

    for number in range(2**5):
        some = frozenset(n for n in range(5) if number >> n & 1)
        carriers = depth.Carriers(some, some, (frozenset(range(4)),))
        found = depth.all_that_may_go(range(4), form, carriers)
        assert len(found) == deepest([], carriers)


def test_a_run_that_is_gone_leaves_nothing_of_itself_behind():
    fitted = Linearize((2,), "fold", Fitted.of({"weight": np.eye(4)}))
    plan = Plan("x", (fitted, Drop(Site(4)), Drop(Site.parse("b5.mlp")), Drop(Site(7))))
    assert depth.without(plan, (2, 3, 4, 5)) == Plan("x", (Drop(Site.parse("b5.mlp")), Drop(Site(7))))


def test_figures_are_plotly_figures_and_samples_are_escaped(place, tmp_path):
    ran = prune(
        place, "llama", tmp_path / "out", "--blocks", "1", "--side", place / "q.jsonl", "--report", "full"
    )
    assert ran.exit_code == 0, ran.output
    verdict, plan, analysis = (told(tmp_path / "out", f"{n}.json") for n in ("verdict", "plan", "analysis"))
    for series in analysis["depth"]["series"]:
        for point in series["points"]:
            point["sample"] = "<script>alert(1)</script>"
    page = render(verdict, plan, analysis)
    assert "<script>alert(1)</script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    shown = sections(VerdictRecord.model_validate(verdict), AnalysisRecord.model_validate(analysis))
    assert [section.name for section in shown] == ["depth", "order"]
    assert all(shown)
    figures = {key: figure for section in shown for key, figure in section.figures().items()}
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
        assert kept.blocks_gone == {Site(2), Site(3)}
        assert kept.lowest_block == Site(1)

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
        assert plan.descriptions == ["b1 to b2 folded into b0.down", "b4 linear"]
