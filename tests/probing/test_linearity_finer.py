"""`probe --what linearity --finer`: what is recorded, printed, drawn and refused. The scores themselves are checked in
reference/test_linearity_units.py."""

from __future__ import annotations

import json
import random
from pathlib import Path

import plotly.graph_objects as go
import pytest
from fixtures.encoders import WITH_HEAD
from fixtures.folders import save_model, secateur, write_rows
from fixtures.zoo import tiny
from test_linearity import figures_of

import secateur as package
from secateur.errors import TaskError, UnknownName


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("finer")
    save_model(place / "gpt2", tiny("gpt2"), words)
    save_model(place / "t5", WITH_HEAD["t5"](), words)
    draw = random.Random(0)
    rows = [{"text": " ".join(f"w{draw.randrange(3, 90)}" for _ in range(30))} for _ in range(260)]
    write_rows(place / "text.jsonl", rows)
    return place


def read(place: Path, name: str, **options):
    return package.probe(str(place / name), f"text:{place / 'text.jsonl'}", what="linearity", **options)


def sites(found: dict) -> list[str]:
    return [row["site"] for row in found["models"][0]["rows"]]


def test_what_is_asked_for_is_read(place):
    heads = sites(read(place, "gpt2", finer="heads", layers=(0, 1)))
    assert heads == ["b0", "b0.attn", *(f"b0.attn.h{h}" for h in range(4)), "b0.mlp"]
    assert sites(read(place, "gpt2", finer=["matrices"], layers=(0, 1))) == [
        "b0", "b0.attn", "b0.q", "b0.k", "b0.v", "b0.mlp", "b0.up",
    ]  # fmt: skip
    cross = [site for site in sites(read(place, "t5", finer=["heads", "matrices"])) if "dec.b2.cross" in site]
    wanted = ["", *(f".h{h}" for h in range(4)), ".q", ".k", ".v"]
    assert cross == [f"dec.b2.cross{end}" for end in wanted]


def test_what_is_refused(place):
    with pytest.raises(UnknownName, match=r"no finer 'head' to read.*heads"):
        read(place, "gpt2", finer=["head"])
    with pytest.raises(TaskError, match="are for --what linearity"):
        package.probe(str(place / "gpt2"), f"text:{place / 'text.jsonl'}", what="spectrum", finer=["heads"])


@pytest.mark.slow
def test_the_maps_on_the_page_are_the_numbers(place, tmp_path):
    found = read(place, "t5", finer=["heads", "matrices"], also=[str(place / "gpt2")], out=tmp_path / "out")
    figures = figures_of((tmp_path / "out/probe.html").read_text(encoding="utf-8"))
    maps = [figures[name] for name in sorted(figures) if name.startswith("inside")]
    assert len(maps) == 2 + 3 + 2, "encoder; decoder with its cross-attention; GPT-2"
    rows = {row["site"]: row["added"][1] for row in found["models"][0]["rows"] if row["added"]}
    drawn = {}
    for figure in maps:
        go.Figure(figure["data"], figure["layout"])  # raises where plotly's schema is not kept
        (heat,) = figure["data"]
        for scores, words in zip(heat["z"], heat["hovertext"], strict=True):
            drawn |= {said[3 : said.index("</b>")]: z for said, z in zip(words, scores, strict=True) if said}
    inner = {
        site: score for site, score in rows.items() if "." in site.removeprefix("enc.").removeprefix("dec.")
    }
    assert {site: drawn[site] for site in inner} == inner
    assert len(inner) == 2 * (2 + 4 + 3 + 1) + 3 * (3 + 8 + 3 + 3 + 1)
    assert maps[4]["layout"]["xaxis"]["ticktext"] == ["0", "1", "2", "3"]


def test_a_page_without_them_has_no_maps(place, tmp_path):
    read(place, "t5", out=tmp_path / "out")
    figures = figures_of((tmp_path / "out/probe.html").read_text(encoding="utf-8"))
    assert not any(name.startswith("inside") for name in figures)


def test_blocks_are_whole_numbers_on_the_axis(place, tmp_path):
    read(place, "gpt2", out=tmp_path / "out")
    figures = figures_of((tmp_path / "out/probe.html").read_text(encoding="utf-8"))
    assert figures["linearity-0"]["layout"]["xaxis"]["tickvals"] == [0, 1]


def test_on_the_command_line(place):
    asked = ["probe", place / "gpt2", "--task", f"text:{place / 'text.jsonl'}", "--what", "linearity"]
    printed = secateur(*asked, "--finer", "heads,matrices").stdout
    assert "b1.attn.h3" in printed
    assert "b1.up" in printed
    record = json.loads(secateur(*asked, "--finer", "heads", "--json").stdout)
    assert "b1.up" not in sites(record)
