"""The report of removed directions: sections as their records, numbers as the data, words true of every kind of cut."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from fixtures import data_directions, data_report
from scipy.stats import spearmanr
from test_report import Page, strings

from secateur.core.records.analysis import AnalysisRecord
from secateur.core.records.verdict import VerdictRecord
from secateur.core.site import in_words
from secateur.methods.directions.effects_plot import (
    FEWEST,
    MOST,
    kept_promises,
    shares_by_size,
    spearman,
    worth_showing,
)
from secateur.methods.directions.records import DirectionsRecord
from secateur.methods.directions.report import trajectory, worst_allowed
from secateur.methods.registry import method_named
from secateur.report.chart import ACCENT, root_axis, signed_root
from secateur.report.page import assemble
from secateur.reporting import render

NAMES = ("heads", "removal", "single", "deep", "mixed", "nothing", "hostile")
RECORDS = {name: getattr(data_directions, name)() for name in NAMES}
SECTIONS = {"directions", "predictions", "removal", "words"}


@pytest.fixture(scope="module")
def html() -> dict[str, str]:
    return {name: render(*records) for name, records in RECORDS.items()}


@pytest.fixture(scope="module")
def pages(html: dict[str, str]) -> dict[str, Page]:
    return {name: Page(page) for name, page in html.items()}


def record_of(name: str) -> dict[str, Any]:
    return RECORDS[name][2]["directions"]


def typed(record: dict[str, Any]) -> DirectionsRecord:
    return DirectionsRecord.model_validate(record)


def figures(page: Page, name: str) -> list[dict]:
    return [figure for figure in page.figures if re.fullmatch(rf"{name}-\d+", figure["id"])]


def sections(page: Page) -> set[str]:
    return {attributes["id"] for tag, attributes in page.tags if tag == "section"}


def part(html: str, name: str) -> str:
    """The visible words of a section."""
    return Page(re.search(rf'<section id="{name}">.*?</section>', html, flags=re.S)[0]).text


def folded(html: str, figure: str) -> list[list[str]]:
    """The rows of the table below a figure, as text."""
    box = html[html.index(f'id="{figure}"') :]
    body = box[box.index("<tbody>") : box.index("</tbody>")]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("<tr>")[1:]]
    return [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in rows]


# ------------------------------------------------------------------------------------------- the page as a file


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_loaded_and_figures_obey_plotlys_schema(pages, name):
    page = pages[name]
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "data", "action", "poster"} & set(attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#"), "links lead to places of the page"
        assert tag not in ("link", "iframe", "object", "embed", "img", "base")
    for figure in page.figures:
        go.Figure(data=figure["data"], layout=figure["layout"])
        assert figure["id"] in page.ids()
    assert len({figure["id"] for figure in page.figures}) == len(page.figures)


def test_sections_are_those_that_the_records_have(pages):
    assert {name: sections(pages[name]) & SECTIONS for name in NAMES} == {
        "heads": SECTIONS,
        "removal": SECTIONS - {"words"},
        "single": SECTIONS - {"removal", "words"},
        "deep": SECTIONS - {"removal", "words"},
        "mixed": SECTIONS,
        "nothing": SECTIONS - {"removal", "words"},
        "hostile": SECTIONS,
    }
    assert not sections(Page(render(*data_report.facts()))) & SECTIONS


def test_markup_in_the_data_stays_inert(pages, html):
    assert "<img" not in html["hostile"]
    assert html["hostile"].count("<script") == 4
    for figure in pages["hostile"].figures:
        for value in strings([figure["data"], figure["layout"]]):
            assert "<script" not in value
            assert "<img" not in value


def test_a_token_is_shown_as_it_is_written(html):
    words = part(html["hostile"], "words")
    assert data_report.ATTACK in words
    assert "&lt;b&gt;" in words, "a token that is an entity must not turn into another"
    assert "' '" in words, "a token of white space alone is still to be seen"
    assert r"'\n'" in part(html["heads"], "words")


def test_a_page_grows_little_with_the_model(html):
    """What a page holds besides plotly: a model of 224 matrices costs no more than twice that of 39."""
    bare = len(render(*data_directions.single()))
    assert len(html["deep"]) - bare < 2 * (len(html["heads"]) - bare) + 100_000


# ----------------------------------------------------------------------------------------------------- the scales


def test_a_root_axis_has_round_ticks_apart_from_each_other_within_its_range():
    rng = np.random.default_rng(0)
    for _ in range(300):
        values = rng.normal(size=5) * 10.0 ** rng.uniform(-5, 3)
        axis = root_axis(values, "")
        low, high = axis["range"]
        at, labels = axis["tickvals"], [float(t.replace("\u2212", "-")) for t in axis["ticktext"]]
        assert low < min(map(signed_root, values)) <= max(map(signed_root, values)) < high
        assert 0.0 in at
        assert 2 <= len(at) <= 8
        assert all(low <= tick <= high for tick in at)
        assert np.allclose([math.copysign(tick**2, tick) for tick in at], labels)
        assert np.diff(at).min() > 0.12 * (high - low)
        for label in filter(None, labels):
            assert f"{abs(label):.0e}"[0] in "125"
            assert math.isclose(float(f"{label:.0e}"), label)


def test_the_signed_root_keeps_signs_and_order():
    values = np.linspace(-3, 3, 101)
    roots = np.array([signed_root(v) for v in values])
    assert (np.sign(roots) == np.sign(values)).all()
    assert np.allclose(roots * np.abs(roots), values)


# ----------------------------------------------------------------------------------------- harm and the spectrum


@pytest.mark.parametrize("name", ["heads", "removal", "deep"])
def test_the_map_adds_up_the_harm_and_the_removed_of_all_heads(pages, name):
    (figure,) = figures(pages[name], "harm")
    (heat,) = figure["data"]
    names = figure["layout"]["yaxis"]["ticktext"]
    assert names == [n for n in reversed(data_report.SHAPES) if n in names], "q on top"
    framed = {((s["x0"] + s["x1"]) / 2, (s["y0"] + s["y1"]) / 2) for s in figure["layout"]["shapes"]}
    cut = set()
    for y, matrix in enumerate(names):
        for block, root in enumerate(heat["z"][y]):
            own = [m for m in record_of(name)["matrices"] if (m["matrix"], m["block"]) == (matrix, block)]
            assert math.isclose(root**2, sum(one["harm"] for one in own), rel_tol=1e-9)
            gone = sum(len(one["removed"]) for one in own)
            numbered = gone and name != "deep"
            assert heat["text"][y][block] == (f"\u2212{gone}" if numbered else "")
            assert f"{gone:,} removed" in heat["hovertext"][y][block]
            cut |= {(float(block), float(y))} if gone else set()
    assert framed == cut
    assert math.isclose(heat["zmax"], max(max(row) for row in heat["z"]))


@pytest.mark.parametrize("name", ["heads", "removal", "single", "deep"])
def test_panels_show_every_effect_that_is_listed_and_which_went(pages, html, name):
    shown = [one.to_json() for one in worth_showing(typed(record_of(name)).matrices)]
    drawn = figures(pages[name], "directions")
    assert len(drawn) == len(shown)
    assert len({json.dumps(figure["layout"]["yaxis"]["range"]) for figure in drawn}) == 1, "one scale"
    for place, (figure, one) in enumerate(zip(drawn, shown, strict=True)):
        sigma, stays, gone = figure["data"]
        assert gone["x"] == one["removed"]
        assert gone["marker"]["color"] == ACCENT
        assert sorted(stays["x"] + gone["x"]) == one["index"]
        assert np.allclose(sigma["y"], one["sigma"])
        effects = dict(zip(one["index"], one["effect"], strict=True))
        for trace in (stays, gone):
            assert np.allclose([y * abs(y) for y in trace["y"]], [effects[x] for x in trace["x"]])
        rows = folded(html[name], f"directions-{place}")
        assert [row[3] for row in rows] == [
            "removed" if i in one["removed"] else "stays" for i in one["index"]
        ]
        assert np.allclose([float(row[2].replace("−", "-")) for row in rows], one["effect"], rtol=6e-3)


def test_what_was_cut_is_shown_and_then_what_hurts_most():
    for name, cut in (("heads", 4), ("deep", 25), ("nothing", 0)):
        matrices = record_of(name)["matrices"]
        shown = [one.to_json() for one in worth_showing(typed(record_of(name)).matrices)]
        assert sum(bool(one["removed"]) for one in matrices) == cut
        assert len(shown) == max(FEWEST, min(MOST, cut))
        rest = [one for one in matrices if one not in shown]
        for one in rest:
            same = [other["harm"] for other in shown if bool(other["removed"]) == bool(one["removed"])]
            assert one["harm"] <= min(same, default=math.inf)
            assert not one["removed"] or all(other["removed"] for other in shown)
        order = [matrices.index(one) for one in shown]
        assert order == sorted(order)


def test_the_page_says_which_matrices_it_leaves_out(html):
    assert "all 4 heads and matrices with removed directions and the 2 that hurt" in part(
        html["heads"], "directions"
    )
    assert "the 12 of 25 matrices with removed directions that hurt most." in part(html["deep"], "directions")
    assert "Below: the 6 that hurt most" in part(html["nothing"], "directions")
    assert "Below:" not in part(html["single"], "directions")
    assert "none can be read as tokens" in part(html["single"], "directions")
    assert "to second order" in part(html["single"], "directions")


# ----------------------------------------------------------------------------------------- predicted and measured


@pytest.mark.parametrize("name", ["heads", "removal"])
def test_the_correlation_is_spearmans(html, name):
    path = record_of(name)["path"]
    change = [step["loss"] - step["loss_before"] for step in path]
    rho = spearmanr([step["predicted"] for step in path], change).statistic
    assert math.isclose(spearman(typed(record_of(name)).path), rho, abs_tol=1e-12)
    assert f"{rho:+.2f}".replace("-", "−") in part(html[name], "predictions")


def test_no_order_no_correlation():
    path = typed(record_of("heads")).path
    assert spearman([step.model_copy(update={"predicted": -0.1}) for step in path]) is None
    assert spearman(path[:1]) is None


def test_points_lie_where_the_records_say_and_taken_ones_are_marked(pages):
    record = record_of("heads")
    scatter, _ = figures(pages["heads"], "predictions")
    *rounds, taken = scatter["data"]
    assert len(rounds) == 3
    for number, trace in enumerate(rounds):
        own = [step for step in record["path"] if step["round"] == number]
        assert np.allclose([x * abs(x) for x in trace["x"]], [step["predicted"] for step in own])
        assert np.allclose(
            [y * abs(y) for y in trace["y"]], [step["loss"] - step["loss_before"] for step in own]
        )
        assert [symbol == "circle" for symbol in trace["marker"]["symbol"]] == [s["complete"] for s in own]
    assert np.allclose([x * abs(x) for x in taken["x"]], [-0.4082, -0.0255])
    (line,) = [shape for shape in scatter["layout"]["shapes"] if shape.get("xref") != "paper"]
    assert (line["x0"], line["x1"]) == (line["y0"], line["y1"]), "the line of truth as predicted"


def test_shares_by_size_count_the_promises_that_were_kept(html):
    path = record_of("heads")["path"]
    ends = (("1", 1, 1), ("2–4", 2, 4), ("5–16", 5, 16), ("17–64", 17, 64), ("65–256", 65, 256))
    want = []
    for label, low, high in (*ends, ("257+", 257, 10**9)):
        own = [s for s in path if low <= s["added"] <= high and s["predicted"] < 0]
        did = sum(s["loss"] < s["loss_before"] for s in own)
        want.append([label, str(did), str(len(own)), f"{100 * did / len(own):.1f} %"])
    got = [[cell.replace("\xa0", " ") for cell in row] for row in folded(html["heads"], "predictions-1")]
    assert got == want
    steps = typed(record_of("heads")).path
    did, promised = kept_promises(steps)
    assert (did, promised) == (sum(int(row[1]) for row in want), len(path))
    assert f"{promised} that were predicted to lower the loss, {did} did" in part(
        html["heads"], "predictions"
    )
    assert shares_by_size(steps[:19]) is None, "shares of a handful are no shares"


def test_one_plan_is_told_in_a_sentence(pages, html):
    assert not figures(pages["single"], "predictions")
    assert "57 directions at once: predicted −0.0806 nats, measured +1.89 nats" in part(
        html["single"], "predictions"
    )


# -------------------------------------------------------------------------------------------------------- the way


def test_the_way_starts_at_the_original_and_passes_what_was_taken(pages):
    metric, loss = figures(pages["heads"], "walk")
    assert metric["data"][0]["y"] == [0.5417, 0.8417, 0.8667]
    assert loss["data"][0]["y"] == [0.8108, 0.5777, 0.5554]
    assert (metric["data"][1]["x"], metric["data"][1]["y"]) == ([2], [0.8667])
    assert [point.removed for point in trajectory(typed(record_of("heads")))] == [0, 3, 5]


def test_a_removal_shows_all_its_steps_the_bound_and_the_last_one_that_held_it(pages, html):
    record = record_of("removal")
    metric, loss = figures(pages["removal"], "walk")
    assert metric["data"][0]["x"] == [0, 202, 403, 605, 806, 1008, 1210]
    assert metric["data"][1]["x"] == loss["data"][1]["x"] == [202]
    (level,) = metric["layout"]["shapes"]
    assert math.isclose(level["y0"], 0.5417 - 0.02)
    assert loss["layout"]["shapes"] == []
    assert math.isclose(worst_allowed(typed(record | {"higher_is_better": False}), 0.8), 0.82)
    assert f"Chosen: 202 of {record['total']:,} directions removed, accuracy 53.3" in part(
        html["removal"], "removal"
    )


def test_a_removal_of_nothing_says_so():
    verdict, plan, analysis = data_directions.removal()
    analysis["directions"] |= {"chosen": []}
    assert "Chosen: nothing removed, accuracy 54.2" in part(render(verdict, plan, analysis), "removal")


# ------------------------------------------------------------------------------------------------------ the words


def test_words_name_the_head_and_the_number_within_it(html):
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>', html["heads"][html["heads"].index('id="words"') :])
    first = ["b1.down, direction 0", "b0.down, direction 1", "b2.down, direction 1"]
    assert rows[:5] == [*first, "b2.o, head 3, direction 3", "b2.o, head 3, direction 1"]
    words = part(html["heads"], "words")
    assert "The sign of a singular direction is arbitrary" in words
    assert words.index("Sonja") < words.index("llamas") < words.index("Remy")


# ------------------------------------------------------------------------------------- what was cut, and its size


def test_a_removal_is_not_told_as_a_truncation(html):
    cut = part(html["heads"], "cut")
    assert "layer 2, attention output projection without directions 49, 51 of its heads" in cut
    assert "96 × 96, 2 of 96 directions removed" in cut
    for wrong in ("components kept", "rank kept", "Low rank", "keeps its shape"):
        assert wrong not in cut


@pytest.mark.parametrize(
    ("after", "stored", "said", "unsaid"),
    [
        (
            393_216,
            393_216,
            "(+0.8 %). What the removed directions gave on average stays in biases, wh",
            "facto",
        ),
        (390_240, 390_240, "the matrices keep their shapes, so the file is no smaller.", "Stored as factors"),
        (390_240, 372_960, "Stored as factors it would hold 372,960 (−4.4 %).", "biases, which are"),
        (372_960, 372_960, "372,960 after (−4.4 %). What the removed directions gave", "Stored as factors"),
        (393_216, 372_960, "Stored as factors it would hold 372,960 (−4.4 %).", "serves accuracy"),
    ],
)
def test_what_a_removal_does_to_the_size(after, stored, said, unsaid):
    verdict, plan, analysis = data_directions.heads()
    verdict["parameters"] = {"before": 390_240, "after": after, "factorized": stored}
    cut = part(render(verdict, plan, analysis), "cut")
    assert said in cut
    assert unsaid not in cut


def test_what_weighs_more_is_not_said_to_save(html):
    assert "<h2>What it weighs</h2>" in html["heads"]
    assert "<h2>What it saves</h2>" not in html["heads"]


def test_the_map_counts_directions_and_tints_what_was_read(html):
    cells = re.findall(r'<span class="(cut|tried|idle)" title="([^"]*)">([^<]*)</span>', html["mixed"])
    marks = {title.split()[0]: mark for kind, title, mark in cells if kind == "cut"}
    assert marks == {"b0.down": "−1", "b1.down": "−1", "b2.down": "−1", "b2.o": "−2", "b1.gate": "9"}
    single = re.findall(r'<span class="(cut|tried|idle)"', html["single"])
    assert single == ["cut"] * 3
    nothing = re.findall(r'<span class="(cut|tried|idle)"', html["nothing"])
    assert nothing == ["tried"] * 9
    deep = re.findall(r'<span class="cut" title="[^"]*">([^<]*)</span>', html["deep"])
    assert deep == [""] * 25
    assert "directions removed" in part(html["deep"], "cut")


def test_a_mixed_plan_is_told_kind_by_kind(html):
    cut = part(html["mixed"], "cut")
    for said in (
        "layer 0, MLP down projection without",
        "9 of 96 components kept",
        "1 of 96 directions removed",
        "head 2",
    ):
        assert said in cut
    assert "rank kept" in cut
    assert "with the number of directions removed" in cut


def test_a_removal_frames_no_cell_of_a_sweep(pages):
    """Even where a truncation of the same matrix to the rank that is left was tried."""
    verdict, _, analysis = data_directions.mixed()
    rows = {(row["site"], row["rank"]) for row in analysis["sweep"]}
    verdict["cut"][0] |= {"rank": next(rank for site, rank in sorted(rows) if site == "b0.down")}
    records = VerdictRecord.model_validate(verdict), AnalysisRecord.model_validate(analysis)
    page = assemble("", method_named("laser").sections(*records))
    frames = [shape for figure in figures(Page(page), "sweep") for shape in figure["layout"]["shapes"]]
    assert len(frames) == sum((item["site"], item.get("rank")) in rows for item in verdict["cut"][4:5])


def test_many_edits_are_folded():
    verdict, plan, analysis = data_directions.removal()
    page = render(verdict, plan, analysis)
    assert len(verdict["cut"]) == 15
    assert "<summary>7 more</summary>" in page
    assert verdict["cut_summary"] in part(page, "cut")
    for item in verdict["cut"]:
        assert in_words(item["edit"]) in part(page, "cut")


def test_one_plan_was_chosen_among_nothing(html):
    assert "chosen among" not in html["single"]
    assert "chosen among 231 candidates" in html["heads"]
