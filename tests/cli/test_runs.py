"""`runs` and `show`: what every verb left, who is at work, and who was stopped, which the lock tells."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import time
from contextlib import contextmanager

import pytest
from fixtures.folders import contents, done_in, questions, save_model, secateur, write_rows
from fixtures.zoo import tiny

from secateur.checkpoint.folder import Folder
from secateur.core.ledger import Ledger


@pytest.fixture(scope="module")
def made(tmp_path_factory, words):
    """What each verb leaves, in the current folder and one below."""
    place = tmp_path_factory.mktemp("made")
    save_model(place / "m", tiny("llama"), words)
    write_rows(place / "q.jsonl", questions())
    (place / "t.txt").write_text("w5 w6 w7 " * 500)
    small = ["--task", "q.jsonl", "--side", "q.jsonl", "--layers", "1"]
    size = [
        "--steps",
        "2",
        "--layers",
        "1",
        "--d-model",
        "8",
        "--heads",
        "2",
        "--seqlen",
        "16",
        "--context",
        "16",
    ]
    return done_in(
        place,
        ["prune", "m", *small, "--matrices", "down", "-o", "pruned"],
        ["prune", "m", *small, "--matrices", "v", "--ledger", "shared.sqlite", "-o", "sub/shared"],
        ["apply", "m", "--edit", "b1=drop", "-o", "sub/cut"],
        ["finetune", "m", "--task", "q.jsonl", "--max-steps", "1", "-o", "tuned"],
        ["heal", "sub/cut", "--task", "q.jsonl", "--max-steps", "1", "--stage", "end", "-o", "healed"],
        ["train", "text:t.txt", "--tokenizer", "m", *size, "-o", "plain"],
    )


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    place = shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(place)
    return place


def listed(*where):
    told = secateur("runs", *where, "--json")
    assert told.exit_code == 0, told.stderr
    return {run["run"]: run for run in json.loads(told.stdout)}


def test_every_verb_is_listed(place):
    found = listed()
    assert {name: run["verb"] for name, run in found.items()} == {
        "pruned": "prune", "sub/shared": "prune", "sub/cut": "apply", "tuned": "finetune", "healed": "heal",
        "plain": "train",
    }  # fmt: skip
    verdict = json.loads((place / "pruned/verdict.json").read_text())
    assert found["pruned"]["status"] == verdict["verdict"]
    assert found["pruned"]["plans"] == verdict["candidates_tried"] > 0
    for name in ("sub/cut", "tuned", "healed", "plain"):
        assert found[name]["status"] == "done"
        assert found[name]["plans"] is None
    assert found["tuned"]["model"] == "m"
    assert found["healed"]["model"] == "sub/cut"
    assert found["tuned"]["task"] == "q.jsonl"
    assert found["plain"]["task"] == "t.txt"
    assert found["plain"]["model"] == "a new Mistral"
    assert [run["created"] for run in found.values()] == sorted(run["created"] for run in found.values())


def test_an_older_run_of_the_same_folder_keeps_its_own_count(place):
    before = listed("pruned.run/ledger.sqlite")["pruned"]["plans"]
    more = ("--layers", "1", "--matrices", "o,up", "--overwrite", "-o", "pruned")
    assert secateur("prune", "m", "--task", "q.jsonl", *more).exit_code == 0
    old, new = json.loads(secateur("runs", "pruned.run/ledger.sqlite", "--json").stdout)
    assert new["plans"] == json.loads((place / "pruned/verdict.json").read_text())["candidates_tried"]
    assert new["plans"] != old["plans"] == before


def test_the_table_has_them_all(place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    told = secateur("runs")
    assert told.exit_code == 0
    for word in ("pruned", "finetune", "heal", "train", "apply", "done"):
        assert word in told.stdout
    assert max(map(len, told.stdout.splitlines())) <= 80


def test_a_model_of_a_path_is_shown_by_its_last_folder(place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert secateur("apply", place / "m", "--edit", "b1=drop", "-o", "far").exit_code == 0
    assert listed()["far"]["model"] == str(place / "m")
    (line,) = (line for line in secateur("runs").stdout.splitlines() if line.split()[:1] == ["far"])
    assert line.split()[:3] == ["far", "apply", "m"]


def test_a_shared_ledger_tells_of_the_runs_that_used_it(place):
    (run,) = listed("shared.sqlite").values()
    assert run["verb"] == "prune"
    assert run["ledger"] == "shared.sqlite"


def test_listing_changes_nothing(place):
    before = contents(place)
    listed()
    assert {
        name: data for name, data in contents(place).items() if not name.endswith(("-shm", "-wal"))
    } == before


@pytest.mark.parametrize("name", ["nowhere", "nowhere/deep", "q.jsonl/x"])
def test_a_place_that_is_not_there(name, place):
    told = secateur("runs", name)
    assert told.exit_code == 2
    assert f"{name}: there is no such folder" in told.stderr
    assert told.stdout == ""


def test_an_empty_place_has_no_runs(tmp_path):
    assert secateur("runs", tmp_path).stdout == f"no runs under {tmp_path}\n"


@contextmanager
def locked(run):
    """As a process at work holds it."""
    run.mkdir(exist_ok=True)
    with open(run / "lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unfinished(place, name):
    """A prune that did not come to its end: what the ledger says until the end."""
    run = place / f"{name}.run"
    run.mkdir()
    with Ledger.open(run / "ledger.sqlite") as ledger:
        ledger.start_run("id", {"model": "m", "task": "q.jsonl"}, out=str(place / name))
    return run


def test_the_lock_knows_who_is_at_work(place):
    run = unfinished(place, "new")
    assert listed()["new"]["status"] == "stopped"
    with locked(run):
        assert listed()["new"]["status"] == "running"
    assert listed()["new"]["status"] == "stopped"


def test_of_a_shared_ledger_too(place):
    with Ledger.open(place / "shared.sqlite") as ledger:
        ledger.start_run("id", {"model": "m", "task": "q.jsonl"}, out=str(place / "sub/other"))
    assert listed("shared.sqlite")["sub/other"]["status"] == "stopped"
    with locked(place / "sub/other.run"):
        assert listed("shared.sqlite")["sub/other"]["status"] == "running"


def test_asking_does_not_get_in_the_way_of_a_run(place):
    """Whoever asks holds the lock for an instant; a run that begins just then waits that long."""
    folder = Folder.at("new", reads=[])
    (place / "new.run").mkdir()
    (place / "new.run/lock").touch()
    with open(place / "new.run/lock") as asked:
        fcntl.flock(asked, fcntl.LOCK_SH)
        release = time.monotonic() + 0.05
        flock = fcntl.flock

        def later(file, what):
            if time.monotonic() > release:
                flock(asked, fcntl.LOCK_UN)
            flock(file, what)

        fcntl.flock = later
        try:
            with folder.claimed({}, overwrite=False):
                pass
        finally:
            fcntl.flock = flock


WORDS = ["--task", "q.jsonl", "--epochs", "100000", "--batch-size", "2", "-q"]


@pytest.mark.parametrize("verb", ["finetune", pytest.param("heal", marks=pytest.mark.slow)])
def test_running_and_killed_of_real_processes(verb, place, forks):
    model = "sub/cut" if verb == "heal" else "m"
    stage = ["--stage", "end"] if verb == "heal" else []
    process = forks.start(place, [verb, model, *WORDS, *stage, "-o", "killed"])
    try:
        deadline = time.monotonic() + 120
        while not list((place / "killed.run").glob("train-*")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        found = listed()["killed"]
        assert (found["verb"], found["status"], found["model"]) == (verb, "running", model)
        assert "is running" in secateur("show", "killed").stderr
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert listed()["killed"]["status"] == "stopped"
    assert "is stopped" in secateur("show", "killed").stderr


def test_a_finished_run_leaves_no_note(place):
    assert not list(place.rglob("command.json"))
    with Folder.at("refused", reads=[]).claimed({}, overwrite=False):
        Folder.at("refused", reads=[]).note("apply", {"apply": [], "model": "m"})
        assert listed()["refused"]["status"] == "running"
    assert "refused" not in listed()


@pytest.mark.parametrize("text", ["{", "[]", "7", "{}", '{"verb": "apply"}', "[" * 100_000])
def test_a_note_that_is_none(text, place):
    (place / "x.run").mkdir()
    (place / "x.run/command.json").write_text(text)
    told = secateur("runs")
    assert told.exit_code == 2
    assert "x.run/command.json" in told.stderr


def test_a_verdict_is_told_even_if_the_process_died_after_it_was_published(place):
    """Between the rename of OUT and the ledger's word the checkpoint is whole, and the same command finds it."""
    with Ledger.open(place / "pruned.run/ledger.sqlite") as ledger:
        (run,) = ledger.runs()
        ledger.start_run(run.id, run.command, out=run.out)
    verdict = json.loads((place / "pruned/verdict.json").read_text())["verdict"]
    assert listed()["pruned"]["status"] == verdict
