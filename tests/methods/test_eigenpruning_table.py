"""The script that prints eigenpruning's table: every number is that of a verdict, what is there is not made again."""

from __future__ import annotations

import json
import logging
import runpy
from pathlib import Path

import pytest
from fixtures.folders import write_rows
from fixtures.places import SCRIPTS

import secateur

SCRIPT = SCRIPTS / "eigenpruning_table.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="needs the repository's scripts")
ROWS = [
    "--model",
    "builtin:arith",
    "--matrices",
    "up",
    "--protocol",
    "paper",
    "--limit",
    "150",
    "--allow-small",
]
BOTH = [
    *ROWS,
    "--task",
    "builtin:int-mult",
    "--task",
    "sums=builtin:int-sum",
    "--finetune",
    "arith",
    "--epochs",
    "1",
]


@pytest.fixture(autouse=True)
def loud():
    """The script turns our warnings down, in its own process for good."""
    level = logging.getLogger("secateur").level
    yield
    logging.getLogger("secateur").setLevel(level)


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def run(script, capsys, words, out):
    """Exit code, and what was printed."""
    code = script["main"]([*words, "-o", str(out)])
    return code, capsys.readouterr().out


def verdict_of(cell):
    return json.loads((Path(cell["out"]) / "verdict.json").read_text())


@pytest.mark.slow
def test_every_cell_is_a_verdict_and_is_made_once(script, capsys, tmp_path):
    code, printed = run(script, capsys, [*BOTH, "--json"], tmp_path / "table")
    cells = json.loads(printed)
    assert code == 0
    assert [(c["model"], c["tuned"], c["task"]) for c in cells] == [
        ("arith", tuned, task) for tuned in (False, True) for task in ("int-mult", "sums")
    ]
    for cell in cells:
        verdict = verdict_of(cell)
        for name in ("before", "after", "difference", "p_value", "verdict"):
            assert cell[name] == verdict[name], name
        edits = json.loads((Path(cell["out"]) / "plan.json").read_text())["edits"]
        assert (
            cell["directions"] == sum(len(edit["directions"]) for edit in edits) == 26
        )  # 10 % of 128, twice
        assert not cell["already"]
    for plain, tuned in zip(cells[:2], cells[2:], strict=True):
        assert plain["untuned"] is None
        assert tuned["untuned"] == plain["before"]
        own = secateur.load(str(Path(tuned["out"]).with_name("tuned"))).fingerprint
        assert verdict_of(tuned)["model"]["fingerprint"] == own
        assert own != verdict_of(plain)["model"]["fingerprint"]
    code, printed = run(script, capsys, [*BOTH, "--json"], tmp_path / "table")
    again = json.loads(printed)
    assert all(cell["already"] for cell in again)
    assert [c | {"already": False} for c in again] == cells

    code, printed = run(script, capsys, BOTH, tmp_path / "table")
    for cell in cells:
        assert f"{100 * cell['after']['value']:.1f} % [" in printed
        assert cell["verdict"].split()[0] in printed


@pytest.mark.slow
def test_what_was_pruned_before_another_fine_tuning_is_not_taken(script, capsys, tmp_path):
    out, words = tmp_path / "table", [*ROWS, "--task", "builtin:int-mult", "--finetune", "arith", "--json"]
    run(script, capsys, [*words, "--epochs", "1"], out)
    how = {"split": "probe", "epochs": 1, "lr": 1e-3, "limit": 150, "allow_small": True, "seed": 0}
    tuned = secateur.finetune("builtin:arith", "builtin:int-mult", out / "arith-fine-tuned/int-mult/tuned",
                              overwrite=True, **how)  # fmt: skip
    code, printed = run(script, capsys, [*words, "--epochs", "1", "--lr", "1e-3"], out)
    cell = json.loads(printed)[1]
    assert (code, cell["already"]) == (0, False)
    assert verdict_of(cell)["model"]["fingerprint"] == tuned.record["fingerprint"]


def test_a_cell_that_cannot_be_filled_says_why(script, capsys, tmp_path):
    long = write_rows(
        tmp_path / "long.jsonl",
        [{"id": str(n), "prompt": f"{n} x 2 = " + "3 " * 140, "answer": f" {n}"} for n in range(60)],
    )
    words = [*ROWS, "--task", f"long={long}", "--task", "builtin:int-mult"]
    code, printed = run(script, capsys, [*words, "--json"], tmp_path / "table")
    failed, filled = json.loads(printed)
    assert code == 1
    assert "context of 128" in failed["why"]
    assert failed["before"] is failed["out"] is None
    assert filled["after"] == verdict_of(filled)["after"]
    assert not filled["why"]


def test_other_options_do_not_pass_for_what_is_there(script, capsys, tmp_path):
    words = [*ROWS, "--task", "builtin:int-mult", "--json"]
    run(script, capsys, words, tmp_path / "table")
    code, printed = run(script, capsys, [*words, "--per-head"], tmp_path / "table")
    (cell,) = json.loads(printed)
    assert code == 1
    assert "another command" in cell["why"]


def test_the_figures_of_the_paper_stand_beside_its_own_models_and_tasks(script):
    published = script["published"]
    assert published("microsoft/phi-2", False, "int-mult") == (13.75, 97.50)
    assert published("gpt2", True, "rte") == (47.29, 52.71)
    assert published("openai-community/gpt2", False, "cb") == (10.71, 12.50)
    assert published("builtin:arith", False, "int-mult") is None
    assert published("gpt2", False, "facts") is None
    assert published("microsoft/phi-2", True, "cb") is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "gpt2", "--finetune", "phi"], "phi: give that name"),
        (["--model", "gpt2", "--model", "other/gpt2"], "two of --model"),
        (
            ["--model", "gpt2", "--task", "cb", "--task", "cb:x.jsonl", "--task", "cb=y.jsonl"],
            "two of --task",
        ),
    ],
)
def test_names_that_say_nothing_are_refused(script, capsys, tmp_path, words, said):
    with pytest.raises(SystemExit):
        run(script, capsys, words, tmp_path / "table")
    assert said in capsys.readouterr().err
