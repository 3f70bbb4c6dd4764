"""`show --optuna`: the judged plans as an optuna study, as the ledger has them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

import secateur
from secateur.cli import runs
from secateur.cli.app import app
from secateur.core.ledger import Ledger

needs_optuna = pytest.mark.skipif(
    find_spec("optuna") is None, reason="optuna is not installed: pip install -c constraints.txt optuna"
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, small run."""
    folder = tmp_path_factory.mktemp("optuna") / "out"
    small = {"limit": 260, "layers": (2, 3), "matrices": ("gate",), "report": "quick"}
    return secateur.prune("builtin:facts", "builtin:facts", folder, **small).out


@needs_optuna
def test_the_study_has_every_plan_of_the_ledger(out: Path, tmp_path: Path) -> None:
    import optuna

    file = tmp_path / "study.db"
    done = CliRunner().invoke(app, ["show", str(out), "--optuna", str(file), "--json"])
    assert done.exit_code == 0, done.output
    study = optuna.load_study(study_name="out", storage=f"sqlite:///{file}")
    assert study.user_attrs == {"metric": "accuracy"}
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert json.loads(done.stdout) == {"optuna": str(file), "trials": len(study.trials)}
    with Ledger.open(out.with_name("out.run") / "ledger.sqlite", create=False) as ledger:
        run = ledger.runs()[-1]
        select = ledger.recall(run.id, "select")
        trials = ledger.trials(ledger.recall(run.id, "scope"), select)
    told = {trial.user_attrs["plan"]: trial for trial in study.trials}
    assert set(told) == {str(trial.plan) for trial in trials}
    for trial in trials:
        written = told[str(trial.plan)]
        whole = trial.n == len(select)
        assert written.state.name == ("COMPLETE" if whole else "PRUNED")
        assert written.intermediate_values[trial.n] == pytest.approx(trial.means["accuracy"])
        assert written.user_attrs["loss"] == pytest.approx(trial.means["loss"])
        assert written.params["edits"] == len(trial.plan.edits)
    best = max(trial.means["accuracy"] for trial in trials if trial.n == len(select))
    assert study.best_value == pytest.approx(best)
    assert {"block": 2, "matrix": "gate"}.items() <= study.best_trial.params.items()


@needs_optuna
def test_a_file_that_is_there_stays(out: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    file.write_text("mine", encoding="utf-8")
    done = CliRunner().invoke(app, ["show", str(out), "--optuna", str(file)])
    assert done.exit_code == 2
    assert file.read_text(encoding="utf-8") == "mine"


def test_without_optuna_the_error_says_what_to_install(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["show", str(out), "--optuna", str(tmp_path / "study.db")])
    assert done.exit_code == 2
    assert "pip install optuna" in done.stderr
