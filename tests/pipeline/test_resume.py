"""`kill -9` anywhere, the same command again: it goes on, judges nothing twice, and ends as if nothing had happened.

The commands run in processes of their own (`fixtures/forked.py`). A process kills itself with SIGKILL at the moment
under test: nothing of ours gets to clean up.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from fixtures.folders import questions, save_model, secateur, write_rows
from fixtures.killed import counting
from fixtures.zoo import tiny

from secateur.core.ledger import Ledger
from secateur.hf.fingerprint import config_digest
from secateur.methods.registry import read_options
from secateur.session import open_session

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
DYING = """
import os, signal
import PLACE as place
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
place.NAME = die
"""
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


@pytest.fixture(scope="module")
def run(forks):
    """`run(folder, before)`: the command in `folder`, after the Python code `before`."""

    def job(folder, before="", words=WORDS):
        write_side(folder)
        return forks.run(folder, words, before)

    return job


def write_side(folder):
    row = {"prompt": "Ada lives in", "answer": " Rome", "choices": [" Rome", " Oslo"]}
    write_rows(folder / "side.jsonl", [row | {"id": str(number)} for number in range(2)])


def dying(place, name):
    return DYING.replace("PLACE", place).replace("NAME", name)


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory):
    """What the command makes when nobody kills it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(folder, counting())
    assert done.returncode == 0, done.stderr
    return folder


def judged(folder):
    """Every judged (scope, plan, example) with its numbers."""
    with sqlite3.connect(folder / "out.run/ledger.sqlite") as db:
        rows = db.execute(
            "SELECT scopes.name, plans.identity, example, loss, correct, correct_norm, rank, predicted, tokens "
            "FROM outcomes JOIN trials ON trials.id = trial JOIN plans ON plans.id = plan "
            "JOIN scopes ON scopes.id = scope ORDER BY 1, 2, 3"
        ).fetchall()
    db.close()
    return rows


def told(folder, name):
    """A record without what tells the time."""
    record = json.loads((folder / "out" / name).read_text())
    record.pop("seconds", None)
    record.get("provenance", {}).pop("created", None)
    return record


def same_end(folder, undisturbed):
    assert told(folder, "plan.json") == told(undisturbed, "plan.json")
    assert told(folder, "verdict.json") == told(undisturbed, "verdict.json")
    assert told(folder, "analysis.json") == told(undisturbed, "analysis.json")
    weights = "out/model.safetensors"
    assert (folder / weights).read_bytes() == (undisturbed / weights).read_bytes()
    assert judged(folder) == judged(undisturbed)
    assert sorted(path.name for path in (folder / "out.run").iterdir()) == ["ledger.sqlite", "lock"]
    with Ledger.open(folder / "out.run/ledger.sqlite", create=False) as ledger:
        assert {run.status for run in ledger.runs()} == {told(folder, "verdict.json")["verdict"]}


def calls(folder):
    """How many evaluations each call of the evaluator brought to the ledger, over all processes."""
    return [int(line) for line in (folder / "counted").read_text().split()]


def test_the_search_found_something(undisturbed):
    """Else the tests below would compare nothing with nothing."""
    assert told(undisturbed, "plan.json")["edits"]
    assert told(undisturbed, "verdict.json")["verdict"] == "improves"
    assert sum(calls(undisturbed)) == len(judged(undisturbed)), "an evaluation was computed twice"


SLOW = pytest.mark.slow


@pytest.mark.parametrize("share", [0.5, *(pytest.param(share, marks=SLOW) for share in (0.0, 0.2, 0.8, 1.0))])
def test_killed_while_judging(share, run, undisturbed, tmp_path):
    """From the first evaluation through race and composition to the last one of the verdict."""
    death = 1 + round(share * (len(calls(undisturbed)) - 1))
    assert run(tmp_path, counting(death)).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len(calls(tmp_path)) == death
    done = run(tmp_path, counting())
    assert done.returncode == 0, done.stderr
    assert sum(calls(tmp_path)) == len(judged(undisturbed)), "an evaluation was computed twice"
    assert "goes on with" in done.stdout + done.stderr
    same_end(tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        pytest.param("secateur.methods.laser.readings", "truncation_effects", marks=SLOW),
        pytest.param("secateur.methods.laser.search", "compose", marks=SLOW),
        pytest.param("secateur.checkpoint.save", "save", marks=SLOW),
        pytest.param("secateur.checkpoint.save", "assert_same", marks=SLOW),
        ("secateur.proof", "decide"),
        pytest.param("secateur.proof", "write_run_report", marks=SLOW),
        pytest.param("secateur.checkpoint.folder", "flush", marks=SLOW),
    ],
)
def test_killed_between(place, name, run, undisturbed, tmp_path):
    """Before screening, composing, saving; after reading back; before the verdict, the report, the rename."""
    assert run(tmp_path, counting() + dying(place, name)).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    done = run(tmp_path, counting())
    assert done.returncode == 0, done.stderr
    assert sum(calls(tmp_path)) == len(judged(undisturbed)), "an evaluation was computed twice"
    same_end(tmp_path, undisturbed)


@SLOW
def test_killed_again_and_again(run, undisturbed, tmp_path):
    deaths = 0
    while run(tmp_path, counting(20)).returncode == -signal.SIGKILL:
        deaths += 1
    assert deaths == len(calls(undisturbed)) // 20 > 1
    assert sum(calls(tmp_path)) == len(judged(undisturbed))
    same_end(tmp_path, undisturbed)


DIRECTIONS = [
    "prune", "builtin:recall", "--task", "builtin:recall", "--side", "side.jsonl", "--method", "directions",
    "--matrices", "up", "--layers", "1", "--limit", "200", "--allow-small", "-o", "out",
]  # fmt: skip
READING = """
from secateur.methods.directions import readings as effects
read = effects.directions_effects
def noted(*args, **kwargs):
    open("read", "a").write(kwargs["under"].identity + chr(10))
    return read(*args, **kwargs)
effects.directions_effects = noted
"""


@pytest.fixture(scope="module")
def directed(run, tmp_path_factory):
    """What `--method directions` makes when nobody kills it."""
    folder = tmp_path_factory.mktemp("directed")
    done = run(folder, counting() + READING, DIRECTIONS)
    assert done.returncode == 0, done.stderr
    assert told(folder, "plan.json")["edits"]
    return folder


@pytest.mark.parametrize("share", [0.6, *(pytest.param(share, marks=SLOW) for share in (0.0, 0.3, 1.0))])
def test_directions_killed_while_judging(share, run, directed, tmp_path):
    """Nothing is judged twice, no effect is read twice, and the folds are the same to the byte."""
    death = 1 + round(share * (len(calls(directed)) - 1))
    assert run(tmp_path, counting(death) + READING, DIRECTIONS).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    done = run(tmp_path, counting() + READING, DIRECTIONS)
    assert done.returncode == 0, done.stderr
    assert sum(calls(tmp_path)) == len(judged(directed)), "an evaluation was computed twice"
    readings = (tmp_path / "read").read_text().split()
    assert sorted(readings) == sorted(set(readings)), "effects were read twice under one plan"
    assert set(readings) == set((directed / "read").read_text().split())
    same_end(tmp_path, directed)
    tensors = [
        {f.name: f.read_bytes() for f in (folder / "out/tensors").iterdir()}
        for folder in (tmp_path, directed)
    ]
    assert tensors[0] == tensors[1] != {}


def test_killed_between_the_two_renames_of_an_overwrite(run, undisturbed, tmp_path):
    """For an instant neither the old nor the new result is at OUT; the next command puts the old one back."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    second = (
        "import os, signal\nrename, seen = os.rename, []\n"
        "def mortal(*names):\n"
        "    seen.append(names)\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if len(seen) == 2 else rename(*names)\n"
        "os.rename = mortal\n"
    )
    assert run(tmp_path, second, [*WORDS, "--overwrite"]).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "already holds the result" in done.stdout + done.stderr
    same_end(tmp_path, undisturbed)


@SLOW
def test_a_killed_process_holds_no_lock_and_its_staging_is_not_mistaken(run, undisturbed, tmp_path):
    """What lies in staging from a killed process is never published, whatever it is."""
    assert run(tmp_path, dying("secateur.checkpoint.folder", "flush")).returncode == -signal.SIGKILL
    staging = tmp_path / "out.run/staging"
    (staging / "model.safetensors").write_bytes(b"half")
    (staging / "stranger").write_text("")
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out/stranger").exists()
    same_end(tmp_path, undisturbed)


@SLOW
def test_a_fresh_process_with_another_hash_seed_writes_the_same_ledger(undisturbed, tmp_path):
    command = [sys.executable, "-c", "from secateur.cli import main; main()", *WORDS]
    environment = ENVIRONMENT | {"PYTHONHASHSEED": "12345"}
    write_side(tmp_path)
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    same_end(tmp_path, undisturbed)


@SLOW
def test_killed_from_outside_at_no_particular_moment(run, forks, undisturbed, tmp_path):
    """By another process, some time after its ledger has appeared."""
    write_side(tmp_path)
    child = forks.start(tmp_path, WORDS)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out.run/ledger.sqlite").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.15)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    same_end(tmp_path, undisturbed)


# --------------------------------------------------------------------------------- what outcomes may be shared


@pytest.fixture
def scope_of(words, tmp_path):
    """The scope of a small choice task on a model; with a tokenizer of one's own if wanted."""
    task = write_rows(tmp_path / "q.jsonl", questions())

    def scope(model, tokenizer=words, name="m", **options):
        folder = save_model(tmp_path / name, model, tokenizer)
        return open_session(read_options(str(folder), str(task), **options), None).scope

    return scope


def test_equal_weights_under_another_config_share_nothing(scope_of):
    """Rope base, norm epsilon, generation config: each changes what the same weights compute."""
    plain = scope_of(tiny("llama"))
    rotated, scaled, told = tiny("llama"), tiny("llama"), tiny("llama")
    rotated.config.rope_parameters = {"rope_type": "default", "rope_theta": 777.0}
    scaled.config.rms_norm_eps = 1e-3
    told.generation_config.repetition_penalty = 1.5
    scopes = [plain, *(scope_of(model) for model in (rotated, scaled, told))]
    assert len(set(scopes)) == 4


def test_names_and_versions_share_everything(scope_of):
    plain = scope_of(tiny("llama"))
    renamed = tiny("llama")
    renamed.config._name_or_path = "somewhere/else"
    renamed.config.transformers_version = "4.0.0"
    assert scope_of(renamed, name="elsewhere") == plain
    assert config_digest(renamed) == config_digest(tiny("llama"))


def test_another_tokenizer_or_precision_shares_nothing(scope_of, words):

    plain = scope_of(tiny("llama"))
    other = copy.deepcopy(words)
    other.add_tokens(["w3 w4"])  # some prompts are now read as other tokens
    state = json.loads(other.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    vocab["w5"], vocab["w6"] = vocab["w6"], vocab["w5"]
    other._tokenizer = type(other.backend_tokenizer).from_str(json.dumps(state))
    assert scope_of(tiny("llama"), other) != plain
    assert scope_of(tiny("llama"), dtype="float64") != plain


@SLOW
def test_the_screen_is_remembered_for_its_own_objective_only(words, tmp_path):
    """One ledger, two objectives: accuracy screens by the contrast of the choices, loss by the answer alone."""
    folder = save_model(tmp_path / "m", tiny("llama"), words)
    task = write_rows(tmp_path / "q.jsonl", questions())
    common = [
        "prune",
        folder,
        "--task",
        task,
        "--matrices",
        "down",
        "--layers",
        "1",
        "--no-compose",
        "--side",
        task,
    ]
    for name, more in {"a": [], "b": ["--objective", "loss"]}.items():
        shared = ["--ledger", tmp_path / "shared.sqlite"]
        assert secateur(*common, *more, *shared, "-o", tmp_path / name).exit_code == 0
        assert secateur(*common, *more, "-o", tmp_path / f"{name}-alone").exit_code == 0
        screens = [
            json.loads((tmp_path / out / "analysis.json").read_text())["screen"]
            for out in (name, f"{name}-alone")
        ]
        assert screens[0] == screens[1]
