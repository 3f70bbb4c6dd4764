"""`probe --what linearity` of a model with outlier tokens, from folders: what is recorded, printed and drawn.
The scores themselves are checked in reference/test_outliers.py."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import plotly.graph_objects as go
import pytest
from fixtures.encoders import WITH_HEAD
from fixtures.folders import save_model, secateur, write_rows
from fixtures.planted import massive
from fixtures.zoo import tiny
from test_linearity import figures_of, rows_of

import secateur as package

TEXTS, WORDS = 260, 30


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("outliers")
    save_model(place / "massive", massive(), words)
    save_model(place / "plain", tiny("gpt2"), words)
    deep = WITH_HEAD["t5"]()
    deep.shared.weight[50] *= 1000
    save_model(place / "t5", deep, words)
    draw = random.Random(0)
    rows = [{"text": " ".join(f"w{draw.randrange(30, 90)}" for _ in range(WORDS))} for _ in range(TEXTS)]
    write_rows(place / "text.jsonl", rows)
    return place


def read(place: Path, name: str, **options):
    return package.probe(str(place / name), f"text:{place / 'text.jsonl'}", what="linearity", **options)


def probe(place: Path, name: str, *more: object):
    task = f"text:{place / 'text.jsonl'}"
    return secateur("probe", place / name, "--task", task, "--what", "linearity", "-q", *more)


def test_the_record_has_both_and_names_the_tokens(place):
    found = read(place, "massive")
    (model,) = found["models"]
    assert found["outlier_norm"] == 5
    for row in model["rows"]:
        outliers, without = row["outliers"], row["without_outliers"]
        assert outliers["positions"] == [{"position": 0, "count": model["n"], "of": model["n"]}]
        assert outliers["count"] == model["n"] == row["num_tokens"] - without["num_tokens"]
        assert [token["text"] for token in outliers["tokens"]] == [f"w{t['id']}" for t in outliers["tokens"]]
        assert all(token["count"] <= token["of"] for token in outliers["tokens"])
        assert outliers["matter"]
        assert row["stream"][0] > 0.99 > without["stream"][0]
        assert row["anisotropy"] > 0.9 > without["anisotropy"]
    last = model["last"][""]
    assert last["outliers"]["count"] == model["n"]
    assert last["without_outliers"]["anisotropy"] < last["anisotropy"]
    assert json.loads(json.dumps(found)) == found


def test_without_outlier_tokens_the_record_says_so(place):
    (model,) = read(place, "plain")["models"]
    assert {(row["outliers"], row["without_outliers"]) for row in model["rows"]} == {(None, None)}


def test_the_table_has_a_line_without_them(place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = probe(place, "massive")
    assert done.exit_code == 0, done.output
    row = rows_of(read(place, "massive")["models"][0])["b1"]
    for start, one in (("b1", row), (f"  less {row['outliers']['count']}", row["without_outliers"])):
        scores = " +".join(f"{score:.4f}" for score in (*one["stream"], *one["added"]))
        assert re.search(rf"^{start} +{scores} +{one['cosine']:.3f} ", done.output, flags=re.M)
    told = " ".join(done.output.split())
    assert f"outlier tokens: b0, b1, b2: {row['outliers']['count']} of {row['num_tokens']:,}" in told
    assert "most often at position 0" in told
    assert "warning: outlier tokens decide scores of b0, b1, b2" in told
    with_them, without = map(
        float, re.search(r"\(b\d: ([-.\d]+) with them, ([-.\d]+) without\)", told).groups()
    )
    changes = [
        abs(one - other)
        for row in read(place, "massive")["models"][0]["rows"]
        for kind in ("stream", "added")
        for one, other in zip(row[kind], row["without_outliers"][kind], strict=True)
    ]
    assert abs(with_them - without) == pytest.approx(max(changes), abs=2e-4), (
        "the place that they change most"
    )


@pytest.mark.slow
@pytest.mark.parametrize("names", ["heads", "heads,matrices"])
def test_the_table_fits_80_columns_whatever_the_sites(place, monkeypatch, names):
    """Names as long as dec.b11.cross.h15, which this tiny model has not, have the room."""
    monkeypatch.setenv("COLUMNS", "80")
    done = probe(place, "t5", "--finer", names)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    record = json.loads(probe(place, "t5", "--finer", names, "--json").stdout)
    lines = done.output.splitlines()
    for row in record["models"][0]["rows"]:
        assert any(re.match(rf"{re.escape(row['site'])} ", line) for line in lines), row["site"]
    longest = max(len(row["site"]) for row in record["models"][0]["rows"])
    used = max(len(line.rstrip()) for line in lines if line.startswith(("enc.", "dec.")))
    assert used + len("dec.b11.cross.h15") - longest <= 80


def test_a_series_has_both_for_every_model(place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    words = ("massive", "--also", place / "plain")
    shown, raw = probe(place, *words), probe(place, *words, "--json")
    first, second = (rows_of(model) for model in json.loads(raw.stdout)["models"])
    for name in ("stream", "added"):
        with_them = f"{first['b1'][name][1]:.4f} +{second['b1'][name][1]:.4f}"
        without = f"{first['b1']['without_outliers'][name][1]:.4f} +{second['b1'][name][1]:.4f}"
        assert re.search(rf"b1 +{with_them} *\n +less outliers +{without}", shown.output)


def test_the_page_draws_both_and_lists_the_tokens(place, tmp_path):
    found = read(place, "massive", also=[str(place / "plain")], out=tmp_path / "out")
    page = (tmp_path / "out/probe.html").read_text(encoding="utf-8")
    figures = figures_of(page)
    for figure in figures.values():
        go.Figure(figure["data"], figure["layout"])  # raises where plotly's schema is not kept
    scores = [figures[f"linearity-{number}"]["data"] for number in range(4)]
    rows = found["models"][0]["rows"]
    for (whole, without), name in ((scores[:2], "stream"), (scores[2:], "added")):
        solid = [next(t for t in data if t["line"]["dash"] == "solid") for data in (whole, without)]
        assert solid[0]["y"] == [row[name][1] for row in rows]
        assert solid[1]["y"] == [row["without_outliers"][name][1] for row in rows]
    assert "Outlier tokens" in page
    assert f"0 ({found['models'][0]['n']} of {found['models'][0]['n']})" in page
    assert "more than 5 times the median norm" in page
    read(place, "plain", out=tmp_path / "plain")
    assert "Outlier tokens" not in (tmp_path / "plain/probe.html").read_text(encoding="utf-8")


def test_depth_goes_by_the_scores_without_them(place, tmp_path):
    """With them every score is near 1, and 1 less it near 0."""
    words = ("prune", place / "massive", "--task", f"text:{place / 'text.jsonl'}", "-o", tmp_path / "out")
    done = secateur(*words, "--method", "depth", "--by", "linearity", "--blocks", "1", "--limit", 100,
                    "--allow-small", "-q")  # fmt: skip
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out/analysis.json").read_text())["depth"]
    measured = record["order"][0]["measured"]
    rows = rows_of(read(place, "massive", split="probe", limit=100, allow_small=True)["models"][0])
    for block, value in measured.items():
        row = rows[f"b{block}"]
        assert value == pytest.approx(1 - row["without_outliers"]["stream"][0], abs=0.02)
        assert value > 10 * (1 - row["stream"][0])
