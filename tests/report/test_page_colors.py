"""Both modes of the page: every text is legible, and every color of a figure has a counterpart."""

from __future__ import annotations

import json
import re
from importlib import resources
from itertools import pairwise

import pytest
from fixtures import data_components, data_directions, data_report

from secateur.report.colors import PALETTE, dark_color, variables
from secateur.reporting import render

MODES = {"light": 0, "dark": 1}
STYLE = resources.files("secateur.report").joinpath("style.css").read_text(encoding="utf-8")


def luminance(color: str) -> float:
    """Relative luminance. Source: WCAG 2.2, definition of relative luminance."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio. Source: WCAG 2.2, definition of contrast ratio."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_ratio_is_that_of_the_standard():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(
        4.48, abs=0.005
    )  # the well-known gray that just fails


def pairs() -> set[tuple[str, str]]:
    """Every text color of the stylesheet with every background it may lie on: that of its own rule, else the page's."""
    found = set()
    for block in re.findall(r"\{([^{}]*)\}", STYLE):
        texts = re.findall(r"(?<![-\w])color: var\(--(\w+)\)", block)
        backgrounds = re.findall(r"background(?:-color)?: var\(--(\w+)\)", block)
        found |= {(text, ground) for text in texts for ground in backgrounds or ("paper", "sheet")}
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pair", sorted(pairs()), ids=" on ".join)
def test_text_has_contrast(mode, pair):
    text, ground = (PALETTE[name][MODES[mode]] for name in pair)
    assert contrast(text, ground) >= 4.5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("text", "ground"), [("ink", "tried"), ("on", "after"), ("on", "accent"), ("ink", "on")]
)
def test_text_in_filled_marks_has_contrast(mode, text, ground):
    assert contrast(PALETTE[text][MODES[mode]], PALETTE[ground][MODES[mode]]) >= 4.5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["before", "after", "accent", "alt", "bad"])
def test_marks_have_the_contrast_that_graphics_need(mode, name):
    assert contrast(PALETTE[name][MODES[mode]], PALETTE["paper"][MODES[mode]]) >= 3


def test_pairs_are_found():
    assert {("muted", "paper"), ("ink", "sheet"), ("on", "accent"), ("bad", "paper")} <= pairs()


def test_the_stylesheet_names_its_colors():
    assert not re.findall(r"#[0-9a-f]{3,8}\b", STYLE)
    assert set(re.findall(r"var\(--(\w+)\)", STYLE)) - set(PALETTE) <= {
        "sans",
        "serif",
        "mono",
        "heads",
        "between",
    }
    light, dark = variables().split("@media")
    for name, (day, night) in PALETTE.items():
        assert f"--{name}: {day};" in light
        assert f"--{name}: {night};" in dark
    assert dark.startswith(" screen and (prefers-color-scheme: dark)"), "paper is white"


RECORDS = [data_report.facts, data_report.text, data_components.heads, data_directions.removal]


@pytest.mark.parametrize("build", RECORDS, ids=lambda build: f"{build.__module__}.{build.__name__}")
def test_every_color_of_a_figure_has_a_dark_one(build):
    page = render(*build())
    figures, dark = (
        json.loads(re.search(rf'id="{name}">(.*?)</script>', page, flags=re.S)[1])
        for name in ("figures", "dark")
    )
    used = set()

    def gather(value: object, key: str) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                gather(item, name)
        elif isinstance(value, list):
            for item in value:
                gather(item, key)
        elif isinstance(value, str) and "color" in key and value[:1] in "#r":
            used.add(value)

    gather(figures, "")
    assert used
    assert used <= set(dark)
    assert all(dark[light] == night for light, night in PALETTE.values() if light in dark)


def test_other_colors_are_mirrored_and_keep_their_opacity():
    assert luminance(dark_color("#000000")) > 0.8
    assert luminance(dark_color("#f8f8f8")) < 0.05
    assert dark_color("rgba(43,47,54,0.5)") == "rgba(232,230,225,0.5)"  # that of ink
    assert dark_color("rgba(0,0,0,0)").endswith(",0)")


@pytest.mark.parametrize("mode", MODES)
def test_the_scale_of_importance_has_even_steps_of_lightness(mode):
    levels = [116 * luminance(PALETTE[f"seq{i}"][MODES[mode]]) ** (1 / 3) - 16 for i in range(5)]
    steps = [abs(after - before) for before, after in pairwise(levels)]
    assert max(steps) / min(steps) < 1.35
    assert (levels[0] > levels[-1]) == (mode == "light"), "the most stands out from the page"
