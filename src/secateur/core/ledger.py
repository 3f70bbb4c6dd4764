"""The journal of every judged plan, in one SQLite file: a killed run continues, and nothing is judged twice.

Knows plans and outcomes, never a model or a task. A *scope* is a digest of everything a judgment depends on besides
the plan (model fingerprint, task hash, evaluation options); many scopes may share one file. The unit is
(scope, plan, example). Only the driver writes; any number of processes may read meanwhile: through the
write-ahead log a reader sees whole transactions, and a killed writer leaves none half done. It does not work on
network file systems, since SQLite's log does not.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from secateur.core.plan import Plan
from secateur.core.reading import check_file, parse_json
from secateur.core.score import METRICS, OUTCOME, Metric
from secateur.errors import LedgerError, PlanError, UnknownName

T = TypeVar("T")
Cell = str | int | float | bytes | None  # SQLite holds any of them in any column
LEDGER_VERSION = 2
SAME_SPLIT = 0.1  # of the groups of the smaller of two test splits: what they may share and still be two
APPLICATION_ID = 0x5ECA7E  # written in the file's header: whose SQLite file this is
BUSY_SECONDS = 30.0

_SCHEMA = """
CREATE TABLE scopes (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE plans (id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
CREATE TABLE trials (
  id INTEGER PRIMARY KEY,
  scope INTEGER NOT NULL REFERENCES scopes, plan INTEGER NOT NULL REFERENCES plans,
  seconds REAL NOT NULL, UNIQUE (scope, plan));
CREATE TABLE outcomes (
  trial INTEGER NOT NULL REFERENCES trials, example INTEGER NOT NULL,
  loss REAL, correct REAL, correct_norm REAL, choice_loss REAL,
  rank INTEGER NOT NULL, predicted INTEGER NOT NULL, tokens INTEGER NOT NULL,
  PRIMARY KEY (trial, example)) WITHOUT ROWID;
CREATE TABLE memos (
  scope INTEGER NOT NULL REFERENCES scopes, key TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (scope, key)) WITHOUT ROWID;
CREATE TABLE runs (
  id TEXT PRIMARY KEY, created TEXT NOT NULL, command TEXT NOT NULL, status TEXT NOT NULL, out TEXT NOT NULL);
"""
_OPENINGS = """
CREATE TABLE openings (
  id INTEGER PRIMARY KEY, split TEXT NOT NULL, scope INTEGER NOT NULL REFERENCES scopes,
  plan INTEGER NOT NULL REFERENCES plans, metric TEXT NOT NULL, margin REAL, p_value REAL NOT NULL, at TEXT NOT NULL,
  UNIQUE (split, scope, plan, metric));
CREATE TABLE split_groups (
  split TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (split, digest)) WITHOUT ROWID;
CREATE INDEX split_of_group ON split_groups (digest);
"""
# version 1 knew neither the metric of an opening nor the groups of a split, nor the likelihood among choices
_FROM_1 = f"""
ALTER TABLE outcomes ADD COLUMN choice_loss REAL;
ALTER TABLE openings RENAME TO openings_1;
{_OPENINGS}
INSERT INTO openings SELECT id, split, scope, plan, '', NULL, p_value, at FROM openings_1;
DROP TABLE openings_1;
"""

_COLUMNS: tuple[str, ...] = OUTCOME.names or ()  # numpy's type allows a dtype without fields
# CROSS JOIN is SQLite's way to fix the order: walk what is asked, look each up by primary key
_KNOWN = f"""
SELECT {", ".join(_COLUMNS)} FROM json_each(?1) AS asked CROSS JOIN outcomes ON example = asked.value
WHERE trial = (
  SELECT trials.id FROM trials JOIN scopes ON scopes.id = scope JOIN plans ON plans.id = plan
  WHERE scopes.name = ?2 AND plans.identity = ?3)
ORDER BY asked.key
"""


@dataclass(frozen=True)
class Trial:
    """One plan with its outcomes so far: on `n` examples, computed in `seconds`.

    `means` holds the mean of every column of OUTCOME but `example`, and of every metric of METRICS by its
    name; nan where any example has none.
    """

    plan: Plan
    n: int
    means: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Opening:
    """One look at a test split: which plan in which metric, its p-value, and when (ISO 8601).

    `margin` is the loss that was to count as not worse, as named before this look; None where none was. A look
    without a test (`secateur eval`) covers every metric and is stored with the metric `""`.
    """

    scope: str
    plan: Plan
    metric: str
    margin: float | None
    p_value: float
    when: str

    @property
    def claim(self) -> tuple[str, Plan, str]:
        """Return the claim this look is about. One claim has one p-value, however often it is looked at."""
        return self.scope, self.plan, self.metric


@dataclass(frozen=True)
class Run:
    """One command of the user. `status` is "running" until `finish_run` sets another."""

    id: str
    created: str
    command: Mapping[str, object]
    status: str
    out: str


class Ledger:
    """The journal (see the module). Made by `Ledger.open`; a context manager that closes the file."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection

    @classmethod
    def open(cls, path: str | Path, *, create: bool = True) -> Ledger:
        """Open the ledger at `path`; with `create`, make it where there is none.

        Raises: `LedgerError` for a missing file, one that is not a ledger, and one of another version.
        """
        path = Path(path)
        if os.path.exists(path):
            check_file(path, LedgerError)
        elif not create:
            raise LedgerError(f"no ledger at {path}. Give the folder of a run, or --ledger FILE.")
        with _explained(path):
            connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            try:
                _prepare(connection, path, create)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ judgments

    def record(self, scope: str, plan: Plan, outcomes: np.ndarray, *, seconds: float) -> None:
        """Write outcomes of one plan in one transaction; rows that are already there stay unchanged and add no seconds.

        Args:
            outcomes: OUTCOME array (n,).
            seconds: time that computing them took.

        Raises: `LedgerError` when the disk is full or another run is writing; nothing is then written.
        """
        assert outcomes.dtype == OUTCOME, f"outcomes must be of dtype OUTCOME, not {outcomes.dtype}"
        with self._writing() as db:
            trial = self._trial_id(scope, plan)
            rows = ((trial, *row) for row in outcomes.tolist())  # nan becomes NULL
            columns, marks = ", ".join(("trial", *_COLUMNS)), ", ".join("?" * (1 + len(_COLUMNS)))
            insert = f"INSERT OR IGNORE INTO outcomes ({columns}) VALUES ({marks})"
            new = db.executemany(insert, rows).rowcount
            share = max(new, 0) / max(len(outcomes), 1)
            db.execute("UPDATE trials SET seconds = seconds + ? WHERE id = ?", (seconds * share, trial))

    def known(self, scope: str, plan: Plan, examples: Sequence[int]) -> np.ndarray:
        """Return the OUTCOME rows of those `examples` that are judged already, in the order given."""
        numbers = json.dumps([int(example) for example in examples])
        rows = self._read(_KNOWN, (numbers, scope, plan.identity))
        with self._decoding():
            return _outcomes(rows)

    def trials(self, scope: str, among: Sequence[int] | None = None) -> list[Trial]:
        """Return every plan judged in this scope, in the order of first record.

        Args:
            among: examples to take the means over; None: all that were judged.
        """
        means = _mean_columns()
        condition = "" if among is None else "AND example IN (SELECT value FROM json_each(?)) "
        rows = self._read(
            f"SELECT body, count(*), seconds, {', '.join(means.values())} FROM trials "
            "JOIN scopes ON scopes.id = scope JOIN plans ON plans.id = plan "
            f"JOIN outcomes ON trial = trials.id WHERE scopes.name = ? {condition}"
            "GROUP BY trials.id ORDER BY trials.id",
            (scope,) if among is None else (scope, json.dumps([*among])),
        )
        with self._decoding():
            return [
                Trial(_plan(body), n, _means(means, values), float(seconds))
                for body, n, seconds, *values in rows
            ]

    def evaluations(self, scope: str) -> int:
        """Return the number of (plan, example) pairs judged in this scope."""
        rows = self._read(
            "SELECT count(*) FROM trials JOIN scopes ON scopes.id = scope JOIN outcomes ON trial = trials.id "
            "WHERE scopes.name = ?",
            (scope,),
        )
        return int(rows[0][0])

    # ------------------------------------------------------------ memos, openings of test, runs

    def remember(self, scope: str, key: str, value: object) -> None:
        """Store a JSON value (the result of a finished stage) under (scope, key); an earlier value is replaced."""
        assert value is not None, "None is what recall says where nothing is kept"
        with self._writing() as db:
            row = (self._id("scopes", "name", scope), key, json.dumps(value))
            db.execute("INSERT OR REPLACE INTO memos VALUES (?, ?, ?)", row)

    def recall(self, scope: str, key: str, read: Callable[[Any], T] = lambda value: value) -> T | None:
        """Return the value that `remember` stored, passed through `read`, or None. Raises: `LedgerError`."""
        rows = self._read(
            "SELECT value FROM memos JOIN scopes ON scopes.id = scope WHERE scopes.name = ? AND key = ?",
            (scope, key),
        )
        with self._decoding():
            return read(parse_json(rows[0][0])) if rows else None

    def record_opening(self, split: str, groups: Iterable[str], opening: Opening) -> None:
        """Record a look at a test split. The first look of each claim stays, with the margin that was named beforehand.

        Args:
            split: the name of the split.
            groups: digests of the split's groups.
        """
        with self._writing() as db:
            db.executemany(
                "INSERT OR IGNORE INTO split_groups VALUES (?, ?)", ((split, digest) for digest in groups)
            )
            place = (split, self._id("scopes", "name", opening.scope), self._plan_id(opening.plan))
            row = (*place, opening.metric, opening.margin, opening.p_value, opening.when)
            db.execute(
                "INSERT OR IGNORE INTO openings (split, scope, plan, metric, margin, p_value, at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )

    def openings(self, *splits: str) -> list[Opening]:
        """Return every look at these test splits in any scope, oldest first.

        Splits that share a tenth of the smaller one's groups count as the same split, and so do splits that overlap
        with those.
        """
        rows = self._read(
            "SELECT scopes.name, body, metric, margin, p_value, at FROM openings "
            "JOIN scopes ON scopes.id = scope JOIN plans ON plans.id = plan "
            "WHERE split IN (SELECT value FROM json_each(?)) ORDER BY openings.id",
            (json.dumps(sorted(self._same_splits(splits))),),
        )
        with self._decoding():
            return [
                Opening(
                    scope,
                    _plan(body),
                    str(metric),
                    None if margin is None else float(margin),
                    float(p),
                    str(when),
                )
                for scope, body, metric, margin, p, when in rows
            ]

    def _same_splits(self, splits: Iterable[str]) -> set[str]:
        """Return `splits` and every split that overlaps with one of them, directly or through others."""
        sizes = dict(self._read("SELECT split, count(*) FROM split_groups GROUP BY split"))
        shared = self._read(
            "SELECT one.split, other.split, count(*) FROM split_groups AS one JOIN split_groups AS other "
            "USING (digest) WHERE one.split < other.split GROUP BY one.split, other.split"
        )
        alike = [{a, b} for a, b, count in shared if count >= SAME_SPLIT * min(sizes[a], sizes[b])]
        same = set(splits)
        while more := set().union(*(pair for pair in alike if pair & same)) - same:
            same |= more
        return same

    def start_run(self, run_id: str, command: Mapping[str, object], *, out: str = "") -> None:
        """Record a run as running; one that was started before keeps its date.

        Raises: `LedgerError` where the run was started by another command.
        """
        with self._writing() as db:
            text = json.dumps(command, sort_keys=True)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            db.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, 'running', ?)", (run_id, now, text, out))
            if db.execute("SELECT command FROM runs WHERE id = ?", (run_id,)).fetchone()[0] != text:
                raise LedgerError(
                    f"{self.path}: run {run_id} was started by another command. Give another --out."
                )
            db.execute("UPDATE runs SET status = 'running' WHERE id = ?", (run_id,))

    def finish_run(self, run_id: str, status: str) -> None:
        """Set the status of a run that was started."""
        with self._writing() as db:
            changed = db.execute("UPDATE runs SET status = ? WHERE id = ?", (status, run_id)).rowcount
            assert changed == 1, f"run {run_id} was never started"

    def runs(self) -> list[Run]:
        """Return every run, oldest first."""
        rows = self._read("SELECT id, created, command, status, out FROM runs ORDER BY created, rowid")
        with self._decoding():
            return [_run(*row) for row in rows]

    # ------------------------------------------------------------ SQLite

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction and commit it; roll everything back where anything is raised."""
        with _explained(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled back already
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """Raise `LedgerError` for rows that secateur did not write: SQLite holds any value in any column."""
        try:
            yield
        except (ValueError, TypeError, LookupError, AttributeError, PlanError, UnknownName) as error:
            raise LedgerError(
                f"{self.path}: a row is not as secateur writes it ({error}). {_DAMAGED}"
            ) from error

    def _read(self, query: str, values: tuple[Cell, ...] = ()) -> list[tuple[Any, ...]]:
        with _explained(self.path):
            return self._db.execute(query, values).fetchall()

    def _id(self, table: str, column: str, value: str, **more: str) -> int:
        """Return the integer that stands for `value`, made where there is none. Only inside `_writing`."""
        names, values = (column, *more), (value, *more.values())
        marks = ", ".join("?" * len(names))
        self._db.execute(f"INSERT OR IGNORE INTO {table} ({', '.join(names)}) VALUES ({marks})", values)
        return int(self._db.execute(f"SELECT id FROM {table} WHERE {column} = ?", (value,)).fetchone()[0])

    def _plan_id(self, plan: Plan) -> int:
        return self._id("plans", "identity", plan.identity, body=json.dumps(plan.to_json()))

    def _trial_id(self, scope: str, plan: Plan) -> int:
        key = (self._id("scopes", "name", scope), self._plan_id(plan))
        self._db.execute("INSERT OR IGNORE INTO trials (scope, plan, seconds) VALUES (?, ?, 0)", key)
        return int(self._db.execute("SELECT id FROM trials WHERE scope = ? AND plan = ?", key).fetchone()[0])


def check_ledger(path: Path) -> None:
    """Raise `LedgerError` where the file at `path` exists, is not empty and is not a ledger. Writes nothing."""
    if os.path.exists(path) and (not path.is_file() or path.stat().st_size):
        Ledger.open(path, create=False).close()


def _prepare(db: sqlite3.Connection, path: Path, create: bool) -> None:
    """Check that the file is ours before a byte of it is changed; make the tables in an empty one."""
    db.execute("BEGIN")
    ours = _is_ours(db, path)
    db.execute("COMMIT")
    if not ours and not create:
        raise LedgerError(f"{path} is empty, not a ledger. Give the folder of a run, or --ledger FILE.")
    if ours:
        if _version(db) < LEDGER_VERSION:
            _upgrade(db, path)
        _check_tables(db, path)
    _write_ahead(db)
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = ON")
    if not ours:
        _make_tables(db, path)


def _check_tables(db: sqlite3.Connection, path: Path) -> None:
    """Raise `LedgerError` where a table or a column is missing."""
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(_SCHEMA + _OPENINGS)
        for table, columns in _columns(fresh).items():
            if missing := columns - _columns(db).get(table, set()):
                raise LedgerError(f"{path} has no {min(missing)} of {table}. {_DAMAGED}")


def _columns(db: sqlite3.Connection) -> dict[str, set[str]]:
    rows = db.execute(
        "SELECT m.name, c.name FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c"
    ).fetchall()
    columns: dict[str, set[str]] = {}
    for table, column in rows:
        columns.setdefault(table, set()).add(column)
    return columns


def _write_ahead(db: sqlite3.Connection) -> None:
    """Switch the write-ahead log on. SQLite itself does not wait here while another process opens the same file."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _make_tables(db: sqlite3.Connection, path: Path) -> None:
    db.execute("BEGIN IMMEDIATE")
    if not _is_ours(db, path):  # another process may have been faster
        _execute(db, _SCHEMA + _OPENINGS)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {LEDGER_VERSION}")
    db.execute("COMMIT")


def _upgrade(db: sqlite3.Connection, path: Path) -> None:
    """Convert a ledger of version 1 in one transaction.

    Raises: `LedgerError` where a table or a column of that version is missing.
    """
    db.execute("BEGIN IMMEDIATE")
    if _version(db) == 1:  # another process may have been faster
        try:
            _execute(db, _FROM_1)
        except sqlite3.OperationalError as error:
            if (
                error.sqlite_errorcode != sqlite3.SQLITE_ERROR
            ):  # which says that a statement cannot be carried out
                raise
            raise LedgerError(f"{path}: {error}. {_DAMAGED}") from error
        db.execute(f"PRAGMA user_version = {LEDGER_VERSION}")
    db.execute("COMMIT")


def _execute(db: sqlite3.Connection, script: str) -> None:
    """Run the statements of a script in the open transaction; `executescript` would commit it."""
    for statement in script.split(";"):
        db.execute(statement)


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _is_ours(db: sqlite3.Connection, path: Path) -> bool:
    """Return False for a file without tables.

    Raises: `LedgerError` for another program's file and for another version.
    """
    assert db.in_transaction, "three reads of one state: another process may just be making the ledger"
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    owner = db.execute("PRAGMA application_id").fetchone()[0]
    version = _version(db)
    if owner != APPLICATION_ID:
        if owner or version or tables:
            raise LedgerError(
                f"{path} is an SQLite file of another program, not a ledger. Give another path."
            )
        return False
    if not 1 <= version <= LEDGER_VERSION:
        raise LedgerError(
            f"{path} is a ledger of version {version}; this secateur reads versions 1 to {LEDGER_VERSION}. "
            "Use the secateur that wrote it, or start a new run folder."
        )
    return True


_DAMAGED = "It is damaged. Restore a copy, or move it away and start again."
_BUSY = "Another run is writing to it. Wait for that run, or give another ledger."
_CLOSED = "It cannot be written. Check the permissions of the file and of its folder."
_MEND = {
    sqlite3.SQLITE_FULL: "The disk is full. What was judged is kept: free some space, run the same command.",
    sqlite3.SQLITE_IOERR: "The disk fails to read or write. Check it and its space, run the same command.",
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_READONLY: _CLOSED,
    sqlite3.SQLITE_PERM: _CLOSED,
    sqlite3.SQLITE_CANTOPEN: "It cannot be opened. Check that its folder exists and can be written.",
    sqlite3.SQLITE_NOTADB: "It is not a ledger. Give another path.",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
}


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of SQLite that a user can mend into a `LedgerError` that says how; others pass through."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = vars(error).get("sqlite_errorcode", 0) & 0xFF  # the rest is detail
        if not code and isinstance(error, sqlite3.OperationalError):  # Python's own: text that is not UTF-8
            code = sqlite3.SQLITE_CORRUPT
        if code not in _MEND:
            raise
        raise LedgerError(f"{path}: {error}. {_MEND[code]}") from error


def _mean_columns() -> dict[str, str]:
    """Return name → SQL expression of its mean: NULL where any value is NULL, as a mean over nan is nan."""
    columns = {name: _mean_of(name) for name in _COLUMNS if name != "example"}
    return columns | {metric.name: _mean_of_metric(metric) for metric in METRICS.values()}


def _mean_of(column: str) -> str:
    return f"CASE WHEN count({column}) = count(*) THEN avg({column}) END"


def _mean_of_metric(metric: Metric) -> str:
    if metric.column.startswith("top"):
        return f"avg(rank < {int(metric.column[3:])})"
    if metric.weighted:
        weighted = f"sum({metric.column} * tokens) / sum(tokens)"
        return f"CASE WHEN count({metric.column}) = count(*) THEN {weighted} END"
    return _mean_of(metric.column)


def _means(names: Iterable[str], values: Sequence[float | None]) -> dict[str, float]:
    """Return the means by name; NULL becomes nan."""
    numbers = (float("nan") if value is None else float(value) for value in values)
    return dict(zip(names, numbers, strict=True))


def _outcomes(rows: list[tuple[object, ...]]) -> np.ndarray:
    """Return OUTCOME rows; NULL becomes nan. Raises: `ValueError` for values that no model can have produced."""
    outcomes = np.array(rows, dtype=OUTCOME)
    shares = np.concatenate([outcomes["correct"], outcomes["correct_norm"]])
    if not np.isin(shares[~np.isnan(shares)], (0, 1)).all() or (outcomes["tokens"] < 1).any():
        raise ValueError("an outcome is neither right nor wrong, or of no token")
    return outcomes


def _plan(body: str) -> Plan:
    values = parse_json(body)
    if not isinstance(values, dict):
        raise ValueError(f"{values!r:.40} is no plan")
    return Plan.from_json(values)


def _run(run_id: Cell, created: Cell, text: str, status: Cell, out: Cell) -> Run:
    command = parse_json(text)
    if (
        not isinstance(command, dict)
        or not isinstance(run_id, str)
        or not isinstance(created, str)
        or not isinstance(status, str)
        or not isinstance(out, str)
    ):
        raise ValueError("what a run was asked is no record")
    return Run(run_id, created, command, status, out)
