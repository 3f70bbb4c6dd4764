"""The report: self-contained, inert whatever the data hold, and saying the numbers that the records hold."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import plotly.graph_objects as go
import pytest
from fixtures import data_components, data_report

from secateur.core.records.verdict import VerdictRecord
from secateur.errors import OutputError, SecateurError
from secateur.methods.laser.report import spectrum
from secateur.methods.laser.sweep_plot import color_limit
from secateur.report.chart import Figure, loss_axis, new_layout
from secateur.report.frame import FigureGroup, PageSection
from secateur.report.interval_plot import scale_of
from secateur.report.markup import change, embedded_json, factor, finite, interval, number, p_value, ticks
from secateur.report.page import assemble
from secateur.report.pruned_units import drop_map, dropped
from secateur.reporting import render, write_run_report

RECORDS = {name: getattr(data_report, name) for name in ("facts", "null", "text", "hostile", "foreign")}


class Page(HTMLParser):
    """The parsed page: (tag, attributes) in order, visible text, and the bodies of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(html)
        self.close()
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside not in ("style", "title"):
            self.words.append(data)

    def ids(self) -> set[str]:
        return {attributes["id"] for _, attributes in self.tags if attributes.get("id")}

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name == attributes.get("class")]

    @property
    def figures(self) -> list[dict]:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(self.scripts[0], parse_constant=refuse)


@pytest.fixture(scope="module")
def pages() -> dict[str, Page]:
    return {name: Page(render(*build())) for name, build in RECORDS.items()}


def strings(value):
    """Every string anywhere in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


# The page as a file


@pytest.mark.parametrize("name", RECORDS)
def test_nothing_is_loaded_from_elsewhere(pages, name):
    for tag, attributes in pages[name].tags:
        assert not {"src", "srcset", "data", "action", "poster"} & set(attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#"), "links lead to places of the page"
        assert tag not in ("link", "iframe", "object", "embed", "img", "base")
    html = render(*RECORDS[name]())
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_plotly_is_embedded_once_and_only_where_something_is_drawn(pages):
    assert len(pages["facts"].scripts) == 4
    assert sum(len(script) > 500_000 for script in pages["facts"].scripts) == 1
    assert len(pages["null"].scripts) == 3, "a page without figures does not carry the library"


def test_the_embedded_plotly_is_the_vendored_one_and_a_page_is_under_one_megabyte(pages):
    vendor = resources.files("secateur.report") / "vendor"
    told = json.loads((vendor / "plotly-cartesian.json").read_text(encoding="utf-8"))
    bundle = (vendor / told["file"]).read_bytes()
    assert hashlib.sha256(bundle).hexdigest() == told["sha256"]
    assert f"(cartesian - minified) v{told['version']}".encode() in bundle[:200]
    assert told["license"] in (vendor / "plotly-cartesian.LICENSE").read_text(encoding="utf-8")
    assert gzip.decompress(base64.b64decode(pages["facts"].scripts[2])) == bundle
    assert len(render(*data_report.facts()).encode("utf-8")) < 1_000_000


def test_a_section_that_is_a_value_is_placed_as_it_says():
    first, second = (Figure(f"<{n}>", [], new_layout(50), ("x",), [["1"]], note="&") for n in "ab")
    group = FigureGroup((first, second), "multiples")
    part = PageSection("some", "A & B", "<b>lead</b>", ("<p>before</p>", group, FigureGroup((), "pair")))
    html = assemble("<t>", ["<header></header>", part, PageSection("none", "None", "", ("",)), ""])
    page = Page(html)
    assert "<title>&lt;t&gt;</title>" in html
    assert "A & B lead before <a> & numbers x 1 <b> & numbers x 1" in re.sub(r"\s+", " ", _spaced(html))
    assert [figure["id"] for figure in page.figures] == ["some-0", "some-1"]
    assert {"some", "some-0", "some-1"} <= page.ids()
    assert "none" not in page.ids()
    assert page.of_class("multiples")
    assert not page.of_class("pair")
    with pytest.raises(AssertionError, match="two figures have one id"):
        assemble("t", [part, part])


def _spaced(html: str) -> str:
    """The words of a page with a space wherever an element begins or ends."""
    return " ".join(Page(html[html.index("<main>") : html.index("</main>")].replace("<", " <")).words)


@pytest.mark.parametrize("name", RECORDS)
def test_figures_obey_plotlys_schema_and_have_their_places(pages, name):
    page = pages[name]
    for figure in page.figures:
        go.Figure(data=figure["data"], layout=figure["layout"])  # raises on any unknown or ill-typed property
        assert figure["id"] in page.ids()
    assert len({figure["id"] for figure in page.figures}) == len(page.figures)


def test_same_records_give_the_same_page():
    assert render(*data_report.facts()) == render(*data_report.facts())


def test_ids_are_unique(pages):
    found = [attributes["id"] for _, attributes in pages["facts"].tags if attributes.get("id")]
    assert len(found) == len(set(found))


# Whatever the data hold


def test_markup_in_the_data_becomes_text(pages):
    attacked, benign = pages["hostile"], pages["facts"]
    assert {tag for tag, _ in attacked.tags} <= {tag for tag, _ in benign.tags} | {"em"}
    assert not [a for _, attributes in attacked.tags for a in attributes if a.startswith("on")]
    assert len(attacked.scripts) == len(benign.scripts)
    assert attacked.scripts[1:] == benign.scripts[1:], "what runs does not depend on the data"
    assert attacked.text.count("window.hacked=1") > 100, "the attack is there to be read"


def test_markup_in_hover_text_and_labels_is_escaped(pages):
    allowed = re.compile(r"</?b>|<br>")
    found = [string for string in strings(pages["hostile"].figures) if "hacked" in string]
    assert found, "the attack reaches the figures"
    for string in found:
        assert "<" not in allowed.sub("", string).replace("<extra></extra>", "")


def test_json_cannot_end_its_script_element():
    value = {"</script>": ["<!--", "\u2028", "]]>", "&lt;", float("nan"), -math.inf, 1.5]}
    dumped = embedded_json(value)
    assert not set("<>&\u2028") & set(dumped)
    assert json.loads(dumped) == {"</script>": ["<!--", "\u2028", "]]>", "&lt;", None, None, 1.5]}


def test_nan_anywhere_is_a_gap_and_not_a_word():
    verdict, plan, analysis = data_report.facts()
    analysis["sweep"][0]["loss"] = analysis["sweep"][1]["accuracy"] = math.nan
    analysis["curves"][0]["loss"][3] = math.nan
    analysis["tail"][0]["cosine"] = math.nan
    verdict["side_effects"][0]["p_value"] = math.nan
    verdict["secondary"][0]["after"] |= {"value": math.nan, "ci": [math.nan, math.nan]}
    page = Page(render(verdict, plan, analysis))
    assert page.figures
    assert not re.search(r"\bnan\b", page.text)
    assert "1.386 → —" in page.text


# The numbers


def test_hero_says_the_numbers(pages):
    start = pages["facts"].text[:900]
    for words in (
        "improves",
        "54.0 %",
        "95.7 %",
        "+41.7",
        "49.2 – 58.8 %",
        "231 candidates",
        "exact McNemar",
    ):
        assert words in start, words


def test_heat_maps_hold_every_judged_candidate_where_it_belongs(pages):
    _, _, analysis = data_report.facts()
    base = analysis["base"]
    maps = {f["id"]: f for f in pages["facts"].figures if f["id"].startswith("sweep-")}
    matrices = ("q", "k", "v", "o", "gate", "up", "down")
    assert len(maps) == len(matrices)
    sign = {"accuracy": 1, "loss": -1}
    fractions = sorted({row["kept"] for row in analysis["screen"]})
    for row in analysis["sweep"]:
        figure = maps[f"sweep-{matrices.index(row['matrix'])}"]
        at = row["block"], fractions.index(row["kept"])
        for trace in (trace for trace in figure["data"] if trace["type"] == "heatmap"):
            mine = (trace["opacity"] == 1.0) == row["complete"]
            cell = trace["z"][at[0]][at[1]]
            expected = sign[trace["meta"]] * (row[trace["meta"]] - base[trace["meta"]]) if mine else None
            assert cell == (pytest.approx(expected) if mine else None)
    drawn = sum(
        z is not None for f in maps.values() for t in f["data"] for line in t.get("z", ()) for z in line
    )
    assert drawn == 2 * len(analysis["sweep"])


def test_the_chosen_cell_and_only_it_is_framed(pages):
    frames = {f["id"]: f["layout"]["shapes"] for f in pages["facts"].figures if f["id"].startswith("sweep-")}
    assert {key for key, shapes in frames.items() if shapes} == {"sweep-4"}  # gate
    (frame,) = frames["sweep-4"]
    assert (frame["x0"] + 0.5, frame["y0"] + 0.5) == (data_report.RANKS.index(3), 2)


def test_only_one_metric_is_visible_at_a_time(pages):
    for figure in pages["facts"].figures:
        shown = {trace["meta"] for trace in figure["data"] if trace.get("meta") and trace["visible"]}
        assert shown <= {"accuracy"}


@pytest.mark.parametrize(
    ("deltas", "limit"),
    [
        ([0.1] + [-0.05] * 9 + [-10.0], 0.1),
        ([-0.2, -0.4, -9.0], 0.4),
        ([0.3, 0.01], 0.3),
        ([], 1e-9),
        ([0.0], 1e-9),
    ],
)
def test_one_broken_matrix_does_not_bleach_the_color_scale(deltas, limit):
    assert color_limit(deltas) == pytest.approx(limit)


def test_forest_marks_stand_at_their_values(pages):
    first = {side: pages["facts"].of_class(f"dot {side}") for side in ("before", "after", "alternative")}
    lefts = {
        side: next(m["style"] for m in marks if m.get("style"))  # samples in the legend have no place
        for side, marks in first.items()
    }
    assert lefts == {"before": "left:54.00%", "after": "left:95.70%", "alternative": "left:97.10%"}


def test_alternatives_are_weighed_against_the_cut():
    verdict, plan, analysis = data_report.facts()
    for value, words in (
        (0.96, "as much as the cut"),
        (0.7, "less than the cut"),
        (0.999, "more than the cut"),
    ):
        verdict["alternatives"][0]["value"] = value
        assert f"{100 * value:.1f} %: {words}" in Page(render(verdict, plan, analysis)).text


def test_spectrum_states_the_share_of_the_norm():
    values = np.array([5.0, 1.0, 3.0, 2.0])
    top, tail = spectrum("b0.o", values.tolist(), 2), spectrum("b0.o", values.tolist(), 1, "tail")
    assert f"{100 * (25 + 9) / (values**2).sum():.1f} %" in top.title
    assert f"{100 * 1 / (values**2).sum():.1f} %" in tail.title
    assert top.data[0]["y"] == [5.0, 3.0, 2.0, 1.0]
    assert [row[2] for row in tail.rows] == ["removed", "removed", "removed", "kept"]


def test_curves_share_one_axis_and_mark_the_cut(pages):
    panels = [f for f in pages["facts"].figures if f["id"].startswith("curves-")]
    assert len({json.dumps(panel["layout"]["yaxis"], sort_keys=True) for panel in panels}) == 1
    rings = [
        t for panel in panels for t in panel["data"] if t.get("marker", {}).get("symbol") == "circle-open"
    ]
    assert [ring["x"] for ring in rings] == [[pytest.approx(100 * (1 - 3 / 96))]]
    assert all(panel["layout"]["shapes"][0]["y0"] == 1.40 for panel in panels)


def test_every_drawn_figure_has_its_numbers_as_a_table(pages):
    boxes = [t for t in pages["facts"].tags if t[0] == "figure"]
    assert len(boxes) == len(pages["facts"].figures)
    assert len(pages["facts"].of_class("numbers")) >= len(boxes)


def test_changed_examples_are_cut_off_fairly_and_say_so(pages):
    rows = [
        attributes["data-kind"]
        for tag, attributes in pages["facts"].tags
        if tag == "tr" and "data-kind" in attributes
    ]
    _, _, analysis = data_report.facts()
    kinds = [row["kind"] for row in analysis["changed"]]
    assert len(rows) == 200
    assert rows.count("lost") == kinds.count("lost"), "a frequent kind does not crowd out a rare one"
    assert rows.count("changed") == kinds.count("changed")
    assert f"{len(kinds) - 200} more are in analysis.json" in pages["facts"].text


def test_map_fills_the_cut_cell(pages):
    cells = [attributes for attributes in pages["facts"].of_class("cut") if attributes.get("title")]
    assert [cell["title"] for cell in cells] == ["b2.gate → rank 3"]
    tried = [attributes for attributes in pages["facts"].of_class("tried") if attributes.get("title")]
    assert len(tried) == 3 * 7 - 1


def test_fired_guard_is_said_in_words():
    verdict, plan, analysis = data_report.facts()
    assert "look closer" not in Page(render(verdict, plan, analysis)).text
    verdict["guards"][0]["fired"] = True
    page = Page(render(verdict, plan, analysis))
    assert "look closer" in page.text
    assert len(page.of_class("fired")) == 1


def test_reopened_test_split_is_said():
    verdict, plan, analysis = data_report.facts()
    assert "opened" not in Page(render(verdict, plan, analysis)).text
    verdict |= {"openings": 3, "p_value": 0.03, "p_value_unadjusted": 0.01}
    text = Page(render(verdict, plan, analysis)).text
    assert "p = 0.030" in text
    assert "opened 3 times" in text
    assert "uncorrected p = 0.010" in text


# Runs that measured less


def test_null_run_is_short_and_says_that_nothing_was_cut(pages):
    page = pages["null"]
    assert page.ids() == {"compared", "guards", "cut", "figures", "dark"}
    assert "Nothing was cut" in page.text
    assert "no difference shown" in page.text
    assert page.of_class("neutral")


def test_an_unchanged_model_has_no_after_and_a_sentence_for_size_and_for_cost():
    verdict, plan, analysis = data_report.facts()
    nothing = data_report.null()[0]
    parts = ("side_effects", "secondary", "search", "candidates_tried", "parameters")
    nothing |= {name: verdict[name] for name in parts if name in verdict}
    nothing |= {name: data_components.heads()[0][name] for name in ("gains", "loads")}
    seen = {name: analysis[name] for name in ("base", "sweep", "screen", "curves", "spectrum")}
    page = Page(render(nothing, plan | {"edits": []}, seen))
    assert not page.of_class("dot after"), "no point of a cut that was not made"
    assert page.of_class("dot before")
    assert "the matrix that was cut" not in page.text
    assert "What it saves" not in page.text
    assert "What was tried" in page.text
    size = f"{verdict['parameters']['before']:,} parameters"
    assert f"Nothing was cut, so nothing is saved: {size}" in page.text
    assert "Nothing was cut, so nothing else changed: " in page.text
    frames = [
        shape
        for figure in page.figures
        for shape in figure["layout"].get("shapes", ())
        if shape["type"] == "rect"
    ]
    assert len(frames) == 1, "the best that was tried"


def test_the_screen_is_answered_in_words():
    verdict, plan, analysis = data_report.facts()
    scores = {(row["site"], row["rank"]): row for row in analysis["screen"]}
    done = [row for row in analysis["sweep"] if row["complete"]]
    for row in done:
        scores[row["site"], row["rank"]]["score"] = row["loss"]
    assert "Yes, by and large. Over the" in Page(render(verdict, plan, analysis)).text
    for row in done:
        scores[row["site"], row["rank"]]["score"] = -row["loss"]
    said = Page(render(verdict, plan, analysis)).text
    assert f"No. Over the {len(done):,} cuts that were judged to the end" in said
    assert "rank correlation of −1.00" in said


def test_a_map_leaves_out_layers_of_which_nothing_was_judged():
    verdict, plan, analysis = data_report.facts()
    analysis["sweep"] = [row for row in analysis["sweep"] if row["block"] != 1]
    figures = [
        figure for figure in Page(render(verdict, plan, analysis)).figures if figure["id"].startswith("sweep")
    ]
    assert figures
    assert all(figure["layout"]["yaxis"]["ticktext"] == ["0", "2"] for figure in figures)


@pytest.mark.parametrize(("values", "start"), [([0.01, 0.03], 0.0), ([-0.2, 0.3], None), ([3.0, 3.2], None)])
def test_the_axis_of_a_loss_does_not_begin_below_zero(values, start):
    low = loss_axis([*values])["range"][0]
    assert low <= min(values)
    assert low >= min(0.0, min(values) - 1)
    if start is not None:
        assert low >= start
    assert scale_of(min(values), max(values), "nats")[0] >= (0 if min(values) >= 0 else -1)


@pytest.mark.parametrize(
    ("ratio", "words"), [(1.037, "1.04 ×"), (99.0, "99.00 ×"), (13386.42, "13,000 ×"), (128.0, "130 ×")]
)
def test_large_factors_have_two_figures(ratio, words):
    assert factor(ratio).replace("\u00a0", " ") == words


def test_folded_blocks_are_marked_beside_dropped_ones():
    model = {"num_blocks": 4, "num_heads": 2, "num_kv_heads": 2}
    verdict, _, _ = data_report.facts()
    verdict["model"] |= model
    verdict["cut"] = [
        {"site": "b1", "edit": "b1 folded into b0.down", "kind": "linearize", "blocks": [1]},
        {"site": "b2", "edit": "b2 gone", "kind": "drop"},
    ]
    lines = drop_map(dropped(VerdictRecord.model_validate(verdict))).split('<div class="line')
    assert [line.split('"')[0] for line in lines[1:5]] == ["", " gone", " folded", ""], (
        "the last block is at the top"
    )
    assert lines[3].count('class="cut"') == 2 + 1, "its heads and its network"


def test_text_task_has_loss_only(pages):
    page = pages["text"]
    metrics = {trace["meta"] for figure in page.figures for trace in figure["data"] if trace.get("meta")}
    assert metrics == {"loss"}
    assert "metric" not in page.ids(), "no toggle where there is nothing to toggle"
    assert page.of_class("worse")
    assert "+0.031" in page.text
    assert "Loss on the text" in page.text
    assert "text has no answers" in page.text


@pytest.mark.parametrize(
    "block", ["sweep", "curves", "spectrum", "frequency", "paraphrases", "tail", "changed", "screen"]
)
@pytest.mark.parametrize("how", ["absent", "empty"])
def test_absent_blocks_leave_their_section_out(block, how):
    verdict, plan, analysis = data_report.facts()
    assert block in Page(render(verdict, plan, analysis)).ids()
    analysis[block] = type(analysis[block])()
    if how == "absent":
        del analysis[block]
    page = Page(render(verdict, plan, analysis))
    assert block not in page.ids()
    assert ("screen" in page.ids()) == (block not in ("screen", "sweep")), "the rest stays"


def test_deep_models_keep_readable_labels():
    verdict, plan, analysis = data_report.facts(blocks=80)
    page = Page(render(verdict, plan, analysis))
    for figure in page.figures:
        if figure["id"].startswith("sweep-"):
            assert len(figure["layout"]["yaxis"]["tickvals"]) <= 16
            assert 500 < figure["layout"]["height"] < 900


# Files


def test_write_report_reads_the_folder(tmp_path):
    records = dict(zip(("verdict", "plan", "analysis"), data_report.facts(), strict=True))
    for name, record in records.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    out = write_run_report(tmp_path, tmp_path / "report.html")
    assert out.read_text(encoding="utf-8") == render(*records.values())
    (tmp_path / "analysis.json").unlink()
    assert "sweep" not in Page(write_run_report(tmp_path, out).read_text(encoding="utf-8")).ids()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "report.html", "verdict.json"]


def test_missing_broken_and_unwritable_files_are_said(tmp_path):
    verdict, plan, _ = data_report.null()
    with pytest.raises(SecateurError, match=r"verdict\.json is missing"):
        write_run_report(tmp_path, tmp_path / "r.html")
    (tmp_path / "verdict.json").write_text("{broken", encoding="utf-8")
    with pytest.raises(SecateurError, match=r"verdict\.json: cannot be read as JSON"):
        write_run_report(tmp_path, tmp_path / "r.html")
    (tmp_path / "verdict.json").write_text("[]", encoding="utf-8")
    with pytest.raises(SecateurError, match="holds no record"):
        write_run_report(tmp_path, tmp_path / "r.html")
    (tmp_path / "verdict.json").write_text(json.dumps(verdict), encoding="utf-8")
    (tmp_path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(OutputError, match="No such file or directory"):
        write_run_report(tmp_path, tmp_path / "nowhere" / "r.html")


def test_records_that_do_not_belong_together_are_refused():
    verdict, plan, analysis = data_report.facts()
    with pytest.raises(SecateurError, match="version 7"):
        render(verdict | {"version": 7}, plan, analysis)
    with pytest.raises(SecateurError, match="not of one run"):
        render(verdict, plan | {"model": "another"}, analysis)
    with pytest.raises(SecateurError, match="lacks sentence, after"):
        render({k: v for k, v in verdict.items() if k not in ("sentence", "after")}, plan, analysis)


def test_a_report_needs_no_torch():
    code = "import sys, secateur.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Words for numbers


def test_numbers_in_words():
    assert number(0.9571, "share") == "95.7\u00a0%"
    assert number(1.3864, "nats/token") == "1.386"
    assert number(-1.5, "nats/token") == "−1.500"
    assert number(12345.6, "perplexity") == "12,346"
    assert number(None, "share") == "—"
    assert change(-0.0123, "share") == "−1.2\u00a0points"
    assert change(0.0, "share", name_unit=False) == "±0.0"
    assert change(0.674, "nats/token") == "+0.674"
    assert interval([0.1, 0.25], "share") == "10.0\u00a0–\u00a025.0\u00a0%"
    assert interval([-0.01, 0.02], "share", signed=True) == "−1.0 to +2.0\u00a0points"
    assert interval(None, "share") == ""


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (1.0, "p = 1"),
        (0.04, "p = 0.040"),
        (0.001, "p = 0.001"),
        (3.14e-12, "p = 3.1 × 10<sup>−12</sup>"),
        (0.0, "p &lt; 10<sup>−300</sup>"),
        (None, ""),
    ],
)
def test_p_values_in_words(p, words):
    assert p_value(p).replace("\u00a0", " ") == words


def test_ticks_enclose_the_data_in_round_steps():
    rng = np.random.default_rng(0)
    for _ in range(300):
        low = rng.normal() * 10.0 ** rng.integers(-3, 4)
        high = low + abs(rng.normal()) * 10.0 ** rng.integers(-3, 4) + 1e-4
        marks = ticks(low, high)
        step = marks[1] - marks[0]
        assert marks[0] <= low + 1e-6 * step
        assert marks[-1] >= high - 1e-6 * step
        assert np.allclose(np.diff(marks), step)
        assert len(marks) <= 8
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-3


def test_finite_keeps_what_is_finite():
    assert finite({"a": (1, math.inf, [math.nan, "x"])}) == {"a": [1, None, [None, "x"]]}
