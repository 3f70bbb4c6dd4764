"""The report of pruned heads and networks, and of a probe: sections as their records, numbers as the data."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import plotly.graph_objects as go
import pytest
from fixtures import data_components, data_report
from test_report import Page, strings

from secateur.core.records.probe import ProbeRecord
from secateur.core.records.verdict import VerdictRecord
from secateur.core.site import Site
from secateur.errors import OutputError, SecateurError
from secateur.methods.components.report import spread
from secateur.probing.component_figures import cumulated, map_layout, ranks
from secateur.probing.report import render_probe, write_probe_report
from secateur.report.chart import SEQUENTIAL
from secateur.report.gains import size
from secateur.report.pruned_units import Dropped, dropped, runs
from secateur.reporting import render, write_run_report

RECORDS = {
    name: getattr(data_components, name) for name in ("heads", "grouped", "components", "ffns", "hostile")
}
NEW = {"gains", "pruning", "importance", "parts", "neurons", "induction"}


@pytest.fixture(scope="module")
def pages() -> dict[str, Page]:
    built = {name: Page(render(*build())) for name, build in RECORDS.items()}
    probes = {"probe": data_components.probe(), "hostile probe": data_components.hostile_probe()}
    return built | {name: Page(probe_page(record)) for name, record in probes.items()}


def probe_page(record: dict) -> str:
    return render_probe(ProbeRecord.model_validate(record))


ALL = (*RECORDS, "probe", "hostile probe")


def figures(page: Page, name: str) -> list[dict]:
    return [figure for figure in page.figures if re.fullmatch(rf"{name}-\d+", figure["id"])]


def sections(page: Page) -> set[str]:
    return {attributes["id"] for tag, attributes in page.tags if tag == "section"}


def folded(html: str, figure: str) -> list[list[str]]:
    """The rows of the table below a figure, as text."""
    box = html[html.index(f'id="{figure}"') :]
    body = box[box.index("<tbody>") : box.index("</tbody>")]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("<tr>")[1:]]
    return [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in rows]


def rounded(words: str) -> float:
    return float(words.replace("−", "-").replace("%", "").replace("points", "").replace(",", "").strip())


# ---------------------------------------------------------------------------------------- the page as a file


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_loaded_from_elsewhere(pages, name):
    for tag, attributes in pages[name].tags:
        assert not {"src", "srcset", "data", "action", "poster"} & set(attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#"), "links lead to places of the page"
        assert tag not in ("link", "iframe", "object", "embed", "img", "base")


@pytest.mark.parametrize("name", ALL)
def test_figures_obey_plotlys_schema_and_have_their_places(pages, name):
    page = pages[name]
    assert len(page.figures) >= 4, "figures that hold NaN are refused while they are parsed"
    for figure in page.figures:
        go.Figure(data=figure["data"], layout=figure["layout"])
        assert figure["id"] in page.ids()
    assert len({figure["id"] for figure in page.figures}) == len(page.figures)


@pytest.mark.parametrize("name", ALL)
def test_every_figure_has_its_numbers(pages, name):
    boxes = [tag for tag, _ in pages[name].tags if tag == "figure"]
    folds = [a for tag, a in pages[name].tags if tag == "details" and a.get("class") == "numbers"]
    assert len(boxes) == len(pages[name].figures)
    assert len(folds) >= len(boxes)


def test_markup_in_the_data_becomes_text(pages):
    for attacked, benign in (("hostile", "heads"), ("hostile probe", "probe")):
        found, plain = pages[attacked], pages[benign]
        assert {tag for tag, _ in found.tags} <= {tag for tag, _ in plain.tags} | {"p"}
        assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on")]
        assert found.scripts[1:] == plain.scripts[1:], "what runs does not depend on the data"
        assert found.text.count("window.hacked=1") > 30, "the attack is there to be read"


def test_markup_in_hover_text_and_labels_is_escaped(pages):
    allowed = re.compile(r"</?b>|<br>")
    for name in ("hostile", "hostile probe"):
        found = [string for string in strings(pages[name].figures) if "hacked" in string]
        assert found, "the attack reaches the figures"
        for string in found:
            assert "<" not in allowed.sub("", string).replace("<extra></extra>", "")


# -------------------------------------------------------------------------------- sections and their records


def test_each_section_comes_and_goes_with_its_record():
    verdict, plan, analysis = data_components.heads()
    assert sections(Page(render(verdict, plan, analysis))) >= NEW

    def left(**without) -> set[str]:
        parts = {k: v for k, v in analysis["components"].items() if k not in without.get("parts", ())}
        blocks = {k: v for k, v in analysis.items() if k not in without.get("blocks", ())} | {
            "components": parts
        }
        record = {k: v for k, v in verdict.items() if k not in without.get("verdict", ())}
        return NEW & sections(Page(render(record, plan, blocks)))

    assert left(parts=("heads", "prefix_matching", "copying")) == NEW - {"importance", "induction"}
    assert left(parts=("ffns", "attentions", "blocks")) == NEW - {"parts"}
    assert left(parts=("neurons",)) == NEW - {"neurons"}
    assert left(blocks=("pruning",)) == NEW - {"pruning"}
    assert left(verdict=("gains", "loads")) == NEW - {"gains"}
    assert left(verdict=("gains",)) == NEW, "where it loads stands without a measurement"


def test_runs_of_other_methods_have_none_of_it():
    for build in (data_report.facts, data_report.null, data_report.text):
        assert not NEW & sections(Page(render(*build())))


def test_panels_that_were_not_measured_are_left_out(pages):
    verdict, plan, analysis = data_components.heads()
    assert len(figures(pages["heads"], "left")) == 4
    for series in analysis["pruning"]["series"]:
        for point in series["points"]:
            point |= {"prefix_matching": None, "copying": None, "loss": math.nan, "sides": {}}
    page = Page(render(verdict, plan, analysis))
    assert not figures(page, "left")
    assert len(figures(page, "pruning")) == 1
    assert not re.search(r"\bnan\b", page.text)
    assert not [f for f in figures(pages["ffns"], "left") if "prefix" in json.dumps(f).lower()], (
        "1 throughout"
    )


def test_null_readings_are_gaps():
    verdict, plan, analysis = data_components.heads()
    reading, mean = analysis["components"]["heads"]["readings"][0], analysis["components"]["heads"]["mean"]
    reading["values"]["b1.attn.h2"] = math.nan
    mean["b0.attn.h0"] = None
    analysis["components"]["heads"]["overlap"]["rho"][0][1] = math.nan
    page = Page(render(verdict, plan, analysis))
    assert figures(page, "readings")[0]["data"][0]["z"][1][2] is None
    assert figures(page, "importance")[0]["data"][0]["z"][0][0] is None
    assert not re.search(r"\bnan\b", page.text)


# -------------------------------------------------------------------------------------- what heads are worth


def test_heat_maps_hold_the_root_of_every_value_where_it_belongs(pages):
    heads = data_components.heads()[2]["components"]["heads"]
    shown = [figures(pages["heads"], "importance")[0], *figures(pages["heads"], "readings")]
    for figure, values in zip(shown, [heads["mean"], *(r["values"] for r in heads["readings"])], strict=True):
        cells = figure["data"][0]
        assert sum(z is not None for line in cells["z"] for z in line) == len(values) == 48
        for address, value in values.items():
            site = Site.parse(address)
            assert cells["z"][site.block][site.index] == pytest.approx(math.sqrt(value))
        assert cells["zmax"] == pytest.approx(math.sqrt(max(values.values())))
        assert cells["zmin"] == 0


def test_table_below_a_heat_map_is_the_record_in_order_of_rank():
    records = data_components.heads()
    mean, html = records[2]["components"]["heads"]["mean"], render(*records)
    rows = folded(html, "importance-0")
    assert [row[0] for row in rows] == sorted(mean, key=mean.__getitem__, reverse=True)
    assert [int(row[1]) for row in rows] == list(range(1, 49))
    assert [rounded(row[2]) for row in rows] == pytest.approx([mean[row[0]] for row in rows], rel=6e-3)
    gone = {item["site"] for item in records[0]["cut"]}
    assert {row[0] for row in rows if row[3] == "cut"} == gone


def test_hover_says_site_value_and_rank(pages):
    mean = data_components.heads()[2]["components"]["heads"]["mean"]
    best = max(mean, key=mean.__getitem__)
    site = Site.parse(best)
    said = figures(pages["heads"], "importance")[0]["data"][0]["text"][site.block][site.index]
    assert said == f"<b>{best}</b><br>importance {mean[best]:.3g} nats/token<br>rank 1 of 48"


def crosses(figure: dict) -> set[tuple[int, int]]:
    trace = figure["data"][1]
    return {(block, head) for head, block in zip(trace["x"], trace["y"], strict=True)}


def test_cut_heads_are_crossed_by_head_group_attention_and_block(pages):
    heads = {
        (Site.parse(i["site"]).block, Site.parse(i["site"]).index) for i in data_components.heads()[0]["cut"]
    }
    assert crosses(figures(pages["heads"], "importance")[0]) == heads
    groups = [Site.parse(item["site"]) for item in data_components.grouped()[0]["cut"]]
    expected = {(site.block, 2 * site.index + place) for site in groups for place in (0, 1)}
    assert crosses(figures(pages["grouped"], "importance")[0]) == expected
    mixed = {(0, 1), (0, 2), (0, 3), (0, 6), (4, 0)} | {(b, h) for b in (1, 3) for h in range(8)}
    assert crosses(figures(pages["components"], "importance")[0]) == mixed
    assert crosses(figures(pages["probe"], "importance")[0]) == set()


def test_color_scale_darkens_in_even_steps():
    """CIE 1976 lightness, from the definition."""

    def lightness(color: str) -> float:
        shares = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return 116 * float(np.dot((0.2126, 0.7152, 0.0722), linear)) ** (1 / 3) - 16

    steps = -np.diff([lightness(color) for _, color in SEQUENTIAL])
    assert steps == pytest.approx(steps.mean(), rel=0.03)
    assert steps.mean() > 10


def test_ranks_break_ties_in_the_models_order():
    values = {
        Site.parse(f"b{b}.attn.h{h}"): v for b, h, v in ((1, 0, 0.5), (0, 1, 0.5), (0, 0, 0.9), (2, 0, 0.1))
    }
    assert {str(site): place for site, place in ranks(values).items()} == {
        "b0.attn.h0": 1,
        "b0.attn.h1": 2,
        "b1.attn.h0": 3,
        "b2.attn.h0": 4,
    }


def test_correlations_are_the_records(pages):
    overlap = data_components.heads()[2]["components"]["heads"]["overlap"]
    figure = figures(pages["heads"], "importance")[1]
    z = figure["data"][0]["z"]
    for i, row in enumerate(overlap["rho"]):
        for j, value in enumerate(row):
            assert z[i][j] == (None if i == j else pytest.approx(value))
    written = {(a["y"], a["x"]): float(a["text"].replace("−", "-")) for a in figure["layout"]["annotations"]}
    assert written == {
        (i, j): pytest.approx(overlap["rho"][i][j], abs=0.005) for i in range(4) for j in range(4) if i != j
    }
    table = folded(render(*data_components.heads()), "importance-1")
    assert [row[0] for row in table] == overlap["names"]
    assert [rounded(cell) for cell in table[2][1:]] == pytest.approx(overlap["rho"][2], abs=0.005)


def test_many_readings_move_the_matrix_below_and_drop_its_words():
    verdict, plan, analysis = data_components.heads()
    heads = analysis["components"]["heads"]
    heads["readings"] = [heads["readings"][0] | {"name": f"task {i}, 0-shot"} for i in range(20)]
    names = [reading["name"] for reading in heads["readings"]]
    heads["overlap"] = {"names": names, "rho": np.full((20, 20), 0.5).tolist(), "n": 48}
    page = Page(render(verdict, plan, analysis))
    (figure,) = figures(page, "agreement")
    assert "annotations" not in figure["layout"]
    assert len(figure["layout"]["yaxis"]["tickvals"]) <= 16
    assert len(figures(page, "readings")) == 20
    assert "Rank correlations between readings: +0.50 to +0.50." in page.text


def test_one_reading_is_one_map_without_agreement():
    verdict, plan, analysis = data_components.heads()
    heads = analysis["components"]["heads"]
    heads |= {"readings": heads["readings"][:1], "mean": heads["readings"][0]["values"], "overlap": None}
    page = Page(render(verdict, plan, analysis))
    assert len(figures(page, "importance")) == 1
    assert not figures(page, "readings")
    assert "Rank correlation" not in page.text.partition("What each block is worth")[0]
    heads |= {"overlap": {"names": ["a", "b"], "rho": [[1.0, -0.25], [-0.25, 1.0]], "n": 48}}
    assert "Rank correlation between the two readings: −0.25." in Page(render(verdict, plan, analysis)).text


# --------------------------------------------------------------------------------- blocks, neurons, behavior


def test_bars_are_points_and_cut_ones_have_another_color(pages):
    record = data_components.components()[2]["components"]
    for figure, name in zip(
        figures(pages["components"], "parts"), ("ffns", "attentions", "blocks"), strict=True
    ):
        bars, *dots = figure["data"]
        assert bars["y"] == pytest.approx([100 * value for value in record[name]["mean"].values()])
        assert len(dots) == len(record[name]["readings"])
        for dot, reading in zip(dots, record[name]["readings"], strict=True):
            assert dot["y"] == pytest.approx([100 * value for value in reading["values"].values()])
        colors = bars["marker"]["color"]
        cut = {"ffns": {2, 3}, "attentions": {1, 3}, "blocks": {3}}[name]
        assert {block for block, color in enumerate(colors) if color != colors[0]} == cut


def test_a_part_that_does_harm_is_explained(pages):
    words = "Below zero, the model does better without it."
    assert words in pages["heads"].text
    verdict, plan, analysis = data_components.heads()
    for name in ("ffns", "attentions", "blocks"):
        analysis["components"][name]["mean"] = {
            s: abs(v) for s, v in analysis["components"][name]["mean"].items()
        }
    assert words not in Page(render(verdict, plan, analysis)).text


def test_neurons_are_cumulated():
    assert cumulated([1.0, 7.0, 2.0]).tolist() == pytest.approx([0, 70, 90, 100])
    assert cumulated([0.0, 0.0]).tolist() == [0, 0, 0]
    record = data_components.heads()[2]["components"]["neurons"]
    rows = folded(render(*data_components.heads()), "neurons-0")
    for block, row in enumerate(rows):
        values = sorted((v for s, v in record["mean"].items() if s.startswith(f"b{block}.")), reverse=True)
        assert row[:2] == [f"b{block}", "160"]
        assert rounded(row[2]) == pytest.approx(values[0], rel=6e-3)
        assert rounded(row[4]) == pytest.approx(100 * sum(values[:16]) / sum(values), abs=0.06)


def test_scatter_names_the_clear_induction_heads_and_no_other(pages):
    figure = figures(pages["probe"], "induction")[2]
    named = {label["text"] for label in figure["layout"]["annotations"]}
    clear = {site for site, score in data_components.INDUCTION.items() if score >= 0.1}
    assert named == clear
    heights = sorted(label["ay"] for label in figure["layout"]["annotations"])
    top = figure["layout"]["yaxis"]["range"][1]
    assert min(np.diff(heights)) > 0.07 * top, "labels do not cover one another"


def test_scatter_has_every_head_at_its_roots(pages):
    record = data_components.heads()[2]["components"]
    points = [
        p for t in figures(pages["heads"], "induction")[2]["data"] for p in zip(t["x"], t["y"], strict=True)
    ]
    mean, prefix = record["heads"]["mean"], record["prefix_matching"]
    expected = sorted((math.sqrt(prefix[s]), math.sqrt(mean[s])) for s in mean)
    np.testing.assert_allclose(sorted(points), expected, rtol=1e-12)


def test_overlap_with_importance_is_said_in_numbers(pages):
    overlap = data_components.heads()[2]["components"]["induction_overlap"]
    _, prefix, copying = (f"{value:+.2f}".replace("-", "−") for value in overlap["rho"][0])
    said = f"over 48 heads: prefix matching {prefix} and copying {copying}."
    assert said in pages["heads"].text


# ------------------------------------------------------------------------------------------------ the curves


def named(figure: dict, name: str) -> dict:
    return next(trace for trace in figure["data"] if trace.get("name") == name)


def test_curves_are_the_points_of_the_record(pages):
    record = data_components.heads()[2]["pruning"]
    metric, loss = figures(pages["heads"], "pruning")
    for order in ("re-scored", "ranks once"):
        points = next(s for s in record["series"] if s["order"] == order)["points"]
        for figure, key in ((metric, "value"), (loss, "loss")):
            assert named(figure, order)["x"] == pytest.approx([100 * p["heads_removed"] for p in points])
            assert named(figure, order)["y"] == pytest.approx([p[key] for p in points])


def test_random_band_is_lowest_median_and_highest_of_the_seeds(pages):
    record = data_components.heads()[2]["pruning"]
    random = np.array([[p["value"] for p in s["points"]] for s in record["series"] if s["order"] == "random"])
    low, high, median = figures(pages["heads"], "pruning")[0]["data"][:3]
    assert low["y"] == pytest.approx(random.min(0))
    assert high["y"] == pytest.approx(random.max(0))
    assert median["y"] == pytest.approx(np.median(random, 0))
    assert high["fill"] == "tonexty"


def test_band_reads_between_points_that_do_not_line_up():
    grid, low, middle, high = spread([[(0, 0.0), (10, 10.0)], [(0, 0.0), (4, 0.0), (12, 8.0)]])
    assert grid == [0, 4, 10]
    assert low == pytest.approx([0, 0, 6])
    assert high == pytest.approx([0, 4, 10])
    assert middle == pytest.approx([0, 2, 8])


def test_parameters_are_the_axis_where_all_components_go(pages):
    record = data_components.components()[2]["pruning"]
    (figure,) = figures(pages["components"], "pruning")
    points = record["series"][0]["points"]
    assert named(figure, "re-scored")["x"] == pytest.approx(
        sorted(100 * (1 - p["parameters"]) for p in points)
    )
    assert "parameters removed" in figure["layout"]["xaxis"]["title"]["text"]
    (aim,) = figure["layout"]["shapes"]
    assert aim["x0"] == aim["x1"] == pytest.approx(40)


def test_bound_lies_max_loss_below_the_original(pages):
    record = data_components.heads()[2]["pruning"]
    metric, loss = figures(pages["heads"], "pruning")
    start = record["series"][0]["points"][0]["value"]
    assert [shape["y0"] for shape in metric["layout"]["shapes"]] == [pytest.approx(start - 0.02)]
    assert not loss["layout"]["shapes"]
    verdict, plan, analysis = data_components.components()
    analysis["pruning"] |= {"max_loss": 0.05, "params": None}
    (figure,) = figures(Page(render(verdict, plan, analysis)), "pruning")
    start = analysis["pruning"]["series"][0]["points"][0]["loss"]
    assert [shape["y0"] for shape in figure["layout"]["shapes"]] == [pytest.approx(start + 0.05)]


def test_chosen_point_is_marked_on_every_panel_and_said(pages):
    record = data_components.heads()[2]["pruning"]
    point = record["series"][0]["points"][record["chosen"]["point"]]
    drawn = [*figures(pages["heads"], "pruning"), *figures(pages["heads"], "left")]
    values = [
        point["value"],
        point["loss"],
        *point["sides"].values(),
        point["prefix_matching"],
        point["copying"],
    ]
    for figure, value in zip(drawn, values, strict=True):
        assert figure["data"][-1]["x"] == [pytest.approx(100 * point["heads_removed"])]
        assert figure["data"][-1]["y"] == [pytest.approx(value)]
    at = [s["points"][8]["value"] for s in record["series"] if s["order"] == "random"]
    said = f"Chosen: 79.2 % of heads removed, accuracy {100 * point['value']:.1f} %; in random order "
    assert f"{said}{100 * min(at):.1f} % to {100 * max(at):.1f} %." in pages["heads"].text


def test_nothing_chosen_is_said():
    verdict, plan, analysis = data_components.heads()
    analysis["pruning"]["chosen"] = None
    page = Page(render(verdict, plan, analysis))
    assert "nothing was chosen" in page.text
    assert not page.of_class("dot chosen")


def test_snapping_and_partly_judged_points_are_said(pages):
    assert "Shares are snapped to KV groups of 2 query heads." in pages["grouped"].text
    verdict, plan, analysis = data_components.heads()
    analysis["pruning"]["series"][0]["points"][3]["complete"] = False
    page = Page(render(verdict, plan, analysis))
    symbols = named(figures(page, "pruning")[0], "re-scored")["marker"]["symbol"]
    assert [i for i, symbol in enumerate(symbols) if symbol == "circle-open"] == [3]


def test_table_below_the_curves_is_the_record():
    records = data_components.heads()
    rows = folded(render(*records), "pruning-0")
    points = [(s, p) for s in records[2]["pruning"]["series"] for p in s["points"]]
    assert len(rows) == len(points) == 50
    for (order, removed, value, judged), (series, point) in zip(rows, points, strict=True):
        assert order == series["order"] + (f", seed {series['seed']}" if series["seed"] is not None else "")
        assert rounded(removed) == pytest.approx(100 * point["heads_removed"], abs=0.06)
        assert rounded(value) == pytest.approx(100 * point["value"], abs=0.06)
        assert judged == ("all of the validation split" if point["complete"] else "a part of it")


# ------------------------------------------------------------------------------------ what was cut and saved


def test_map_marks_each_dropped_head_once(pages):
    for name in ("heads", "grouped", "components"):
        gone = dropped(VerdictRecord.model_validate(RECORDS[name]()[0]))
        every = {Site(block, "attn", "h", head) for block in range(6) for head in range(8)}
        every |= {Site(block, "mlp") for block in range(6)}
        titles = [a["title"] for a in pages[name].of_class("cut") if a.get("title")]
        assert sorted(title.removesuffix(" gone") for title in titles) == sorted(
            str(s) for s in every if s in gone
        )
        assert 0 < len(titles) < 54
    assert len(pages["components"].of_class("line gone")) == 1, "one whole block is crossed out"
    assert not pages["heads"].of_class("line gone")


def test_many_cuts_are_told_block_by_block(pages):
    assert "layer 0 b0heads 1–3, 6" in pages["components"].text
    for words in (
        "b1attention",
        "b2feed-forward network",
        "b3the whole layer",
        "b4head 0",
        "b5neurons 40–89",
    ):
        assert words in pages["components"].text
    assert "layer 0 b0KV groups 1, 3layer 1 b1KV group 0layer 2 b2KV groups 0–3" in pages["grouped"].text
    assert "38 of 48 heads" in pages["heads"].text


def test_a_group_is_gone_with_its_heads_and_no_other():
    gone = Dropped(frozenset({Site(0, "attn", "g", 1), Site(2, "attn"), Site(3)}), 4, 12, 3)
    assert [h for h in range(12) if Site(0, "attn", "h", h) in gone] == [4, 5, 6, 7]
    assert all(Site(b, "attn", "h", 0) in gone for b in (2, 3))
    assert Site(2, "mlp") not in gone
    assert Site(3, "mlp") in gone


def test_scattered_neurons_are_counted_not_listed():
    verdict, plan, analysis = data_components.heads()
    verdict["cut"] = [{"site": f"b2.mlp.n{2 * i}", "edit": "", "kind": "drop"} for i in range(1_500)]
    text = Page(render(verdict, plan, analysis)).text
    assert "b21,500 neurons" in text
    assert "−1,500 neurons" in text


def test_nothing_cut_keeps_the_curves_and_crosses_nothing():
    verdict, plan, analysis = data_components.heads()
    verdict |= {"cut": [], "verdict": "no difference shown", "gains": None, "loads": None, "cut_summary": ""}
    analysis["pruning"]["chosen"] = None
    page = Page(render(verdict, plan | {"edits": []}, analysis))
    assert "Nothing was cut" in page.text
    assert crosses(figures(page, "importance")[0]) == set()
    assert sections(page) >= NEW - {"gains"}


def test_dropping_and_truncating_are_both_drawn_and_told():
    verdict, plan, analysis = data_components.heads()
    verdict["cut"] += [
        {
            "site": "b5.down",
            "edit": "b5.down → rank 3",
            "kind": "truncate",
            "shape": [64, 256],
            "rank": 3,
            "full_rank": 64,
        }
    ]
    page = Page(render(verdict, plan, analysis))
    assert "layer 5, MLP down projection → rank 3b5.down" in page.text
    assert [a["title"] for a in page.of_class("cut") if "rank" in (a.get("title") or "")] == [
        "b5.down → rank 3"
    ]
    assert "38 of 48 heads" in page.text


def test_runs_of_numbers():
    assert runs([0, 1, 2, 5, 7, 8, 10, 11, 12, 13]) == "0–2, 5, 7, 8, 10–13"
    assert runs([4]) == "4"


def test_zeroed_parts_save_nothing_and_the_page_says_so():
    verdict, plan, analysis = data_components.heads()
    verdict["gains"]["parameters"]["after"] = verdict["parameters"]["after"] = 391_104
    html = render(verdict, plan, analysis)
    assert "what was cut is zeroed, not gone, and saves none" in html
    assert re.search(r"Parameters</th><td>391,104</td><td>391,104</td><td>nothing saved</td>", html)


def test_table_of_gains_is_the_record():
    records = data_components.components()
    html, gains = render(*records), records[0]["gains"]
    body = html[html.index('<section id="gains">') :]
    cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", body)]
    rows = {cells[i]: cells[i + 1 : i + 6] for i in range(6, 42, 6)}
    assert rows["Parameters"][:2] == ["391,104", f"{gains['parameters']['after']:,}"]
    assert rows["On disk"] == ["1.57 MB", "955.70 kB", "0.61 × −39.0 %", "", ""]
    assert rows["KV cache, a token"][:3] == ["3.07 kB", "448 B", "0.15 × −85.4 %"]
    assert rows["Prefill"] == ["41,230 tokens/s", "60,820 tokens/s", "1.48 ×", "1.53 ×", "96 %"]
    assert rows["Decode"] == ["612 tokens/s", "771 tokens/s", "1.26 ×", "1.37 ×", "92 %"]


def test_gains_without_speeds_claim_none():
    verdict, plan, analysis = data_components.heads()
    verdict["gains"] |= {"prefill": None, "decode": None, "peak_bytes": None, "shape": None, "threads": None}
    verdict["gains"]["bytes_on_disk"] = {"before": None, "after": 10}
    html = render(verdict, plan, analysis)
    body = html[html.index('<section id="gains">') : html.index('<section id="effects">')]
    assert "limit" not in body
    assert "Peak memory" not in body
    assert "<td>—</td><td>10 B</td><td>—</td>" in body


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.00 kB"),
        (1_566_720, "1.57 MB"),
        (3.2e15, "3,200.00 TB"),
        (None, "—"),
    ],
)
def test_sizes_in_words(value, words):
    assert size(value, "B") == words


PLACES = re.compile(
    r'<li class="(\w+)"><span class="sign" role="img" aria-label="([a-z ]+)">(.)</span><div><b>(.*?)</b><br>(.*?)</div>'
)


def test_places_are_signed_and_show_the_line_that_loads_and_how_that_is_known():
    items = PLACES.findall(render(*data_components.heads()))
    assert [item[:3] for item in items] == [
        ("expected", "is expected to load", "○"),
        ("yes", "loads", "✓"),
        ("expected", "is expected to load", "○"),
        *[("no", "does not load", "✗")] * 3,
    ]
    told = [said for *_, said in items]
    assert told[0].endswith(
        "<small>expected: a checkpoint of this kind was run in transformers 5.23.0, this one was not</small>"
    )
    assert (
        told[1]
        == "<code>secateur.load(<wbr>&quot;out&quot;)</code><br><small>read back (secateur 0.1.0)</small>"
    )
    assert told[2] == "<code>lm_eval --model hf</code><br><small>expected (not tried), with patience</small>"
    assert told[3] == "blocks differ in their number of heads"


def test_a_record_of_an_earlier_release_shows_whether_it_loads():
    verdict, plan, analysis = data_components.heads()
    for place in verdict["loads"]["where"]:
        del place["evidence"], place["detail"], place["condition"]
    items = PLACES.findall(render(verdict, plan, analysis))
    assert [sign for _, _, sign, *_ in items] == ["✓"] * 3 + ["✗"] * 3
    assert not any("<small>" in said for *_, said in items)


def test_not_worse_by_more_than_a_margin_is_no_failure(pages):
    assert pages["heads"].of_class("better")
    assert "✓not worse by more than 2.0 points" in pages["heads"].text


# -------------------------------------------------------------------------------------------- a probe's page


def test_probe_page_says_what_was_read_on_what(pages):
    assert (
        "Readings of heads and feed-forward networks, on hellaswag, arc_easy and boolq" in pages["probe"].text
    )
    assert sections(pages["probe"]) == NEW - {"gains", "pruning"}
    assert not pages["probe"].of_class("cross"), "nothing is marked as cut"


def test_probe_report_is_written_and_an_empty_record_refused(tmp_path):
    record = data_components.probe()
    out = write_probe_report(ProbeRecord.model_validate(record), tmp_path / "probe.html")
    assert out.read_text(encoding="utf-8") == probe_page(record)
    assert [path.name for path in tmp_path.iterdir()] == ["probe.html"]
    with pytest.raises(SecateurError, match="holds no reading"):
        write_probe_report(ProbeRecord.model_validate(record | {"components": {}}), tmp_path / "other.html")
    with pytest.raises(OutputError, match=r"cannot write .*probe.html: No such file"):
        write_probe_report(ProbeRecord.model_validate(record), tmp_path / "nowhere" / "probe.html")


def test_a_probe_of_one_kind_alone_has_a_page():
    record = data_components.probe()
    for name, expected in (("heads", "importance"), ("ffns", "parts"), ("neurons", "neurons")):
        alone = record | {"components": {name: record["components"][name]}}
        assert sections(Page(probe_page(alone))) == {expected}
    behavior = {name: record["components"][name] for name in ("prefix_matching", "copying")}
    page = Page(probe_page(record | {"components": behavior | {"induction_overlap": None}}))
    assert sections(page) == {"induction"}
    assert len(page.figures) == 2, "no importance, no scatter"


def test_examples_that_did_not_fit_are_said():
    record = data_components.probe()
    record["components"]["heads"]["readings"][0] |= {"n": 120, "of": 200}
    assert "n = 120 of 200, largest" in Page(probe_page(record)).text


def test_same_records_give_the_same_page(tmp_path):
    assert render(*data_components.heads()) == render(*data_components.heads())
    for name, record in zip(("verdict", "plan", "analysis"), data_components.heads(), strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    written = write_run_report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert written == render(*data_components.heads())


def test_deep_wide_models_keep_readable_labels():
    sites = [f"b{block}.attn.h{head}" for block in range(64) for head in range(72)]
    mean = dict(zip(sites, np.random.default_rng(0).lognormal(size=len(sites)).tolist(), strict=True))
    one = {"name": "t, 0-shot", "task": "t", "shots": 0, "n": 9, "of": 9, "values": mean}
    heads = {"unit": "nats/token", "readings": [one], "mean": mean, "overlap": None}
    (figure,) = Page(
        probe_page({"what": ["heads"], "model": "m", "tasks": ["t"], "components": {"heads": heads}})
    ).figures
    assert len(figure["layout"]["xaxis"]["tickvals"]) <= 12
    assert len(figure["layout"]["yaxis"]["tickvals"]) <= 16
    assert 500 < figure["layout"]["height"] < 700, "the large map"


def test_a_map_of_some_layers_has_no_room_for_the_others():
    layout = map_layout(18, 9, 20, first=14)
    assert layout["yaxis"]["range"] == [13.4, 17.6]
    assert layout["yaxis"]["tickvals"] == [14, 15, 16, 17]
    assert layout["height"] == 54 + 4 * 20
