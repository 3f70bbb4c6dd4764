"""Workers on a Ray cluster judge as this process does, to the bit; killed, they are replaced and nothing is lost.

One cluster of two workers serves the whole file, and they are really killed. What takes clusters of its own is in
`test_ray_killed.py`.
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.folders import secateur
from fixtures.zoo import tiny

from secateur.core.fitted import Fitted
from secateur.core.ledger import Ledger
from secateur.core.plan import Drop, Linearize, Plan, RemoveDirections, Truncate
from secateur.core.score import OUTCOME
from secateur.core.site import Site
from secateur.errors import ClusterError, PlanError
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.workers import EvaluationContext, Limits, work_on
from secateur.hf.anatomy import anatomy
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import Loaded
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Example, Task

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

from secateur.distributed import pool as pools  # noqa: E402
from secateur.distributed.ask import Ask  # noqa: E402
from secateur.distributed.launch import on_ray  # noqa: E402
from secateur.distributed.worker import Shipped, Worker  # noqa: E402

pytestmark = pytest.mark.filterwarnings(  # of Ray's own, about what it leaves open when it ends
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
SHARDS = Limits(cache_bytes=9000)


def some(seed: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(3, 96, count).tolist())


ENCODED = {
    number: Encoded(((some(number, 3 + number % 9), some(100 + number, 2)),), 0, (1,)) for number in range(24)
}
TASK = Task(
    "t", "generation", tuple(Example(f"e{i}", "", " w5") for i in ENCODED), {"select": tuple(ENCODED)}
)


@pytest.fixture(scope="module")
def loaded(words) -> Loaded:
    model = tiny("llama-tied-biased")
    return Loaded("zoo", model, words, anatomy(model), fingerprint(model), None, None)


@pytest.fixture(scope="module")
def pool(loaded):
    with on_ray("local:2")(loaded) as made:
        yield made


def plans_of(loaded: Loaded) -> list[Plan]:
    """Every kind of edit, some with arrays beside them, several to a block, and none at all."""
    draw = np.random.default_rng(0)
    size = loaded.anatomy.d_model
    linear = Fitted.of({"weight": draw.normal(size=(size, size)), "bias": draw.normal(size=size)})
    mean = Fitted.of({"mean": draw.normal(size=loaded.anatomy.matrix(Site(1, "down")).shape[1])})
    edits = [
        *(
            Truncate(Site(block, kind), rank)
            for block in range(3)
            for kind in ("q", "up")
            for rank in (0, 2, 5)
        ),
        *(Drop(Site.parse(name)) for name in ("b1", "b0.attn.h2", "b2.mlp", "b1.mlp.n3")),
        RemoveDirections(Site(1, "down"), (0, 3), fold=mean),
        *(Linearize((1,), form, linear) for form in ("linear", "fold")),
    ]
    whole = Plan(loaded.fingerprint)
    return [whole, *(whole + edit for edit in edits), whole + edits[0] + edits[-3]]


def bits(judged: dict[Plan, np.ndarray]) -> dict[Plan, bytes]:
    return {plan: outcomes.tobytes() for plan, outcomes in judged.items()}


def of_parameters(loaded: Loaded) -> list[bytes]:
    return [parameter.numpy().tobytes() for _, parameter in sorted(loaded.model.named_parameters())]


def test_outcomes_are_those_of_this_process_to_the_bit(pool, loaded):
    """Several shards, every kind of edit; only the driver holds a ledger."""
    plans, examples = plans_of(loaded), list(ENCODED)
    here = Evaluator(loaded, TASK, ENCODED, limits=SHARDS)(plans, examples)
    assert len({outcomes.tobytes() for outcomes in here.values()}) > len(plans) // 2, "edits change outcomes"
    seen = []
    there = Evaluator(
        loaded, TASK, ENCODED, limits=SHARDS, workers=pool, progress=lambda *said: seen.append(said)
    )(plans, examples)
    assert bits(there) == bits(here)
    total = len(plans) * len(examples)
    assert seen[-1] == ("judge", total, total)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


def test_workers_share_a_folder_of_spectra(pool, loaded, tmp_path):
    """From a question that has one onwards, whoever writes it; outcomes stay what they are."""
    plans, examples = plans_of(loaded), list(ENCODED)
    here = Evaluator(loaded, TASK, ENCODED, limits=SHARDS)(plans, examples)
    limits = replace(SHARDS, spectra=str(tmp_path / "spectra"))
    for _ in range(2):
        there = Evaluator(loaded, TASK, ENCODED, limits=limits, workers=pool)(plans, examples)
        assert bits(there) == bits(here)
        assert len(list((tmp_path / "spectra").glob("*.safetensors"))) == 7, (
            "q and up of three blocks, one down"
        )
        assert not list((tmp_path / "spectra").glob("*.part"))


def test_generation_and_banned_tokens_travel(pool, loaded):
    task = Task("said", "generation", TASK.examples, TASK.splits, max_new_tokens=3)
    plans = plans_of(loaded)[:6]
    for ban in ((), tuple(range(3, 40))):
        here, there = (
            Evaluator(loaded, task, ENCODED, ban=ban, workers=workers)(plans, list(ENCODED))
            for workers in (None, pool)
        )
        assert bits(there) == bits(here)


def test_the_ledger_is_asked_first_and_told_everything(pool, loaded, tmp_path):
    """A race goes on with some plans where it judged them on a few examples before."""
    plans, few, every = plans_of(loaded), list(ENCODED)[:8], list(ENCODED)
    judged = []
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        for scope, workers in (("here", None), ("there", pool)):
            judge = Evaluator(loaded, TASK, ENCODED, ledger=ledger, scope=scope, workers=workers)
            judge(plans[:5], few)
            assert judge.evaluated == ledger.evaluations(scope) == 5 * len(few)
            judged.append(judge(plans, every))
            assert judge.evaluated == ledger.evaluations(scope) == len(plans) * len(every)
            judge(plans, every)
            assert judge.evaluated == len(plans) * len(every), "nothing is judged twice"
    assert bits(judged[0]) == bits(judged[1])


def test_workers_yield_to_other_programs_no_more_than_this_process_does(pool):
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in pool.pids] == [own] * len(pool.pids)


def test_weights_lie_in_the_store_and_nobody_writes_there(pool, loaded):
    """Torch would write into Ray's read-only arrays without a word, and every other worker would see it."""
    shipped = Shipped.of(loaded)
    before = of_parameters(loaded)
    worker = Worker()
    worker.load(shipped, "cpu", 1)
    model = worker._loaded.model
    arrays = {name: ray.get(stored.ref) for name, stored in shipped.tensors.items()}
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == arrays[name].ctypes.data, f"{name} was copied"
    refs = {
        fitted.digest: ray.put(dict(fitted.arrays)) for plan in plans_of(loaded) for fitted in plan.fitted
    }
    question = ray.put(EvaluationContext(TASK, ENCODED, (), Limits()))
    bare = [pools._bare(plan) for plan in plans_of(loaded)]
    judged = worker.judge([question], bare, refs, tuple(ENCODED))
    assert len(judged) == len(bare)
    assert of_parameters(worker._loaded) == before
    for name, stored in shipped.tensors.items():
        wanted = loaded.model.state_dict(keep_vars=True).get(name)
        if wanted is not None:
            assert stored.read(ray.get(stored.ref)).equal(wanted)


def test_a_mask_on_shared_memory_leaves_it_alone(pool, loaded):
    """While an edit is on, not only after: another worker computes at the same time."""
    sent = ray.put(Shipped.of(loaded))
    one, other = Worker(), Worker()
    for worker in (one, other):
        worker.load(ray.get(sent), "cpu", 1)
    before = of_parameters(other._loaded)
    judge = one._judge_for(ray.put(EvaluationContext(TASK, ENCODED, (), Limits())))
    during = []
    forward = judge._forward.logits

    def watched(*args, **kwargs):
        during.append(of_parameters(one._loaded) != before and of_parameters(other._loaded) == before)
        return forward(*args, **kwargs)

    judge._forward.logits = watched
    list(judge.compute([plan for plan in plans_of(loaded) if plan.truncated], tuple(ENCODED)))
    assert during
    assert all(during)


@pytest.mark.slow
@pytest.mark.parametrize("victims", [1, 2])
def test_killed_workers_are_replaced_and_nothing_is_lost(victims, pool, loaded, caplog):
    """Once in the middle of a search, then all at once."""
    plans = [Plan(loaded.fingerprint, (Truncate(Site(b, k), r),)) for b in (1, 2) for k in ("q", "up", "down", "o")
             for r in range(12)]  # fmt: skip
    here = Evaluator(loaded, TASK, ENCODED)(plans, list(ENCODED))
    work = work_on(plans, [list(ENCODED)], loaded.anatomy.lowest_block)
    question = EvaluationContext(TASK, ENCODED, (), Limits())
    pids = pool.pids
    came: list[tuple[Plan, bytes]] = []
    for plan, outcomes, _ in pool.compute(question, work):
        order = {example: number for number, example in enumerate(outcomes["example"].tolist())}
        came.append((plan, outcomes[[order[e] for e in ENCODED]].tobytes()))
        if len(came) == 10:
            for pid in pids[:victims]:
                os.kill(pid, signal.SIGKILL)
    assert set(Counter(plan for plan, _ in came).values()) == {1}
    assert dict(came) == bits(here)
    assert "a worker was lost" in caplog.text
    assert not set(pids[:victims]) & set(pool.pids)


def test_what_a_worker_raises_is_the_users_error(pool, loaded):
    impossible = Plan(loaded.fingerprint, (Truncate(Site(0, "up"), 10_000),))
    with pytest.raises(PlanError, match="its rank is at most"):
        Evaluator(loaded, TASK, ENCODED, workers=pool)([impossible], list(ENCODED))
    whole = Plan(loaded.fingerprint)
    assert len(Evaluator(loaded, TASK, ENCODED, workers=pool)([whole], list(ENCODED))[whole]) == len(ENCODED)


class Mortal(Worker):
    """Dies over one plan."""

    def judge(self, about, plans, fitted, examples):
        if any("b2" in str(plan) and "rank 7" in str(plan) for plan in plans):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().judge(about, plans, fitted, examples)


@pytest.mark.slow
def test_a_plan_that_kills_every_worker_is_named_and_the_rest_is_kept(pool, loaded, tmp_path, monkeypatch):
    plans = [Plan(loaded.fingerprint, (Truncate(Site(b, "up"), rank),)) for b in (1, 2) for rank in range(12)]
    monkeypatch.setattr(pools, "Worker", Mortal)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    with (
        pools.RayWorkers(loaded, 1, cpus=0, gpus=0) as mortal,
        Ledger.open(tmp_path / "ledger.sqlite") as ledger,
    ):
        judge = Evaluator(loaded, TASK, ENCODED, ledger=ledger, scope="s", workers=mortal)
        with pytest.raises(
            ClusterError, match=r"3 workers died over “b2.up → rank 7”.*What was judged is kept"
        ):
            judge(plans, list(ENCODED))
        kept = ledger.evaluations("s")
        assert kept == judge.evaluated >= 12 * len(ENCODED)
        known = np.concatenate([ledger.known("s", plan, list(ENCODED)) for plan in plans])
    assert len(known) == kept
    assert known.dtype == OUTCOME


class Choosy(Worker):
    """The first to come gets the model; where the others are something is missing, which they find once `end` is."""

    place: str
    end: str

    def load(self, shipped, device, threads):
        try:
            Path(self.place).touch(exist_ok=False)
        except FileExistsError:
            while not Path(self.end).exists():
                time.sleep(0.05)
            raise
        super().load(shipped, device, threads)


@pytest.mark.slow
def test_a_node_where_no_worker_can_begin_is_given_up_and_the_others_go_on(
    pool, loaded, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(pools, "DEATHS", 2)  # each costs the start of a process
    places = {name: str(tmp_path / name) for name in ("place", "end")}
    monkeypatch.setattr(pools, "Worker", type("Choosy", (Choosy,), places))
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    plans = plans_of(loaded)
    here = Evaluator(loaded, TASK, ENCODED, limits=SHARDS)(plans, list(ENCODED))
    with pools.RayWorkers(loaded, 2, cpus=0, gpus=0) as half:
        for _ in range(3):
            there = Evaluator(loaded, TASK, ENCODED, limits=SHARDS, workers=half)(plans, list(ENCODED))
            assert bits(there) == bits(here)
            Path(places["end"]).touch()  # the first has the model now
        while len(half._handles) > 1:
            half._wait({})
        assert half._launched == 1 + pools.DEATHS
    assert "could not begin" in caplog.text
    assert "Going on with 1" in caplog.text


def test_nobody_left_is_said(pool, loaded, monkeypatch):
    """The cluster has two CPUs, and both are taken."""
    monkeypatch.setattr(pools, "PATIENCE", 0.5)
    with (
        pools.RayWorkers(loaded, 1, cpus=2, gpus=0) as hopeless,
        pytest.raises(ClusterError, match=r"no worker for 0.5 s.*the same command goes on"),
    ):
        Evaluator(loaded, TASK, ENCODED, workers=hopeless)([Plan(loaded.fingerprint)], list(ENCODED))


# ------------------------------------------------------------------------------------------------ what can be told


def test_workers_that_fit_on_a_node():
    assert Ask(None, 1, 0).room_on({"CPU": 7.0}) == 7
    assert Ask(None, 2, 0.5).room_on({"CPU": 16.0, "GPU": 2.0}) == 4
    assert Ask(None, 8, 0.5).room_on({"CPU": 16.0, "GPU": 2.0}) == 2
    assert Ask(None, 1, 1).room_on({"CPU": 16.0}) == 0
    assert Ask(None, 0.5, 0).room_on({"CPU": 1.0}) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ray", "local:0"], "write local:N"),
        (["--ray", "local:many"], "write local:N"),
        (["--ray", "local:2", "--workers", "3"], "says how many workers"),
        (["--ray", "ray://head:10001"], "run it on a node of the cluster"),
        (["--ray", "somewhere"], "write auto, HOST:PORT"),
        (["--ray", "127.0.0.1:1"], "nobody answers there"),
        (["--ray", "auto", "--workers", "0"], "--workers 0: give a whole number from 1"),
        (["--ray", "auto", "--cpus-per-worker", "0"], "--cpus-per-worker 0.0: give a number above 0"),
        (["--ray", "auto", "--gpus-per-worker", "-1"], "--gpus-per-worker -1.0: give a number from 0"),
        (["--ray", "local:1", "--cpus-per-worker", "5000"], "--cpus-per-worker 5000: this machine has"),
        (["--workers", "2"], "are for --ray"),
        (["--gpus-per-worker", "0.5"], "are for --ray"),
    ],
)
def test_what_cannot_be_asked_is_said_before_a_model_is_read(words, message, tmp_path):
    told = secateur("prune", "nowhere/at-all", "--task", "t", "-o", tmp_path / "out", *words)
    assert told.exit_code == 2
    assert message in " ".join(told.output.split())


def test_more_workers_than_the_machine_has_cpus_is_said(caplog):
    on_ray("local:5000")
    assert "5000 workers of 1 CPUs share" in caplog.text


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "--ray auto (127.0.0.1:1): nobody answers there"),
        ("[::1]:1", "--ray auto ([::1]:1): nobody answers there"),
        ("ray://head:10001", "run it on a node of the cluster"),
        ("rubbish", "--ray auto (rubbish): write auto, HOST:PORT"),
        ("", "there is no cluster on this machine"),
    ],
)
def test_what_auto_finds_is_told_at_once(address, message, tmp_path, monkeypatch):
    def nothing(_):
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr("secateur.distributed.ask.canonicalize_bootstrap_address", nothing)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # nor is a cluster of another test meant
    told = secateur("prune", "nowhere/at-all", "--task", "t", "-o", tmp_path / "out", "--ray", "auto")
    assert told.exit_code == 2
    assert message in " ".join(told.output.split())


def test_without_ray_it_is_said_how_to_get_it(tmp_path):
    code = "import sys; sys.modules['ray'] = None; from secateur.cli import main; main()"
    words = [
        "prune",
        "builtin:facts",
        "--task",
        "builtin:facts",
        "-o",
        str(tmp_path / "out"),
        "--ray",
        "local:1",
    ]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "secateur: --ray needs Ray, which is not installed: pip install 'secateur[ray]'"
    )


def test_a_model_that_is_not_whole_is_not_shipped_in_silence(pool, loaded):
    shipped = Shipped.of(loaded)
    broken = copy.copy(shipped)
    object.__setattr__(broken, "tensors", dict(list(shipped.tensors.items())[1:]))
    with pytest.raises(Exception, match="no tensor that fits"):
        broken.load("cpu")
