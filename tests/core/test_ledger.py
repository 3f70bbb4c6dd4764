"""The ledger: what is written is read back, whole or not at all, whatever befalls the process or the disk."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from secateur.core.ledger import _KNOWN, APPLICATION_ID, LEDGER_VERSION, Ledger, Opening
from secateur.core.plan import Plan, Truncate
from secateur.core.score import METRICS, OUTCOME
from secateur.core.site import Site
from secateur.errors import LedgerError

MODEL = "0" * 32
EMPTY = Plan(MODEL)


def plan(rank: int) -> Plan:
    return Plan(MODEL, (Truncate(Site(0, "gate"), rank),))


def some(examples, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.zeros(len(examples), dtype=OUTCOME)
    rows["example"] = examples
    rows["loss"] = rng.exponential(size=len(rows))
    rows["correct"] = rng.integers(0, 2, len(rows))
    rows["correct_norm"] = np.nan
    rows["rank"] = rng.integers(0, 20, len(rows))
    rows["predicted"] = rng.integers(-1, 5, len(rows))
    rows["tokens"] = rng.integers(1, 9, len(rows))
    return rows


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Bit by bit, nan equal to nan."""
    assert actual.dtype == expected.dtype == OUTCOME
    assert actual.tobytes() == expected.tobytes()


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


# ---------------------------------------------------------------- what is written is read


def test_known_returns_what_was_recorded_in_the_order_asked(ledger):
    rows = some([5, 3, 9, 1])
    rows["loss"][2] = np.inf
    ledger.record("s", plan(1), rows, seconds=2.0)
    found = ledger.known("s", plan(1), [9, 4, 1, 5])
    assert found.dtype == OUTCOME
    assert_same(found, rows[[2, 3, 0]])
    assert ledger.known("s", plan(2), [9]).shape == (0,)
    assert ledger.known("other", plan(1), [9]).shape == (0,)
    assert ledger.known("s", plan(1), []).shape == (0,)


def test_what_is_written_survives_closing(tmp_path):
    with Ledger.open(tmp_path / "l") as ledger:
        ledger.record("s", EMPTY, some(range(7)), seconds=1.0)
    with Ledger.open(tmp_path / "l", create=False) as ledger:
        assert_same(ledger.known("s", EMPTY, range(7)), some(range(7)))


def test_recording_again_changes_nothing(ledger):
    ledger.record("s", plan(1), some(range(10)), seconds=5.0)
    before = list(ledger._db.iterdump())
    ledger.record("s", plan(1), some(range(10)), seconds=5.0)
    ledger.record("s", plan(1), some(range(10), seed=1), seconds=5.0)  # the first judgment stays
    assert list(ledger._db.iterdump()) == before


def test_a_race_extends_a_trial(ledger):
    ledger.record("s", plan(1), some(range(4)), seconds=1.0)
    ledger.record("s", plan(1), some(range(8)), seconds=3.0)  # half of it is new
    (trial,) = ledger.trials("s")
    assert (trial.n, trial.seconds) == (8, 2.5)
    assert ledger.evaluations("s") == 8


def test_trials_means_are_the_metrics(ledger):
    rows = {1: some(range(50), seed=1), 2: some(range(30), seed=2)}
    for rank, outcomes in rows.items():
        ledger.record("s", plan(rank), outcomes, seconds=rank)
    ledger.record("t", plan(1), some(range(3)), seconds=1.0)
    trials = ledger.trials("s")
    assert [trial.plan for trial in trials] == [plan(1), plan(2)]
    for trial, outcomes in zip(trials, rows.values(), strict=True):
        assert trial.n == len(outcomes)
        for name, metric in METRICS.items():
            assert trial.means[name] == pytest.approx(metric.mean(outcomes), nan_ok=True)
        for column in ("loss", "correct", "rank", "predicted", "tokens"):
            assert trial.means[column] == pytest.approx(outcomes[column].mean())
        assert np.isnan(trial.means["correct_norm"])
    assert ledger.evaluations("s") == 80
    assert ledger.evaluations("nowhere") == 0


def test_one_nan_is_not_averaged_away(ledger):
    rows = some(range(5))
    rows["loss"][3] = np.nan
    ledger.record("s", plan(1), rows, seconds=1.0)
    means = ledger.trials("s")[0].means
    assert np.isnan(means["loss"])
    assert np.isnan(means["text_loss"])
    assert means["accuracy"] == rows["correct"].mean()


def test_memos(ledger):
    assert ledger.recall("s", "screen") is None
    ledger.remember("s", "screen", {"b0.gate=1": 0.25, "list": [1, None, "ü"]})
    ledger.remember("t", "screen", False)
    assert ledger.recall("s", "screen") == {"b0.gate=1": 0.25, "list": [1, None, "ü"]}
    assert ledger.recall("t", "screen") is False
    ledger.remember("s", "screen", [])
    assert ledger.recall("s", "screen") == []
    assert ledger.recall("s", "other") is None


def test_openings_count_a_claim_once(ledger):
    """The first look at a plan in a metric stays, with its margin."""
    looks = [
        ("split", Opening("s", plan(1), "loss", 0.02, 0.01, "2025-01-01T00:00:00+00:00")),
        ("split", Opening("s", plan(2), "loss", None, 0.04, "2025-01-02T00:00:00+00:00")),
        ("split", Opening("s", plan(1), "loss", 2.0, 0.01, "2025-01-03T00:00:00+00:00")),
        ("split", Opening("s", plan(1), "top10", None, 0.6, "2025-01-04T00:00:00+00:00")),
        ("split", Opening("t", plan(1), "loss", None, 0.5, "2025-01-05T00:00:00+00:00")),
        ("elsewhere", Opening("s", plan(1), "loss", None, 0.9, "2025-01-06T00:00:00+00:00")),
    ]
    for split, opening in looks:
        ledger.record_opening(split, [f"{split} group"], opening)
    assert ledger.openings("split") == [looks[n][1] for n in (0, 1, 3, 4)]
    assert ledger.openings("split", "elsewhere") == [looks[n][1] for n in (0, 1, 3, 4, 5)]


def test_runs(ledger):
    ledger.start_run("a", {"verb": "prune", "seed": 0}, out="out")
    ledger.start_run("b", {"verb": "probe"})
    ledger.finish_run("a", "finished")
    assert [(run.id, run.status, run.out) for run in ledger.runs()] == [
        ("a", "finished", "out"),
        ("b", "running", ""),
    ]
    first = ledger.runs()[0]
    assert first.command == {"verb": "prune", "seed": 0}
    ledger.start_run("a", {"seed": 0, "verb": "prune"}, out="out")
    assert ledger.runs()[0] == dataclasses.replace(first, status="running")
    with pytest.raises(LedgerError, match="run a was started by another command"):
        ledger.start_run("a", {"verb": "eval"})
    assert len(ledger.runs()) == 2
    with pytest.raises(AssertionError, match="never started"):
        ledger.finish_run("c", "finished")


def test_two_million_rows_stay_practical(ledger):
    """A hundredth of it, by its measures: bytes for each row, and the index that a lookup uses."""
    for rank in range(1, 6):
        ledger.record("s", plan(rank), some(np.random.default_rng(0).permutation(4000)), seconds=1.0)
    ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert ledger.path.stat().st_size < 40 * 20_000
    steps = ledger._db.execute("EXPLAIN QUERY PLAN " + _KNOWN, ("[1, 2]", "s", "x")).fetchall()
    assert any("PRIMARY KEY (trial=? AND example=?)" in step[-1] for step in steps)


# ---------------------------------------------------------------- what may be opened


def test_missing_file(tmp_path):
    with pytest.raises(LedgerError, match="no ledger at"):
        Ledger.open(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
    with pytest.raises(LedgerError, match="folder exists"):
        Ledger.open(tmp_path / "no folder" / "ledger")


def test_not_a_database(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no database at all " * 100)
    with pytest.raises(LedgerError, match="It is not a ledger"):
        Ledger.open(path)
    assert path.read_text() == "no database at all " * 100


def test_somebody_elses_database_is_left_alone(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="another program"):
        Ledger.open(path)
    assert path.read_bytes() == before
    (tmp_path / "empty").touch()
    with pytest.raises(LedgerError, match="is empty"):
        Ledger.open(tmp_path / "empty", create=False)


def test_another_version(tmp_path):
    path = tmp_path / "ledger"
    with Ledger.open(path) as ledger:
        assert ledger._db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        ledger._db.execute(f"PRAGMA user_version = {LEDGER_VERSION + 1}")
    with pytest.raises(LedgerError, match=f"version {LEDGER_VERSION + 1}; this secateur reads version"):
        Ledger.open(path)


def test_damaged_file(tmp_path):
    path = tmp_path / "ledger"
    with Ledger.open(path) as ledger:
        ledger.record("s", plan(1), some(range(4000)), seconds=1.0)
    content = bytearray(path.read_bytes())
    content[3 * 4096 : 12 * 4096] = os.urandom(9 * 4096)
    path.write_bytes(bytes(content))
    with Ledger.open(path) as ledger, pytest.raises(LedgerError, match="damaged"):
        ledger.known("s", plan(1), range(4000))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        with pytest.raises(LedgerError, match="can be written"):
            Ledger.open(folder / "ledger")
    finally:
        folder.chmod(0o700)


def test_read_only_connection(ledger):
    ledger._db.execute("PRAGMA query_only = ON")
    with pytest.raises(LedgerError, match="permissions"):
        ledger.record("s", plan(1), some(range(3)), seconds=1.0)


# ---------------------------------------------------------------- kills, full disks, company


def test_full_disk_loses_only_the_transaction(ledger):
    ledger.record("s", plan(1), some(range(100)), seconds=1.0)
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 4}")
    with pytest.raises(LedgerError, match="free some space"):
        ledger.record("s", plan(2), some(range(5000)), seconds=1.0)
    assert_same(ledger.known("s", plan(1), range(100)), some(range(100)))
    assert [trial.plan for trial in ledger.trials("s")] == [plan(1)]
    ledger._db.execute("PRAGMA max_page_count = 1000000")
    ledger.record("s", plan(2), some(range(5000)), seconds=1.0)  # and goes on when there is room
    assert ledger.evaluations("s") == 5100


def python(code: str, *arguments: object, **options) -> subprocess.Popen:
    """A fresh interpreter that has this file's helpers, its standard output on a pipe."""
    here = Path(__file__).parent
    head = f"import sys; sys.path[:0] = {[str(here), str(here.parent)]!r}; from test_ledger import *\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def test_a_quota_on_file_size(tmp_path):
    """The operating system refuses the write itself: still one clear message, and the file stays good."""
    path = tmp_path / "ledger"
    writer = python(
        """
        import resource
        ledger = Ledger.open(sys.argv[1])
        ledger.record("s", plan(1), some(range(10)), seconds=1.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            for rank in range(2, 50):
                ledger.record("s", plan(rank), some(range(1000)), seconds=1.0)
        except LedgerError as error:
            print("said:", error)
        """,
        path,
    )
    said = writer.communicate(timeout=60)[0]
    assert writer.returncode == 0
    assert "said:" in said
    assert "run the same command" in said
    with Ledger.open(path) as ledger:
        assert {trial.n for trial in ledger.trials("s")} <= {10, 1000}
        assert ledger.known("s", plan(1), range(10)).size == 10


def test_kill_in_the_midst_of_writing(tmp_path):
    """SIGKILL at three moments: every transaction is there whole, and the next run goes on from it."""
    path, size = tmp_path / "ledger", 3000
    code = """
        with Ledger.open(sys.argv[1]) as ledger:
            done = len(ledger.trials("s"))
            for rank in range(done + 1, 10_000):
                ledger.record("s", plan(rank), some(range(int(sys.argv[2])), seed=rank), seconds=1.0)
                print(rank, flush=True)
    """
    finished = 0
    for extra in (2, 5, 9):
        writer = python(code, path, size)
        acknowledged = 0
        while acknowledged < finished + extra:
            acknowledged = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.communicate(timeout=60)[0].split()
        acknowledged = int(rest[-1]) if rest else acknowledged
        with Ledger.open(path) as ledger:
            assert ledger._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            trials = ledger.trials("s")
            assert acknowledged <= len(trials) <= acknowledged + 1
            assert all(trial.n == size and trial.seconds == 1.0 for trial in trials)
            last = len(trials)
            assert_same(ledger.known("s", plan(last), range(size)), some(range(size), last))
        finished = last


def test_a_reader_sees_whole_transactions_while_another_process_writes(tmp_path):
    path = tmp_path / "ledger"
    Ledger.open(path).close()
    writer = python(
        """
        with Ledger.open(sys.argv[1]) as ledger:
            for rank in range(1, 61):
                ledger.record("s", plan(rank), some(range(500), seed=rank), seconds=1.0)
                if rank == 3: print("go", flush=True)
        """,
        path,
    )
    assert writer.stdout.readline() == "go\n"
    seen = []
    with Ledger.open(path, create=False) as ledger:
        while writer.poll() is None or not seen:
            trials = ledger.trials("s")
            assert all(trial.n == 500 for trial in trials)
            seen.append(len(trials))
        assert len(ledger.trials("s")) == 60
    writer.communicate(timeout=60)
    assert writer.returncode == 0
    assert seen == sorted(seen)
    assert seen[0] >= 3


def test_many_may_make_the_same_ledger_at_once(tmp_path):
    code = """
        with Ledger.open(sys.argv[1]) as ledger:
            ledger.record("s", plan(int(sys.argv[2])), some(range(5)), seconds=1.0)
    """
    makers = [python(code, tmp_path / "ledger", rank) for rank in range(1, 7)]
    for maker in makers:
        maker.communicate(timeout=60)
    assert [maker.returncode for maker in makers] == [0] * 6
    with Ledger.open(tmp_path / "ledger") as ledger:
        assert {trial.plan for trial in ledger.trials("s")} == {plan(rank) for rank in range(1, 7)}


def test_an_open_read_does_not_hold_up_the_writer(ledger, monkeypatch):
    monkeypatch.setattr("secateur.core.ledger.BUSY_SECONDS", 0.05)
    ledger.record("s", plan(1), some(range(3)), seconds=1.0)
    with Ledger.open(ledger.path, create=False) as reader:
        reader._db.execute("BEGIN")
        assert len(reader.trials("s")) == 1
        ledger.record("s", plan(2), some(range(3)), seconds=1.0)
        assert len(reader.trials("s")) == 1  # its snapshot
        reader._db.execute("COMMIT")
        assert len(reader.trials("s")) == 2


def test_two_writers_take_turns_or_are_told(ledger, monkeypatch):
    monkeypatch.setattr("secateur.core.ledger.BUSY_SECONDS", 0.05)
    with Ledger.open(ledger.path) as other:
        other.record("s", plan(1), some(range(3)), seconds=1.0)
        ledger.record("s", plan(2), some(range(3)), seconds=1.0)
        assert len(other.trials("s")) == 2
        ledger._db.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="Another run is writing"):
            other.record("s", plan(3), some(range(3)), seconds=1.0)
        ledger._db.execute("ROLLBACK")
        other.record("s", plan(3), some(range(3)), seconds=1.0)


def test_an_error_inside_a_transaction_leaves_nothing(ledger):
    ledger.remember("s", "key", 1)
    with pytest.raises(TypeError):
        ledger.remember("fresh scope", "key", {1, 2})  # a set is not JSON
    assert ledger._db.execute("SELECT name FROM scopes").fetchall() == [("s",)]
    ledger.remember("s", "key", 2)
    assert ledger.recall("s", "key") == 2


def test_our_own_mistakes_are_not_dressed_up(ledger):
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        ledger._read("SELECT * FROM nowhere")
    with pytest.raises(AssertionError, match="OUTCOME"):
        ledger.record("s", EMPTY, np.zeros(3), seconds=1.0)
