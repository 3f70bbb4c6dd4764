"""A search tells a callback, or a tracker of experiments, of every plan that it judges."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
from typer.testing import CliRunner

import secateur
from secateur import tracking
from secateur.cli.app import app
from secateur.core.ledger import Ledger
from secateur.core.search_log import Judgment
from secateur.errors import SecateurError, UnknownName

SMALL = {"limit": 260, "layers": (2, 3), "matrices": ("gate",), "report": "quick"}
FAKE = """
import json

FILE = {file!r}


def write(*words):
    with open(FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(words) + "\\n")


class Run:
    def log(self, values, step=None):
        write("log", step, values)


def finish():
    write("finish")


def init(project=None, name=None, config=None):
    print("a tracker that greets on standard output")
    write("init", project, name, config)
    return Run()
"""


def _facts(out: Path, **more: object) -> secateur.Result:
    return secateur.prune("builtin:facts", "builtin:facts", out, **SMALL, **more)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Judgment]]:
    """A small run and what it told a callback."""
    out, told = tmp_path_factory.mktemp("followed") / "out", []
    _facts(out, log=told.append)
    return out, told


def test_a_callback_gets_every_judged_plan_as_the_ledger_has_it(
    followed: tuple[Path, list[Judgment]],
) -> None:
    out, told = followed
    assert [one.step for one in told] == list(range(len(told)))
    assert (told[0].stage, told[0].plan) == ("baseline", "nothing cut")
    assert {one.metric for one in told} == {"accuracy"}
    with Ledger.open(out.with_name("out.run") / "ledger.sqlite", create=False) as ledger:
        run = ledger.runs()[-1]
        select = ledger.recall(run.id, "select")
        trials = ledger.trials(ledger.recall(run.id, "scope"), select)
    whole = {str(trial.plan): trial for trial in trials if trial.n == len(select)}
    final = {one.plan: one for one in told if one.n == len(select)}
    assert len(whole) > 1
    assert set(whole) == set(final)
    for plan, trial in whole.items():
        assert final[plan].value == pytest.approx(trial.means["accuracy"], rel=1e-12)
        assert final[plan].loss == pytest.approx(trial.means["loss"], rel=1e-12)
    assert {str(trial.plan) for trial in trials} <= {one.plan for one in told}


def test_nothing_is_told_of_the_test_split_and_of_other_tasks(
    followed: tuple[Path, list[Judgment]],
) -> None:
    _, told = followed
    assert {one.stage for one in told} <= {"baseline", "judge", "race", "compose", "choose", "curves"}
    assert len({(one.stage, one.plan, one.n) for one in told}) == len(told)


def test_a_run_that_goes_on_tells_the_same_again(
    followed: tuple[Path, list[Judgment]], tmp_path: Path
) -> None:
    out, told = followed
    shutil.copytree(out.with_name("out.run"), tmp_path / "out.run")
    with Ledger.open(tmp_path / "out.run/ledger.sqlite") as ledger:
        judged = ledger.evaluations(ledger.recall(ledger.runs()[-1].id, "scope"))
    again: list[Judgment] = []
    _facts(tmp_path / "out", log=again.append)
    assert again == told
    with Ledger.open(tmp_path / "out.run/ledger.sqlite") as ledger:
        assert ledger.evaluations(ledger.recall(ledger.runs()[-1].id, "scope")) == judged


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_has_a_run_with_the_judgments(
    name: str,
    followed: tuple[Path, list[Judgment]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = followed[1]
    (tmp_path / f"{name}.py").write_text(FAKE.format(file=str(tmp_path / "told.jsonl")), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    result = _facts(tmp_path / "out", log=f"{name}:mine")
    sys.modules.pop(name)
    lines = (tmp_path / "told.jsonl").read_text(encoding="utf-8").splitlines()
    first, *logged, last = (json.loads(line) for line in lines)
    assert first[:3] == ["init", "mine", "out"]
    assert first[3]["task"] == "builtin:facts"
    assert last == ["finish"]
    assert [(step, values["plan"], values["examples"]) for _, step, values in logged] == [
        (one.step, one.plan, one.n) for one in told
    ]
    assert [values["accuracy"] for *_, values in logged] == [one.value for one in told]
    assert [values["loss"] for *_, values in logged] == [one.loss for one in told]
    assert result.plan.edits
    assert "greets" not in capsys.readouterr().out


class _Writer:
    """The part of torch's SummaryWriter that is used."""

    made: ClassVar[list[_Writer]] = []

    def __init__(self, log_dir: str, purge_step: int) -> None:
        self.folder, self.purged, self.closed = log_dir, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        self.texts: list[tuple[str, str, int]] = []
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def add_text(self, name: str, value: str, step: int) -> None:
        self.texts.append((name, value, step))

    def close(self) -> None:
        self.closed = True


def _two_judgments(word: str, run: str) -> None:
    """Tell a tracker of two plans."""
    opened = tracking.open_log(word)
    assert opened is not None
    with opened(run, {}) as tell:
        tell(Judgment(0, "baseline", "nothing cut", "accuracy", 0.5, 1.25, 40))
        tell(Judgment(1, "race", "b2.gate → rank 1", "accuracy", 0.75, 0.5, 32))


def test_tensorboard_gets_numbers_and_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("torch.utils.tensorboard")
    vars(fake)["SummaryWriter"] = _Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr(tracking, "find_spec", lambda name: name)
    _two_judgments(f"tensorboard:{tmp_path}", "mine")
    writer = _Writer.made.pop()
    assert (writer.folder, writer.purged, writer.closed) == (str(tmp_path / "mine"), 0, True)
    assert ("accuracy", 0.75, 1) in writer.scalars
    assert ("loss", 1.25, 0) in writer.scalars
    assert ("examples", 32, 1) in writer.scalars
    assert ("plan", "b2.gate → rank 1", 1) in writer.texts


def test_tensorboard_itself_reads_what_is_written(tmp_path: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    _two_judgments(f"tensorboard:{tmp_path}", "mine")
    events = reader.EventAccumulator(str(tmp_path / "mine")).Reload()
    assert [(one.step, one.value) for one in events.Scalars("accuracy")] == [(0, 0.5), (1, 0.75)]


@pytest.mark.parametrize(
    ("word", "error", "says"),
    [
        ("wand", UnknownName, "Did you mean wandb?"),
        ("wandb", SecateurError, "pip install wandb"),
        ("tensorboard:", SecateurError, "nothing stands after the colon"),
    ],
)
def test_a_log_that_cannot_be_is_refused_before_anything_is_read(
    word: str, error: type[SecateurError], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(error, match=says.replace("?", r"\?")):
        secateur.prune(str(tmp_path / "no-model"), "no-task.jsonl", tmp_path / "out", log=word)
    asked = ["prune", str(tmp_path / "no-model"), "--task", "no-task.jsonl", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*asked, "--log", word])
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_a_log_is_of_one_search(tmp_path: Path) -> None:
    asked = ["prune", "builtin:facts", "--task", "a.csv", "--task", "b.csv", "--each", "-o", str(tmp_path)]
    done = CliRunner().invoke(app, [*asked, "--log", "wandb"])
    assert done.exit_code == 2
    assert "Leave out --each" in done.stderr
