"""Who may hold a model, how many there is room for, and what becomes of workers that start late, badly, or not at all.

One cluster of two CPUs serves the file; the workers here need no model, so they start in a second.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import pytest
import torch
from fixtures.zoo import tiny
from transformers import PreTrainedTokenizerFast

from secateur.core.plan import Plan, Truncate
from secateur.core.score import OUTCOME
from secateur.core.site import Site
from secateur.errors import ClusterError, ModelError
from secateur.evaluation.workers import EvaluationContext, Limits, Work
from secateur.hf.anatomy import anatomy
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import Loaded
from secateur.tasks.example import Task

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

from ray.cluster_utils import Cluster  # noqa: E402
from ray.exceptions import ObjectLostError  # noqa: E402

from secateur.distributed import pool as pools  # noqa: E402
from secateur.distributed.ask import Ask  # noqa: E402
from secateur.distributed.launch import on_ray  # noqa: E402

pytestmark = pytest.mark.filterwarnings(  # of Ray's own, about what it leaves open when it ends
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
QUESTION = EvaluationContext(Task("t", "generation", (), {}), {}, (), Limits())
LARGE = 10_000  # OUTCOME rows of a plan: above 100 kB, so Ray leaves them in the store of the worker's node


class Quick:
    """A worker without a model. Says which plan it was asked about, in as many rows as are asked."""

    def pid(self):
        return os.getpid()

    def load(self, shipped, device, threads):
        pass

    def judge(self, about, plans, fitted, examples):
        return [(found(plan, examples), 0.001) for plan in plans]


class Late(Quick):
    def load(self, shipped, device, threads):
        time.sleep(1.5)


class Unborn(Quick):
    def __init__(self):
        raise ImportError("No module named 'secateur'")


class Full(Quick):
    def load(self, shipped, device, threads):
        raise MemoryError("18 GiB, please")


class Holed(Quick):
    def load(self, shipped, device, threads):
        raise ModelError("no tensor that fits")


def found(plan, examples):
    rows = np.zeros(len(examples), dtype=OUTCOME)
    rows["example"] = examples
    rows["loss"] = next(iter(plan.edits)).rank
    return rows


@pytest.fixture(scope="module")
def loaded(words) -> Loaded:
    model = tiny("llama-tied-biased")
    return Loaded("zoo", model, words, anatomy(model), fingerprint(model), None, None)


@pytest.fixture(scope="module")
def cluster():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    awake = {"worker_niceness": 0}  # else the tests beside starve the workers
    head = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, "_system_config": awake}
    made = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def two_cpus(cluster) -> str:
    return cluster.address


def without_model(monkeypatch, worker) -> None:
    monkeypatch.setattr(pools, "Worker", worker)
    monkeypatch.setattr(pools.Shipped, "of", lambda loaded: "no model")


def hired(monkeypatch, loaded, worker, count=1, gpus=0):
    without_model(monkeypatch, worker)
    return pools.RayWorkers(loaded, count, cpus=0, gpus=gpus)


def compute(pool, loaded, ranks=4, examples=3):
    """Ranks as they come back, once it is seen that what came back is right."""
    plans = tuple(Plan(loaded.fingerprint, (Truncate(Site(1, "up"), rank),)) for rank in range(ranks))
    for plan, outcomes, _ in pool.compute(QUESTION, [Work(plans, tuple(range(examples)))]):
        [edit] = plan.edits
        assert set(outcomes["loss"]) == {edit.rank}
        assert len(outcomes) == examples
        yield edit.rank


def judged(pool, loaded) -> list[int]:
    return sorted(compute(pool, loaded))


# ------------------------------------------------------------------------------------------------ starting


@pytest.mark.slow
def test_loading_may_take_longer_than_patience(two_cpus, loaded, monkeypatch):
    """Patience is for a cluster without room; a large model travels for minutes."""
    with hired(monkeypatch, loaded, Late) as pool:
        ray.get(pool._handles[0].starting[0])  # it is there
        monkeypatch.setattr(pools, "PATIENCE", 0.3)
        begun = time.monotonic()
        assert judged(pool, loaded) == [0, 1, 2, 3]
        assert time.monotonic() - begun > 0.3, "it had the model too soon to show anything"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("worker", "why"),
    [
        pytest.param(Unborn, "No module named 'secateur'", id="unborn"),
        pytest.param(Full, "18 GiB, please", id="full"),
    ],
)
def test_workers_that_never_have_the_model_are_not_asked_for_again_and_again(
    worker, why, two_cpus, loaded, monkeypatch
):
    with (
        hired(monkeypatch, loaded, worker, 2) as pool,
        pytest.raises(
            ClusterError, match=f"3 workers failed before they had the model.*{why}.*Every node needs"
        ),
    ):
        judged(pool, loaded)
    assert pool._launched == 4, "two, and one in the place of each of two; the third death is the last"


@pytest.mark.slow
def test_a_model_that_is_not_whole_there_is_the_users_error(two_cpus, loaded, monkeypatch):
    with hired(monkeypatch, loaded, Holed) as pool, pytest.raises(ModelError, match=r"^no tensor that fits$"):
        judged(pool, loaded)


# ------------------------------------------------------------------------------------------------ which Ray


@pytest.mark.slow
@pytest.mark.parametrize("address", ["local:2", "127.0.0.1:{port}"])
def test_one_process_is_on_one_ray(address, two_cpus, loaded, monkeypatch):
    """Neither a second Ray here, nor another cluster than asked for."""
    monkeypatch.setattr("secateur.distributed.launch.knock", lambda address: None)
    asked = address.format(port=int(two_cpus.rpartition(":")[2]) + 1)
    with pytest.raises(
        ClusterError, match=rf"--ray {asked}: this process is on the Ray at {two_cpus} already"
    ):
        on_ray(asked)(loaded).__enter__()


@pytest.mark.slow
def test_the_ray_of_this_process_is_used_and_left_alone(two_cpus, loaded, monkeypatch):
    without_model(monkeypatch, Quick)
    for address in ("auto", two_cpus):
        with on_ray(address)(loaded) as pool:
            assert pool._count == 2
            assert judged(pool, loaded) == [0, 1, 2, 3]
    assert ray.is_initialized()


# ------------------------------------------------------------------------------------------------ room


def test_parts_of_processors_and_gpus():
    assert Ask(None, 0.1, 0).room_on({"CPU": 1.0}) == 10
    assert Ask(None, 1, 1 / 3).room_on({"CPU": 16.0, "GPU": 1.0}) == 3
    assert Ask(None, 1, 0.6).room_on({"CPU": 16.0, "GPU": 2.0}) == 2, (
        "1.2 GPUs are not two parts of 0.6 and 0.6 of 0.8"
    )
    assert Ask(None, 1, 2).room_on({"CPU": 16.0, "GPU": 5.0}) == 2


@pytest.mark.parametrize(
    ("workers", "gpus", "told"), [(2, 1, "0.5"), (6, 1, "0.16"), (6, 4, "0.5"), (3, 1, "0.33")]
)
def test_workers_that_share_a_gpu_are_told_how(workers, gpus, told, monkeypatch):
    """`local:2` with the model on the only GPU: each would take it whole."""
    here = {"CPU": float(workers), "GPU": float(gpus)}
    monkeypatch.setattr(pools.ray, "nodes", lambda: [{"Alive": True, "Resources": here}])
    monkeypatch.setattr(pools.ray, "cluster_resources", lambda: here)
    with pytest.raises(
        ClusterError, match=rf"here is room for {gpus}\. --gpus-per-worker {told} lets them share"
    ):
        pools._count(f"local:{workers}", Ask(workers, 1.0, 1.0))
    assert pools._count(f"local:{workers}", Ask(workers, 1.0, float(told))) == workers
    assert pools._count("auto", Ask(workers, 1.0, 1.0)) == workers, "a cluster may grow"


@pytest.mark.slow
def test_a_gpu_that_is_not_here(two_cpus):
    with pytest.raises(ClusterError, match=r"here is room for 0\. Ray finds no GPU on this machine"):
        pools._count("local:1", Ask(1, 1.0, 1.0))


# ------------------------------------------------------------------------------------------------ which models


def of(loaded, model=None, tokenizer=None) -> Loaded:
    rest = loaded.anatomy, loaded.fingerprint, None, None
    return Loaded("zoo", model or loaded.model, tokenizer or loaded.tokenizer, *rest)


def test_a_model_on_several_devices_is_refused(loaded):
    model = tiny("llama-tied-biased")
    model.model.layers[1].to(torch.device("meta"))
    with pytest.raises(ClusterError, match="lies on several devices"):
        on_ray("local:1")(of(loaded, model)).__enter__()
    pools._refuse(loaded)


def test_a_tokenizer_with_code_of_its_own_is_refused(loaded):
    theirs = type("Theirs", (PreTrainedTokenizerFast,), {"__module__": "transformers_modules.theirs"})
    tokenizer = theirs(tokenizer_object=loaded.tokenizer.backend_tokenizer)
    with pytest.raises(ClusterError, match="zoo brings code of its own"):
        on_ray("local:1")(of(loaded, tokenizer=tokenizer)).__enter__()


# ------------------------------------------------------------------------------------------------ results that are lost


@pytest.mark.slow
def test_results_on_a_node_that_leaves_are_computed_again(cluster, loaded, monkeypatch):
    """They were finished there and not fetched yet; Ray then speaks of objects, not of actors."""
    replace, errors = pools.RayWorkers._replace, []
    monkeypatch.setattr(
        pools.RayWorkers,
        "_replace",
        lambda self, hand, error: (errors.append(error), replace(self, hand, error)),
    )
    leaver = cluster.add_node(num_cpus=1, num_gpus=1)  # only there is room for this worker
    with hired(monkeypatch, loaded, Quick, gpus=1) as pool:
        came = compute(pool, loaded, ranks=6, examples=LARGE)
        seen = [next(came)]
        time.sleep(1)  # the next portion is finished meanwhile
        cluster.remove_node(leaver, allow_graceful=False)
        cluster.add_node(num_cpus=1, num_gpus=1)
        seen += came
    assert sorted(seen) == list(range(6)), "each once"
    assert isinstance(errors[0], ObjectLostError)
