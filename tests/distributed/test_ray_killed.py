"""`secateur prune --ray` from the outside, against the same command without it: the driver killed, a node leaving.

Each needs a cluster of its own, in processes of their own, so all are slow.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time

import pytest
from fixtures.killed import counting

pytest.importorskip("ray", reason="the extra `ray` is not installed")

pytestmark = pytest.mark.slow
WORDS = [
    "prune",
    "builtin:facts",
    "--task",
    "builtin:facts",
    "--matrices",
    "mlp",
    "--layers",
    "2",
    "--limit",
    "400",
    "-o",
    "out",
]
LEAVING = """
import os, signal, sys
from ray.cluster_utils import Cluster
awake = {"worker_niceness": 0}  # else the tests beside starve the workers
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": awake})
leaver = cluster.add_node(num_cpus=1)
sys.argv += ["--ray", cluster.address]
from secateur.core.ledger import Ledger
from secateur.distributed.pool import RayWorkers
record, compute, there, left = Ledger.record, RayWorkers.compute, [], []
def of_leaver(pid):
    with open(f"/proc/{pid}/environ", "rb") as file:
        return f"RAY_RAYLET_PID={leaver.all_processes['raylet'][0].process.pid}".encode() in file.read()
def when_all_are_there(self, context, work):
    while not there and any(handle.starting for handle in self._handles):
        self._wait({})
    if not there and sum(len(piece.plans) for piece in work) > 8:
        there.extend(filter(of_leaver, self.pids))
    return compute(self, context, work)
RayWorkers.compute = when_all_are_there
def watched(self, scope, plan, outcomes, *, seconds):
    record(self, scope, plan, outcomes, seconds=seconds)
    if there and not left:
        os.kill(there[0], signal.SIGKILL)  # a node that loses its power takes its worker along
        left.append(cluster.remove_node(leaver, allow_graceful=False))
Ledger.record = watched
"""


@pytest.fixture(scope="module")
def run(forks):
    """`run(folder, before, more)`: the command in `folder`, after the Python code `before`, with more words."""
    return lambda folder, before="", *more, words=WORDS: forks.run(folder, [*words, *more], before)


def judged(folder) -> list[tuple]:
    """Everything in a ledger, in an order of its own."""
    with sqlite3.connect(folder / "out.run/ledger.sqlite") as db:
        rows = db.execute(
            "SELECT name, identity, example, loss, correct, rank, predicted FROM outcomes "
            "JOIN trials ON trials.id = trial JOIN scopes ON scopes.id = scope JOIN plans ON plans.id = plan"
        ).fetchall()
    db.close()
    return sorted(rows, key=repr)


def edits(folder) -> object:
    return json.loads((folder / "out/plan.json").read_text())["edits"]


def counted(folder) -> int:
    return sum(map(int, (folder / "counted").read_text().split()))


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory):
    """What the command does without a cluster."""
    folder = tmp_path_factory.mktemp("alone")
    done = run(folder, counting())
    assert done.returncode == 0, done.stderr
    assert edits(folder)
    return folder


def same_end(folder, alone) -> None:
    assert edits(folder) == edits(alone)
    assert judged(folder) == judged(alone), "outcomes differ from those of one process"


def test_the_driver_killed_and_interrupted(run, alone, tmp_path):
    """SIGKILL, then Ctrl-C, then to the end without a cluster: the ledger goes on, and no process is left."""
    mark = {"SECATEUR_TEST": str(tmp_path)}
    marked = f"import os\nos.environ.update({mark!r})\n"
    assert run(tmp_path, marked + counting(9), "--ray", "local:2").returncode == -signal.SIGKILL
    assert counted(tmp_path) == len(judged(tmp_path))
    stopped = run(tmp_path, marked + counting(9, "SIGINT"), "--ray", "local:2")
    assert stopped.returncode == 130
    assert "What is done is kept" in stopped.stderr
    done = run(tmp_path, counting(), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "improves"
    assert counted(tmp_path) == len(judged(alone)), "an evaluation was computed twice"
    assert edits(tmp_path) == edits(alone)
    deadline = time.monotonic() + 60  # on a busy machine Ray took 27 s to be gone
    while (left := with_environment(mark)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, f"still there: {left}"


def with_environment(mark: dict[str, str]) -> list[str]:
    """Processes whose environment says that they belong to this test."""
    [(name, value)] = mark.items()
    wanted, found = f"{name}={value}".encode(), []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.append(pid)
        except OSError:
            continue
    return found


def test_a_node_that_leaves(run, alone, tmp_path):
    """Two nodes with one worker each; one of them is killed in the middle of the race."""
    done = run(tmp_path, LEAVING, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "improves", "Ray keeps its word to itself"
    assert "a worker was lost" in done.stderr
    same_end(tmp_path, alone)


@pytest.mark.parametrize(
    "more",
    [
        ["--method", "heads", "--max-loss", "0.05"],
        ["--method", "depth", "--blocks", "1", "--max-loss", "0.05"],
    ],
    ids=["heads", "depth"],
)
def test_other_methods_find_the_same(more, run, tmp_path):
    """Without a kill: what is removed step by step, and maps that are fitted on the way."""
    words = [*WORDS[:4], *more, "--limit", "300", "--allow-small", "-o", "out"]
    ends = []
    for name, ray in (("alone", []), ("together", ["--ray", "local:2"])):
        (tmp_path / name).mkdir()
        done = run(tmp_path / name, "", *ray, words=words)
        assert done.returncode == 0, done.stderr
        ends.append((edits(tmp_path / name), judged(tmp_path / name)))
    assert ends[0] == ends[1]
