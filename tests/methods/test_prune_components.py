"""`prune --method heads|ffns|components` from end to end, on small models: what is found, how far it goes, what is said
of it, and what is never looked at. Parts that were planted to do nothing go first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.folders import contents, questions, save_model, secateur, write_rows
from fixtures.marks import slow_but
from fixtures.zoo import tiny, variant
from transformers import AutoModelForCausalLM

import secateur as api
from secateur.core.ledger import Ledger
from secateur.core.plan import Drop
from secateur.core.site import Site
from secateur.errors import SecateurError
from secateur.evaluation.evaluator import Evaluator
from secateur.methods.components import search as components
from secateur.methods.components.readings import RemovalReader
from secateur.methods.registry import read_options
from secateur.session import Session, open_session
from secateur.surgery.operations import columns_of
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Example, Task

COMMON = ("--allow-small", "--limit", "120", "--random-orders", "1", "--report", "full", "--quiet")
SLOW = pytest.mark.slow
FAR = ("--max-loss", "1")  # of a share: whatever it costs


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """Grouped, multi-head and fixed-size models, a task, another to watch, and text, in the words of the zoo."""
    place = tmp_path_factory.mktemp("components")
    models = {
        "llama": tiny("llama"),  # 2 KV groups of 2 query heads in each of 2 blocks
        "eight": variant("llama", num_attention_heads=8, num_key_value_heads=8, head_dim=4),
        "gpt2": tiny("gpt2"),
    }
    for name, model in models.items():
        save_model(place / name, model, words)
    write_rows(place / "q.jsonl", questions())
    write_rows(place / "side.jsonl", questions(40, seed=1))
    draw = np.random.default_rng(0)
    lines = [" ".join(f"w{t}" for t in draw.integers(3, 90, 40)) for _ in range(120)]
    (place / "words.txt").write_text("\n\n".join(lines), encoding="utf-8")
    return place


def command(place, model, out, *more, task="q.jsonl"):
    """`model` is a name in `place`, or the folder of another."""
    file = f"text:{place / task}" if task.endswith(".txt") else place / task
    return ["prune", place / model, "--task", file, "--side", place / "side.jsonl", "-o", out, *COMMON, *more]


@pytest.fixture(scope="module")
def prune(place, tmp_path_factory):
    """Runs the command, which must succeed, and gives what it wrote; the same again only if `fresh`."""
    known = {}

    def run(model, *more, task="q.jsonl", fresh=False):
        if fresh or (model, more, task) not in known:
            out = tmp_path_factory.mktemp("run") / "out"
            done = secateur(*command(place, model, out, *more, task=task))
            assert done.exit_code == 0, done.stderr + str(done.exception)
            known[model, more, task] = Records(out, done)
        return known[model, more, task]

    return run


class Records:
    """What a run wrote."""

    def __init__(self, out: Path, done) -> None:
        self.out, self.done = out, done
        self.plan, self.verdict, self.analysis = (
            json.loads((out / f"{name}.json").read_text()) for name in ("plan", "verdict", "analysis")
        )
        self.pruning = self.analysis["pruning"]

    @property
    def dropped(self) -> list[Site]:
        return [Site.parse(edit["site"]) for edit in self.plan["edits"]]

    def series(self, order: str) -> list[dict]:
        return next(one["points"] for one in self.pruning["series"] if one["order"] == order)

    @property
    def point(self) -> dict:
        chosen = self.pruning["chosen"]
        return self.series(chosen["order"])[chosen["point"]]


# ------------------------------------------------------------------------------------------------------ planted truth


def session_on(as_loaded, model, method: str, **options) -> Session:
    """A task whose gold answers are the model's own, so that what it has, it needs, unless it was planted."""
    prompts = np.random.default_rng(5).integers(3, 96, (300, 8)).tolist()
    with torch.no_grad():
        gold = model(torch.tensor(prompts)).logits[:, -1].argmax(-1).tolist()
    encoded = {
        i: Encoded(((tuple(p), (g,)),), 0, (1,)) for i, (p, g) in enumerate(zip(prompts, gold, strict=True))
    }
    examples = tuple(Example(f"p{i}", "", f"w{g}") for i, g in enumerate(gold))
    splits = {"probe": range(60), "select": range(60, 180), "test": range(180, 300)}
    task = Task("planted", "generation", examples, {k: tuple(v) for k, v in splits.items()})
    given = read_options("zoo", "planted", method=method, random_orders=1, report="full", **options)
    return Session(given, as_loaded(model), task, encoded, None)


def silence_(model, loaded, *sites: str) -> None:
    """Zero what these heads, groups or whole parts add to the stream, biases included where the whole part goes."""
    for site in map(Site.parse, sites):
        matrix = loaded.anatomy.matrix(Site(site.block, "o" if site.part == "attn" else "down"))
        weight = model.get_parameter(matrix.weight)
        dense = matrix.read(weight).clone()
        if site.unit:
            columns = columns_of(site, loaded.anatomy)
            dense[:, columns.start : columns.stop] = 0
        else:
            dense[:] = 0
            if matrix.bias is not None:
                model.get_parameter(matrix.bias).zero_()
        matrix.write_(weight, dense)


def found_after(as_loaded, family: str, method: str, *silent: str, side: Path, **options):
    model = tiny(family)
    silence_(model, as_loaded(model), *silent)
    return components.search(session_on(as_loaded, model, method, side=(str(side),), **options))


@pytest.mark.parametrize(
    "family",
    [
        "llama-tied-biased",
        *(pytest.param(f, marks=SLOW) for f in ("gpt2", "opt", "bloom", "phi", "gpt-neox")),
    ],
)
def test_heads_that_do_nothing_go_first_and_cost_nothing(family, as_loaded, place):
    found = found_after(
        as_loaded, family, "heads", "b0.attn.h2", "b1.attn.h0", side=place / "side.jsonl", max_loss=0.0
    )
    assert {Site.parse("b0.attn.h2"), Site.parse("b1.attn.h0")} <= set(found.plan.dropped)
    heads = 12 if family == "llama-tied-biased" else 8
    points = found.analysis.pruning.series[0].points
    gone = [point for point in points if 0 < point.heads_removed <= 2 / heads]
    assert gone
    assert all(point.value == points[0].value == 1.0 for point in gone)


def test_a_useless_group_goes_before_any_other(as_loaded, place):
    found = found_after(
        as_loaded, "llama", "heads", "b1.attn.g0", side=place / "side.jsonl", step=0.25, target=0.25
    )
    assert found.plan.dropped == (Site.parse("b1.attn.g0"),)


@pytest.mark.parametrize(
    "family",
    slow_but(["gemma2"], ["gpt2-untied-wide", "opt", "gpt-neox-serial", "llama-tied-biased", "gemma2"]),
)
def test_a_dead_network_goes_first(family, as_loaded, place):
    found = found_after(
        as_loaded, family, "ffns", "b1.mlp", side=place / "side.jsonl", step=0.05, max_loss=0.0
    )
    assert Site.parse("b1.mlp") in found.plan.dropped
    first = found.analysis.pruning.series[0].points[1]
    assert first.value == 1.0, "another one went first"


def test_a_block_that_adds_nothing_loses_all_its_parts_and_no_other_does(as_loaded, place):
    found = found_after(
        as_loaded,
        "gpt2-untied-wide",
        "components",
        *("b1.attn", "b1.mlp"),
        side=place / "side.jsonl",
        step=1 / 3,
        target=1 / 3,
    )
    assert {*map(str, found.plan.dropped)} == {*(f"b1.attn.h{h}" for h in range(4)), "b1.mlp"}
    point = found.analysis.pruning.chosen.point
    assert found.analysis.pruning.series[0].points[point].value == 1.0


# ----------------------------------------------------------------------------------------------------------- how far


@pytest.mark.parametrize(
    ("model", "method", "heads", "ffns"),
    [
        pytest.param("eight", "heads", 8, 0, marks=SLOW),
        ("gpt2", "components", 4, 1),
        pytest.param("gpt2", "ffns", 0, 1, marks=SLOW),
        pytest.param("llama", "heads", 4, 0, marks=SLOW),
    ],
)
def test_a_target_of_half_removes_half_of_each_kind(model, method, heads, ffns, prune):
    run = prune(model, "--method", method, "--target", "50%")
    count = Counter(site.part for site in run.dropped)
    groups = heads // 2 if model == "llama" else heads  # which leave whole
    assert (count["attn"], count["mlp"]) == (groups, ffns)
    assert run.point["heads_removed"] == (0.5 if heads else 0.0)
    assert run.point["ffns_removed"] == (0.5 if ffns else 0.0)
    assert (run.pruning["target"], run.pruning["max_loss"]) == (0.5, None)
    assert run.verdict["non_inferiority"]["margin"] == 0.02


def test_a_grouped_model_goes_by_groups_and_says_so(prune):
    """40 % of 8 query heads in groups of 2 is 2 of 4 groups."""
    run = prune("llama", "--method", "heads", "--target", "40%")
    assert [site.unit for site in run.dropped] == ["g", "g"]
    assert run.point["heads_removed"] == 0.5
    assert run.pruning["unit"] == "KV group"
    assert run.pruning["snapped"] == "whole KV groups of 2 query heads"
    assert "Shares are snapped to whole KV groups of 2 query heads." in (run.out / "report.html").read_text()
    assert run.verdict["cut_summary"] == "2 of 4 KV groups"


@pytest.mark.slow
def test_a_rounded_target_is_said_at_once(prune, caplog):
    prune("llama", "--method", "heads", "--target", "40%", fresh=True)
    assert "--target 40% is rounded to whole KV groups of 2 query heads." in caplog.messages
    caplog.clear()
    prune("gpt2", "--method", "heads", "--target", "40%", fresh=True)
    assert not any("--target" in message for message in caplog.messages)


def test_parameters_are_brought_down_to_the_fraction_and_no_further(prune):
    run = prune("eight", "--method", "components", "--params", "0.8")
    kept = [point["parameters"] for point in run.series("re-scored")]
    chosen = run.pruning["chosen"]["point"]
    assert kept[chosen] <= 0.8 < kept[chosen - 1]
    sizes = run.verdict["parameters"]
    assert sizes["after"] / sizes["before"] == pytest.approx(run.point["parameters"])
    model = AutoModelForCausalLM.from_pretrained(run.out, trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == sizes["after"]


@pytest.mark.parametrize(
    ("bound", "objective"),
    [
        pytest.param(0.0, "accuracy", marks=SLOW),
        pytest.param(0.1, "accuracy", marks=SLOW),
        (0.05, "loss"),
    ],
)
def test_the_loss_on_select_is_within_the_bound_and_further_points_are_not(bound, objective, prune):
    run = prune("gpt2", "--method", "heads", "--max-loss", bound, "--objective", objective)
    points, chosen = run.series("re-scored"), run.pruning["chosen"]["point"]
    sign = 1 if objective == "accuracy" else -1
    lost = [sign * (points[0]["value"] - point["value"]) for point in points]
    assert lost[chosen] <= bound + 1e-9
    assert all(loss > bound for loss in lost[chosen + 1 :])
    if chosen:
        margin = run.verdict["non_inferiority"]
        assert margin["margin"] == bound
        assert margin["unit"] == ("share" if objective == "accuracy" else "nats/token")
        assert margin["shown"] == (margin["bound"] > -bound)
        said = run.verdict["verdict"]
        assert said.startswith("not worse by more than") <= margin["shown"]
        assert said in ("improves", "worse", "no difference shown") or margin["shown"]
    else:
        assert run.verdict["non_inferiority"] is None
        assert run.verdict["cut"] == []


def test_the_word_is_not_worse_where_the_bound_holds_by_far(prune):
    """Half of everything may be lost, so 36 answers more or less cannot matter."""
    run = prune("gpt2", "--method", "ffns", "--target", "50%", "--max-loss", "0.5")
    assert run.verdict["verdict"] == "not worse by more than 50.0 points"
    assert run.verdict["non_inferiority"]["shown"]
    assert run.verdict["verdict"] in run.done.stdout


def test_only_the_layers_asked_for(prune):
    run = prune("gpt2", "--method", "components", "--layers", "1", "--target", "100%")
    assert {str(site) for site in run.dropped} == {"b1.mlp", *(f"b1.attn.h{h}" for h in range(4))}


# --------------------------------------------------------------------------------------------------- orders and curves


@pytest.mark.slow
def test_ranks_once_are_chosen_from_on_request(place, prune):
    """By what the whole model does without each head alone."""
    run = prune("eight", "--method", "heads", "--ranks-once", "--target", "50%")
    assert run.pruning["chosen"] == {"order": "ranks once", "point": 5}
    options = {"method": "heads", "allow_small": True, "limit": 120}
    session = open_session(read_options(str(place / "eight"), str(place / "q.jsonl"), **options), None)
    heads = [Site(block, "attn", "h", head) for block in range(2) for head in range(8)]
    alone = {head: session.empty + Drop(head) for head in heads}
    judged = session.judge()(list(alone.values()), session.task.split("probe"))
    order = sorted(heads, key=lambda head: session.objective.key(judged[alone[head]]), reverse=True)
    assert set(run.dropped) == set(order[:8])


def test_voting_combines_readings_and_is_measured_beside_one(place, prune):
    run = prune("eight", "--method", "heads", "--vote", "3", "--target", "50%")
    record, out = run.pruning, run.out
    assert [series["order"] for series in record["series"]][:2] == ["voted", "re-scored"]
    assert record["chosen"]["order"] == "voted"
    vote, point = record["vote"], record["chosen"]["point"]
    assert vote["readings"] == 3
    assert vote["voted"] == record["series"][0]["points"][point]["value"]
    assert vote["single"] in [one["value"] for one in record["series"][1]["points"]]
    assert vote["difference"] == pytest.approx(vote["voted"] - vote["single"])
    assert vote["ci"][0] <= vote["difference"] <= vote["ci"][1]
    page = (out / "report.html").read_text()
    assert "Ranks were those of 3 readings together" in page


def test_places_are_the_means_of_those_in_each_piece(place, monkeypatch):
    """Against ranks that are taken here, piece by piece, from the loss without each network."""
    options = read_options(
        str(place / "eight"),
        str(place / "q.jsonl"),
        method="ffns",
        vote=2,
        allow_small=True,
        device="cpu",
        limit=120,
    )
    session = open_session(options, None)
    evaluator = session.judge()
    found = RemovalReader(session, evaluator).importance(session.empty, "ffns", vote=2)
    places: dict[Site, list[int]] = {}
    for piece in (session.probed[0::2], session.probed[1::2]):
        losses = {}
        for site in (Site(0, "mlp"), Site(1, "mlp")):
            plan = session.empty + Drop(site)
            losses[site] = evaluator([plan], piece)[plan]["loss"].mean()
        for number, site in enumerate(sorted(losses, key=losses.get)):
            places.setdefault(site, []).append(number)
    assert found == {site: sum(numbers) / 2 for site, numbers in places.items()}


def test_more_readings_than_examples_are_refused(place, tmp_path):
    ran = secateur(*command(place, "llama", tmp_path / "out", "--method", "heads", "--vote", "30"))
    assert ran.exit_code == 2
    assert "--vote 30: the calibration split has" in ran.output


def test_no_random_order_on_request(prune):
    run = prune("gpt2", "--method", "heads", "--random-orders", "0", *FAR)
    assert [one["order"] for one in run.pruning["series"]] == ["re-scored", "ranks once"]


def test_curves_end_where_everything_is_gone_and_say_what_evaluate_says(place, prune):
    run = prune("gpt2", "--method", "heads", "--target", "50%")
    for one in run.pruning["series"]:
        assert [one["points"][end]["heads_removed"] for end in (0, -1)] == [0.0, 1.0]
    ends = [one["points"][-1]["value"] for one in run.pruning["series"]]
    assert len(set(ends)) == 1
    options = {"allow_small": True, "limit": 120}
    for plan, point in ((None, run.series("random")[0]), (run.out, run.point)):
        scores = api.evaluate(str(place / "gpt2"), str(place / "q.jsonl"), plan=plan, **options)["scores"]
        values = {score["metric"]: score["value"] for score in scores}
        assert point["value"] == pytest.approx(values["accuracy"])
        assert point["loss"] == pytest.approx(values["loss"], rel=1e-5)


def test_shares_of_behavior_that_are_left_are_those_of_the_heads_that_are_left(prune):
    run = prune("eight", "--method", "heads", "--target", "50%")
    gone = {str(site) for site in run.dropped}
    for name in ("prefix_matching", "copying"):
        scores = run.analysis["components"][name]
        left = sum(value for site, value in scores.items() if site not in gone)
        assert run.point[name] == pytest.approx(left / sum(scores.values()))
        assert run.series("re-scored")[0][name] == pytest.approx(1.0)


def test_side_curves_are_of_the_sides_alone(place, prune):
    run = prune("gpt2", "--method", "heads", "--target", "50%")
    for one in run.pruning["series"]:
        for point in one["points"]:
            assert set(point["sides"]) == ({"side"} if one["seed"] is None else set())
    whole, cut = (point["sides"]["side"] for point in (run.series("re-scored")[0], run.point))
    effect = next(e for e in run.verdict["side_effects"] if "side" in e["name"])
    assert (effect["before"]["value"], effect["after"]["value"]) == pytest.approx((whole, cut))
    assert run.pruning["side_units"] == {"side": "share"}


def test_nothing_of_test_is_judged_before_the_verdict(place, prune, monkeypatch):
    """Of the pruned task; a side is another task, all of which is watched."""
    asked: list[tuple[str, str, set[int], Task]] = []
    judge = Evaluator.__call__

    def spied(self, plans, examples, stage="judge"):
        asked.append((self.task.name, stage, set(examples), self.task))
        return judge(self, plans, examples, stage)

    monkeypatch.setattr(Evaluator, "__call__", spied)
    prune("gpt2", "--method", "components", *FAR, fresh=True)
    opened = next(number for number, (_, stage, _, _) in enumerate(asked) if stage == "verify")
    before = [(examples, task) for name, _, examples, task in asked[:opened] if name == "q"]
    assert len(before) > 20
    assert not any(examples & set(task.split("test")) for examples, task in before)
    assert {stage for name, stage, _, _ in asked[:opened] if name != "q"} == {"side effects"}


def test_a_text_task(prune):
    run = prune("eight", "--method", "heads", "--max-loss", "0.05", "--seqlen", "20", task="words.txt")
    assert (run.pruning["metric"], run.pruning["metric_unit"]) == ("text_loss", "nats/token")
    assert run.dropped, "random text is no worse without a random head"
    assert run.verdict["non_inferiority"]["unit"] == "nats/token"
    assert run.verdict["non_inferiority"]["margin"] == 0.05
    assert run.point["value"] - run.series("re-scored")[0]["value"] <= 0.05


# ---------------------------------------------------------------------------------------------------- what is written


def test_portable_gives_a_stock_checkpoint_of_equal_blocks(prune):
    run = prune("llama", "--method", "components", "--target", "50%", "--portable")
    assert run.verdict["loads"]["form"] == "stock"
    gone = Counter((site.block, site.unit) for site in run.dropped)
    assert gone == {(0, "g"): 1, (1, "g"): 1, (0, "n"): 20, (1, "n"): 20}
    model = AutoModelForCausalLM.from_pretrained(run.out)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 1)
    assert (model.config.intermediate_size, model.config.head_dim) == (20, 8)
    assert sum(p.numel() for p in model.parameters()) == run.verdict["parameters"]["after"]
    assert run.pruning["snapped"] == "whole KV groups of 2 query heads, the same number in every block"


def test_portable_never_takes_the_last_one_of_a_block(prune):
    run = prune("llama", "--method", "components", "--target", "100%", "--portable")
    gone = Counter((site.block, site.unit) for site in run.dropped)
    assert gone == {(0, "g"): 1, (1, "g"): 1, (0, "n"): 39, (1, "n"): 39}
    assert AutoModelForCausalLM.from_pretrained(run.out).config.intermediate_size == 1


@pytest.mark.slow
def test_zeroed_has_the_shapes_of_the_original_and_saves_nothing(prune):
    run = prune("gpt2", "--method", "components", "--target", "50%", "--zeroed")
    assert run.verdict["loads"]["form"] == "zeroed"
    assert run.verdict["gains"]["parameters"]["before"] == run.verdict["gains"]["parameters"]["after"]
    kept = run.verdict["gains"]["kv_bytes_per_token"]
    assert kept["before"] == kept["after"]
    zeroed = run.verdict["gains"]["zeroed"]
    assert (zeroed["heads"], zeroed["ffns"]) == (4, 1)
    assert type(AutoModelForCausalLM.from_pretrained(run.out)).__name__ == "GPT2LMHeadModel"


def test_what_is_cut_is_saved(prune):
    run = prune("eight", "--method", "heads", "--target", "50%")
    assert run.verdict["loads"]["form"] in ("carved", "stock")
    head = 4 * 32 * 4  # q, k, v and o of a head of 4 in a stream of 32
    sizes = run.verdict["gains"]["parameters"]
    assert sizes["before"] - sizes["after"] == 8 * head
    cache = run.verdict["gains"]["kv_bytes_per_token"]
    assert cache == {"before": 2 * 8 * 2 * 4 * 4, "after": 8 * 2 * 4 * 4}
    loaded = api.load(str(run.out))
    assert sum(own.num_heads for own in loaded.anatomy.widths) == 8


@pytest.mark.slow
def test_its_own_result_can_be_pruned_again(place, prune, tmp_path):
    """Where blocks differ by then: shares are of what is left."""
    first = prune("eight", "--method", "heads", "--layers", "1", "--target", "50%").out
    again = secateur(*command(place, first, tmp_path / "again", "--method", "heads", "--target", "25%"))
    assert again.exit_code == 0, again.stderr + str(again.exception)
    left = api.load(str(tmp_path / "again")).anatomy.widths
    assert sum(own.num_heads for own in left) == 9
    refused = secateur(*command(place, first, tmp_path / "no", "--method", "heads", "--portable"))
    assert refused.exit_code == 2
    assert "shapes of its own already" in refused.stderr


# ------------------------------------------------------------------------------------------------------------- resume


def judged(out: Path) -> int:
    with Ledger.open(out.with_name(f"{out.name}.run") / "ledger.sqlite", create=False) as ledger:
        return ledger._db.execute("SELECT count(*) FROM outcomes").fetchone()[0]


def told(out: Path, name: str) -> dict:
    """A record without what tells the time."""
    record = json.loads((out / name).read_text())
    record.pop("seconds", None)
    record.get("provenance", {}).pop("created", None)
    return record


RESUMED = ("--method", "components", "--target", "50%")


@pytest.mark.parametrize("share", [0.5, *(pytest.param(share, marks=SLOW) for share in (0.02, 0.98))])
def test_interrupted_and_run_again_it_ends_as_if_never_interrupted(
    share, place, prune, tmp_path, monkeypatch
):
    record, calls, death = Ledger.record, [], [None]

    def counted(self, scope, plan, outcomes, *, seconds):
        record(self, scope, plan, outcomes, seconds=seconds)
        calls.append(len(outcomes))
        if len(calls) == death[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "record", counted)
    whole = prune("gpt2", *RESUMED, fresh=True)
    undisturbed, death[0] = list(calls), 1 + round(share * (len(calls) - 1))
    calls.clear()
    words = command(place, "gpt2", tmp_path / "out", *RESUMED)
    interrupted = secateur(*words)
    assert (interrupted.exit_code, len(calls)) == (130, death[0])
    assert not (tmp_path / "out").exists()
    death[0] = None
    assert secateur(*words).exit_code == 0
    assert sum(calls) == sum(undisturbed) == judged(whole.out), "an evaluation was computed twice"
    for name in ("plan.json", "verdict.json", "analysis.json"):
        assert told(tmp_path / "out", name) == told(whole.out, name)


def in_a_process(words: list[str], **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from secateur.cli import main; main()", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


@SLOW
def test_the_same_seed_gives_the_same_plan_in_another_process(place, prune, tmp_path):
    here = prune("eight", *RESUMED)
    words = [str(word) for word in command(place, "eight", tmp_path / "there", *RESUMED)]
    assert in_a_process(words, PYTHONHASHSEED="12345").returncode == 0
    for name in ("plan.json", "verdict.json", "analysis.json"):
        assert told(tmp_path / "there", name) == told(here.out, name)


# ------------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--method", "heads", "--target", "x"], "--target 'x': write a share, such as 70% or 0.7."),
        (["--method", "heads", "--target", "0"], "--target 0.0: give a number from 0.0001 to 1"),
        (["--method", "heads", "--target", "150%"], "--target 1.5: give a number from"),
        (["--method", "heads", "--step", "0"], "--step 0.0: give a number from"),
        (["--method", "heads", "--step", "-10%"], "--step -0.1: give a number from"),
        (["--method", "heads", "--max-loss", "-0.1"], "--max-loss -0.1: give a number, 0 or more"),
        (["--method", "heads", "--max-loss", "nan"], "--max-loss nan: give a number, 0 or more"),
        (["--method", "heads", "--params", "1.2"], "--params 1.2: give a number above 0 and below 1"),
        (["--method", "heads", "--params", "0.01"], "--params 0.01: without any of these parts"),
        (["--method", "heads", "--layers", "7"], "layers 7:8 are not in this model"),
        (["--method", "headz"], "unknown method 'headz'. Did you mean heads? `secateur prune --help` says"),
        (["--method", "heads", "--portable"], "fixes the size of a head by their number"),
        (["--method", "components", "--portable"], "Take --method ffns"),
        (["--method", "ffns", "--portable", "--layers", "1"], "cannot be joined with --layers"),
        (
            ["--target", "70%"],
            "--target 70% is not for --method laser, but for directions, heads, ffns, components or experts.",
        ),
        (["--ranks-once"], "--ranks-once is not for --method laser"),
        (
            ["--method", "ffns", "--exhaustive"],
            "--exhaustive is not for --method ffns, but for laser or directions.",
        ),
        (["--method", "ffns", "--grid", "paper"], "--grid paper is not for --method ffns, but for laser."),
        (["--method", "heads", "--objective", "text_loss"], "--objective text_loss does not exist"),
    ],
)
def test_bad_values_are_one_line_and_exit_code_2(given, said, place, tmp_path):
    done = secateur(*command(place, "gpt2", tmp_path / "out", *given))
    assert done.exit_code == 2, done.exception
    assert done.stderr.startswith("secateur: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_that_it_names_is_the_same_command(place, prune):
    """Every option of the method in it, none at its default; typed again it is recognized."""
    given = [
        "--method",
        "components",
        "--target",
        "70%",
        "--max-loss",
        "0.5",
        "--params",
        "0.5",
        "--step",
        "30%",
    ]
    run = prune("eight", *given, "--ranks-once", "--zeroed")
    typed = run.verdict["command"].split()
    expected = ["--method components", "--target 0.7", "--max-loss 0.5", "--params 0.5", "--step 0.3"]
    for words in (*expected, "--ranks-once", "--random-orders 1", "--zeroed"):
        assert f" {words}" in run.verdict["command"]
    assert typed == run.plan["provenance"]["command_line"].split()
    again = secateur(*typed[1:], "-o", run.out)
    assert again.exit_code == 0, again.stderr
    assert "already holds the result of this command" in again.stdout


def test_json_is_the_verdict_and_nothing_else(prune):
    run = prune("gpt2", "--method", "heads", "--target", "25%", "--json")
    printed = json.loads(run.done.stdout)
    assert printed.pop("out") == str(run.out)
    assert printed.pop("already") is False
    assert printed == run.verdict
    assert [cut["kind"] for cut in printed["cut"]] == ["drop", "drop"]


def test_what_the_terminal_says(prune):
    run = prune("eight", "--method", "components", "--target", "50%")
    shown = " ".join(run.done.stdout.split())
    assert "out: 8 of 16 heads, 1 of 2 feed-forward networks" in shown
    assert "size before after" in shown
    before, after = (run.verdict["parameters"][when] for when in ("before", "after"))
    assert f"parameters {before:,} {after:,}" in shown
    assert "loads by AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)" in shown
    assert run.verdict["sentence"].split(";")[0] in shown


def test_python_raises_what_the_command_says(place, tmp_path):
    with pytest.raises(SecateurError, match=r"--target 7\.0: give a number"):
        api.prune(
            str(place / "gpt2"), str(place / "q.jsonl"), tmp_path / "o", method="heads", target=7.0,
            allow_small=True, limit=120,
        )  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- apply


def test_apply_of_a_head_by_hand(place, tmp_path):
    done = secateur("apply", place / "gpt2", "--edit", "b0.attn.h1=drop", "-o", tmp_path / "cut")
    assert done.exit_code == 0, done.stderr
    assert "b0.attn without head 1" in done.stdout
    plan = json.loads((tmp_path / "cut/plan.json").read_text())
    assert plan["edits"] == [{"kind": "drop", "site": "b0.attn.h1"}]
    assert plan["provenance"]["loads"]["form"] == "carved"
    widths = api.load(str(tmp_path / "cut")).anatomy.widths
    assert [own.num_heads for own in widths] == [3, 4]


def test_a_dry_run_tells_all_and_writes_nothing(place, tmp_path):
    before = contents(place)
    words = ["apply", place / "llama", "--edit", "b0.attn.g1=drop", "--dry-run"]
    told = json.loads(secateur(*words, "--json").stdout)
    group = 32 * 8 * (2 + 1 + 1 + 2)
    assert told["parameters"]["before"] - told["parameters"]["after"] == group
    assert told["cut_summary"] == "1 of 4 KV groups"
    assert told["loads"]["form"] == "carved"
    shown = secateur(*words, "-o", tmp_path / "cut").stdout
    assert "because blocks have different numbers of heads" in shown
    assert "✗ vLLM" in shown
    assert "--portable" not in shown  # half a group of each block is none
    assert f"{told['parameters']['after']:,}" in shown
    words[3:3] = ["b0.mlp.n3=drop", "--edit", "b0.mlp.n5=drop", "--edit"]
    shown = secateur(*words).stdout
    assert (
        "The nearest plan of a stock checkpoint (--portable): b0.mlp without neuron 5; b1.mlp without"
        in shown
    )
    assert contents(place) == before
    assert list(tmp_path.iterdir()) == []


def test_apply_portable_writes_the_nearest_plan(place, tmp_path):
    edits = [word for g in ("b0.attn.g1", "b1.mlp.n3", "b1.mlp.n4") for word in ("--edit", f"{g}=drop")]
    edits += ["--edit", "b1.attn.g0=drop"]
    done = secateur("apply", place / "llama", *edits, "--portable", "-o", tmp_path / "cut")
    assert done.exit_code == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert (model.config.num_key_value_heads, model.config.intermediate_size) == (1, 39)


def test_apply_needs_a_place_or_a_dry_run(place):
    done = secateur("apply", place / "gpt2", "--edit", "b0.mlp=drop")
    assert done.exit_code == 2
    assert "where to? Give -o OUT, or --dry-run to write nothing." in done.stderr


# ------------------------------------------------------------------------------------------------------ embedded model


@SLOW
def test_the_recall_model_keeps_copying_without_most_of_what_it_can_lose(tmp_path):
    """On a trained model: heads go, and the side that they carry is shown falling at the end of the curve."""
    words = [
        "prune",
        "builtin:recall",
        "--task",
        "builtin:recall",
        "--method",
        "heads",
        "--report",
        "full",
        "-o",
        tmp_path / "out",
    ]
    done = secateur(*words, "--quiet")
    assert done.exit_code == 0, done.stderr
    run = Records(tmp_path / "out", done)
    assert len(run.dropped) >= 2
    assert run.verdict["verdict"] in ("improves", "not worse by more than 2.0 points")
    copying = [point["sides"]["plain copying"] for point in run.series("re-scored")]
    assert copying[0] > 0.95
    assert copying[-1] < 0.2
    rescored, random = (
        np.mean([point["loss"] for point in run.series(order)[1:-1]]) for order in ("re-scored", "random")
    )
    assert rescored < random
