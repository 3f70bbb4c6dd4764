"""What a prune is said to take, against what it took: counts to the number, FLOPs against hooks on real modules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fixtures.zoo import ZOO

import secateur
from secateur.core.plan import Truncate
from secateur.errors import ModelError, SecateurError
from secateur.evaluation.activation_cache import find_unchanged
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.forward import Forward
from secateur.forecast.count import RERUN, Counted
from secateur.forecast.dry_run import Judged, Plans, dry_run
from secateur.forecast.load import Load, Loads, places_of
from secateur.forecast.record import Machine, expected_seconds, measured_here, paced, svd_flops
from secateur.gains.cost import cost
from secateur.hf.anatomy import anatomy
from secateur.hf.load import Loaded, load_model
from secateur.methods.forecasting import CASES
from secateur.methods.registry import read_options
from secateur.session import early_session, open_session

FACTS = ("builtin:facts", "builtin:facts")


def stages(record: dict, case: str, key: str) -> dict[str, float]:
    return {row["stage"]: row["counts"][case].get(key, 0) for row in record["stages"]}


@pytest.fixture(scope="module")
def session():
    return open_session(read_options(*FACTS), None)


def counted(session) -> Counted:
    width = session.loaded.anatomy.d_model * session.loaded.model.dtype.itemsize
    loads = Loads(places_of(session, {}), session.judge().packing, width)
    return Counted(session.loaded.anatomy, loads, 2**30)


# --------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gptj", "bloom", "falcon-40b", "qwen3"])
def test_flops_of_a_forward_are_those_that_hooks_count(name):
    model = ZOO[name]()
    loaded = Loaded(name, model, None, anatomy(model), "x", None, None)
    tokens = torch.randint(96, (3, 11))
    found = cost(loaded, tokens)
    load = Load(1, tokens.numel(), 3 * 11 * 12 // 2, kept=tokens.numel(), examples=3, shards=1)
    count = Counted(loaded.anatomy, Loads({}, None, 1), 0)
    head = 2 * loaded.anatomy.vocab_size * loaded.anatomy.d_model * 3  # at the last position of each row
    blocks = sum(count._block(block, load) for block in range(loaded.anatomy.num_blocks))
    assert blocks + head == found.prefill_flops


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "bloom", "phi3"])
def test_what_runs_again_is_what_the_evaluator_finds_by_tracing(name):
    """In families whose feed-forward network follows attention; where they lie side by side less runs."""
    model = ZOO[name]()
    parts = anatomy(model)
    own = {s.part: m.module for s, m in parts.matrices.items() if s.block == 1}
    forward = Forward(model, parts)
    for kind, module in own.items():
        traced = find_unchanged(forward, model, parts.blocks[1], (module,))
        still = {
            part
            for part, path in own.items()
            if any(path == kept or path.startswith(kept + ".") for kept in (*traced.live, *traced.dead))
        }
        again = {
            part
            for part, path in own.items()
            if path in {own[p] for p in RERUN[kind] & own.keys()} | {module}
        }
        assert again == own.keys() - still, kind


def test_a_pass_is_counted_shard_by_shard_as_the_evaluator_cuts_it(session, monkeypatch):
    monkeypatch.setattr("secateur.forecast.load.CACHE_BYTES", 50_000)
    limits = type(session.judge().limits)(cache_bytes=50_000)
    examples = session.task.split("select")
    judge = session.judge()
    judge.limits = limits
    theirs = list(judge.compute([session.empty], examples))
    width = session.loaded.anatomy.d_model * 4
    counted = Loads(places_of(session, {}), session.judge().packing, width).of("select", 0, len(examples))
    assert counted.shards == len(theirs) > 3


def test_a_side_may_be_called_as_a_split_is(session):
    """`--side text:test.txt`: what it takes is not what `test` takes."""
    side = session.on(session.task)
    places = places_of(session, {"side 0": side})
    assert places["test"].examples == list(session.task.split("test"))
    assert len(places["side 0"].examples) == len(session.task.examples)


def test_calls_of_the_model_are_counted_to_the_number(session):
    site = next(s for s in session.loaded.anatomy.matrices if str(s) == "b1.down")
    examples = session.shuffled("select")[:50]
    calls = []
    judge = session.judge()
    hook = session.loaded.model.register_forward_hook(lambda *_: calls.append(1))
    list(judge.compute([session.empty + Truncate(site, rank) for rank in (1, 2, 3)], examples))
    hook.remove()
    work = Judged("race", "select", 0, 50, (Plans(3, 1, (site,), 2.0),))
    traces = 2  # of what the edit leaves alone, two tokens long
    assert counted(session).judged(work)["call"] == len(calls) - traces


def evaluations(case: str, stage: str, **options: object) -> float:
    """Return the (plan, example) pairs that a stage of a search is counted to ask."""
    works = dry_run(early_session(read_options(*FACTS, **options)), case, {})
    return sum(work.evaluations for work in works if isinstance(work, Judged) and work.stage == stage)


def test_a_race_lies_between_its_bounds_and_an_exhaustive_one_has_none():
    """At the least all but the leader go at the first 32 examples, at the most half of the plans in each round."""
    small = {"matrices": ("down",), "compose": False}
    n = len(early_session(read_options(*FACTS)).task.split("select"))
    every = 36  # ranks of 3 blocks, all of which the screen keeps; the model itself is judged on all examples
    least, expected, most = (evaluations(case, "race", **small) for case in CASES)
    assert least == n + every * 32
    # of 37 plans 19, 10 and 5 go on, all of which better the model
    assert least < expected <= most == n + every * 32 + 19 * 32 + 10 * 64 + 5 * (n - 128)
    assert evaluations("least", "race", exhaustive=True, **small) == (1 + 36) * n


def test_a_dry_run_composes_as_often_as_is_stated():
    """Never at the least; as expected one cut is added and then none; at the most every matrix is cut."""
    least, expected, most = (evaluations(case, "compose") for case in CASES)
    assert 0 == least < expected < most


def test_a_dry_run_of_a_search_that_decides_nothing_asks_what_the_search_asks(tmp_path: Path):
    """Plan by plan: the same judge is asked the same, with outcomes that are drawn."""
    options = {"method": "depth", "by": "cosine", "form": "drop", "blocks": 2, "limit": 260}
    works = dry_run(early_session(read_options(*FACTS, **options)), "most", {})
    dry = sum(work.evaluations for work in works if isinstance(work, Judged) and work.place == "select")
    found = secateur.prune(*FACTS, tmp_path / "out", **options).verdict
    assert dry == found["evaluations"]


def test_spectra_without_room_are_decomposed_in_every_round(session):
    site = next(iter(session.loaded.anatomy.matrices))
    work = Judged("race", "select", 0, 40, (Plans(5, 0, (site,), 1.0),), decomposes=True)
    for room, expected in ((2**30, 1), (0, 2)):
        count = counted(session)
        count.spectra_bytes = room
        rounds = [count.judged(work), count.judged(work)]
        assert sum(v for one in rounds for name, v in one.items() if name.startswith("svd")) == expected


# ---------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize(
    "options",
    [
        {"exhaustive": True, "compose": False, "layers": (2, 3), "matrices": ("down",)},
        pytest.param({"method": "ffns", "random_orders": 0}, marks=pytest.mark.slow),
        pytest.param({"method": "depth", "by": "loss", "form": "drop"}, marks=pytest.mark.slow),
    ],
)
def test_evaluations_of_a_prune_that_decides_nothing_as_it_goes(options, tmp_path: Path):
    told = secateur.plan_cost(*FACTS, calibrate=False, limit=260, **options)
    found = secateur.prune(*FACTS, tmp_path / "out", limit=260, **options).verdict
    searched = {"race", "prune", "choose", "analyze"}
    record = {row["stage"]: row["counts"] for row in told["stages"]}
    most = sum(own["most"].get("plans", 0) for name, own in record.items() if name in searched)
    assert found["candidates_tried"] <= most
    if options.get("exhaustive"):
        assert record["race"]["expected"]["evaluations"] == found["evaluations"]


def test_a_measured_prediction_has_seconds_in_order(session):
    told = secateur.plan_cost(*FACTS, layers=(2, 3), matrices=("down",), limit=260)
    least, expected, most = (told["total"]["counts"][case]["seconds"] for case in CASES)
    assert 0 < least <= expected <= most
    assert json.loads(json.dumps(told)) == told


def test_a_machine_at_the_pace_of_a_pass_takes_as_long_for_it(session):
    """Give FLOPs the time that overheads leave, and a share of it where they alone would take longer."""
    anatomy = session.loaded.anatomy
    look = {"plan": 1, "example": 64, "call": 2, "block": 6, "flop": 1e12, "logit": 1e6, "packed": 100}
    machine = paced(anatomy, 4, (), look, seconds=100.0, svd_flop=1e-9)
    assert machine.time(look) == pytest.approx(100.0, rel=1e-9)
    seconds = 2 * machine.time({**look, "flop": 0.0, "logit": 0.0})  # half of it overheads
    assert paced(anatomy, 4, (), look, seconds, 1e-9).time(look) == pytest.approx(seconds, rel=0.05)
    assert machine.time({"svd 4x2": 1}) == pytest.approx(1e-9 * svd_flops("svd 4x2"))
    fast = paced(anatomy, 4, (), look, seconds=1e-4, svd_flop=1e-9)
    assert 0 < fast.each("flop") < machine.each("flop")


def test_a_pass_that_ran_already_is_not_run_again(session, monkeypatch):
    """Give it the seconds that it took, at the pace of which all others are expected."""
    monkeypatch.setattr(Evaluator, "compute", None)
    whole = Judged("one", "select", 0, len(session.task.split("select")), (Plans(1, 0),))
    amounts = counted(session).judged(whole)
    assert measured_here(session, counted(session), (), 100.0).time(amounts) == pytest.approx(100.0, rel=1e-6)
    seconds = expected_seconds(session, 100.0)
    assert list(seconds) == ["screen", "race", "analyze", "compose", "verify"]
    assert all(5 * one < expected_seconds(session, 1000.0)[stage] for stage, one in seconds.items())


def test_a_shape_that_was_not_measured_takes_as_long_for_each_flop():
    machine = Machine({"svd 8x8": 1.0, "svd flop": 2.0}, ())
    assert machine.time({"svd 8x8": 3}) == 3.0
    assert machine.time({"svd 4x2": 1}) == 2.0 * svd_flops("svd 4x2") == 2.0 * (6 * 4 * 4 + 20 * 8)


# ------------------------------------------------------------------------------------------------- machines elsewhere


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    config = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 32000}
    heads = {"num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 4096}
    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config | heads | kind), encoding="utf-8")
    return tmp_path


def test_a_config_alone_is_enough(shape: Path):
    there = {"tflops": 989.0, "bandwidth": 3350.0, "memory": 80.0}
    found = {
        devices: secateur.plan_cost(
            str(shape), "builtin:facts", method="heads", layers=(76, 80), devices=devices, **there
        )
        for devices in (3, 8)
    }
    assert found[8]["parameters"] == 68_976_648_192
    assert found[8]["bytes"]["weights"] == 2 * 68_976_648_192
    assert (found[3]["workers"], found[8]["workers"]) == (1, 2)
    alone, shared = (stages(found[devices], "expected", "seconds")["verify"] for devices in (3, 8))
    assert shared < alone
    assert any("no tokenizer" in said for said in found[8]["assumptions"])
    with pytest.raises(ModelError):
        load_model(str(shape))


def test_too_little_memory_is_said(shape: Path):
    with pytest.raises(SecateurError, match=r"138 GB of weights.*need 17 devices of 10 GB"):
        secateur.plan_cost(str(shape), "builtin:facts", tflops=9.0, bandwidth=9.0, memory=10.0, devices=8)


@pytest.mark.parametrize(
    "given", [{"tflops": 1.0}, {"devices": 0}, {"utilization": 2.0, "tflops": 1.0, "bandwidth": 1.0}]
)
def test_machines_that_are_none_are_refused(given):
    with pytest.raises(SecateurError, match=r"--devices|--tflops|--utilization"):
        secateur.plan_cost(*FACTS, **given)
