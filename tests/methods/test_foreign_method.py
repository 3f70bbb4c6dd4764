"""A method of another package, in one file: flags, help, a search, a verdict, a section of the page, a forecast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.folders import questions, save_model, write_rows
from fixtures.zoo import tiny

TOY = '''
from dataclasses import dataclass

from secateur.core.config import Config, option
from secateur.core.plan import Drop
from secateur.core.ranges import whole
from secateur.core.records.analysis import AnalysisRecord
from secateur.core.records.verdict import SearchRecord
from secateur.core.site import Site
from secateur.errors import UnknownName
from secateur.methods.method import CountingJudge, Method, Proposal
from secateur.report.frame import PageSection


@dataclass(frozen=True)
class ToyConfig(Config):
    toy_block: int = option(whole(0, 0), "Drop this block's feed-forward network.", "N")


class Toy(Method):
    """Drop one feed-forward network."""

    name = "toy"
    summary = "one feed-forward network, named by the user"
    Config = ToyConfig

    def check(self, session):
        blocks = session.loaded.anatomy.num_blocks
        if session.config(ToyConfig).toy_block >= blocks:
            raise UnknownName(f"--toy-block: this model has blocks 0 to {blocks - 1}.")

    def search(self, session):
        judge, select = CountingJudge(session.judge()), session.shuffled("select")
        plan = session.empty + Drop(Site(session.config(ToyConfig).toy_block, "mlp"))
        judge([session.empty, plan], select, "choose")
        return Proposal(
            plan=plan,
            tried=judge.tried,
            evaluations=judge.evaluations,
            search=SearchRecord(method="toy", proposed=1),
            analysis=AnalysisRecord(toy={"dropped": plan.edits[0].site.block}),
            margin=10.0,
        )

    def sections(self, verdict, analysis):
        block = analysis.extra_keys["toy"]["dropped"]
        return [PageSection("toy", "Toy", "What the toy did.", (f"<p>dropped {block}</p>",))]


TOY = Toy()
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, words) -> Path:
    """A folder with the package, as pip would leave it, and a model with a task."""
    place = tmp_path_factory.mktemp("foreign")
    (place / "site/toy-1.0.dist-info").mkdir(parents=True)
    (place / "site/toy_package.py").write_text(TOY)
    (place / "site/toy-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    entry = "[secateur.methods]\ntoy = toy_package:TOY\n"
    (place / "site/toy-1.0.dist-info/entry_points.txt").write_text(entry)
    save_model(place / "m", tiny("llama"), words)
    write_rows(place / "q.jsonl", questions())
    return place


def run(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(place / "site"), *sys.path])}
    command = [sys.executable, "-m", "secateur", *words]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)


ASKED = ("m", "--task", "q.jsonl", "--method", "toy", "--allow-small", "--toy-block", "1")


def test_help_has_it_and_its_options(place: Path):
    told = run(place, "prune", "--help").stdout
    assert "toy: one feed-forward network" in " ".join(told.split())
    panel = told.partition("Options of --method toy:")[2]
    assert "--toy-block N" in panel


def test_it_searches_and_is_judged_and_reported(place: Path):
    done = run(place, "prune", *ASKED, "-o", "out", "--quiet")
    assert done.returncode == 0, done.stderr
    verdict = json.loads((place / "out/verdict.json").read_text())
    assert (verdict["search"]["method"], verdict["candidates_tried"]) == ("toy", 1)
    assert [cut["site"] for cut in verdict["cut"]] == ["b1.mlp"]
    assert verdict["non_inferiority"]["margin"] == 10.0
    page = (place / "out/report.html").read_text()
    assert '<section id="toy">' in page
    assert "<p>dropped 1</p>" in page
    assert run(place, "report", "out").returncode == 0


@pytest.mark.slow
def test_what_cannot_be_is_refused_before_weights_are_read(place: Path):
    done = run(place, "prune", *ASKED[:-1], "9", "-o", "never")
    assert (done.returncode, done.stderr) == (2, "secateur: --toy-block: this model has blocks 0 to 1.\n")
    done = run(place, "prune", "m", "--task", "q.jsonl", "--toy-block", "1", "-o", "never")
    assert "--toy-block 1 is not for --method laser, but for toy." in done.stderr
    done = run(place, "prune", *ASKED[:-1], "x", "-o", "never")
    assert done.returncode == 2


@pytest.mark.slow
def test_it_is_forecast(place: Path):
    done = run(place, "plan-cost", *ASKED, "--no-calibrate", "--json")
    assert done.returncode == 0, done.stderr
    stages = {row["stage"]: row["counts"]["expected"] for row in json.loads(done.stdout)["stages"]}
    examples = json.loads(done.stdout)["examples"]["select"]
    assert (stages["search"]["plans"], stages["search"]["evaluations"]) == (2, 2 * examples)
