"""The commands as a user meets them: what a finished run leaves, what the same and another command do then, --json."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from fixtures.folders import contents, questions, save_model, secateur, write_rows
from fixtures.forked import in_terminal
from fixtures.zoo import tiny
from rich.console import Console

from secateur.cli.tables import print_verdict, table
from secateur.core.ledger import Ledger
from secateur.core.records.verdict import VerdictRecord
from secateur.hf.families import DECISIONS, FAMILIES

VERBS = ("prune", "demo", "apply", "report", "eval", "probe", "runs", "show", "tasks", "models")
CONTRACT = (
    *("verdict", "metric", "n", "before", "after", "p_value"),
    *("candidates_tried", "guards", "side_effects"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """A model and a task with nothing to gain."""
    place = tmp_path_factory.mktemp("cli")
    save_model(place / "m", tiny("llama"), words)
    write_rows(place / "q.jsonl", questions())
    return place


def prune_words(place, out, *more):
    """A small search."""
    small = ["--matrices", "down,v", "--layers", "1", "--side", place / "q.jsonl"]
    return ["prune", place / "m", "--task", place / "q.jsonl", "-o", out, *small, *more]


@pytest.fixture(scope="module")
def finished(place):
    result = secateur(*prune_words(place, place / "out"))
    assert result.exit_code == 0, result.stderr
    return result


# ------------------------------------------------------------------------------------------------- a finished run


def test_where_nothing_helps_everything_is_still_there(place, finished):
    """The right answers follow no rule, so no cut may be said to improve; exit code 0 all the same."""
    verdict = json.loads((place / "out/verdict.json").read_text())
    assert verdict["verdict"] != "improves"
    assert verdict["verdict"] in finished.stdout
    assert {key for key in CONTRACT if key not in verdict} == set()
    for which in ("before", "after"):
        assert set(verdict[which]) >= {"value", "ci"}
    assert set(verdict["difference"]) == {"value", "ci"}
    assert verdict["n"] == 130
    names = {path.name for path in (place / "out").iterdir()}
    assert names >= {"plan.json", "verdict.json", "analysis.json", "report.html", "README.md", "config.json"}
    assert names >= {"model.safetensors", "tokenizer.json", "generation_config.json"}
    assert sorted(path.name for path in (place / "out.run").iterdir()) == ["ledger.sqlite", "lock"]


def test_nothing_leaks_to_stderr(finished):
    assert finished.stderr == ""


def test_provenance(place, finished):
    plan = json.loads((place / "out/plan.json").read_text())
    verdict = json.loads((place / "out/verdict.json").read_text())
    assert plan["model"] == verdict["model"]["fingerprint"]
    provenance = plan["provenance"]
    assert provenance["task"] == verdict["task"]["hash"]
    assert provenance["seed"] == 0
    assert set(provenance["versions"]) >= {"secateur", "torch", "transformers", "python"}
    assert provenance["command"]["matrices"] == ["down", "v"]


def test_the_command_that_it_names_makes_the_same_again(place, finished):
    """`plan.json` tells a command line; typed again on the finished folder it is recognized as the same."""
    typed = json.loads((place / "out/plan.json").read_text())["provenance"]["command_line"].split()
    assert typed[:2] == ["secateur", "prune"]
    again = secateur(*typed[1:], "-o", place / "out")
    assert again.exit_code == 0, again.stderr
    assert "already holds the result of this command" in again.stdout


def test_the_same_command_again_changes_nothing(place, finished):
    before = contents(place)
    again = secateur(*prune_words(place, place / "out"))
    assert again.exit_code == 0
    assert "already holds the result" in again.stdout
    assert contents(place) == before


def test_another_command_is_refused_and_overwrite_replaces(place, finished):
    before = contents(place / "out")
    other = prune_words(place, place / "out", "--seed", "3")
    refused = secateur(*other)
    assert refused.exit_code == 2
    assert "another command (seed 0, now 3)" in refused.stderr
    assert contents(place / "out") == before
    method = secateur(*prune_words(place, place / "out", "--method", "directions"))
    assert "another command (method laser, now directions)" in method.stderr
    done = secateur(*other, "--overwrite")
    assert done.exit_code == 0, done.stderr
    assert json.loads((place / "out/plan.json").read_text())["provenance"]["seed"] == 3
    assert sorted(path.name for path in (place / "out.run").iterdir()) == ["ledger.sqlite", "lock"]
    back = secateur(*prune_words(place, place / "out"), "--overwrite")
    assert back.exit_code == 0, back.stderr


def test_overwrite_runs_the_same_again_and_judges_nothing_new(place, finished):
    before = evaluations(place / "out.run/ledger.sqlite")
    again = secateur(*prune_words(place, place / "out", "--overwrite"))
    assert again.exit_code == 0, again.stderr
    assert "already" not in again.stdout
    assert evaluations(place / "out.run/ledger.sqlite") == before


def evaluations(path):
    with Ledger.open(path, create=False) as ledger:
        rows = ledger._read("SELECT count(*) FROM outcomes")
    return rows[0][0]


def test_a_shared_ledger(place, finished, tmp_path):
    """Another run with the same model and task finds everything judged."""
    shared = place / "out.run/ledger.sqlite"
    before = evaluations(shared)
    done = secateur(*prune_words(place, tmp_path / "other", "--ledger", shared))
    assert done.exit_code == 0, done.stderr
    assert evaluations(shared) == before
    assert not (tmp_path / "other.run").exists()


# ------------------------------------------------------------------------------------------------------ every verb


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_at_most_80_wide_with_one_example_a_line(verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = secateur(verb, "--help").stdout
    assert max(map(len, shown.splitlines())) <= 80
    tail = shown[shown.index("  Example") :].rstrip().splitlines()
    assert tail[0] in ("  Example:", "  Examples:")
    assert all(line.startswith(f"    secateur {verb}") for line in tail[1:])
    assert "…" not in shown


def json_commands(place):
    task = ["--task", place / "q.jsonl"]
    return {
        "prune": prune_words(place, place / "out"),
        "apply": ["apply", place / "m", "--edit", "b1.down=3", "-o", place / "applied", "--overwrite"],
        "report": ["report", place / "out"],
        "eval": ["eval", place / "m", *task, "--edit", "b1.down=3"],
        "eval test": ["eval", place / "m", *task, "--split", "test", "--ledger", place / "eval.sqlite"],
        "spectrum": ["probe", place / "m", *task],
        "curves": ["probe", place / "m", *task, "--what", "curves", "--layers", "1", "--matrices", "v"],
        "tail": ["probe", place / "m", *task, "--what", "tail", "--edit", "b1.down=3"],
        "runs": ["runs", place],
        "show": ["show", place / "out"],
        "tasks": ["tasks"],
        "models": ["models"],
    }


@pytest.mark.parametrize("name", list(json_commands(Path())))
def test_json_is_all_of_stdout(name, place, finished):
    result = secateur(*json_commands(place)[name], "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert result.stderr == ""


@pytest.mark.parametrize("name", list(json_commands(Path())))
def test_tables_fit_a_narrow_terminal(name, place, finished, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = secateur(*json_commands(place)[name])
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines
    assert all(len(line) <= 80 or str(place) in line for line in lines)


def test_eval_and_prune_agree_about_the_original(place, finished):
    """The verdict's `before` is what `eval --split test` measures, and looking there is counted."""
    ledger = place / "counted.sqlite"
    looked = [
        "eval",
        place / "m",
        "--task",
        place / "q.jsonl",
        "--split",
        "test",
        "--ledger",
        ledger,
        "--json",
    ]
    found = json.loads(secateur(*looked).stdout)
    accuracy = next(score for score in found["scores"] if score["metric"] == "accuracy")
    verdict = json.loads((place / "out/verdict.json").read_text())
    assert accuracy["value"] == verdict["before"]["value"]
    with Ledger.open(ledger, create=False) as journal:
        assert journal._read("SELECT count(*) FROM openings")[0][0] == 1


def test_a_look_at_test_counts_but_does_not_stand_in_for_the_verdict(place, finished, tmp_path):
    """After `eval --split test` prune's p-value is corrected for two openings, not replaced by eval's 1.

    The shared ledger knows of no run before these two; that of `finished` may count more than its own.
    """
    shared = tmp_path / "shared.sqlite"
    looked = ["eval", place / "m", "--task", place / "q.jsonl", "--split", "test", "--ledger", shared]
    assert secateur(*looked).exit_code == 0
    assert secateur(*prune_words(place, tmp_path / "o", "--ledger", shared)).exit_code == 0
    verdict = json.loads((tmp_path / "o/verdict.json").read_text())
    alone = json.loads((place / "out/verdict.json").read_text())
    assert verdict["openings"] == 2
    assert verdict["p_value_unadjusted"] == alone["p_value_unadjusted"]


def test_runs_and_show_find_a_folder_that_was_moved(place, finished, tmp_path):
    (place / "out").rename(tmp_path / "moved")
    (place / "out.run").rename(tmp_path / "moved.run")
    try:
        found = json.loads(secateur("show", tmp_path / "moved", "--json").stdout)
        assert found["verdict"]["n"] == 130
        assert found["judged"] > 10
        assert found["tried"] == found["verdict"]["candidates_tried"]
        listed = json.loads(secateur("runs", tmp_path, "--json").stdout)
        command = json.loads((tmp_path / "moved/plan.json").read_text())["provenance"]["command"]
        again = {
            run["plans"] for run in listed if run["command"] == command
        }  # another test may have run it again
        assert again == {found["tried"]}
        assert [run["status"] for run in listed] == [found["verdict"]["verdict"]] * len(listed)
    finally:
        (tmp_path / "moved").rename(place / "out")
        (tmp_path / "moved.run").rename(place / "out.run")


def test_show_lists_cuts_in_the_order_of_the_search_and_curves_last(place, finished):
    """Best by the metric first, equal ones by the log-loss among the choices; then what was only drawn."""
    found = json.loads(secateur("show", place / "out", "--top", "1000", "--json").stdout)
    original, *cuts = found["trials"]
    assert original["plan"] == "nothing cut" or not original["plan"]
    assert len(cuts) == found["on_select"] + found["for_curves"]

    def rank(trial):
        return -trial["n"], -trial[found["metric"]], trial[found["ties_by"]]

    tried, drawn = cuts[: found["on_select"]], cuts[found["on_select"] :]
    assert [rank(trial) for trial in tried] == sorted(map(rank, tried))
    assert [rank(trial) for trial in drawn] == sorted(map(rank, drawn))
    choice = found["verdict"]["search"]["choice"]
    assert choice["tried"] == found["tried"]
    if not choice["shown"]:
        assert tried[0]["plan"] == choice["best"]


def test_report_again_is_the_same_page(place, finished):
    before = (place / "out/report.html").read_bytes()
    (place / "out/report.html").unlink()
    assert secateur("report", place / "out").exit_code == 0
    assert (place / "out/report.html").read_bytes() == before


# ------------------------------------------------------------------------------------------------------- terminal


def test_what_data_says_is_printed_as_it_is():
    """Neither Rich's markup nor an escape sequence of a task gets through."""
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(table(("[bold]t",), [["[red]x[/red] [link=file]y"]]))
    shown = console.export_text()
    assert "[red]x[/red] [link=file]y" in shown
    assert "[bold]t" in shown


@pytest.mark.parametrize("width", [80, 120])
def test_the_verdict_is_broken_at_words(width, place, finished):
    verdict = json.loads((place / "out/verdict.json").read_text())
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        print_verdict(console, VerdictRecord.model_validate(verdict))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= width
    assert " ".join(verdict["sentence"].split()) in " ".join(shown.split())
    table_lines = shown[shown.index("measured") : shown.index("·")]
    assert all("\n" not in interval for interval in re.findall(r"\[[^\]]*\]", table_lines))


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_leaves_the_terminal_clean(place, tmp_path, forks):
    def stop(process, shown):
        nonlocal sent
        if not sent and b"racing" in shown:
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            sent = True

    sent = False
    words = ["prune", "builtin:facts", "--task", "builtin:facts", "--exhaustive", "-o", tmp_path / "out"]
    code, shown = in_terminal(forks, Path.cwd(), words, stop)
    assert code == 130, shown
    assert "Traceback" not in shown
    assert "the same command goes on from there" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor stays hidden"
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in (tmp_path / "out.run").iterdir()) == ["ledger.sqlite", "lock"]
    assert evaluations(tmp_path / "out.run/ledger.sqlite") > 0


@pytest.mark.slow
def test_an_error_amid_progress_bars_leaves_the_terminal_clean(place, tmp_path, forks):
    words = ["prune", place / "m", "--task", "nowhere.jsonl", "-o", tmp_path / "out"]
    code, shown = in_terminal(forks, Path.cwd(), words, lambda process, shown: None)
    assert code == 2
    assert "Traceback" not in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor stays hidden"
    last = shown.rstrip().splitlines()[-1].removeprefix("\x1b[?25h")
    assert last == "secateur: nowhere.jsonl: cannot be read (No such file or directory)."


def test_models_lists_every_family_and_what_it_does_not_allow():
    found = json.loads(secateur("models", "--json").stdout)
    listed = {row["architecture"]: row for row in found["families"]}
    assert listed.keys() == FAMILIES.keys() | DECISIONS.keys()
    assert "Gemma3ForConditionalGeneration" in found["multimodal"]
    assert listed["Olmo2ForCausalLM"]["silenced"] == ["heads"]
    assert not listed["Gemma3ForCausalLM"]["fold"]
    assert not listed["GPT2LMHeadModel"]["stock_heads"]
    row = next(line for line in secateur("models").stdout.splitlines() if "Olmo2ForCausalLM" in line)
    assert "dropped heads" in row
