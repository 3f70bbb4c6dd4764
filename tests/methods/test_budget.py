"""`prune --method budget`: planted truths of every kind go first, the budget is kept, a killed search ends the same."""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from fixtures.folders import refused, save_model, secateur, write_rows
from fixtures.killed import counting
from fixtures.planted import spoken
from fixtures.zoo import variant

import secateur as api
from secateur.core.fitted import Fitted
from secateur.core.plan import Drop, Linearize, Plan, Truncate
from secateur.core.records.verdict import VerdictRecord
from secateur.core.score import OUTCOME
from secateur.core.site import Site
from secateur.errors import SecateurError, UnknownName
from secateur.hf.anatomy import anatomy
from secateur.hf.fingerprint import fingerprint
from secateur.methods.budget import search as budget
from secateur.methods.budget.readings import Candidate
from secateur.methods.budget.records import BudgetAnalysis, BudgetRecord
from secateur.methods.budget.report import front_figure, sections
from secateur.methods.registry import read_options
from secateur.session import early_session
from secateur.surgery.shape import shape_of

COMMON = ("--allow-small", "--quiet", "--device", "cpu", "--dtype", "float32")


def planted():
    """Block 0 has a useless KV group, block 1 a dead network, block 2 does nothing, the gate of block 3 has rank 2."""
    model = variant("llama", num_hidden_layers=5)
    layers, draw = model.model.layers, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # so that every other part is missed
            parameter.mul_(1.0 if parameter.dim() == 1 else 2.0)
        layers[0].self_attn.o_proj.weight[:, 16:] = 0
        layers[1].mlp.down_proj.weight.zero_()
        layers[2].self_attn.o_proj.weight.zero_()
        layers[2].mlp.down_proj.weight.zero_()
        factors = torch.randn(40, 2, generator=draw), torch.randn(2, 32, generator=draw)
        layers[3].mlp.gate_proj.weight.copy_(0.3 * factors[0] @ factors[1])
    return model


USELESS = (Drop(Site(0, "attn", "g", 1)), Drop(Site(1, "mlp")), Drop(Site(2)), Truncate(Site(3, "gate"), 2))


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("budget")
    model = planted()
    save_model(place / "m", model, words)
    write_rows(place / "text.jsonl", spoken(model, 120))
    return place


@pytest.fixture(scope="module")
def share():
    """The share of the parameters that is left when everything useless is gone."""
    model = planted()
    left = shape_of(Plan(fingerprint(model), USELESS), anatomy(model), factorize=True)
    return left.num_parameters(anatomy(model)) / anatomy(model).num_parameters


def prune(place, out, *more):
    return secateur("prune", place / "m", "--task", f"text:{place / 'text.jsonl'}", "-o", out, *COMMON, *more)


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def pruned(place, share, tmp_path_factory):
    out = tmp_path_factory.mktemp("pruned") / "out"
    ran = prune(place, out, "--params", f"{share + 1e-6:.6f}")
    assert ran.exit_code == 0, ran.output
    return out


def test_what_is_useless_goes_first_whatever_its_kind(pruned):
    assert {cut["site"] for cut in read(pruned, "verdict.json")["cut"]} == {str(e.site) for e in USELESS}
    points = read(pruned, "analysis.json")["budget"]["points"]
    assert points[-1]["loss"] == pytest.approx(points[0]["loss"], abs=1e-4)
    kinds = {kind for move in read(pruned, "analysis.json")["budget"]["moves"] for kind in move["by_kind"]}
    assert kinds == {"heads", "ffns", "blocks", "matrices"}


def test_what_is_written_keeps_to_the_budget(pruned, share):
    verdict = read(pruned, "verdict.json")
    assert verdict["parameters"]["after"] <= (share + 1e-6) * verdict["parameters"]["before"]
    loaded = api.load(str(pruned), device="cpu")
    assert sum(p.numel() for p in loaded.model.parameters()) == verdict["parameters"]["after"]
    page = (pruned / "report.html").read_text()
    assert '<section id="budget">' in page
    assert "so the curve flatters itself" in page


def test_moves_are_named_in_plain_words(pruned):
    record = read(pruned, "analysis.json")
    moves = record["budget"]["moves"]
    for move, kind in zip(moves, ("even", "mixed"), strict=False):
        move["kind"] = kind
    (section,) = sections(
        VerdictRecord.model_validate(read(pruned, "verdict.json")), BudgetAnalysis.model_validate(record)
    )
    assert "<td>several kinds together</td>" in section.body[-1]
    assert "<td>the same share of the neurons of every network</td>" in section.body[-1]
    assert "<td>even</td>" not in section.body[-1]


def test_the_front_is_a_plotly_figure_with_a_point_for_each(pruned):
    verdict = VerdictRecord.model_validate(read(pruned, "verdict.json"))
    record = BudgetRecord.model_validate(read(pruned, "analysis.json")["budget"])
    figure = front_figure(verdict, record)
    go.Figure(data=figure.data, layout=figure.layout)  # raises for what plotly does not know
    assert figure.data[0]["x"] == [point.parameters for point in record.points]
    assert figure.data[1]["x"] == [record.points[record.chosen].parameters]


def test_it_goes_on_beyond_what_is_useless_on_a_falling_front(place, tmp_path):
    assert prune(place, tmp_path / "out", "--params", "0.4", "--limit", "60").exit_code == 0
    record = read(tmp_path / "out", "analysis.json")["budget"]
    kept = [point["parameters"] for point in record["points"]]
    assert kept == sorted(set(kept), reverse=True)
    assert kept[-1] <= 0.4
    assert record["chosen"] == len(kept) - 1
    for before, after in zip(record["points"][1:-1], record["points"][2:], strict=True):
        assert before["loss"] < after["loss"], "a point that a smaller one betters is no point of the front"
    verdict = read(tmp_path / "out", "verdict.json")
    assert verdict["parameters"]["after"] <= 0.4 * verdict["parameters"]["before"]
    passes = verdict["search"]["forward_passes"]
    assert passes * len(read_select(place, 60)) >= verdict["evaluations"]


def read_select(place, limit):
    options = read_options(
        str(place / "m"), f"text:{place / 'text.jsonl'}", limit=limit, allow_small=True, params=0.5
    )
    return early_session(options).task.split("select")


def test_half_the_cache_by_kinds_that_hold_it(place, tmp_path):
    asked = ("--kv-bytes", "50%", "--kinds", "heads,attentions", "--limit", "60")
    assert prune(place, tmp_path / "out", *asked).exit_code == 0
    verdict = read(tmp_path / "out", "verdict.json")
    assert (
        verdict["gains"]["kv_bytes_per_token"]["after"]
        <= verdict["gains"]["kv_bytes_per_token"]["before"] / 2
    )
    assert all(cut["site"].partition(".")[2].startswith("attn") for cut in verdict["cut"])


def test_as_much_as_may_be_lost(place, tmp_path):
    assert prune(place, tmp_path / "out", "--max-loss", "0.001", "--limit", "60").exit_code == 0
    record = read(tmp_path / "out", "analysis.json")["budget"]
    chosen = record["points"][record["chosen"]]
    assert chosen["value"] <= record["points"][0]["value"] + 0.001
    assert chosen["parameters"] < 0.9, "all that is useless"
    assert record["targets"] == {}


def test_a_killed_search_ends_as_one_that_was_not(place, tmp_path, forks):
    asked = ["prune", str(place / "m"), "--task", f"text:{place / 'text.jsonl'}", "--params", "0.7", *COMMON]
    asked += ["--limit", "60", "-o"]
    assert secateur(*asked, tmp_path / "whole").exit_code == 0
    killed = forks.run(tmp_path, [*asked, tmp_path / "out"], counting(25))
    assert killed.returncode == -9, killed.stderr
    assert secateur(*asked, tmp_path / "out").exit_code == 0
    for name in ("plan.json", "analysis.json"):
        whole, found = read(tmp_path / "whole", name), read(tmp_path / "out", name)
        assert whole.get("budget") == found.get("budget")
        assert whole.get("edits") == found.get("edits")


def test_a_forecast_runs_the_search(place):
    asked = (str(place / "m"), f"text:{place / 'text.jsonl'}")
    told = api.plan_cost(*asked, params=0.6, calibrate=False, allow_small=True, device="cpu")
    counts = {row["stage"]: row["counts"]["expected"] for row in told["stages"]}
    assert told["method"] == "budget"
    assert counts["choose"]["plans"] > 10
    assert counts["choose"]["gradients"] >= told["examples"]["probe"]


# ------------------------------------------------------------------------------------------------------ what is asked


def method_of(**given):
    return read_options("m", "q.jsonl", **given).method


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({}, "laser"),
        ({"goal": "better"}, "laser"),
        ({"goal": "smaller"}, "budget"),
        ({"goal": "faster", "kv_bytes": "50%"}, "budget"),
        ({"params": 0.8}, "budget"),
        ({"latency": "80%"}, "budget"),
        ({"max_loss": 0.02}, "budget"),
        ({"method": "heads", "params": 0.8}, "heads"),
        ({"method": "depth", "max_loss": 0.02, "goal": "smaller"}, "depth"),
        ({"method": "directions", "goal": "better"}, "directions"),
    ],
)
def test_a_goal_or_a_budget_chooses_the_method(given, method):
    assert method_of(**given) == method


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"goal": "better", "params": 0.8}, "--params is a budget, for --goal smaller or faster"),
        ({"goal": "smaller", "method": "laser"}, "--method laser makes a model better, not smaller"),
        ({"goal": "better", "method": "depth"}, "--method depth makes a model smaller or faster, not better"),
        ({"params": 0.8, "zeroed": True}, "--zeroed saves nothing"),
        ({"params": 0.8, "blocks": 3}, "--blocks 3 is not for --method budget, but for depth"),
        ({"params": 1.5}, "--params 1.5"),
        ({"latency": 1.0}, "--latency 1.0"),
        ({"params": 0.8, "prompt": 64}, "--prompt and --new say what is timed for --latency"),
        ({"latency": 0.8, "zeroed": True}, "--zeroed saves nothing"),
        ({"latency": 0.8, "method": "heads"}, "--latency 0.8 is not for --method heads, but for budget"),
        ({"goal": "better", "latency": 0.8}, "--latency is a budget, for --goal smaller or faster"),
        ({"params": "80"}, "--params 80: write 80%, or 0.8."),
        ({"params": "180"}, "--params 180.0: give a number above 0 and below 1"),
    ],
)
def test_what_contradicts_itself_is_refused(given, words):
    with pytest.raises(SecateurError, match=words):
        method_of(**given)


def test_unknown_words_are_told_with_the_nearest():
    with pytest.raises(UnknownName, match="smaller"):
        method_of(goal="smaler")
    with pytest.raises(UnknownName, match="heads"):
        method_of(params=0.5, kinds="head")


def test_a_budget_out_of_reach_is_refused_before_weights_are_read(place, tmp_path):
    asked = ("--params", "0.3", "--kinds", "heads")
    refused(prune(place, tmp_path / "out", *asked), "--params 0.3", "for more --kinds")


# ------------------------------------------------------------------------------------------------- without weights


class Given:
    """Every candidate is predicted to cost what it says in `costs`; maps are of no size."""

    def __init__(self, costs, default=1.0):
        self.costs, self.default = costs, default

    def effects(self, plan, candidates):
        return [self.costs.get(str(candidate.edits[0].site), self.default) for candidate in candidates]

    def neurons(self, plan, examples):
        return {block: list(range(216)) for block in range(6)}

    def maps(self, plan, runs, examples):
        return {run: Linearize(run.blocks, run.form, Fitted.of({"drawn": np.zeros(1)})) for run in runs}


class Timed(Given):
    """Ends take 16 %, and in each of three blocks an attention 12 %, a network 14 % and the rest 2 %.

    Of a part half its units take `half`, and of what all parts save `real` is saved in truth.
    """

    def __init__(self, costs, half=0.5, real=1.0, default=1.0):
        super().__init__(costs, default)
        self.half, self.real, self.timed = half, real, []

    def time(self, plan):
        self.timed.append(plan)
        return 1 - self.real * self.saved({str(edit.site): edit.site for edit in plan.edits})

    def saved(self, sites):
        saved = 0.0
        for block in range(3):
            if f"b{block}" in sites:
                saved += 0.28
                continue
            for part, unit, share, count in (("attn", "g", 0.12, 6), ("mlp", "n", 0.14, 256)):
                gone = sum(
                    site.unit == unit and (site.block, site.part) == (block, part) for site in sites.values()
                )
                kept = 0.0 if f"b{block}.{part}" in sites else 1 - gone / count
                left = kept * 2 * self.half if kept < 0.5 else self.half + (kept - 0.5) * 2 * (1 - self.half)
                saved += share * (1 - left)
        return saved


def judge_of(loss):
    def judge(plans, examples, stage):
        judged = {}
        for plan in plans:
            rows = np.zeros(len(examples), OUTCOME)
            rows["example"], rows["tokens"], rows["correct"] = examples, 1, 1.0
            rows["loss"] = rows["choice_loss"] = loss({str(edit.site) for edit in plan.edits})
            judged[plan] = rows
        return judged

    return judge


def blank(**options):
    return early_session(
        read_options("builtin:facts", "builtin:facts", limit=300, allow_small=True, **options)
    )


def test_measured_loss_decides_where_predictions_are_wrong():
    session = blank(params=0.9, kinds="ffns,attentions", objective="loss")
    costs = {"b0.mlp": 0.0, "b1.attn": 0.5}

    def loss(sites):
        return 5.0 + 3.0 * ("b0.mlp" in sites) + 0.01 * len(sites)

    found = budget.run(session, judge_of(loss), Given(costs))
    assert "b0.mlp" not in map(str, found.plan.dropped)


def test_a_move_is_given_back_where_another_does_better():
    session = blank(params=0.8, kinds="ffns,attentions", objective="loss")

    def loss(sites):  # the first network is free until a second one goes
        both = "b0.mlp" in sites and len(sites) > 1
        return 5.0 + 2.0 * both + 0.5 * len(sites - {"b0.mlp"})

    sizes = budget.PlanSizes(session, {"params": 0.8})
    steps = budget.Steps(session, judge_of(loss), Given({"b0.mlp": 0.0}), sizes, 0.1)
    first, plan = Candidate("ffns", (Drop(Site(0, "mlp")),)), session.empty + Drop(Site(0, "mlp"))
    moves = (budget.Move("ffns", plan, (first,), 0.0),)
    while sizes.progress(moves[-1].plan) < 1:
        moves = steps.next(moves, moves[-1].plan)
    better = steps.swapped(moves)
    assert Site(0, "mlp") in moves[-1].plan.dropped
    assert Site(0, "mlp") not in better[-1].plan.dropped
    assert sizes.progress(better[-1].plan) >= 1
    assert Site(0, "mlp") not in budget.run(session, judge_of(loss), steps.readings).plan.dropped


def test_the_table_is_that_of_the_machine_and_predicts_what_parts_add_up_to():
    session = blank(latency=0.8)
    parts, timed = session.loaded.anatomy, Timed({}, half=0.7)
    assert (parts.num_blocks, parts.num_kv_heads, parts.d_ff) == (3, 6, 256), "as planted"
    table = budget.measured_table(parts, session.empty, timed.time)
    assert len(timed.timed) == 5
    found = (table.attention, table.network, table.block, table.half_of_groups, table.half_of_neurons)
    assert found == pytest.approx((0.12, 0.14, 0.28, 0.7, 0.7))
    draw = np.random.default_rng(0)
    units = (
        ("attn", "", 0),
        ("attn", "g", 1),
        ("attn", "g", 4),
        ("mlp", "", 0),
        ("mlp", "n", 7),
        ("", "", 0),
    )
    sites = [Site(block, *unit) for block in range(3) for unit in units]
    for _ in range(20):
        chosen = [sites[i] for i in draw.choice(len(sites), 5, replace=False)]
        kept = [site for site in chosen if not set(site.wholes) & set(chosen)]
        plan = Plan(session.empty.model, tuple(map(Drop, kept)))
        left = budget.time_left(table, shape_of(plan, parts, factorize=False), parts)
        assert left == pytest.approx(timed.time(plan))


def test_time_is_met_as_it_is_measured_not_as_it_was_predicted():
    """A table promises a half more than is saved in truth: the walk goes on until that is met."""
    session = blank(latency=0.8, kinds="ffns,attentions", objective="loss")

    def loss(sites):
        return 5.0 + 0.01 * len(sites)

    class Optimistic(Timed):
        def time(self, plan):
            self.real = 1.0 if len(self.timed) < 5 else 2 / 3
            return super().time(plan)

    timed = Optimistic({})
    found = budget.run(session, judge_of(loss), timed)
    record = found.analysis.budget.latency
    assert record.measured == pytest.approx(1 - 2 / 3 * timed.saved({str(s): s for s in found.plan.dropped}))
    assert record.measured <= 0.8
    assert record.corrections == pytest.approx([2 / 3])
    assert record.predicted == pytest.approx(record.measured)
    assert [point.latency for point in found.analysis.budget.points] == sorted(
        (point.latency for point in found.analysis.budget.points), reverse=True
    )
    fewer = sum(map(timed.saved, [{str(s): s} for s in found.plan.dropped])) - 0.14
    assert 1 - 2 / 3 * fewer > 0.8, "no more than is needed"


def test_a_machine_on_which_nothing_is_saved_is_told():
    with pytest.raises(SecateurError, match="Make sure that nothing else computes here"):
        budget.run(
            blank(latency=0.8, kinds="ffns", objective="loss"),
            judge_of(lambda sites: 5.0 + 0.01 * len(sites)),
            Slower({}),
        )


class Slower(Timed):
    """Parts save time, but whole plans do not."""

    def time(self, plan):
        return 1.01 if len(self.timed) >= 5 else super().time(plan)


def test_time_is_measured_and_remembered(place, tmp_path):
    """With the clock of this machine: what was measured is in the record, and not measured again after a kill."""
    asked = (
        "--latency",
        "95%",
        "--prompt",
        "24",
        "--new",
        "8",
        "--limit",
        "60",
        "--kinds",
        "ffns,attentions,blocks",
    )
    ran = prune(place, tmp_path / "out", *asked)
    if ran.exit_code:
        refused(ran, "Make sure that nothing else computes here")
        return
    record = read(tmp_path / "out", "analysis.json")["budget"]
    took = record["latency"]
    assert (took["prompt"], took["new"]) == (24, 8)
    assert 0 < took["measured"] < 1.5
    assert took["predicted"] <= 0.95
    assert all(0 <= share <= 1 for share in took["table"].values())
    assert (
        f"measured {took['measured']:.1%} on the whole model"
        in (tmp_path / "out" / "report.html").read_text()
    )
    again = prune(place, tmp_path / "out", *asked, "--overwrite")
    assert again.exit_code == 0, again.output
    assert read(tmp_path / "out", "analysis.json")["budget"] == record


def test_an_edit_takes_in_those_on_its_parts():
    plan = Plan("m", (Drop(Site(0, "mlp", "n", 3)), Truncate(Site(0, "q"), 2), Drop(Site(1, "attn"))))
    assert budget.joined(plan, (Drop(Site(0, "mlp")),)) == Plan(
        "m", (Truncate(Site(0, "q"), 2), Drop(Site(1, "attn")), Drop(Site(0, "mlp")))
    )
    assert budget.joined(plan, (Drop(Site(0)),)) == Plan("m", (Drop(Site(1, "attn")), Drop(Site(0))))
    assert budget.joined(Plan("m", (Drop(Site(0)),)), (Drop(Site(0, "attn")),)) is None
